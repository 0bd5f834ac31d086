package coord

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"

	"vizpeer/authz"
	"vizpeer/lease"
)

// simCheck watches a farm and knows what must hold. It collects what does not.
type simCheck struct {
	f       *simFarm
	history simHistory

	mu       sync.Mutex
	faults   []string
	digests  map[uint64]uint64 // of what each entry did, by index
	founded  bool              // the farm is as it should be when the schedule begins
	terms    map[uint64]*simMachine
	leader   *simMachine // the latest
	current  map[simFrame]string
	done     map[simFrame]string
	tasks    map[lease.TaskID]int // how often each was done
	ended    map[lease.JobID]lease.JobState
	jobs     int // accepted
	expired  int
	grants   int
	late     int // begun although all was done meanwhile
	troubles []*simTrouble
}

type simFrame struct {
	job   lease.JobID
	frame int32
}

// simTrouble is when something was wrong with machines.
type simTrouble struct {
	with        []*simMachine
	from, until time.Time // until is zero while it lasts
}

func newSimCheck(f *simFarm) *simCheck {
	return &simCheck{
		f: f, digests: make(map[uint64]uint64), terms: make(map[uint64]*simMachine), current: make(map[simFrame]string), done: make(map[simFrame]string),
		tasks: make(map[lease.TaskID]int), ended: make(map[lease.JobID]lease.JobState),
	}
}

func (c *simCheck) failf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong(format, args...)
}

// wrong notes what does not hold. c.mu is held.
func (c *simCheck) wrong(format string, args ...any) {
	if len(c.faults) < 20 {
		c.faults = append(c.faults, fmt.Sprintf("%8.3f ", time.Since(c.f.begun).Seconds())+fmt.Sprintf(format, args...))
	}
}

// leads is told that a machine leads.
func (c *simCheck) leads(m *simMachine, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.terms[term]; o != nil && o != m {
		c.wrong("machines %d and %d both lead in term %d", o.n, m.n, term)
	}
	c.terms[term], c.leader = m, m
	c.f.logf("machine %d leads in term %d", m.n, term)
}

// trouble notes that something is wrong with machines until the answer is called.
func (c *simCheck) trouble(with []*simMachine) (over func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &simTrouble{with: with, from: time.Now()}
	c.troubles = append(c.troubles, t)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		t.until = time.Now()
	}
}

// troubled tells whether something was wrong with a machine so lately that its silence is
// no wonder. c.mu is held.
func (c *simCheck) troubled(m *simMachine) bool {
	since := time.Now().Add(-LeaseTTL - 2*Renewal)
	return slices.ContainsFunc(c.troubles, func(t *simTrouble) bool {
		return slices.Contains(t.with, m) && (t.until.IsZero() || t.until.After(since))
	})
}

func (c *simCheck) begins(m *simMachine, o Order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, frame := range o.Frames {
		if c.done[simFrame{o.Task.Job, frame}] != "" {
			c.late++
		}
	}
}

func (c *simCheck) cancelled(key string) {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	for _, j := range c.history.jobs {
		if j.key == key {
			j.cancelled = true
		}
	}
}

// applied is told what an entry did on a machine: every machine must say the same, and
// whoever is first tells what happened.
func (c *simCheck) applied(m *simMachine, a Applied) {
	if a.Restored {
		return
	}
	h := fnv.New64a()
	fmt.Fprint(h, a.At.UnixNano())
	for _, e := range a.Queue {
		fmt.Fprint(h, e.Type, e.Job, e.Task, e.Lease, e.Peer, e.State)
		if e.Result != nil {
			fmt.Fprint(h, e.Result.CID)
		}
	}
	for _, e := range a.Roster {
		fmt.Fprint(h, e)
	}
	digest := h.Sum64()
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.digests[a.Index]; ok {
		if known != digest {
			c.wrong("entry %d did something else on machine %d than on another", a.Index, m.n)
		}
		return
	}
	c.digests[a.Index] = digest
	if off := apart(a.At, time.Now()); !a.At.IsZero() && c.founded && off > clockError+time.Minute && !c.doubtful() {
		c.wrong("entry %d is of %s, and most coordinators' clocks are right", a.Index, a.At)
	}
	for _, e := range a.Roster {
		if e.Type == authz.PeerExpired {
			c.wrong("%s lost its membership", e.Peer.Short())
		}
	}
	for _, e := range a.Queue {
		c.event(e)
	}
}

// count reads one of the counters.
func (c *simCheck) count(n *int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *n
}

// doubtful tells that of the coordinators that are there as many clocks may be wrong as
// are right. c.mu is held.
func (c *simCheck) doubtful() bool {
	right, wrong := 0, 0
	for _, m := range c.f.coordinators() {
		if apart(m.now(), time.Now()) > time.Minute {
			wrong++
		} else if !c.troubled(m) {
			right++
		}
	}
	return wrong >= right
}

func (c *simCheck) event(e lease.Event) {
	task := lease.TaskID{Job: e.Job, Index: e.Task}
	var at simFrame
	if e.Frame != nil {
		at = simFrame{e.Job, *e.Frame}
	}
	switch e.Type {
	case lease.JobSubmitted:
		c.jobs++
	case lease.JobEnded:
		if c.ended[e.Job] != "" {
			c.wrong("job %s ended twice", e.Job)
		}
		c.ended[e.Job] = lease.JobState(e.State)
	case lease.TaskGranted:
		c.grants++
		if c.tasks[task] > 0 {
			c.wrong("task %s is granted although it is done", task)
		}
		if c.ended[e.Job] != "" {
			c.wrong("task %s is granted although its job has ended", task)
		}
	case lease.FrameResult:
		if c.current[at] != "" {
			c.wrong("a second result of frame %v was accepted", at)
		}
		c.current[at] = e.Result.CID
	case lease.FrameLost:
		if c.done[at] != "" {
			c.wrong("frame %v was done and is lost", at)
		}
		delete(c.current, at)
	case lease.FrameKept:
		if c.current[at] != e.Result.CID {
			c.wrong("frame %v is done with a result that was not accepted", at)
		}
		c.done[at] = e.Result.CID
		if n := c.copies(e.Result.CID); c.quiet() && n < c.replicas(e.Job) {
			c.wrong("frame %v is done with %d copies, and all machines are there", at, n)
		}
	case lease.TaskEnded:
		if e.State == string(lease.TaskDone) {
			if c.tasks[task]++; c.tasks[task] > 1 {
				c.wrong("task %s was done twice", task)
			}
		}
	case lease.TaskRequeued, lease.LeaseEnded:
		if e.Reason != "the machine was not heard from" {
			return
		}
		c.expired++
		m := c.f.machine(e.Peer)
		if !c.troubled(m) && !(c.leader != nil && c.leader != m && c.stalled(c.leader)) {
			c.wrong("the lease of task %s expired, and nothing was wrong with machine %d", task, m.n)
		}
		c.f.logf("the lease of %s on machine %d expired", task, m.n)
	}
}

// quiet tells that nothing has been wrong with any machine for a while. c.mu is held.
func (c *simCheck) quiet() bool {
	return !slices.ContainsFunc(c.f.machines, c.troubled)
}

// copies counts the machines that have some content.
func (c *simCheck) copies(root string) (n int) {
	for _, m := range c.f.machines {
		if m.has(root) {
			n++
		}
	}
	return n
}

// replicas is how many the job wants of each frame; 0 where its client has not heard of it.
func (c *simCheck) replicas(id lease.JobID) int {
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	for _, j := range c.history.jobs {
		if j.id == id {
			return j.spec.Replicas
		}
	}
	return 0
}

// stalled tells whether it was the leader itself that could hear nobody. c.mu is held.
func (c *simCheck) stalled(leader *simMachine) bool {
	return slices.ContainsFunc(c.troubles, func(t *simTrouble) bool {
		return len(t.with) == 1 && t.with[0] == leader && (t.until.IsZero() || t.until.After(time.Now().Add(-LeaseTTL-2*Renewal)))
	})
}

// verify looks at a farm that is whole again and has nothing left to do.
func (c *simCheck) verify() {
	f := c.f
	leader := f.leader()
	if leader == nil {
		c.failf("nobody leads at the end")
		return
	}
	c.states()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	accepted := 0
	leader.coord.Read(func(q *lease.State, _ *authz.Roster) {
		byKey := make(map[string][]*lease.Job)
		for _, j := range q.Jobs() {
			byKey[j.Spec.Name] = append(byKey[j.Spec.Name], j)
			c.job(j)
		}
		for _, j := range c.history.jobs {
			if j.id == "" {
				continue
			}
			accepted++
			switch of := byKey[j.key]; {
			case len(of) != 1:
				c.wrong("%s was submitted once, and the queue has it %d times", j.key, len(of))
			case of[0].ID != j.id:
				c.wrong("%s was accepted as %s and is %s", j.key, j.id, of[0].ID)
			case j.cancelled && of[0].State != lease.JobCancelled:
				c.wrong("the cancellation of %s was acknowledged, and it is %s", j.key, of[0].State)
			}
		}
	})
	if c.jobs != accepted {
		c.wrong("%d jobs were accepted, and clients heard of %d", c.jobs, accepted)
	}
	if result := porcupine.CheckOperationsTimeout(simModel, c.history.ops, 10*time.Second); result != porcupine.Ok {
		c.wrong("the history of %d requests is not linearizable: %s", len(c.history.ops), result)
	}
}

// job looks at a job that has ended.
func (c *simCheck) job(j *lease.Job) {
	if !j.State.Ended() {
		c.wrong("job %s is %s at the end", j.ID, j.State)
	}
	for i := range j.Tasks {
		if n := len(j.Tasks[i].Lives()); n > 0 {
			c.wrong("%d leases of task %s/%d are kept for ever", n, j.ID, i)
		}
	}
	for at, frame := range j.Frames {
		id := simFrame{j.ID, j.Numbers()[at]}
		if frame == nil {
			if j.State == lease.JobDone {
				c.wrong("job %s is done without frame %d", j.ID, id.frame)
			}
			continue
		}
		if frame.Done != (c.done[id] != "") || frame.Done && frame.CID != c.done[id] {
			c.wrong("frame %v was done as %q, and is %q, done: %v", id, c.done[id], frame.CID, frame.Done)
		}
		if !frame.Done {
			continue
		}
		if copies := c.copies(frame.CID); copies < j.Spec.Replicas {
			c.wrong("frame %v is done, and %d machines hold it, not %d", id, copies, j.Spec.Replicas)
		}
		for _, p := range frame.Holders {
			if !c.f.machine(p).has(frame.CID) {
				c.wrong("frame %v is held by machine %d by the queue alone", id, c.f.machine(p).n)
			}
		}
	}
}

// states compares the queues and rosters of all coordinators.
func (c *simCheck) states() {
	var first []byte
	for _, m := range c.f.coordinators() {
		b := simState(m.coord.log())
		if first == nil {
			first = b
		}
		if !bytes.Equal(first, b) {
			c.failf("the queue of machine %d differs from that of machine 0", m.n)
		}
	}
}

// simState is a coordinator's queue and roster, and where its audit ends. Which records
// of that are on disk is each machine's own.
func simState(l *Log) []byte {
	var b bytes.Buffer
	l.fsm.mu.Lock()
	defer l.fsm.mu.Unlock()
	if err := l.fsm.roster.Snapshot(&b); err != nil {
		panic(err)
	}
	fmt.Fprint(&b, l.fsm.trail.Head())
	if err := l.fsm.queue.Freeze().Write(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// level tells whether all coordinators have applied all that is committed.
func (f *simFarm) level() bool {
	leader := f.leader()
	if leader == nil || leader.coord.log().raft.State() != raft.Leader {
		return false
	}
	want := leader.coord.Status()
	for _, m := range f.coordinators() {
		if st := m.coord.Status(); st.AppliedIndex != want.CommitIndex || len(st.Voters) != len(f.coordinators()) {
			return false
		}
	}
	return true
}
