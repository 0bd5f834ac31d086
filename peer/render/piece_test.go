//go:build unix

package render

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/image/tiff"

	"vizpeer/lease"
)

// exrOf is an OpenEXR file of one channel whose pixels all have the value v.
func exrOf(width, height int, v float32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, 0x01312f76), 2)
	put := func(name, kind string, value []byte) {
		b = append(append(append(append(b, name...), 0), kind...), 0)
		b = append(le.AppendUint32(b, uint32(len(value))), value...)
	}
	box := make([]byte, 16)
	le.PutUint32(box[8:], uint32(width-1))
	le.PutUint32(box[12:], uint32(height-1))
	put("channels", "chlist", append([]byte("L.Combined.R\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00"), 0))
	put("compression", "compression", []byte{0})
	put("dataWindow", "box2i", box)
	put("displayWindow", "box2i", box)
	b = append(b, 0)
	at := len(b) + 8*height
	for y := range height {
		b = le.AppendUint64(b, uint64(at+y*(8+4*width)))
	}
	for y := range height {
		b = le.AppendUint32(le.AppendUint32(b, uint32(y)), uint32(4*width))
		for range width {
			b = le.AppendUint32(b, math.Float32bits(v))
		}
	}
	return b
}

func jpegOf(t *testing.T, width, height int) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, jpeg.Encode(&b, image.NewGray(image.Rect(0, 0, width, height)), nil))
	return b.Bytes()
}

// speaks is what a stand-in for Blender says about parts, and how it does what it says.
const speaks = `
piece() { say "{\"ev\":\"piece\",\"frame\":1,\"from\":$1,\"to\":$2,\"file\":\"$3\",\"seconds\":$4}"; }
preview() { say "{\"ev\":\"preview\",\"frame\":1,\"from\":$1,\"to\":$2,\"file\":\"$3\"}"; }
give() { cp $here/$1 $out/$2; }
loaded; start 1
`

// partAttempt is an attempt at a part whose Blender runs body; beside it lie one.exr and
// five.exr with these values, small.jpg and wide.jpg.
func partAttempt(t *testing.T, body string, split lease.Split, spans ...lease.Span) Attempt {
	t.Helper()
	a := fakeAttempt(t, speaks+body)
	a.Part = &Part{Split: split, Spans: spans}
	here := filepath.Dir(a.Build.Path)
	for name, b := range map[string][]byte{
		"one.exr": exrOf(3, 2, 1), "five.exr": exrOf(3, 2, 5), "other.exr": exrOf(2, 3, 1),
		"small.jpg": jpegOf(t, 512, 100), "wide.jpg": jpegOf(t, 513, 100),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(here, name), b, 0o644))
	}
	return a
}

var (
	tenSamples = lease.Split{By: lease.BySamples, Units: 10}
	fourTiles  = lease.Split{By: lease.ByTiles, Units: 4, Columns: 2, Rows: 2}
)

func TestPiecesAddUp(t *testing.T) {
	a := partAttempt(t, `
give one.exr a.exr; piece 2 4 a.exr 0.5
give small.jpg p.jpg; preview 2 4 p.jpg
give five.exr b.exr; piece 4 6 b.exr 1.5
give wide.jpg q.jpg; preview 2 6 q.jpg
give one.exr r.jpg; preview 2 6 r.jpg
give small.jpg s.jpg; preview 2 9 s.jpg
preview 2 6 ../driver/args.json
echo "Fra:1 Mem:9M | Scene, ViewLayer | Sample 1/2"
give five.exr c.exr; piece 8 9 c.exr 1`, tenSamples, lease.Span{From: 2, To: 6}, lease.Span{From: 8, To: 9})
	sink := &partSink{keep: t.TempDir()}
	log, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
	defer cleanup()
	text, _ := os.ReadFile(log)
	require.NoError(t, err, "%s", text)
	require.Len(t, sink.pieces, 3)
	require.Equal(t, lease.Span{From: 2, To: 4}, sink.pieces[0].Span)
	require.Equal(t, lease.Span{From: 2, To: 6}, sink.pieces[1].Span)
	require.Equal(t, 1.5, sink.pieces[1].Seconds)
	require.Equal(t, float32(3), values(t, sink.pieces[1].Path)["L.Combined.R"][5])
	require.Equal(t, lease.Span{From: 8, To: 9}, sink.pieces[2].Span)
	require.Len(t, sink.previews, 1, "the others are no small pictures of what is there")
	require.Equal(t, lease.Span{From: 2, To: 4}, sink.previews[0].Span)
	done := sink.progress[len(sink.progress)-1]
	require.Equal(t, []int{5, 5}, []int{done.Sample, done.Samples})
}

func TestSmallerPiecesWaitForLargerOnes(t *testing.T) {
	a := partAttempt(t, `
for n in 0 1 2 3 4 5 6 7 8 9; do give one.exr a$n.exr; piece $n $((n+1)) a$n.exr $n; done`, tenSamples, lease.Span{To: 10})
	sink := &slowSink{}
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
	defer cleanup()
	require.NoError(t, err)
	require.Equal(t, []lease.Span{{To: 1}, {To: 10}}, sink.spans)
}

// slowSink takes a while for each piece: ten pieces come sooner than the next is due.
type slowSink struct {
	collectorSink
	spans []lease.Span
}

func (s *slowSink) Piece(ctx context.Context, p Piece) error {
	s.spans = append(s.spans, p.Span)
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i) // about as much work as putting a piece into a store
	}
	return s.collectorSink.Piece(ctx, p)
}

func TestWhatIsThereOfAPartIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		kind lease.FailKind
	}{
		"a crash": {"kill -SEGV $$", lease.FailCrash},
		"an end":  {"exit 0", lease.FailImage},
	} {
		t.Run(name, func(t *testing.T) {
			a := partAttempt(t, "for n in 0 1 2; do give one.exr a$n.exr; piece $n $((n+1)) a$n.exr $n; done\n"+c.body, tenSamples, lease.Span{To: 10})
			sink := &slowSink{}
			_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
			defer cleanup()
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.kind, e.Kind)
			require.Equal(t, []lease.Span{{To: 1}, {To: 3}}, sink.spans)
		})
	}
}

func TestPiecesAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		split  lease.Split
		kind   lease.FailKind
		reason string
	}{
		"outside its span":  {"give one.exr a.exr; piece 0 6 a.exr 1", tenSamples, lease.FailError, "Blender reports units 0 to 6 of frame 1, which this attempt does not wait for"},
		"twice":             {"give one.exr a.exr; piece 0 2 a.exr 1; piece 0 2 a.exr 1", tenSamples, lease.FailError, "Blender reports units 0 to 2 of frame 1, which this attempt does not wait for"},
		"a gap":             {"give one.exr a.exr; piece 1 2 a.exr 1", tenSamples, lease.FailError, "Blender reports units 1 to 2 of frame 1, which this attempt does not wait for"},
		"backwards":         {"give one.exr a.exr; piece 0 -3 a.exr 1", tenSamples, lease.FailError, "Blender reports units 0 to -3 of frame 1, which this attempt does not wait for"},
		"two tiles":         {"give one.exr a.exr; piece 0 2 a.exr 1", fourTiles, lease.FailError, "Blender reports units 0 to 2 of frame 1, which this attempt does not wait for"},
		"another frame":     {`say '{"ev":"piece","frame":2,"from":0,"to":1,"file":"a.exr"}'`, tenSamples, lease.FailError, "Blender reports units 0 to 1 of frame 2, which this attempt does not wait for"},
		"a frame":           {"give one.exr a.exr; frame 1 a.exr a.exr", tenSamples, lease.FailError, "Blender reports frame 1, which this attempt does not wait for"},
		"outside":           {"piece 0 1 ../driver/args.json 1", tenSamples, lease.FailImage, "frame 1, units 0 to 1: it is outside Blender's folder"},
		"no file":           {"piece 0 1 a.exr 1", tenSamples, lease.FailImage, "frame 1, units 0 to 1: Blender wrote no image"},
		"a link":            {"ln -s $here/one.exr $out/a.exr; piece 0 1 a.exr 1", tenSamples, lease.FailImage, "frame 1, units 0 to 1: the image is not a regular file"},
		"not OpenEXR":       {"give small.jpg a.exr; piece 0 1 a.exr 1", fourTiles, lease.FailImage, "frame 1, units 0 to 1: not a whole piece of a frame: it is no OpenEXR file"},
		"cut short":         {"head -c -1 $here/one.exr > $out/a.exr; piece 0 1 a.exr 1", tenSamples, lease.FailImage, "frame 1, units 0 to 1: not a whole piece of a frame: line 2 of 2 is missing"},
		"of another size":   {"give one.exr a.exr; piece 0 1 a.exr 1; give other.exr b.exr; piece 1 2 b.exr 1", tenSamples, lease.FailImage, "frame 1, units 1 to 2: piece 1: not a whole piece of a frame: its size or its passes are not those of the first piece"},
		"nothing":           {"exit 0", fourTiles, lease.FailImage, "Blender ended without an error but wrote nothing for tiles 0 to 4 of frame 1"},
		"memory of the GPU": {"echo 'Error: Could not allocate shadow atlas.'; give one.exr a.exr; piece 0 1 a.exr 1", tenSamples, lease.FailMemory, "the GPU ran out of memory at frame 1, and Blender went on without what found no room: Error: Could not allocate shadow atlas."},
	} {
		t.Run(name, func(t *testing.T) {
			span := lease.Span{To: 4}
			a := partAttempt(t, c.body, c.split, span)
			_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, &collectorSink{})
			defer cleanup()
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, c.kind, e.Kind)
		})
	}
	// A piece outside a project that has no parts at all.
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), fakeAttempt(t, speaks+"piece 0 1 a.exr 1; preview 0 1 a.exr"), &collectorSink{})
	defer cleanup()
	require.ErrorContains(t, err, "which this attempt does not wait for")
}

func TestMarginsOfTilesAreCutAway(t *testing.T) {
	a := partAttempt(t, `
give one.exr a.exr; say '{"ev":"piece","frame":1,"from":1,"to":2,"file":"a.exr","seconds":1,"cut":[1,0,0,1]}'
give one.exr b.exr; say '{"ev":"piece","frame":1,"from":2,"to":3,"file":"b.exr","seconds":1,"cut":[0,1,3,0]}'`, fourTiles, lease.Span{From: 1, To: 3})
	sink := &partSink{keep: t.TempDir()}
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
	defer cleanup()
	require.EqualError(t, err, "frame 1, units 2 to 3: not a whole piece of a frame: it has 3 × 2 pixels, less than the margin of its tile")
	require.Len(t, sink.pieces, 1)
	require.Equal(t, []float32{1, 1}, values(t, sink.pieces[0].Path)["L.Combined.R"])
}

func TestMergesAreChecked(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		return path
	}
	whole, cut, other := file("whole", exrOf(3, 2, 1)), file("cut", bytes.TrimSuffix(exrOf(3, 2, 1), []byte{63})), file("other", exrOf(4, 2, 1))
	in := func(from, to int32, path string) Input { return Input{lease.Span{From: from, To: to}, path} }
	for name, c := range map[string]struct {
		merge  Merge
		reason string
	}{
		"a gap":        {Merge{tenSamples, []Input{in(0, 4, whole), in(6, 10, whole)}}, "samples 4 to 6 of frame 1 are missing"},
		"the end":      {Merge{fourTiles, []Input{in(0, 1, whole), in(2, 3, whole), in(1, 2, whole)}}, "tiles 3 to 4 of frame 1 are missing"},
		"twice":        {Merge{tenSamples, []Input{in(0, 8, whole), in(6, 10, whole)}}, "samples 6 to 8 of frame 1 come twice"},
		"too many":     {Merge{tenSamples, []Input{in(0, 11, whole)}}, "the frame has no samples 0 to 11: it has 10"},
		"none":         {Merge{tenSamples, nil}, "the attempt names no parts"},
		"no split":     {Merge{lease.Split{}, []Input{in(0, 1, whole)}}, "the attempt does not say how the frame is split: <nil>"},
		"two in one":   {Merge{fourTiles, []Input{in(0, 4, whole)}}, "tiles 0 to 4 of frame 1 come as one"},
		"cut short":    {Merge{tenSamples, []Input{in(4, 10, cut), in(0, 4, whole)}}, "frame 1 cannot be put together: samples 4 to 10: not a whole piece of a frame: line 2 of 2 is missing"},
		"another size": {Merge{fourTiles, []Input{in(0, 1, whole), in(1, 2, whole), in(2, 3, whole), in(3, 4, other)}}, "frame 1 cannot be put together: tiles 3 to 4: not a whole piece of a frame: it has 4 × 2 pixels where 3 × 2 belong, or not the passes of the first tile"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fakeAttempt(t, "loaded")
			a.Merge = &c.merge
			_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, &collectorSink{})
			defer cleanup()
			require.EqualError(t, err, c.reason)
		})
	}
	a := fakeAttempt(t, "loaded", 1, 2)
	a.Merge = &Merge{tenSamples, []Input{in(0, 10, whole)}}
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, &collectorSink{})
	defer cleanup()
	require.EqualError(t, err, "an attempt at parts is about one frame, and about parts or their merge")
}

func TestBlenderSeesTheMergedPicture(t *testing.T) {
	dir := t.TempDir()
	a := fakeAttempt(t, `file=$(expr "$request" : '.*"file":"\([^"]*\)"')
loaded; cp "$file" $out/a.exr; frame 1 a.exr a.exr`)
	a.Merge = &Merge{Split: tenSamples}
	for i, v := range []float32{1, 5} {
		path := filepath.Join(dir, string(rune('a'+i)))
		require.NoError(t, os.WriteFile(path, exrOf(3, 2, v), 0o600))
		a.Merge.Pieces = append(a.Merge.Pieces, Input{lease.Span{From: int32(5 * i), To: int32(5*i + 5)}, path})
	}
	sink := &partSink{keep: t.TempDir()}
	log, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
	defer cleanup()
	text, _ := os.ReadFile(log)
	require.NoError(t, err, "%s", text)
	require.Len(t, sink.pieces, 1)
	require.Equal(t, lease.Span{To: 10}, sink.pieces[0].Span)
	require.Equal(t, float32(3), values(t, sink.pieces[0].Path)["L.Combined.R"][0])
	path := filepath.Join(dir, "frame.exr")
	require.NoError(t, os.WriteFile(path, sink.images[1], 0o600))
	require.Equal(t, float32(3), values(t, path)["L.Combined.R"][0])
	require.Empty(t, sink.frames[0].Thumb, "only Blender knows what it looks like")
}

func TestThumbsOfPictures(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "thumb.jpg")
	half := image.NewNRGBA(image.Rect(0, 0, 1200, 300)) // red on the left, clear on the right
	for y := range 300 {
		for x := range 600 {
			half.SetNRGBA(x, y, color.NRGBA{R: 255, A: 255})
		}
	}
	var asPNG, asTIFF bytes.Buffer
	require.NoError(t, png.Encode(&asPNG, half))
	require.NoError(t, tiff.Encode(&asTIFF, half, &tiff.Options{Compression: tiff.Deflate}))
	for name, b := range map[string][]byte{"png": asPNG.Bytes(), "tiff": asTIFF.Bytes()} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		require.NoError(t, makeThumb(path, to))
		require.NoError(t, checkPreview(to))
		small, err := os.ReadFile(to)
		require.NoError(t, err)
		img, err := jpeg.Decode(bytes.NewReader(small))
		require.NoError(t, err)
		require.Equal(t, image.Pt(512, 128), img.Bounds().Size())
		r, g, _, _ := img.At(100, 64).RGBA()
		require.InDelta(t, 255, r>>8, 3)
		require.InDelta(t, 0, g>>8, 3)
		r, _, _, _ = img.At(400, 64).RGBA()
		require.InDelta(t, 0, r>>8, 3, "clear pixels are black")
		require.Error(t, makeThumb(path+".none", to))
		require.NoError(t, os.WriteFile(path, b[:len(b)/2], 0o600))
		require.Error(t, makeThumb(path, to))
	}
	path := filepath.Join(dir, "tiny.png")
	asPNG.Reset()
	require.NoError(t, png.Encode(&asPNG, image.NewGray16(image.Rect(0, 0, 3, 1))))
	require.NoError(t, os.WriteFile(path, asPNG.Bytes(), 0o600))
	require.NoError(t, makeThumb(path, to), "it stays as small as it is")
	huge := bytes.Clone(asPNG.Bytes()) // says that it is wide and high
	copy(huge[16:], []byte{0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff})
	require.NoError(t, os.WriteFile(path, huge, 0o600))
	require.Error(t, makeThumb(path, to))
}

func TestBatchesAndPicturesOfParts(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3: install it (apt-get install python3)")
	}
	cmd := exec.Command(python, "parts_test.py")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "\nOK\n")
}
