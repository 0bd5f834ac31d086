package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
)

// slowFetcher fetches for an hour and knows what it was doing.
type slowFetcher struct {
	mu      sync.Mutex
	under   map[cid.Cid]int // fetches under way
	quietly bool            // each was a background fetch
}

func (f *slowFetcher) Fetch(ctx context.Context, r swarm.Request) error {
	f.mu.Lock()
	f.under[r.Root]++
	f.quietly = r.Background
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.under[r.Root]--
		f.mu.Unlock()
	}()
	select {
	case <-time.After(time.Hour):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *slowFetcher) fetches(c cid.Cid) int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.under[c]
}

// What is fetched ahead stops while an attempt waits for its own project, goes on
// after it, and is pinned for no longer than it may be of use.
func TestFetchAheadStepsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := blobs.Open(t.TempDir(), blobs.Config{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, store.Close()) })
		first, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
		require.NoError(t, err)
		second, err := cid.Decode("bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e")
		require.NoError(t, err)
		f := &slowFetcher{under: make(map[cid.Cid]int)}
		ctx, stop := context.WithCancelCause(t.Context())
		w := &worker{
			store: store, fetch: f, link: &link{waiting: make(map[uint64]chan coord.Ack)}, holdings: newHoldings(store, func() {}),
			letGo: func() {}, slog: slog.New(slog.DiscardHandler), ctx: ctx,
		}
		w.ahead.w = w
		t.Cleanup(func() {
			stop(errors.New("over"))
			w.crew.Dismiss()
		})
		pinned := func(c cid.Cid) bool {
			synctest.Wait()
			for p, err := range store.Pins(t.Context()) {
				require.NoError(t, err)
				if p.Root == c {
					return true
				}
			}
			return false
		}
		order := func(job string, c cid.Cid) coord.Prefetch {
			return coord.Prefetch{Job: "j" + lease.JobID(job), CID: c.String()}
		}

		w.ahead.begin(order("1", first))
		require.Equal(t, 1, f.fetches(first))
		require.True(t, f.quietly)
		require.True(t, pinned(first))
		done, also := w.ahead.waits(), w.ahead.waits()
		require.Zero(t, f.fetches(first), "an attempt fetches")
		done()
		done()
		require.Zero(t, f.fetches(first), "another one does")
		also()
		require.Equal(t, 1, f.fetches(first))

		w.ahead.begin(order("2", second))
		require.Equal(t, 1, f.fetches(second))
		require.Zero(t, f.fetches(first), "one at a time")
		require.False(t, pinned(first))
		time.Sleep(time.Hour)
		require.Zero(t, f.fetches(second))
		require.True(t, pinned(second), "it is here now")
		time.Sleep(aheadKept)
		require.False(t, pinned(second), "its turn did not come")

		w.ahead.begin(order("1", first))
		require.Equal(t, 1, f.fetches(first))
		w.ahead.ended("j1")
		require.Zero(t, f.fetches(first), "its job has ended")
	})
}

// at is a fetcher whose content is here at once.
type at func() error

func (f at) Fetch(context.Context, swarm.Request) error { return f() }

// What was fetched ahead takes no room from what is rendered now.
func TestFetchedAheadGivesWay(t *testing.T) {
	store, err := blobs.Open(t.TempDir(), blobs.Config{Quota: 64 << 20, MinFree: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	noise := func(seed byte, n int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n) }
	next, _, err := store.ImportFile(t.Context(), noise(1, 36<<20))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	fetched := make(chan struct{}, 1)
	w := &worker{
		store: store, link: &link{waiting: make(map[uint64]chan coord.Ack)}, holdings: newHoldings(store, func() {}), letGo: func() {},
		slog: slog.New(slog.DiscardHandler), ctx: ctx, fetch: at(func() error {
			// As the exchange does: it has come, and stays for a while.
			if err := store.Use(next); err != nil {
				return err
			}
			_, _, err := store.ImportFile(ctx, noise(1, 36<<20))
			fetched <- struct{}{}
			return err
		}),
	}
	w.ahead.w = w
	t.Cleanup(w.crew.Dismiss)
	t.Cleanup(stop)
	w.ahead.begin(coord.Prefetch{Job: "j1", CID: next.String()})
	<-fetched

	frame := filepath.Join(t.TempDir(), "0001.exr")
	data, err := io.ReadAll(noise(2, 24<<20))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(frame, data, 0o600))
	file, err := os.Open(frame)
	require.NoError(t, err)
	defer file.Close()
	_, _, err = store.ImportFile(t.Context(), file)
	require.ErrorIs(t, err, blobs.ErrNoRoom)
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	kept, err := w.keepFrame(t.Context(), "j", file)
	require.NoError(t, err)
	require.EqualValues(t, 24<<20, kept.Size)
	whole, err := store.Has(t.Context(), next)
	require.NoError(t, err)
	require.False(t, whole)
	require.False(t, w.ahead.giveWay(t.Context()), "there is nothing more to give")

	// Nor from the project that an attempt fetches.
	w.fetch = at(func() error {
		if w.ahead.orders("j2") {
			return blobs.ErrNoRoom
		}
		return nil
	})
	w.ahead.begin(coord.Prefetch{Job: "j2", CID: next.String()})
	root, err := cid.Decode("bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e")
	require.NoError(t, err)
	require.NoError(t, w.project(t.Context(), root, coord.Order{}))
	require.False(t, w.ahead.orders("j2"))
}
