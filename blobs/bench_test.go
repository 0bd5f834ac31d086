package blobs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// noise is n bytes that do not repeat, the same for the same seed.
func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{seed}), data)
	return data
}

// BenchmarkImport reports the speed of an import, stored and synced, relative to
// SHA-256 on one core, measured beside it ("xsha256", more is better).
func BenchmarkImport(b *testing.B) {
	const size = 256 << 20
	data := noise(1, size)
	var imports, hashes time.Duration
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		s, err := Open(b.TempDir(), Config{})
		require.NoError(b, err)
		b.StartTimer()
		start := time.Now()
		t := s.NewTree()
		_, err = t.AddFile(b.Context(), "scene.blend", bytes.NewReader(data))
		require.NoError(b, err)
		_, _, err = t.Commit(b.Context())
		require.NoError(b, err)
		imports += time.Since(start)
		b.StopTimer()
		require.NoError(b, s.Close())
		start = time.Now()
		sha256.Sum256(data)
		hashes += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(hashes.Seconds()/imports.Seconds(), "xsha256")
}

// BenchmarkReimport is the import of content already held.
func BenchmarkReimport(b *testing.B) {
	const size = 256 << 20
	data := noise(1, size)
	s, err := Open(b.TempDir(), Config{})
	require.NoError(b, err)
	defer s.Close()
	b.SetBytes(size)
	for b.Loop() {
		t := s.NewTree()
		_, err := t.AddFile(b.Context(), "scene.blend", bytes.NewReader(data))
		require.NoError(b, err)
		_, _, err = t.Commit(b.Context())
		require.NoError(b, err)
	}
}

// BenchmarkSmallFiles imports 10,000 textures of 20 KB, as a project has them.
func BenchmarkSmallFiles(b *testing.B) {
	const files, size = 10_000, 20_000
	data := noise(1, files*size)
	b.SetBytes(files * size)
	for b.Loop() {
		b.StopTimer()
		s, err := Open(b.TempDir(), Config{})
		require.NoError(b, err)
		b.StartTimer()
		t := s.NewTree()
		g, ctx := errgroup.WithContext(b.Context())
		g.SetLimit(runtime.GOMAXPROCS(0))
		for i := range files {
			g.Go(func() error {
				_, err := t.AddFile(ctx, fmt.Sprintf("textures/%03d/%d.png", i%100, i), bytes.NewReader(data[i*size:(i+1)*size]))
				return err
			})
		}
		require.NoError(b, g.Wait())
		_, _, err = t.Commit(b.Context())
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkCandidates is the search for cuts alone, on one core.
func BenchmarkCandidates(b *testing.B) {
	data := noise(1, 64<<20)
	b.SetBytes(int64(len(data)))
	var cs []candidate
	for b.Loop() {
		cs = candidates(cs[:0], data, 0, true)
	}
}
