package swarm

import (
	"bufio"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// A process killed with -9 in the middle of a fetch, as fast as this machine can,
// leaves so much behind that the next fetches less than a twentieth a second time.
func TestKilledFetchGoesOn(t *testing.T) {
	const size = 256 << 20
	dir := t.TempDir()
	root := imported(t, filepath.Join(dir, "source"), io.LimitReader(rand.NewChaCha8([32]byte{3}), size))
	addr := startSource(t, filepath.Join(dir, "source"), "")

	cmd := role("fetcher", envDir+"="+filepath.Join(dir, "fetcher"), envFrom+"="+addr, envRoot+"="+root.String(), envTell+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var fetched int64
	killed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fetched, err = strconv.ParseInt(lines.Text(), 10, 64)
		require.NoError(t, err)
		if fetched > size/2 && !killed {
			killed = true // what it said before it died is still read
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.Error(t, cmd.Wait(), "it was to be killed, not to finish")
	require.Less(t, fetched, int64(size))

	s, err := blobs.Open(filepath.Join(dir, "fetcher"), blobs.Config{})
	require.NoError(t, err)
	defer s.Close()
	h, err := tcpHost()
	require.NoError(t, err)
	defer h.Close()
	e, err := New(h, s, Config{Allow: anyone})
	require.NoError(t, err)
	defer e.Close()
	from, err := peer.AddrInfoFromString(addr)
	require.NoError(t, err)
	require.NoError(t, e.Fetch(t.Context(), Request{Root: root, From: []peer.AddrInfo{*from}}))
	v, err := s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	require.True(t, v.Whole())
	twice := fetched + e.Stats().Received - size
	t.Logf("killed with %d MiB fetched; %.1f %% of the file were fetched twice", fetched>>20, 100*float64(twice)/size)
	require.Less(t, twice, int64(size/20))
}
