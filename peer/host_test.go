package peer

import (
	"context"
	"crypto/rand"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	dialler "github.com/libp2p/go-libp2p/p2p/net/swarm"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
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

// A large farm's members are all connected to one machine at once, each with a stream.
func TestManyMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: hundreds of hosts")
	}
	const members = 300
	var keys []crypto.PrivKey
	var ids []authz.PeerID
	for range members + 1 {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		id, err := libp2ppeer.IDFromPrivateKey(key)
		require.NoError(t, err)
		keys, ids = append(keys, key), append(ids, authz.PeerID(id.String()))
	}
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
