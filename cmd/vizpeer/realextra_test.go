package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// manyFiles makes a scene whose frames have a file for each of two views, and two File
// Output nodes.
const manyFiles = `
import bpy, os
home = os.environ["SCENE_HOME"]
bpy.ops.wm.read_factory_settings(use_empty=False)
s = bpy.context.scene
s.render.engine = "CYCLES"
s.cycles.samples, s.cycles.use_denoising = 2, False
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 32, 18, 100
s.render.filepath = home + "/shot_"
s.render.use_multiview = True
s.render.image_settings.views_format = "INDIVIDUAL"
s.use_nodes = True
tree = s.node_tree
layers = [n for n in tree.nodes if n.type == "R_LAYERS"][0]
for base, slot in ((home + "/passes", "beauty/image"), (home, "alpha_")):
    node = tree.nodes.new("CompositorNodeOutputFile")
    node.base_path = base
    node.file_slots[0].path = slot
    tree.links.new(layers.outputs["Image" if "image" in slot else "Alpha"], node.inputs[0])
bpy.ops.wm.save_as_mainfile(filepath=os.environ["SCENE_BLEND"])
`

// All files of a frame are in the output folder of the one who asked, wherever it was
// rendered, with the names and pixels that plain Blender gives them.
func TestRealFarmDeliversAllFilesOfAFrame(t *testing.T) {
	f := startRealFarm(t, "desk", "box")
	home, blend := t.TempDir(), filepath.Join(t.TempDir(), "many.blend")
	script := filepath.Join(t.TempDir(), "make.py")
	require.NoError(t, os.WriteFile(script, []byte(manyFiles), 0o600))
	for _, args := range [][]string{{"--python-exit-code", "3", "-P", script}, {blend, "-s", "9", "-e", "12", "-a"}} {
		cmd := exec.Command("blender", append([]string{"-b", "--factory-startup", "-noaudio", "-Y"}, args...)...)
		cmd.Env = append(os.Environ(), "SCENE_HOME="+home, "SCENE_BLEND="+blend)
		said, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", said)
	}
	out, copied := t.TempDir(), t.TempDir()
	var sent httpapi.Submitted
	f.peers[0].run(&sent, "render", blend, "--frames", "9-12", "--chunk", "1", "--blender-version", "any", "--output", out, "--wait")
	f.peers[0].run(nil, "job", "frames", string(sent.Job), "--output", copied)
	var frames []httpapi.Frame
	f.peers[0].run(&frames, "job", "frames", string(sent.Job))
	for _, frame := range frames {
		require.Equal(t, 5, frame.ExtraFiles)
		for _, name := range []string{"shot_%04d_L.png", "shot_%04d_R.png", "passes/beauty/image%04d_L.png", "passes/beauty/image%04d_R.png", "alpha_%04d_L.png", "alpha_%04d_R.png"} {
			name = fmt.Sprintf(name, frame.Frame)
			for _, dir := range []string{out, copied} {
				samePixels(t, filepath.Join(home, name), filepath.Join(dir, name), 0)
			}
		}
	}
	for _, dir := range []string{out, copied} {
		require.Len(t, pictures(t, dir), 4*4)
		require.Len(t, pictures(t, filepath.Join(dir, "passes", "beauty")), 2*4)
		stray, err := filepath.Glob(filepath.Join(dir, ".*"))
		require.NoError(t, err)
		require.Empty(t, stray)
	}
}
