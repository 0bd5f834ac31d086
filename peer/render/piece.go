package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vizpeer/lease"
	"vizpeer/peer/render/exr"
)

// tellCost is how many times as long as it takes to report a piece, rendering goes on
// before a larger one is reported: what keeps a part safe must not slow it down.
const tellCost = 25

// spanDone is what is rendered of one of the attempt's spans.
type spanDone struct {
	lease.Span
	at      int32   // the units below it are there
	seconds float64 // that they took
	sum     string  // file that has them all, where they are samples
	told    int32   // up to where they were reported
	piece   string  // the file that was reported last
	next    time.Time
}

// watchSpans makes the watch wait for the attempt's part.
func (w *watch) watchSpans() {
	if w.attempt.Part == nil {
		return
	}
	for _, s := range w.attempt.Part.Spans {
		w.spans = append(w.spans, &spanDone{Span: s, at: s.From, told: s.From})
	}
}

// finished tells whether all that the attempt is for was reported.
func (w *watch) finished() bool {
	if w.attempt.Part != nil {
		return !slices.ContainsFunc(w.spans, func(s *spanDone) bool { return s.told < s.To })
	}
	return len(w.done) == len(w.attempt.Frames)
}

// spanOf is the span that o continues, or nil.
func (w *watch) spanOf(o lease.Span) *spanDone {
	i := slices.IndexFunc(w.spans, func(s *spanDone) bool { return s.Holds(o) && s.at == o.From && o.Len() > 0 })
	if i < 0 {
		return nil
	}
	return w.spans[i]
}

// piece checks what Blender rendered last of a part: a batch of samples or a tile. It
// reports what there is of the span with it.
func (w *watch) piece(ctx context.Context, ev event) error {
	s := w.spanOf(ev.Span)
	if s == nil || ev.Frame != w.attempt.Frames[0] || w.attempt.Part.Split.By == lease.ByTiles && ev.Len() != 1 {
		return w.fail(lease.FailError, fmt.Sprintf("Blender reports units %d to %d of frame %d, which this attempt does not wait for", ev.From, ev.To, ev.Frame))
	}
	if w.spoilt != "" {
		return w.fail(lease.FailMemory, fmt.Sprintf("the GPU ran out of memory at frame %d, and Blender went on without what found no room: %s", ev.Frame, w.spoilt))
	}
	batch := filepath.Join(w.dir.frames(), fmt.Sprintf("batch_%d-%d.exr", ev.From, ev.To))
	if err := w.takeOut(ev.File, batch); err != nil {
		return w.fail(lease.FailImage, fmt.Sprintf("frame %d, units %d to %d: %v", ev.Frame, ev.From, ev.To, err))
	}
	began := time.Now()
	if err := w.addBatch(s, ev, batch); err != nil {
		return err
	}
	w.now.Sample = 0
	w.countParts()
	if s.at < s.To && began.Before(s.next) && w.attempt.Part.Split.By == lease.BySamples {
		return nil
	}
	if err := w.tell(ctx, s); err != nil {
		return err
	}
	end := time.Now()
	s.next = end.Add(tellCost * end.Sub(began))
	w.report(true)
	return nil
}

// addBatch adds a file to what there is of a span.
func (w *watch) addBatch(s *spanDone, ev event, batch string) error {
	bad := func(err error) error {
		kind := lease.FailMachine
		if errors.Is(err, exr.ErrFormat) {
			kind = lease.FailImage
		}
		return w.fail(kind, fmt.Sprintf("frame %d, units %d to %d: %v", ev.Frame, ev.From, ev.To, err))
	}
	if err := exr.Check(batch); err != nil {
		return bad(err)
	}
	if ev.Cut != (exr.Margin{}) {
		whole := batch + ".whole"
		err := os.Rename(batch, whole)
		if err == nil {
			err = exr.Cut(batch, whole, ev.Cut)
		}
		os.Remove(whole)
		if err != nil {
			return bad(err)
		}
	}
	if s.sum == "" || w.attempt.Part.Split.By == lease.ByTiles {
		s.sum = batch
	} else {
		sum := filepath.Join(w.dir.frames(), fmt.Sprintf("sum_%d-%d.exr", s.From, ev.To))
		err := exr.Mean(sum, []exr.Weighted{{Path: s.sum, Samples: int(s.at - s.From)}, {Path: batch, Samples: int(ev.Len())}})
		if err != nil {
			return bad(err)
		}
		os.Remove(s.sum)
		os.Remove(batch)
		s.sum = sum
	}
	s.at, s.seconds = ev.To, max(s.seconds, ev.Seconds)
	if w.attempt.Part.Split.By == lease.ByTiles {
		s.seconds = max(0, ev.Seconds)
	}
	return nil
}

// tell reports what there is of a span. The file that is reported may be moved: what is
// added to is another name for it.
func (w *watch) tell(ctx context.Context, s *spanDone) error {
	p := Piece{Span: lease.Span{From: s.From, To: s.at}, Frame: w.attempt.Frames[0], Seconds: s.seconds}
	if w.attempt.Part.Split.By == lease.ByTiles {
		p.From = s.at - 1
		p.Path, s.sum = s.sum, ""
	} else {
		p.Path = filepath.Join(w.dir.frames(), fmt.Sprintf("piece_%d-%d.exr", p.From, p.To))
		give := linkOrCopy
		if s.at == s.To {
			give = os.Rename // nothing will be added
		}
		if err := give(s.sum, p.Path); err != nil {
			return w.fail(lease.FailMachine, fmt.Sprintf("frame %d: this machine could not keep a piece: %v", p.Frame, err))
		}
		if s.piece != "" {
			os.Remove(s.piece) // the new one takes its place
		}
		s.piece = p.Path
	}
	if err := w.sink.Piece(ctx, p); err != nil {
		return w.fail(lease.FailMachine, fmt.Sprintf("units %d to %d of frame %d were rendered but this machine could not keep them: %v", p.From, p.To, p.Frame, err))
	}
	s.told = s.at
	return nil
}

// tellRest reports what was rendered and not reported when Blender ended, however it
// did: samples are worth the same without those that did not come.
func (w *watch) tellRest(ctx context.Context) error {
	for _, s := range w.spans {
		if s.told < s.at {
			if err := w.tell(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// preview shows a picture of Blender's, if it is one.
func (w *watch) preview(ev event) {
	path := filepath.Join(w.dir.frames(), "preview.jpg")
	if err := w.takeOut(ev.File, path); err != nil {
		w.tail.add("note: no preview: " + err.Error())
		return
	}
	defer os.Remove(path)
	known := slices.ContainsFunc(w.spans, func(s *spanDone) bool { return s.Holds(ev.Span) && ev.Len() > 0 && ev.To <= s.at })
	if !known || ev.Frame != w.attempt.Frames[0] {
		w.tail.add(fmt.Sprintf("note: no preview: Blender shows units %d to %d of frame %d", ev.From, ev.To, ev.Frame))
		return
	}
	if err := checkPreview(path); err != nil {
		w.tail.add("note: no preview: " + err.Error())
		return
	}
	w.sink.Preview(Preview{Frame: ev.Frame, Span: ev.Span, Path: path})
}

// countParts makes the samples that Blender counts in a batch or a tile those of the
// whole part.
func (w *watch) countParts() {
	if w.attempt.Part == nil {
		return
	}
	var there, all int
	for _, s := range w.spans {
		there += int(s.at - s.From)
		all += int(s.Len())
	}
	if w.attempt.Part.Split.By == lease.ByTiles {
		each := max(1, w.now.Samples)
		if w.tileSamples == 0 {
			w.tileSamples = each
		}
		there, all = there*w.tileSamples, all*w.tileSamples
	}
	w.now.Sample, w.now.Samples = min(there+w.now.Sample, all), all
}

// linkOrCopy makes to another name for the file from, or where the file system has no
// such thing, a copy.
func linkOrCopy(from, to string) error {
	os.Remove(to)
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(to)
	}
	return err
}
