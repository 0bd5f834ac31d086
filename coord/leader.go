package coord

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// leader is what exists only while this machine leads. All of it is in memory
// and dies with the leadership. Whoever takes both locks takes mu first, and the
// log's state (Read) inside it.
type leader struct {
	c    *Coordinator
	ctx  context.Context
	term uint64
	wake chan struct{} // there may be something to do; see turn

	mu       sync.Mutex
	sessions map[authz.PeerID]*session
	leases   map[lease.ID]*timedLease
	awaited  map[authz.PeerID]*time.Timer // members to be declared lost unless they come
	trouble  map[lease.JobID]Difficulty
	seen     map[authz.PeerID]time.Time // when a member's last stream ended
	absent   map[authz.PeerID]*time.Timer
	gone     map[authz.PeerID]bool // away for so long that its copies are replaced
	members  *authz.View           // as they were last seen
	// What the next turn has to look at.
	fresh     []frameID // frames that keepers may want
	plan      plan      // the look at every frame, when keepers came or went
	roster    bool      // the roster changed
	ended     []lease.JobID
	submitted []lease.JobID // jobs whose project keepers may want
	timed     []frameTime   // frames by which machines can be compared

	shown shown // pictures of what is being rendered
	audit *auditor

	clocks *clocks

	speeds map[authz.PeerID]map[lease.Device]float64 // see [sched.Machine]
	stuck  *time.Timer                               // the next attempt may be stuck

	began        time.Time             // the term, here
	coordinators chan struct{}         // something changed about who should vote
	trusted      map[authz.PeerID]bool // see standing
	handing      chan struct{}         // full while who holds the log is changed

	roll   *time.Timer // the next roll call
	rollAt time.Time   // when that is due
}

// frameID names a frame.
type frameID struct {
	job   lease.JobID
	frame int32
}

// timedLease is a live lease and the time it has left.
type timedLease struct {
	task     lease.TaskID
	peer     authz.PeerID
	timer    *time.Timer
	deadline time.Time
	progress json.RawMessage
	since    time.Time // it gave its last frame, or began
	frames   int       // that it gave in this term
	until    time.Time // it is not renewed any more: the attempt had its time
	told     time.Time // when watchers heard of its progress
}

// lead runs one term: it waits until everything committed before it is applied,
// takes over the leases with a full TTL each, and serves until ctx ends.
func (c *Coordinator) lead(ctx context.Context) error {
	if err := c.log().Barrier(ctx); err != nil {
		return err
	}
	if err := c.found(ctx); err != nil {
		return err
	}
	_, term := c.log().Leader()
	l := &leader{
		c: c, ctx: ctx, term: term, wake: make(chan struct{}, 1),
		sessions: make(map[authz.PeerID]*session), leases: make(map[lease.ID]*timedLease),
		awaited: make(map[authz.PeerID]*time.Timer), trouble: make(map[lease.JobID]Difficulty), seen: make(map[authz.PeerID]time.Time),
		absent: make(map[authz.PeerID]*time.Timer), gone: make(map[authz.PeerID]bool), plan: plan{again: true, ended: true},
		speeds: make(map[authz.PeerID]map[lease.Device]float64), shown: make(shown), clocks: c.newClocks(), began: time.Now(), coordinators: make(chan struct{}, 1), trusted: make(map[authz.PeerID]bool), handing: make(chan struct{}, 1),
	}
	l.stuck = time.AfterFunc(time.Hour, l.signal)
	l.audit = newAuditor(c.log(), l.now, c.sign, c.slog)
	audited := make(chan struct{})
	go func() {
		defer close(audited)
		l.audit.run(ctx)
	}()
	defer func() { <-audited }()
	l.roll, l.rollAt = time.NewTimer(rollPause), time.Now().Add(rollPause)
	defer l.roll.Stop()
	l.establish()
	c.leading.Store(l)
	c.has.Leads()
	c.slog.Info("leading the queue", "term", term)
	steered := make(chan struct{})
	go func() {
		defer close(steered)
		l.autopilot(ctx)
	}()
	defer func() { <-steered }()
	defer l.revoke()
	old, barred, equip := time.NewTicker(time.Hour), time.NewTicker(time.Minute), time.NewTimer(equipPause)
	looks := true // equip runs
	defer old.Stop()
	defer barred.Stop()
	defer equip.Stop()
	for {
		select {
		case <-l.wake:
			l.turn()
			if !looks {
				equip.Reset(equipPause)
				looks = true
			}
		case <-old.C:
			l.forget()
		case <-barred.C:
			l.forgive()
		case <-equip.C:
			looks = false
			l.equip()
		case <-l.roll.C:
			l.rollCall()
		case <-ctx.Done():
			return nil
		}
	}
}

// keepJobs is how long a job that has ended is remembered.
const keepJobs = 30 * 24 * time.Hour

// forget drops the jobs that ended long ago, if there are any.
func (l *leader) forget() {
	before := l.now().Add(-keepJobs)
	if !l.clocks.steady(time.Now()) {
		return
	}
	due := false
	l.c.Read(func(s *lease.State, _ *authz.Roster) {
		due = slices.ContainsFunc(s.Jobs(), func(j *lease.Job) bool { return j.State.Ended() && j.Ended.Before(before) })
	})
	if due {
		_ = l.propose(lease.Command{Forget: &lease.Forget{Before: before}})
	}
}

// found commits the farm's first entry, once in the farm's life.
func (c *Coordinator) found(ctx context.Context) error {
	if c.genesis == nil || c.Roster().Farm() != "" {
		return nil
	}
	f := c.genesis.Found
	_, err := c.log().Apply(ctx, Entry{Roster: c.genesis, Audit: &authz.Note{
		Deed: authz.Deed{User: f.Admin.User, Machine: c.self, Action: "init", Object: string(f.Farm), Detail: f.Name},
	}})
	return err
}

// establish gives every lease and every member a full TTL to be heard from.
func (l *leader) establish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(s *lease.State, r *authz.Roster) {
		l.members = r.View()
		for _, m := range r.Members() {
			l.await(m.ID)
		}
		for _, j := range s.Open() {
			for i := range j.Tasks {
				for _, a := range j.Tasks[i].Lives() {
					l.arm(a.Lease, lease.TaskID{Job: j.ID, Index: int32(i)}, a.Peer)
					l.leases[a.Lease].until = l.longest(j, &j.Tasks[i], a.Granted)
				}
			}
		}
	})
}

// machines is how many machines there are to hold frames. One that is silent for
// less than a TTL counts: a frame is not done with fewer copies because the
// network, or the leader, has just changed. l.mu is held.
func (l *leader) machines() int { return len(l.sessions) + len(l.awaited) }

// revoke takes everything down that belonged to this term.
func (l *leader) revoke() {
	l.c.leading.CompareAndSwap(l, nil)
	l.c.hub.end(ErrMoved)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stuck.Stop()
	for _, t := range l.leases {
		t.timer.Stop()
	}
	for _, t := range l.awaited {
		t.Stop()
	}
	for _, t := range l.absent {
		t.Stop()
	}
	for _, s := range l.sessions {
		s.close()
	}
}

// signal asks for a turn soon. Many signals make one turn.
func (l *leader) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// applied notes what a committed entry asks the leader to do. It runs on the
// state machine's goroutine.
func (l *leader) applied(a Applied) {
	if a.Audited {
		l.audit.signal()
	}
	l.mu.Lock()
	for _, e := range a.Queue {
		switch e.Type {
		case lease.JobSubmitted:
			l.submitted = append(l.submitted, e.Job)
			for _, s := range l.sessions {
				s.look = true
			}
		case lease.TaskEnded, lease.TaskRequeued, lease.LeaseEnded:
			l.disarm(e.Lease, e.Peer)
			if s := l.sessions[e.Peer]; s != nil && e.State == string(lease.TaskDone) {
				s.send(Down{Kept: &Kept{Lease: e.Lease}})
			}
		case lease.LeaseRevoked:
			l.disarm(e.Lease, e.Peer)
			if s := l.sessions[e.Peer]; s != nil {
				s.send(Down{Revoke: &Revoke{Lease: e.Lease, Reason: e.Reason}})
			}
		case lease.FrameResult:
			if e.State == lease.SameAgain { // its keepers are asked anew, as of one that was lost
				for _, s := range l.sessions {
					l.unask(s, e.Job, *e.Frame, e.Result)
				}
			}
			l.fresh = append(l.fresh, frameID{e.Job, *e.Frame})
			if t := l.leases[e.Lease]; t != nil {
				t.since = time.Now()
				t.frames++
			}
			l.timed = append(l.timed, frameTime{e.Job, e.Task, e.Lease, e.Peer, e.Result.Seconds})
			delete(l.shown, frameID{e.Job, *e.Frame})
		case lease.PieceRendered:
			l.fresh = append(l.fresh, frameID{e.Job, *e.Frame})
			if t := l.leases[e.Lease]; t != nil {
				t.since = time.Now()
				t.frames++
			}
		case lease.PieceKept, lease.FrameKept:
			if s := l.sessions[e.Peer]; s != nil {
				s.send(Down{Kept: &Kept{CID: e.Result.CID}})
			}
		case lease.PieceGone:
			for _, s := range l.sessions {
				if l.unask(s, e.Job, *e.Frame, e.Result) || s.peer == e.Peer {
					s.send(Down{Drop: &Drop{Job: e.Job, Frame: *e.Frame, CID: e.Result.CID, Piece: true}})
				}
			}
			l.fresh = append(l.fresh, frameID{e.Job, *e.Frame})
		case lease.FrameLost:
			for _, s := range l.sessions {
				if l.unask(s, e.Job, *e.Frame, e.Result) {
					s.send(Down{Drop: &Drop{Job: e.Job, Frame: *e.Frame, CID: e.Result.CID}})
				}
			}
		case lease.FrameShort:
			// Whoever lost its copy may be asked for it again, and fetch what it lacks.
			if s := l.sessions[e.Peer]; s != nil {
				l.unask(s, e.Job, *e.Frame, e.Result)
			}
			l.fresh = append(l.fresh, frameID{e.Job, *e.Frame})
		case lease.ProjectShort:
			if s := l.sessions[e.Peer]; s != nil {
				l.unaskProject(s, e.Job)
			}
			l.submitted = append(l.submitted, e.Job)
		case lease.PeerDrained, lease.PeerUndrained:
			l.drained(e)
		case lease.JobEnded:
			for _, s := range l.sessions {
				l.unaskProject(s, e.Job)
				delete(s.noRoom, e.Job)
				if s.next.Job == e.Job {
					s.next, s.look = Prefetch{}, true
				}
			}
			l.shown.forget(e.Job)
			if !l.trouble[e.Job].Writing { // frames are written even after the end
				delete(l.trouble, e.Job)
			}
			l.ended = append(l.ended, e.Job)
		}
	}
	l.roster = l.roster || len(a.Roster) > 0
	if len(a.Roster) > 0 {
		l.recount()
	}
	l.mu.Unlock()
	l.signal()
}

// fetchTime is what an attempt may take beside rendering, to fetch its project.
const fetchTime = 24 * time.Hour

// longest is until when an attempt may last: its worker, which knows what Blender does,
// ends it long before. It was granted when the farm's time was what is said, which may
// have been another leader's and wrong: at least what is for fetching is left.
func (l *leader) longest(j *lease.Job, t *lease.Task, granted time.Time) time.Time {
	limit := j.Spec.TaskTimeout
	if limit <= 0 {
		limit = 24 * time.Hour * time.Duration(t.Hi-t.Lo)
	}
	return time.Now().Add(limit + fetchTime - min(max(l.now().Sub(granted), 0), limit))
}

// arm starts or restarts a lease's time to live. l.mu is held.
func (l *leader) arm(id lease.ID, task lease.TaskID, p authz.PeerID) {
	t := l.leases[id]
	if t == nil {
		t = &timedLease{task: task, peer: p, since: time.Now()}
		l.leases[id] = t
		t.timer = time.AfterFunc(LeaseTTL, func() { l.expire(id, t) })
	} else {
		t.timer.Reset(LeaseTTL)
	}
	t.deadline = time.Now().Add(LeaseTTL)
}

// disarm forgets a lease that has ended. l.mu is held.
func (l *leader) disarm(id lease.ID, p authz.PeerID) {
	if t := l.leases[id]; t != nil {
		t.timer.Stop()
		delete(l.leases, id)
	}
	if s := l.sessions[p]; s != nil {
		delete(s.granted, id)
		delete(s.running, id)
	}
}

// stalled tells that a timer fired so long after its deadline that this process
// itself must have been stopped: then nobody else's silence proves anything.
func stalled(deadline time.Time) bool { return time.Since(deadline) > Renewal }

func (l *leader) expire(id lease.ID, t *timedLease) {
	l.mu.Lock()
	if l.leases[id] != t || l.ctx.Err() != nil {
		l.mu.Unlock()
		return
	}
	// A machine without a stream is lost as a whole, its leases with it.
	if left := time.Until(t.deadline); left > 0 || stalled(t.deadline) || l.sessions[t.peer] == nil {
		l.arm(id, t.task, t.peer)
		l.mu.Unlock()
		return
	}
	// Should the log be too busy now, it is proposed again; once it is committed,
	// its event disarms the timer.
	l.arm(id, t.task, t.peer)
	l.mu.Unlock()
	l.c.counts.expired.Add(1)
	l.c.slog.Warn("a lease expired", "task", t.task, "peer", t.peer.Short())
	_ = l.propose(lease.Command{Expire: &lease.Expire{Lease: id, Task: t.task}})
}

// await declares p lost unless it opens a work stream within a TTL. l.mu is held.
func (l *leader) await(p authz.PeerID) {
	if l.awaited[p] != nil || l.sessions[p] != nil {
		return
	}
	deadline := time.Now().Add(LeaseTTL)
	l.awaited[p] = time.AfterFunc(LeaseTTL, func() {
		l.mu.Lock()
		delete(l.awaited, p)
		if l.ctx.Err() != nil || l.sessions[p] != nil {
			l.mu.Unlock()
			return
		}
		if stalled(deadline) {
			l.await(p)
			l.mu.Unlock()
			return
		}
		l.plan.again = true
		l.left(p)
		machines := l.machines()
		l.mu.Unlock()
		l.c.slog.Warn("a machine is gone", "peer", p.Short())
		if err := l.propose(lease.Command{Lose: &lease.Lose{Peer: p, Machines: machines}}); err != nil {
			l.mu.Lock()
			l.await(p)
			l.mu.Unlock()
		}
	})
}

// propose commits a command of the leader's own. The error says that the log
// could not take it; a command that the state refuses came too late to matter.
func (l *leader) propose(cmd lease.Command) error {
	cmd.At = l.now()
	_, err := l.c.log().Apply(l.ctx, Entry{Queue: &cmd})
	if err != nil && l.ctx.Err() == nil {
		l.c.slog.Debug("a command was not carried out", "err", err)
	}
	l.signal()
	if Refused(err) {
		return nil
	}
	return err
}

// turn does all that can be done now: it passes the roster on, asks keepers to
// keep, and fills free slots. Only the term's own goroutine calls it.
func (l *leader) turn() {
	l.mu.Lock()
	fresh, ended, submitted, roster := l.fresh, l.ended, l.submitted, l.roster
	l.fresh, l.ended, l.submitted, l.roster = nil, nil, nil, false
	l.mu.Unlock()
	l.raise()
	if roster {
		l.revised()
	}
	if len(fresh) > 0 || len(submitted) > 0 || len(ended) > 0 {
		l.keep(submitted, fresh, ended)
	}
	l.proceed()
	for _, id := range ended {
		l.each(func(s *session) { s.send(Down{Ended: &Ended{Job: id}}) })
	}
	l.schedule()
	l.lookAhead()
}

// each calls f for every member with an open stream, in order of their IDs.
func (l *leader) each(f func(*session)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range slices.Sorted(maps.Keys(l.sessions)) {
		f(l.sessions[p])
	}
}
