package render

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/image/font/gofont/goregular"

	"vizpeer/lease"
)

// everyDependency makes a file that depends on others in every way the collector
// knows: a frame sequence, tiles, a font, a sound, caches, and libraries of
// libraries with textures of their own, each beside files that are not needed.
const everyDependency = `
import bpy, os, wave
root = os.environ["SCENE_ROOT"]
def path(*p):
    full = os.path.join(root, *p)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    return full
def picture(*p):
    i = bpy.data.images.new("i", 4, 4)
    i.filepath_raw, i.file_format = path(*p), "PNG"
    i.save()
    bpy.data.images.remove(i)
def touch(*p):
    open(path(*p), "w").close()
def keep(block):
    block.use_fake_user = True
    return block
def save(*p):
    bpy.ops.wm.save_as_mainfile(filepath=path(*p), relative_remap=False)

for n in ("deep/tex/bark.png", "seq/f_08.png", "seq/f_09.png", "seq/f_10.png", "seq/g_09.png", "tiles/t.1001.png", "tiles/t.1012.png", "tiles/u.1001.png", "tex/unused.png"):
    picture(n)
for n in ("shot/blendcache_shot/c_000001_00.bphys", "shot/blendcache_other/x.bphys", "lib/blendcache_mid/d_000001_00.bphys", "fluid/config/c.uni", "fluid/data/d_0001.vdb", "seq/f_1x.png"):
    touch(n)

bpy.ops.wm.read_factory_settings(use_empty=True)
keep(bpy.data.images.load(path("deep/tex/bark.png"))).filepath = "//tex/bark.png"
m = bpy.data.materials.new("bark")
m.use_nodes = True
m.node_tree.nodes.new("ShaderNodeTexImage").image = bpy.data.images[0]
me = bpy.data.meshes.new("deep")
me.materials.append(m)
keep(bpy.data.objects.new("deep", me))
save("deep", "deep.blend")

bpy.ops.wm.read_factory_settings(use_empty=True)
save("lib", "mid.blend")
with bpy.data.libraries.load(path("deep/deep.blend"), link=True, relative=True) as (_, b):
    b.objects = ["deep"]
c = keep(bpy.data.collections.new("mid"))
c.objects.link(b.objects[0])
save("lib", "mid.blend")

bpy.ops.wm.read_factory_settings(use_empty=True)
save("shot", "shot.blend")
with bpy.data.libraries.load(path("lib/mid.blend"), link=True, relative=True) as (_, b):
    b.collections = ["mid"]
s = bpy.context.scene
s.collection.children.link(b.collections[0])

i = keep(bpy.data.images.load(path("seq/f_09.png")))
i.source, i.filepath = "SEQUENCE", "//../seq/f_09.png"
i = keep(bpy.data.images.load(path("tiles/t.1001.png")))
i.source, i.filepath = "TILED", "//../tiles/t.<UDIM>.png"
i = keep(bpy.data.images.new("gone", 4, 4))
i.source, i.filepath = "FILE", "//gone.png"
i = keep(bpy.data.images.new("made", 4, 4))  # generated: needs nothing
packed = keep(bpy.data.images.load(path("tex/unused.png")))
packed.pack()

keep(bpy.data.fonts.load(path("font/f.ttf"))).filepath = "//../font/f.ttf"
with wave.open(path("sound/s.wav"), "wb") as w:
    w.setparams((1, 2, 8000, 0, "NONE", ""))
    w.writeframes(b"\0" * 1600)
keep(bpy.data.sounds.load(path("sound/s.wav"))).filepath = "//../sound/s.wav"
text = keep(bpy.data.texts.new("notes"))
text.filepath = "//notes-that-are-gone.txt"

def fluid(name, directory):
    ob = bpy.data.objects.new(name, bpy.data.meshes.new(name))
    s.collection.objects.link(ob)
    f = ob.modifiers.new("fluid", "FLUID")
    f.fluid_type = "DOMAIN"
    f.domain_settings.cache_type = "ALL"  # simulates only when told to bake
    f.domain_settings.cache_directory = directory
if bpy.app.version < (4, 0):  # Debian's 4.3 aborts in its fluids
    fluid("domain", "//../fluid")
    fluid("far", "//..")  # everything: not a cache
else:
    os.remove(path("fluid/config/c.uni"))
    os.remove(path("fluid/data/d_0001.vdb"))
save("shot", "shot.blend")
os._exit(0)  # 3.4 can crash while it quits with all of this open
`

func TestCollectFindsEveryDependency(t *testing.T) {
	build := realBlender(t)
	root := t.TempDir()
	t.Setenv("SCENE_ROOT", root)
	require.NoError(t, os.Mkdir(filepath.Join(root, "font"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "font", "f.ttf"), goregular.TTF, 0o644))
	script(t, build, everyDependency)
	c, err := Collect(t.Context(), build.Path, filepath.Join(root, "shot", "shot.blend"))
	require.NoError(t, err)
	var found []string
	for _, f := range c.Files {
		require.Equal(t, ProjectPath(f.Source, c.Manifest.Origin), f.Path)
		found = append(found, strings.TrimPrefix(f.Source, root+"/"))
	}
	require.Equal(t, "shot/shot.blend", found[0])
	slices.Sort(found)
	want := []string{
		"deep/deep.blend", "deep/tex/bark.png",
		"font/f.ttf",
		"lib/blendcache_mid/d_000001_00.bphys", "lib/mid.blend",
		"seq/f_08.png", "seq/f_09.png", "seq/f_10.png",
		"shot/blendcache_shot/c_000001_00.bphys", "shot/shot.blend",
		"sound/s.wav",
		"tiles/t.1001.png", "tiles/t.1012.png",
	}
	if _, err := os.Stat(filepath.Join(root, "fluid", "data", "d_0001.vdb")); err == nil {
		want = append(want, "fluid/config/c.uni", "fluid/data/d_0001.vdb")
	}
	slices.Sort(want)
	require.Equal(t, want, found)
	require.Equal(t, []string{filepath.Join(root, "shot", "gone.png")}, c.Manifest.Missing)
	require.False(t, c.Manifest.Absolute)
	require.True(t, c.Manifest.Complete)
}

// denoisers are scenes that do and do not need OpenImageDenoise: what the collector
// says of each, and then Blender's own words while it renders it.
const denoisers = `
import bpy, json, os, sys, wave
sys.path.insert(0, os.environ["COLLECT"])
import _cycles, collect
def path(name):
    return os.path.join(os.environ["COLLECT"], name)
def tone():
    with wave.open(path("s.wav"), "wb") as w:
        w.setparams((1, 2, 8000, 0, "NONE", ""))
        w.writeframes(b"\0" * 1600)
    return path("s.wav")
def small(s, denoise):
    s.render.engine, s.cycles.samples, s.cycles.use_denoising = "CYCLES", 1, denoise
    s.render.resolution_x = s.render.resolution_y = 16
    return s
def other(s, denoise=True):
    o = small(bpy.data.scenes.new("Other"), denoise)
    o.camera = s.camera
    o.collection.objects.link(s.camera)
    return o
def tree(s):
    s.use_nodes = True
    return s.node_tree
def layers_of(s, o):
    for n in tree(s).nodes:
        if n.type == "R_LAYERS":
            n.scene = o
def strips(s):
    s.sequence_editor_create()
    return getattr(s.sequence_editor, "strips", None) or s.sequence_editor.sequences
def two_layers(s, first, second, use):
    s.view_layers[0].cycles.use_denoising = first
    l = s.view_layers.new("second")
    l.cycles.use_denoising, l.use = second, use
def engine(s, name):
    s.render.engine = name
def case(name, change, denoise=True):
    bpy.ops.wm.read_factory_settings(use_empty=False)
    s = small(bpy.context.scene, denoise)
    change(s)
    bpy.ops.wm.save_as_mainfile(filepath=path("case.blend"))
    said = dict(collect.collect(bpy)["manifest"]["scene"], name=name, oidn=_cycles.with_openimagedenoise)
    print("\nCASE " + json.dumps(said))
    sys.stdout.flush()
    try:
        bpy.ops.render.render(scene=s.name)
    except RuntimeError:
        pass
def muted_node(s):
    tree(s).nodes.new("CompositorNodeDenoise").mute = True
def group(s):
    g = bpy.data.node_groups.new("G", "CompositorNodeTree")
    g.nodes.new("CompositorNodeDenoise")
    tree(s).nodes.new("CompositorNodeGroup").node_tree = g
def compositing_off(s):
    tree(s).nodes.new("CompositorNodeDenoise")
    s.render.use_compositing = False
def muted_strip(s):
    strips(s).new_scene("x", other(s), 1, 1).mute = True
def sequencer_off(s):
    strips(s).new_scene("x", other(s), 1, 1)
    s.render.use_sequencer = False
case("denoises", lambda s: None)
case("does not", lambda s: None, False)
case("another engine", lambda s: engine(s, "BLENDER_WORKBENCH"))
case("its layer does not", lambda s: two_layers(s, False, True, False))
case("a layer does", lambda s: two_layers(s, False, True, True))
case("viewport only", lambda s: setattr(s.cycles, "use_preview_denoising", True), False)
case("node", lambda s: tree(s).nodes.new("CompositorNodeDenoise"), False)
case("node in a group", group, False)
case("muted node", muted_node, False)
case("compositing off", compositing_off, False)
case("composites another scene", lambda s: layers_of(s, other(s)), False)
case("composites only another scene", lambda s: layers_of(s, other(s, False)))
case("edits another scene", lambda s: strips(s).new_scene("x", other(s), 1, 1), False)
case("edits only another scene", lambda s: strips(s).new_scene("x", other(s, False), 1, 1))
case("edits a muted scene", muted_strip)
case("edits nothing", lambda s: strips(s))
case("edits sound", lambda s: strips(s).new_sound("x", tone(), 1, 1))
case("sequencer off", sequencer_off, False)
os._exit(0)
`

func TestCollectSeesWhoDenoises(t *testing.T) {
	build := realBlender(t)
	dir := t.TempDir()
	text, err := scripts.ReadFile("collect.py")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "collect.py"), text, 0o600))
	t.Setenv("COLLECT", dir)
	own, always := map[string]bool{}, map[string]bool{}
	for part := range strings.SplitSeq(script(t, build, denoisers), "\nCASE ") {
		line, words, _ := strings.Cut(part, "\n")
		var scene struct {
			Scene
			OIDN bool
		}
		if json.Unmarshal([]byte(line), &scene) != nil { // what came before the first
			continue
		}
		own[scene.Name], always[scene.Name] = scene.Denoises, scene.DenoisesAlways
		// Blender itself is asked too, where it can tell; of its nodes it says nothing.
		if !scene.OIDN && !strings.HasPrefix(scene.Name, "node") {
			require.Equal(t, scene.Denoise(lease.Settings{}), strings.Contains(words, "Build without OpenImageDenoise"), "%s", part)
		}
	}
	require.Equal(t, map[string]bool{
		"denoises": true, "does not": false, "another engine": true, "its layer does not": false, "a layer does": true, "viewport only": false,
		"node": false, "node in a group": false, "muted node": false, "compositing off": false,
		"composites another scene": false, "composites only another scene": false,
		"edits another scene": false, "edits only another scene": false, "edits a muted scene": false,
		"edits nothing": true, "edits sound": true, "sequencer off": false,
	}, own)
	maps.DeleteFunc(always, func(_ string, needs bool) bool { return !needs })
	require.ElementsMatch(t, []string{"node", "node in a group", "composites another scene", "edits another scene"}, slices.Collect(maps.Keys(always)))
}

func TestDenoiseFollowsTheEngine(t *testing.T) {
	s := Scene{Name: "Scene", Engine: "BLENDER_EEVEE", Denoises: true}
	require.False(t, s.Denoise(lease.Settings{}))
	require.True(t, s.Denoise(lease.Settings{Engine: "CYCLES"}))
	require.False(t, s.Denoise(lease.Settings{Engine: "CYCLES", Scene: "Other"}), "nobody looked at that one")
	s.DenoisesAlways = true
	require.True(t, s.Denoise(lease.Settings{}))
	require.True(t, s.Denoise(lease.Settings{Scene: "Scene"}))
}

func TestCollectWithoutBlender(t *testing.T) {
	blend, err := sample()
	if err != nil {
		t.Skip("needs Blender to make a file: ", err)
	}
	c, err := Collect(t.Context(), "", blend)
	require.NoError(t, err)
	require.False(t, c.Manifest.Complete)
	require.Len(t, c.Files, 1)
	require.Equal(t, c.Manifest.Blend, c.Files[0].Path)
	require.NotZero(t, c.Version)
}
