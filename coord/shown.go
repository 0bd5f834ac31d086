package coord

import (
	"slices"

	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/lease"
)

// shown is the latest picture of each attempt at a frame that is not finished yet. It is
// the leader's memory and not in the log.
type shown struct {
	of map[frameID]map[int32]showing // by the task
	by map[string]showing            // by the CID
}

// showing is one such picture.
type showing struct {
	Preview
	frame frameID
	task  int32
	peer  authz.PeerID
}

func newShown() shown {
	return shown{of: make(map[frameID]map[int32]showing), by: make(map[string]showing)}
}

// maxShown bounds the pictures of one frame: more parts than that are not shown.
const maxShown = 256

// set replaces the picture of a task.
func (s shown) set(p showing) {
	tasks := s.of[p.frame]
	if tasks == nil {
		tasks = make(map[int32]showing)
		s.of[p.frame] = tasks
	}
	if old, ok := tasks[p.task]; ok {
		delete(s.by, old.CID)
	} else if len(tasks) >= maxShown {
		return
	}
	tasks[p.task], s.by[p.CID] = p, p
}

// is tells whether root is a picture of the frame that the scope names.
func (s shown) is(by lease.Scope, root string) bool {
	p, ok := s.by[root]
	return ok && by.Of == lease.OfFrame && p.frame == frameID{by.Job, by.Index}
}

// forget drops the pictures of a frame that is finished.
func (s shown) forget(job lease.JobID, frame int32) {
	id := frameID{job, frame}
	for _, p := range s.of[id] {
		delete(s.by, p.CID)
	}
	delete(s.of, id)
}

func (s shown) forgetJob(job lease.JobID) {
	for id := range s.of {
		if id.job == job {
			s.forget(job, id.frame)
		}
	}
}

// preview notes a picture of a task that a member says it renders, and tells whether it
// can be one. l.mu is held.
func (l *leader) preview(peer authz.PeerID, task lease.TaskID, p Preview) {
	if p.CID == "" || l.shown.by[p.CID].peer == peer {
		return
	}
	if _, err := cid.Decode(p.CID); err != nil || l.shown.by[p.CID].CID != "" {
		return
	}
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		j, t, err := q.Task(task)
		if err == nil && slices.Contains(j.TaskFrames(t), p.Frame) {
			l.shown.set(showing{Preview: p, frame: frameID{task.Job, p.Frame}, task: task.Index, peer: peer})
		}
	})
}

// Previews lists the latest pictures of a frame that is being rendered, in the order of
// its parts. It is empty where this machine does not lead.
func (c *Coordinator) Previews(job lease.JobID, frame int32) (list []Preview) {
	l := c.leading.Load()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.shown.of[frameID{job, frame}] {
		list = append(list, p.Preview)
	}
	slices.SortFunc(list, func(a, b Preview) int { return int(a.From) - int(b.From) })
	return list
}
