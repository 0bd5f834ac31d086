package coord

import (
	"encoding/json"
	"maps"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Member is what the leader knows of a machine now.
type Member struct {
	Can       *lease.Capability // what it is taken to be able to do; nil where it never said
	Connected bool
	Here      bool // connected, or was less than a lease's TTL ago
	Busy      int  // attempts under way, of [lease.Capability.TotalSlots]
	Addrs     []string
	Seen      time.Time // when it was last heard from; zero where never in this term
	// Holds and NoRoom are what [sched.Machine] has of them.
	Holds  map[string]int
	NoRoom map[lease.JobID]bool
}

// Difficulty is why a machine could not keep something of a job, or write it to
// the job's output folder, yet.
type Difficulty struct {
	Peer    authz.PeerID
	Writing bool
	Reason  string
}

// Knowledge is what the leader knows beside the log, at one moment.
type Knowledge struct {
	Members  map[authz.PeerID]Member
	Progress map[lease.ID]json.RawMessage // of attempts under way
	Trouble  map[lease.JobID]Difficulty
	Voters   []authz.PeerID // keep the queue going by majority
}

// Presence is who is there, for [lease.State.Parting].
func (k Knowledge) Presence() lease.Presence {
	return lease.Presence{Here: func(p authz.PeerID) bool { return k.Members[p].Here }, Voters: k.Voters}
}

// Parting tells what would be lost if a machine were switched off now. It answers
// false where this machine does not lead.
func (c *Coordinator) Parting(m authz.PeerID) (p lease.Parting, leads bool) {
	if !c.Leading() {
		return p, false
	}
	k := c.Knowledge()
	c.Read(func(s *lease.State, _ *authz.Roster) { p = s.Parting(m, k.Presence()) })
	return p, true
}

// Knowledge tells what is known now. Off the leader that is ads alone. Call it
// before Read, never inside: see the order of locks at leader.
func (c *Coordinator) Knowledge() Knowledge {
	k := Knowledge{Members: make(map[authz.PeerID]Member), Progress: make(map[lease.ID]json.RawMessage), Trouble: make(map[lease.JobID]Difficulty)}
	c.mu.Lock()
	said := maps.Clone(c.can)
	c.mu.Unlock()
	c.Read(func(_ *lease.State, r *authz.Roster) {
		for p, can := range said {
			m, _ := r.Member(p)
			can = can.Believed(m.Labels)
			k.Members[p] = Member{Can: &can}
		}
	})
	l := c.leading.Load()
	if l == nil {
		return k
	}
	k.Voters = c.Status().Voters
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, at := range l.seen {
		m := k.Members[p]
		m.Seen = at
		k.Members[p] = m
	}
	for p := range l.awaited {
		m := k.Members[p]
		m.Here = true
		k.Members[p] = m
	}
	c.Read(func(q *lease.State, r *authz.Roster) {
		for p, s := range l.sessions {
			// By the roster of now, which the leader may not have acted upon yet: whoever
			// changed it wants to see that.
			granted, _ := r.Member(p)
			can, m := s.taken(q, granted.Labels), s.machine()
			k.Members[p] = Member{
				Can: &can, Connected: true, Here: true, Busy: s.busy(), Addrs: s.addrs, Seen: time.Now(),
				Holds: m.Holds, NoRoom: m.NoRoom,
			}
		}
	})
	for id, t := range l.leases {
		k.Progress[id] = t.progress
	}
	maps.Copy(k.Trouble, l.trouble)
	return k
}
