package pack

import (
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkAppend is what the disk can take: 512 MiB in buffers of 2 MiB, four of
// them under way at once, synced at the end.
func BenchmarkAppend(b *testing.B) {
	const total, size, ahead = 512 << 20, 2 << 20, 4
	buf := NewBuffer(size)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{}), buf)
	b.SetBytes(total)
	for b.Loop() {
		f, err := Open(b.TempDir(), Config{})
		require.NoError(b, err)
		extents := make(chan *Extent, total/size)
		var wg sync.WaitGroup
		for range ahead {
			wg.Go(func() {
				for range total / size / ahead {
					e, err := f.Append(buf)
					if err != nil {
						b.Error(err)
						return
					}
					extents <- e
				}
			})
		}
		wg.Wait()
		close(extents)
		for e := range extents {
			require.NoError(b, f.Sync(e))
			e.Settle()
		}
		require.NoError(b, f.Close())
	}
}
