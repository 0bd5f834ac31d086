package render

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// fencedSink is a sink that demands of everything that it lies in the attempt's folder.
type fencedSink struct {
	t   *testing.T
	dir string
}

func (l fencedSink) inside(path string) {
	rel, err := filepath.Rel(l.dir, path)
	require.NoError(l.t, err)
	require.True(l.t, filepath.IsLocal(rel), path)
}

func (l fencedSink) Progress(Progress)                          {}
func (l fencedSink) Preview(p Preview)                          { l.inside(p.Path) }
func (l fencedSink) Piece(_ context.Context, p Piece) error     { l.inside(p.Path); return nil }
func (l fencedSink) Frame(_ context.Context, frame Frame) error { l.inside(frame.Path); return nil }

// A hostile .blend may print what it likes, also in the driver's name.
func FuzzBlendersWords(f *testing.F) {
	f.Add([]byte("Read blend: x\nVIZ {\"ev\": \"loaded\", \"id\": \"r\"}\nVIZ {\"ev\": \"frame\", \"id\": \"r\", \"frame\": 1, \"file\": \"../../etc/passwd\", \"name\": \"../a.png\"}\n"))
	f.Add([]byte("VIZ {\"ev\": \"piece\", \"id\": \"r\", \"frame\": 1, \"file\": \"/etc/passwd\", \"from\": -1, \"to\": 2147483647}\nVIZ {\"ev\": \"preview\", \"id\": \"r\", \"file\": \"\"}\n"))
	f.Add([]byte("Fra:1 Mem:99999999999M Sample 4/999999999999999\nVIZ {\"ev\": \"end\", \"id\": \"r\"}\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		dir := t.TempDir()
		w := &watch{attempt: Attempt{Frames: []int32{1}}, dir: attemptDir{dir}, sink: fencedSink{t, dir}, done: map[int32]bool{}, id: "r", out: filepath.Join(dir, "out")}
		_ = w.read(t.Context(), bytes.NewReader(said), io.Discard, true)
	})
}
