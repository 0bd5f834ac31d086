package peer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	circuits "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// relayed is a farm of hosts of which one relays; nobody dials another directly.
type relayed struct {
	t     *testing.T
	hosts map[string]host.Host
	gates map[string]*gate
	keys  map[string]crypto.PrivKey
	hub   *reach
}

// relayedFarm has a coordinator, a machine that relays, two others and a stranger.
func relayedFarm(t *testing.T, turn func(context.Context, int) error) *relayed {
	names := []string{"coordinator", "hub", "a", "b", "stranger"}
	keys, ids := identities(t, len(names))
	view := rosterOf(t, ids[:4]...)
	f := &relayed{t: t, hosts: map[string]host.Host{}, gates: map[string]*gate{}, keys: map[string]crypto.PrivKey{}}
	for i, name := range names {
		g := newGate(ids[i], view.Farm(), view)
		if name == "stranger" {
			g = newGate("", view.Farm(), nil)
		}
		h, err := newHost(keys[i], g, []string{"/ip4/127.0.0.1/tcp/0"}, libp2p.EnableRelay())
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		h.SetStreamHandler("/test/echo/1", func(s network.Stream) { _, _ = io.Copy(s, s); _ = s.Close() })
		f.hosts[name], f.gates[name] = h, g
		f.keys[name] = keys[i]
	}
	f.hub = newReach(f.gates["hub"], RelayOn, nil, slog.New(slog.DiscardHandler))
	f.hub.turn, f.hub.dialBy = turn, []autonatv2.AutoNATOption{autonatv2.AllowPrivateAddrs}
	require.NoError(t, f.hub.open(f.hosts["hub"], keys[1]))
	t.Cleanup(f.hub.close)
	f.hub.settle(t.Context())
	for _, h := range f.hosts {
		h.Peerstore().AddAddrs(f.hosts["hub"].ID(), f.hosts["hub"].Addrs(), peerstore.PermanentAddrTTL)
	}
	return f
}

func noTurn(context.Context, int) error { return nil }

// reserve asks the hub for a place.
func (f *relayed) reserve(name string) error {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	_, err := circuits.Reserve(ctx, f.hosts[name], libp2ppeer.AddrInfo{ID: f.hosts["hub"].ID()})
	return err
}

// through connects one with another through a third.
func (f *relayed) through(from, by, to string) (network.Conn, error) {
	at := f.hosts[by].Addrs()[0].Encapsulate(multiaddr.StringCast("/p2p/" + f.hosts[by].ID().String() + "/p2p-circuit"))
	h, p := f.hosts[from], f.hosts[to].ID()
	h.Peerstore().ClearAddrs(p) // identify tells where it listens
	h.Peerstore().AddAddr(p, at, peerstore.PermanentAddrTTL)
	dialAnew(h, p)
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	return h.Network().DialPeer(ctx, p)
}

// echoes tells whether what one sends another comes back.
func (f *relayed) echoes(from, to string) bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	s, err := f.hosts[from].NewStream(ctx, f.hosts[to].ID(), "/test/echo/1")
	if err != nil {
		return false
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.Write([]byte("hello")); err != nil {
		return false
	}
	_ = s.CloseWrite()
	b, err := io.ReadAll(s)
	return err == nil && string(b) == "hello"
}

// The relay serves members, and leads a stranger to the coordinator and to nobody else.
func TestWhoMayBeRelayed(t *testing.T) {
	f := relayedFarm(t, noTurn)
	for name, want := range map[string]bool{"coordinator": true, "a": true, "b": true, "stranger": false} {
		require.Equal(t, want, f.reserve(name) == nil, "a place for %s", name)
	}
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"a", "b", true}, {"b", "coordinator", true}, {"coordinator", "a", true}, {"stranger", "coordinator", true}, {"stranger", "a", false}, {"stranger", "b", false},
	} {
		conn, err := f.through(c.from, "hub", c.to)
		require.Equal(t, c.want, err == nil, "%s to %s: %v", c.from, c.to, err)
		if err == nil {
			require.False(t, conn.Stat().Limited, "libp2p would open no streams over it")
			require.Equal(t, f.hosts[c.to].ID(), conn.RemotePeer())
			require.True(t, f.echoes(c.from, c.to))
		}
	}
	// As a relay the hub learns nothing and may do nothing: what is shown to a coordinator is
	// secured up to there. Strangers do not get at its own protocols either.
	require.Contains(t, f.gates["hub"].strangers, f.hosts["hub"].Network().ConnsToPeer(f.hosts["stranger"].ID())[0], "its time is short")
	require.Equal(t, hubsView{From: "public", Relays: true, Circuits: 4}, f.view())

	// Nobody is brought here by a relay that is no member.
	for _, h := range f.hosts {
		require.NoError(t, h.Network().ClosePeer(f.hosts["stranger"].ID()))
		require.NoError(t, h.Network().ClosePeer(f.hosts["coordinator"].ID()))
	}
	own, err := relay.New(f.hosts["stranger"], relay.WithInfiniteLimits())
	require.NoError(t, err)
	defer own.Close()
	require.NoError(t, f.hosts["stranger"].Connect(t.Context(), libp2ppeer.AddrInfo{ID: f.hosts["coordinator"].ID(), Addrs: f.hosts["coordinator"].Addrs()}))
	f.gates["a"].roster.Store(nil) // it would dial anybody
	_, err = circuits.Reserve(t.Context(), f.hosts["coordinator"], libp2ppeer.AddrInfo{ID: f.hosts["stranger"].ID()})
	require.NoError(t, err)
	_, err = f.through("a", "stranger", "coordinator")
	require.Error(t, err)
}

// hubsView is what the relay says of itself.
type hubsView struct {
	From     string
	Relays   bool
	Circuits int
}

func (f *relayed) view() hubsView {
	s := f.hub.state()
	return hubsView{s.From, s.Relays, s.Circuits}
}

// A machine that was removed loses its place and its circuits with its connection, and
// gets no other.
func TestRemovedMachineIsRelayedNoMore(t *testing.T) {
	f := relayedFarm(t, noTurn)
	require.NoError(t, f.reserve("a"))
	require.NoError(t, f.reserve("b"))
	_, err := f.through("a", "hub", "b")
	require.NoError(t, err)
	stays := rosterOf(t, peerOf(f.hosts["coordinator"].ID()), peerOf(f.hosts["hub"].ID()), peerOf(f.hosts["b"].ID()))
	for _, name := range []string{"coordinator", "hub", "b"} {
		f.gates[name].roster.Store(stays)
	}
	require.NoError(t, f.hosts["hub"].Network().ClosePeer(f.hosts["a"].ID())) // as the new roster has it
	require.Eventually(t, func() bool {
		return f.view().Circuits == 0 && f.hosts["b"].Network().Connectedness(f.hosts["a"].ID()) == network.NotConnected &&
			f.hosts["a"].Network().Connectedness(f.hosts["b"].ID()) == network.NotConnected
	}, 5*time.Second, 10*time.Millisecond)
	require.Error(t, f.reserve("a"))
	_, err = f.through("a", "hub", "b")
	require.Error(t, err)
	_, err = f.through("b", "hub", "a")
	require.Error(t, err)
}

// What a relay passes on waits for its turn under the cap on what the machine sends, and
// there are so many circuits and no more.
func TestRelayIsBounded(t *testing.T) {
	turns := make(chan int, 1024)
	f := relayedFarm(t, func(_ context.Context, n int) error { turns <- n; return nil })
	require.NoError(t, f.reserve("b"))
	_, err := f.through("a", "hub", "b")
	require.NoError(t, err)
	require.True(t, f.echoes("a", "b"))
	sum := 0
	for len(turns) > 0 {
		n := <-turns
		require.LessOrEqual(t, n, circuitBuffer)
		sum += n
	}
	require.Greater(t, sum, 1000, "a handshake and what was said")

	f.hub.serving.circuits.Add(maxCircuits)
	require.False(t, f.hub.serving.AllowConnect(f.hosts["a"].ID(), nil, f.hosts["b"].ID()))
	f.hub.serving.circuits.Add(-maxCircuits)
	require.True(t, f.hub.serving.AllowConnect(f.hosts["a"].ID(), nil, f.hosts["b"].ID()))
}

// A machine that is not reached keeps a place with the relay, asks for it anew when the
// relay was away, and gives it up once it is reached itself.
func TestPlaces(t *testing.T) {
	f := relayedFarm(t, noTurn)
	r := newReach(f.gates["a"], RelayOff, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, r.open(f.hosts["a"], f.keys["a"]))
	t.Cleanup(r.close)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() { stop(); require.NoError(t, <-ended) }()
	hub := f.hosts["hub"].ID()
	through := func(want ...authz.PeerID) func() bool {
		return func() bool { return slices.Equal(r.state().Through, want) }
	}
	require.Empty(t, r.state().Through)
	r.offered(hub, true)
	require.Eventually(t, through(peerOf(hub)), 5*time.Second, 10*time.Millisecond)
	_, err := f.through("b", "hub", "a")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return r.via(peerOf(f.hosts["b"].ID())) == peerOf(hub) && r.state().Relayed == 1
	}, 5*time.Second, 10*time.Millisecond)

	// It comes back by itself: the place is asked for with every connection.
	require.NoError(t, f.hosts["hub"].Network().ClosePeer(f.hosts["a"].ID()))
	require.Eventually(t, func() bool {
		_, err := f.through("b", "hub", "a")
		return err == nil
	}, 10*time.Second, 100*time.Millisecond)
	require.Eventually(t, through(peerOf(hub)), 5*time.Second, 10*time.Millisecond)

	r.mu.Lock()
	r.proven = []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/45.10.0.9/tcp/8788")}
	r.mu.Unlock()
	wake(r.holding)
	require.Eventually(t, through(), 5*time.Second, 10*time.Millisecond)
}

// Members dial members back under their own names; a stranger is answered nothing, though
// a coordinator lets it in.
func TestDialbackIsForMembers(t *testing.T) {
	f := relayedFarm(t, noTurn)
	a, hub, stranger := f.hosts["a"], f.hosts["hub"], f.hosts["stranger"]
	for _, h := range []host.Host{a, stranger} {
		require.NoError(t, h.Connect(t.Context(), libp2ppeer.AddrInfo{ID: hub.ID(), Addrs: hub.Addrs()}))
	}
	// Members that are connected speak with each other.
	talk, err := a.NewStream(t.Context(), hub.ID(), "/test/echo/1")
	require.NoError(t, err)
	defer talk.Reset()
	more, err := a.NewStream(t.Context(), hub.ID(), "/test/echo/1")
	require.NoError(t, err)
	defer more.Reset()
	s, err := stranger.NewStream(t.Context(), hub.ID(), autonatv2.DialProtocol)
	if err == nil {
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = s.Write([]byte{0})
		_, err = s.Read(make([]byte, 1))
	}
	require.Error(t, err)

	// Loopback is nothing that anybody elsewhere could dial, and is refused as such.
	d := &dialback{host: membersOnly{a, f.gates["a"]}, dials: a}
	_, err = d.ask(t.Context(), hub.ID(), []autonatv2.Request{{Addr: a.Addrs()[0]}})
	require.ErrorIs(t, err, autonatv2.ErrPrivateAddrs)

	// Where that is allowed for the sake of a test, the answer is as it is.
	d, err = newDialback(a, f.gates["a"], f.keys["a"], autonatv2.AllowPrivateAddrs)
	require.NoError(t, err)
	defer d.close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := multiaddr.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", nobody.Addr().(*net.TCPAddr).Port))
	require.NoError(t, nobody.Close())
	for range 3 { // nobody is left alone for long
		for _, c := range []struct {
			at   multiaddr.Multiaddr
			want network.Reachability
		}{{a.Addrs()[0], network.ReachabilityPublic}, {closed, network.ReachabilityPrivate}} {
			got, err := d.ask(t.Context(), hub.ID(), []autonatv2.Request{{Addr: c.at, SendDialData: true}})
			require.NoError(t, err)
			require.Equal(t, c.want, got.Reachability, "%s", c.at)
		}
	}
}
