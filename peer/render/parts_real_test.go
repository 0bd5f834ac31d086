package render

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// partsScene is a scene with what is not the same in each sample: textures, edges, depth
// of field, two view layers, passes of all kinds.
const partsScene = `
import bpy, os
bpy.ops.wm.read_factory_settings()
s = bpy.context.scene
s.render.engine = "CYCLES"
s.cycles.samples, s.cycles.use_denoising, s.cycles.use_adaptive_sampling = 16, False, False
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 97, 61, 100
s.render.image_settings.file_format, s.render.image_settings.color_mode = "PNG", "RGBA"
s.render.dither_intensity = 1.0
s.render.filepath = "//frames/part_"
cube = bpy.data.objects["Cube"]
cube.pass_index = 3
m = cube.active_material
m.use_nodes = True
n, l = m.node_tree.nodes, m.node_tree.links
c = n.new("ShaderNodeTexChecker")
c.inputs["Scale"].default_value = 30
l.new(c.outputs[0], n["Principled BSDF"].inputs["Base Color"])
bpy.data.lights[0].shadow_soft_size = 1
v = s.view_layers[0]
for p in ("z", "mist", "normal", "object_index", "material_index", "diffuse_direct", "diffuse_indirect", "glossy_direct", "position", "uv", "emit", "environment"):
    setattr(v, "use_pass_" + p, True)
s.view_layers.new("With.dots in its name")
%s
bpy.ops.wm.save_as_mainfile(filepath=%q)
`

// compositor makes the scene's picture of passes of both layers.
const compositor = `
s.use_nodes = True
t = s.node_tree
t.nodes.clear()
one, two = t.nodes.new("CompositorNodeRLayers"), t.nodes.new("CompositorNodeRLayers")
two.layer = "With.dots in its name"
g = t.nodes.new("CompositorNodeGlare")
g.glare_type, g.threshold = "FOG_GLOW", 0.3
b = t.nodes.new("CompositorNodeColorBalance")
b.gain = (1.2, 1.0, 0.8)
mx = t.nodes.new("CompositorNodeMixRGB")
out = t.nodes.new("CompositorNodeComposite")
t.links.new(one.outputs["Image"], g.inputs[0])
t.links.new(g.outputs[0], b.inputs["Image"])
t.links.new(one.outputs["Mist"], mx.inputs[0])
t.links.new(b.outputs[0], mx.inputs[1])
t.links.new(two.outputs["Image"], mx.inputs[2])
t.links.new(mx.outputs[0], out.inputs[0])
`

func partsFile(t *testing.T, build lease.Build, python string) (root string) {
	t.Helper()
	root = t.TempDir()
	script(t, build, fmt.Sprintf(partsScene, python, filepath.Join(root, "a.blend")))
	return root
}

// partSink keeps the files that an attempt gives.
type partSink struct {
	collectorSink
	keep  string // folder for the pieces
	shown []image.Config
	thumb []byte
}

func (s *partSink) Piece(_ context.Context, p Piece) error {
	to := filepath.Join(s.keep, fmt.Sprintf("%d-%d.exr", p.From, p.To))
	if err := os.Rename(p.Path, to); err != nil {
		return err
	}
	p.Path = to
	s.pieces = append(s.pieces, p)
	return nil
}

func (s *partSink) Preview(p Preview) {
	b, _ := os.ReadFile(p.Path)
	conf, _ := jpeg.DecodeConfig(bytes.NewReader(b))
	s.shown = append(s.shown, conf)
	s.collectorSink.Preview(p)
}

func (s *partSink) Frame(ctx context.Context, f Frame) error {
	if f.Thumb != "" {
		s.thumb, _ = os.ReadFile(f.Thumb)
	}
	return s.collectorSink.Frame(ctx, f)
}

// runParts runs one attempt at a part or a merge of frame 1.
func runParts(t *testing.T, build lease.Build, root string, part *Part, merge *Merge) (*partSink, error) {
	t.Helper()
	return runAttempt(t, Attempt{Project: root, Build: build, Part: part, Merge: merge})
}

// runAttempt runs an attempt at frame 1 of a.blend.
func runAttempt(t *testing.T, a Attempt) (*partSink, error) {
	t.Helper()
	a.Blend, a.Frames = "a.blend", []int32{1}
	sink := &partSink{keep: t.TempDir()}
	log, cleanup, err := NewBlender(Config{Dir: t.TempDir()}).Run(t.Context(), a, sink)
	defer cleanup()
	if err != nil {
		text, _ := os.ReadFile(log)
		t.Logf("%v\n%s", err, text)
	}
	return sink, err
}

// last answers the pieces that no other takes the place of.
func last(pieces []Piece) (inputs []Input) {
	by := map[int32]Input{}
	for _, p := range pieces {
		by[p.From] = Input{p.Span, p.Path}
	}
	for _, in := range by {
		inputs = append(inputs, in)
	}
	return inputs
}

// values reads an uncompressed OpenEXR file of floats, by channel and by rows.
func values(t *testing.T, path string) map[string][]float32 {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	at := 8
	text := func() string {
		n := bytes.IndexByte(b[at:], 0)
		at += n + 1
		return string(b[at-n-1 : at-1])
	}
	var channels []string
	var w, h int
	for {
		name := text()
		if name == "" {
			break
		}
		text()
		size := int(binary.LittleEndian.Uint32(b[at:]))
		v := b[at+4 : at+4+size]
		at += 4 + size
		switch name {
		case "channels":
			for v[0] != 0 {
				n := bytes.IndexByte(v, 0)
				channels, v = append(channels, string(v[:n])), v[n+17:]
			}
		case "dataWindow":
			box := make([]int32, 4)
			require.NoError(t, binary.Read(bytes.NewReader(v), binary.LittleEndian, box))
			w, h = int(box[2]-box[0]+1), int(box[3]-box[1]+1)
		case "compression":
			require.Zero(t, v[0])
		}
	}
	out := map[string][]float32{}
	for y := range h {
		line := b[binary.LittleEndian.Uint64(b[at+8*y:])+8:]
		for c, name := range channels {
			for x := range w {
				out[name] = append(out[name], math.Float32frombits(binary.LittleEndian.Uint32(line[4*(c*w+x):])))
			}
		}
	}
	return out
}

// asPiece is Python that makes a plain render write what a piece holds.
const asPiece = "i = s.render.image_settings; i.file_format = 'OPEN_EXR_MULTILAYER'; i.color_depth = '32'; i.exr_codec = 'NONE'; s.render.use_compositing = False; "

// spread tells how far two pictures are apart: the mean and the greatest difference, by
// channel.
func spread(t *testing.T, want, got string) (mean, most map[string]float64) {
	t.Helper()
	a, b := values(t, want), values(t, got)
	mean, most = map[string]float64{}, map[string]float64{}
	for name, x := range a {
		y := b[name]
		require.Len(t, y, len(x), name)
		for i := range x {
			d := math.Abs(float64(x[i]) - float64(y[i]))
			mean[name] += d / float64(len(x))
			most[name] = max(most[name], d)
		}
	}
	return mean, most
}

func TestSamplesOfFourMachinesAreTheFrame(t *testing.T) {
	t.Parallel() // a Blender that starts keeps one core busy
	build := realBlender(t)
	root := partsFile(t, build, compositor+"s.cycles.samples, s.cycles.sampling_pattern = 512, 'SOBOL'")
	split := lease.Split{By: lease.BySamples, Units: 512}
	var pieces []Input
	for i := range int32(4) {
		sink, err := runParts(t, build, root, &Part{split, []lease.Span{{From: 128 * i, To: 128 * (i + 1)}}}, nil)
		require.NoError(t, err)
		require.NotEmpty(t, sink.previews)
		require.Equal(t, 128*i, sink.previews[0].From)
		require.LessOrEqual(t, sink.previews[0].Len(), int32(512/20), "the first preview comes after a twentieth of the frame")
		require.Equal(t, image.Point{97, 61}, image.Pt(sink.shown[0].Width, sink.shown[0].Height))
		for j, p := range sink.pieces {
			require.Equal(t, 128*i, p.From)
			require.Equal(t, int32(1), p.Frame)
			require.Positive(t, p.Seconds)
			if j > 0 {
				require.Greater(t, p.To, sink.pieces[j-1].To)
			}
		}
		require.Equal(t, 128*(i+1), sink.pieces[len(sink.pieces)-1].To)
		done := sink.progress[len(sink.progress)-1]
		require.Equal(t, []int{128, 128}, []int{done.Sample, done.Samples})
		pieces = append(pieces, last(sink.pieces)...)
	}
	require.Len(t, pieces, 4)
	merged, err := runParts(t, build, root, nil, &Merge{split, pieces})
	require.NoError(t, err)
	require.Len(t, merged.pieces, 1)
	require.Equal(t, lease.Span{To: 512}, merged.pieces[0].Span)
	require.Equal(t, "part_0001.png", merged.frames[0].Name)

	out := t.TempDir()
	plain(t, build, filepath.Join(root, "a.blend"), asPiece, out+"/", "1", "1")
	mean, most := spread(t, filepath.Join(out, "0001.exr"), merged.pieces[0].Path)
	var names []string
	for name := range mean {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		t.Logf("%-40s mean %.2g, most %.2g", name, mean[name], most[name])
		require.Less(t, mean[name], 1e-5, name)
	}

	plain(t, build, filepath.Join(root, "a.blend"), "", out+"/", "1", "1")
	want, err := os.ReadFile(filepath.Join(out, "0001.png"))
	require.NoError(t, err)
	a, b := pixels(t, want).(*image.NRGBA), pixels(t, merged.images[1]).(*image.NRGBA)
	differ := 0
	for i := range a.Pix {
		if a.Pix[i] != b.Pix[i] {
			differ++
			require.LessOrEqual(t, max(a.Pix[i], b.Pix[i])-min(a.Pix[i], b.Pix[i]), uint8(1))
		}
	}
	t.Logf("%d of %d values of the PNG differ by one level", differ, len(a.Pix))
	require.LessOrEqual(t, differ, len(a.Pix)/1000)
}

// adaptive makes Cycles stop early where the scene is still, and go on beside noise.
const adaptive = "s.cycles.use_adaptive_sampling, s.cycles.samples, s.cycles.adaptive_threshold, s.cycles.adaptive_min_samples = True, 256, 0.05, 8; " +
	"s.render.resolution_x, s.render.resolution_y, bpy.data.lights[0].shadow_soft_size = 160, 100, 3"

func TestTilesAreTheFrame(t *testing.T) {
	t.Parallel() // a Blender that starts keeps one core busy
	build := realBlender(t)
	for name, python := range map[string]string{
		"plain":                      "",
		"adaptive sampling":          adaptive,
		"compositor and Cryptomatte": compositor + "v.use_pass_cryptomatte_object = True",
		"clear, with 16 bits":        "s.render.film_transparent = True; s.render.image_settings.color_depth = '16'; s.render.resolution_percentage = 63",
	} {
		t.Run(name, func(t *testing.T) {
			root := partsFile(t, build, python)
			split := lease.Split{By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2}
			var pieces []Input
			for _, spans := range [][]lease.Span{{{From: 4, To: 6}, {From: 0, To: 1}}, {{From: 1, To: 4}}} {
				sink, err := runParts(t, build, root, &Part{split, spans}, nil)
				require.NoError(t, err)
				require.Len(t, sink.pieces, 3)
				require.Len(t, sink.previews, 3)
				done := sink.progress[len(sink.progress)-1]
				samples := 3 * 16
				if python == adaptive {
					samples = 3 * 256
				}
				require.Equal(t, []int{samples, samples}, []int{done.Sample, done.Samples})
				pieces = append(pieces, last(sink.pieces)...)
			}
			merged, err := runParts(t, build, root, nil, &Merge{split, pieces})
			require.NoError(t, err)
			out := t.TempDir()
			plain(t, build, filepath.Join(root, "a.blend"), "", out+"/", "1", "1")
			want, err := os.ReadFile(filepath.Join(out, "0001.png"))
			require.NoError(t, err)
			requireSamePixels(t, want, merged.images[1])
			require.NotEmpty(t, merged.thumb)
		})
	}
}

// leaveAlone renders parts in a Blender that has other things to do afterwards: it stops
// after two batches, and prints which settings are not as they were.
const leaveAlone = `
import bpy, os, sys, tempfile
sys.dont_write_bytecode = True
sys.path.insert(0, %q)
import parts
s = bpy.context.scene
out = tempfile.mkdtemp()
s.render.image_settings.file_format, s.render.image_settings.color_mode = "PNG", "BW"
s.render.image_settings.color_depth, s.render.image_settings.quality = "16", 33
s.cycles.use_adaptive_sampling = s.cycles.use_denoising = s.cycles.auto_scrambling_distance = s.render.use_freestyle = True

def settings():
    found = {}
    owners = [("render", s.render), ("image", s.render.image_settings), ("cycles", s.cycles)]
    owners += [(l.name, l) for l in s.view_layers] + [(l.name + ".cycles", l.cycles) for l in s.view_layers]
    for name, owner in owners:
        for p in owner.bl_rna.properties:
            if p.type in ("BOOLEAN", "INT", "FLOAT", "STRING", "ENUM"):
                v = getattr(owner, p.identifier)
                found[name + "." + p.identifier] = v[:] if getattr(p, "is_array", False) else v
    return found

def compare(what):
    after = settings()
    for name in before:
        if before[name] != after[name]:
            print("CHANGED", what, name, before[name], after[name])

events = []
def say(ev, **rest):
    events.append(dict(rest, ev=ev))
def pieces():
    return [e for e in events if e["ev"] == "piece"]

before = settings()
samples = {"by": "samples", "units": 1 << 20}
parts.render(bpy, s, 1, samples, [[0, 1 << 20]], parts.Pace(samples["units"]), out, say, lambda: len(pieces()) == 2)
compare("samples")
print("BATCHES", [(e["from"], e["to"] > e["from"], os.path.exists(os.path.join(out, e["file"]))) for e in pieces()][:1], pieces()[1]["from"] == pieces()[0]["to"])
parts.render(bpy, s, 1, {"by": "tiles", "units": 4, "columns": 2, "rows": 2}, [[1, 3]], None, out, say, lambda: False)
compare("tiles")
piece = os.path.join(out, pieces()[0]["file"])
with parts.merged(bpy, s, samples, piece, out, say) as check:
    s.cycles.samples = 1 << 20  # which would take its time
    bpy.ops.render.render()
    check()
    os.rename(piece, piece + ".moved")
    bpy.ops.render.render()
    try:
        check()
    except parts.Refused as e:
        print("MISSED", e)
os.rename(piece + ".moved", piece)
s.cycles.samples = 4
compare("merge")
s.view_layers[1].name = "Another"
for percentage in (100, 50):
    s.render.resolution_percentage = percentage
    try:
        with parts.merged(bpy, s, samples, piece, out, say):
            pass
    except parts.Refused as e:
        print("MISSED", e)
s.view_layers[1].name = "With.dots in its name"
s.render.resolution_percentage = 100
print("NOTES", sorted(e["text"] for e in events if e["ev"] == "note"))
parts.denoise_layer(bpy, s, s.view_layers[1].name, piece, os.path.join(out, "denoised.exr"))
print("DENOISED", os.path.getsize(os.path.join(out, "denoised.exr")) > 97 * 61 * 16)
compare("denoising")
`

func TestPartsLeaveTheSceneAlone(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	root := partsFile(t, build, "s.cycles.samples = 4; v.cycles.denoising_store_passes = s.view_layers[1].cycles.denoising_store_passes = True")
	here, err := filepath.Abs(".")
	require.NoError(t, err)
	out := script(t, build, fmt.Sprintf(leaveAlone, here), filepath.Join(root, "a.blend"))
	require.NotContains(t, out, "CHANGED")
	require.Contains(t, out, "BATCHES [(0, True, True)] True\n")
	require.Contains(t, out, "MISSED the merged picture could not be read: ")
	require.Contains(t, out, "MISSED the frame's parts lack the view layer 'Another'")
	require.Contains(t, out, "MISSED the frame's parts have 97 × 61 pixels together, and the frame has 48 × 30")
	require.Contains(t, out, "DENOISED True")
	require.Contains(t, out, "adaptive sampling is off in a frame that is split by samples")
	if strings.Contains(out, "has no OpenImageDenoise") {
		t.Log("this machine's Blender has no OpenImageDenoise: denoising was not tried")
	}
}

// The scene's own border, several layers in the file and strokes drawn after rendering
// come out as without a split.
func TestSamplesAreTheWholeFile(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	root := partsFile(t, build, compositor+`
s.render.image_settings.file_format, s.render.image_settings.color_depth, s.render.image_settings.exr_codec = "OPEN_EXR_MULTILAYER", "32", "NONE"
s.render.use_border, s.render.border_min_x, s.render.border_max_y = True, 0.21, 0.9
s.render.use_freestyle = True
`)
	split := lease.Split{By: lease.BySamples, Units: 16}
	part, err := runParts(t, build, root, &Part{split, []lease.Span{{From: 8, To: 16}, {From: 0, To: 8}}}, nil)
	require.NoError(t, err)
	merged, err := runParts(t, build, root, nil, &Merge{split, last(part.pieces)})
	require.NoError(t, err)
	require.NotEmpty(t, merged.thumb)
	out := t.TempDir()
	plain(t, build, filepath.Join(root, "a.blend"), "", out+"/", "1", "1")
	got := filepath.Join(out, "merged.exr")
	require.NoError(t, os.WriteFile(got, merged.images[1], 0o600))
	mean, _ := spread(t, filepath.Join(out, "0001.exr"), got)
	require.Contains(t, mean, "Composite.Combined.R")
	require.Contains(t, mean, "With.dots in its name.Combined.G")
	for name, d := range mean {
		require.Less(t, d, 1e-5, name)
	}
}

// refusals asks of one file, changed in several ways, whether it can be split.
const refusals = `
import bpy, sys
sys.dont_write_bytecode = True
sys.path.insert(0, %q)
import parts
s = bpy.context.scene
v, cube = s.view_layers[0], bpy.data.objects["Cube"]
samples, tiles = {"by": "samples", "units": 16}, {"by": "tiles", "units": 2, "columns": 2, "rows": 1}

def ask(name, split):
    try:
        parts.refuse(s, split)
        print("TAKEN", name)
    except parts.Refused as e:
        print("REFUSED", name, e)

def ask_with(name, split, owner, setting, value):
    before = getattr(owner, setting)
    setattr(owner, setting, value)
    ask(name, split)
    setattr(owner, setting, before)

ask("samples", samples)
ask("tiles", tiles)
ask_with("Workbench", tiles, s.render, "engine", "BLENDER_WORKBENCH")
ask_with("Cryptomatte", samples, v, "use_pass_cryptomatte_object", True)
ask_with("Cryptomatte by tiles", tiles, v, "use_pass_cryptomatte_object", True)
ask_with("catcher", samples, cube, "is_shadow_catcher", True)
ask_with("own samples", samples, v, "samples", 3)
ask_with("border", tiles, s.render, "use_border", True)
ask_with("views", samples, s.render, "use_multiview", True)
s.view_layers[1].use = False
ask_with("layers", tiles, v, "use", False)
ask_with("small", tiles, s.render, "resolution_percentage", 1)
bpy.ops.object.gpencil_add(type="STROKE")
ask("pencil", tiles)
s.sequence_editor_create().sequences.new_effect("c", "COLOR", 1, frame_start=1, frame_end=9)
ask("sequencer", samples)
`

func TestPartsThatWouldNotBeTheFrame(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	root := partsFile(t, build, "v.use_pass_cryptomatte_material = True")
	here, err := filepath.Abs(".")
	require.NoError(t, err)
	blend := filepath.Join(root, "a.blend")
	out := script(t, build, strings.Replace(fmt.Sprintf(refusals, here), "ask(\"samples\"", "v.use_pass_cryptomatte_material = False\nask(\"samples\"", 1), blend)
	for _, line := range []string{
		"TAKEN samples", "TAKEN tiles", "TAKEN Cryptomatte by tiles",
		"REFUSED Workbench only Cycles renders a frame in parts, and the scene's engine is BLENDER_WORKBENCH: its effects reach across the picture",
		"REFUSED Cryptomatte the view layer 'ViewLayer' has Cryptomatte, which samples of several machines do not add up to: split the frame by tiles",
		"REFUSED catcher 'Cube' catches shadows, which samples of several machines do not add up to: split the frame by tiles",
		"REFUSED own samples the view layer 'ViewLayer' has a number of samples of its own: split the frame by tiles",
		"REFUSED border the scene renders a region of its own: split its frames by samples",
		"REFUSED views the scene has several views: its frames cannot be rendered in parts",
		"REFUSED layers no view layer of the scene is rendered",
		"REFUSED small a frame of 0 × 0 pixels cannot be split into 2 × 1 tiles",
		"REFUSED pencil the scene has grease pencil objects: its frames cannot be rendered in parts",
		"REFUSED sequencer the sequencer makes this scene's frames: they cannot be rendered in parts",
	} {
		require.Contains(t, out, line+"\n")
	}
	_, err = runParts(t, build, root, &Part{lease.Split{By: lease.BySamples, Units: 16}, []lease.Span{{From: 0, To: 1}}}, nil)
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "the view layer 'ViewLayer' has Cryptomatte, which samples of several machines do not add up to: split the frame by tiles", e.Reason)
	require.Equal(t, lease.FailError, e.Kind)
}

func TestThumbnails(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	root := partsFile(t, build, "s.render.resolution_percentage = 1000; s.cycles.samples = 1; s.render.image_settings.color_mode = 'RGB'; s.view_layers[1].use = False")
	for _, format := range []string{"PNG", "JPEG", "TIFF", "OPEN_EXR", "OPEN_EXR_MULTILAYER", "TARGA"} {
		t.Run(format, func(t *testing.T) {
			sink, err := runAttempt(t, Attempt{Project: root, Build: build, Set: lease.Settings{Format: format}})
			require.NoError(t, err)
			img, err := jpeg.Decode(bytes.NewReader(sink.thumb))
			require.NoError(t, err)
			require.Equal(t, image.Pt(512, 322), img.Bounds().Size())
			// Through the view transform the world's grey is the same in all formats.
			r, g, b, _ := img.At(8, 8).RGBA()
			require.InDelta(t, 71, float64(r>>8), 3, "%d %d %d", r>>8, g>>8, b>>8)
		})
	}
}
