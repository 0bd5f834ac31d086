package lease

import (
	"fmt"
	"slices"

	"vizpeer/authz"
)

func (a *applying) hold(c Hold) error {
	j, err := a.edit(c.Job)
	if err != nil {
		return err
	}
	at, ok := j.Place(c.Frame)
	if ok && c.Peer != "" {
		if k := slices.IndexFunc(j.PiecesOf(int32(at)), func(p Piece) bool { return p.CID == c.CID }); k >= 0 {
			a.holdsPiece(j, int32(at), k, c.Peer, c.Machines)
			return nil
		}
	}
	if !ok || j.Frames[at] == nil || !j.Frames[at].same(Result{CID: c.CID, Extra: c.Extra}) || c.Peer == "" {
		return fmt.Errorf("%w: frame %d of job %s has no such content", ErrInvalid, c.Frame, c.Job)
	}
	if f := j.Frames[at]; c.Delivered && !f.Delivered && !f.again() && c.Peer == j.Spec.Output.Peer {
		f = f.with()
		f.Delivered = true
		j.setFrame(at, f)
		a.tell(Event{Type: FrameWritten, Job: j.ID, Task: j.TaskOf(at), Frame: &f.Frame, Peer: c.Peer})
	}
	a.holder(j, at, c.Peer, c.Machines)
	a.settle(j, j.TaskOf(at))
	return nil
}

func (a *applying) stock(c Stock) error {
	j, err := a.edit(c.Job)
	switch {
	case err != nil:
		return err
	case j.State.Ended():
		return ErrEnded
	case c.Peer == "":
		return fmt.Errorf("%w: the holder has no name", ErrInvalid)
	}
	if !slices.Contains(j.Holders, c.Peer) {
		j.Holders = append(j.Holders, c.Peer)
	}
	return nil
}

// holder notes that p holds a frame, which may make the frame done.
func (a *applying) holder(j *Job, at int, p authz.PeerID, machines int) {
	f := j.Frames[at]
	more := p != "" && !slices.Contains(f.Holders, p)
	holders := len(f.Holders)
	if more {
		holders++
	}
	done := !f.Done && !f.again() && holders >= min(j.Spec.Replicas, max(machines, 1))
	if !more && !done {
		return
	}
	f = f.with()
	if more {
		f.Holders = append(f.Holders, p)
	}
	f.Done = f.Done || done
	j.setFrame(at, f)
	if done {
		r := f.Result
		a.tell(Event{Type: FrameKept, Job: j.ID, Task: j.TaskOf(at), Frame: &r.Frame, Peer: f.Peer, State: string(TaskDone), Result: &r})
	}
}

// unhold takes p's copies of a content back. It answers without an error where
// there are none: the report may have been made twice.
func (a *applying) unhold(c Unhold) error {
	j, err := a.edit(c.Job)
	switch {
	case err != nil:
		return err
	case c.Peer == "" || c.CID == "":
		return fmt.Errorf("%w: a copy that is gone is some machine's, of some content", ErrInvalid)
	}
	if c.CID == j.Spec.Project && slices.Contains(j.Holders, c.Peer) {
		// Somebody must stay the one to ask; see lose.
		if c.Peer != j.Spec.Submitter {
			j.Holders = without(j.Holders, c.Peer)
		}
		a.tell(Event{Type: ProjectShort, Job: j.ID, Task: -1, Peer: c.Peer, Reason: unheld})
	}
	for at, f := range j.Frames {
		a.piecesUnheld(j, int32(at), c.Peer, c.CID)
		if f == nil || f.CID != c.CID && f.Extra != c.CID || !slices.Contains(f.Holders, c.Peer) {
			continue
		}
		if j.unheld(at, c.Peer) == 0 && !j.State.Ended() {
			a.lost(j, at, c.Peer, unheld)
			continue
		}
		r := f.Result
		a.tell(Event{Type: FrameShort, Job: j.ID, Task: j.TaskOf(at), Frame: &r.Frame, Peer: c.Peer, Result: &r, Reason: unheld})
	}
	return nil
}

// store takes back all that p held where its store is another than before. Of what
// others hold still there is no event: there may be a great many. Not even a
// submitter's stays the one to ask for a project: it is known to have none of it.
func (a *applying) store(c Store) error {
	if c.Peer == "" || c.ID == "" || len(c.ID) > MaxStoreID {
		return fmt.Errorf("%w: a store is some machine's, and has an ID of at most %d bytes", ErrInvalid, MaxStoreID)
	}
	was := a.Machine(c.Peer).Store
	a.machine(c.Peer).Store = c.ID
	if was == "" || was == c.ID {
		return nil
	}
	for _, j := range a.list {
		j.own()
		j.Holders = without(j.Holders, c.Peer)
		for at, f := range j.Frames {
			a.piecesUnheld(j, int32(at), c.Peer, "")
			if f != nil && slices.Contains(f.Holders, c.Peer) && j.unheld(at, c.Peer) == 0 && !j.State.Ended() {
				a.lost(j, at, c.Peer, unheld)
			}
		}
	}
	return nil
}

// MaxStoreID bounds the ID of a machine's store, in bytes.
const MaxStoreID = 64

// unheld is why copies are taken back.
const unheld = "its copy is gone or damaged"

// without is the list without p, in the same memory.
func without(list []authz.PeerID, p authz.PeerID) []authz.PeerID {
	return slices.DeleteFunc(list, func(q authz.PeerID) bool { return q == p })
}

// lost takes back a frame of an open job that nobody holds any more: it will be
// rendered again.
func (a *applying) lost(j *Job, at int, p authz.PeerID, why string) {
	f, i := j.Frames[at], j.TaskOf(at)
	j.setFrame(at, nil)
	a.tell(Event{Type: FrameLost, Job: j.ID, Task: i, Frame: &f.Frame, Peer: p, Result: &f.Result, Reason: why})
	if s := j.Tasks[i].State; s == TaskRendered || s == TaskDone {
		j.setTask(i, TaskQueued)
		a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, Peer: p, State: string(TaskQueued), Reason: "the only machine that held its frames is gone"})
	}
	a.covered(j, int32(at))
}

func (a *applying) lose(c Lose) {
	if c.Removed {
		defer delete(a.machines, c.Peer) // last: a task that it had rendered may be counted below
		for _, j := range a.list {
			if !j.State.Ended() {
				continue
			}
			j.own()
			j.Holders = without(j.Holders, c.Peer)
			for at, f := range j.Frames {
				a.piecesUnheld(j, int32(at), c.Peer, "")
				if f != nil {
					j.unheld(at, c.Peer)
				}
			}
		}
	}
	// settle may end a job and so remove it from the list that is walked here.
	for _, j := range slices.Clone(a.open) {
		if !j.State.Ended() {
			a.loseOf(j, c)
		}
	}
}

// loseOf is lose for one open job. It costs nothing where the machine has no part
// in it.
func (a *applying) loseOf(j *Job, c Lose) {
	j.own()
	// The submitter's stays the place to ask: nobody else may have it yet.
	if c.Peer != j.Spec.Submitter || c.Removed {
		j.Holders = without(j.Holders, c.Peer)
	}
	for at := range j.Pieces {
		a.piecesUnheld(j, int32(at), c.Peer, "")
		for k := range j.Pieces[at] { // there may be fewer machines to hold them
			a.holdsPiece(j, int32(at), k, "", c.Machines)
		}
	}
	if j.undone > 0 || c.Removed {
		for at, f := range j.Frames {
			switch {
			case f == nil || f.Done && !c.Removed:
			case j.unheld(at, c.Peer) > 0:
				a.holder(j, at, "", c.Machines)
			default:
				a.lost(j, at, c.Peer, "its only holder is gone")
			}
		}
	}
	// Only now are its leases taken back, so that whoever gets a task next is
	// asked for the frames that went with the machine.
	if j.Renders(c.Peer) {
		for i := range j.Tasks {
			for _, at := range j.Tasks[i].Lives() {
				if at.Peer == c.Peer {
					r := Report{Lease: at.Lease, Task: TaskID{Job: j.ID, Index: int32(i)}, Peer: at.Peer}
					a.finish(j, r, Attempt{Outcome: OutcomeExpired, Reason: silent})
					a.requeue(j, int32(i), r, silent)
				}
			}
		}
	}
	if j.Count(TaskRendered) > 0 {
		for i := range j.Tasks {
			if a.settle(j, int32(i)); j.State.Ended() {
				return
			}
		}
	}
}

// unheld takes p off the holders of a frame and returns how many are left.
func (j *Job) unheld(at int, p authz.PeerID) int {
	f := j.Frames[at]
	if slices.Contains(f.Holders, p) {
		f = f.with()
		f.Holders = without(f.Holders, p)
		j.setFrame(at, f)
	}
	return len(f.Holders)
}
