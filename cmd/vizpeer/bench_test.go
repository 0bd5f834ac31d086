package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

const (
	// What a farm may cost a job of light frames: 1.15 times plain Blender and
	// the allowance for handing the job over.
	benchFactor    = 1.15
	benchAllowance = 3 * time.Second
	// And what one whose Blender stays warm may.
	warmFactor    = 1.05
	warmAllowance = 2 * time.Second
)

// lightScene is 40 frames that take a second or less each, of so many samples and
// percent of 320 × 180 pixels.
const lightScene = `
import bpy
scene = bpy.context.scene
scene.render.engine = 'CYCLES'
scene.cycles.samples, scene.cycles.use_denoising = %d, False
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 320, 180, %d
scene.render.image_settings.file_format = 'PNG'
scene.frame_start, scene.frame_end = 1, 40
cube = bpy.data.objects['Cube']
cube.keyframe_insert('rotation_euler', frame=1)
cube.rotation_euler[2] = 3.14
cube.keyframe_insert('rotation_euler', frame=40)
bpy.ops.wm.save_as_mainfile(filepath=%q)
`

// farmOfOne is a peer that runs, and a light scene.
type farmOfOne struct {
	blender, program string
	dir, data, blend string
}

func startFarmOfOne(b *testing.B, samples, percent int) farmOfOne {
	b.Helper()
	blender, err := exec.LookPath("blender")
	require.NoError(b, err, "the bench renders with Blender")
	program, err := exec.LookPath("vizpeer")
	require.NoError(b, err)
	dir := b.TempDir()
	f := farmOfOne{blender: blender, program: program, dir: dir, data: filepath.Join(dir, "farm"), blend: filepath.Join(dir, "light.blend")}
	runTimed(b, blender, "-b", "--factory-startup", "--python-exit-code", "3", "--python-expr", fmt.Sprintf(lightScene, samples, percent, f.blend))

	runTimed(b, program, "init", "--data-dir", f.data, "--name", "bench", "--json")
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	require.NoError(b, farm.up(b.Context(), "farm", nil))
	b.Cleanup(farm.stop)
	return f
}

// plain renders frames with plain Blender.
func (f farmOfOne) plain(b *testing.B, start, end int) time.Duration {
	b.Helper()
	return runTimed(b, f.blender, "-b", f.blend, "-o", filepath.Join(f.dir, "plain", "####"), "-s", strconv.Itoa(start), "-e", strconv.Itoa(end), "-a")
}

// BenchmarkFarmOfOne renders 40 light frames with plain Blender and then through
// a farm of one peer, and reports the seconds beside those allowed.
func BenchmarkFarmOfOne(b *testing.B) {
	farm := startFarmOfOne(b, 16, 100)
	farm.plain(b, 1, 40) // warms the disk
	for b.Loop() {
		out := b.TempDir()
		p := farm.plain(b, 1, 40)
		f := runTimed(b, farm.program, "render", farm.blend, "--data-dir", farm.data, "--frames", "1-40", "--chunk", "20", "--output", out, "--wait", "--json")
		frames, err := filepath.Glob(filepath.Join(out, "*.png"))
		require.NoError(b, err)
		require.Len(b, frames, 40, "every frame is in the output folder")
		b.ReportMetric(p.Seconds(), "plain-s")
		b.ReportMetric(f.Seconds(), "farm-s")
		b.ReportMetric(benchFactor*p.Seconds()+benchAllowance.Seconds(), "allowed-s")
		b.ReportMetric(warmFactor*p.Seconds()+warmAllowance.Seconds(), "allowed-warm-s")
	}
}

// BenchmarkOneFrameJobs renders ten frames of a project with a plain Blender for each,
// and then as ten jobs through a farm of one peer, each submitted when the one before is
// done. The frames are so light that most of a plain Blender's time is its start. The
// peer's Blender is cold for the first job.
func BenchmarkOneFrameJobs(b *testing.B) {
	const jobs = 10
	farm := startFarmOfOne(b, 4, 50)
	cl, err := (&cli{dataDir: farm.data}).client()
	require.NoError(b, err)
	var sent struct{ Project string }
	text, err := exec.Command(farm.program, "render", farm.blend, "--data-dir", farm.data, "--frames", "1", "--wait", "--json").Output()
	require.NoError(b, err)
	require.NoError(b, json.Unmarshal(text, &sent))
	render := func(frame, percent int) {
		out, err := cl.submit(b.Context(), httpapi.Submission{Project: sent.Project, Frames: strconv.Itoa(frame), Settings: lease.Settings{ResolutionPercent: percent}}, func(error) {})
		require.NoError(b, err)
		job, err := cl.follow(b.Context(), out.Job, func(*follower, *httpapi.Event) {})
		require.NoError(b, err)
		require.Equal(b, lease.JobDone, job.State)
	}
	farm.plain(b, 1, 1)
	for b.Loop() {
		var p time.Duration
		for frame := range jobs {
			p += farm.plain(b, frame+1, frame+1)
		}
		render(1, 10) // this one's Blender takes the place of one that may be warm
		began := time.Now()
		for frame := range jobs {
			render(frame+1, 0)
		}
		b.ReportMetric(p.Seconds(), "plain-s")
		b.ReportMetric(time.Since(began).Seconds(), "farm-s")
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

// stillScene is a frame that one thread renders for about a minute: whoever renders it
// uses one thread, as the file says, and Sobol's samples, as a frame in parts does above
// 256 of them: all render the same picture.
const stillScene = `
import bpy
scene = bpy.context.scene
scene.render.engine = 'CYCLES'
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = 512, False, False
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 640, 360, 100
scene.cycles.sampling_pattern = 'SOBOL'
scene.render.threads_mode, scene.render.threads = 'FIXED', 1
scene.render.image_settings.file_format = 'PNG'
for x in range(-2, 3):
    bpy.ops.mesh.primitive_monkey_add(location=(x, 2, 0.5))
    bpy.ops.object.modifier_add(type='SUBSURF')
bpy.ops.wm.save_as_mainfile(filepath=%q)
`

// BenchmarkSplitStill renders a still with one plain Blender of one thread, and then
// split over two peers whose Blenders have one thread each. Beside that it shows how long
// two plain Blenders take for half of the samples each, at once: two cores of one machine
// are seldom twice as fast as one.
func BenchmarkSplitStill(b *testing.B) {
	blender, err := exec.LookPath("blender")
	require.NoError(b, err, "the bench renders with Blender")
	program, err := exec.LookPath("vizpeer")
	require.NoError(b, err)
	dir := b.TempDir()
	blend := filepath.Join(dir, "still.blend")
	runTimed(b, blender, "-b", "--factory-startup", "--python-exit-code", "3", "--python-expr", fmt.Sprintf(stillScene, blend))
	data := filepath.Join(dir, "one")
	runTimed(b, program, "init", "--data-dir", data, "--name", "bench", "--json")
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	b.Cleanup(farm.stop)
	require.NoError(b, farm.up(b.Context(), "one", nil))
	cl, err := (&cli{dataDir: data}).client()
	require.NoError(b, err)
	ticket, err := cl.invite(b.Context(), httpapi.Invitation{Role: authz.Node, Uses: 1, ExpiresIn: time.Hour.Seconds()})
	require.NoError(b, err)
	_, err = farm.command(b.Context(), "two", strings.NewReader(ticket.Ticket), "join", "--json", "--name", "two", "-")
	require.NoError(b, err)
	require.NoError(b, farm.up(b.Context(), "two", nil))
	require.NoError(b, awaitWorkers(b.Context(), cl, 2))
	for b.Loop() {
		p := runTimed(b, blender, "-b", blend, "-o", filepath.Join(dir, "plain", "####"), "-f", "1")
		out := b.TempDir()
		f := runTimed(b, program, "render", blend, "--data-dir", data, "--frames", "1", "--split", "samples", "--output", out, "--wait", "--json")
		frames, err := filepath.Glob(filepath.Join(out, "*.png"))
		require.NoError(b, err)
		require.Len(b, frames, 1)
		began := time.Now()
		var both sync.WaitGroup
		for range 2 {
			half := b.TempDir()
			both.Go(func() {
				runTimed(b, blender, "-b", blend, "--python-expr", "import bpy; bpy.context.scene.cycles.samples = 256", "-o", filepath.Join(half, "####"), "-f", "1")
			})
		}
		both.Wait()
		b.ReportMetric(time.Since(began).Seconds(), "halves-s")
		b.ReportMetric(p.Seconds(), "plain-s")
		b.ReportMetric(f.Seconds(), "farm-s")
	}
}
