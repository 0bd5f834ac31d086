package peer

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// rotten is a store with a sound file and one whose blocks have all rotted.
func rotten(t *testing.T) (s *blobs.Store, damaged cid.Cid) {
	dir := t.TempDir()
	open := func() {
		var err error
		s, err = blobs.Open(dir, blobs.Config{})
		require.NoError(t, err)
	}
	add := func(b byte) cid.Cid {
		c, _, err := s.ImportFile(t.Context(), bytes.NewReader(bytes.Repeat([]byte{b}, 300_000)))
		require.NoError(t, err)
		return c
	}
	open()
	damaged = add('a')
	require.NoError(t, s.Close())
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*"))
	require.NoError(t, err)
	for _, path := range packs {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		data = bytes.ReplaceAll(data, bytes.Repeat([]byte{'a'}, 100), append(bytes.Repeat([]byte{'a'}, 99), 'x'))
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	open()
	add('b')
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, damaged
}

// A while after the machine was set up, and not before, the store is read through.
func TestStoreIsReadThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, damaged := rotten(t)
		dir := dataDir(t.TempDir())
		mended := make(chan []cid.Cid, 10)
		ctx, stop := context.WithCancel(t.Context())
		run := func() *scrubber {
			s := newScrubber(store, dir, slog.New(slog.DiscardHandler), func(_ context.Context, lost []cid.Cid) (a, b []string) {
				mended <- lost
				return nil, nil
			})
			s.every = time.Hour // the store does something each second, also in a simulated week
			go func() { _ = s.Run(ctx) }()
			return s
		}
		s := run()
		began := time.Now()
		<-time.After(50 * time.Minute)
		require.Empty(t, mended)
		// A restart does not put it off.
		stop()
		<-s.gone
		ctx, stop = context.WithCancel(t.Context())
		s = run()
		require.Equal(t, []cid.Cid{damaged}, <-mended)
		require.WithinDuration(t, began.Add(time.Hour), time.Now(), time.Minute)
		<-time.After(3 * time.Hour)
		require.Empty(t, mended, "what is sound is left alone")
		stop()
		<-s.gone
		_, err := s.Now(t.Context(), nil)
		require.ErrorIs(t, err, errShutdown)
	})
}

// A person's wish to read everything now comes first, also while it is read
// slowly, and is told of everything.
func TestReadingThroughNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, damaged := rotten(t)
		mended := make(chan []cid.Cid, 10)
		s := newScrubber(store, dataDir(t.TempDir()), slog.New(slog.DiscardHandler), func(_ context.Context, lost []cid.Cid) (a, b []string) {
			mended <- lost
			return nil, nil
		})
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = s.Run(ctx) }()
		var read int64
		found, err := s.Now(t.Context(), func(done, _ int64) { read = done })
		require.NoError(t, err)
		require.Equal(t, []cid.Cid{damaged}, found.Lost)
		require.Positive(t, found.Dropped)
		require.Positive(t, read)
		require.Empty(t, mended, "it is the caller's to mend")

		given, giveUp := context.WithCancel(t.Context())
		giveUp()
		_, err = s.Now(given, nil)
		require.ErrorIs(t, err, context.Canceled)
		stop()
		<-s.gone
	})
}
