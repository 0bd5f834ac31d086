package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// What a farm may cost a job of light frames: 1.15 times plain Blender and
	// the allowance for handing the job over.
	benchFactor    = 1.15
	benchAllowance = 3 * time.Second
)

// lightScene is 40 frames that take a second or less each.
const lightScene = `
import bpy
scene = bpy.context.scene
scene.render.engine = 'CYCLES'
scene.cycles.samples, scene.cycles.use_denoising = 16, False
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 320, 180, 100
scene.render.image_settings.file_format = 'PNG'
scene.frame_start, scene.frame_end = 1, 40
cube = bpy.data.objects['Cube']
cube.keyframe_insert('rotation_euler', frame=1)
cube.rotation_euler[2] = 3.14
cube.keyframe_insert('rotation_euler', frame=40)
bpy.ops.wm.save_as_mainfile(filepath=%q)
`

// BenchmarkFarmOfOne renders 40 light frames with plain Blender and then through
// a farm of one peer, and reports the seconds beside those allowed.
func BenchmarkFarmOfOne(b *testing.B) {
	blender, err := exec.LookPath("blender")
	require.NoError(b, err, "the bench renders with Blender")
	program, err := exec.LookPath("vizpeer")
	require.NoError(b, err)
	dir := b.TempDir()
	blend, data := filepath.Join(dir, "light.blend"), filepath.Join(dir, "farm")
	runTimed(b, blender, "-b", "--factory-startup", "--python-exit-code", "3", "--python-expr", fmt.Sprintf(lightScene, blend))

	runTimed(b, program, "init", "--data-dir", data, "--name", "bench", "--json")
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	require.NoError(b, farm.up(b.Context(), "farm", nil))
	b.Cleanup(farm.stop)
	plain := func() time.Duration {
		return runTimed(b, blender, "-b", blend, "-o", filepath.Join(dir, "plain", "####"), "-s", "1", "-e", "40", "-a")
	}
	plain() // warms the disk
	for b.Loop() {
		out := b.TempDir()
		p := plain()
		f := runTimed(b, program, "render", blend, "--data-dir", data, "--frames", "1-40", "--chunk", "20", "--output", out, "--wait", "--json")
		frames, err := filepath.Glob(filepath.Join(out, "*.png"))
		require.NoError(b, err)
		require.Len(b, frames, 40, "every frame is in the output folder")
		b.ReportMetric(p.Seconds(), "plain-s")
		b.ReportMetric(f.Seconds(), "farm-s")
		b.ReportMetric(benchFactor*p.Seconds()+benchAllowance.Seconds(), "allowed-s")
	}
}

func runTimed(t testing.TB, program string, args ...string) time.Duration {
	t.Helper()
	cmd := exec.Command(program, args...)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), args[0], err, out)
	}
	return time.Since(began)
}
