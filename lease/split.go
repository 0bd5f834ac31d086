package lease

import (
	"fmt"
	"slices"
)

// SplitBy is what a frame is divided by, so that several machines can render it.
type SplitBy string

// The ways to divide a frame. Samples suit noise that falls evenly: each machine gives
// a whole picture, and a lost one costs only noise. Tiles give the same pixels to the
// bit, also with Cryptomatte and, as a few pixels around each tile are rendered with it,
// with adaptive sampling, where a pixel's neighbours have a say in its samples.
const (
	BySamples SplitBy = "samples"
	ByTiles   SplitBy = "tiles"
)

// Split says how each frame of a job is divided into units, which are leased in
// ranges: its samples, or its tiles, counted by rows from the bottom left. The zero
// value divides nothing.
type Split struct {
	By    SplitBy `json:"by,omitempty"`
	Units int32   `json:"units,omitempty"` // samples, or Columns × Rows
	// Columns and Rows are the grid of tiles.
	Columns int32 `json:"columns,omitempty"`
	Rows    int32 `json:"rows,omitempty"`
}

// Bounds of a split.
const (
	MaxSamples = 1 << 24
	MaxTiles   = 4096
)

// On tells whether frames are divided.
func (s Split) On() bool { return s.By != "" }

// Validate reports the first thing wrong with s.
func (s Split) Validate() error {
	switch {
	case s == Split{}:
		return nil
	case s.By == BySamples && (s.Units < 1 || s.Units > MaxSamples || s.Columns != 0 || s.Rows != 0):
		return fmt.Errorf("a frame cannot be split into %d samples: use 1 to %d", s.Units, MaxSamples)
	case s.By == ByTiles && (s.Columns < 1 || s.Rows < 1 || s.Columns > MaxTiles || s.Rows > MaxTiles || s.Columns*s.Rows > MaxTiles || s.Units != s.Columns*s.Rows):
		return fmt.Errorf("a frame cannot be split into %d × %d tiles: use 1 to %d in all", s.Columns, s.Rows, MaxTiles)
	case s.By != BySamples && s.By != ByTiles:
		return fmt.Errorf("unknown way %.20q to split a frame: use samples or tiles", string(s.By))
	}
	return nil
}

// Span is a range of the units of a frame: From and those after it, below To.
type Span struct {
	From int32 `json:"from"`
	To   int32 `json:"to"`
}

// Len is the number of units in s.
func (s Span) Len() int32 { return max(0, s.To-s.From) }

// Holds tells whether all of o lies in s.
func (s Span) Holds(o Span) bool { return s.From <= o.From && o.To <= s.To }

// Meets tells whether s and o have a unit in common.
func (s Span) Meets(o Span) bool { return max(s.From, o.From) < min(s.To, o.To) }

// Gaps lists what of s none of the spans covers, in order.
func (s Span) Gaps(spans []Span) (gaps []Span) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int { return int(a.From) - int(b.From) })
	at := s.From
	for _, o := range spans {
		if !s.Meets(o) {
			continue
		}
		if o.From > at {
			gaps = append(gaps, Span{at, o.From})
		}
		at = max(at, o.To)
	}
	if at < s.To {
		gaps = append(gaps, Span{at, s.To})
	}
	return gaps
}
