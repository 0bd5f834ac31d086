package coord

import (
	"cmp"
	"slices"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// AwayBound is how long a machine may be away until the copies that it holds are
// made anew elsewhere: a reboot must not set a farm copying, and a night must not
// pass with one copy.
const AwayBound = 10 * time.Minute

// planBatch is how many frames a turn looks at: the leader has other things to
// do meanwhile.
const planBatch = 1024

// plan is the leader's way through all frames that are remembered, after machines
// came or went: whatever has too few copies is kept by others. It goes through
// the jobs that are open or not delivered first, then through those that have
// ended.
type plan struct {
	again bool // begin anew after this way
	ended bool // with the jobs that have ended, too

	under  bool   // under way
	pass   int    // 0: open jobs; 1: ended ones
	deep   bool   // the way under way has a second pass
	seq    uint64 // of the job that is looked at, or the next
	place  int    // of the next of its frames
	busy   bool   // machines had no time for all that they might keep
	scarce bool   // what has ended may have too few copies, for want of machines
}

// left starts the time after which p's copies count no more. l.mu is held.
func (l *leader) left(p authz.PeerID) {
	if l.absent[p] != nil {
		return
	}
	deadline := time.Now().Add(AwayBound)
	l.absent[p] = time.AfterFunc(AwayBound, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.absent, p)
		if l.ctx.Err() != nil || l.sessions[p] != nil {
			return
		}
		if stalled(deadline) { // it was this machine that slept
			l.left(p)
			return
		}
		l.gone[p] = true
		l.plan.again, l.plan.ended = true, true
		l.c.slog.Info("what a machine holds is copied again: it is away for too long", "peer", p.Short())
		l.signal()
	})
}

// returned is left's opposite. l.mu is held.
func (l *leader) returned(p authz.PeerID) {
	if t := l.absent[p]; t != nil {
		t.Stop()
		delete(l.absent, p)
	}
	delete(l.gone, p)
	l.plan.again = true
	l.plan.ended = l.plan.ended || l.plan.scarce
}

// revised passes a new roster on, cuts off who is no member any more, takes its leases
// back and sees to what it held, and takes the others for what the roster says.
func (l *leader) revised() {
	var removed []authz.PeerID
	l.mu.Lock()
	v := l.c.Roster() // of now: one of before may lack who has a stream since
	for p, s := range l.sessions {
		if _, member := v.Member(p); !member {
			s.close()
		}
	}
	for _, m := range l.members.Members() {
		if _, member := v.Member(m.ID); member {
			continue
		}
		removed = append(removed, m.ID)
		for _, timers := range []map[authz.PeerID]*time.Timer{l.awaited, l.absent} {
			if t := timers[m.ID]; t != nil {
				t.Stop()
				delete(timers, m.ID)
			}
		}
		delete(l.gone, m.ID)
		delete(l.seen, m.ID)
		l.plan.again, l.plan.ended = true, true
	}
	l.members = v
	machines := l.machines()
	l.mu.Unlock()
	for _, p := range removed {
		_ = l.propose(lease.Command{Lose: &lease.Lose{Peer: p, Machines: machines, Removed: true}})
	}
	l.each(func(s *session) {
		s.send(Down{Roster: v})
		l.c.Read(func(q *lease.State, _ *authz.Roster) { l.judge(s, q) })
		s.look = true
	})
}

// proceed goes on with the plan for one batch of frames.
func (l *leader) proceed() {
	l.mu.Lock()
	p := &l.plan
	begins := !p.under
	if begins {
		if !p.again {
			l.mu.Unlock()
			return
		}
		p.under, p.again, p.pass, p.seq, p.place = true, false, 0, 0, 0
		if p.deep = p.ended; p.deep {
			p.ended, p.scarce = false, false
		}
	}
	strangers := make(map[authz.PeerID]bool)
	l.c.Read(func(s *lease.State, r *authz.Roster) {
		k := l.keeping(r)
		if begins {
			k.strangers(s.Machines(), strangers)
		}
		for left := planBatch; left > 0 && p.under; {
			left -= k.step(s, p, left, strangers)
		}
	})
	more, machines := p.under || p.again, l.machines()
	l.mu.Unlock()
	for m := range strangers {
		_ = l.propose(lease.Command{Lose: &lease.Lose{Peer: m, Machines: machines, Removed: true}})
	}
	if more {
		l.signal()
	}
}

// step looks at up to n frames of one job and returns how many it was, or at
// least 1.
func (k keeping) step(s *lease.State, p *plan, n int, strangers map[authz.PeerID]bool) int {
	jobs := s.Jobs()
	at, _ := slices.BinarySearchFunc(jobs, p.seq, func(j *lease.Job, seq uint64) int { return cmp.Compare(j.Seq, seq) })
	if at == len(jobs) {
		p.pass, p.seq, p.place = p.pass+1, 0, 0
		p.under = p.pass == 1 && p.deep
		return 1
	}
	j := jobs[at]
	if j.Seq != p.seq {
		p.seq, p.place = j.Seq, 0
	}
	if active := !j.State.Ended() || j.Undelivered(); active != (p.pass == 0) {
		p.seq, p.place = j.Seq+1, 0
		return 1
	}
	if p.place == 0 {
		k.project(j)
		k.strangers(j.Holders, strangers)
	}
	first := p.place
	p.place = min(first+n, len(j.Frames))
	k.frames(j, j.Frames[first:p.place])
	for at, f := range j.Frames[first:p.place] {
		if f != nil {
			k.strangers(f.Holders, strangers)
		}
		k.pieces(j, first+at, true)
		for _, piece := range j.PiecesOf(int32(first + at)) {
			k.strangers(piece.Holders, strangers)
		}
	}
	seen := p.place - first
	if p.place == len(j.Frames) {
		p.seq, p.place = j.Seq+1, 0
	}
	return max(seen, 1)
}

// strangers notes who of the machines that the queue knows is no member.
func (k keeping) strangers(machines []authz.PeerID, to map[authz.PeerID]bool) {
	for _, p := range machines {
		if _, member := k.roster.Member(p); !member {
			to[p] = true
		}
	}
}
