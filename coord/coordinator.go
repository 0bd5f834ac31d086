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
	log     *Log
	host    Host
	self    authz.PeerID
	slog    *slog.Logger
	hub     *Hub
	genesis *authz.Command
	leading atomic.Pointer[leader]
	has     Machine
	limits  lease.Limits
	lacking chan struct{} // older records of the audit may be missing

	verifying sync.Mutex // held while the audit is verified
	counts    counts

	mu  sync.Mutex
	can map[authz.PeerID]lease.Capability // the latest ad of each member
}

// Machine is what a coordinator asks of its own machine, and tells it at once.
// All functions are required, may be called before Open returns and from any
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
}

// Open opens the log in cfg.Dir. genesis, made by authz when the farm was
// founded, is committed by the first leader of a new farm; it is nil on a
// machine that did not found one.
func Open(h Host, genesis *authz.Command, has Machine, cfg Config) (*Coordinator, error) {
	c := &Coordinator{
		host: h, self: authz.PeerID(h.ID().String()), slog: cfg.Logger, hub: NewHub(), genesis: genesis, has: has, limits: cfg.Limits,
		can: make(map[authz.PeerID]lease.Capability), lacking: make(chan struct{}, 1),
	}
	if c.slog == nil {
		c.slog = slog.New(slog.DiscardHandler)
	}
	log, err := OpenLog(h, func(p peer.ID) bool { return has.Coordinates(authz.PeerID(p.String())) }, cfg)
	if err != nil {
		return nil, err
	}
	c.log = log
	log.Subscribe(c.applied)
	if genesis != nil {
		if err := log.Bootstrap(h.ID()); err != nil && !errors.Is(err, ErrHasState) {
			return nil, errors.Join(fmt.Errorf("start the farm's log: %w", err), log.Close())
		}
	}
	return c, nil
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
	var stop context.CancelFunc = func() {}
	var wg sync.WaitGroup
	end := func() {
		stop()
		wg.Wait()
	}
	for {
		select {
		case elected := <-c.log.LeaderCh():
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
					_ = c.log.StepDown()
					select {
					case <-time.After(time.Second):
					case <-term.Done():
					}
				}
			})
		case <-c.log.Failed():
			end()
			return c.log.Err()
		case <-ctx.Done():
			end()
			return nil
		}
	}
}

// Close closes the log. Run must have ended.
func (c *Coordinator) Close() error { return c.log.Close() }

func (c *Coordinator) isMember(p authz.PeerID) (ok bool) {
	c.Read(func(_ *lease.State, r *authz.Roster) { _, ok = r.Member(p) })
	return ok
}

// Roster is the committed roster, as every peer may hold it.
func (c *Coordinator) Roster() (v *authz.View) {
	c.log.Read(func(_ *lease.State, r *authz.Roster) { v = r.View() })
	return v
}

// Read calls f with the committed state, which f must neither change nor keep.
func (c *Coordinator) Read(f func(*lease.State, *authz.Roster)) { c.log.Read(f) }

// Watch follows the farm's events: see [Hub.Watch].
func (c *Coordinator) Watch(after uint64) *Watch { return c.hub.Watch(after) }

// Status says who leads.
func (c *Coordinator) Status() Status { return c.log.Status() }

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

// Submit commits a job and returns its ID and number of tasks once a majority
// of the coordinators has it on disk. once, unless nil, keeps it from being accepted a
// second time: the error is then a [lease.Repeated], with what was answered the first
// time.
func (c *Coordinator) Submit(ctx context.Context, spec lease.Spec, once *lease.Once) (lease.JobID, int, error) {
	id := NewJobID()
	if err := c.commit(ctx, Entry{Queue: &lease.Command{At: c.now(), Submit: &lease.Submit{Job: id, Spec: spec, Limits: c.limits, Once: once}}}); err != nil {
		return "", 0, err
	}
	tasks := 0
	c.Read(func(s *lease.State, _ *authz.Roster) {
		if j, ok := s.Job(id); ok {
			tasks = len(j.Tasks)
		}
	})
	return id, tasks, nil
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
		leader, _ := c.log.Leader()
		return ErrNotLeader{Leader: leader}
	}
	who, st := cmd.Revoke.Peer, c.Status()
	voter := slices.Contains(st.Voters, who)
	switch {
	case voter && len(st.Voters) == 1:
		return ErrSoleVoter
	case who == c.self:
		return errors.Join(ErrHandover, c.log.StepDown())
	case voter || slices.Contains(st.Standbys, who):
		id, err := peer.Decode(string(who))
		if err != nil {
			return err
		}
		if err := c.log.Remove(ctx, id); err != nil {
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
		leader, _ := c.log.Leader()
		return ErrNotLeader{Leader: leader}
	}
	if e.Roster != nil { // whatever the clock of the machine shows where it was asked for
		cmd := *e.Roster
		cmd.At = l.now()
		e.Roster = &cmd
	}
	e.Audit = c.note(ctx, e)
	_, err := c.log.Apply(ctx, e)
	return err
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
