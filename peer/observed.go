package peer

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	identifypb "github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"github.com/libp2p/go-msgio/pbio"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

// How often at most a member is asked how it sees this machine, and how long that may take.
const (
	seenLasts = 10 * time.Second
	seenTime  = 5 * time.Second
	maxSeen   = 64 << 10 // bytes of the answer
)

// reobserve asks p how it sees this machine now. What it said when they were connected may
// be out of date: a connection by QUIC lives on when the router's address changes, and
// libp2p shows the old one. So this is a connection beside it, from the same port.
func (r *reach) reobserve(ctx context.Context, p peer.ID) {
	r.mu.Lock()
	if time.Since(r.looked[p]) < seenLasts {
		r.mu.Unlock()
		return
	}
	r.looked[p] = time.Now()
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	for _, c := range r.host.Network().ConnsToPeer(p) {
		if at := c.RemoteMultiaddr(); byQUIC(at) && !circuit(at) {
			seen, err := r.seenBy(ctx, p, at)
			if err != nil {
				r.slog.Debug("a member does not say how it sees this machine", "peer", r.gate.name(p), "err", err)
				return
			}
			r.saw(p, at, seen)
			return
		}
	}
}

// seenBy connects with p once more, at that address, and asks what libp2p's identify tells.
func (r *reach) seenBy(ctx context.Context, p peer.ID, at multiaddr.Multiaddr) (multiaddr.Multiaddr, error) {
	by, ok := r.host.Network().(interface {
		TransportForDialing(multiaddr.Multiaddr) transport.Transport
	})
	if !ok {
		return nil, fmt.Errorf("no transport for %s", at)
	}
	c, err := by.TransportForDialing(at).Dial(ctx, at, p)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s, err := c.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(seenTime))
	if err := multistream.SelectProtoOrFail(identify.ID, s); err != nil {
		return nil, err
	}
	var said identifypb.Identify
	if err := pbio.NewDelimitedReader(s, maxSeen).ReadMsg(&said); err != nil {
		return nil, err
	}
	return multiaddr.NewMultiaddrBytes(said.GetObservedAddr())
}

// circuited looks again at what the relay of a new circuit sees, since holes are punched
// at that address.
func (r *reach) circuited(ctx context.Context, c network.Conn) {
	if p, yes := relayOf(c.RemoteMultiaddr()); yes && r.gate.member(p) {
		r.reobserve(ctx, p)
	}
}
