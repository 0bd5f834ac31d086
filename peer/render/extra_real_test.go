package render

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// treeSink keeps the files that attempts give as they would stand in the output folder.
type treeSink struct {
	collectorSink
	files map[string][]byte
}

func (s *treeSink) Frame(ctx context.Context, f Frame) error {
	if s.files == nil {
		s.files = map[string][]byte{}
	}
	b, err := os.ReadFile(f.Path)
	if err != nil {
		return err
	}
	s.files[f.Name] = b
	if f.Extra == "" {
		return s.collectorSink.Frame(ctx, f)
	}
	beside, err := filesBelow(f.Extra)
	if err != nil {
		return err
	}
	for name, b := range beside {
		s.files[name] = b
	}
	return s.collectorSink.Frame(ctx, f)
}

// filesBelow reads all files below dir, by their slash paths in it.
func filesBelow(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	return files, err
}

// severalFiles makes a file whose frames have several files each. What Blender would
// write into them of time and place is left out, so that equal pictures are equal files.
const severalFiles = `
import bpy, os
home, blend = os.environ["SCENE_HOME"], os.environ["SCENE_BLEND"]
bpy.ops.wm.read_factory_settings(use_empty=False)
s = bpy.context.scene
r = s.render
r.engine = "CYCLES"
s.cycles.samples, s.cycles.use_denoising = 2, False
r.resolution_x, r.resolution_y, r.resolution_percentage = 32, 18, 100
for name in dir(r):
    if name.startswith("use_stamp_"):
        setattr(r, name, False)
r.filepath = home + "/render/shot_####_x"
s.view_layers[0].use_pass_normal = True
s.use_nodes = True
tree = s.node_tree
layers = [n for n in tree.nodes if n.type == "R_LAYERS"][0]

def output(base, slots, kind="PNG"):
    node = tree.nodes.new("CompositorNodeOutputFile")
    node.base_path = base
    node.format.file_format = kind
    node.file_slots.clear()
    node.layer_slots.clear()
    for slot in slots:
        (node.layer_slots if kind == "OPEN_EXR_MULTILAYER" else node.file_slots).new(slot)
    for n, socket in enumerate(node.inputs):
        tree.links.new(layers.outputs[("Image", "Alpha", "Normal")[n % 3]], socket)
    return node
`

func makeScene(t *testing.T, build lease.Build, home, python string) (blend string) {
	t.Helper()
	blend = filepath.Join(t.TempDir(), "several.blend")
	path := filepath.Join(t.TempDir(), "make.py")
	require.NoError(t, os.WriteFile(path, []byte(severalFiles+python+"\nbpy.ops.wm.save_as_mainfile(filepath=blend)\n"), 0o600))
	cmd := exec.Command(build.Path, "-b", "--factory-startup", "-noaudio", "-Y", "--python-exit-code", "3", "-P", path)
	cmd.Env = append(os.Environ(), "SCENE_HOME="+home, "SCENE_BLEND="+blend)
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)
	return blend
}

// renderTimes is what Cycles writes into a picture, asked or not.
var renderTimes = regexp.MustCompile(`\d\d:\d\d\.\d\d`)

// requireSamePicture compares pixels, or all bytes but for the times of rendering.
func requireSamePicture(t *testing.T, want, got []byte, name string) {
	t.Helper()
	if bytes.HasPrefix(want, pngMagic) {
		requireSamePixels(t, want, got)
		return
	}
	timeless := func(b []byte) []byte {
		if bytes.HasPrefix(b, []byte("SDPX")) || bytes.HasPrefix(b, []byte("\x80\x2a\x5f\xd7")) { // DPX, Cineon
			require.Greater(t, len(b), 1024)
			return b[binary.BigEndian.Uint32(b[4:]):] // before that are a name and a date
		}
		return renderTimes.ReplaceAll(b, []byte("00:00.00"))
	}
	require.True(t, bytes.Equal(timeless(want), timeless(got)), "%s is as plain Blender's", name)
}

// A frame comes with all the files that plain Blender writes for it, the same, at the
// places where that writes them.
func TestFramesHaveAllTheirFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("renders in many ways")
	}
	build := realBlender(t)
	views := "r.use_multiview = True; r.image_settings.views_format = 'INDIVIDUAL'\n"
	for _, c := range []struct {
		name, python string
		files        []string // that each frame has; %04d is its number
	}{
		{"views", views, []string{"shot_%04d_x_L.png", "shot_%04d_x_R.png"}},
		{"views in EXR", views + "r.image_settings.file_format = 'OPEN_EXR'", []string{"shot_%04d_x_L.exr", "shot_%04d_x_R.exr"}},
		{"nodes", `
output(home + "/render/passes", ["sub/image", "al pha_####_b", "with.dot."])
output(home + "/render/", ["beside", "deep/er/"], "OPEN_EXR")
output(home + "/else where/all", ["Image", "Alpha"], "OPEN_EXR_MULTILAYER")
output(home + "/other/passes/", ["again"])
`, []string{"shot_%04d_x.png", "passes/sub/image%04d.png", "passes/al pha_%04d_b.png", "passes/with.dot.%04d.png", "beside%04d.exr", "deep/er/%04d.exr", "else where/all%04d.exr", "passes_2/again%04d.png"}},
		{"nodes with views", views + `output(home + "/render/passes/", ["image"])`,
			[]string{"shot_%04d_x_L.png", "shot_%04d_x_R.png", "passes/image%04d_L.png", "passes/image%04d_R.png"}},
		{"a JPEG beside an EXR", "r.image_settings.file_format = 'OPEN_EXR'; r.image_settings.use_preview = True",
			[]string{"shot_%04d_x.exr", "shot_%04d_x.jpg"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			blend := makeScene(t, build, home, c.python)
			out, err := exec.Command(build.Path, "-b", "--factory-startup", "-noaudio", "-Y", blend, "-f", "7,12").CombinedOutput()
			require.NoError(t, err, "%s", out)
			want, err := filesBelow(home)
			require.NoError(t, err)
			require.NoError(t, os.RemoveAll(home))

			for _, sandbox := range []string{SandboxAuto, SandboxOff} {
				sink := &treeSink{}
				a := bare(t, blend)
				a.Build, a.Frames = build, []int32{7, 12}
				log, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: sandbox}).Run(t.Context(), a, sink)
				text, _ := os.ReadFile(log)
				cleanup()
				require.NoError(t, err, "%s", text)
				require.NotEmpty(t, sink.frames[0].Thumb, "%s", text)
				require.Len(t, want, 2*len(c.files))
				require.Len(t, sink.files, 2*len(c.files))
				for _, pattern := range c.files {
					for _, frame := range a.Frames {
						name := strings.Replace(pattern, "%04d", fmt.Sprintf("%04d", frame), 1)
						plain := "render/" + name
						for place, folder := range map[string]string{"else where/": "", "passes_2/": "other/passes/"} {
							if rest, ok := strings.CutPrefix(name, place); ok {
								plain = cmp.Or(folder, place) + rest
							}
						}
						require.Contains(t, want, plain)
						require.Contains(t, sink.files, name)
						requireSamePicture(t, want[plain], sink.files[name], name)
					}
				}
				require.NoDirExists(t, home, "nothing is written where the file says")
			}
		})
	}
}

// Whatever a file says of where its files go, they are below the output folder or
// nowhere, and have names of pictures.
func TestHostileOutputs(t *testing.T) {
	if testing.Short() {
		t.Skip("renders in many ways")
	}
	build := realBlender(t)
	many := fmt.Sprintf(`output(home + "/render", ["s%%d_" %% n for n in range(%d)])`, lease.MaxExtra+1)
	for _, c := range []struct {
		name, python string
		files        []string // but for the main one
		reason       string
	}{
		{"folders", `
output("/etc/", ["a"])
output("/etc", ["c"])
output(home + "/render/../../..", ["up"])
output("../..", ["climbs"])
output("//../../", ["relative"])
output("", ["none"])
output(home + "/render/.ssh/", ["key"])
output("C:\\Users\\ann\\out\\", ["windows"])
output("/", ["root"])
`, []string{"etc/a0007.png", "etc/c0007.png", "?/up0007.png", "?/climbs0007.png", "?/relative0007.png", "none0007.png", "_ssh/key0007.png", "out/windows0007.png", "?/root0007.png"}, ""},
		{"slots", `
output(home + "/render/", ["../../up", "/etc/absolute", "run.sh", ".bashrc", "a/../../b", "c:\\d", "con", "....//e", "sub/"])
`, []string{"up0007.png", "etc/absolute0007.png", "run.sh0007.png", "_bashrc0007.png", "a/b0007.png", "c_/d0007.png", "_con0007.png", "e0007.png", "sub/0007.png"}, ""},
		{"multilayer", `
output("/etc/passwd", ["Image"], "OPEN_EXR_MULTILAYER")
output("../../x.sh", ["Image"], "OPEN_EXR_MULTILAYER")
`, []string{"etc/passwd0007.exr", "?/x.sh0007.exr"}, ""},
		{"views", `
r.use_multiview = True
r.image_settings.views_format = "INDIVIDUAL"
r.views[0].file_suffix, r.views[1].file_suffix = "/../../l", "\\..\\r.sh"
output(home + "/render/", ["a"])
`, []string{"?"}, ""},
		{"too many", many, nil, fmt.Sprintf("frame 7 has more than %d files beside its picture", lease.MaxExtra)},
		{"no extension", `r.use_file_extension = False; output(home + "/render/", ["run.sh", "b"])`, []string{"run.sh0007.png", "b0007.png"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			blend := makeScene(t, build, home, c.python)
			require.NoError(t, os.RemoveAll(home))
			for _, sandbox := range []string{SandboxAuto, SandboxOff} {
				dir := t.TempDir()
				sink := &treeSink{}
				a := bare(t, blend)
				a.Build, a.Frames = build, []int32{7}
				before, err := filesBelow(a.Project)
				require.NoError(t, err)
				log, cleanup, err := NewBlender(Config{Dir: dir, Sandbox: sandbox}).Run(t.Context(), a, sink)
				text, _ := os.ReadFile(log)
				cleanup()
				if c.reason != "" {
					require.ErrorContains(t, err, c.reason)
				} else {
					require.NoError(t, err, "%s", text)
				}
				names := slices.Sorted(maps.Keys(sink.files))
				t.Log(names)
				for _, want := range c.files {
					if place, ok := strings.CutPrefix(want, "?"); ok {
						require.True(t, slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, place) }), "%s in %v", want, names)
					} else {
						require.Contains(t, names, want)
					}
				}
				for _, name := range names {
					require.NoError(t, lease.CheckExtra(name, 7), name)
				}
				after, err := filesBelow(a.Project)
				require.NoError(t, err)
				require.Len(t, after, len(before), "nothing is written into the project")
				require.NoDirExists(t, home)
				for _, outside := range []string{"/etc/a0007.png", "/etc/c0007.png", "/etc/absolute0007.png", "/etc/passwd0007.exr", "/root0007.png"} {
					require.NoFileExists(t, outside)
				}
			}
		})
	}
}

// allFormats makes a file with a scene for each format that a build may write.
const allFormats = `
import itertools
def formats():
    for depth in ("8", "16"):
        yield "PNG", "RGBA", depth, None
    yield "PNG", "BW", "8", None
    yield "JPEG", "RGB", "8", None
    yield "BMP", "RGB", "8", None
    yield "TARGA", "RGBA", "8", None
    yield "IRIS", "RGBA", "8", None
    for depth in ("8", "16"):
        yield "TIFF", "RGBA", depth, None
    yield "JPEG2000", "RGBA", "8", None
    yield "DPX", "RGB", "10", None
    yield "CINEON", "RGB", None, None
    for depth, codec in itertools.product(("16", "32"), ("NONE", "ZIP", "ZIPS", "PIZ", "PXR24", "DWAA", "DWAB", "B44")):
        if depth == "16" or codec in ("ZIP", "DWAA"):
            yield "OPEN_EXR", "RGBA", depth, codec
    for depth, codec in (("16", "ZIP"), ("32", "DWAA")):
        yield "OPEN_EXR_MULTILAYER", "RGBA", depth, codec
    yield "HDR", "RGB", "32", None
    yield "WEBP", "RGBA", "8", None

tree.links.clear()
for kind, mode, depth, codec in formats():
    copy = s.copy()
    image = copy.render.image_settings
    try:
        image.file_format = kind
    except TypeError:
        print("this build has no", kind)
        bpy.data.scenes.remove(copy)
        continue
    image.color_mode = mode
    if depth:
        image.color_depth = depth
    if codec:
        image.exr_codec = codec
    copy.name = "_".join(str(x) for x in (kind, mode, depth, codec))
    copy.render.filepath = home + "/" + copy.name + "/v1.shot_###."
    copy.use_nodes = False
    copy.render.resolution_x, copy.render.resolution_y = 64, 36  # JPEG 2000 takes no smaller ones
`

// Every format, depth and codec that the machine's Blender writes comes out of the farm
// as out of plain Blender, in a file of the same name.
func TestFormatsAreAsPlainBlenderWritesThem(t *testing.T) {
	if testing.Short() {
		t.Skip("renders in many formats")
	}
	build := realBlender(t)
	home := t.TempDir()
	blend := makeScene(t, build, home, allFormats)
	names := strings.Fields(between(script(t, build, `
import bpy
print("SCENES", " ".join(s.name for s in bpy.data.scenes if s.name != "Scene"), "END")`, blend), "SCENES", "END"))
	require.Contains(t, names, "OPEN_EXR_RGBA_16_DWAA")
	t.Log(names)
	args := []string{"-b", "--factory-startup", "-noaudio", "-Y", blend}
	for _, name := range names {
		args = append(args, "-S", name, "-f", "7")
	}
	out, err := exec.Command(build.Path, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	want, err := filesBelow(home)
	require.NoError(t, err)
	require.Len(t, want, len(names))
	b := NewBlender(Config{Dir: t.TempDir()})
	defer b.Close()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			a := bare(t, blend)
			a.Build, a.Frames, a.Set.Scene = build, []int32{7}, name
			log, sink, err := runReal(t, b, a)
			require.NoError(t, err, "%s", log)
			file := name + "/" + sink.frames[0].Name
			require.Contains(t, want, file)
			require.Empty(t, sink.frames[0].Extra)
			requireSamePicture(t, want[file], sink.images[7], file)
		})
	}
}

func between(text, from, to string) string {
	_, text, _ = strings.Cut(text, from)
	text, _, _ = strings.Cut(text, to)
	return text
}

// The nodes of a frame that is rendered in parts write when it is merged, and only then.
func TestFileOutputsOfAMerge(t *testing.T) {
	if testing.Short() {
		t.Skip("renders in parts")
	}
	build := realBlender(t)
	root := partsFile(t, build, compositor+`
node = t.nodes.new("CompositorNodeOutputFile")
node.base_path = "//frames/passes"
node.file_slots[0].path = "mist/image"
t.links.new(one.outputs["Mist"], node.inputs[0])
`)
	plain(t, build, filepath.Join(root, "a.blend"), "", "", "1", "1")
	want, err := filesBelow(filepath.Join(root, "frames"))
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(root, "frames")))
	split := lease.Split{By: lease.ByTiles, Units: 2, Columns: 2, Rows: 1}
	parts, err := runParts(t, build, root, &Part{split, []lease.Span{{To: 2}}}, nil)
	require.NoError(t, err)
	require.Len(t, parts.pieces, 2)
	sink := &treeSink{}
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir()}).Run(t.Context(),
		Attempt{Project: root, Blend: "a.blend", Build: build, Frames: []int32{1}, Merge: &Merge{split, last(parts.pieces)}}, sink)
	defer cleanup()
	require.NoError(t, err)
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(sink.files)))
	require.Contains(t, want, "passes/mist/image0001.png")
	for name := range want {
		requireSamePixels(t, want[name], sink.files[name])
	}
}
