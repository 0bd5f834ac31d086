package blobs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs/pack"
)

func TestHeldFilesJoinATree(t *testing.T) {
	s := open(t)
	files := map[string][]byte{"scene.blend": noise(1, 5<<20), "tiny": []byte("tiny"), "none": nil}
	root, _ := importFiles(t, s, files)
	tree := s.NewTree()
	defer tree.Abort()
	for e, err := range s.List(t.Context(), root) {
		require.NoError(t, err)
		held, err := tree.AddHeld(t.Context(), e.Path, e.CID)
		require.NoError(t, err)
		require.Equal(t, e, held)
	}
	_, err := tree.AddHeld(t.Context(), "SCENE.blend", root)
	require.ErrorIs(t, err, ErrBadNode, "a folder is no file")
	leaf, err := s.Lookup(t.Context(), root, "tiny")
	require.NoError(t, err)
	_, err = tree.AddHeld(t.Context(), "Tiny", leaf)
	require.ErrorIs(t, err, ErrBadPath, "the name is taken")
	_, err = tree.AddHeld(t.Context(), "gone", digest{1}.cid(cid.Raw))
	require.ErrorIs(t, err, ErrNotFound)
	again, sum, err := tree.Commit(t.Context())
	require.NoError(t, err)
	require.Equal(t, root, again)
	require.Equal(t, Summary{Files: 3, Bytes: 5<<20 + 4}, sum)

	// Of a file that is here in part the bytes are wanted.
	scene, err := s.Lookup(t.Context(), root, "scene.blend")
	require.NoError(t, err)
	corrupt(t, s, aLeaf(t, s, scene))
	_, err = s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	tree = s.NewTree()
	defer tree.Abort()
	_, err = tree.AddHeld(t.Context(), "scene.blend", scene)
	require.ErrorIs(t, err, ErrNotFound)
}

// GC spares what a tree not yet committed has been promised.
func TestHeldFilesAreSpared(t *testing.T) {
	s := openSmall(t, 128<<20)
	root, _ := importFiles(t, s, map[string][]byte{"a": noise(1, 2<<20)})
	file, err := s.Lookup(t.Context(), root, "a")
	require.NoError(t, err)
	tree := s.NewTree()
	_, err = tree.AddHeld(t.Context(), "b", file)
	require.NoError(t, err)
	_, err = s.Forget(t.Context(), root)
	require.NoError(t, err)
	_, err = s.Evict(t.Context(), 0)
	require.NoError(t, err)
	root, _, err = tree.Commit(t.Context())
	require.NoError(t, err)
	requireHas(t, s, true, root)
}

// aLeaf is one of the leaves of a file.
func aLeaf(t testing.TB, s *Store, file cid.Cid) cid.Cid {
	t.Helper()
	for file.Type() != cid.Raw {
		links, err := s.Links(file)
		require.NoError(t, err)
		file = links[len(links)/2].CID
	}
	return file
}

func TestVerifyAndRepair(t *testing.T) {
	s := open(t)
	files := map[string][]byte{"a": noise(1, 3<<20), "b": noise(1, 3<<20), "c": []byte("c")}
	root, _ := importFiles(t, s, files)
	st, err := s.Stat(t.Context())
	require.NoError(t, err)
	var done, total int64
	v, err := s.Verify(t.Context(), root, func(d, n int64) { require.GreaterOrEqual(t, d, done); done, total = d, n })
	require.NoError(t, err)
	require.True(t, v.Whole())
	require.Equal(t, Verified{Blocks: st.Blocks, Bytes: st.Bytes}, v)
	require.Equal(t, st.Bytes, total)
	require.Equal(t, total, done)

	a, err := s.Lookup(t.Context(), root, "a")
	require.NoError(t, err)
	leaf := aLeaf(t, s, a)
	corrupt(t, s, leaf)
	v, err = s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	require.Equal(t, 1, v.Corrupt)
	v, err = s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	require.Equal(t, 1, v.Missing, "it has been dropped")
	require.False(t, v.Whole())
	again, sum := importFiles(t, s, files)
	require.Equal(t, root, again)
	require.Positive(t, sum.NewBytes)
	require.Less(t, sum.NewBytes, int64(maxChunk+1))
	v, err = s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	require.True(t, v.Whole())
}

func TestScrub(t *testing.T) {
	s := open(t)
	first, _ := importFiles(t, s, map[string][]byte{"a": noise(1, 20<<20)})
	second, _ := importFiles(t, s, map[string][]byte{"b": noise(2, 1<<20)})
	require.NoError(t, s.Pin(t.Context(), first, "job:1"))
	file, err := s.Lookup(t.Context(), first, "a")
	require.NoError(t, err)
	rotten := aLeaf(t, s, file)
	corrupt(t, s, rotten)
	st, err := s.Stat(t.Context())
	require.NoError(t, err)

	// Ended over and over, it comes through in the end and reads little twice.
	var all Scrubbed
	rounds := 0
	for {
		ctx, cancel := context.WithCancel(t.Context())
		read := 0
		found, err := s.Scrub(ctx, 0, func(done, total int64) {
			require.LessOrEqual(t, done, total)
			if read++; read == 2*scrubPage {
				cancel()
			}
		})
		cancel()
		all.Blocks += found.Blocks
		all.Dropped += found.Dropped
		all.Lost = append(all.Lost, found.Lost...)
		rounds++
		if err == nil {
			break
		}
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Greater(t, rounds, 1)
	require.GreaterOrEqual(t, all.Blocks, st.Blocks-1)
	require.LessOrEqual(t, all.Blocks, st.Blocks+rounds*scrubPage)
	require.Equal(t, 1, all.Dropped)
	require.Equal(t, []cid.Cid{first}, slices.Compact(all.Lost))
	requireHas(t, s, false, first)
	requireHas(t, s, true, second)

	found, err := s.Scrub(t.Context(), 1<<40, nil)
	require.NoError(t, err)
	require.Equal(t, Scrubbed{
		Blocks: st.Blocks - 1, Bytes: st.Bytes - int64(lenOf(t, rotten, 20<<20)), Dropped: 0, Lost: []cid.Cid{first},
	}, found, "it still lacks what was dropped")
}

// What a reader has dropped is told of at once, and by every scrub until it is back.
func TestDroppedByAReader(t *testing.T) {
	told := 0
	s, err := Open(t.TempDir(), Config{MinFree: 1, Dropped: func() { told++ }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	files := map[string][]byte{"a": noise(1, 5<<20)}
	root, _ := importFiles(t, s, files)
	cached, _ := importFiles(t, s, map[string][]byte{"b": noise(2, 1<<20)})
	require.NoError(t, s.Pin(t.Context(), root, "job:1"))
	lacking := func() []cid.Cid {
		lacking, err := s.Lacking(t.Context())
		require.NoError(t, err)
		found, err := s.Scrub(t.Context(), 0, nil)
		require.NoError(t, err)
		require.Equal(t, Scrubbed{Blocks: found.Blocks, Bytes: found.Bytes, Lost: lacking}, found)
		return lacking
	}
	require.Empty(t, lacking())
	for _, c := range []cid.Cid{root, cached} {
		files, err := s.Links(c)
		require.NoError(t, err)
		corrupt(t, s, aLeaf(t, s, files[0].CID))
	}
	require.Zero(t, told)
	require.ErrorIs(t, s.Export(t.Context(), root, t.TempDir()), ErrCorrupt)
	require.Equal(t, 1, told)
	require.ErrorIs(t, s.Export(t.Context(), cached, t.TempDir()), ErrCorrupt)
	require.Equal(t, 2, told)
	require.Equal(t, []cid.Cid{root}, lacking(), "what is only cached is fetched when it is needed")
	importFiles(t, s, files)
	require.Empty(t, lacking())
	require.Equal(t, 2, told)
}

// lenOf is the length of a block of the first file of TestScrub.
func lenOf(t testing.TB, c cid.Cid, size int) int {
	s := open(t)
	importFiles(t, s, map[string][]byte{"a": noise(1, size)})
	n, err := s.leafSize(c)
	require.NoError(t, err)
	return int(n)
}

// A pack file that somebody has removed or cut is so many rotten blocks.
func TestLostPackFile(t *testing.T) {
	s := open(t)
	root, _ := importFiles(t, s, map[string][]byte{"a": noise(1, 1<<20)})
	file, err := s.Lookup(t.Context(), root, "a")
	require.NoError(t, err)
	for _, f := range s.packs.List() {
		require.NoError(t, truncatePack(s, f.File, 4096))
	}
	got, err := s.ReadBlock(file, []byte("before"))
	require.ErrorIs(t, err, ErrCorrupt)
	require.Equal(t, "before", string(got))
	_, err = s.Scrub(t.Context(), 0, nil)
	require.NoError(t, err)
	requireHas(t, s, false, root)
	importFiles(t, s, map[string][]byte{"a": noise(1, 1<<20)})
	requireHas(t, s, true, root)
}

func TestOldLayoutIsNamed(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFile(dir+"/MANIFEST", "x"))
	_, err := Open(dir, Config{})
	require.ErrorContains(t, err, "development version")
	require.True(t, strings.Contains(err.Error(), dir))
}

func truncatePack(s *Store, id uint32, size int64) error {
	return os.Truncate(filepath.Join(s.dir, "packs", fmt.Sprintf("%08d.pack", id)), size)
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }

// What a disk gives out only when it is asked once more is moved, not given up.
func TestABlockReadAtTheSecondTryIsMoved(t *testing.T) {
	var faulty atomic.Bool
	var seen sync.Map
	s, err := Open(t.TempDir(), Config{packs: pack.Config{Before: func(op pack.Op) error {
		if op.Kind == "read" && faulty.Load() {
			if _, again := seen.LoadOrStore(op.Offset, true); !again {
				return syscall.EIO
			}
		}
		return nil
	}}})
	require.NoError(t, err)
	defer s.Close()
	root, _ := importFiles(t, s, map[string][]byte{"a": noise(1, 3<<20)})
	old := s.packs.List()[0]
	faulty.Store(true)
	s.gcMu.Lock()
	err = s.rewrite(t.Context(), old, s.index.fileCount(old.File).bytes)
	s.gcMu.Unlock()
	require.NoError(t, err)
	faulty.Store(false)
	require.Zero(t, s.index.fileCount(old.File).blocks)
	v, err := s.Verify(t.Context(), root, nil)
	require.NoError(t, err)
	require.True(t, v.Whole(), "%+v", v)
}
