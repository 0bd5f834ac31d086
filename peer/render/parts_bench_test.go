//go:build unix

package render

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// cpu is the processor time that this process and those it waited for have taken.
func cpu() float64 {
	sum := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
		}
	}
	return sum
}

// benchSink notes when rendering begins, and the first preview.
type benchSink struct {
	rendering, preview time.Time
	pieces, previews   int
}

func (s *benchSink) Progress(p Progress) {
	if p.Phase == phaseRendering && s.rendering.IsZero() {
		s.rendering = time.Now()
	}
}

func (s *benchSink) Preview(Preview) {
	if s.previews++; s.preview.IsZero() {
		s.preview = time.Now()
	}
}

func (s *benchSink) Piece(context.Context, Piece) error { s.pieces++; return nil }
func (s *benchSink) Frame(context.Context, Frame) error { return nil }

// BenchmarkPreviews renders a frame plainly and as a part with pieces and previews. It
// does without the sandbox, whose processes are not counted as this one's.
func BenchmarkPreviews(b *testing.B) {
	build := realBlender(b)
	root := b.TempDir()
	samples := int32(400)
	script(b, build, fmt.Sprintf(partsScene, fmt.Sprintf("s.render.resolution_percentage = 400; s.cycles.samples = %d; s.cycles.sampling_pattern = 'SOBOL'", samples), root+"/a.blend"))
	run := func(a Attempt) (sink *benchSink, seconds, used float64) {
		a.Project, a.Blend, a.Build, a.Frames = root, "a.blend", build, []int32{1}
		sink = &benchSink{}
		before := cpu()
		_, cleanup, err := NewBlender(Config{Dir: b.TempDir(), Sandbox: SandboxOff}).Run(b.Context(), a, sink)
		defer cleanup()
		require.NoError(b, err)
		return sink, time.Since(sink.rendering).Seconds(), cpu() - before
	}
	for b.Loop() {
		_, plain, plainCPU := run(Attempt{})
		sink, parts, partsCPU := run(Attempt{Part: &Part{lease.Split{By: lease.BySamples, Units: samples}, []lease.Span{{To: samples}}}})
		b.ReportMetric(plain, "plain-s")
		b.ReportMetric(parts, "parts-s")
		b.ReportMetric(plainCPU, "plain-cpu-s")
		b.ReportMetric(partsCPU, "parts-cpu-s")
		b.ReportMetric(sink.preview.Sub(sink.rendering).Seconds(), "preview-s")
		b.ReportMetric(float64(sink.pieces), "pieces")
		b.ReportMetric(float64(sink.previews), "previews")
	}
}
