package render

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"vizpeer/lease"
	"vizpeer/peer/render/exr"
)

// partArgs and mergeArgs are the driver's side of a part and a merge: see parts.py.
type partArgs struct {
	Split lease.Split `json:"split"`
	Spans [][2]int32  `json:"spans"`
}

type mergeArgs struct {
	Split lease.Split `json:"split"`
	File  string      `json:"file"`
}

func newPartArgs(p Part) *partArgs {
	args := &partArgs{Split: p.Split}
	for _, s := range p.Spans {
		args.Spans = append(args.Spans, [2]int32{s.From, s.To})
	}
	return args
}

// mergedName is the file that Blender makes the frame of.
const mergedName = "merged.exr"

// checkSplit tells what is wrong with the part or the merge of an attempt.
func (a Attempt) checkSplit() error {
	if a.Part == nil && a.Merge == nil {
		return nil
	}
	bad := func(format string, args ...any) error {
		return &Error{Kind: lease.FailError, Reason: fmt.Sprintf(format, args...)}
	}
	if len(a.Frames) != 1 || a.Part != nil && a.Merge != nil {
		return bad("an attempt at parts is about one frame, and about parts or their merge")
	}
	split, spans := lease.Split{}, []lease.Span(nil)
	if a.Part != nil {
		split, spans = a.Part.Split, a.Part.Spans
	} else {
		split, spans = a.Merge.Split, a.Merge.spans()
	}
	if err := split.Validate(); err != nil || !split.On() {
		return bad("the attempt does not say how the frame is split: %v", err)
	}
	if len(spans) == 0 {
		return bad("the attempt names no parts")
	}
	spans = slices.SortedFunc(slices.Values(spans), func(a, b lease.Span) int { return int(a.From) - int(b.From) })
	for i, s := range spans {
		if s.Len() == 0 || s.From < 0 || s.To > split.Units {
			return bad("the frame has no %s %d to %d: it has %d", split.By, s.From, s.To, split.Units)
		}
		if i > 0 && spans[i-1].Meets(s) {
			return bad("%s %d to %d of frame %d come twice", split.By, s.From, min(s.To, spans[i-1].To), a.Frames[0])
		}
		if a.Merge != nil && split.By == lease.ByTiles && s.Len() != 1 {
			return bad("tiles %d to %d of frame %d come as one", s.From, s.To, a.Frames[0])
		}
	}
	if a.Merge != nil {
		if gaps := (lease.Span{To: split.Units}).Gaps(spans); len(gaps) > 0 {
			return bad("%s %d to %d of frame %d are missing", split.By, gaps[0].From, gaps[0].To, a.Frames[0])
		}
	}
	return nil
}

func (m *Merge) spans() (spans []lease.Span) {
	for _, p := range m.Pieces {
		spans = append(spans, p.Span)
	}
	return spans
}

// assemble puts the pieces of a merge together, in a file that it answers. Of samples
// the result is a piece too.
func (a Attempt) assemble(ctx context.Context, dir attemptDir, sink Sink) (merged string, err error) {
	pieces := slices.SortedFunc(slices.Values(a.Merge.Pieces), func(a, b Input) int { return int(a.From) - int(b.From) })
	merged = filepath.Join(dir.frames(), mergedName)
	split := a.Merge.Split
	if split.By == lease.ByTiles {
		var paths []string
		for _, p := range pieces {
			paths = append(paths, p.Path)
		}
		err = exr.Grid(merged, int(split.Columns), int(split.Rows), paths)
	} else {
		var weighted []exr.Weighted
		for _, p := range pieces {
			weighted = append(weighted, exr.Weighted{Path: p.Path, Samples: int(p.Len())})
		}
		err = exr.Mean(merged, weighted)
	}
	if e, ok := errors.AsType[*exr.PieceError](err); ok {
		p := pieces[e.Piece]
		return "", &Error{Kind: lease.FailImage, Reason: fmt.Sprintf("frame %d cannot be put together: %s %d to %d: %v", a.Frames[0], split.By, p.From, p.To, e.Err)}
	}
	p := Piece{Span: lease.Span{To: split.Units}, Frame: a.Frames[0], Path: filepath.Join(dir.frames(), fmt.Sprintf("piece_0-%d.exr", split.Units))}
	if err == nil && split.By == lease.BySamples {
		err = linkOrCopy(merged, p.Path)
	}
	if err != nil {
		return "", &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot put frame %d together: %v", a.Frames[0], err)}
	}
	if split.By == lease.ByTiles {
		return merged, nil
	}
	if err := sink.Piece(ctx, p); err != nil {
		return "", &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("frame %d was put together but this machine could not keep it: %v", p.Frame, err)}
	}
	return merged, nil
}

// showMerged puts a merged picture where Blender can read it and not change it, in the
// place of the one before.
func showMerged(merged, folder string) error {
	at := filepath.Join(folder, mergedName)
	err := os.Remove(at)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = linkOrCopy(merged, at)
	}
	if err != nil {
		return &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot show Blender the parts of the frame: %v", err)}
	}
	return nil
}
