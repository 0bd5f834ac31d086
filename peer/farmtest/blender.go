package farmtest

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vizpeer/lease"
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
	// Extra gives each frame a file beside its picture, [ExtraName].
	Extra bool

	mu       sync.Mutex
	rendered map[int32]int
	units    int
}

var _ render.Runner = (*Blender)(nil)

// ExtraName is the place of the file beside a frame.
func ExtraName(frame int32) string { return fmt.Sprintf("passes/image%04d.png", frame) }

func writeExtra(dir string, frame int32) error {
	path := filepath.Join(dir, filepath.FromSlash(ExtraName(frame)))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, "beside frame %d", frame), 0o600)
}

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
	if a.Part != nil {
		return log, cleanup, b.part(ctx, mine, dir, a, sink)
	}
	if err := merged(a); err != nil {
		return log, cleanup, err
	}
	for i, f := range a.Frames {
		sink.Progress(render.Progress{Frame: f, Done: i, Total: len(a.Frames), Phase: "rendering"})
		takes := b.PerFrame
		if a.Merge != nil {
			takes = b.PerFrame / 100
		}
		timer := time.NewTimer(takes)
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
		thumb := filepath.Join(dir, "thumb.jpg")
		if err := writeJPEG(thumb); err != nil {
			return log, cleanup, err
		}
		made := render.Frame{Frame: f, Path: path, Name: name, Seconds: b.PerFrame.Seconds(), Thumb: thumb}
		if b.Extra {
			made.Extra = filepath.Join(dir, fmt.Sprint("extra", f))
			if err := writeExtra(made.Extra, f); err != nil {
				return log, cleanup, err
			}
		}
		if err := sink.Frame(mine, made); err != nil {
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

// Units counts the units of split frames that were rendered here.
func (b *Blender) Units() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.units
}

// batch is how many units are rendered at once.
const batch = 4

// part renders units of one frame, each for its share of PerFrame.
func (b *Blender) part(ctx, mine context.Context, dir string, a render.Attempt, sink render.Sink) error {
	frame, tiles := a.Frames[0], a.Part.Split.By == lease.ByTiles
	for _, span := range a.Part.Spans {
		for at := span.From; at < span.To; {
			select {
			case <-a.Finish: // never, where it is nil
				return render.ErrFinished
			default:
			}
			next := min(at+batch, span.To)
			if tiles {
				next = at + 1
			}
			if b.Fail != nil {
				if err := b.Fail(frame); err != nil {
					return err
				}
			}
			select {
			case <-time.After(b.PerFrame * time.Duration(next-at) / time.Duration(a.Part.Split.Units)):
			case <-ctx.Done():
				return render.ErrStopped
			}
			made := lease.Span{From: span.From, To: next}
			if tiles {
				made.From = at
			}
			path := filepath.Join(dir, fmt.Sprintf("%d-%d.exr", made.From, made.To))
			if err := os.WriteFile(path, pieceText(frame, made), 0o600); err != nil {
				return err
			}
			b.mu.Lock()
			b.units += int(next - at)
			b.mu.Unlock()
			if err := sink.Piece(mine, render.Piece{Frame: frame, Span: made, Path: path, Seconds: (b.PerFrame * time.Duration(made.Len()) / time.Duration(a.Part.Split.Units)).Seconds()}); err != nil {
				return err
			}
			shown := filepath.Join(dir, "preview.jpg")
			if err := writeJPEG(shown); err != nil {
				return err
			}
			sink.Preview(render.Preview{Frame: frame, Span: made, Path: shown})
			at = next
		}
	}
	return nil
}

// writeJPEG writes a small grey picture.
func writeJPEG(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(jpeg.Encode(f, image.NewGray(image.Rect(0, 0, 16, 9)), nil), f.Close())
}

func pieceText(frame int32, s lease.Span) []byte {
	return fmt.Appendf(nil, "units %d to %d of frame %d", s.From, s.To, frame)
}

// merged makes sure of the pieces that an attempt is to merge, if it is: all units, each
// once, and each piece the right file.
func merged(a render.Attempt) error {
	if a.Merge == nil {
		return nil
	}
	whole := lease.Span{To: a.Merge.Split.Units}
	var spans []lease.Span
	units := int32(0)
	for _, p := range a.Merge.Pieces {
		spans, units = append(spans, p.Span), units+p.Len()
		text, err := os.ReadFile(p.Path)
		if err != nil {
			return err
		}
		if string(text) != string(pieceText(a.Frames[0], p.Span)) {
			return fmt.Errorf("the piece of units %d to %d is another: %s", p.From, p.To, text)
		}
	}
	if len(whole.Gaps(spans)) > 0 || units != whole.To {
		return fmt.Errorf("the pieces %v do not have each of %d units once", spans, whole.To)
	}
	return nil
}

// Rest implements render.Runner: nothing waits.
func (b *Blender) Rest() {}

// Close implements render.Runner.
func (b *Blender) Close() error { return nil }
