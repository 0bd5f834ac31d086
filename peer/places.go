package peer

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuits "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	hops "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// A machine keeps places with so many relays, tries one that refused again after
// refusalLasts, and tells others so many addresses of each.
//
// This is what libp2p's autorelay does for a network of strangers, where relays are many
// and are to be chosen with care: it waits for minutes and leaves out those with private
// addresses. Here the few that relay are members, and the first is good.
const (
	wantedPlaces = 2
	refusalLasts = time.Minute
	reserveTime  = 10 * time.Second
	maxPlaceAddr = 4
)

// place is kept for this machine by a relay.
type place struct {
	due   time.Time             // to be asked for again
	addrs []multiaddr.Multiaddr // of this machine, through the relay
}

// offered notes whether p says that it relays.
func (r *reach) offered(p peer.ID, relays bool) {
	r.mu.Lock()
	was := r.offers[p]
	if relays {
		r.offers[p] = true
	} else {
		delete(r.offers, p)
	}
	r.mu.Unlock()
	if was != relays {
		wake(r.holding)
	}
}

// hold keeps places with relays while this machine is not reachable without.
func (r *reach) hold(ctx context.Context) {
	for {
		wait := r.reserve(ctx)
		select {
		case <-time.After(wait):
		case <-r.holding:
		case <-ctx.Done():
			return
		}
	}
}

// reserve takes, renews or gives up places, and answers when to look again.
func (r *reach) reserve(ctx context.Context) time.Duration {
	if r.public() {
		r.mu.Lock()
		had := len(r.places) > 0
		clear(r.places)
		r.mu.Unlock()
		if had {
			r.announce()
		}
		return placeLasts
	}
	changed := false
	wait := placeLasts
	for _, p := range r.relays() {
		r.mu.Lock()
		have, yes := r.places[p]
		enough := len(r.places) >= wantedPlaces
		again := r.refused[p].Add(refusalLasts)
		r.mu.Unlock()
		switch {
		case yes && time.Until(have.due) > 0:
			wait = min(wait, time.Until(have.due))
			continue
		case !yes && enough:
			continue
		case !yes && time.Until(again) > 0:
			wait = min(wait, time.Until(again))
			continue
		}
		now, err := r.take(ctx, p)
		r.mu.Lock()
		if err != nil {
			r.slog.Debug("a relay keeps no place for this machine", "relay", r.gate.name(p), "err", err)
			delete(r.places, p)
			r.refused[p] = time.Now()
			wait = min(wait, refusalLasts)
		} else {
			r.places[p] = now
			delete(r.refused, p)
		}
		r.mu.Unlock()
		changed = changed || yes != (err == nil) || !slices.EqualFunc(now.addrs, have.addrs, multiaddr.Multiaddr.Equal)
		if err == nil && !yes {
			r.slog.Info("this machine is reached through a relay", "relay", r.gate.name(p))
		}
	}
	if changed {
		r.announce()
	}
	return wait
}

// relays are the members that seem to relay: those that a place is with first, then those
// connected, then those that say so.
func (r *reach) relays() (out []peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.places {
		out = append(out, p)
	}
	add := func(p peer.ID) {
		if p != r.host.ID() && r.gate.member(p) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for _, p := range r.host.Network().Peers() {
		if speaks, err := r.host.Peerstore().SupportsProtocols(p, hops.ProtoIDv2Hop); err == nil && len(speaks) > 0 {
			add(p)
		}
	}
	for p := range r.offers {
		add(p)
	}
	return out
}

// take asks p for a place.
func (r *reach) take(ctx context.Context, p peer.ID) (place, error) {
	ctx, cancel := context.WithTimeout(ctx, reserveTime)
	defer cancel()
	// A place with a relay that is itself reached through one leads nowhere.
	ctx = network.WithForceDirectDial(ctx, "to keep a place with a relay")
	if err := r.finds.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return place{}, err
	}
	got, err := circuits.Reserve(ctx, r.host, peer.AddrInfo{ID: p})
	if err != nil {
		return place{}, err
	}
	out := place{due: time.Now().Add(placeLasts)}
	through, err := multiaddr.NewMultiaddr("/p2p-circuit")
	if err != nil {
		return place{}, err
	}
	for _, public := range []bool{true, false} {
		for _, a := range got.Addrs {
			if manet.IsPublicAddr(a) == public && !manet.IsIPLoopback(a) && !circuit(a) && len(out.addrs) < maxPlaceAddr {
				out.addrs = append(out.addrs, a.Encapsulate(through))
			}
		}
		if len(out.addrs) > 0 {
			break
		}
	}
	return out, nil
}
