package lease

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Wish is how somebody wants the frames of a job divided among machines. The zero
// value leaves it to [Choose].
type Wish struct {
	By WishBy
	// Columns and Rows are the grid of tiles; 0: one that suits the frame.
	Columns, Rows int32
}

// WishBy is what somebody wants frames to be divided by.
type WishBy string

// What may be wished. "" is [WishAuto] as well.
const (
	WishAuto    WishBy = "auto"
	WishNone    WishBy = "none"
	WishSamples WishBy = "samples"
	WishTiles   WishBy = "tiles"
)

// ParseWish reads what to divide by, and a grid such as "3x2". A grid alone wishes
// for tiles; "" wishes for nothing in particular.
func ParseWish(by, grid string) (Wish, error) {
	w := Wish{By: WishBy(cmp.Or(by, string(WishAuto)))}
	switch w.By {
	case WishAuto, WishNone, WishSamples, WishTiles:
	default:
		return Wish{}, fmt.Errorf("unknown way %.20q to split a frame: use none, samples, tiles or auto", by)
	}
	if grid == "" {
		return w, nil
	}
	if w.By == WishNone || w.By == WishSamples {
		return Wish{}, fmt.Errorf("a grid of tiles does not go with the split %s: leave one of them out", w.By)
	}
	columns, rows, _ := strings.Cut(strings.ToLower(grid), "x")
	c, badC := strconv.ParseInt(columns, 10, 32)
	r, badR := strconv.ParseInt(rows, 10, 32)
	switch {
	case badC != nil || badR != nil || c < 1 || r < 1:
		return Wish{}, fmt.Errorf("%.20q is no grid of tiles: write columns and rows, such as 3x2", grid)
	case c*r < 2:
		return Wish{}, fmt.Errorf("a grid of %s tiles divides nothing: use more, or the split none", grid)
	case c*r > MaxTiles:
		return Wish{}, fmt.Errorf("a grid of %s tiles is %d, more than the %d allowed", grid, c*r, MaxTiles)
	}
	return Wish{By: WishTiles, Columns: int32(c), Rows: int32(r)}, nil
}

// Picture is what of a scene decides how its frames may be divided, as a collector
// read it from the .blend.
type Picture struct {
	// Engine and Format are the scene's own; a manifest has them elsewhere.
	Engine string `json:"-"`
	Format string `json:"-"`

	Width   int32 `json:"width"` // in pixels, before Percent
	Height  int32 `json:"height"`
	Percent int32 `json:"percent"`
	// Samples is how many each pixel gets of Cycles, or may get where it is Adaptive;
	// 0 where there is no one number, as view layers may ask for their own.
	Samples      int32   `json:"samples,omitempty"`
	Adaptive     bool    `json:"adaptive,omitempty"`
	TimeLimit    float64 `json:"time_limit,omitempty"` // in seconds; 0: none
	AnimatedSeed bool    `json:"animated_seed,omitempty"`
	Cryptomatte  bool    `json:"cryptomatte,omitempty"`
	// DataPasses tells of passes that are no mean of samples, such as depth and the
	// indices of objects, and DataUsed that they have a part in the picture: the
	// compositor reads them, or they are written beside it.
	DataPasses    bool `json:"data_passes,omitempty"`
	DataUsed      bool `json:"data_used,omitempty"`
	ShadowCatcher bool `json:"shadow_catcher,omitempty"`
	Border        bool `json:"border,omitempty"` // a render region
	Multiview     bool `json:"multiview,omitempty"`
	Freestyle     bool `json:"freestyle,omitempty"`
	// Assembled tells that the frame is made of other scenes too, or of strips, by
	// the compositor or the sequencer.
	Assembled bool `json:"assembled,omitempty"`
}

// Choice is how the frames of a job are divided, and what its author should know.
type Choice struct {
	Split Split
	// Whole says why the one frame of a job is not divided, where that was left open.
	Whole string
	// Warning says what of the scene is not rendered as it says.
	Warning string
}

// What makes a still worth dividing by itself: less of it is done before the last
// machine has read the scene. It also keeps whatever is small bit for bit what plain
// Blender renders.
const (
	worthSamples = 64
	worthPixels  = 512 * 512
)

// Blender 4 draws its samples from a table whose parts are exact parts of the whole
// only up to so many. Blender 3 has a pattern without such a bound, and Blender 5 is
// told of which whole its samples are a part.
const tableSamples = 256

// Tiles, where nobody chose a grid: near squares of about idealTile pixels a side, so
// many that machines of different speed end together, so few that the reading of the
// scene for each does not count, and none so narrow that its edge is most of it.
const (
	idealTile = 256
	leastTile = 64
	fewTiles  = 16
	manyTiles = 64
)

// maxSide is the longest side of a picture that Blender renders.
const maxSide = 1 << 16

// Choose decides how the frames of the job s are divided, of which it reads frames,
// settings and the Blender that it asks for. p is nil where nobody looked into the
// scene that is rendered. An error is a wish that cannot be met, for whom to tell.
//
// Samples are for stills: every machine gives the whole picture early, and a machine
// that is lost costs only noise. Tiles are for what parts of the samples cannot give:
// they take their pixels' samples together, so that adaptive sampling, Cryptomatte and
// data stay what they are. Left open, only a job of one frame is divided: the frames
// of others are shared out whole, which costs nothing.
func Choose(w Wish, s Spec, p *Picture) (Choice, error) {
	never := anyWay(s, p)
	switch {
	case w.By == WishNone:
		return Choice{}, nil
	case (w.By == WishSamples || w.By == WishTiles) && never.stands():
		return Choice{}, never.refuse(w.By)
	case w.By == WishSamples:
		return bySamples(s, p)
	case w.By == WishTiles:
		return byTiles(w, s, p)
	case !s.Frames.single():
		return Choice{}, nil
	case never.stands():
		return Choice{Whole: never.why}, nil
	}
	if o := notWorth(s, p); o.stands() {
		return Choice{Whole: o.why}, nil
	}
	if p.Adaptive || notSamples(s, p).stands() {
		return byTiles(w, s, p)
	}
	return bySamples(s, p)
}

// obstacle is why frames cannot be divided, and what to do about it.
type obstacle struct{ why, next string }

func (o obstacle) stands() bool { return o.why != "" }

func (o obstacle) refuse(by WishBy) error {
	return fmt.Errorf("the frames cannot be split into %s: %s; %s", by, o.why, o.next)
}

// anyWay is what keeps frames from being divided at all.
func anyWay(s Spec, p *Picture) obstacle {
	const whole = "use --split none"
	switch {
	case p == nil:
		return obstacle{"nobody has looked into the scene, as a Blender on the submitting machine would", "install one there, or " + whole}
	case cmp.Or(s.Settings.Engine, p.Engine) != "CYCLES":
		return obstacle{"only Cycles renders parts of a frame, and the scene's engine is " + cmp.Or(s.Settings.Engine, p.Engine, "not known"), whole}
	case p.Multiview:
		return obstacle{"the scene has several views", whole}
	case p.Border:
		return obstacle{"the scene renders only a region of the frame", "clear the render region in the scene, or " + whole}
	case p.TimeLimit > 0:
		return obstacle{fmt.Sprintf("the scene gives a frame %g seconds, in which a part would get as many samples as the whole", p.TimeLimit),
			"set its time limit to 0, or " + whole}
	case p.Freestyle:
		return obstacle{"Freestyle draws its lines over the whole frame", whole}
	case p.Assembled:
		return obstacle{"the frame is put together of other scenes or of strips", whole}
	}
	if width, height := p.size(s.Settings); width < 1 || height < 1 {
		return obstacle{"the resolution is not known", whole}
	}
	return obstacle{}
}

// notWorth is why a still that can be divided is not worth it.
func notWorth(s Spec, p *Picture) obstacle {
	width, height := p.size(s.Settings)
	switch n := p.samples(s.Settings); {
	case n == 0:
		return obstacle{why: "its number of samples is not known"}
	case n < worthSamples:
		return obstacle{why: fmt.Sprintf("it has %d samples, fewer than the %d from which that is worth it", n, worthSamples)}
	case int64(width)*int64(height) < worthPixels:
		return obstacle{why: fmt.Sprintf("it has %d × %d pixels, fewer than from which that is worth it", width, height)}
	}
	return obstacle{}
}

// notSamples is what keeps frames that can be divided from being so by samples.
func notSamples(s Spec, p *Picture) obstacle {
	const tiles = "use --split tiles"
	n := p.samples(s.Settings)
	switch {
	case n == 0:
		return obstacle{"their number is not known, or each view layer has its own", "give it with --samples, or " + tiles}
	case s.Needs.mayBeBlender(2):
		return obstacle{"Blender 2 begins every frame at its first sample", tiles}
	case p.Cryptomatte:
		return obstacle{"Cryptomatte is wrong at edges where parts are merged", tiles}
	case p.DataUsed || p.DataPasses && cmp.Or(s.Settings.Format, p.Format) == "OPEN_EXR_MULTILAYER":
		return obstacle{"depth, position and indices are no mean of samples, and the picture has or needs them", tiles}
	case p.ShadowCatcher:
		return obstacle{"what a shadow catcher shows is no mean of samples", tiles}
	case n > tableSamples && s.Needs.mayBeBlender(4):
		return obstacle{fmt.Sprintf("Blender 4 divides at most %d samples without more noise, and these are %d", tableSamples, n),
			fmt.Sprintf("give --samples %d, or %s", tableSamples, tiles)}
	}
	return obstacle{}
}

func bySamples(s Spec, p *Picture) (Choice, error) {
	if o := notSamples(s, p); o.stands() {
		return Choice{}, o.refuse(WishSamples)
	}
	c := Choice{Split: Split{By: BySamples, Units: p.samples(s.Settings)}}
	if p.Adaptive {
		// No part knows how noisy the whole is. More samples than asked for are no fault
		// in a picture, so this is no reason to refuse what somebody wished.
		c.Warning = fmt.Sprintf("the scene's adaptive sampling is switched off: split into samples, every pixel gets all %d; --split tiles keeps it", c.Split.Units)
	}
	return c, nil
}

func byTiles(w Wish, s Spec, p *Picture) (Choice, error) {
	width, height := p.size(s.Settings)
	columns, rows := w.Columns, w.Rows
	if columns == 0 || rows == 0 {
		columns, rows = grid(width, height)
	}
	switch {
	case columns > width || rows > height:
		return Choice{}, fmt.Errorf("a frame of %d × %d pixels cannot be split into %d × %d tiles: use fewer", width, height, columns, rows)
	case columns*rows < 2:
		return Choice{}, fmt.Errorf("a frame of %d × %d pixels is too small to be split into tiles: use --split none, or choose them with --tiles", width, height)
	}
	return Choice{Split: Split{By: ByTiles, Units: columns * rows, Columns: columns, Rows: rows}}, nil
}

// grid is how many tiles suit a frame.
func grid(width, height int32) (columns, rows int32) {
	w, h := float64(width), float64(height)
	side := min(max(idealTile, math.Sqrt(w*h/manyTiles)), math.Sqrt(w*h/fewTiles))
	columns = int32(min(max(1, math.Round(w/side)), max(1, math.Floor(w/leastTile)), manyTiles))
	rows = int32(min(max(1, math.Round(h/side)), max(1, math.Floor(h/leastTile)), manyTiles))
	for columns*rows > manyTiles { // by rounding: the narrower side gives way
		if width/columns < height/rows {
			columns--
		} else {
			rows--
		}
	}
	return columns, rows
}

// size is the frame's in pixels, as Blender rounds it; 0 where it is not known.
func (p *Picture) size(set Settings) (width, height int32) {
	percent := int64(p.Percent)
	if set.ResolutionPercent > 0 {
		percent = int64(set.ResolutionPercent)
	}
	side := func(n int32) int32 {
		if n < 1 || percent < 1 || int64(n)*percent/100 > maxSide {
			return 0
		}
		return int32(int64(n) * percent / 100)
	}
	return side(p.Width), side(p.Height)
}

// samples is how many each pixel gets; 0 where that is not known.
func (p *Picture) samples(set Settings) int32 {
	n := p.Samples
	if set.Samples > 0 {
		n = int32(min(set.Samples, MaxSamples))
	}
	if n < 0 || n > MaxSamples {
		return 0
	}
	return n
}

// mayBeBlender tells whether a Blender of that major version may render the job.
func (r Requirements) mayBeBlender(major int) bool {
	wanted := r.FileVersion
	switch v, err := ParseVersion(r.Blender); {
	case r.Blender == AnyBlender:
		return r.FileVersion.Major <= major
	case r.Blender != "" && err == nil:
		wanted = v
	}
	return wanted == Version{} || wanted.Major == major
}

// single tells whether the list names one frame.
func (fs Frames) single() bool {
	for _, r := range fs {
		if r.First != fs[0].First || int64(r.Last)-int64(r.First) >= int64(r.Step) {
			return false
		}
	}
	return len(fs) > 0
}
