package peer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
	"vizpeer/coord"
)

// neighbours knows where other members can be reached: from where they were
// last, and from the local network. It remembers across restarts.
type neighbours struct {
	host host.Host
	gate *gate
	dir  dataDir
	link *link
	slog *slog.Logger
	show func(context.Context, peer.ID) error // the latest charter
	ring chan struct{}                        // there is one that nobody connected was shown

	showing sync.WaitGroup

	mu    sync.Mutex
	known map[authz.PeerID][]string
}

func newNeighbours(h host.Host, g *gate, d dataDir, l *link, log *slog.Logger) *neighbours {
	n := &neighbours{ring: make(chan struct{}, 1), host: h, gate: g, dir: d, link: l, slog: log, known: d.addrs()}
	for id, addrs := range n.known {
		addPeer(h, info(coord.Addr{Peer: id, Addrs: addrs}))
	}
	return n
}

// Run watches who connects, and the farm's local network unless quiet, until ctx
// ends.
func (n *neighbours) Run(ctx context.Context, farm authz.FarmID, quiet bool) error {
	sub, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return err
	}
	defer sub.Close()
	defer n.showing.Wait()
	if !quiet {
		lan := mdns.NewMdnsService(n.host, mdnsName(farm), n)
		if err := lan.Start(); err != nil {
			n.slog.Warn("peers on the local network cannot be found", "err", err)
		} else {
			defer lan.Close()
		}
		if n.gate.coordinator(peerOf(n.host.ID())) {
			// Whoever has no ticket asks here; this machine looks for nobody by it.
			lobby := mdns.NewMdnsService(n.host, mdnsAnyone, notifee(nil))
			if err := lobby.Start(); err == nil {
				defer lobby.Close()
			}
		}
	}
	for {
		select {
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			if e, ok := e.(event.EvtPeerIdentificationCompleted); ok {
				n.identified(e)
				n.showTo(ctx, e.Peer)
			}
		case <-n.ring:
			for _, p := range n.host.Network().Peers() {
				n.showTo(ctx, p)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Show has everybody who is connected shown the latest charter.
func (n *neighbours) Show() {
	select {
	case n.ring <- struct{}{}:
	default:
	}
}

// showTo shows a machine that is connected the latest charter, in the background.
func (n *neighbours) showTo(ctx context.Context, p peer.ID) {
	if n.show == nil || n.gate.latest().Epoch <= 1 {
		return
	}
	n.showing.Go(func() {
		if err := n.show(ctx, p); err != nil && ctx.Err() == nil {
			n.slog.Debug("a machine was not shown the farm's charter", "peer", n.gate.name(p), "err", err)
		}
	})
}

// mdnsName is what peers of one farm look for on the local network.
func mdnsName(f authz.FarmID) string { return "_vizpeer-" + string(f)[:min(len(f), 16)] + "._udp" }

// HandlePeerFound is called by mDNS, from its own goroutine.
func (n *neighbours) HandlePeerFound(p peer.AddrInfo) {
	if p.ID == n.host.ID() || !n.gate.member(p.ID) {
		return
	}
	addPeer(n.host, p)
	dialAnew(n.host, p.ID)
	n.mu.Lock()
	if id := peerOf(p.ID); n.known[id] == nil {
		n.known[id] = texts(p.Addrs) // who leads goes to it: it may not know whom to go to
	}
	n.mu.Unlock()
	n.slog.Debug("found on the local network", "peer", n.gate.name(p.ID))
	n.hope()
}

// hope has the leader looked for at once where there is none: somebody who leads,
// or may know who does, has come within reach.
func (n *neighbours) hope() {
	if n.link.Current() == "" {
		n.link.Nudge()
	}
}

// identified remembers where a member that has just connected listens.
func (n *neighbours) identified(e event.EvtPeerIdentificationCompleted) {
	if !n.gate.member(e.Peer) {
		return
	}
	defer n.hope()
	addrs := texts(e.ListenAddrs)
	if len(addrs) == 0 {
		return
	}
	addPeer(n.host, peer.AddrInfo{ID: e.Peer, Addrs: e.ListenAddrs})
	n.mu.Lock()
	defer n.mu.Unlock()
	id := authz.PeerID(e.Peer.String())
	var gone []multiaddr.Multiaddr
	for _, old := range info(coord.Addr{Peer: id, Addrs: n.known[id]}).Addrs {
		switch {
		case slices.Contains(addrs, old.String()):
		// Over the internet nobody is told addresses that are good on a local network.
		case e.Conn != nil && manet.IsPublicAddr(e.Conn.RemoteMultiaddr()) && !manet.IsPublicAddr(old) && len(addrs) < coord.MaxAddrs:
			addrs = append(addrs, old.String())
		default: // such as by a relay that it has left
			gone = append(gone, old)
		}
	}
	n.host.Peerstore().SetAddrs(e.Peer, gone, 0)
	if slices.Equal(n.known[id], addrs) {
		return
	}
	n.known[id] = addrs
	if err := n.dir.writeJSON("addrs.json", maps.Clone(n.known), 0o600); err != nil {
		n.slog.Warn("where peers are could not be remembered", "err", err)
	}
}

// How many members are dialled at a time and for how long, and how many a machine
// that finds no leader wants to be connected with: a few, since through them any
// other can be found, and a thousand such machines must not all dial each other.
const (
	dialling = 16
	dialTime = 5 * time.Second
	company  = 8
)

// Seek connects with members that stay away, until ctx ends. They look for the
// leader where it was last, and one that has another address now must come to them:
// whoever leads dials all that are not connected. A machine without a leader, which
// may be looking in the wrong place, dials a few, who may know more.
func (n *neighbours) Seek(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, time.Minute
	for {
		leader, changed := n.link.Watch()
		select {
		case <-time.After(pause.NextBackOff()):
			n.dial(ctx, n.wanted(leader))
		case <-changed:
			pause.Reset()
		case <-ctx.Done():
			return nil
		}
	}
}

// wanted chooses whom to dial under this leader, "" for none. Without one it leaves
// out the coordinators, whom the link asks anyway.
func (n *neighbours) wanted(leader peer.ID) []peer.ID {
	var away []peer.ID
	room := company
	n.mu.Lock()
	ids := slices.Collect(maps.Keys(n.known))
	n.mu.Unlock()
	for _, id := range ids {
		switch p, err := peer.Decode(string(id)); {
		case err != nil || p == n.host.ID() || !n.gate.member(p):
		case n.host.Network().Connectedness(p) == network.Connected:
			room--
		case leader != "" || !n.gate.coordinator(id):
			away = append(away, p)
		}
	}
	switch leader {
	case n.host.ID():
		return away
	case "":
		rand.Shuffle(len(away), func(i, j int) { away[i], away[j] = away[j], away[i] })
		return away[:min(len(away), max(0, room))]
	}
	return nil
}

// dial tries to connect with each of them, where they were last.
func (n *neighbours) dial(ctx context.Context, ids []peer.ID) {
	var g errgroup.Group
	g.SetLimit(dialling)
	for _, p := range ids {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, dialTime)
			defer cancel()
			dialAnew(n.host, p)
			if _, err := n.host.Network().DialPeer(ctx, p); err != nil {
				n.slog.Debug("a member stays away", "peer", n.gate.name(p), "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // nobody fails
}

// addPeer lets the host dial p under these addresses from now on.
func addPeer(h host.Host, p peer.AddrInfo) {
	if p.ID != h.ID() && len(p.Addrs) > 0 {
		h.Peerstore().AddAddrs(p.ID, p.Addrs, peerstore.PermanentAddrTTL)
	}
}

// info reads an address as libp2p wants it. What cannot be read is left out: it
// came from another peer.
func info(a coord.Addr) peer.AddrInfo {
	id, err := peer.Decode(string(a.Peer))
	if err != nil {
		return peer.AddrInfo{}
	}
	p := peer.AddrInfo{ID: id}
	for _, text := range a.Addrs {
		if m, err := multiaddr.NewMultiaddr(text); err == nil {
			p.Addrs = append(p.Addrs, m)
		}
	}
	return p
}

func infos(addrs []coord.Addr) []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, a := range addrs {
		if p := info(a); p.ID != "" {
			out = append(out, p)
		}
	}
	return out
}

// multiaddrs reads addresses that a person wrote.
func multiaddrs(texts []string) ([]multiaddr.Multiaddr, error) {
	var out []multiaddr.Multiaddr
	for _, text := range texts {
		m, err := multiaddr.NewMultiaddr(text)
		if err != nil {
			return nil, fmt.Errorf("the address to announce %q: %w", text, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// loopback tells whether others than this machine's own programs cannot reach any of
// these addresses.
func loopback(listen []string) bool {
	return !slices.ContainsFunc(listen, func(a string) bool {
		m, err := multiaddr.NewMultiaddr(a)
		return err == nil && !manet.IsIPLoopback(m)
	})
}

func texts(addrs []multiaddr.Multiaddr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// Known is where members were reached last.
func (n *neighbours) Known() map[authz.PeerID][]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.known)
}
