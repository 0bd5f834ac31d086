package peer

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	circuitpb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"

	"vizpeer/authz"
)

// Limits of what a member passes on for others: circuits of one member and of all, each
// of which takes two buffers. Every member may have one place, which it loses with its
// connection and asks for again every placeLasts. The protocol also gives places an end by
// the clock on the wall, which is far away: clocks may be wrong by hours.
const (
	maxCircuitsEach = 256
	maxCircuits     = 1024
	circuitBuffer   = 32 << 10
	placeLasts      = 30 * time.Minute
	placeEnds       = 14 * 24 * time.Hour
)

// relaying passes on what members say to each other that cannot be dialled, as libp2p's
// circuit relay (version 2): both ends must be members. A circuit carries a connection
// that is secured from end to end, of which this machine sees bytes alone.
//
// A machine with a ticket, which is no member yet, may be passed on to a coordinator and
// to nobody else: there the gate and the join protocol deal with it as with any stranger.
// So the ticket is shown to none but a coordinator.
//
// Circuits have no limit of time or data: libp2p calls connections with one "limited" and
// opens streams over them only for whoever asks for that in so many words, which raft,
// gossip and the exchange of content do not. They are bounded in number instead, and what
// they carry waits its turn under this machine's cap, a buffer at a time.
type relaying struct {
	gate     *gate
	turn     func(context.Context, int) error // waits until so many bytes may be sent
	ctx      context.Context
	circuits atomic.Int64
}

// relayFor serves members over h until the relay is closed or ctx ends.
func relayFor(ctx context.Context, h host.Host, g *gate, turn func(context.Context, int) error) (*relay.Relay, *relaying, error) {
	r := &relaying{gate: g, turn: turn, ctx: ctx}
	limits := relay.Resources{
		ReservationTTL: placeEnds, MaxCircuits: maxCircuitsEach, BufferSize: circuitBuffer,
		// A site may be behind one address.
		MaxReservations: authz.MaxMembers, MaxReservationsPerIP: authz.MaxMembers, MaxReservationsPerASN: authz.MaxMembers,
	}
	service, err := relay.New(h, relay.WithResources(limits), relay.WithACL(r), relay.WithMetricsTracer(r),
		relay.WithReservationAddressFilter(func(m multiaddr.Multiaddr) bool { return !circuit(m) }))
	return service, r, err
}

// AllowReserve keeps a place for members.
func (r *relaying) AllowReserve(p peer.ID, _ multiaddr.Multiaddr) bool { return r.gate.member(p) }

// AllowConnect lets a member connect with any other, and a stranger with a coordinator.
func (r *relaying) AllowConnect(from peer.ID, _ multiaddr.Multiaddr, to peer.ID) bool {
	if !r.gate.member(to) || r.circuits.Load() >= maxCircuits {
		return false
	}
	return r.gate.member(from) || r.gate.coordinator(peerOf(to))
}

// What follows is a [relay.MetricsTracer]: the library tells by it what it does.

func (r *relaying) ConnectionOpened()              { r.circuits.Add(1) }
func (r *relaying) ConnectionClosed(time.Duration) { r.circuits.Add(-1) }

// BytesTransferred is called between two buffers of a circuit, and so slows it down.
func (r *relaying) BytesTransferred(n int) { _ = r.turn(r.ctx, n) }

func (*relaying) RelayStatus(bool)                            {}
func (*relaying) ReservationAllowed(bool)                     {}
func (*relaying) ReservationClosed(int)                       {}
func (*relaying) ReservationRequestHandled(circuitpb.Status)  {}
func (*relaying) ConnectionRequestHandled(s circuitpb.Status) {}

// circuit tells whether an address is one through a relay, and relayOf through which.
func circuit(m multiaddr.Multiaddr) bool {
	_, err := m.ValueForProtocol(multiaddr.P_CIRCUIT)
	return err == nil
}

func relayOf(m multiaddr.Multiaddr) (peer.ID, bool) {
	before, after := multiaddr.SplitFunc(m, func(c multiaddr.Component) bool { return c.Protocol().Code == multiaddr.P_CIRCUIT })
	if len(after) == 0 || len(before) == 0 {
		return "", false
	}
	id, err := peer.IDFromP2PAddr(before)
	return id, err == nil
}
