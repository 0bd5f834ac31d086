package coord

import (
	"path"
	"slices"
	"time"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// schedule grants tasks to free slots.
func (l *leader) schedule() {
	l.mu.Lock()
	var machines []sched.Machine
	here := make(map[authz.PeerID]bool, len(l.sessions))
	l.c.Read(func(s *lease.State, _ *authz.Roster) { l.compare(s) })
	for p, s := range l.sessions {
		here[p] = true
		if s.busy() < s.slots && s.offering == nil {
			m := s.machine()
			m.Speeds = l.speeds[p]
			machines = append(machines, m)
		}
	}
	var grants []lease.Command
	if len(machines) > 0 {
		l.c.Read(func(s *lease.State, _ *authz.Roster) {
			stuck := l.stuckTasks(s)
			jobs := s.Waiting(l.now(), func(j *lease.Job) bool { return len(stuck[j.ID]) > 0 })
			// Nobody can render what nobody who is there holds.
			jobs = slices.DeleteFunc(jobs, func(j *lease.Job) bool {
				return !slices.ContainsFunc(j.Holders, func(p authz.PeerID) bool { return here[p] })
			})
			for _, p := range sched.Place(jobs, machines, stuck) {
				g := &lease.Grant{Lease: newLeaseID(), Task: p.Task, Peer: p.Peer, Device: p.Device, Frames: p.Frames, Units: p.Units, Second: p.Second}
				grants = append(grants, lease.Command{At: l.now(), Grant: g})
			}
		})
	}
	// The slot is taken before the grant is committed, so that its events find it.
	for _, c := range grants {
		s := l.sessions[c.Grant.Peer]
		s.granted[c.Grant.Lease], s.look = slot{device: c.Grant.Device}, true
	}
	l.mu.Unlock()
	if len(grants) > 0 {
		l.grant(grants)
	}
}

// grantAgain is how long after the log could not take a grant it is tried again.
const grantAgain = 100 * time.Millisecond

// grant commits grants and sends the orders that follow from them.
func (l *leader) grant(grants []lease.Command) {
	entries := make([]Entry, len(grants))
	for i := range grants {
		entries[i].Queue = &grants[i]
	}
	applied, errs := l.c.log().ApplyAll(l.ctx, entries)
	var back []lease.Report
	again := false
	l.mu.Lock()
	for i, c := range grants {
		g := c.Grant
		if errs[i] != nil {
			l.disarm(g.Lease, g.Peer)
			if Refused(errs[i]) {
				l.signal() // its slot is for another task
			} else {
				// The log is busy, or the leadership is being handed over: at once it would
				// say the same, as often as it is asked.
				again = true
			}
			continue
		}
		o, ok := l.order(*g, applied[i])
		if !ok {
			continue // it has ended already
		}
		s := l.sessions[g.Peer]
		if s != nil {
			_, ok = s.granted[g.Lease]
		}
		if s == nil || !ok {
			// The machine left, or came back over another stream, meanwhile.
			back = append(back, o.Report)
			continue
		}
		l.arm(g.Lease, o.Task, g.Peer)
		l.leases[g.Lease].until = o.until
		s.send(Down{Grant: &o})
	}
	l.mu.Unlock()
	if again {
		time.AfterFunc(grantAgain, l.signal)
	}
	for _, r := range back {
		l.giveBack(r, "the machine was away")
	}
}

// order is what a machine is told of a grant that was committed: the task may have
// been cut. It is false where the lease lives no more. l.mu is held.
func (l *leader) order(g lease.Grant, a Applied) (o Order, live bool) {
	o.Device = g.Device
	o.Report = lease.Report{Lease: g.Lease, Task: g.Task, Peer: g.Peer}
	for _, e := range a.Queue {
		if e.Type == lease.TaskGranted {
			o.Task.Index = e.Task
		}
	}
	l.c.Read(func(s *lease.State, _ *authz.Roster) {
		j, t, err := s.Task(o.Task)
		if err != nil {
			return
		}
		var at lease.Attempt
		at, live = t.Live(g.Lease)
		o.until = l.longest(j, t, at.Granted)
		o.Spec, o.Frames, o.Stocked = j.Spec, j.Remaining(t), slices.Contains(j.Holders, g.Peer)
		switch {
		case j.Makes(t):
			for _, f := range j.Frames[:j.Pictures()] {
				if f != nil {
					// Of the name the ending is all that is needed, and twenty thousand must fit.
					o.Movie = append(o.Movie, lease.Result{Frame: f.Result.Frame, CID: f.CID, Name: path.Ext(f.Name), Size: f.Size})
				}
			}
		case j.Splits():
			o.Split = j.Split()
			l.parts(&o, j, t)
		}
	})
	if live && !o.Stocked { // else it has it
		o.From = l.sources(o.Spec.Project, o.Task.Job, g.Peer)
	}
	return o, live
}

// maxWithSources is of how many pieces an order says who has them: it must fit into one
// message. Of more, their member asks.
const maxWithSources = 256

// parts adds to an order what of its frame is to be rendered, or which pieces are to be
// merged. Both locks are held.
func (l *leader) parts(o *Order, j *lease.Job, t *lease.Task) {
	if t.Part() {
		o.Spans = j.Gaps(t)
		return
	}
	pieces := j.PiecesOf(t.Lo)
	for _, p := range pieces {
		piece := Piece{Span: p.Span, CID: p.CID, Size: p.Size}
		if len(pieces) <= maxWithSources {
			piece.Sources = l.addrs(p.Holders, o.Peer)
		}
		o.Pieces = append(o.Pieces, piece)
	}
}

// frameTime is how long a machine took for a frame.
type frameTime struct {
	job     lease.JobID
	task    int32
	lease   lease.ID
	peer    authz.PeerID
	seconds float64
}

// speedWeight is how much one frame counts in a machine's speed.
const speedWeight = 0.1

// compare learns the machines' speeds from the frames that came. Both locks are held.
func (l *leader) compare(s *lease.State) {
	for _, t := range l.timed {
		j, task, err := s.Task(lease.TaskID{Job: t.job, Index: t.task})
		if err != nil || t.seconds <= 0 {
			continue
		}
		d := task.Device(t.lease)
		if j.Splits() { // a merge tells nothing
			continue
		}
		if j.MeanPace().Frames() == j.Pace(lease.Hand{Peer: t.peer, Device: d}).Frames() {
			continue // nobody else rendered any of it
		}
		speed := j.MeanPace().Seconds() / t.seconds
		if old := l.speeds[t.peer][d]; old > 0 {
			speed = (1-speedWeight)*old + speedWeight*speed
		}
		if l.speeds[t.peer] == nil {
			l.speeds[t.peer] = make(map[lease.Device]float64)
		}
		l.speeds[t.peer][d] = speed
	}
	l.timed = l.timed[:0]
}

// stuckTasks lists the tasks that a second machine should try, and wakes the leader
// when the next one will be. Both locks are held.
func (l *leader) stuckTasks(s *lease.State) map[lease.JobID][]int32 {
	stuck := make(map[lease.JobID][]int32)
	var next time.Time
	now := time.Now()
	for id, t := range l.leases {
		j, ok := s.Job(t.task.Job)
		if !ok {
			continue
		}
		r := sched.Running{Report: lease.Report{Lease: id, Task: t.task, Peer: t.peer}, Device: j.Tasks[t.task.Index].Device(id), Since: t.since, First: t.frames == 0}
		due, ok := sched.Stuck(j, r)
		switch {
		case !ok:
		case !due.After(now):
			stuck[j.ID] = append(stuck[j.ID], t.task.Index)
		case next.IsZero() || due.Before(next):
			next = due
		}
	}
	for id, tasks := range stuck {
		slices.Sort(tasks)
		// Where half of a job seems stuck it is what was expected that is wrong.
		if j, _ := s.Job(id); len(tasks) > 1 && 2*len(tasks) > j.Count(lease.TaskLeased) {
			delete(stuck, id)
		}
	}
	if !next.IsZero() {
		l.stuck.Reset(next.Sub(now))
	}
	return stuck
}

// giveBack ends a lease that its machine does not know of. Should the log be too
// busy for it, the lease runs out instead.
func (l *leader) giveBack(r lease.Report, why string) {
	if l.propose(lease.Command{Release: &lease.Release{Report: r, Reason: why}}) != nil {
		l.mu.Lock()
		l.arm(r.Lease, r.Task, r.Peer)
		l.mu.Unlock()
	}
}

// forgiveAfter is how long a job that nobody may try any more rests before everybody
// may again.
const forgiveAfter = 10 * time.Minute

// forgive opens jobs to all machines again of which nothing was granted for a while,
// because those that are there failed them: what was wrong may have passed, and nobody
// should have to come and see.
func (l *leader) forgive() {
	var jobs []lease.JobID
	l.mu.Lock()
	machines := make([]sched.Machine, 0, len(l.sessions))
	for _, s := range l.sessions {
		machines = append(machines, s.machine())
	}
	l.c.Read(func(s *lease.State, _ *authz.Roster) {
		now := l.now()
		for _, j := range s.Waiting(now, nil) {
			// One that was served later than now was so by a clock that was ahead.
			if apart(now, j.Served) >= forgiveAfter && sched.Barred(j, machines) {
				jobs = append(jobs, j.ID)
			}
		}
	})
	l.mu.Unlock()
	for _, id := range jobs {
		l.c.slog.Info("every machine may try a job again that all had failed", "job", id)
		_ = l.propose(lease.Command{Forgive: &lease.Forgive{Job: id}})
	}
}
