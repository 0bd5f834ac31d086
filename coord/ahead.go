package coord

import (
	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// lookAhead tells machines that render which project they are likely to need
// next, each project once, so that it is there when its turn comes.
func (l *leader) lookAhead() {
	l.mu.Lock()
	defer l.mu.Unlock()
	tasks := make(map[authz.PeerID][]lease.JobID) // of those who may be told something
	for _, t := range l.leases {
		if s := l.sessions[t.peer]; s != nil && s.look {
			tasks[t.peer] = append(tasks[t.peer], t.task.Job)
		}
	}
	if len(tasks) == 0 {
		return
	}
	renders := make(map[authz.PeerID]map[string]bool)
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		waiting := q.Waiting(l.now(), nil)
		for p, jobs := range tasks {
			for _, id := range jobs {
				if j, ok := q.Job(id); ok {
					if renders[p] == nil {
						renders[p] = make(map[string]bool)
					}
					renders[p][j.Spec.Project] = true
				}
			}
		}
		for p, mine := range renders {
			s := l.sessions[p]
			s.look = false
			j := sched.Ahead(waiting, s.machine(), mine)
			if j == nil || s.next.Job == j.ID {
				continue
			}
			s.next = Prefetch{Job: j.ID, CID: j.Spec.Project}
			order := s.next
			order.From = l.sources(j.Spec.Project, j.ID, p)
			s.send(Down{Prefetch: &order})
		}
	})
}

// shortage is what a machine had when its store could not take a project.
type shortage struct{ disk, room, needs int64 }

// full notes that a machine's store could not take a job's project.
func (l *leader) full(s *session, job lease.JobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		if j, ok := q.Job(job); ok && !j.State.Ended() {
			s.noRoom[job] = shortage{disk: s.can.FreeDisk, room: roomOf(s.can), needs: j.Spec.Needs.Store}
		}
	})
}

func roomOf(can lease.Capability) int64 {
	if can.Room == nil {
		return 0
	}
	return *can.Room
}

// over tells whether an ad speaks of more room than there was, by so much that it
// is worth another try.
func (h shortage) over(can lease.Capability) bool {
	more := max(1<<20, h.needs/8)
	return can.FreeDisk >= h.disk+more || roomOf(can) >= h.room+more
}

// drained notes that a machine takes no more work, or does again. l.mu is held.
func (l *leader) drained(e lease.Event) {
	if e.Type == lease.PeerDrained {
		l.c.slog.Warn("a machine is drained: it finishes what it has and takes no more", "peer", e.Peer.Short(), "why", e.Reason)
	}
	if s := l.sessions[e.Peer]; s != nil {
		l.c.Read(func(q *lease.State, _ *authz.Roster) { l.judge(s, q) })
		s.look = true
	}
}

// advertised takes a member's new capability and what it holds.
func (l *leader) advertised(p authz.PeerID, can lease.Capability, holds map[string]int) {
	l.mu.Lock()
	if s := l.sessions[p]; s != nil {
		s.said, s.holds = can, holds
		l.c.Read(func(q *lease.State, _ *authz.Roster) { l.judge(s, q) })
		for job, h := range s.noRoom {
			if h.over(can) {
				delete(s.noRoom, job)
			}
		}
	}
	l.mu.Unlock()
	l.signal()
}
