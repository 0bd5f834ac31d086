package swarm

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

func anyone(context.Context, peer.ID, cid.Cid, string) (bool, error) { return true, nil }

// noise is n bytes that do not repeat, the same for the same seed.
func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{seed}), data)
	return data
}

func openStore(t testing.TB) *blobs.Store {
	t.Helper()
	s, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func importFiles(t testing.TB, s *blobs.Store, files map[string][]byte) (cid.Cid, blobs.Summary) {
	t.Helper()
	tree := s.NewTree()
	defer tree.Abort()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		_, err := tree.AddFile(context.Background(), p, bytes.NewReader(files[p]))
		require.NoError(t, err)
	}
	root, sum, err := tree.Commit(context.Background())
	require.NoError(t, err)
	return root, sum
}

// requireContent checks that a root can be exported and holds what it should.
func requireContent(t testing.TB, s *blobs.Store, root cid.Cid, want map[string][]byte) {
	t.Helper()
	out := t.TempDir()
	require.NoError(t, s.Export(context.Background(), root, out))
	for p, data := range want {
		got, err := os.ReadFile(out + "/" + p)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), "content of %q", p)
	}
}

func newHost(t testing.TB) host.Host {
	t.Helper()
	h, err := tcpHost()
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func info(h host.Host) []peer.AddrInfo {
	return []peer.AddrInfo{{ID: h.ID(), Addrs: h.Addrs()}}
}

// testPeer is one peer of these tests.
type testPeer struct {
	dir string
	h   host.Host
	s   *blobs.Store
	e   *Exchange
}

func newPeer(t testing.TB, cfg Config) *testPeer {
	t.Helper()
	p := &testPeer{s: openStore(t), h: newHost(t)}
	p.start(t, cfg)
	t.Cleanup(func() { require.NoError(t, p.e.Close()) })
	return p
}

func (p *testPeer) start(t testing.TB, cfg Config) {
	t.Helper()
	if cfg.Allow == nil {
		cfg.Allow = anyone
	}
	e, err := New(p.h, p.s, cfg)
	require.NoError(t, err)
	p.e = e
}

func (p *testPeer) fetch(t testing.TB, root cid.Cid, from ...*testPeer) error {
	t.Helper()
	var infos []peer.AddrInfo
	for _, f := range from {
		infos = append(infos, info(f.h)...)
	}
	return p.e.Fetch(t.Context(), Request{Root: root, From: infos})
}

func TestAllowIsRequired(t *testing.T) {
	_, err := New(newHost(t), openStore(t), Config{})
	require.ErrorContains(t, err, "Allow")
}

func TestFetch(t *testing.T) {
	a, b := newPeer(t, Config{}), newPeer(t, Config{})
	want := map[string][]byte{"scene.blend": noise(1, 12<<20), "twice/a": noise(2, 1<<20), "twice/b": noise(2, 1<<20), "empty": nil, "small": []byte("s"), "zeros": make([]byte, 20<<20)}
	root, sum := importFiles(t, a.s, want)
	var done, total int64
	require.NoError(t, b.e.Fetch(t.Context(), Request{Root: root, From: info(a.h), Progress: func(d, n int64) {
		require.GreaterOrEqual(t, d, done)
		done, total = d, n
	}}))
	require.Equal(t, total, done)
	requireContent(t, b.s, root, want)
	st := b.e.Stats()
	t.Logf("%+v of %d", st, sum.Bytes)
	require.Less(t, st.Received, int64(15<<20), "the same leaf came more than once")
	require.Zero(t, st.Wasted)

	// A frame that is one block.
	frame, size, err := a.s.ImportFile(t.Context(), bytes.NewReader(noise(3, 900_000)))
	require.NoError(t, err)
	require.NoError(t, b.e.Fetch(t.Context(), Request{Root: frame, From: info(a.h), Progress: func(d, n int64) { done, total = d, n }}))
	require.EqualValues(t, size, total)
	require.Equal(t, total, done)

	// Nobody is needed for what is here; somebody is for what is not.
	lone := newPeer(t, Config{})
	require.NoError(t, lone.h.Close())
	require.NoError(t, b.fetch(t, root, lone))
	other, _ := importFiles(t, a.s, map[string][]byte{"x": []byte("x")})
	err = b.fetch(t, other, lone)
	require.ErrorIs(t, err, ErrNoSource)
	require.ErrorContains(t, err, "cannot be reached")
	require.ErrorIs(t, b.fetch(t, other), ErrNoSource)
}
