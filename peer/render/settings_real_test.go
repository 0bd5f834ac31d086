package render

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// twoScenes makes a file whose first scene writes a movie and whose second has a
// name of its own for its frames; the third has a file for each view.
const twoScenes = `
import bpy, os
bpy.ops.wm.read_factory_settings(use_empty=True)
def make(name, s, path):
    s.name = name
    cam = bpy.data.objects.new("cam", bpy.data.cameras.new("cam"))
    s.collection.objects.link(cam)
    s.camera = cam
    s.render.engine = "CYCLES"
    s.cycles.samples, s.cycles.use_denoising = 64, False
    s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 32, 16, 100
    s.render.filepath = path
    return s
first = make("First", bpy.context.scene, "//out/movie.mp4")
first.render.image_settings.file_format = "FFMPEG"
second = make("Second", bpy.data.scenes.new("Second"), "/tmp/take_##_b")
second.render.resolution_x = 64
third = make("Third", bpy.data.scenes.new("Third"), "//")
third.render.use_multiview = True
blind = make("Blind", bpy.data.scenes.new("Blind"), "//")
blind.camera = None
bpy.ops.wm.save_as_mainfile(filepath=os.environ["TWO_SCENES"])
`

func TestSettings(t *testing.T) {
	build := realBlender(t)
	root := t.TempDir()
	blend := filepath.Join(root, "two.blend")
	t.Run("the file", func(t *testing.T) { // whose environment is not the others'
		t.Setenv("TWO_SCENES", blend)
		script(t, build, twoScenes)
	})
	run := func(t *testing.T, set lease.Settings, needs lease.Requirements) (*collectorSink, string, error) {
		sink := &collectorSink{}
		log, cleanup, err := NewBlender(Config{Dir: t.TempDir()}).Run(t.Context(), Attempt{
			Project: root, Blend: "two.blend", Build: build, Frames: []int32{-3, 12}, Set: set, Needs: needs,
		}, sink)
		defer cleanup()
		text, _ := os.ReadFile(log)
		return sink, string(text), err
	}
	t.Run("a movie comes as frames", func(t *testing.T) {
		sink, log, err := run(t, lease.Settings{Samples: 2}, lease.Requirements{})
		require.NoError(t, err, "%s", log)
		require.Equal(t, "movie_-0003.png", sink.frames[0].Name)
		require.Equal(t, "movie_0012.png", sink.frames[1].Name)
		require.Equal(t, 32, pixels(t, sink.images[12]).Bounds().Dx())
		require.Contains(t, log, "Sample 2/2")
		require.Regexp(t, `(?m)^note: the scene's output is a movie \(FFMPEG\): frames are written as PNG$`, log)
	})
	t.Run("another scene, format and size", func(t *testing.T) {
		sink, log, err := run(t, lease.Settings{Scene: "Second", Format: "JPEG", ResolutionPercent: 50, Samples: 1}, lease.Requirements{Backend: lease.CPU})
		require.NoError(t, err, "%s", log)
		require.Equal(t, "take_12_b.jpg", sink.frames[1].Name)
		require.Equal(t, []byte("\xff\xd8\xff"), sink.images[12][:3])
	})
	for name, c := range map[string]struct {
		set    lease.Settings
		needs  lease.Requirements
		kind   lease.FailKind
		reason string
	}{
		"no such scene":  {lease.Settings{Scene: "Last"}, lease.Requirements{}, lease.FailError, "the file has no scene 'Last', only: Blind, First, Second, Third"},
		"no such engine": {lease.Settings{Engine: "LUXCORE"}, lease.Requirements{}, lease.FailMachine, "this Blender has no engine LUXCORE"},
		"no such format": {lease.Settings{Format: "GIF"}, lease.Requirements{}, lease.FailError, "this Blender does not write the format GIF"},
		"no camera":      {lease.Settings{Scene: "Blind"}, lease.Requirements{}, lease.FailError, "frame -3: Error: Cannot render, no camera"},
		"no METAL":       {lease.Settings{}, lease.Requirements{Backend: lease.Metal}, lease.FailMachine, "Blender finds no device for METAL on this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/System/Library/Frameworks/Metal.framework"); err == nil && c.needs.Backend == lease.Metal {
				t.Skip("this machine has Metal")
			}
			t.Parallel()
			_, log, err := run(t, c.set, c.needs)
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v\n%s", err, log)
			require.Equal(t, c.reason, e.Reason, "%s", log)
			require.Equal(t, c.kind, e.Kind)
		})
	}
}
