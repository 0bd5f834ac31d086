package coord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Coordinator is this machine's part in running the queue. Make it with [Open],
// start it with [Coordinator.Run], and end it with [Coordinator.Close]; all other
// methods may be called from any goroutine while it runs.
type Coordinator struct {
	cfg     Config
	current atomic.Pointer[Log] // of the epoch that the machine is in; see log
	moved   chan struct{}       // the machine may know a later charter
	host    Host
	self    authz.PeerID
	slog    *slog.Logger
	hub     *Hub
	genesis *authz.Command
	leading atomic.Pointer[leader]
	has     Machine
	limits  lease.Limits
	lacking chan struct{} // older records of the audit may be missing
	leaving atomic.Bool   // this machine is being stopped

	raising   sync.Mutex // held while the farm's level is raised, or a machine enlisted to hold the log
	verifying sync.Mutex // held while the audit is verified
	counts    counts

	mu  sync.Mutex
	can map[authz.PeerID]lease.Capability // the latest ad of each member
}

// Machine is what a coordinator asks of its own machine, and tells it at once.
// All functions but Charter are required, may be called before Open returns and from any
// goroutine, and must not block.
type Machine struct {
	// Coordinates tells whether a peer may hold the queue, by the roster that the
	// machine goes by: the log's own may still be empty.
	Coordinates func(authz.PeerID) bool
	// Roster is called with every change of the roster, before whoever made it is
	// answered.
	Roster func(*authz.View)
	// Leads is called when this machine begins to lead.
	Leads func()
	// Charter is the latest charter of the farm that the machine has seen, the zero one
	// where it has seen none. Where that supersedes the log's, the log is given up. nil
	// stands for a machine that sees none.
	Charter func() authz.Charter
	// Moved is called when another machine may lead, or who holds the log has changed.
	Moved func()
}

// Open opens the log in cfg.Dir. genesis, made by authz when the farm was
// founded, is committed by the first leader of a new farm; it is nil on a
// machine that did not found one.
func Open(h Host, genesis *authz.Command, has Machine, cfg Config) (*Coordinator, error) {
	c := &Coordinator{
		host: h, self: authz.PeerID(h.ID().String()), slog: cfg.Logger, hub: NewHub(), genesis: genesis, has: has, limits: cfg.Limits,
		cfg: cfg, moved: make(chan struct{}, 1),
		can: make(map[authz.PeerID]lease.Capability), lacking: make(chan struct{}, 1),
	}
	if has.Charter == nil {
		c.has.Charter = func() authz.Charter { return authz.Charter{} }
	}
	if c.slog == nil {
		c.slog = slog.New(slog.DiscardHandler)
	}
	if err := c.openLog(); err != nil {
		return nil, err
	}
	return c, nil
}

// log is the log of now. Another epoch has another one.
func (c *Coordinator) log() *Log { return c.current.Load() }

// openLog opens the log of the farm's epoch. What the machine holds of an earlier one is
// kept aside, and a log that is new here waits for its leader to fill it.
func (c *Coordinator) openLog() error {
	aside, err := enterEpoch(c.cfg.Dir, c.has.Charter())
	if err != nil {
		return err
	}
	if aside != "" {
		c.slog.Warn("the farm's queue was begun anew in a later epoch: what this machine held of the former one is kept, and may be deleted", "folder", aside)
	}
	log, err := OpenLog(c.host, func(p peer.ID) bool { return c.has.Coordinates(authz.PeerID(p.String())) }, c.cfg)
	if err != nil {
		return err
	}
	c.current.Store(log)
	log.Subscribe(c.applied)
	if c.genesis != nil && log.charter.Epoch <= 1 {
		if err := log.Bootstrap(c.host.ID()); err != nil && !errors.Is(err, ErrHasState) {
			return errors.Join(fmt.Errorf("start the farm's log: %w", err), log.Close())
		}
	}
	if v := c.Roster(); v.Farm() != "" {
		c.has.Roster(v) // the roster.json of before an epoch that began here knows less
	}
	return nil
}

// Charter is the one of the epoch that this machine's log is of: the zero one for the
// farm's first epoch.
func (c *Coordinator) Charter() authz.Charter { return c.log().charter }

// Follow has the log of a later epoch opened, if the machine knows of one.
func (c *Coordinator) Follow() {
	select {
	case c.moved <- struct{}{}:
	default:
	}
}

// over tells that the log's epoch is.
func (c *Coordinator) over() bool {
	known := c.has.Charter()
	return known.Epoch > 1 && known.Supersedes(c.Charter())
}

// Run leads whenever this machine is elected, until ctx ends or the log fails.
func (c *Coordinator) Run(ctx context.Context) error {
	c.host.SetStreamHandler(WorkProtocol, func(s network.Stream) {
		who := authz.PeerID(s.Conn().RemotePeer().String())
		if !c.isMember(who) {
			_ = s.Reset()
			return
		}
		if err := c.ServeMember(ctx, s, who); err != nil && ctx.Err() == nil {
			c.slog.Debug("a work stream ended", "peer", who.Short(), "err", err)
		}
	})
	defer c.host.RemoveStreamHandler(WorkProtocol)
	c.host.SetStreamHandler(AuditProtocol, c.giveAudit)
	defer c.host.RemoveStreamHandler(AuditProtocol)
	for {
		if err := c.runEpoch(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		if err := c.log().Close(); err != nil {
			return err
		}
		if err := c.openLog(); err != nil {
			return err
		}
	}
}

// runEpoch is Run until the log's epoch is over.
func (c *Coordinator) runEpoch(ctx context.Context) error {
	completing, complete := context.WithCancel(ctx)
	completed := make(chan struct{})
	go func() {
		defer close(completed)
		c.completeAudit(completing)
	}()
	defer func() {
		complete()
		<-completed
	}()
	changed, unwatch := c.log().Changes()
	defer unwatch()
	var stop context.CancelFunc = func() {}
	var wg sync.WaitGroup
	end := func() {
		stop()
		wg.Wait()
	}
	for {
		select {
		case elected := <-c.log().LeaderCh():
			end()
			if !elected {
				continue
			}
			term, cancel := context.WithCancel(ctx)
			stop = cancel
			wg.Go(func() {
				for term.Err() == nil {
					err := c.lead(term)
					if err == nil || term.Err() != nil {
						return
					}
					// A sole voter cannot hand over: it tries again.
					c.slog.Error("leading the queue failed", "err", err)
					_ = c.log().StepDown()
					select {
					case <-time.After(time.Second):
					case <-term.Done():
					}
				}
			})
		case <-changed:
			c.has.Moved()
		case <-c.log().Failed():
			end()
			return c.log().Err()
		case <-c.moved:
			if c.over() {
				end()
				return nil
			}
		case <-ctx.Done():
			end()
			return nil
		}
	}
}

// Close closes the log. Run must have ended.
func (c *Coordinator) Close() error { return c.log().Close() }

func (c *Coordinator) isMember(p authz.PeerID) (ok bool) {
	c.Read(func(_ *lease.State, r *authz.Roster) { _, ok = r.Member(p) })
	return ok
}

// Roster is the committed roster, as every peer may hold it.
func (c *Coordinator) Roster() (v *authz.View) {
	c.log().Read(func(_ *lease.State, r *authz.Roster) { v = r.View() })
	return v
}

// Read calls f with the committed state, which f must neither change nor keep.
func (c *Coordinator) Read(f func(*lease.State, *authz.Roster)) { c.log().Read(f) }

// Sure makes sure that this machine leads: what it reads from then on has all that anybody
// was told is done. One that was stopped for a while, or cut off, takes itself for the
// leader until it looks.
func (c *Coordinator) Sure(ctx context.Context) error {
	err := c.log().VerifyLeader(ctx)
	if err != nil && ctx.Err() == nil {
		leader, _ := c.log().Leader()
		if leader == c.self { // it has just been elected anew, or does not know better yet
			leader = ""
		}
		return ErrNotLeader{Leader: leader}
	}
	return err
}

// Watch follows the farm's events: see [Hub.Watch].
func (c *Coordinator) Watch(after uint64) *Watch { return c.hub.Watch(after) }

// Status says who leads.
func (c *Coordinator) Status() Status { return c.log().Status() }

// Leading tells whether this machine leads and is ready to take commands.
func (c *Coordinator) Leading() bool { return c.leading.Load() != nil }

// Advertise takes a member's ad, which the caller has verified to be its own and
// to be valid.
func (c *Coordinator) Advertise(p authz.PeerID, can lease.Capability, holds lease.Holdings) {
	c.mu.Lock()
	c.can[p] = can
	c.mu.Unlock()
	if l := c.leading.Load(); l != nil {
		l.advertised(p, can, holds.ByProject())
	}
}

// Submit commits a job and returns its ID, which is drawn where in has none, and its
// number of tasks, once a majority of the coordinators has it on disk. A job that was
// accepted before, under the same ID or in.Once, is not accepted again: the error is then
// a [lease.Repeated], with what was answered the first time. Limits are the farm's.
func (c *Coordinator) Submit(ctx context.Context, in lease.Submit) (lease.JobID, int, error) {
	if in.Job == "" {
		in.Job = NewJobID()
	}
	in.Limits = c.limits
	if err := c.commit(ctx, Entry{Queue: &lease.Command{At: c.now(), Submit: &in}}); err != nil {
		return "", 0, err
	}
	tasks := 0
	c.Read(func(s *lease.State, _ *authz.Roster) {
		if j, ok := s.Job(in.Job); ok {
			tasks = len(j.Tasks)
		}
	})
	return in.Job, tasks, nil
}

// Control commits what somebody with the right to it wants of a job or a machine:
// one of Cancel, Pause, Resume, Prioritise, Retry, More and Drain.
func (c *Coordinator) Control(ctx context.Context, cmd lease.Command) error {
	cmd.At = c.now()
	if cmd.Retry != nil {
		cmd.Retry.Limits = c.limits
	}
	if cmd.More != nil {
		cmd.More.Limits = c.limits
	}
	return c.commit(ctx, Entry{Queue: &cmd})
}

// MayJoin reports why a ticket would not admit its machine, before anything is
// committed. Where this machine does not lead, it says nothing.
func (c *Coordinator) MayJoin(ctx context.Context, redeem authz.Redeem) (err error) {
	if c.Leading() {
		at := c.now()
		c.Read(func(_ *lease.State, r *authz.Roster) { err = r.CheckTicket(at, redeem) })
	}
	if err != nil {
		c.Refused(c.joins(ctx, redeem), outcomeOf(err))
	}
	return err
}

// Errors of [Coordinator.Remove], beside those of the roster.
var (
	// ErrSoleVoter: the queue would be gone with the machine.
	ErrSoleVoter = errors.New("this machine alone keeps the farm's queue: let another coordinator join and become a voter first")
	// ErrHandover: the machine led; another one leads in a moment and can remove it.
	ErrHandover = errors.New("this machine led the queue and hands it over: try again in a few seconds")
)

// Remove commits that a machine is no member any more. One that keeps the log leaves
// that first; the leader itself hands over and answers [ErrHandover].
func (c *Coordinator) Remove(ctx context.Context, cmd authz.Command) error {
	if !c.Leading() {
		leader, _ := c.log().Leader()
		return ErrNotLeader{Leader: leader}
	}
	who, st := cmd.Revoke.Peer, c.Status()
	voter := slices.Contains(st.Voters, who)
	switch {
	case voter && len(st.Voters) == 1:
		return ErrSoleVoter
	case who == c.self:
		return errors.Join(ErrHandover, c.log().StepDown())
	case voter || slices.Contains(st.Standbys, who):
		id, err := peer.Decode(string(who))
		if err != nil {
			return err
		}
		if err := c.log().Remove(ctx, id); err != nil {
			return err
		}
	}
	return c.commit(ctx, Entry{Roster: &cmd})
}

// Admit commits a change of the roster.
func (c *Coordinator) Admit(ctx context.Context, cmd authz.Command) error {
	return c.commit(ctx, Entry{Roster: &cmd})
}

func (c *Coordinator) commit(ctx context.Context, e Entry) error {
	l := c.leading.Load()
	if l == nil {
		leader, _ := c.log().Leader()
		return ErrNotLeader{Leader: leader}
	}
	if e.Roster != nil { // whatever the clock of the machine shows where it was asked for
		cmd := *e.Roster
		cmd.At = l.now()
		e.Roster = &cmd
	}
	e.Audit = c.note(ctx, e)
	_, err := c.log().Apply(ctx, e)
	return c.explained(err)
}

// applied is the feed of the log: it runs on the state machine's goroutine and
// must not wait for anything.
func (c *Coordinator) applied(a Applied) {
	for n, e := range a.Queue {
		c.hub.publish(Event{ID: eventID(a.Index, n), At: a.At, Event: e})
	}
	for n, e := range a.Roster {
		if e.Type == authz.PeerRevoked || e.Type == authz.PeerExpired {
			c.mu.Lock()
			delete(c.can, e.Peer)
			c.mu.Unlock()
			c.slog.Warn("a machine is no member any more", "peer", e.Peer.Short(), "why", e.Reason)
			c.hub.publish(Event{ID: eventID(a.Index, n), At: a.At, Event: lease.Event{Type: lease.PeerChanged, Task: -1, Peer: e.Peer, State: "removed", Reason: e.Reason}})
		}
	}
	if len(a.Roster) > 0 || a.Restored {
		c.has.Roster(c.Roster())
	}
	if len(a.Roster) > 0 || a.Restored {
		c.lookForAudit() // there may be more to find, or somebody more to ask
	}
	if l := c.leading.Load(); l != nil {
		c.counts.applied(a)
		l.applied(a)
	}
}

// NewJobID draws an ID that cannot be guessed.
func NewJobID() lease.JobID { return lease.JobID("j" + strings.ToLower(rand.Text())[:15]) }

func newLeaseID() lease.ID { return lease.ID(strings.ToLower(rand.Text())[:20]) }
