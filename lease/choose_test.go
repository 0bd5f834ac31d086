package lease_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func TestParseWish(t *testing.T) {
	for _, c := range []struct {
		by, grid string
		want     lease.Wish
		problem  string
	}{
		{"", "", lease.Wish{By: lease.WishAuto}, ""},
		{"none", "", lease.Wish{By: lease.WishNone}, ""},
		{"samples", "", lease.Wish{By: lease.WishSamples}, ""},
		{"tiles", "3x2", lease.Wish{By: lease.WishTiles, Columns: 3, Rows: 2}, ""},
		{"", "1X2", lease.Wish{By: lease.WishTiles, Columns: 1, Rows: 2}, ""},
		{"frames", "", lease.Wish{}, `unknown way "frames" to split a frame: use none, samples, tiles or auto`},
		{"samples", "3x2", lease.Wish{}, "does not go with the split samples"},
		{"none", "3x2", lease.Wish{}, "does not go with the split none"},
		{"tiles", "3", lease.Wish{}, `"3" is no grid of tiles: write columns and rows, such as 3x2`},
		{"tiles", "x2", lease.Wish{}, "is no grid"},
		{"tiles", "-3x-2", lease.Wish{}, "is no grid"},
		{"tiles", "3x2x1", lease.Wish{}, "is no grid"},
		{"tiles", "1x1", lease.Wish{}, "divides nothing"},
		{"tiles", "4000000000x2", lease.Wish{}, "is no grid"},
		{"tiles", "2000000000x2000000000", lease.Wish{}, "more than the 4096 allowed"},
	} {
		got, err := lease.ParseWish(c.by, c.grid)
		if c.problem != "" {
			require.ErrorContains(t, err, c.problem)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}

// hd is a picture that can be divided in every way.
func hd(change ...func(*lease.Picture)) *lease.Picture {
	p := &lease.Picture{Engine: "CYCLES", Format: "PNG", Width: 1920, Height: 1080, Percent: 100, Samples: 1024}
	for _, c := range change {
		c(p)
	}
	return p
}

func TestChoose(t *testing.T) {
	still, film := lease.Frames{{First: 7, Last: 7, Step: 1}}, lease.Frames{{First: 1, Last: 2, Step: 1}}
	by := func(w lease.WishBy) lease.Wish { return lease.Wish{By: w} }
	samples := func(n int32) lease.Split { return lease.Split{By: lease.BySamples, Units: n} }
	tiles := func(c, r int32) lease.Split { return lease.Split{By: lease.ByTiles, Units: c * r, Columns: c, Rows: r} }
	three, four, five := lease.Version{Major: 3, Minor: 4}, lease.Version{Major: 4, Minor: 2}, lease.Version{Major: 5}
	for name, c := range map[string]struct {
		wish    lease.Wish
		picture *lease.Picture
		frames  lease.Frames // nil: a still
		set     lease.Settings
		blender string
		saved   lease.Version // zero: three
		want    lease.Split
		whole   string // why it is not divided
		problem string
		warning string
	}{
		"a still":                   {picture: hd(), want: samples(1024)},
		"a still, none":             {wish: by(lease.WishNone), picture: hd()},
		"a still, tiles":            {wish: by(lease.WishTiles), picture: hd(), want: tiles(8, 4)},
		"a still, such tiles":       {wish: lease.Wish{By: lease.WishTiles, Columns: 3, Rows: 2}, picture: hd(), want: tiles(3, 2)},
		"an animation":              {picture: hd(), frames: film},
		"an animation, by samples":  {wish: by(lease.WishSamples), picture: hd(), frames: film, want: samples(1024)},
		"an animation, by tiles":    {wish: by(lease.WishTiles), picture: hd(), frames: film, want: tiles(8, 4)},
		"one frame, named twice":    {picture: hd(), frames: lease.Frames{{First: 3, Last: 5, Step: 4}, {First: 3, Last: 3, Step: 1}}, want: samples(1024)},
		"frames that nobody checks": {picture: hd(), frames: lease.Frames{{First: -1 << 31, Last: 1<<31 - 1}}},

		"unknown":               {whole: "nobody has looked into the scene"},
		"unknown, none":         {wish: by(lease.WishNone)},
		"unknown, samples":      {wish: by(lease.WishSamples), set: lease.Settings{Samples: 100}, problem: "the frames cannot be split into samples: nobody has looked into the scene, as a Blender on the submitting machine would; install one there, or use --split none"},
		"unknown animation":     {frames: film},
		"no resolution":         {picture: hd(func(p *lease.Picture) { p.Width = 0 }), whole: "the resolution is not known"},
		"a huge resolution":     {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.Percent = 32767 }), problem: "the resolution is not known"},
		"a negative resolution": {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.Width, p.Height = -1920, -1080 }), problem: "the resolution is not known"},

		"another engine":           {picture: hd(func(p *lease.Picture) { p.Engine = "BLENDER_EEVEE" }), whole: "only Cycles renders parts of a frame, and the scene's engine is BLENDER_EEVEE"},
		"another engine, tiles":    {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.Engine = "BLENDER_EEVEE" }), problem: "engine is BLENDER_EEVEE; use --split none"},
		"Cycles instead":           {picture: hd(func(p *lease.Picture) { p.Engine = "BLENDER_EEVEE" }), set: lease.Settings{Engine: "CYCLES"}, want: samples(1024)},
		"instead of Cycles":        {wish: by(lease.WishSamples), picture: hd(), set: lease.Settings{Engine: "BLENDER_WORKBENCH"}, problem: "engine is BLENDER_WORKBENCH"},
		"several views":            {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.Multiview = true }), problem: "several views"},
		"a region":                 {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Border = true }), problem: "renders only a region of the frame; clear the render region in the scene"},
		"a region, auto":           {picture: hd(func(p *lease.Picture) { p.Border = true }), whole: "renders only a region"},
		"a time limit":             {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.TimeLimit = 2.5 }), problem: "gives a frame 2.5 seconds, "},
		"Freestyle":                {picture: hd(func(p *lease.Picture) { p.Freestyle = true }), whole: "Freestyle"},
		"strips and other scenes":  {picture: hd(func(p *lease.Picture) { p.Assembled = true }), whole: "put together of other scenes or of strips"},
		"a region of an animation": {picture: hd(func(p *lease.Picture) { p.Border = true }), frames: film},

		"few samples":              {picture: hd(), set: lease.Settings{Samples: 63}, whole: "it has 63 samples, fewer than the 64"},
		"just enough samples":      {picture: hd(func(p *lease.Picture) { p.Samples = 1 }), set: lease.Settings{Samples: 64}, want: samples(64)},
		"few samples, wished":      {wish: by(lease.WishSamples), picture: hd(), set: lease.Settings{Samples: 2}, want: samples(2)},
		"few pixels":               {picture: hd(), set: lease.Settings{ResolutionPercent: 25}, whole: "it has 480 × 270 pixels"},
		"few pixels of the file's": {picture: hd(func(p *lease.Picture) { p.Percent = 25 }), whole: "it has 480 × 270 pixels"},
		"few pixels, wished":       {wish: by(lease.WishSamples), picture: hd(), set: lease.Settings{ResolutionPercent: 1}, want: samples(1024)},
		"more pixels":              {picture: hd(func(p *lease.Picture) { p.Percent = 1 }), set: lease.Settings{ResolutionPercent: 100}, want: samples(1024)},

		"no one number":              {picture: hd(func(p *lease.Picture) { p.Samples = 0 }), whole: "its number of samples is not known"},
		"no one number, samples":     {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Samples = 0 }), problem: "their number is not known, or each view layer has its own; give it with --samples, or use --split tiles"},
		"no one number, but given":   {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Samples = 0 }), set: lease.Settings{Samples: 200}, want: samples(200)},
		"no one number, tiles":       {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.Samples = 0 }), want: tiles(8, 4)},
		"an absurd number":           {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Samples = lease.MaxSamples + 1 }), problem: "their number is not known"},
		"adaptive":                   {picture: hd(func(p *lease.Picture) { p.Adaptive = true }), want: tiles(8, 4)},
		"adaptive, samples":          {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Adaptive = true }), want: samples(1024), warning: "adaptive sampling is switched off: split into samples, every pixel gets all 1024; --split tiles keeps it"},
		"Cryptomatte":                {picture: hd(func(p *lease.Picture) { p.Cryptomatte = true }), want: tiles(8, 4)},
		"Cryptomatte, samples":       {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.Cryptomatte = true }), problem: "Cryptomatte is wrong at edges where parts are merged; use --split tiles"},
		"a shadow catcher":           {picture: hd(func(p *lease.Picture) { p.ShadowCatcher = true }), want: tiles(8, 4)},
		"depth that nobody sees":     {picture: hd(func(p *lease.Picture) { p.DataPasses = true }), want: samples(1024)},
		"depth in the compositor":    {picture: hd(func(p *lease.Picture) { p.DataPasses, p.DataUsed = true, true }), want: tiles(8, 4)},
		"depth in the file":          {picture: hd(func(p *lease.Picture) { p.DataPasses = true }), set: lease.Settings{Format: "OPEN_EXR_MULTILAYER"}, want: tiles(8, 4)},
		"depth in the file, samples": {wish: by(lease.WishSamples), picture: hd(func(p *lease.Picture) { p.DataPasses, p.Format = true, "OPEN_EXR_MULTILAYER" }), problem: "depth, position and indices are no mean of samples"},
		"depth not in the file":      {picture: hd(func(p *lease.Picture) { p.DataPasses, p.Format = true, "OPEN_EXR_MULTILAYER" }), set: lease.Settings{Format: "PNG"}, want: samples(1024)},

		"Blender 4":                      {picture: hd(), saved: four, want: tiles(8, 4)},
		"Blender 4, samples":             {wish: by(lease.WishSamples), picture: hd(), saved: four, problem: "Blender 4 divides at most 256 samples without more noise, and these are 1024; give --samples 256, or use --split tiles"},
		"Blender 4, few enough":          {picture: hd(), saved: four, set: lease.Settings{Samples: 256}, want: samples(256)},
		"Blender 4 asked for":            {picture: hd(), blender: "4.2", want: tiles(8, 4)},
		"Blender 3 asked for":            {picture: hd(), blender: "3.4.1", want: samples(1024)},
		"any Blender, perhaps 4":         {picture: hd(), blender: lease.AnyBlender, want: tiles(8, 4)},
		"any Blender, 5 at least":        {picture: hd(), blender: lease.AnyBlender, saved: five, want: samples(1024)},
		"Blender 2":                      {picture: hd(), saved: lease.Version{Major: 2, Minor: 93}, want: tiles(8, 4)},
		"Blender 2, samples":             {wish: by(lease.WishSamples), picture: hd(), blender: "2.93", problem: "Blender 2 begins every frame at its first sample; use --split tiles"},
		"any Blender, perhaps 2":         {wish: by(lease.WishSamples), picture: hd(), blender: lease.AnyBlender, saved: lease.Version{Major: 2, Minor: 79}, problem: "Blender 2 begins"},
		"Blender 5":                      {picture: hd(), saved: five, want: samples(1024)},
		"such tiles of so few pixels":    {wish: lease.Wish{By: lease.WishTiles, Columns: 64, Rows: 64}, picture: hd(), set: lease.Settings{ResolutionPercent: 3}, problem: "a frame of 57 × 32 pixels cannot be split into 64 × 64 tiles: use fewer"},
		"tiles of too few pixels":        {wish: by(lease.WishTiles), picture: hd(), set: lease.Settings{ResolutionPercent: 5}, problem: "a frame of 96 × 54 pixels is too small to be split into tiles: use --split none, or choose them with --tiles"},
		"such tiles of not many pixels":  {wish: lease.Wish{By: lease.WishTiles, Columns: 3, Rows: 2}, picture: hd(), set: lease.Settings{ResolutionPercent: 5}, want: tiles(3, 2)},
		"tiles of animated seeds":        {wish: by(lease.WishTiles), picture: hd(func(p *lease.Picture) { p.AnimatedSeed = true }), want: tiles(8, 4)},
		"a zero wish is for nothing set": {wish: lease.Wish{}, picture: hd(), want: samples(1024)},
	} {
		t.Run(name, func(t *testing.T) {
			s := lease.Spec{Frames: c.frames, Settings: c.set, Needs: lease.Requirements{Blender: c.blender, FileVersion: c.saved}}
			if c.frames == nil {
				s.Frames = still
			}
			if c.saved == (lease.Version{}) {
				s.Needs.FileVersion = three
			}
			got, err := lease.Choose(c.wish, s, c.picture)
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got.Split)
			require.NoError(t, got.Split.Validate())
			require.Contains(t, got.Whole, c.whole)
			require.Equal(t, c.whole == "", got.Whole == "")
			require.Contains(t, got.Warning, c.warning)
			require.Equal(t, c.warning == "", got.Warning == "")
		})
	}
}

// The tiles that nobody chose are near squares, neither many nor few, and never narrow
// where the frame is not.
func TestTilesSuitTheFrame(t *testing.T) {
	for _, size := range [][2]int32{
		{512, 512}, {640, 480}, {1280, 720}, {1920, 1080}, {1600, 4096}, {3840, 2160}, {4096, 4096}, {7680, 4320}, {16384, 8192},
		{1080, 1920}, {4096, 64}, {64, 8192}, {200, 3000}, {65536, 65536}, {65536, 300}, {999, 333},
	} {
		p := hd(func(p *lease.Picture) { p.Width, p.Height = size[0], size[1] })
		c, err := lease.Choose(lease.Wish{By: lease.WishTiles}, lease.Spec{}, p)
		require.NoError(t, err, size)
		s := c.Split
		wide, high := float64(size[0])/float64(s.Columns), float64(size[1])/float64(s.Rows)
		require.GreaterOrEqual(t, wide, 64.0, size)
		require.GreaterOrEqual(t, high, 64.0, size)
		require.LessOrEqual(t, s.Units, int32(64), size)
		require.GreaterOrEqual(t, s.Units, int32(12), size)
		if shape := max(float64(size[0])/float64(size[1]), float64(size[1])/float64(size[0])); shape < 16 {
			require.Less(t, max(wide/high, high/wide), 1.7, size)
		}
	}
}
