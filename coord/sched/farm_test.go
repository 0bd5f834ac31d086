package sched_test

import (
	"cmp"
	"container/heap"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
	"vizpeer/lease/leasetest"
)

// What the leader does, as package coord does it.
const (
	leaseTTL     = 15 * time.Second // a silent machine is lost after that, a silent lease expires
	keepWithin   = 10 * time.Second // until a second machine holds a frame, if nothing is in the way
	lookEvery    = 5 * time.Second  // at attempts that may be stuck
	forgiveAfter = 10 * time.Minute // what all machines have failed
)

// simulated is a farm with its leader, its machines, the jobs that people submit and
// all that goes wrong, driven by events in simulated time. Everything follows from the
// seed. After each turn of the leader it checks what sched promises, and after each
// command what lease does.
type simulated struct {
	t     testing.TB
	seed  uint64
	now   time.Time
	todo  agenda
	count uint64 // of what was drawn up so far

	s       *lease.State
	saw     *leasetest.Witness
	boxes   []*box
	at      map[authz.PeerID]*box
	drained map[*box]bool
	shots   map[lease.JobID]*shot
	tries   map[lease.ID]*try // under leases that live

	due     bool                      // a turn of the leader
	looked  time.Time                 // when it last looked for what is stuck
	slow    []*try                    // that it found
	waits   map[lease.JobID]time.Time // since when a job waits for a grant, as samples tell
	longest time.Duration             // that one did
	tally
}

// tally counts seconds of slots, and what happened, up to an end.
type tally struct {
	end    time.Time
	busy   float64 // of slots with an attempt
	idle   float64 // of slots that are there without one
	useful float64 // rendering of frames that count
	spent  map[string]float64
	events map[string]int
	grants int
}

// past is how much of the time since then counts, in seconds.
func (f *simulated) past(since time.Time) float64 {
	now := f.now
	if now.After(f.end) {
		now = f.end
	}
	return max(0, now.Sub(since).Seconds())
}

func (f *simulated) spend(on string, since time.Time) { f.spent[on] += f.past(since) }

func (f *simulated) note(what string) {
	if f.now.Before(f.end) {
		f.events[what]++
	}
}

func newSimulated(t testing.TB, seed uint64) *simulated {
	return &simulated{
		t: t, seed: seed, now: time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC), s: lease.NewState(), saw: leasetest.NewWitness(),
		at: map[authz.PeerID]*box{}, drained: map[*box]bool{}, shots: map[lease.JobID]*shot{}, tries: map[lease.ID]*try{},
		waits: map[lease.JobID]time.Time{}, tally: tally{spent: map[string]float64{}, events: map[string]int{}},
	}
}

// agenda is what will happen, the next thing on top.
type agenda []event

type event struct {
	at time.Time
	n  uint64
	do func()
}

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, k int) bool {
	return cmp.Or(a[i].at.Compare(a[k].at), cmp.Compare(a[i].n, a[k].n)) < 0
}
func (a agenda) Swap(i, k int) { a[i], a[k] = a[k], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(event)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// in has something happen after a while.
func (f *simulated) in(d time.Duration, do func()) {
	f.count++
	heap.Push(&f.todo, event{f.now.Add(d), f.count, do})
}

// run lets time pass until there is nothing more to do before an end.
func (f *simulated) run(until time.Time) {
	for len(f.todo) > 0 && !f.todo[0].at.After(until) {
		e := heap.Pop(&f.todo).(event)
		f.now = e.at
		e.do()
		if f.due && (len(f.todo) == 0 || f.todo[0].at.After(f.now)) { // many signals make one turn
			f.due = false
			f.turn()
		}
	}
	f.now = until
}

// dice are the random numbers of one machine, one job or the people, so that what
// happens to one does not hang on what was decided about another.
type dice struct{ *rand.Rand }

func (f *simulated) dice(of string, n int) dice {
	h := fnv.New64a()
	fmt.Fprint(h, of, n)
	return dice{rand.New(rand.NewPCG(f.seed, h.Sum64()))}
}

func (d dice) chance(p float64) bool { return d.Float64() < p }

// within draws from low to high, as often below as above their geometric mean.
func (d dice) within(low, high float64) float64 {
	return low * math.Exp(d.Float64()*math.Log(high/low))
}

// after draws a time around a mean, as between things that happen at random.
func (d dice) after(mean time.Duration) time.Duration {
	return time.Duration(d.ExpFloat64() * float64(mean))
}

// do has the queue carry out a command, and the leader act on what that told.
func (f *simulated) do(c lease.Command) error {
	c.At = f.now
	events, err := f.saw.Apply(f.t, f.s, c)
	for _, e := range events {
		f.heard(e)
	}
	return err
}

func (f *simulated) must(c lease.Command) { require.NoError(f.t, f.do(c)) }

// heard is what the leader does about an event.
func (f *simulated) heard(e lease.Event) {
	switch e.Type {
	case lease.TaskEnded, lease.TaskRequeued, lease.LeaseEnded, lease.LeaseRevoked:
		f.disarm(e.Lease)
		if e.State == string(lease.TaskDone) {
			delete(f.at[e.Peer].unkept, e.Lease)
		}
	case lease.FrameResult:
		f.counted(e)
	case lease.FrameLost:
		if !f.shots[e.Job].again {
			lost := f.past(f.now.Add(-seconds(e.Result.Seconds)))
			f.useful -= lost
			f.spent["frames that were lost"] += lost
		}
	case lease.JobEnded:
		f.due = true
		f.finished(e)
	case lease.PeerDrained, lease.PeerUndrained:
		f.account(f.at[e.Peer])
		f.drained[f.at[e.Peer]], f.due = e.Type == lease.PeerDrained, true
		f.note(string(e.Type))
	case lease.JobSubmitted, lease.JobResumed:
		f.due = true
	}
}

// disarm forgets a lease that has ended; its machine stops, if it hears of it.
func (f *simulated) disarm(id lease.ID) {
	a := f.tries[id]
	if a == nil {
		return
	}
	f.due = true
	delete(f.tries, id)
	delete(a.b.granted, id)
	if a.b.here || a.silent {
		f.stop(a, "attempts that were ended")
	}
}

// counted sees to a frame that was accepted: the leader learns from it, and keepers
// fetch it.
func (f *simulated) counted(e lease.Event) {
	r := *e.Result
	f.useful += f.past(f.now.Add(-seconds(r.Seconds)))
	b := f.at[e.Peer]
	if a := f.tries[e.Lease]; a != nil {
		a.heard, a.first = f.now, false
	}
	j, task, err := f.s.Task(lease.TaskID{Job: e.Job, Index: e.Task})
	require.NoError(f.t, err)
	d := task.Device(e.Lease)
	if j.MeanPace().Frames() > j.Pace(lease.Hand{Peer: e.Peer, Device: d}).Frames() && r.Seconds > 0 { // somebody else rendered some of it
		speed := j.MeanPace().Seconds() / r.Seconds
		if old := b.Speeds[d]; old > 0 {
			speed = 0.9*old + 0.1*speed
		}
		b.Speeds[d] = speed
	}
	f.in(seconds(b.Float64()*keepWithin.Seconds()), func() { f.keep(e.Job, r) })
}

// keep has the submitter's machine, or another one, hold a frame as well.
func (f *simulated) keep(id lease.JobID, r lease.Result) {
	j, ok := f.s.Job(id)
	if !ok || j.State.Ended() {
		return
	}
	at, _ := j.Place(r.Frame)
	frame := j.Frames[at]
	if frame == nil || frame.CID != r.CID || frame.Done {
		return
	}
	keeper := f.at[j.Spec.Submitter]
	if !keeper.here || slices.Contains(frame.Holders, keeper.Peer) {
		keeper = f.boxes[keeper.IntN(len(f.boxes))]
	}
	given := slices.ContainsFunc(frame.Holders, func(p authz.PeerID) bool { return f.at[p].here })
	if given && keeper.here {
		f.must(lease.Command{Hold: &lease.Hold{Job: id, Frame: r.Frame, CID: r.CID, Peer: keeper.Peer, Delivered: keeper.Peer == j.Spec.Output.Peer, Machines: f.present()}})
	}
	f.in(keepWithin, func() { f.keep(id, r) }) // unless that was enough
}

// present is how many machines there are to hold frames.
func (f *simulated) present() (n int) {
	for _, b := range f.boxes {
		if b.here {
			n++
		}
	}
	return n
}

// turn grants tasks to free slots, as the leader does.
func (f *simulated) turn() {
	stuck := f.lookForStuck()
	jobs := f.s.Waiting(f.now, func(j *lease.Job) bool { return len(stuck[j.ID]) > 0 })
	jobs = slices.DeleteFunc(jobs, func(j *lease.Job) bool {
		return !slices.ContainsFunc(j.Holders, func(p authz.PeerID) bool { return f.at[p].here })
	})
	require.True(f.t, slices.IsSortedFunc(jobs, func(a, b *lease.Job) int {
		return cmp.Or(cmp.Compare(b.Rank(f.now), a.Rank(f.now)), cmp.Compare(a.Seq, b.Seq))
	}))
	placed := sched.Place(jobs, f.free(), stuck)
	for _, p := range placed {
		f.grant(p)
	}
	for _, p := range placed {
		f.lookAhead(f.at[p.Peer], jobs)
	}
	f.checkOrder(jobs, placed)
	f.checkIdle(jobs)
}

// free lists the machines that could take a task more.
func (f *simulated) free() (free []sched.Machine) {
	for _, b := range f.boxes {
		if m := f.machine(b); b.here && len(m.Free) > 0 {
			free = append(free, m)
		}
	}
	return free
}

// machine is a box as the leader sees it: what it goes on with under a lease that has
// ended takes a slot, too.
func (f *simulated) machine(b *box) sched.Machine {
	m := b.Machine
	m.Can.Draining = f.drained[b]
	if m.Free = nil; len(b.granted) == b.slots {
		return m
	}
	busy := map[lease.Device]int{}
	for _, d := range b.granted {
		busy[d]++
	}
	for _, a := range b.tries {
		if b.granted[a.Lease] == "" && !a.silent {
			busy[a.device]++
		}
	}
	for _, d := range m.Can.Devices() {
		for range d.Slots - busy[d.Device] {
			m.Free = append(m.Free, d.Device)
		}
	}
	return m
}

// lookForStuck lists the tasks that a second machine should try. It looks at all
// attempts now and then, and more often at those that it found.
func (f *simulated) lookForStuck() map[lease.JobID][]int32 {
	if f.now.Sub(f.looked) >= lookEvery {
		f.looked, f.slow = f.now, f.slow[:0]
		for _, b := range f.boxes {
			f.slow = append(f.slow, b.tries...)
		}
	}
	stuck := map[lease.JobID][]int32{}
	f.slow = slices.DeleteFunc(f.slow, func(a *try) bool {
		if a.b.granted[a.Lease] == "" {
			return true
		}
		j, _ := f.s.Job(a.Task.Job)
		due, ok := sched.Stuck(j, sched.Running{Report: a.Report, Device: a.device, Since: a.heard, First: a.first})
		if !ok || due.After(f.now) {
			return true
		}
		stuck[j.ID] = append(stuck[j.ID], a.Task.Index)
		return false
	})
	for _, tasks := range stuck {
		slices.Sort(tasks)
	}
	return stuck
}

func (f *simulated) grant(p sched.Placement) {
	f.grants++
	if p.Second {
		f.note("second attempts")
	}
	b := f.at[p.Peer]
	g := &lease.Grant{Lease: lease.ID(fmt.Sprint("l", f.grants)), Task: p.Task, Peer: p.Peer, Device: p.Device, Frames: p.Frames, Second: p.Second}
	events, err := f.saw.Apply(f.t, f.s, lease.Command{At: f.now, Grant: g})
	require.NoError(f.t, err)
	for _, e := range events {
		if e.Type == lease.TaskGranted {
			g.Task.Index = e.Task
		}
	}
	j, task, err := f.s.Task(g.Task)
	require.NoError(f.t, err)
	a := &try{
		Report: lease.Report{Lease: g.Lease, Task: g.Task, Peer: g.Peer}, b: b, device: p.Device,
		shot: f.shots[j.ID], fixed: !j.Spec.Adaptive(), frames: j.Remaining(task), heard: f.now, first: true,
	}
	require.NotEmpty(f.t, a.frames, "an attempt with nothing to do")
	delete(f.waits, j.ID)
	f.tries[a.Lease], b.granted[a.Lease] = a, a.device
	f.start(a)
}

// lookAhead has a machine fetch the project that it is likely to need next.
func (f *simulated) lookAhead(b *box, jobs []*lease.Job) {
	renders := map[string]bool{}
	for _, a := range b.tries {
		renders[a.shot.project] = true
	}
	if j := sched.Ahead(jobs, f.machine(b), renders); j != nil {
		f.fetch(b, f.shots[j.ID])
	}
}

// may tells whether a machine could be given a task of a job.
func (f *simulated) may(b *box, j *lease.Job) bool {
	return b.here && !f.drained[b] && !j.KeptOff(b.Peer) && len(b.Lacks(j)) == 0
}

// forgive opens jobs to all machines again that nobody may try any more.
func (f *simulated) forgive() {
	f.in(time.Minute, func() {
		var machines []sched.Machine
		for _, b := range f.boxes {
			if b.here {
				machines = append(machines, f.machine(b))
			}
		}
		for _, j := range f.s.Waiting(f.now, nil) {
			if f.now.Sub(j.Served) >= forgiveAfter && sched.Barred(j, machines) {
				f.note("jobs forgiven")
				f.must(lease.Command{Forgive: &lease.Forgive{Job: j.ID}})
				f.due = true
			}
		}
		f.forgive()
	})
}

// tick is the leader's timer for what may be stuck.
func (f *simulated) tick() {
	every := lookEvery
	if f.now.After(f.end) {
		every = time.Minute
	}
	f.in(every, func() {
		f.due = true
		f.tick()
	})
}

// changeLeader has another machine lead once a day: it knows what is stored, and no
// more.
func (f *simulated) changeLeader() {
	f.in(24*time.Hour, func() {
		f.s = leasetest.Restored(f.t, f.s)
		for _, a := range f.tries {
			a.heard, a.first = f.now, true
		}
		for _, b := range f.boxes {
			clear(b.Speeds)
		}
		f.changeLeader()
	})
}

// forget drops what ended long ago.
func (f *simulated) forget() {
	f.in(6*time.Hour, func() {
		f.must(lease.Command{Forget: &lease.Forget{Before: f.now.Add(-6 * time.Hour)}})
		f.forget()
	})
}

// checkOrder requires that nobody got a task while one waits, that it could do, of a
// job that is to be served earlier.
func (f *simulated) checkOrder(jobs []*lease.Job, placed []sched.Placement) {
	for _, p := range placed {
		if p.Second { // its job has the slot of the first one for nothing
			continue
		}
		b := f.at[p.Peer]
		for _, j := range jobs {
			if j.ID == p.Task.Job {
				break
			}
			if j.HasQueued() && f.may(b, j) && j.Spec.Needs.Serves(b.Can, p.Device, j.Above) {
				require.Fail(f.t, "out of order", "%s got %s while %s waits", p.Peer, p.Task, j.ID)
			}
		}
	}
}

// checkIdle requires that nothing is free while a task waits for which it would do,
// and that no machine has more attempts than slots.
func (f *simulated) checkIdle(jobs []*lease.Job) {
	for _, b := range f.boxes {
		if len(b.tries) > b.slots {
			require.Fail(f.t, "a machine has more attempts than slots", b.Peer)
		}
		for _, d := range f.machine(b).Free {
			for _, j := range jobs {
				if j.HasQueued() && f.may(b, j) && j.Spec.Needs.Serves(b.Can, d, j.Above) {
					require.Fail(f.t, "not work-conserving", "%s of %s is free while %s waits", d, b.Peer, j.ID)
				}
			}
		}
	}
}
