package coord

import (
	"slices"

	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/lease"
)

// shown is the latest pictures of frames that are not finished yet, by the first of the
// units that each shows. It is the leader's memory and not in the log.
type shown map[frameID]map[int32]showing

// showing is one such picture.
type showing struct {
	Preview
	peer authz.PeerID
}

// maxShown bounds the pictures of one frame: more parts than that are not shown.
const maxShown = 1024

// set replaces the picture that begins with the same unit.
func (s shown) set(frame frameID, p showing) {
	parts := s[frame]
	if parts == nil {
		parts = make(map[int32]showing)
		s[frame] = parts
	}
	if _, ok := parts[p.From]; ok || len(parts) < maxShown {
		parts[p.From] = p
	}
}

// who lists the machines that have a picture of the frame that the scope names.
func (s shown) who(by lease.Scope, root string) (peers []authz.PeerID) {
	if by.Of != lease.OfFrame {
		return nil
	}
	for _, p := range s[frameID{by.Job, by.Index}] {
		if p.CID == root && !slices.Contains(peers, p.peer) {
			peers = append(peers, p.peer)
		}
	}
	slices.Sort(peers)
	return peers
}

// forget drops the pictures of all frames of a job.
func (s shown) forget(job lease.JobID) {
	for id := range s {
		if id.job == job {
			delete(s, id)
		}
	}
}

// preview notes pictures of a task that a member renders, unless they cannot be of it.
// l.mu is held.
func (l *leader) preview(peer authz.PeerID, task lease.TaskID, list []Preview) {
	if len(list) == 0 {
		return
	}
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		j, t, err := q.Task(task)
		if err != nil {
			return
		}
		for _, p := range list[:min(len(list), MaxPreviews)] {
			if p.From < 0 || p.Len() == 0 || t.Part() && !t.Span.Holds(p.Span) || !slices.Contains(j.TaskFrames(t), p.Frame) {
				continue
			}
			if _, err := cid.Decode(p.CID); err == nil {
				l.shown.set(frameID{task.Job, p.Frame}, showing{p, peer})
			}
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
	for _, p := range l.shown[frameID{job, frame}] {
		list = append(list, p.Preview)
	}
	slices.SortFunc(list, func(a, b Preview) int { return int(a.From) - int(b.From) })
	return list
}
