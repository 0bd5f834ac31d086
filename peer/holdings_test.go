package peer

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/render"
)

// To find the projects in its store a machine does not read the frames there: one
// that has rotted is not noticed.
func TestFramesAreNotReadForAds(t *testing.T) {
	dir := t.TempDir()
	store, err := blobs.Open(dir, blobs.Config{MinFree: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	tree := store.NewTree()
	_, err = tree.AddFile(t.Context(), render.ManifestName, strings.NewReader("{}"))
	require.NoError(t, err)
	project, _, err := tree.Commit(t.Context())
	require.NoError(t, err)
	frame, _, err := store.ImportFile(t.Context(), strings.NewReader("a frame"))
	require.NoError(t, err)
	require.EqualValues(t, cid.Raw, frame.Type())
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*"))
	require.NoError(t, err)
	for _, path := range packs {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, bytes.ReplaceAll(data, []byte("a frame"), []byte("rotten!")), 0o600))
	}
	h := newHoldings(store, func() {})
	require.Equal(t, lease.Holdings{{Project: lease.ShortCID(project.String()), Eighths: lease.Whole}}, h.list(t.Context()))
	whole, err := store.Has(t.Context(), frame)
	require.NoError(t, err)
	require.True(t, whole, "nobody has looked")
	require.ErrorIs(t, store.VerifyBlock(frame), blobs.ErrCorrupt)
}
