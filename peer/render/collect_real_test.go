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

// pictures are scenes that differ from one that can be divided in every way: what the
// collector says of each.
const pictures = `
import bpy, json, os, sys
sys.path.insert(0, os.environ["COLLECT"])
import collect
def case(name, change):
    bpy.ops.wm.read_factory_settings(use_empty=False)
    s = bpy.context.scene
    s.render.engine, s.cycles.samples, s.cycles.use_adaptive_sampling = "CYCLES", 200, False
    s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 640, 480, 50
    change(s)
    bpy.ops.wm.save_as_mainfile(filepath=os.path.join(os.environ["COLLECT"], "case.blend"))
    print("\nCASE " + json.dumps({"case": name, "scene": collect.collect(bpy)["manifest"]["scene"]}))
def put(owner, **values):
    for name, value in values.items():
        setattr(owner, name, value)
def layers(s, first, second, use="USE"):
    s.cycles.use_layer_samples = use
    s.view_layers[0].samples, s.view_layers.new("second").samples = first, second
def unused_layer(s):
    layers(s, 0, 9)
    s.view_layers["second"].use = False
    s.view_layers["second"].use_pass_cryptomatte_object = True
def tree(s):
    s.use_nodes = True
    return s.node_tree
def depth(s, into="Z"):
    s.view_layers[0].use_pass_z = True
    t = tree(s)
    n = next(n for n in t.nodes if n.type == "R_LAYERS")
    t.links.new(n.outputs["Depth"], next(n for n in t.nodes if n.type == "COMPOSITE").inputs[into])
def no_compositing(s):
    depth(s)
    s.render.use_compositing = False
def elsewhere(s):
    o = bpy.data.scenes.new("Other")
    for n in tree(s).nodes:
        if n.type == "R_LAYERS":
            n.scene = o
def strips(s, on=True):
    o = bpy.data.scenes.new("Other")
    s.sequence_editor_create()
    e = s.sequence_editor
    getattr(e, "strips", getattr(e, "sequences", None)).new_scene("x", o, 1, 1)
    s.render.use_sequencer = on
def old_lines(s, on):
    s.render.use_freestyle, s.view_layers[0].use_freestyle = True, on
v = lambda s: s.view_layers[0]
case("plain", lambda s: None)
case("another engine", lambda s: put(s.render, engine="BLENDER_WORKBENCH"))
case("adaptive", lambda s: put(s.cycles, use_adaptive_sampling=True))
case("timed", lambda s: put(s.cycles, time_limit=2.5))
case("seed", lambda s: put(s.cycles, use_animated_seed=True))
case("objects", lambda s: put(v(s), use_pass_cryptomatte_object=True))
case("materials", lambda s: put(v(s), use_pass_cryptomatte_material=True))
case("assets", lambda s: put(v(s), use_pass_cryptomatte_asset=True))
case("region", lambda s: put(s.render, use_border=True))
case("views", lambda s: put(s.render, use_multiview=True))
case("catcher", lambda s: put(bpy.data.objects["Cube"], is_shadow_catcher=True))
case("lines", lambda s: old_lines(s, True))
case("no lines", lambda s: old_lines(s, False))
case("depth", lambda s: put(v(s), use_pass_z=True))
case("indices", lambda s: put(v(s), use_pass_object_index=True))
case("normals", lambda s: put(v(s), use_pass_normal=True))
case("depth composited", depth)
case("depth not composited", no_compositing)
case("another scene composited", elsewhere)
case("composited", lambda s: tree(s))
case("strips", strips)
case("strips off", lambda s: strips(s, False))
case("layers", lambda s: layers(s, 100, 0))
case("layers agree", lambda s: layers(s, 100, 100))
case("layers bounded", lambda s: layers(s, 300, 0, "BOUNDED"))
case("layers ignored", lambda s: layers(s, 100, 0, "IGNORE"))
case("a layer unused", unused_layer)
os._exit(0)
`

func TestCollectSeesWhatDecidesASplit(t *testing.T) {
	build := realBlender(t)
	dir := t.TempDir()
	text, err := scripts.ReadFile("collect.py")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "collect.py"), text, 0o600))
	t.Setenv("COLLECT", dir)
	plain := lease.Picture{Engine: "CYCLES", Format: "PNG", Width: 640, Height: 480, Percent: 50, Samples: 200}
	want := map[string]func(*lease.Picture){
		"plain":                    func(*lease.Picture) {},
		"another engine":           func(p *lease.Picture) { p.Engine = "BLENDER_WORKBENCH" },
		"adaptive":                 func(p *lease.Picture) { p.Adaptive = true },
		"timed":                    func(p *lease.Picture) { p.TimeLimit = 2.5 },
		"seed":                     func(p *lease.Picture) { p.AnimatedSeed = true },
		"objects":                  func(p *lease.Picture) { p.Cryptomatte = true },
		"materials":                func(p *lease.Picture) { p.Cryptomatte = true },
		"assets":                   func(p *lease.Picture) { p.Cryptomatte = true },
		"region":                   func(p *lease.Picture) { p.Border = true },
		"views":                    func(p *lease.Picture) { p.Multiview = true },
		"catcher":                  func(p *lease.Picture) { p.ShadowCatcher = true },
		"lines":                    func(p *lease.Picture) { p.Freestyle = true },
		"no lines":                 func(*lease.Picture) {},
		"depth":                    func(p *lease.Picture) { p.DataPasses = true },
		"indices":                  func(p *lease.Picture) { p.DataPasses = true },
		"normals":                  func(*lease.Picture) {},
		"depth composited":         func(p *lease.Picture) { p.DataPasses, p.DataUsed = true, true },
		"depth not composited":     func(p *lease.Picture) { p.DataPasses = true },
		"another scene composited": func(p *lease.Picture) { p.Assembled = true },
		"composited":               func(*lease.Picture) {},
		"strips":                   func(p *lease.Picture) { p.Assembled = true },
		"strips off":               func(*lease.Picture) {},
		"layers":                   func(p *lease.Picture) { p.Samples = 0 },
		"layers agree":             func(p *lease.Picture) { p.Samples = 100 },
		"layers bounded":           func(*lease.Picture) {},
		"layers ignored":           func(*lease.Picture) {},
		"a layer unused":           func(*lease.Picture) {},
	}
	seen := 0
	for line := range strings.SplitSeq(script(t, build, pictures), "\n") {
		line, ok := strings.CutPrefix(line, "CASE ")
		if !ok {
			continue
		}
		var c struct {
			Case  string
			Scene Scene
		}
		require.NoError(t, json.Unmarshal([]byte(line), &c))
		require.Contains(t, want, c.Case)
		p := plain
		want[c.Case](&p)
		require.Equal(t, &p, c.Scene.PictureFor(lease.Settings{}), c.Case)
		seen++
	}
	require.Equal(t, len(want), seen)
}

func TestThePictureIsOfTheSceneThatIsRendered(t *testing.T) {
	s := Scene{Name: "Scene", Engine: "CYCLES", Format: "PNG", Picture: &lease.Picture{Width: 3}}
	require.Equal(t, &lease.Picture{Engine: "CYCLES", Format: "PNG", Width: 3}, s.PictureFor(lease.Settings{Scene: "Scene"}))
	require.Equal(t, lease.Picture{Width: 3}, *s.Picture)
	require.Nil(t, s.PictureFor(lease.Settings{Scene: "Other"}), "nobody looked at that one")
	require.Nil(t, Scene{Name: "Scene"}.PictureFor(lease.Settings{}))
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
