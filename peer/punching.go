package peer

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Two machines that are connected through a relay try to connect without: see libp2p's
// DCUtR, which dials from both ends at once, so that each NAT takes the other's packets
// for answers. It does so by QUIC alone here: two peers must not share a TCP port, which
// the same by TCP would need. The library tries when the circuit is made, which may be
// before either has heard of its own address; so it is tried again.
var punchAgain = []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, time.Minute, 10 * time.Minute}

// punchTime is how long one of the library's three tries may take.
const punchTime = 3 * time.Second

// directLasts is how long a direct connection is there before the circuit beside it is
// closed: it may not live, and short requests over the circuit come to their end. New
// streams take the direct one from the first moment; what then still used the circuit,
// such as the work stream, gossip and fetches, is opened again, as after any loss.
const directLasts = 5 * time.Second

// punchable are the addresses at which a NAT may let others in once this machine has
// dialled them: its own, and those at which others see it.
func (r *reach) punchable() []multiaddr.Multiaddr {
	out := slices.DeleteFunc(r.candidates(), func(m multiaddr.Multiaddr) bool { return !byQUIC(m) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seen := range r.observed {
		if byQUIC(seen) {
			out = append(out, seen)
		}
	}
	return slices.DeleteFunc(multiaddr.Unique(out), func(m multiaddr.Multiaddr) bool { return !manet.IsPublicAddr(m) })
}

// shorten puts direct connections in the place of circuits, until ctx ends.
func (r *reach) shorten(ctx context.Context) {
	var g sync.WaitGroup
	defer g.Wait()
	look := &network.NotifyBundle{ConnectedF: func(n network.Network, c network.Conn) {
		p := c.RemotePeer()
		switch {
		case ctx.Err() != nil:
		case !circuit(c.RemoteMultiaddr()):
			if slices.ContainsFunc(n.ConnsToPeer(p), func(c network.Conn) bool { return circuit(c.RemoteMultiaddr()) }) {
				g.Go(func() { r.replace(ctx, p) })
			}
		case r.gate.member(p):
			g.Go(func() {
				if c.Stat().Direction == network.DirInbound {
					r.bury(p)
				}
				r.circuited(ctx, c)
				if c.Stat().Direction == network.DirInbound { // the other waits for this end to begin
					r.dig(ctx, c)
				}
			})
		}
	}}
	r.host.Network().Notify(look)
	defer r.host.Network().StopNotify(look)
	<-ctx.Done()
}

// bury closes direct connections to p, which has just come through a relay: nobody makes
// another connection to whom he is connected with, so they are dead, and only nobody has
// noticed here. New streams would go over them until then.
func (r *reach) bury(p peer.ID) {
	for _, c := range r.host.Network().ConnsToPeer(p) {
		if !circuit(c.RemoteMultiaddr()) && time.Since(c.Stat().Opened) > directLasts { // younger ones may be under way on both ends
			_ = c.Close()
		}
	}
}

// replace closes the circuits to p once it is connected directly for a while.
func (r *reach) replace(ctx context.Context, p peer.ID) {
	select {
	case <-time.After(directLasts):
	case <-ctx.Done():
		return
	}
	if !r.direct(p) {
		return
	}
	for _, c := range r.host.Network().ConnsToPeer(p) {
		if circuit(c.RemoteMultiaddr()) {
			r.slog.Info("connected directly, no relay is needed any more", "peer", r.gate.name(p))
			_ = c.Close()
		}
	}
}

// dig tries again and again to connect directly with whom a circuit leads to.
func (r *reach) dig(ctx context.Context, c network.Conn) {
	for _, wait := range punchAgain {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		r.circuited(ctx, c)
		if c.IsClosed() || r.direct(c.RemotePeer()) || len(r.punchable()) == 0 {
			continue
		}
		if err := r.punch.DirectConnect(c.RemotePeer()); err != nil {
			r.slog.Debug("no direct connection", "peer", r.gate.name(c.RemotePeer()), "err", err)
		}
	}
}

// direct tells whether p is connected without a relay.
func (r *reach) direct(p peer.ID) bool {
	return slices.ContainsFunc(r.host.Network().ConnsToPeer(p), func(c network.Conn) bool { return !c.IsClosed() && !circuit(c.RemoteMultiaddr()) })
}
