package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/coord"
	"vizpeer/lease"
)

// link is this machine's work stream to whoever leads the queue. It is opened
// again for ever, with growing pauses that any sign of life cuts short.
type link struct {
	host   host.Host
	self   authz.PeerID
	gate   *gate
	coord  *coord.Coordinator // nil where this machine does not hold the queue
	slog   *slog.Logger
	orders orders
	show   func(context.Context, peer.ID) error // the latest charter, to whoever goes by an older one
	nudge  chan struct{}                        // a reason to try, or to renew, at once

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when leader or conn change
	lost    time.Time     // when the last stream ended, or this machine's first try began
	leader  peer.ID       // "" while there is no stream
	conn    *coord.Conn
	knows   int                     // the level of the leader's vizpeer
	term    uint64                  // that the last stream was of
	tried   peer.ID                 // whom a stream is with, or is being opened to; "" while there is none
	giveUp  context.CancelCauseFunc // ends that
	claim   claim                   // of the latest term that was heard of
	clock   clock
	seq     uint64
	waiting map[uint64]chan coord.Ack
}

// claim is what a coordinator says, or is said, to be: the leader of a term.
type claim struct {
	leader peer.ID
	term   uint64
	until  time.Time // it is believed
}

// claimTime is how long a claim is believed before there is a stream with its leader: one
// that has just been elected may need a moment. A wrong claim keeps the machine from
// nobody else for longer.
const claimTime = 5 * time.Second

// errSuperseded ends a stream with somebody who leads no more, or does not answer.
var errSuperseded = errors.New("another machine leads a later term")

// errNobody is the answer of a machine that does not lead, or does not yet.
var errNobody = errors.New("not leader, and it does not know who is")

// orders is what the stream needs of the rest of the peer. Its methods are
// called from the stream's goroutine and must not block.
type orders interface {
	hello() coord.Hello
	renewal() coord.Renew
	welcome(coord.Welcome)
	roster(*authz.View)
	grant(coord.Order)
	revoke(coord.Revoke)
	keep(coord.Keep)
	drop(coord.Drop)
	kept(coord.Kept)
	ended(lease.JobID)
	prefetch(coord.Prefetch)
	equip(coord.Equip)
}

func newLink(h host.Host, g *gate, c *coord.Coordinator, log *slog.Logger, o orders) *link {
	return &link{
		host: h, self: authz.PeerID(h.ID().String()), gate: g, coord: c, slog: log, orders: o, nudge: make(chan struct{}, 1), lost: time.Now(),
		changed: make(chan struct{}), waiting: make(map[uint64]chan coord.Ack),
	}
}

// Nudge asks the link to try, or to renew its leases, without waiting.
func (l *link) Nudge() {
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// Claim says that a coordinator leads a term. Of a leader that was killed nobody hears
// that it is gone, where no operating system hangs up for it: the word of the next one
// ends the stream with it. It is the word of a member with the right to lead, and costs no
// more than a try where it is wrong.
func (l *link) Claim(leader peer.ID, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term <= l.term || term < l.claim.term && time.Now().Before(l.claim.until) {
		return
	}
	l.claim = claim{leader, term, time.Now().Add(claimTime)}
	if l.tried != "" && l.tried != leader {
		l.giveUp(errSuperseded)
	}
	l.Nudge()
}

// claimant is who says to lead a later term than any that there was a stream of; "" where
// nobody does.
func (l *link) claimant() peer.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.claim.term > l.term && time.Now().Before(l.claim.until) {
		return l.claim.leader
	}
	return ""
}

// disclaimed forgets what is said of p: it names another leader itself.
func (l *link) disclaimed(p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.claim.leader == p {
		l.claim = claim{}
	}
}

// try notes whom a stream is being opened to, which cancel gives up.
func (l *link) try(p peer.ID, cancel context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried, l.giveUp = p, cancel
}

// Run keeps the stream open until ctx ends. It fails with a [goneError] once it hears
// that this machine is no member any more.
func (l *link) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 5*time.Second
	var hint, silent peer.ID
	l.gate.lost.Store(true)
	for ctx.Err() == nil {
		served := false
		for _, p := range l.candidates(cmp.Or(l.claimant(), hint), silent) {
			next, welcomed, err := l.session(ctx, p)
			served = served || welcomed
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				l.slog.Debug("no work stream", "peer", l.gate.name(p), "err", err)
				if l.hangUp(p, err) {
					silent = p
				}
				if next == "" && !welcomed && p != l.host.ID() {
					if why, yes := l.removed(ctx, p); yes {
						return &goneError{why}
					}
				}
			}
			switch {
			case !welcomed:
			case errors.Is(err, errSuperseded):
				l.slog.Info("another machine leads the queue", "before", l.gate.name(p), "now", l.gate.name(next))
			case p == l.host.ID():
				l.slog.Warn("this machine does not lead any more, looking for who does")
			default:
				l.slog.Warn("the leader is out of reach, trying again", "leader", l.gate.name(p))
			}
			// One that has just been elected may need a moment: nobody else leads.
			if hint = next; welcomed || next != "" || p == l.claimant() && errors.Is(err, errNobody) {
				break
			}
		}
		if served {
			pause.Reset()
		}
		if l.claimant() != "" && served {
			continue
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-l.nudge:
		case <-ctx.Done():
		}
	}
	return nil
}

// hangUp drops the connection to a peer that has gone silent, so that the next
// try dials it anew, perhaps at another address, instead of waiting for the dead
// connection to be noticed. It tells whether it was so.
func (l *link) hangUp(p peer.ID, err error) bool {
	var timeout interface{ Timeout() bool }
	if p == l.host.ID() || !errors.As(err, &timeout) || !timeout.Timeout() {
		return false
	}
	_ = l.host.Network().ClosePeer(p)
	return true
}

// candidates lists whom to ask: whoever was named as the leader, this machine
// itself, and every coordinator of the roster, or everybody it remembers where the
// roster is lost.
//
// silent, the one that did not answer last, comes at the end, unless it is named again: to
// find that out once more takes long, and leases run out meanwhile.
func (l *link) candidates(hint, silent peer.ID) []peer.ID {
	if silent == hint {
		silent = ""
	}
	var ids []peer.ID
	seen := map[peer.ID]bool{"": true}
	add := func(p peer.ID) {
		if !seen[p] {
			seen[p] = true
			ids = append(ids, p)
		}
	}
	add(hint)
	if c := l.gate.latest(); l.gate.named(c.Coordinator) {
		add(peerIDOf(c.Coordinator))
	}
	if l.coord != nil {
		add(l.host.ID())
	}
	v := l.gate.view()
	if v == nil {
		// Without a roster, whoever was a member when this machine last looked may
		// say who leads.
		for _, p := range l.host.Peerstore().PeersWithAddrs() {
			add(p)
		}
		return last(ids, silent)
	}
	for _, c := range v.Coordinators() {
		if p, err := peer.Decode(string(c)); err == nil {
			add(p)
		}
	}
	return last(ids, silent)
}

// last moves p to the end of the list, where it is in it.
func last(ids []peer.ID, p peer.ID) []peer.ID {
	if i := slices.Index(ids, p); i >= 0 {
		ids = append(slices.Delete(ids, i, i+1), p)
	}
	return ids
}

// open connects to p's side of the work protocol. With itself a machine speaks
// through a pipe.
func (l *link) open(ctx context.Context, p peer.ID) (io.ReadWriteCloser, error) {
	if p != l.host.ID() {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		dialAnew(l.host, p)
		return l.host.NewStream(ctx, p, coord.WorkProtocol)
	}
	if l.coord == nil || !l.coord.Leading() {
		return nil, errNobody
	}
	here, there := net.Pipe()
	go func() { _ = l.coord.ServeMember(ctx, there, l.self) }()
	return here, nil
}

// session holds one stream with p for as long as it lasts. It answers who leads
// instead where p does not.
func (l *link) session(ctx context.Context, p peer.ID) (next peer.ID, welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.try(p, cancel)
	defer l.try("", nil)
	defer func() {
		if errors.Is(context.Cause(ctx), errSuperseded) {
			next, err = l.claimant(), errSuperseded
		}
	}()
	rwc, err := l.open(ctx, p)
	if err != nil {
		return "", false, err
	}
	conn := coord.NewConn(rwc)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	hello := l.orders.hello()
	if err := conn.Send(coord.Up{Hello: &hello}); err != nil {
		return "", false, err
	}
	var down coord.Down
	if err := conn.Receive(&down); err != nil {
		return "", false, err
	}
	switch {
	case down.Redirect != nil:
		next, err := peer.Decode(string(down.Redirect.Leader.Peer))
		if err != nil || next == p {
			return "", false, errNobody
		}
		l.disclaimed(p)
		return next, false, fmt.Errorf("not leader, try %s", l.gate.name(next))
	case down.Welcome == nil:
		return "", false, errors.New("the answer was no welcome")
	}
	if l.gate.stale(down.Welcome.Roster) {
		if l.show != nil && p != l.host.ID() {
			_ = l.show(ctx, p)
		}
		l.disclaimed(p)
		return "", false, errors.New("it leads an epoch of the farm that is over")
	}
	l.orders.roster(down.Welcome.Roster)
	l.mu.Lock()
	l.clock, l.knows = clockAt(time.Now(), down.Welcome.At), level.Said(down.Welcome.Level)
	l.term = max(l.term, down.Welcome.Term)
	l.mu.Unlock()
	l.slog.Info("joined the queue", "leader", l.gate.name(p), "term", down.Welcome.Term)
	l.orders.welcome(*down.Welcome)
	conn.Patience = coord.Silence
	l.set(p, conn)
	defer l.set("", nil)
	go l.renew(ctx, conn)
	for {
		var down coord.Down
		if err := conn.Receive(&down); err != nil {
			return "", true, err
		}
		l.obey(down)
	}
}

func (l *link) obey(d coord.Down) {
	switch {
	case d.Ack != nil:
		l.mu.Lock()
		ack := l.waiting[d.Ack.Seq]
		delete(l.waiting, d.Ack.Seq)
		l.mu.Unlock()
		if ack != nil {
			ack <- *d.Ack
		}
	case d.Grant != nil:
		l.orders.grant(*d.Grant)
	case d.Revoke != nil:
		l.orders.revoke(*d.Revoke)
	case d.Keep != nil:
		l.orders.keep(*d.Keep)
	case d.Drop != nil:
		l.orders.drop(*d.Drop)
	case d.Kept != nil:
		l.orders.kept(*d.Kept)
	case d.Ended != nil:
		l.orders.ended(d.Ended.Job)
	case d.Prefetch != nil:
		l.orders.prefetch(*d.Prefetch)
	case d.Equip != nil:
		l.orders.equip(*d.Equip)
	case d.Roster != nil:
		l.orders.roster(d.Roster)
	default: // the leader is to send nothing that this machine does not know: see package level
		l.slog.Debug("the leader said something that this machine's vizpeer does not know")
	}
}

// renewPause is how long a nudge waits for others to be answered with it.
const renewPause = 50 * time.Millisecond

// renew sends the state of the attempts every [coord.Renewal] and soon whenever it is
// nudged.
func (l *link) renew(ctx context.Context, conn *coord.Conn) {
	tick := time.NewTicker(coord.Renewal)
	defer tick.Stop()
	for {
		renewal := l.orders.renewal()
		if err := conn.Send(coord.Up{Renew: &renewal}); err != nil {
			_ = conn.Close()
			return
		}
		select {
		case <-tick.C:
			continue
		case <-l.nudge:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(renewPause):
		case <-ctx.Done():
			return
		}
	}
}

// set notes the stream in use and wakes whoever waits for one.
func (l *link) set(p peer.ID, conn *coord.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn == nil && l.conn != nil {
		l.lost = time.Now()
	}
	l.leader, l.conn = p, conn
	l.gate.lost.Store(conn == nil)
	if conn == nil {
		for seq, ack := range l.waiting {
			delete(l.waiting, seq)
			close(ack)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Renounce ends the stream: its leader may lead an epoch that is over. The terms of the
// next one begin anew.
func (l *link) Renounce() {
	l.mu.Lock()
	conn := l.conn
	l.term, l.claim = 0, claim{}
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	l.Nudge()
}

// Report sends a report and waits for its answer, over as many streams and
// leaders as it takes. The error is ctx's.
func (l *link) Report(ctx context.Context, up coord.Up) (coord.Ack, error) {
	for {
		l.mu.Lock()
		conn, changed := l.conn, l.changed
		if conn != nil && level.Needed(&up) > l.knows {
			l.mu.Unlock()
			l.slog.Warn("the leader's vizpeer is too old for what this machine has to report: it waits until that is updated")
			conn = nil // until another one leads, or this one has restarted
		} else if conn != nil {
			l.seq++
			up.Seq = l.seq
			ack := make(chan coord.Ack, 1)
			l.waiting[up.Seq] = ack
			l.mu.Unlock()
			if err := conn.Send(up); errors.Is(err, coord.ErrTooLarge) {
				return coord.Ack{Seq: up.Seq, Code: "invalid", Reason: err.Error()}, nil
			} else if err != nil {
				_ = conn.Close()
			}
			select {
			case a, ok := <-ack:
				if ok && a.Code != coord.CodeLeader && a.Code != coord.CodeUpdate {
					return a, nil
				}
			case <-ctx.Done():
				l.mu.Lock()
				delete(l.waiting, up.Seq)
				l.mu.Unlock()
				return coord.Ack{}, ctx.Err()
			}
		} else {
			l.mu.Unlock()
		}
		// Nothing was committed: say it again to the next leader, or to the same
		// one where it was only too busy.
		var again <-chan time.Time
		if conn != nil {
			again = time.After(coord.Renewal)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return coord.Ack{}, ctx.Err()
		}
	}
}

// errNoLeader says that there is nobody to ask.
var errNoLeader = errors.New("no leader is connected: it is tried again and again")

// Ask puts a question to the leader of now and waits for its answer. Unlike a
// report it is asked once: whoever asked knows better whether it still matters.
func (l *link) Ask(ctx context.Context, up coord.Up) (coord.Ack, error) {
	l.mu.Lock()
	conn := l.conn
	if conn == nil {
		l.mu.Unlock()
		return coord.Ack{}, errNoLeader
	}
	if level.Needed(&up) > l.knows {
		l.mu.Unlock()
		return coord.Ack{Code: coord.CodeUpdate, Reason: "the machine that leads the queue runs an older vizpeer, which does not know this: update it there"}, nil
	}
	l.seq++
	up.Seq = l.seq
	answer := make(chan coord.Ack, 1)
	l.waiting[up.Seq] = answer
	l.mu.Unlock()
	if err := conn.Send(up); err != nil {
		_ = conn.Close() // the answer's channel is closed with the stream
	}
	select {
	case a, ok := <-answer:
		if !ok {
			return a, errNoLeader
		}
		return a, nil
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.waiting, up.Seq)
		l.mu.Unlock()
		return coord.Ack{}, ctx.Err()
	}
}

// Find asks the leader who has content now.
func (l *link) Find(ctx context.Context, root cid.Cid, by lease.Scope) ([]coord.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	ack, err := l.Ask(ctx, coord.Up{Find: &coord.Find{Root: root.String(), By: by.String()}})
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the leader who has it: %w", err)
	case ack.Code != "":
		return nil, fmt.Errorf("ask the leader who has it: %s", ack.Reason)
	}
	return ack.From, nil
}

// Recall asks the leader which of some jobs the farm remembers.
func (l *link) Recall(ctx context.Context, jobs []lease.JobID) ([]lease.JobID, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	ack, err := l.Ask(ctx, coord.Up{Recall: &coord.Recall{Jobs: jobs}})
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the leader which jobs it remembers: %w", err)
	case ack.Code != "":
		return nil, fmt.Errorf("ask the leader which jobs it remembers: %s", ack.Reason)
	}
	return ack.Known, nil
}

// Parting asks the leader what would be lost if this machine were switched off
// now, and why it is drained, if it is.
func (l *link) Parting(ctx context.Context) (p lease.Parting, drained string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	ack, err := l.Ask(ctx, coord.Up{Part: &coord.Part{}})
	switch {
	case err != nil:
		return p, "", fmt.Errorf("ask the leader what hangs on this machine: %w", err)
	case ack.Parting == nil:
		return p, "", fmt.Errorf("ask the leader what hangs on this machine: %s", ack.Reason)
	}
	return *ack.Parting, ack.Drained, nil
}

// Tell sends a message that needs no answer, if there is a stream.
func (l *link) Tell(up coord.Up) {
	l.mu.Lock()
	conn := l.conn
	if level.Needed(&up) > l.knows {
		conn = nil
	}
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Send(up)
	}
}

// Leader waits until it is known who leads, or for ctx.
func (l *link) Leader(ctx context.Context) (peer.ID, error) {
	for {
		leader, changed := l.Watch()
		if leader != "" {
			return leader, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// Watch is the leader that the stream is with now, or "", and what is closed when
// that is over.
func (l *link) Watch() (leader peer.ID, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader, l.changed
}

// Current is the leader that the stream is with now, or "".
func (l *link) Current() peer.ID {
	leader, _ := l.Watch()
	return leader
}

// Lost is since when there is no stream; false while there is one.
func (l *link) Lost() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost, l.conn == nil
}
