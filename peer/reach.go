package peer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	hops "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// Relay says whether a machine passes on what members behind a NAT say to each other.
type Relay string

const (
	RelayAuto Relay = "auto" // where others reach it from anywhere
	RelayOn   Relay = "on"   // always: somebody knows that all others reach it
	RelayOff  Relay = "off"
)

// reach makes this machine reachable for members that are not on its local network.
// It finds out by their help whether it can be dialled from anywhere (see [dialback]).
// If so, it passes on what others say ([relaying]); if not, it keeps a place with members
// that do, and is reached through them, until a hole in both NATs is found ([punching]).
// Nothing here asks anybody but members, and the router for a port.
type reach struct {
	gate  *gate
	mode  Relay
	named []multiaddr.Multiaddr // addresses that somebody knows to work
	slog  *slog.Logger
	// told is called when what others should know of this machine has changed.
	told func()
	// turn waits until so many bytes of others may be sent; see [relaying].
	turn func(context.Context, int) error

	host    host.Host // libp2p's own; nil where nothing of this runs
	finds   host.Host // as host, and finds members whose address is not known
	asks    *dialback
	dialBy  []autonatv2.AutoNATOption
	punch   *holepunch.Service
	changed event.Emitter
	events  event.Subscription
	probing chan struct{} // a reason to look at once
	holding chan struct{}

	mu       sync.Mutex
	observed map[peer.ID]multiaddr.Multiaddr // as members elsewhere see this machine
	found    map[string]dialled              // by address
	proven   []multiaddr.Multiaddr           // where this machine was dialled from elsewhere
	silent   map[peer.ID]time.Time           // members that could not tell when asked
	offers   map[peer.ID]bool                // members that say they relay
	places   map[peer.ID]place               // with relays
	refused  map[peer.ID]time.Time
	looked   map[peer.ID]time.Time // see reobserve
	service  *relay.Relay          // nil while this machine does not relay
	serving  *relaying
}

// dialled is what was found of an address.
type dialled struct {
	public bool
	misses int
	next   time.Time
}

// How often an address that works, and one that does not, is tried again, how often one
// that seems to work no more, and how long nothing is asked where nobody could answer.
const (
	provenLasts = 30 * time.Minute
	failedLasts = 15 * time.Minute
	doubtLasts  = 3 * time.Minute
	askPause    = 30 * time.Second
	askSettle   = 500 * time.Millisecond // several addresses are learnt at once
)

// newReach is for a machine that tells others the addresses named beside those it finds.
func newReach(g *gate, mode Relay, named []multiaddr.Multiaddr, log *slog.Logger) *reach {
	return &reach{
		gate: g, mode: cmp.Or(mode, RelayAuto), named: named, slog: log, told: func() {}, turn: func(context.Context, int) error { return nil },
		probing: make(chan struct{}, 1), holding: make(chan struct{}, 1),
		observed: make(map[peer.ID]multiaddr.Multiaddr), found: make(map[string]dialled), silent: make(map[peer.ID]time.Time), offers: make(map[peer.ID]bool),
		places: make(map[peer.ID]place), refused: make(map[peer.ID]time.Time), looked: make(map[peer.ID]time.Time),
	}
}

// options are what the host must be made with.
func (r *reach) options(portMapping bool) []libp2p.Option {
	o := []libp2p.Option{libp2p.EnableRelay(), libp2p.AddrsFactory(r.addrs)}
	if portMapping {
		o = append(o, libp2p.NATPortMap()) // it looks for a router by itself, and nothing waits for it
	}
	return o
}

// open answers members that ask to be dialled back, and digs holes. close is to be called
// before the host is closed.
func (r *reach) open(h host.Host, key crypto.PrivKey) (err error) {
	r.host, r.finds = h, h
	if r.changed, err = h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated)); err != nil {
		return err
	}
	if r.asks, err = newDialback(h, r.gate, key, r.dialBy...); err != nil {
		return err
	}
	// Whoever connects before Run is not missed.
	if r.events, err = h.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerConnectednessChanged), new(event.EvtLocalAddressesUpdated), new(event.EvtPeerProtocolsUpdated),
	}, eventbus.BufSize(1024)); err != nil {
		return err
	}
	ids, ok := h.(interface{ IDService() identify.IDService })
	if !ok {
		return errors.New("the network library has no identify service: holes cannot be punched")
	}
	r.punch, err = holepunch.NewService(h, ids.IDService(), r.punchable, holepunch.DirectDialTimeout(punchTime))
	return err
}

func (r *reach) close() {
	if r.punch != nil {
		_ = r.punch.Close()
	}
	if r.asks != nil {
		r.asks.close()
	}
	if r.events != nil {
		_ = r.events.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serve(context.Background(), false)
}

// addrs are this machine's addresses as others are told them, of which libp2p knows some.
func (r *reach) addrs(known []multiaddr.Multiaddr) []multiaddr.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Concat(known, r.named, r.proven)
	for _, p := range r.places {
		out = append(out, p.addrs...)
	}
	return out
}

// announce has libp2p tell everybody connected that addresses have changed.
func (r *reach) announce() {
	_ = r.changed.Emit(event.EvtAutoRelayAddrsUpdated{}) // a reason to ask addrs anew
	r.told()
}

// Run keeps this machine reachable until ctx ends.
func (r *reach) Run(ctx context.Context) error {
	if r.host == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	r.settle(ctx)
	g.Go(func() error { r.watch(ctx); return nil })
	g.Go(func() error { r.probe(ctx); return nil })
	g.Go(func() error { r.hold(ctx); return nil })
	g.Go(func() error { r.shorten(ctx); return nil })
	return g.Wait()
}

// watch learns from every member that connects how it sees this machine.
func (r *reach) watch(ctx context.Context) {
	for {
		select {
		case e, ok := <-r.events.Out():
			if !ok {
				return
			}
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				r.identified(e)
			case event.EvtPeerConnectednessChanged:
				if e.Connectedness == network.NotConnected {
					r.parted(e.Peer)
				}
			case event.EvtPeerProtocolsUpdated:
				wake(r.holding) // it may have begun to relay
			case event.EvtLocalAddressesUpdated:
				wake(r.probing)
			}
		case <-ctx.Done():
			return
		}
	}
}

// identified takes in what p said of itself and of this machine.
func (r *reach) identified(e event.EvtPeerIdentificationCompleted) {
	if !r.gate.member(e.Peer) || e.Conn == nil {
		return
	}
	if slices.Contains(e.Protocols, hops.ProtoIDv2Hop) {
		r.mu.Lock()
		if at, yes := r.places[e.Peer]; yes { // it may be connected anew, or have other addresses
			at.due = time.Time{}
			r.places[e.Peer] = at
		}
		r.mu.Unlock()
		wake(r.holding)
	}
	r.saw(e.Peer, e.Conn.RemoteMultiaddr(), e.ObservedAddr)
}

// saw notes that p, which is at that address, sees this machine at the address seen.
func (r *reach) saw(p peer.ID, at, seen multiaddr.Multiaddr) {
	if circuit(at) || !manet.IsPublicAddr(at) || seen == nil || circuit(seen) || !manet.IsPublicAddr(seen) ||
		addressOf(seen) == addressOf(at) { // the same NAT, or the same network
		return
	}
	r.mu.Lock()
	if old := r.observed[p]; old == nil || !byQUIC(old) || byQUIC(seen) {
		r.observed[p] = seen
	}
	delete(r.silent, p)
	r.mu.Unlock()
	wake(r.probing)
}

// parted forgets what p knew.
func (r *reach) parted(p peer.ID) {
	r.mu.Lock()
	_, held := r.places[p]
	delete(r.observed, p)
	delete(r.silent, p)
	delete(r.looked, p)
	delete(r.places, p)
	r.mu.Unlock()
	if held {
		r.announce()
	}
	wake(r.holding)
}

// candidates are the addresses at which this machine may be reached from elsewhere: those
// that it has or that its router gave it, and, for a port that somebody had forwarded, the
// ports it listens on at the address that others see. Those by TCP come first, which is
// what firewalls let through if anything.
func (r *reach) candidates() []multiaddr.Multiaddr {
	var out []multiaddr.Multiaddr
	if all, ok := r.host.(interface{ AllAddrs() []multiaddr.Multiaddr }); ok {
		out = slices.DeleteFunc(all.AllAddrs(), func(m multiaddr.Multiaddr) bool { return circuit(m) || !manet.IsPublicAddr(m) })
	}
	r.mu.Lock()
	for _, seen := range r.observed {
		at, _ := multiaddr.SplitFirst(seen)
		for _, l := range r.host.Network().ListenAddresses() {
			if on, rest := multiaddr.SplitFirst(l); at != nil && on != nil && len(rest) > 0 && on.Protocol().Code == at.Protocol().Code && !manet.IsIPLoopback(l) {
				out = append(out, at.Multiaddr().Encapsulate(rest))
			}
		}
	}
	r.mu.Unlock()
	out = multiaddr.Unique(out)
	slices.SortStableFunc(out, func(a, b multiaddr.Multiaddr) int {
		quic := map[bool]int{true: 1}
		return cmp.Or(cmp.Compare(quic[byQUIC(a)], quic[byQUIC(b)]), a.Compare(b))
	})
	return out[:min(len(out), maxCandidates)]
}

// maxCandidates is how many addresses are tried.
const maxCandidates = 8

// probe has members dial this machine at addresses of which it is not known, or was not
// for long, whether they work.
func (r *reach) probe(ctx context.Context) {
	for {
		due, wait := r.due(time.Now())
		if len(due) > 0 {
			wait = r.try(ctx, due)
		}
		select {
		case <-r.probing:
			select {
			case <-time.After(askSettle):
			case <-ctx.Done():
				return
			}
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		r.settle(ctx)
	}
}

// due are the addresses to try now, and how long there is time otherwise.
func (r *reach) due(now time.Time) (out []autonatv2.Request, wait time.Duration) {
	candidates := r.candidates()
	r.mu.Lock()
	defer r.mu.Unlock()
	wait = provenLasts
	for _, a := range candidates {
		if next := r.found[a.String()].next; now.Before(next) {
			wait = min(wait, next.Sub(now))
		} else {
			out = append(out, autonatv2.Request{Addr: a, SendDialData: true})
		}
	}
	return out, wait
}

// witness is a member elsewhere that may be asked, or "" and how long until one may be.
func (r *reach) witness(now time.Time) (p peer.ID, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait = provenLasts
	for p := range r.observed {
		until := r.silent[p].Add(askPause)
		if !now.Before(until) {
			return p, 0
		}
		wait = min(wait, until.Sub(now))
	}
	return "", wait
}

// try has the first of these tried that somebody can dial, and answers when to go on.
func (r *reach) try(ctx context.Context, due []autonatv2.Request) time.Duration {
	p, wait := r.witness(time.Now())
	if p == "" {
		return wait
	}
	result, err := r.asks.ask(ctx, p, due)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.slog.Debug("a member could not tell whether this machine is reachable", "peer", r.gate.name(p), "err", err)
		r.silent[p] = now
		return 0
	case result.AllAddrsRefused:
		for _, d := range due {
			r.found[d.Addr.String()] = dialled{next: now.Add(failedLasts)}
		}
		return 0
	}
	v := r.found[result.Addr.String()]
	switch {
	case result.Reachability == network.ReachabilityPublic:
		v = dialled{public: true, next: now.Add(provenLasts)}
	case v.public && v.misses == 0: // one that could not reach it may be cut off itself
		v.misses, v.next = 1, now.Add(doubtLasts)
	default:
		v = dialled{next: now.Add(failedLasts)}
	}
	r.found[result.Addr.String()] = v
	r.slog.Debug("this machine was dialled back", "at", result.Addr, "by", r.gate.name(p), "reached", v.public)
	return 0
}

// settle draws the conclusions from what was found.
func (r *reach) settle(ctx context.Context) {
	var proven []multiaddr.Multiaddr
	candidates := r.candidates()
	r.mu.Lock()
	for _, a := range candidates {
		if r.found[a.String()].public {
			proven = append(proven, a)
		}
	}
	is := make(map[string]bool, len(candidates))
	for _, a := range candidates {
		is[a.String()] = true
	}
	for a := range r.found {
		if !is[a] {
			delete(r.found, a)
		}
	}
	changed := !slices.EqualFunc(proven, r.proven, multiaddr.Multiaddr.Equal)
	if changed {
		r.slog.Info("where this machine is reached from anywhere", "addresses", texts(proven))
	}
	r.proven = proven
	changed = r.serve(ctx, r.mode == RelayOn || r.mode == RelayAuto && len(proven) > 0) || changed
	r.mu.Unlock()
	if changed {
		wake(r.holding)
		r.announce()
	}
}

// serve begins or ends to relay, and tells whether that was a change. r.mu is held.
func (r *reach) serve(ctx context.Context, on bool) (changed bool) {
	switch {
	case on && r.service == nil:
		service, serving, err := relayFor(ctx, r.host, r.gate, r.turn)
		if err != nil {
			r.slog.Warn("this machine cannot relay for others", "err", err)
			return false
		}
		r.service, r.serving = service, serving
		r.gate.relays.Store(true)
		r.slog.Info("this machine relays for members that cannot be reached")
		return true
	case !on && r.service != nil:
		r.gate.relays.Store(false)
		_ = r.service.Close()
		r.service, r.serving = nil, nil
		return true
	}
	return false
}

// public tells whether others reach this machine by themselves, as far as is known.
func (r *reach) public() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mode == RelayOn || len(r.proven) > 0 || len(r.named) > 0
}

// translated tells whether others see this machine at an address that is not its own.
func (r *reach) translated() bool {
	own := make(map[netip.Addr]bool)
	for _, a := range ownAddrs() {
		own[a] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seen := range r.observed {
		if ip, err := manet.ToIP(seen); err == nil {
			if a, ok := netip.AddrFromSlice(ip); ok && !own[a.Unmap()] {
				return true
			}
		}
	}
	return false
}

func byQUIC(m multiaddr.Multiaddr) bool {
	_, err := m.ValueForProtocol(multiaddr.P_QUIC_V1)
	return err == nil
}

// wake leaves a reason to look.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// via is the relay through which this machine is connected with a member; "" where it
// needs none.
func (r *reach) via(id authz.PeerID) authz.PeerID {
	p, err := peer.Decode(string(id))
	if err != nil || r.host == nil || r.direct(p) {
		return ""
	}
	for _, c := range r.host.Network().ConnsToPeer(p) {
		if relay, yes := relayOf(c.RemoteMultiaddr()); yes && !c.IsClosed() {
			return peerOf(relay)
		}
	}
	return ""
}

// state is how others reach this machine, for people.
func (r *reach) state() (s httpapi.Reach) {
	if r.host == nil {
		return s
	}
	s.From, s.Relays = r.says()
	for _, p := range r.host.Network().Peers() {
		if r.gate.member(p) && r.via(peerOf(p)) != "" {
			s.Relayed++
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.At = texts(slices.Concat(r.named, r.proven))
	for p := range r.places {
		s.Through = append(s.Through, peerOf(p))
	}
	slices.Sort(s.Through)
	if r.serving != nil {
		s.Circuits = int(r.serving.circuits.Load())
	}
	return s
}

// says is what this machine tells others of it: see [lease.Capability].
func (r *reach) says() (how string, relays bool) {
	if r.host == nil {
		return "", false
	}
	switch {
	case r.public():
		how = lease.ReachPublic
	case r.translated():
		how = lease.ReachNAT
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return how, r.service != nil
}
