package peer

import (
	"context"
	"crypto/rand"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	dialler "github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

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
		_, err := a.exchange(t.Context(), gone, true)
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
