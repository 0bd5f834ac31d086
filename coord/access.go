package coord

import (
	"cmp"
	"fmt"
	"slices"

	"vizpeer/authz"
	"vizpeer/lease"
)

// MayFetch tells whether a member has a right to all content below root. by, a
// [lease.Scope], is the member's own hint at where its right is to be found. It
// fails with an [ErrNotLeader] where this machine does not lead.
func (c *Coordinator) MayFetch(p authz.PeerID, root, by string) (bool, error) {
	l := c.leading.Load()
	if l == nil {
		leader, _ := c.log().Leader()
		return false, ErrNotLeader{Leader: leader}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.may(p, root, by), nil
}

// may is MayFetch from the queue and the leader's memory. l.mu is held.
func (l *leader) may(p authz.PeerID, root, by string) (ok bool) {
	scope, sane := lease.ParseScope(by)
	if !sane {
		return false
	}
	l.c.Read(func(q *lease.State, r *authz.Roster) {
		m, member := r.Acting(p)
		switch {
		case !member:
		case m.Role == authz.Admin || q.MayHave(m, root, scope):
			ok = true
		case q.MaySee(m, scope.Job) && len(l.shown.who(scope, root)) > 0:
			ok = true
		case l.sessions[p] != nil:
			ok = l.sessions[p].told(q, root, scope)
		}
	})
	return ok
}

// told tells whether the member was asked to keep that content, or to fetch it
// ahead. Whoever was asked to keep a frame was asked to keep what is beside it. The
// leader's mu is held.
func (s *session) told(q *lease.State, root string, by lease.Scope) bool {
	asked := func(id KeepID) bool {
		_, ok := s.asked[id]
		return ok
	}
	switch by.Of {
	case lease.OfProject:
		return s.next.Job == by.Job && s.next.CID == root || asked(KeepID{Job: by.Job, CID: root, Project: true})
	case lease.OfFrame:
		id := KeepID{Job: by.Job, Frame: by.Index, CID: root}
		if f := frameOf(q, by); f != nil && (f.CID == root || f.Extra == root) {
			id.CID, id.Extra = f.CID, f.Extra
		}
		if asked(id) {
			return true
		}
		id.Write = true
		return asked(id)
	}
	return false
}

// frameOf is the frame that a scope names; nil where there is none yet.
func frameOf(q *lease.State, by lease.Scope) *lease.Frame {
	j, ok := q.Job(by.Job)
	if !ok {
		return nil
	}
	at, ok := j.Place(by.Index)
	if !ok {
		return nil
	}
	return j.Frames[at]
}

// answer answers a member's question.
func (l *leader) answer(s *session, up Up) *Ack {
	ack := &Ack{Seq: up.Seq}
	deny := func() *Ack {
		ack.Code, ack.Reason = CodeDenied, "there is no such content, or no right to it"
		return ack
	}
	switch {
	case up.May != nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.may(up.May.Peer, up.May.Root, up.May.By) {
			return deny()
		}
	case up.Find != nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.may(s.peer, up.Find.Root, up.Find.By) {
			return deny()
		}
		ack.From = l.find(up.Find.Root, up.Find.By, s.peer)
	case up.Part != nil:
		if p, leads := l.c.Parting(s.peer); leads {
			ack.Parting = &p
			l.c.Read(func(q *lease.State, _ *authz.Roster) { ack.Drained = q.Machine(s.peer).Drained })
		} else {
			ack.Code, ack.Reason = CodeLeader, fmt.Sprint(ErrMoved)
		}
	case up.Recall != nil:
		l.c.Read(func(q *lease.State, _ *authz.Roster) {
			for _, id := range up.Recall.Jobs {
				if _, known := q.Job(id); known {
					ack.Known = append(ack.Known, id)
				}
			}
		})
	}
	return ack
}

// find lists who has content. l.mu is held.
func (l *leader) find(root, by string, to authz.PeerID) (from []Addr) {
	scope, _ := lease.ParseScope(by)
	if scope.Of == lease.OfProject {
		return l.sources(root, scope.Job, to)
	}
	var holders []authz.PeerID
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		j, ok := q.Job(scope.Job)
		if !ok {
			return
		}
		switch scope.Of {
		case lease.OfFrame:
			at, ok := j.Place(scope.Index)
			if !ok {
				return
			}
			f := j.Frames[at]
			p, piece := j.Piece(at, root)
			switch {
			case piece:
				holders = slices.Clone(p.Holders)
			case f != nil && (f.CID == root || f.Extra == root): // whoever holds it holds both
				holders = slices.Clone(f.Holders)
			case f != nil && f.Thumb == root: // whoever rendered it has it
				holders = append(holders, f.Peer)
			default:
				holders = l.shown.who(scope, root)
			}
		case lease.OfLog:
			if _, t, err := q.Task(lease.TaskID{Job: scope.Job, Index: scope.Index}); err == nil {
				for _, a := range t.Attempts {
					if a.Log == root {
						holders = append(holders, a.Peer)
					}
				}
			}
		}
	})
	return l.addrs(holders, to)
}

// maxSources bounds whom an order names as sources.
const maxSources = 32

// sources lists who has some of a project, whoever holds the most first: the
// machines that the queue knows to hold it, those whose ads say so, and those
// that are fetching it too and can pass on what they have. Machines with as much
// are in another order for each asker, so that not all begin with the same one.
// l.mu is held.
func (l *leader) sources(project string, job lease.JobID, to authz.PeerID) []Addr {
	short := lease.ShortCID(project)
	has := make(map[authz.PeerID]int) // eighths
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		for _, t := range l.leases {
			if j, ok := q.Job(t.task.Job); ok && j.Spec.Project == project {
				has[t.peer] = 0
			}
		}
		for p, s := range l.sessions {
			if eighths := s.holds[short]; eighths > 0 {
				has[p] = eighths
			} else if _, asked := s.asked[KeepID{Job: job, CID: project, Project: true}]; asked || s.next.CID == project {
				has[p] = 0
			}
		}
		if j, ok := q.Job(job); ok && j.Spec.Project == project {
			for _, p := range j.Holders {
				has[p] = lease.Whole
			}
		}
	})
	type source struct {
		peer    authz.PeerID
		eighths int
		rank    uint64
	}
	list := make([]source, 0, len(has))
	for p, eighths := range has {
		s := source{peer: p, eighths: eighths}
		if o := l.sessions[p]; o != nil {
			s.rank = mix(o.seed, hash(string(to)))
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b source) int {
		return cmp.Or(cmp.Compare(b.eighths, a.eighths), cmp.Compare(a.rank, b.rank), cmp.Compare(a.peer, b.peer))
	})
	peers := make([]authz.PeerID, len(list))
	for i, s := range list {
		peers[i] = s.peer
	}
	return l.addrs(peers, to)
}

// addrs adds where to reach each of the peers that is there, or was until just
// now, but for the one that asks: [maxSources] at most. l.mu is held.
func (l *leader) addrs(peers []authz.PeerID, to authz.PeerID) []Addr {
	out := make([]Addr, 0, min(len(peers), maxSources))
	for _, p := range peers {
		switch s := l.sessions[p]; {
		case p == to || len(out) == maxSources:
		case s != nil:
			out = append(out, Addr{Peer: p, Addrs: s.addrs})
		case l.awaited[p] != nil:
			out = append(out, Addr{Peer: p})
		}
	}
	return out
}
