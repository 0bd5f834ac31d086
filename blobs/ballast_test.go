package blobs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"
)

func TestBallast(t *testing.T) {
	const size = 2 << 20
	free := int64(indexRoom)
	b := newBallast(t.TempDir(), size, slog.New(slog.DiscardHandler))
	b.free = func() int64 {
		if b.held {
			return free
		}
		return free + size
	}
	ask := func(why purpose, at int64, full, held bool) {
		t.Helper()
		free = at
		if err := b.ask(why); full {
			require.ErrorIs(t, err, ErrDiskFull)
		} else {
			require.NoError(t, err)
		}
		require.Equal(t, held, b.held)
		if held {
			require.FileExists(t, b.path())
			require.Zero(t, b.lacking())
		} else {
			require.NoFileExists(t, b.path())
			require.EqualValues(t, size, b.lacking())
		}
	}
	ask(adding, indexRoom-size, false, false) // not while it is needed for something else
	ask(adding, indexRoom, false, true)
	ask(adding, indexRoom-1, true, true)
	ask(freeing, size, false, true)
	ask(freeing, size-1, false, false)
	ask(freeing, size/3-size, false, false)
	ask(freeing, size/3-size-1, true, false)
	ask(adding, size, true, false)
	ask(freeing, indexRoom, false, true)

	again := newBallast(b.dir, size, b.log)
	require.True(t, again.held)
	other := newBallast(b.dir, size/2, b.log)
	require.False(t, other.held)
	require.NoFileExists(t, b.path())
	none := newBallast(b.dir, 0, b.log)
	none.free = func() int64 { return 0 }
	require.NoError(t, none.ask(adding))
	require.Zero(t, none.lacking())
}

// Where there is room to remove a part only, that makes room for the next.
func TestGCOnAFullDiskGoesOn(t *testing.T) {
	s, err := Open(t.TempDir(), Config{Grace: time.Nanosecond})
	require.NoError(t, err)
	defer s.Close()
	if !s.packs.CanPunch() {
		t.Skip("no holes on this system")
	}
	in := s.NewIntake(nil)
	for i := range uint32(3*sweepBatch + 1) {
		data := bytes.Repeat(binary.BigEndian.AppendUint32(nil, i), 1024) // a page each
		_, err := in.Add(Block{CID: digest(sha256.Sum256(data)).cid(cid.Raw), Data: data})
		require.NoError(t, err)
	}
	require.NoError(t, in.Flush())
	in.Close()
	b, packs := s.index.ballast, s.packs.Allocated()
	asked := int64(0)
	full := false // so far
	disk := b.free
	b.free = func() int64 { // what asks takes 1 MiB
		free := b.size/3 + 2<<20 - asked<<20 + packs - s.packs.Allocated()
		if free < b.size/3 {
			full = true
		} else {
			asked++
		}
		return free
	}
	require.NoError(t, b.ask(freeing))
	require.False(t, b.held)
	freed, err := s.GC(t.Context())
	require.NoError(t, err)
	require.True(t, full)
	require.Equal(t, 3*sweepBatch+1, freed.Blocks)
	b.free = disk
}
