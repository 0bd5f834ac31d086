package lease

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Blender's own bounds on frame numbers (MINAFRAME and MAXFRAME).
const (
	MinFrame = -1048574
	MaxFrame = 1048574
)

// MaxRanges bounds the number of comma-separated parts of a frame list.
const MaxRanges = 10_000

// Range is the frames First, First+Step, … up to Last at most.
type Range struct {
	First int32 `json:"first"`
	Last  int32 `json:"last"`
	Step  int32 `json:"step"`
}

// Frames is a list of frame ranges as an artist writes it: "1-40,50,60-80x2".
type Frames []Range

var rangeSyntax = regexp.MustCompile(`^(-?\d{1,8})(?:-(-?\d{1,8})(?:x(\d{1,8}))?)?$`)

// ParseFrames reads a list such as "1-40,50,60-80x2". Frames may be negative.
func ParseFrames(s string) (Frames, error) {
	if strings.TrimSpace(s) == "" {
		return nil, fmt.Errorf("the frame list is empty: give frames such as 1-40 or 1-40,50,60-80x2")
	}
	parts := strings.Split(s, ",")
	if len(parts) > MaxRanges {
		return nil, fmt.Errorf("the frame list has %d parts, more than the %d allowed: use ranges such as 1-40", len(parts), MaxRanges)
	}
	var fs Frames
	for _, part := range parts {
		m := rangeSyntax.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil {
			return nil, fmt.Errorf("%q is not a frame or a range: write frames such as 1-40,50,60-80x2", part)
		}
		first, _ := strconv.Atoi(m[1])
		last, step := first, 1
		if m[2] != "" {
			last, _ = strconv.Atoi(m[2])
		}
		if m[3] != "" {
			step, _ = strconv.Atoi(m[3])
		}
		fs = append(fs, Range{First: clamp32(first), Last: clamp32(last), Step: clamp32(step)})
	}
	return fs, fs.Validate()
}

// clamp32 keeps an over-long number recognisably out of range instead of
// wrapping it into range.
func clamp32(n int) int32 { return int32(max(math.MinInt32, min(math.MaxInt32, n))) }

// Validate reports the first range that is inverted, stepless or beyond
// Blender's own frame limits, and a list that names more frames than there are.
func (fs Frames) Validate() error {
	if len(fs) == 0 {
		return fmt.Errorf("the frame list is empty: give frames such as 1-40")
	}
	if len(fs) > MaxRanges {
		return fmt.Errorf("the frame list has %d ranges, more than the %d allowed", len(fs), MaxRanges)
	}
	total := 0
	for _, r := range fs {
		switch {
		case r.First > r.Last:
			return fmt.Errorf("the frame range %d-%d is inverted: write %d-%d", r.First, r.Last, r.Last, r.First)
		case r.Step < 1 || r.Step > MaxFrame-MinFrame:
			return fmt.Errorf("the frame range %d-%d has a step of %d: use 1 to %d", r.First, r.Last, r.Step, MaxFrame-MinFrame)
		case r.First < MinFrame || r.Last > MaxFrame:
			return fmt.Errorf("frames %d-%d are beyond Blender's limits of %d to %d", r.First, r.Last, MinFrame, MaxFrame)
		}
		if total += int(r.Last-r.First)/int(r.Step) + 1; total > MaxFrame-MinFrame+1 {
			return fmt.Errorf("the frame list names more frames than Blender has: remove ranges that overlap")
		}
	}
	return nil
}

// Expand lists each frame of a valid list once, in ascending order.
func (fs Frames) Expand() []int32 {
	var out []int32
	for _, r := range fs {
		for f := r.First; f <= r.Last; f += r.Step {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// String writes the list as [ParseFrames] reads it.
func (fs Frames) String() string {
	var b strings.Builder
	for i, r := range fs {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case r.First == r.Last:
			fmt.Fprintf(&b, "%d", r.First)
		case r.Step == 1:
			fmt.Fprintf(&b, "%d-%d", r.First, r.Last)
		default:
			fmt.Fprintf(&b, "%d-%dx%d", r.First, r.Last, r.Step)
		}
	}
	return b.String()
}
