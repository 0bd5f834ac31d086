// Package blobtest is what a content store has to do, whatever it is made of: one
// suite that every way of storing blocks passes.
package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// Open opens the store under test in a folder of its own, empty at first.
type Open func(dir string, cfg blobs.Config) (*blobs.Store, error)

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"what is imported comes back", comesBack},
		{"what is durable survives closing", survives},
		{"the same bytes are stored once", storedOnce},
		{"what is missing is said to be", missing},
		{"rot is found, dropped and repaired", rot},
		{"blocks from elsewhere are verified", intake},
		{"pins hold, what is forgotten goes", pins},
		{"the least recently used goes first", leastRecent},
		{"held files are added unread", heldFiles},
		{"everything at once", atOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t, open: open, dir: t.TempDir()}
			s.start()
			defer s.stop()
			c.run(t, s)
		})
	}
}

type suite struct {
	*testing.T
	open  Open
	dir   string
	store *blobs.Store
}

func (s *suite) start() {
	store, err := s.open(s.dir, blobs.Config{MinFree: 1, Quota: 256 << 20, Grace: time.Nanosecond})
	require.NoError(s, err)
	s.store = store
}

func (s *suite) stop() { require.NoError(s, s.store.Close()) }

func (s *suite) ctx() context.Context { return s.Context() }

func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{seed}), data)
	return data
}

// add imports files and returns their folder.
func add(ctx context.Context, store *blobs.Store, files map[string][]byte) (cid.Cid, blobs.Summary, error) {
	tree := store.NewTree()
	defer tree.Abort()
	for path, data := range files {
		if _, err := tree.AddFile(ctx, path, bytes.NewReader(data)); err != nil {
			return cid.Undef, blobs.Summary{}, err
		}
	}
	return tree.Commit(ctx)
}

func (s *suite) add(files map[string][]byte) (cid.Cid, blobs.Summary) {
	root, sum, err := add(s.ctx(), s.store, files)
	require.NoError(s, err)
	return root, sum
}

// same checks that root is exactly these files.
func (s *suite) same(root cid.Cid, files map[string][]byte) {
	dir := s.TempDir()
	require.NoError(s, s.store.Export(s.ctx(), root, dir))
	left := len(files)
	require.NoError(s, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		require.NoError(s, err)
		want, ok := files[filepath.ToSlash(rel)]
		require.True(s, ok, "%q is one too many", rel)
		got, err := os.ReadFile(path)
		require.NoError(s, err)
		require.True(s, bytes.Equal(want, got), "content of %q", rel)
		left--
		return nil
	}))
	require.Zero(s, left, "files are missing")
}

func (s *suite) has(want bool, roots ...cid.Cid) {
	for _, c := range roots {
		has, err := s.store.Has(s.ctx(), c)
		require.NoError(s, err)
		require.Equal(s, want, has, "root %s", c)
	}
}

// spoil changes a byte of content on the disk, wherever it lies there.
func (s *suite) spoil(content []byte) {
	s.stop() // so that no cache hides it
	needle, spoilt := content[:64], 0
	require.NoError(s, filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at := bytes.Index(data, needle); at >= 0 {
			data[at] ^= 1
			spoilt++
			return os.WriteFile(path, data, 0o600)
		}
		return nil
	}))
	require.Positive(s, spoilt, "the content is nowhere")
	s.start()
}

func comesBack(t *testing.T, s *suite) {
	files := map[string][]byte{
		"scene.blend": noise(1, 5<<20), "empty": nil, "one": {1},
		"textures/wood 01.png": noise(2, 20_000), "textures/木/Größe.exr": noise(3, 300_000), "cache/a/b/c.vdb": noise(4, 1<<20),
	}
	root, sum := s.add(files)
	require.Equal(t, len(files), sum.Files)
	s.same(root, files)
	data := noise(5, 3<<20)
	c, n, err := s.store.ImportFile(s.ctx(), bytes.NewReader(data))
	require.NoError(t, err)
	require.EqualValues(t, len(data), n)
	r, n, err := s.store.OpenFile(s.ctx(), c)
	require.NoError(t, err)
	defer r.Close()
	require.EqualValues(t, len(data), n)
	_, err = r.Seek(1_234_567, io.SeekStart)
	require.NoError(t, err)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data[1_234_567:], rest))
}

func survives(t *testing.T, s *suite) {
	files := map[string][]byte{"a": noise(1, 3<<20), "b/c": noise(2, 100)}
	root, _ := s.add(files)
	require.NoError(t, s.store.Pin(s.ctx(), root, "job:1"))
	cached, _ := s.add(map[string][]byte{"d": noise(3, 1<<20)})
	before, err := s.store.Measure(s.ctx())
	require.NoError(t, err)
	for range 2 {
		s.stop()
		s.start()
	}
	after, err := s.store.Measure(s.ctx())
	require.NoError(t, err)
	after.Measured, after.Disk = before.Measured, before.Disk // the index may be larger by then
	require.Equal(t, before, after)
	s.same(root, files)
	s.has(true, cached)
	roots, err := s.store.Roots(s.ctx())
	require.NoError(t, err)
	require.Len(t, roots, 2)
	require.Equal(t, blobs.Root{CID: root, Used: roots[0].Used, Pinned: true}, roots[0])
	require.Equal(t, blobs.Root{CID: cached, Used: roots[1].Used}, roots[1])
}

func storedOnce(t *testing.T, s *suite) {
	data := noise(1, 8<<20)
	before, err := s.store.Stat(s.ctx())
	require.NoError(t, err)
	_, sum := s.add(map[string][]byte{"a": data})
	require.Greater(t, sum.NewBytes, int64(len(data)))
	_, sum = s.add(map[string][]byte{"b": data, "c": data})
	require.Less(t, sum.NewBytes, int64(4096))
	st, err := s.store.Stat(s.ctx())
	require.NoError(t, err)
	require.Less(t, st.Bytes, int64(len(data)*102/100))
	require.Less(t, st.Disk-before.Disk, int64(len(data)*3/2))
}

func missing(t *testing.T, s *suite) {
	c := named([]byte("nobody has this"))
	s.has(false, c)
	_, err := s.store.ReadBlock(c, nil)
	require.ErrorIs(t, err, blobs.ErrNotFound)
	require.ErrorIs(t, s.store.VerifyBlock(c), blobs.ErrNotFound)
	_, _, err = s.store.OpenFile(s.ctx(), c)
	require.ErrorIs(t, err, blobs.ErrNotFound)
	v, err := s.store.Verify(s.ctx(), c, nil)
	require.NoError(t, err)
	require.Equal(t, blobs.Verified{Missing: 1}, v)
	_, err = s.store.ReadBlock(cid.NewCidV1(cid.Raw, mh.Multihash{0, 1, 'x'}), nil)
	require.ErrorIs(t, err, blobs.ErrBadNode)
}

func named(data []byte) cid.Cid {
	sum := sha256.Sum256(data)
	h, err := mh.Encode(sum[:], mh.SHA2_256)
	if err != nil {
		panic(err) // a known code
	}
	return cid.NewCidV1(cid.Raw, h)
}

func rot(t *testing.T, s *suite) {
	data := noise(1, 100_000)
	files := map[string][]byte{"a": noise(2, 1<<20), "b": data[:4000]}
	root, _ := s.add(files)
	leaf := named(files["b"])
	require.NoError(t, s.store.VerifyBlock(leaf))
	s.spoil(files["b"])
	s.has(true, root) // nobody has looked yet
	require.ErrorIs(t, s.store.Export(s.ctx(), root, t.TempDir()), blobs.ErrCorrupt)
	s.has(false, root)
	s.add(files)
	s.same(root, files)
	s.spoil(files["b"])
	found, err := s.store.Scrub(s.ctx(), 0, nil)
	require.NoError(t, err)
	require.Equal(t, 1, found.Dropped)
	require.Equal(t, []cid.Cid{root}, found.Lost)
	s.has(false, root)
	s.add(files)
	s.same(root, files)
}

func intake(t *testing.T, s *suite) {
	var mu sync.Mutex
	readable := map[cid.Cid]bool{}
	in := s.store.NewIntake(func(cs []cid.Cid) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range cs {
			readable[c] = true
		}
	})
	defer in.Close()
	var bs []blobs.Block
	for i := range 300 {
		data := noise(byte(i), 10_000+i)
		bs = append(bs, blobs.Block{CID: named(data), Data: data})
	}
	bs[7].Data = noise(8, 10) // a forgery
	wrong, err := in.Add(bs...)
	require.NoError(t, err)
	require.Equal(t, []int{7}, wrong)
	require.NoError(t, in.Flush())
	require.Len(t, readable, 299)
	for i, b := range bs {
		got, err := s.store.ReadBlock(b.CID, []byte("before"))
		if i == 7 {
			require.ErrorIs(t, err, blobs.ErrNotFound)
			continue
		}
		require.NoError(t, err)
		require.True(t, bytes.Equal(append([]byte("before"), b.Data...), got))
		require.True(t, readable[b.CID])
	}
	held, err := in.Claim(bs[0].CID, bs[7].CID)
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, held)
	_, err = s.store.Evict(s.ctx(), 0) // spares what is claimed
	require.NoError(t, err)
	require.NoError(t, s.store.VerifyBlock(bs[0].CID))
}

func pins(t *testing.T, s *suite) {
	shared := noise(1, 4<<20)
	keep, _ := s.add(map[string][]byte{"shared": shared, "keep": noise(2, 1<<20)})
	goes, sum := s.add(map[string][]byte{"shared": shared, "goes": noise(3, 20<<20)})
	require.NoError(t, s.store.Pin(s.ctx(), keep, "job:1"))
	require.NoError(t, s.store.Pin(s.ctx(), keep, "job:2"))
	require.NoError(t, s.store.Unpin(s.ctx(), keep, "job:1"))
	gone, err := s.store.Forget(s.ctx(), keep)
	require.NoError(t, err)
	require.False(t, gone, "one pin is left")
	freed, err := s.store.GC(s.ctx())
	require.NoError(t, err)
	require.Zero(t, freed.Blocks, "what nobody pins is cached")
	before, err := s.store.Stat(s.ctx())
	require.NoError(t, err)
	gone, err = s.store.Forget(s.ctx(), goes)
	require.NoError(t, err)
	require.True(t, gone)
	freed, err = s.store.GC(s.ctx())
	require.NoError(t, err)
	require.Equal(t, sum.NewBytes, freed.Bytes)
	after, err := s.store.Stat(s.ctx())
	require.NoError(t, err)
	require.Equal(t, before.Bytes-freed.Bytes, after.Bytes)
	require.Less(t, after.Disk, before.Disk-freed.Bytes*9/10)
	require.EqualValues(t, after.Bytes, after.Pinned)
	s.has(true, keep)
	s.has(false, goes)
	n, err := s.store.UnpinAll(s.ctx(), "job:2")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	s.has(true, keep)
}

func leastRecent(t *testing.T, s *suite) {
	var roots []cid.Cid
	for i := range 4 {
		c, _ := s.add(map[string][]byte{"a": noise(byte(i), 8<<20)})
		roots = append(roots, c)
	}
	require.NoError(t, s.store.Pin(s.ctx(), roots[0], "job:1"))
	freed, err := s.store.Evict(s.ctx(), 18<<20)
	require.NoError(t, err)
	require.Equal(t, 2, freed.Roots)
	s.has(true, roots[0], roots[3])
	s.has(false, roots[1], roots[2])
	one, other := s.store.NewIntake(nil), s.store.NewIntake(nil)
	require.NoError(t, one.Reserve(s.ctx(), 100<<20))
	require.ErrorIs(t, other.Reserve(s.ctx(), 150<<20), blobs.ErrNoRoom)
	one.Close()
	require.NoError(t, other.Reserve(s.ctx(), 150<<20))
	other.Close()
}

func heldFiles(t *testing.T, s *suite) {
	files := map[string][]byte{"a": noise(1, 3<<20), "b": noise(2, 10)}
	root, _ := s.add(files)
	tree := s.store.NewTree()
	defer tree.Abort()
	for path := range files {
		c, err := s.store.Lookup(s.ctx(), root, path)
		require.NoError(t, err)
		_, err = tree.AddHeld(s.ctx(), path, c)
		require.NoError(t, err)
	}
	again, sum, err := tree.Commit(s.ctx())
	require.NoError(t, err)
	require.Equal(t, root, again)
	require.Zero(t, sum.NewBytes)
	s.same(root, files)
}

// atOnce imports, reads, forgets, collects and scrubs side by side.
func atOnce(t *testing.T, s *suite) {
	shared := noise(1, 2<<20)
	pinned := map[string][]byte{"shared": shared, "own": noise(2, 1<<20)}
	root, _ := s.add(pinned)
	require.NoError(t, s.store.Pin(s.ctx(), root, "job:1"))
	stop, cancel := context.WithCancel(s.ctx())
	var wg sync.WaitGroup
	// Some work goes on until the rest has been done.
	forever := func(f func(ctx context.Context) error) {
		wg.Go(func() {
			for stop.Err() == nil {
				if err := f(stop); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
					return
				}
			}
		})
	}
	forever(func(ctx context.Context) error { _, err := s.store.GC(ctx); return err })
	forever(func(ctx context.Context) error { _, err := s.store.Scrub(ctx, 0, nil); return err })
	forever(func(ctx context.Context) error {
		v, err := s.store.Verify(ctx, root, nil)
		if err == nil && !v.Whole() {
			err = fmt.Errorf("the pinned root has lost something: %+v", v)
		}
		return err
	})
	var work sync.WaitGroup
	for w := range 3 {
		work.Go(func() {
			for i := range 6 {
				files := map[string][]byte{"shared": shared, "own": noise(byte(10+w*10+i), 1<<20)}
				c, _, err := add(s.ctx(), s.store, files)
				if err == nil {
					err = s.store.Pin(s.ctx(), c, "job:x")
				}
				if err == nil {
					var v blobs.Verified
					if v, err = s.store.Verify(s.ctx(), c, nil); err == nil && !v.Whole() {
						err = fmt.Errorf("a root just imported has lost something: %+v", v)
					}
				}
				if err == nil {
					err = s.store.Unpin(s.ctx(), c, "job:x")
				}
				if err == nil {
					_, err = s.store.Forget(s.ctx(), c)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	cancel()
	wg.Wait()
	s.same(root, pinned)
	_, err := s.store.GC(s.ctx())
	require.NoError(t, err)
	st, err := s.store.Measure(s.ctx())
	require.NoError(t, err)
	require.Equal(t, st.Bytes, st.Pinned, "nothing but the pinned root is left")
}
