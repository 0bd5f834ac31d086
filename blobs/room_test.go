package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs/pack"
)

func openSmall(t testing.TB, quota int64) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), Config{Quota: quota, Grace: time.Nanosecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// project imports a folder of one file.
func project(s *Store, seed byte, size int) (cid.Cid, error) {
	t := s.NewTree()
	defer t.Abort()
	r := io.LimitReader(rand.NewChaCha8([32]byte{seed}), int64(size))
	if _, err := t.AddFile(context.Background(), "scene.blend", r); err != nil {
		return cid.Undef, err
	}
	root, _, err := t.Commit(context.Background())
	return root, err
}

// content is a project, or with -short something that needs no cutting, which takes
// long under the race detector.
func content(s *Store, seed byte, size int) (cid.Cid, error) {
	if !testing.Short() {
		return project(s, seed, size)
	}
	c, _, err := s.ImportFile(context.Background(), io.LimitReader(rand.NewChaCha8([32]byte{seed}), int64(size)))
	return c, err
}

func requireHas(t testing.TB, s *Store, want bool, roots ...cid.Cid) {
	t.Helper()
	for i, c := range roots {
		has, err := s.Has(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, want, has, "root %d of %d", i, len(roots))
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	s := openSmall(t, 128<<20)
	var roots []cid.Cid
	for i := range 4 {
		c, err := content(s, byte(i), 20<<20)
		require.NoError(t, err)
		roots = append(roots, c)
	}
	require.NoError(t, s.Pin(t.Context(), roots[0], "job:1"))
	require.NoError(t, s.index.db.Update(func(x *badger.Txn) error { return s.use(x, roots[1], 0) }))
	requireHas(t, s, true, roots...)
	in := s.NewIntake(nil)
	require.NoError(t, in.Reserve(t.Context(), 50<<20))
	requireHas(t, s, true, roots[0], roots[1])
	requireHas(t, s, false, roots[2])
	st, err := s.Measure(t.Context())
	require.NoError(t, err)
	require.InEpsilon(t, 50<<20, st.Reserved, 0.01)
	require.InEpsilon(t, 20<<20, st.Pinned, 0.01)
	require.Zero(t, st.Garbage)
	require.Equal(t, 1, st.Pins)
	list, err := s.Roots(t.Context())
	require.NoError(t, err)
	require.Equal(t, st.Roots, len(list))
	require.Equal(t, roots[1], list[len(list)-1].CID)

	other := s.NewIntake(nil)
	defer other.Close()
	err = other.Reserve(t.Context(), 60<<20)
	require.ErrorIs(t, err, ErrNoRoom)
	require.ErrorContains(t, err, "may take 128 MiB")
	requireHas(t, s, true, roots[1]) // not evicted in vain
	in.Close()
	st, err = s.Stat(t.Context())
	require.NoError(t, err)
	require.Zero(t, st.Reserved)

	// Unpinned, it is the oldest and goes.
	require.NoError(t, s.Unpin(t.Context(), roots[0], "job:1"))
	freed, err := s.Evict(t.Context(), 30<<20)
	require.NoError(t, err)
	require.Positive(t, freed.Roots)
	requireHas(t, s, false, roots[0])
	requireHas(t, s, true, roots[1])
}

// What is reserved is there for whoever reserved it, however much others write.
func TestNobodyWritesIntoTheReservationOfAnother(t *testing.T) {
	s := openSmall(t, 64<<20)
	const size = 24 << 20
	in := s.NewIntake(nil)
	defer in.Close()
	require.NoError(t, in.Reserve(t.Context(), size))
	_, err := content(s, 1, 40<<20) // would fit without
	require.ErrorIs(t, err, ErrNoRoom)
	for seed, n := byte(0), 24<<20; n > 100<<10; seed++ { // to the brim, of what cannot be evicted
		root, err := content(s, seed, n)
		if err != nil {
			require.ErrorIs(t, err, ErrNoRoom)
			n /= 2
			continue
		}
		require.NoError(t, s.Pin(t.Context(), root, "job:1"))
	}
	st, err := s.Stat(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, st.Reserved, int64(size))
	for i := range 2 { // the index grows beside, by more than was left
		require.NoError(t, s.index.db.Update(func(x *badger.Txn) (err error) {
			for j := range 9 {
				err = errors.Join(err, x.Set([]byte{'z', byte(i), byte(j)}, noise(1, 60_000)))
			}
			return err
		}))
	}
	data := noise(1, size)
	for i := 0; i < size; i += 32 << 10 {
		leaf := data[i : i+32<<10]
		wrong, err := in.Add(Block{CID: digest(sha256.Sum256(leaf)).cid(cid.Raw), Data: leaf})
		require.NoError(t, err)
		require.Empty(t, wrong)
	}
	require.NoError(t, in.Flush())
	in.Close()
	st, err = s.Stat(t.Context())
	require.NoError(t, err)
	require.Zero(t, st.Reserved)
	require.LessOrEqual(t, st.Disk, st.Quota)
}

// Whatever is written has been granted, what GC moves too.
func TestNothingIsWrittenWithoutAGrant(t *testing.T) {
	for name, noHoles := range map[string]bool{"holes": false, "no holes": true} {
		t.Run(name, func(t *testing.T) {
			var s *Store
			moving := false
			moved := 0
			before := func(op pack.Op) error {
				if op.Kind == "write" && moving {
					s.space.mu.Lock()
					defer s.space.mu.Unlock()
					require.GreaterOrEqual(t, s.space.granted, op.Length)
					moved++
				}
				return nil
			}
			s, err := Open(t.TempDir(), Config{packs: pack.Config{NoHoles: noHoles, Before: before}})
			require.NoError(t, err)
			defer s.Close()
			_, err = project(s, 1, 7<<20)
			require.NoError(t, err)
			old := s.packs.List()[0]
			moving = true
			s.gcMu.Lock()
			err = s.rewrite(t.Context(), old, s.index.fileCount(old.File).bytes)
			s.gcMu.Unlock()
			require.NoError(t, err)
			require.Greater(t, moved, 1)
			require.Zero(t, s.space.granted)
		})
	}
}

// What is chosen to go and comes again just then has its grace time, and stays cached.
func TestWhatComesAgainIsNotEvicted(t *testing.T) {
	s, err := Open(t.TempDir(), Config{Grace: time.Hour})
	require.NoError(t, err)
	defer s.Close()
	root, err := project(s, 1, 3<<20)
	require.NoError(t, err)
	s.grace.release(root) // long ago
	s.gcMu.Lock()
	s.grace.beginGC()
	live, err := s.mark(t.Context(), 0, 1<<40)
	require.NoError(t, err)
	require.Equal(t, []cid.Cid{root}, live.evict)
	again, err := project(s, 1, 3<<20)
	require.NoError(t, err)
	require.Equal(t, root, again)
	n, err := s.evict(t.Context(), live.evict)
	require.NoError(t, err)
	require.Zero(t, n)
	var freed Freed
	require.NoError(t, s.remove(t.Context(), live.blocks, &freed))
	s.grace.endGC()
	s.gcMu.Unlock()
	_, err = s.Evict(t.Context(), 0)
	require.NoError(t, err)
	requireHas(t, s, true, root)
	roots, err := s.Roots(t.Context())
	require.NoError(t, err)
	require.Len(t, roots, 1)
}

// Of what was pinned and never came nothing is remembered.
func TestRootsThatNeverCameAreForgotten(t *testing.T) {
	s := openSmall(t, 64<<20)
	here, err := project(s, 1, 100)
	require.NoError(t, err)
	for _, c := range []cid.Cid{here, digest{1}.cid(cid.DagProtobuf), digest{2}.cid(cid.Raw)} {
		require.NoError(t, s.Pin(t.Context(), c, "job:1"))
	}
	_, err = s.GC(t.Context())
	require.NoError(t, err)
	roots, err := s.Roots(t.Context())
	require.NoError(t, err)
	require.Len(t, roots, 3)
	_, err = s.UnpinAll(t.Context(), "job:1")
	require.NoError(t, err)
	_, err = s.GC(t.Context())
	require.NoError(t, err)
	roots, err = s.Roots(t.Context())
	require.NoError(t, err)
	require.Len(t, roots, 1)
	require.Equal(t, here, roots[0].CID)
	require.False(t, roots[0].Pinned)
}

// Versions of one project share nearly everything: giving up the old one frees
// little, so others have to go as well, in one pass.
func TestEvictionCountsWhatIsShared(t *testing.T) {
	s := openSmall(t, 128<<20)
	size := 30 << 20
	if testing.Short() {
		size /= 3
	}
	other, err := project(s, 9, size/3)
	require.NoError(t, err)
	data := noise(1, size)
	var versions []cid.Cid
	for i := range 5 {
		copy(data[i*1000_000:], noise(byte(100+i), 1000))
		c, _ := importFiles(t, s, map[string][]byte{"a": data})
		versions = append(versions, c)
	}
	freed, err := s.Evict(t.Context(), int64(size+2<<20))
	require.NoError(t, err)
	require.Equal(t, 1, freed.Roots)
	requireHas(t, s, false, other)
	requireHas(t, s, true, versions...)
}

func TestQuotaIsNeverExceeded(t *testing.T) {
	const quota = 96 << 20
	var s *Store
	var most atomic.Int64
	// It grows with what is about to be written, and that is counted already. A walk
	// through the pack files would count what moves meanwhile twice.
	before := func(op pack.Op) error {
		if op.Kind != "write" {
			return nil
		}
		n, err := s.diskUse()
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return err
	}
	s, err := Open(t.TempDir(), Config{Quota: quota, Grace: time.Nanosecond, packs: pack.Config{Before: before}})
	require.NoError(t, err)
	defer s.Close()
	kept, err := project(s, 200, 10<<20)
	require.NoError(t, err)
	require.NoError(t, s.Pin(t.Context(), kept, "job:1"))
	rounds := 8
	if testing.Short() {
		rounds = 4
	}
	var wg sync.WaitGroup
	for w := range 3 { // three streams at once, several times the quota in all
		wg.Go(func() {
			for i := range rounds {
				c, err := content(s, byte(w*8+i), 20<<20)
				if err != nil && !errors.Is(err, ErrNoRoom) { // three unfinished ones may not fit
					t.Error(err)
					return
				}
				if err == nil && i%4 == 0 {
					if _, err := s.Forget(context.Background(), c); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	_, err = content(s, 201, 120<<20) // more than will ever fit
	require.ErrorIs(t, err, ErrNoRoom)
	t.Logf("at most %.1f of %d MiB", float64(most.Load())/(1<<20), quota>>20)
	require.Greater(t, most.Load(), int64(quota/2))
	require.LessOrEqual(t, most.Load(), int64(quota))
	s.gcMu.Lock() // now nothing moves
	real, err := diskUse(s.dir + "/packs")
	counted := s.packs.Allocated()
	s.gcMu.Unlock()
	require.NoError(t, err)
	require.InDelta(t, real, counted, float64(bookkeeping(s)), "what is counted is what is there")
	requireHas(t, s, true, kept)
	require.NoError(t, s.Export(t.Context(), kept, t.TempDir()))
	c, err := content(s, 202, 40<<20) // what was given up makes room
	require.NoError(t, err)
	requireHas(t, s, true, c)
}

// bookkeeping is what a file system may add to the pack files for its own use: ext4
// counts a block for every 340 pieces that a file lies in.
func bookkeeping(s *Store) int64 { return 4 * pack.Align * int64(len(s.packs.List())) }

// Where garbage between blocks that stay cannot be given back, more cached roots
// go instead.
func TestRoomIsFoundBesideWhatCannotBeGivenBack(t *testing.T) {
	s, err := Open(t.TempDir(), Config{Quota: 128 << 20, Grace: time.Nanosecond, packs: pack.Config{NoHoles: true}})
	require.NoError(t, err)
	defer s.Close()
	var cached []cid.Cid
	for i := range 24 {
		c, err := content(s, byte(i), 3<<20)
		require.NoError(t, err)
		cached = append(cached, c)
		c, err = content(s, byte(100+i), 1<<20)
		require.NoError(t, err)
		_, err = s.Forget(t.Context(), c)
		require.NoError(t, err)
	}
	_, err = s.GC(t.Context())
	require.NoError(t, err)
	st, err := s.Measure(t.Context())
	require.NoError(t, err)
	require.Greater(t, st.Disk-st.Cached, int64(16<<20), "the garbage was to stay")
	in := s.NewIntake(nil)
	defer in.Close()
	require.NoError(t, in.Reserve(t.Context(), 40<<20))
	requireHas(t, s, true, cached[12:]...)
}

// Frames of some hundred KB, most of them given up again, one by one.
func TestDiskFollowsWhatIsForgotten(t *testing.T) {
	for name, packs := range map[string]pack.Config{"direct": {}, "buffered": {Buffered: true}, "no holes": {NoHoles: true}} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.TempDir(), Config{Quota: 256 << 20, Grace: time.Nanosecond, packs: packs})
			require.NoError(t, err)
			defer s.Close()
			frames := 120
			if testing.Short() {
				frames = 40
			}
			var kept []cid.Cid
			for i := range frames {
				c, _, err := s.ImportFile(t.Context(), bytes.NewReader(noise(byte(i), 300_000)))
				require.NoError(t, err)
				if i%10 == 0 {
					kept = append(kept, c)
				} else {
					_, err = s.Forget(t.Context(), c)
					require.NoError(t, err)
				}
			}
			freed, err := s.GC(t.Context())
			require.NoError(t, err)
			require.Equal(t, frames-len(kept), freed.Blocks)
			packs := s.packs.Allocated()
			require.Less(t, packs, int64(len(kept)*310_000))
			real, err := diskUse(s.dir + "/packs")
			require.NoError(t, err)
			require.InDelta(t, real, packs, float64(bookkeeping(s)))
			requireHas(t, s, true, kept...)
			for _, c := range kept {
				require.NoError(t, s.VerifyBlock(c))
			}
		})
	}
}
