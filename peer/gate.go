package peer

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"vizpeer/authz"
)

// maxStrangers is how many machines that are no members may be connected to a
// coordinator at once, maxStrangersFrom how many of them from one address, and
// strangerTime how long each may stay: enough to redeem a ticket.
const (
	maxStrangers     = 64
	maxStrangersFrom = 24
	strangerTime     = 30 * time.Second
)

// gate holds the roster that this machine goes by, and keeps everybody else out.
// A machine that does not hold the queue accepts connections from members only. A
// coordinator lets strangers in for a moment, and so does a machine that has no leader,
// which may be a stranger by now: every protocol but the join and the charter protocol
// turns them away. A machine that relays lets them in, too: it passes them on to a
// coordinator and does nothing else for them.
type gate struct {
	self   authz.PeerID
	farm   authz.FarmID
	roster atomic.Pointer[authz.View]
	relays atomic.Bool // this machine relays: see [relaying]
	// charter is the latest that was seen: the roster of its epoch may be still to come.
	charter atomic.Pointer[authz.Charter]
	// lost tells that this machine looks for a leader.
	lost atomic.Bool

	mu        sync.Mutex
	strangers map[network.Conn]*time.Timer
}

var (
	_ connmgr.ConnectionGater = (*gate)(nil)
	_ network.Notifiee        = (*gate)(nil)
)

// newGate goes by v, which may be nil, until a newer roster of the farm comes.
func newGate(self authz.PeerID, farm authz.FarmID, v *authz.View) *gate {
	g := &gate{self: self, farm: farm, strangers: make(map[network.Conn]*time.Timer)}
	if v != nil {
		g.roster.Store(v)
		g.hear(v.Charter())
	}
	return g
}

// view is the roster; nil before the machine has seen any.
func (g *gate) view() *authz.View { return g.roster.Load() }

// update takes a newer roster of the farm. It tells whether it was one, and who is
// no member any more by it.
func (g *gate) update(v *authz.View) (removed []peer.ID, newer bool) {
	if v == nil || v.Farm() != g.farm || g.stale(v) {
		return nil, false
	}
	g.hear(v.Charter())
	for {
		old := g.roster.Load()
		if !v.Replaces(old) {
			return nil, false
		}
		if !g.roster.CompareAndSwap(old, v) {
			continue
		}
		if old == nil {
			return nil, true
		}
		for _, m := range old.Members() {
			if _, still := v.Member(m.ID); still {
				continue
			}
			if id, err := peer.Decode(string(m.ID)); err == nil {
				removed = append(removed, id)
			}
		}
		return removed, true
	}
}

func (g *gate) member(p peer.ID) bool {
	id, v := authz.PeerID(p.String()), g.view()
	if v == nil {
		return g.named(id)
	}
	_, ok := v.Member(id)
	return ok || g.named(id)
}

// name is p for people: its name, where the roster has one, and the ID that
// `vizpeer peer ls` shows.
func (g *gate) name(p peer.ID) string {
	id := authz.PeerID(p.String())
	if v := g.view(); v != nil {
		if m, ok := v.Member(id); ok {
			return m.Name + " (" + id.Short() + ")"
		}
	}
	return id.Short()
}

// coordinator tells whether p may hold the queue.
func (g *gate) coordinator(p authz.PeerID) bool {
	v := g.view()
	return v != nil && v.IsCoordinator(p) || g.named(p)
}

// guests tells whether strangers may be connected for a moment.
func (g *gate) guests() bool { return g.coordinator(g.self) || g.lost.Load() || g.relays.Load() }

// InterceptPeerDial lets this machine dial members only; one that has not joined
// yet must be able to ask.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return g.view() == nil || g.member(p) }

// InterceptAddrDial allows every address of a peer that may be dialled.
func (g *gate) InterceptAddrDial(peer.ID, multiaddr.Multiaddr) bool { return true }

// InterceptAccept allows what is not known yet: who it is shows in the handshake.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured keeps strangers out once the handshake has shown who they
// are.
func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, at network.ConnMultiaddrs) bool {
	if through, yes := relayOf(at.RemoteMultiaddr()); yes && dir == network.DirInbound && !g.member(through) {
		return false // nobody but members relays to here
	}
	if dir == network.DirOutbound || g.member(p) {
		return true
	}
	if !g.guests() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.room(at)
}

// room tells whether another stranger may connect from there. g.mu is held.
func (g *gate) room(at network.ConnMultiaddrs) bool {
	from, all, others := addressOf(at.RemoteMultiaddr()), 0, 0
	for c := range g.strangers {
		if g.member(c.RemotePeer()) {
			continue // by now
		}
		all++
		if addressOf(c.RemoteMultiaddr()) == from {
			others++
		}
	}
	return all < maxStrangers && others < maxStrangersFrom
}

// InterceptUpgraded allows what was allowed before.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// Connected starts a stranger's time. Whoever was a member when the connection was begun
// and is none any more has no time at all, but for a coordinator's join protocol.
func (g *gate) Connected(_ network.Network, c network.Conn) {
	out := c.Stat().Direction == network.DirOutbound
	switch {
	case g.member(c.RemotePeer()), out && g.view() == nil:
		return
	case out, !g.guests():
		go func() { _ = c.Close() }() // the network waits for its notifiees
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.room(c) { // several came at once
		go func() { _ = c.Close() }()
		return
	}
	g.strangers[c] = time.AfterFunc(strangerTime, func() {
		if !g.member(c.RemotePeer()) {
			_ = c.Close()
		}
	})
}

// keep lets a stranger stay connected until release is called: it waits for somebody's
// word. Then its time begins anew.
func (g *gate) keep(c network.Conn) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.strangers[c]
	if t == nil {
		return func() {}
	}
	t.Stop()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.strangers[c] == t {
			t.Reset(strangerTime)
		}
	}
}

// Disconnected makes room for another stranger.
func (g *gate) Disconnected(_ network.Network, c network.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.strangers[c]; t != nil {
		t.Stop()
		delete(g.strangers, c)
	}
}

// Listen and ListenClose complete network.Notifiee.
func (g *gate) Listen(network.Network, multiaddr.Multiaddr)      {}
func (g *gate) ListenClose(network.Network, multiaddr.Multiaddr) {}
