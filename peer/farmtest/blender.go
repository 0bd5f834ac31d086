package farmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vizpeer/peer/render"
)

// Blender stands in for Blender in simulated farms. It reads its project for
// real and writes a small file for each frame; what it does not do is render.
// Package render's own tests, and those with real processes, run the real one.
type Blender struct {
	// PerFrame is how long a frame takes.
	PerFrame time.Duration
	// Fail, where set, answers why a frame cannot be rendered; nil where it can.
	Fail func(frame int32) *render.Error
	// Begin, where set, is told of every attempt before its first frame.
	Begin func(render.Attempt)

	mu       sync.Mutex
	rendered map[int32]int
}

var _ render.Runner = (*Blender)(nil)

// Rendered counts how often each frame was rendered here.
func (b *Blender) Rendered() map[int32]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[int32]int, len(b.rendered))
	for f, n := range b.rendered {
		out[f] = n
	}
	return out
}

// Run implements render.Runner.
func (b *Blender) Run(ctx context.Context, a render.Attempt, sink render.Sink) (string, func(), error) {
	mine, cancel := context.WithCancel(ctx) // as the real one's, it ends with Blender
	defer cancel()
	dir, err := os.MkdirTemp("", "farmtest-")
	if err != nil {
		return "", func() {}, err
	}
	cleanup := func() { _ = os.RemoveAll(dir) }
	if _, err := os.Stat(filepath.Join(a.Project, filepath.FromSlash(a.Blend))); err != nil {
		return "", cleanup, fmt.Errorf("the project is not there: %w", err)
	}
	if b.Begin != nil {
		b.Begin(a)
	}
	log := filepath.Join(dir, "log.txt")
	if err := os.WriteFile(log, []byte("a stand-in for Blender\n"), 0o600); err != nil {
		return "", cleanup, err
	}
	for i, f := range a.Frames {
		sink.Progress(render.Progress{Frame: f, Done: i, Total: len(a.Frames), Phase: "rendering"})
		timer := time.NewTimer(b.PerFrame)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return log, cleanup, render.ErrStopped
		}
		if b.Fail != nil {
			if err := b.Fail(f); err != nil {
				return log, cleanup, err
			}
		}
		name := fmt.Sprintf("%04d.png", f)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, fmt.Appendf(nil, "frame %d of %s", f, filepath.Base(a.Blend)), 0o600); err != nil {
			return log, cleanup, err
		}
		if err := sink.Frame(mine, render.Frame{Frame: f, Path: path, Name: name, Seconds: b.PerFrame.Seconds()}); err != nil {
			return log, cleanup, err
		}
		b.mu.Lock()
		if b.rendered == nil {
			b.rendered = make(map[int32]int)
		}
		b.rendered[f]++
		b.mu.Unlock()
	}
	return log, cleanup, nil
}

// Rest implements render.Runner: nothing waits.
func (b *Blender) Rest() {}

// Close implements render.Runner.
func (b *Blender) Close() error { return nil }
