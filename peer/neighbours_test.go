package peer

import (
	"context"
	"crypto/rand"
	"log/slog"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// Whoever leads dials all that stay away. Who finds no leader dials a few, however
// many there are, and who has one dials nobody.
func TestWhomToDial(t *testing.T) {
	var keys []crypto.PrivKey
	var ids []libp2ppeer.ID
	var names []authz.PeerID
	known := make(map[authz.PeerID][]string)
	for range 100 {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		id, err := libp2ppeer.IDFromPrivateKey(key)
		require.NoError(t, err)
		keys, ids, names = append(keys, key), append(ids, id), append(names, authz.PeerID(id.String()))
		known[names[len(names)-1]] = []string{"/ip4/127.0.0.1/tcp/9"}
	}
	view := rosterOf(t, names[:90]...) // the others are members no more
	at := func(i int) *neighbours {
		g := newGate(names[i], view.Farm(), view)
		h, err := newHost(keys[i], g, []string{"/ip4/127.0.0.1/tcp/0"})
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		return &neighbours{host: h, gate: g, known: known}
	}
	founder, box := at(0), at(1)
	require.ElementsMatch(t, ids[1:90], founder.wanted(ids[0]))
	require.Empty(t, founder.wanted(ids[1]))
	require.Empty(t, box.wanted(ids[0]))

	few := box.wanted("")
	require.Len(t, few, company)
	require.NotContains(t, few, ids[0], "the link asks the coordinators")
	require.Subset(t, ids[2:90], few)

	require.NoError(t, box.host.Connect(t.Context(), libp2ppeer.AddrInfo{ID: ids[0], Addrs: founder.host.Addrs()}))
	require.Len(t, box.wanted(""), company-1)
	require.Len(t, founder.wanted(ids[0]), 88)

	// Who cannot be found is told as `vizpeer peer ls` shows it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &Peer{
		host: box.host, gate: box.gate, link: newLink(box.host, box.gate, nil, slog.New(slog.DiscardHandler), nil),
		worker: &worker{results: new(results)}, outbox: new(outbox),
	}
	_, _, err := finder{p}.Find(ctx)
	require.ErrorIs(t, err, httpapi.ErrNoLeader)
	require.EqualError(t, err, "no coordinator can be reached: tried hub ("+names[0].Short()+"); is `vizpeer up` running there?")
}
