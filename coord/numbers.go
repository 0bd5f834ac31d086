package coord

import (
	"maps"
	"sync/atomic"

	"vizpeer/authz"
	"vizpeer/lease"
)

// counts is what happened in the queue while this machine led it.
type counts struct {
	expired, done, failed, frames atomic.Uint64
}

func (n *counts) applied(a Applied) {
	for _, e := range a.Queue {
		switch {
		case e.Type == lease.FrameKept:
			n.frames.Add(1)
		case e.Type != lease.TaskEnded:
		case e.State == string(lease.TaskDone):
			n.done.Add(1)
		case e.State == string(lease.TaskFailed):
			n.failed.Add(1)
		}
	}
}

// Numbers are of the queue as this machine knows it, for whoever watches many. What is
// counted is what happened while this machine led: the sum over all coordinators is the
// farm's.
type Numbers struct {
	Status
	Leads    bool
	Expired  uint64 // leases
	Done     uint64 // tasks
	Failed   uint64 // tasks
	Frames   uint64 // that are done
	OpenJobs int
	Tasks    lease.Totals
	Workers  map[string]int // by state, on the leader alone: idle, busy, draining, offline
}

// Numbers costs nothing that grows with jobs or tasks; only machines are looked at one by
// one.
func (c *Coordinator) Numbers() Numbers {
	n := Numbers{
		Status: c.Status(), Leads: c.Leading(), Expired: c.counts.expired.Load(), Frames: c.counts.frames.Load(),
		Done: c.counts.done.Load(), Failed: c.counts.failed.Load(), Tasks: make(lease.Totals),
	}
	workers := make(map[authz.PeerID]bool)
	c.Read(func(q *lease.State, r *authz.Roster) {
		n.OpenJobs = len(q.Open())
		for tier, of := range q.Totals() {
			n.Tasks[tier] = maps.Clone(of)
		}
		for _, m := range r.Members() {
			workers[m.ID] = m.Worker
		}
	})
	l := c.leading.Load()
	if l == nil {
		return n
	}
	n.Workers = map[string]int{"idle": 0, "busy": 0, "draining": 0, "offline": 0}
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, works := range workers {
		s := l.sessions[p]
		switch {
		case !works:
		case s == nil:
			n.Workers["offline"]++
		case s.can.Draining:
			n.Workers["draining"]++
		case s.busy() > 0:
			n.Workers["busy"]++
		default:
			n.Workers["idle"]++
		}
	}
	return n
}
