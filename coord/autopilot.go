package coord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Coordinating is what a coordinator says of itself with each renewal.
type Coordinating struct {
	Applied uint64 `json:"applied"`           // index of the last entry that it has applied
	Leaving bool   `json:"leaving,omitempty"` // it is being stopped
}

// maxLag is how many entries a standby may be behind to be as good as up to date: what it
// is behind, commands that wait for its vote wait for, too.
const maxLag = 1000

// autopilot keeps the right coordinators voting, until ctx ends: see [nextMove]. It runs
// for one term, beside what else the leader does.
func (l *leader) autopilot(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.probe(ctx)
		m, next := nextMove(l.c.self, time.Now(), l.standings(), patience{l.c.log().cfg.Stable, l.c.log().cfg.Replace})
		pause := time.Hour
		if !next.IsZero() {
			pause = max(0, time.Until(next))
		}
		if m.kind != "" {
			err := l.handed(ctx, func() error { return l.c.move(ctx, m) })
			if err == nil {
				l.c.slog.Info("who holds the queue has changed", "change", m.kind, "peer", m.who.Short())
				l.c.hub.publish(Event{At: l.now(), Event: lease.Event{Type: lease.PeerChanged, Task: -1, Peer: m.who, State: string(m.kind)}})
				continue
			}
			if ctx.Err() == nil {
				l.c.slog.Warn("who holds the queue could not be changed, trying again", "change", m.kind, "peer", m.who.Short(), "err", err)
			}
			pause = min(pause, time.Second)
		}
		timer.Reset(pause)
		select {
		case <-l.coordinators:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// probe puts an entry into the log for coordinators that have just come: one that has
// applied it is known to replicate the log. Raft itself does not tell, and takes a vote of
// a machine that it does not reach for as good as any.
func (l *leader) probe(ctx context.Context) {
	l.mu.Lock()
	var fresh []*session
	for _, s := range l.sessions {
		if s.coordinating != nil && s.probe == 0 {
			fresh = append(fresh, s)
		}
	}
	l.mu.Unlock()
	if len(fresh) == 0 || l.c.log().Barrier(ctx) != nil {
		return
	}
	last := l.c.log().raft.LastIndex()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range fresh {
		s.probe = last
	}
}

// recount asks for a look at who should vote.
func (l *leader) recount() {
	select {
	case l.coordinators <- struct{}{}:
	default:
	}
}

// standings is what is known of all coordinators, by ID.
func (l *leader) standings() []standing {
	st := l.c.Status()
	all := make(map[authz.PeerID]standing)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(_ *lease.State, r *authz.Roster) {
		for _, id := range r.Coordinators() {
			m, _ := r.Member(id)
			all[id] = standing{coordinator: true, held: m.Standby}
		}
	})
	for _, id := range st.Voters {
		s := all[id]
		s.server, s.voter = true, true
		all[id] = s
	}
	for _, id := range st.Standbys {
		s := all[id]
		s.server = true
		all[id] = s
	}
	for id, s := range all {
		s.id, s.since, s.trusted = id, l.began, l.trusted[id]
		at := l.sessions[id]
		s.old = at != nil && id != l.c.self && mayHold(l.c.log().Level(), Behind{Knows: at.knows}) != nil
		switch {
		case id == l.c.self:
			s.up, s.current, s.applied = true, true, st.AppliedIndex
		case at != nil && at.coordinating != nil:
			s.up, s.since, s.leaving, s.applied = true, at.since, at.coordinating.Leaving, at.coordinating.Applied
			s.current = at.probe > 0 && s.applied >= at.probe && s.applied+maxLag >= st.AppliedIndex
		case !l.seen[id].IsZero():
			s.since = l.seen[id]
		}
		all[id] = s
	}
	return slices.SortedFunc(maps.Values(all), func(a, b standing) int { return cmp.Compare(a.id, b.id) })
}

// StandingState is how a coordinator is, as the leader knows it.
type StandingState string

// How a coordinator is.
const (
	StandingLeader StandingState = "leader"
	StandingReady  StandingState = "ready"  // it has the queue, as good as up to date
	StandingBehind StandingState = "behind" // it is connected, and has not copied all of the queue
	StandingAway   StandingState = "away"
	StandingOld    StandingState = "old" // its vizpeer does not know the farm's level: it cannot hold the queue
)

// Standing is what the leader knows of a coordinator.
type Standing struct {
	Peer    authz.PeerID
	Votes   bool
	Held    bool // an admin keeps it from voting
	State   StandingState
	Since   time.Time // it is connected, or away; in this term
	Applied uint64
}

// Standings lists all coordinators by ID; none on a machine that does not lead.
func (c *Coordinator) Standings() (all []Standing) {
	l := c.leading.Load()
	if l == nil {
		return nil
	}
	for _, s := range l.standings() {
		out := Standing{Peer: s.id, Votes: s.voter, Held: s.held, State: StandingAway, Since: s.since, Applied: s.applied}
		switch {
		case s.id == c.self:
			out.State = StandingLeader
		case s.old:
			out.State = StandingOld
		case s.up && s.current:
			out.State = StandingReady
		case s.up:
			out.State = StandingBehind
		}
		all = append(all, out)
	}
	return all
}

// coordinates notes what a coordinator says of itself. l.mu is held.
func (l *leader) coordinates(s *session, c *Coordinating) {
	was := s.coordinating
	s.coordinating = c
	if c != nil && (was == nil || *was != *c) {
		l.recount()
	}
}

// move changes who holds the log.
func (c *Coordinator) move(ctx context.Context, m move) error {
	id, err := peer.Decode(string(m.who))
	if err != nil {
		return fmt.Errorf("%.64q is no peer ID: %w", string(m.who), err)
	}
	switch m.kind {
	case moveAdd:
		return c.enlist(ctx, m.who, func(ctx context.Context) error { return c.log().AddStandby(ctx, id) })
	case moveRemove:
		return c.log().Remove(ctx, id)
	case movePromote:
		return c.log().AddVoter(ctx, id)
	case moveYield:
		return c.log().StepDown()
	}
	return c.log().Demote(ctx, id)
}

// Coordinating is what this machine says of itself to the leader.
func (c *Coordinator) Coordinating() *Coordinating {
	return &Coordinating{Applied: c.log().raft.AppliedIndex(), Leaving: c.leaving.Load()}
}

// handTime bounds what a machine that is being stopped does to have others go on without
// it.
const handTime = 5 * time.Second

// HandOver has the queue go on without this machine, which is being stopped: it gives its
// leadership up, and its vote where it is one of two, to a standby if no other coordinator
// votes. tell is called when the leader should hear that this machine leaves. It gives up
// after a few seconds: then the others find out as they would of a crash.
func (c *Coordinator) HandOver(ctx context.Context, tell func()) {
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	changed, stop := c.log().Changes()
	defer stop()
	c.leaving.Store(true)
	if l := c.leading.Load(); l != nil {
		to, err := l.successor()
		if err == nil && to != "" {
			err = c.Transfer(ctx, to)
		}
		if err != nil {
			c.slog.Warn("the queue could not be handed over", "err", err)
			return
		}
	}
	for {
		// Of two voters neither may go: whoever leads takes this one's vote.
		if st := c.Status(); len(st.Voters) != 2 || !slices.Contains(st.Voters, c.self) {
			return
		}
		tell()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// successor is who shall lead when this machine does not: "" where nobody can.
func (l *leader) successor() (authz.PeerID, error) {
	all := slices.DeleteFunc(l.standings(), func(s standing) bool {
		return s.id == l.c.self || !s.server || !s.up || !s.current || s.leaving || s.held && !s.voter
	})
	slices.SortStableFunc(all, func(a, b standing) int {
		if a.voter != b.voter {
			if a.voter {
				return -1
			}
			return 1
		}
		return a.since.Compare(b.since)
	})
	if len(all) == 0 || !all[0].voter && len(l.c.Status().Voters) > 1 {
		if len(l.c.Status().Voters) > 1 {
			return "", errors.New("no other coordinator that votes can be reached")
		}
		return "", nil
	}
	return all[0].id, nil
}

// Errors of [Coordinator.Transfer], [Coordinator.Promote] and [Coordinator.Demote],
// beside those of the log and the roster.
var (
	// ErrNoVote: only who votes can lead.
	ErrNoVote = errors.New("this coordinator is a standby: promote it first (`vizpeer coord promote`)")
	// ErrAway: it could not take over.
	ErrAway = errors.New("this coordinator is not connected, or has not copied the queue yet: see `vizpeer coord status`")
)

// Transfer hands the leadership to that coordinator. One that does not vote gets the vote
// of a sole voter with it.
func (c *Coordinator) Transfer(ctx context.Context, to authz.PeerID) error {
	l := c.leading.Load()
	if l == nil {
		leader, _ := c.log().Leader()
		return ErrNotLeader{Leader: leader}
	}
	if to == c.self {
		return nil
	}
	id, err := peer.Decode(string(to))
	if err != nil {
		return fmt.Errorf("%.64q is no peer ID: %w", string(to), err)
	}
	s, err := l.standing(to)
	switch {
	case err != nil:
		return err
	case !s.up || !s.current:
		return ErrAway
	case s.voter:
		return c.log().Transfer(ctx, id)
	case len(c.Status().Voters) > 1 || s.held:
		return ErrNoVote
	}
	return l.handed(ctx, func() error { // the autopilot must not undo the first half
		if err := c.log().AddVoter(ctx, id); err != nil {
			return err
		}
		if err := c.log().Transfer(ctx, id); err != nil {
			return errors.Join(err, c.log().Demote(context.WithoutCancel(ctx), id))
		}
		return nil
	})
}

// handed changes who holds the log while nobody else does.
func (l *leader) handed(ctx context.Context, change func() error) error {
	select {
	case l.handing <- struct{}{}:
		defer func() { <-l.handing }()
		return change()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// standing is what is known of one coordinator.
func (l *leader) standing(id authz.PeerID) (standing, error) {
	for _, s := range l.standings() {
		if s.id == id && s.coordinator {
			return s, nil
		}
	}
	member := false
	l.c.Read(func(_ *lease.State, r *authz.Roster) { _, member = r.Member(id) })
	if !member {
		return standing{}, authz.ErrNotMember
	}
	return standing{}, authz.ErrNotCoordinator
}

// Promote lets a coordinator vote as soon as the number of voters allows: at once where
// it, or it and another standby that is up, make the number odd.
func (c *Coordinator) Promote(ctx context.Context, id authz.PeerID) error {
	return c.hold(ctx, id, false)
}

// Demote keeps a coordinator from voting until it is promoted. The one that leads hands
// over first; a sole voter answers [ErrSoleVoter].
func (c *Coordinator) Demote(ctx context.Context, id authz.PeerID) error {
	if id == c.self && len(c.Status().Voters) == 1 {
		return ErrSoleVoter
	}
	return c.hold(ctx, id, true)
}

// settleTime is how long whoever changes who votes waits for what becomes of it.
const settleTime = 3 * time.Second

func (c *Coordinator) hold(ctx context.Context, id authz.PeerID, on bool) error {
	l := c.leading.Load()
	if l == nil {
		leader, _ := c.log().Leader()
		return ErrNotLeader{Leader: leader}
	}
	if _, err := l.standing(id); err != nil {
		return err
	}
	if err := c.commit(ctx, Entry{Roster: &authz.Command{At: time.Now(), Standby: &authz.Standby{Peer: id, On: on}}}); err != nil {
		return err
	}
	l.mu.Lock()
	l.trusted[id] = !on
	l.mu.Unlock()
	l.recount()
	changed, stop := c.log().Changes()
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		if slices.Contains(c.Status().Voters, id) != on || !c.Leading() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil // it comes later, as the status tells
		}
	}
}
