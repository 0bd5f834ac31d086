package coord

import (
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/lease"
)

// report is a member's report and its command.
type report struct {
	Up
	pending *Pending
}

// maxReports is how many reports of one member may be under way to the log: with as
// many of them one sync serves for all.
const maxReports = 64

// heard carries out one message of a member. A report goes on to [leader.committed]:
// the next message does not wait until it is on disk.
func (l *leader) heard(s *session, up Up) error {
	if !s.wasDue(up) {
		if err := s.limit.WaitN(l.ctx, up.weight()); err != nil {
			return err
		}
	}
	switch {
	case up.Renew != nil && len(up.Renew.Leases) > maxRunning:
		return fmt.Errorf("a renewal of %d leases", len(up.Renew.Leases))
	case up.Renew != nil && validAddrs(up.Renew.Addrs) != nil:
		return fmt.Errorf("a renewal with %w", validAddrs(up.Renew.Addrs))
	case up.Renew != nil:
		l.renew(s, *up.Renew)
		s.send(Down{Ack: &Ack{}})
		return nil
	case up.Trouble != nil:
		l.troubled(s, *up.Trouble)
		return nil
	case up.Offered:
		l.offered(s)
		return nil
	case up.May != nil, up.Find != nil, up.Part != nil, up.Recall != nil:
		s.send(Down{Ack: l.answer(s, up)})
		return nil
	}
	// Who speaks is known from the stream, and how many machines there are from
	// the leader's own eyes, whatever the message says.
	cmd := lease.Command{At: l.now()}
	var err error
	l.mu.Lock()
	machines := l.machines()
	l.mu.Unlock()
	// What would be refused costs no place in the log.
	refused := func(r *lease.Report) error {
		r.Peer = s.peer
		var err error
		l.c.Read(func(q *lease.State, _ *authz.Roster) { err = q.Check(*r) })
		return err
	}
	switch {
	case up.Record != nil:
		up.Record.Machines, err = machines, refused(&up.Record.Report)
		if cmd.Record = up.Record; err == nil {
			err = resultsMakeSense(up.Record.Frames)
		}
	case up.Complete != nil:
		up.Complete.Machines, err = machines, refused(&up.Complete.Report)
		if cmd.Complete = up.Complete; err == nil {
			err = resultsMakeSense(up.Complete.Frames)
		}
	case up.Fail != nil:
		if err = refused(&up.Fail.Report); err == nil {
			up.Fail.Had, up.Fail.Others = l.outlook(s, *up.Fail)
		}
		cmd.Fail = up.Fail
	case up.Release != nil:
		cmd.Release, err = up.Release, refused(&up.Release.Report)
	case up.Hold != nil:
		up.Hold.Peer, up.Hold.Machines = s.peer, machines
		cmd.Hold = up.Hold
	case up.Stock != nil:
		up.Stock.Peer = s.peer
		cmd.Stock = up.Stock
	case up.Unhold != nil:
		up.Unhold.Peer, up.Unhold.Machines = s.peer, machines
		cmd.Unhold = up.Unhold
	default:
		// Of a newer version than this one: it must not lose its stream for that.
		if up.Seq != 0 {
			s.send(Down{Ack: &Ack{Seq: up.Seq, Code: CodeUpdate, Reason: "the machine that leads the queue runs an older vizpeer, which does not know this: update it there"}})
		}
		return nil
	}
	if err == nil {
		err = l.mayHold(s, up)
	}
	if up.Release != nil && err == nil { // before the task can be granted again
		l.rest(s, up.Release.Task.Job)
		if up.NoRoom {
			l.full(s, up.Release.Task.Job)
		}
	}
	if err != nil {
		s.reports <- report{up, refusedAtOnce(err)}
		return nil
	}
	// The next task is chosen while this one's end is on its way to the disk; but how many
	// units of a frame that is to have is known only from how fast these went.
	if up.Complete != nil && len(up.Complete.Pieces) == 0 {
		pending := l.c.log().StartSoon(Entry{Queue: &cmd})
		l.over(s, up.Complete.Lease)
		s.reports <- report{up, pending}
		return nil
	}
	s.reports <- report{up, l.c.log().Start(Entry{Queue: &cmd})}
	return nil
}

// weight is how many messages this one counts for.
func (u Up) weight() int {
	switch {
	case u.Part != nil, u.Unhold != nil: // every frame of a job, or of all, is looked at
		return heavy
	case u.Find != nil, u.Trouble != nil: // every machine, or all that one was asked
		return heavy / 10
	case u.Record != nil:
		return 1 + len(u.Record.Frames)/heavy
	case u.Complete != nil:
		return 1 + len(u.Complete.Frames)/heavy
	}
	return 1
}

// restFor is how long a member is not offered a job again that it handed back.
const restFor = 5 * time.Second

// rest keeps a job from a member for a moment: what made it hand the job back may not
// have passed, and nothing else would slow the two down.
func (l *leader) rest(s *session, job lease.JobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.rest[job] = time.Now().Add(restFor)
	time.AfterFunc(restFor, l.signal)
}

// over frees the slot of an attempt that a member says it has completed: whatever
// becomes of the report, nothing renders there any more. The next grant then takes
// its place in the log right behind the report, and one sync serves for both.
func (l *leader) over(s *session, id lease.ID) {
	l.mu.Lock()
	if g, granted := s.granted[id]; granted {
		g.over = true
		s.granted[id] = g
	}
	delete(s.running, id)
	l.mu.Unlock()
	l.signal()
}

// committed answers a report when its command is on disk and carried out, or refused.
func (l *leader) committed(s *session, r report) {
	_, err := r.pending.Wait(l.ctx)
	up := r.Up
	s.send(Down{Ack: ackOf(up.Seq, err)})
	l.mu.Lock()
	switch {
	case up.Hold != nil:
		if err == nil && l.trouble[up.Hold.Job].Peer == s.peer {
			delete(l.trouble, up.Hold.Job)
		}
		// What is held is answered; that it is also written comes as a second report,
		// and a folder that cannot be written must not hold up other orders.
		for _, write := range []bool{false, true} {
			l.answered(s, KeepID{Job: up.Hold.Job, Frame: up.Hold.Frame, CID: up.Hold.CID, Extra: up.Hold.Extra, Write: write})
		}
	case up.Stock != nil:
		l.c.Read(func(q *lease.State, _ *authz.Roster) {
			if j, ok := q.Job(up.Stock.Job); ok {
				l.answered(s, KeepID{Job: j.ID, CID: j.Spec.Project, Project: true})
			}
		})
	}
	l.mu.Unlock()
	if r := up.Record; r != nil && err == nil {
		// What came late may be about a task that is done long since.
		l.c.Read(func(q *lease.State, _ *authz.Roster) {
			if _, t, err := q.Task(r.Task); err == nil && t.State == lease.TaskDone {
				s.send(Down{Kept: &Kept{Lease: r.Lease}})
			}
		})
	}
	l.signal()
}

// errUnasked refuses copies of what a member has no right to: it can hold them
// only by a mistake or a lie, and to hold something is a right to it.
var errUnasked = fmt.Errorf("%w: nobody asked this machine to hold that, or there is no such content", lease.ErrInvalid)

// mayHold refuses reports of copies by a member that has no right to the content.
func (l *leader) mayHold(s *session, up Up) error {
	var root string
	var by lease.Scope
	switch {
	case up.Hold != nil:
		root, by = up.Hold.CID, lease.FrameOf(up.Hold.Job, up.Hold.Frame)
		if l.isPiece(up.Hold) {
			// Whoever renders the job may have it, and is no keeper for that.
			l.mu.Lock()
			defer l.mu.Unlock()
			told := false
			l.c.Read(func(q *lease.State, _ *authz.Roster) { told = s.told(q, root, by) })
			if !told {
				return errUnasked
			}
			return nil
		}
	case up.Stock != nil:
		by = lease.ProjectOf(up.Stock.Job)
		l.c.Read(func(q *lease.State, _ *authz.Roster) {
			if j, ok := q.Job(by.Job); ok {
				root = j.Spec.Project
			}
		})
	default:
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.may(s.peer, root, by.String()) {
		return errUnasked
	}
	return nil
}

// isPiece tells whether what a member holds is a piece of a frame.
func (l *leader) isPiece(h *lease.Hold) (is bool) {
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		if j, ok := q.Job(h.Job); ok {
			if at, ok := j.Place(h.Frame); ok {
				_, is = j.Piece(at, h.CID)
			}
		}
	})
	return is
}

// outlook tells, of an attempt of s that failed, how much memory the machine had, if
// it ran out of it, and how many others could try the task: then those that have more.
func (l *leader) outlook(s *session, f lease.Fail) (had lease.Memory, others int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		j, t, err := q.Task(f.Task)
		if err != nil {
			return
		}
		if f.Kind == lease.FailMemory {
			had = s.can.Memory(t.Device(f.Lease))
		}
		above := j.Above.More(had)
		for p, other := range l.sessions {
			if p != s.peer && !other.can.Draining && !j.KeptOff(p) && j.Spec.Needs.ServedBy(other.can, above) && len(other.machine().Lacks(j)) == 0 {
				others++
			}
		}
	})
	return had, others
}

// resultsMakeSense reports a result that names no content: nobody could ever
// fetch it.
func resultsMakeSense(results []lease.Result) error {
	for _, r := range results {
		if _, err := cid.Decode(r.CID); err != nil {
			return fmt.Errorf("%w: frame %d: %q is no CID", lease.ErrInvalid, r.Frame, r.CID[:min(len(r.CID), 64)])
		}
		if r.Extra == "" {
			continue
		}
		if _, err := cid.Decode(r.Extra); err != nil {
			return fmt.Errorf("%w: frame %d: %q is no CID", lease.ErrInvalid, r.Frame, r.Extra[:min(len(r.Extra), 64)])
		}
	}
	return nil
}
