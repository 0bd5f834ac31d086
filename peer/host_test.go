package peer

import (
	"context"
	"crypto/rand"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	dialler "github.com/libp2p/go-libp2p/p2p/net/swarm"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// Why somebody could not be dialled is told in a line for each address, and the
// second try tells the same.
func TestDialErrors(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	view := rosterOf(t, "hub")
	h, err := newHost(key, newGate("", view.Farm(), nil), []string{"/ip4/127.0.0.1/tcp/0"})
	require.NoError(t, err)
	defer h.Close()
	gone := libp2ppeer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} // an address that was listened on
	require.NoError(t, h.Close())

	other, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	h, err = newHost(other, newGate("", view.Farm(), nil), nil)
	require.NoError(t, err)
	defer h.Close()
	a := applicant{host: h}
	for range 2 {
		_, _, err := a.exchange(t.Context(), gone, true)
		require.Regexp(t, `^127\.0\.0\.1:\d+: .*refused[^\n]*$`, err.Error())
	}

	// What libp2p makes of many.
	quic, tcp := multiaddr.StringCast("/ip4/192.0.2.7/udp/8788/quic-v1"), multiaddr.StringCast("/ip6/2001:db8::7/tcp/8788")
	err = &dialError{libp2ppeer.AddrInfo{ID: gone.ID, Addrs: []multiaddr.Multiaddr{quic, tcp}}, &dialler.DialError{
		Peer: gone.ID, Cause: dialler.ErrAllDialsFailed, DialErrors: []dialler.TransportError{{Address: quic, Cause: context.DeadlineExceeded}},
	}}
	require.EqualError(t, err, "192.0.2.7:8788 (QUIC): no answer in time\n[2001:db8::7]:8788: all dials failed")
	err = &dialError{libp2ppeer.AddrInfo{ID: gone.ID, Addrs: []multiaddr.Multiaddr{tcp}}, context.DeadlineExceeded}
	require.EqualError(t, err, "[2001:db8::7]:8788: no answer in time")
	err = &dialError{libp2ppeer.AddrInfo{ID: gone.ID}, dialler.ErrNoAddresses}
	require.EqualError(t, err, authz.PeerID(gone.ID.String()).Short()+": no address is known")
}

// identities are those of n machines.
func identities(t *testing.T, n int) (keys []crypto.PrivKey, ids []authz.PeerID) {
	t.Helper()
	for range n {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		id, err := libp2ppeer.IDFromPrivateKey(key)
		require.NoError(t, err)
		keys, ids = append(keys, key), append(ids, authz.PeerID(id.String()))
	}
	return keys, ids
}

// A large farm's members are all connected to one machine at once, each with a stream.
func TestManyMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: hundreds of hosts")
	}
	const members = 300
	keys, ids := identities(t, members+1)
	view := rosterOf(t, ids...)
	hub, err := newHost(keys[0], newGate(ids[0], view.Farm(), view), []string{"/ip4/127.0.0.1/tcp/0"})
	require.NoError(t, err)
	defer hub.Close()
	hub.SetStreamHandler("/test/1", func(s network.Stream) { _, _ = io.Copy(s, s) })
	streams := make([]network.Stream, members)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range members {
		group.Go(func() error {
			h, err := libp2p.New(libp2p.Identity(keys[i+1]), libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(tls.ID, tls.New), libp2p.ResourceManager(&network.NullResourceManager{}))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = h.Close() })
			h.Peerstore().AddAddrs(hub.ID(), hub.Addrs(), time.Hour)
			// A handshake may run out of time on a busy machine. Where there is no room for the
			// connection it fails each time.
			for range 5 {
				if streams[i], err = h.NewStream(t.Context(), hub.ID(), "/test/1"); err == nil {
					break
				}
				dialAnew(h, hub.ID())
			}
			return err
		})
	}
	require.NoError(t, group.Wait())
	hub.ConnManager().TrimOpenConns(t.Context())
	for i, s := range streams {
		_ = s.SetDeadline(time.Now().Add(time.Minute))
		_, err := s.Write([]byte{byte(i)})
		require.NoError(t, err)
		var b [1]byte
		_, err = io.ReadFull(s, b[:])
		require.NoError(t, err)
		require.Equal(t, byte(i), b[0])
	}
	require.Len(t, hub.Network().Peers(), members)
}

// A member that opens thousands of streams, or many connections, gets so many and no
// more, and others are served.
func TestGreedyMember(t *testing.T) {
	keys, ids := identities(t, 3)
	view := rosterOf(t, ids...)
	hub, err := newHost(keys[0], newGate(ids[0], view.Farm(), view), []string{"/ip4/127.0.0.1/tcp/0"})
	require.NoError(t, err)
	defer hub.Close()
	var open atomic.Int32
	serve := func(s network.Stream) {
		open.Add(1)
		defer open.Add(-1)
		_, _ = io.Copy(s, s)
		_ = s.Reset()
	}
	for p := range perMember {
		hub.SetStreamHandler(p, serve)
	}
	hub.SetStreamHandler("/test/1", serve)
	raw := func(i int) host.Host {
		h, err := libp2p.New(libp2p.Identity(keys[i]), libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(tls.ID, tls.New), libp2p.ResourceManager(&network.NullResourceManager{}))
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		h.Peerstore().AddAddrs(hub.ID(), hub.Addrs(), time.Hour)
		return h
	}
	echoes := func(s network.Stream, err error) bool {
		if err != nil {
			return false
		}
		_ = s.SetDeadline(time.Now().Add(10 * time.Second))
		var b [1]byte
		if _, err := s.Write([]byte{7}); err != nil {
			return false
		}
		_, err = io.ReadFull(s, b[:])
		return err == nil
	}
	greedy, modest := raw(1), raw(2)
	for p, limit := range perMember {
		served := 0
		var streams []network.Stream
		for range 2 * limit {
			s, err := greedy.NewStream(t.Context(), hub.ID(), p)
			if echoes(s, err) {
				served++
			}
			if err == nil {
				streams = append(streams, s)
			}
		}
		require.Equal(t, limit, served, p)
		s, err := modest.NewStream(t.Context(), hub.ID(), p)
		require.True(t, echoes(s, err), "%s: another is served meanwhile", p)
		for _, s := range append(streams, s) {
			_ = s.Reset()
		}
		require.Eventually(t, func() bool { return open.Load() == 0 }, 10*time.Second, 10*time.Millisecond)
	}

	// As one machine, by whatever protocols and connections it tries.
	var conns, served int
	for range 20 {
		h := raw(1)
		for range 200 {
			s, err := h.NewStream(t.Context(), hub.ID(), "/test/1")
			if !echoes(s, err) {
				break
			}
			served++
		}
	}
	for _, c := range hub.Network().ConnsToPeer(greedy.ID()) {
		if !c.IsClosed() {
			conns++
		}
	}
	require.LessOrEqual(t, conns, 8)
	require.LessOrEqual(t, served, 512)
	require.Greater(t, served, 64)
	s, err := modest.NewStream(t.Context(), hub.ID(), httpapi.Protocol)
	require.True(t, echoes(s, err), "another is served meanwhile")
}

// Strangers have little room on a coordinator, those of one address less, and none on
// other machines. Members are not kept out by them.
func TestStrangersHaveLittleRoom(t *testing.T) {
	keys, ids := identities(t, maxStrangersFrom+9)
	view := rosterOf(t, ids[:3]...)
	require.True(t, view.IsCoordinator(ids[0]))
	open := func(i int) host.Host {
		h, err := newHost(keys[i], newGate(ids[i], view.Farm(), view), []string{"/ip4/127.0.0.1/tcp/0"})
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		return h
	}
	coordinator, box := open(0), open(1)
	connect := func(i int, to host.Host) {
		h, err := libp2p.New(libp2p.Identity(keys[i]), libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(tls.ID, tls.New), libp2p.ResourceManager(&network.NullResourceManager{}))
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		_ = h.Connect(t.Context(), libp2ppeer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}) // it may be told later that it was refused
	}
	var group errgroup.Group
	group.SetLimit(4)
	for i := 3; i < len(ids); i++ {
		group.Go(func() error { connect(i, coordinator); return nil })
	}
	require.NoError(t, group.Wait())
	require.Eventually(t, func() bool { return len(coordinator.Network().Conns()) == maxStrangersFrom }, 10*time.Second, 10*time.Millisecond)
	connect(3, box)
	connect(2, box)
	connect(2, coordinator)
	member := libp2ppeer.ID("")
	for _, c := range box.Network().Conns() {
		require.Equal(t, string(ids[2]), c.RemotePeer().String())
		member = c.RemotePeer()
	}
	require.NotEmpty(t, member)
	require.Equal(t, network.Connected, coordinator.Network().Connectedness(member))
}

// A stranger that became a member, and stays connected, takes no stranger's room.
func TestFormerStrangersTakeNoRoom(t *testing.T) {
	keys, ids := identities(t, maxStrangersFrom+2)
	g := newGate(ids[0], "", rosterOf(t, ids[0]))
	coordinator, err := newHost(keys[0], g, []string{"/ip4/127.0.0.1/tcp/0"})
	require.NoError(t, err)
	defer coordinator.Close()
	connect := func(i int) {
		h, err := libp2p.New(libp2p.Identity(keys[i]), libp2p.NoListenAddrs, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(tls.ID, tls.New), libp2p.ResourceManager(&network.NullResourceManager{}))
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		require.NoError(t, h.Connect(t.Context(), libp2ppeer.AddrInfo{ID: coordinator.ID(), Addrs: coordinator.Addrs()}))
	}
	last := len(ids) - 1
	for i := 1; i < last; i++ {
		connect(i)
	}
	require.Eventually(t, func() bool { return len(coordinator.Network().Conns()) == maxStrangersFrom }, 10*time.Second, 10*time.Millisecond)
	g.roster.Store(rosterOf(t, ids[:last]...))
	connect(last)
	require.Eventually(t, func() bool { return len(coordinator.Network().Conns()) == maxStrangersFrom+1 }, 10*time.Second, 10*time.Millisecond)
}
