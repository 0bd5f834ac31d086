package peer

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"vizpeer/blobs"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/render"
)

// sink takes frames and pieces from Blender, stores them and reports them at once, so
// that they survive this machine. The last one waits a moment for the attempt to end:
// one report is enough for both.
type sink struct {
	w *worker
	a *attempt
	// ctx is the attempt's: the runner's own ends with Blender, which may be long
	// before a leader is there to take the last frames.
	ctx  context.Context
	wg   sync.WaitGroup
	left int   // frames to come
	full error // why a frame found no room here: no fault of Blender's or the job's

	mu     sync.Mutex
	last   *lease.Result       // not reported yet
	pieces []lease.PieceResult // not reported yet
	timer  *time.Timer         // reports them
}

// lastFrame is how long the last frame of an attempt waits for Blender to quit.
const lastFrame = 500 * time.Millisecond

func newSink(ctx context.Context, w *worker, a *attempt) *sink {
	return &sink{w: w, a: a, ctx: ctx, left: len(a.order.Frames)}
}

func (s *sink) Progress(p render.Progress) { s.w.say(s.a, p) }

// keep stores a file of the attempt, durably.
func (s *sink) keep(ctx context.Context, path string) (*blobs.Import, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return s.w.keepFrame(ctx, s.a.order.Task.Job, file)
}

// noteFull remembers that the store had no room.
func (s *sink) noteFull(err *error) {
	if isFull(*err) {
		s.full = *err
	}
}

func (s *sink) Frame(ctx context.Context, f render.Frame) (err error) {
	defer s.noteFull(&err)
	o := s.a.order
	i, err := s.keep(ctx, f.Path)
	if err != nil {
		return fmt.Errorf("store frame %d: %w", f.Frame, err)
	}
	r := lease.Result{Frame: f.Frame, CID: i.CID.String(), Name: f.Name, Size: i.Size, Seconds: f.Seconds, Thumb: s.thumb(ctx, f)}
	if err := s.beside(ctx, f, &r); err != nil {
		return fmt.Errorf("store what is beside frame %d: %w", f.Frame, err)
	}
	if err := s.w.results.add(pending{Report: o.Report, Frames: []lease.Result{r}}); err != nil {
		return fmt.Errorf("note frame %d: %w", f.Frame, err)
	}
	s.w.alone.add(r.CID, o.Task.Job)
	if s.left--; s.left > 0 {
		s.record(r)
		s.w.link.Nudge()
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = &r
	s.later()
	return nil
}

// later reports what waits, unless the attempt ends before. s.mu is held.
func (s *sink) later() {
	if s.timer == nil {
		s.timer = time.AfterFunc(lastFrame, func() { s.takeLast(s.reportLast) })
	}
}

// record reports a frame of an attempt that goes on.
func (s *sink) record(r lease.Result) {
	s.wg.Go(func() {
		s.w.report(s.ctx, coord.Up{Record: &lease.Record{Report: s.a.order.Report, Frames: []lease.Result{r}}})
	})
}

// reportLast reports what waited.
func (s *sink) reportLast(frames []lease.Result, pieces []lease.PieceResult) {
	s.wg.Go(func() {
		s.w.report(s.ctx, coord.Up{Record: &lease.Record{Report: s.a.order.Report, Frames: frames, Pieces: pieces}})
	})
}

// takeLast calls do with what waits to be reported, if anything does.
func (s *sink) takeLast(do func([]lease.Result, []lease.PieceResult)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil {
		return
	}
	s.timer.Stop()
	s.timer = nil
	var frames []lease.Result
	if s.last != nil {
		frames = append(frames, *s.last)
	}
	do(frames, s.pieces)
	s.last, s.pieces = nil, nil
}

// end waits until what was reported is answered, and returns what the attempt's
// Complete is to report, if there will be one.
func (s *sink) end(complete bool) (frames []lease.Result, pieces []lease.PieceResult) {
	s.takeLast(func(f []lease.Result, p []lease.PieceResult) {
		if complete {
			frames, pieces = f, p
		} else {
			s.reportLast(f, p)
		}
	})
	s.wg.Wait()
	return frames, pieces
}

// Piece stores a piece of a frame and reports it, unless a larger one comes at once.
func (s *sink) Piece(ctx context.Context, p render.Piece) (err error) {
	defer s.noteFull(&err)
	o := s.a.order
	i, err := s.keep(ctx, p.Path)
	if err != nil {
		return fmt.Errorf("store a piece of frame %d: %w", p.Frame, err)
	}
	r := lease.PieceResult{Frame: p.Frame, Span: p.Span, CID: i.CID.String(), Size: i.Size, Seconds: p.Seconds}
	if err := s.w.results.add(pending{Report: o.Report, Pieces: []lease.PieceResult{r}}); err != nil {
		return fmt.Errorf("note a piece of frame %d: %w", p.Frame, err)
	}
	s.w.alone.add(r.CID, o.Task.Job)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pieces = append(slices.DeleteFunc(s.pieces, func(old lease.PieceResult) bool {
		held := r.Holds(old.Span)
		if held && old.CID != r.CID { // nobody will ever hear of it
			s.w.crew.Go(func() { s.w.discard(o.Task.Job, old.CID) })
		}
		return held
	}), r)
	s.later()
	return nil
}

// Preview stores a picture of the attempt's frame; the next renewal tells of it.
func (s *sink) Preview(p render.Preview) {
	file, err := os.Open(p.Path)
	if err != nil {
		return
	}
	defer file.Close()
	i, err := s.w.store.BeginImport(s.ctx, file, shownPin(s.a.order.Task.Job))
	if err != nil {
		s.w.slog.Debug("a preview was not kept", "err", err)
		return
	}
	s.w.settleLater(i)
	s.w.mu.Lock()
	// Whoever reads the list has it still: it is replaced, never changed.
	s.a.previews = append(slices.Clone(s.a.previews[max(0, len(s.a.previews)-coord.MaxPreviews+1):]), coord.Preview{Frame: p.Frame, CID: i.CID.String(), Span: p.Span})
	s.w.mu.Unlock()
	s.w.link.Nudge()
}

// beside stores what is beside a frame and notes it in the frame's result.
func (s *sink) beside(ctx context.Context, f render.Frame, r *lease.Result) error {
	if f.Extra == "" {
		return nil
	}
	root, sum, err := s.w.keepFolder(ctx, s.a.order.Task.Job, f.Extra)
	if err != nil {
		return err
	}
	r.Extra, r.ExtraFiles, r.ExtraSize = root.String(), sum.Files, sum.Bytes
	return nil
}

// thumb stores the small picture of a frame; without one the frame is as good.
func (s *sink) thumb(ctx context.Context, f render.Frame) string {
	if f.Thumb == "" {
		return ""
	}
	file, err := os.Open(f.Thumb)
	if err != nil {
		return ""
	}
	defer file.Close()
	i, err := s.w.store.BeginImport(ctx, file, framePin(s.a.order.Task.Job))
	if err != nil {
		s.w.slog.Debug("a thumbnail was not kept", "frame", f.Frame, "err", err)
		return ""
	}
	s.w.settleLater(i)
	return i.CID.String()
}

// settleLater waits beside everything else until a picture is on disk, which nothing
// hangs on.
func (w *worker) settleLater(i *blobs.Import) {
	w.crew.Go(func() {
		if err := i.Settle(context.WithoutCancel(w.ctx)); err != nil {
			w.slog.Debug("a picture was not kept", "err", err)
		}
	})
}
