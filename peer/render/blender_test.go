//go:build unix

package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// fake is the beginning of a shell script that stands for Blender: it knows where
// the output goes and how to speak as the driver does, and was asked for something. What
// does not ask again ends, as Blender does that fails.
const fake = `#!/bin/sh
for args; do :; done
out=$(sed -n 's/.*"out":"\([^"]*\)".*/\1/p' "$args")
ask() {
	read -r request || exit 0
	id=$(expr "$request" : '.*"id":"\([^"]*\)"')
	frames=$(expr "$request" : '.*"frames":\[\([^]]*\)\]' | tr , ' ')
}
say() { printf '\nVIZ %s,"id":"%s"}\n' "${1%\}}" "$id"; }
loaded() { say '{"ev":"loaded"}'; }
start() { say "{\"ev\":\"start\",\"frame\":$1}"; }
frame() { say "{\"ev\":\"frame\",\"frame\":$1,\"file\":\"$2\",\"name\":\"$3\",\"seconds\":0.5}"; }
render() { start $1; cp $here/good.png $out/f$1.png; frame $1 f$1.png shot_$1.png; }
end() { say '{"ev":"end","again":true,"memory":1000}'; }
`

// fakeBlender is a Blender that runs body; good.png beside it is an image.
func fakeBlender(t *testing.T, body string) lease.Build {
	t.Helper()
	dir := t.TempDir()
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, 64, 64))))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "good.png"), b.Bytes(), 0o644))
	path := filepath.Join(dir, "blender")
	require.NoError(t, os.WriteFile(path, []byte(fake+"here="+dir+"\nask\n"+body), 0o755))
	return lease.Build{Name: "Blender", Path: path, Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}
}

func fakeAttempt(t *testing.T, body string, frames ...int32) Attempt {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "files", "shot"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "files", "shot", "a.blend"), []byte("BLENDER-v304"), 0o644))
	if len(frames) == 0 {
		frames = []int32{1}
	}
	return Attempt{Project: root, Blend: "files/shot/a.blend", Build: fakeBlender(t, body), Frames: frames}
}

func TestFailuresAreToldApart(t *testing.T) {
	for _, c := range []struct {
		name, body string
		kind       lease.FailKind
		reason     string
	}{
		{"crash", "loaded; start 1; kill -SEGV $$", lease.FailCrash, "Blender crashed at frame 1 (segmentation fault)"},
		{"crash while loading", "kill -ABRT $$", lease.FailCrash, "Blender crashed while loading the file (aborted)"},
		{"exit code of a crash", "exit 139", lease.FailCrash, "Blender crashed while loading the file (segmentation fault)"},
		{"killed", "loaded; kill -KILL $$", lease.FailCrash, "another program killed Blender while loading the file"},
		{"memory", "loaded; start 1; echo 'Malloc returns null: len=99 in x, total 5'; exit 1", lease.FailMemory, "Blender ran out of memory at frame 1"},
		{"GPU memory", `loaded; start 1; say '{"ev":"fail","kind":"error","reason":"frame 1: System is out of GPU memory"}'; exit 3`, lease.FailMemory, "the GPU ran out of memory at frame 1"},
		{"memory and a crash", "loaded; start 1; echo 'Calloc returns null: len=99 in x, total 5'; kill -SEGV $$", lease.FailMemory, "Blender ran out of memory at frame 1"},
		{"memory and no error", "loaded; start 1; echo 'Error: run out of memory!'; exit 0", lease.FailMemory, "Blender ran out of memory at frame 1"},
		{"memory of the GPU, and an image all the same", `loaded; start 1; echo 'Fra:1 Mem:9000M | Error: Could not allocate shadow atlas. Most likely out of GPU memory.'; cp $here/good.png $out; frame 1 good.png a.png; sleep 1000`,
			lease.FailMemory, "the GPU ran out of memory at frame 1, and Blender went on without what found no room: Fra:1 Mem:9000M | Error: Could not allocate shadow atlas. Most likely out of GPU memory."},
		{"ended", "loaded; start 1; kill -TERM $$", lease.FailCrash, "another program ended Blender at frame 1"},
		{"disk", `loaded; start 1; say '{"ev":"fail","kind":"error","reason":"frame 1: No space left on device"}'; exit 3`, lease.FailMachine, "this machine's disk is full: Blender could not write at frame 1"},
		{"driver", `loaded; say '{"ev":"fail","kind":"error","reason":"the file has no scene B"}'; exit 3`, lease.FailError, "the file has no scene B"},
		{"device", `loaded; say '{"ev":"fail","kind":"machine","reason":"no OPTIX"}'; exit 3`, lease.FailMachine, "no OPTIX"},
		{"made-up kind", `loaded; say '{"ev":"fail","kind":"stop the farm","reason":"x"}'; exit 3`, lease.FailError, "x"},
		{"not opened", "echo 'Error: File format is not supported'; exit 1", lease.FailError, "Blender could not open the file: Error: File format is not supported"},
		{"silent", "exit 1", lease.FailError, "Blender could not open the file: it said nothing"},
		{"not begun", "echo license lost; exit 7", lease.FailError, "Blender ended before it had loaded the file (exit code 7): license lost"},
		{"later", "loaded; start 1; echo oh; exit 5", lease.FailError, "Blender ended with exit code 5 at frame 1: oh"},
		{"libraries", "echo 'blender: error while loading shared libraries: libX.so'; exit 127", lease.FailMachine, "this machine's Blender does not start: blender: error while loading shared libraries: libX.so"},
		{"nothing written", "loaded", lease.FailImage, "Blender ended without an error but wrote nothing for frame 1"},
		{"no file", "loaded; frame 1 none.png 0001.png", lease.FailImage, "frame 1: Blender wrote no image"},
		{"empty", "loaded; : > $out/a.png; frame 1 a.png 0001.png", lease.FailImage, "frame 1: the image is empty"},
		{"cut short", "loaded; head -c 60 $here/good.png > $out/a.png; frame 1 a.png 0001.png", lease.FailImage, "frame 1: the image is cut short or damaged: it ends before its IEND chunk"},
		{"link", "loaded; ln -s $here/good.png $out/a.png; frame 1 a.png 0001.png", lease.FailImage, "frame 1: the image is not a regular file"},
		{"outside", "loaded; frame 1 ../driver/driver.py x.png", lease.FailError, "Blender reports frame 1 in a file outside its folder"},
		{"another frame", "loaded; cp $here/good.png $out; frame 2 good.png x.png", lease.FailError, "Blender reports frame 2, which this attempt does not wait for"},
		{"bad text", `printf 'Error: \377\376 bad\n'; exit 1`, lease.FailError, "Blender could not open the file: Error: � bad"},
		{"one long line", "head -c 300000 /dev/zero | tr '\\0' x; echo; echo Error: end; exit 1", lease.FailError, "Blender could not open the file: Error: end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
			log, cleanup, err := b.Run(t.Context(), fakeAttempt(t, c.body), &collectorSink{})
			defer cleanup()
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, c.kind, e.Kind)
			require.True(t, utf8.ValidString(e.Tail))
			require.LessOrEqual(t, len(e.Tail), tailBytes)
			require.FileExists(t, log)
		})
	}
}

func TestExitCodesPassTheSandbox(t *testing.T) {
	b := NewBlender(Config{Dir: t.TempDir()})
	if kind, why := b.Sandbox(); kind == "" {
		t.Skip("no sandbox on this machine: " + why)
	}
	for body, kind := range map[string]lease.FailKind{
		"loaded; start 1; kill -SEGV $$":                                               lease.FailCrash,
		`loaded; say '{"ev":"fail","kind":"machine","reason":"x"}'; exit 3`:            lease.FailMachine,
		"loaded; cp $here/good.png $out/a.png; frame 1 a.png 0001.png":                 "",
		"loaded; ls / | tr '\\n' ' '; echo x > /usr/x; echo x > /vizpeer/x; exit 1":    lease.FailError,
		"exec 2>/dev/null; loaded; start 1; cat /etc/passwd && exit 0; exit 4":         lease.FailError,
		"exec 2>/dev/null; loaded; echo x > /vizpeer/driver/driver.py && exit; exit 4": lease.FailError,
	} {
		_, cleanup, err := b.Run(t.Context(), fakeAttempt(t, body), &collectorSink{})
		cleanup()
		if kind == "" {
			require.NoError(t, err)
			continue
		}
		e, ok := errors.AsType[*Error](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, kind, e.Kind, "%s: %s", body, e)
	}
}

func TestCrashAfterTheLastFrameIsNoFailure(t *testing.T) {
	sink := &collectorSink{}
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	_, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
loaded
for f in 3 4; do start $f; cp $here/good.png $out/f$f.png; frame $f f$f.png shot_$f.png; done
kill -SEGV $$`, 3, 4), sink)
	defer cleanup()
	require.NoError(t, err)
	require.Len(t, sink.frames, 2)
	require.Equal(t, "shot_4.png", sink.frames[1].Name)
	require.Equal(t, 0.5, sink.frames[1].Seconds)
}

// stopper calls stop at the first progress of a phase.
type stopper struct {
	collectorSink
	phase string
	stop  func()
}

func (s *stopper) Progress(p Progress) {
	if p.Phase == s.phase {
		s.stop()
	}
}

// hangs leaves the number of a child in a file and never ends.
const hangs = `sleep 1000 & echo $! > $here/child; loaded; start 1; wait`

func requireGone(t *testing.T, a Attempt) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(a.Build.Path), "child"))
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(text), &pid)
	require.NoError(t, err)
	// The kernel gives the dead child to a reaper in its own time.
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil && syscall.Kill(pid, 0) != nil || strings.Contains(string(stat), ") Z ")
	}, 10*time.Second, 10*time.Millisecond, "a process that Blender started is still there")
}

func TestStopKillsEverything(t *testing.T) {
	a := fakeAttempt(t, hangs)
	ctx, cancel := context.WithCancel(t.Context())
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	log, cleanup, err := b.Run(ctx, a, &stopper{phase: phaseRendering, stop: cancel})
	require.ErrorIs(t, err, ErrStopped)
	require.ErrorIs(t, err, context.Canceled)
	requireGone(t, a)
	cleanup()
	require.NoFileExists(t, log)
}

func TestHangEndsAtTheTimeout(t *testing.T) {
	a := fakeAttempt(t, hangs)
	a.Timeout = 700 * time.Millisecond
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
	defer cleanup()
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, lease.FailTimeout, e.Kind)
	require.Equal(t, "Blender was stopped at frame 1 because the attempt ran past the 700ms that the job's task time-out allows", e.Reason)
	a.Timeout = 0
	require.Equal(t, "a day for each of its 1 frames, which is the most without a task time-out of the job's own", a.allowed())
	requireGone(t, a)
}

// refuser keeps no frame.
type refuser struct{ collectorSink }

func (refuser) Frame(context.Context, Frame) error { return errors.New("the store is full") }

func TestFrameThatIsNotKeptEndsTheAttempt(t *testing.T) {
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	a := fakeAttempt(t, "loaded; start 1; cp $here/good.png $out; frame 1 good.png a.png; "+hangs)
	_, cleanup, err := b.Run(t.Context(), a, &refuser{})
	defer cleanup()
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, lease.FailMachine, e.Kind)
	require.Contains(t, e.Reason, "the store is full")
}

func TestHugeOutputIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it writes for long")
	}
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	log, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
echo first; yes 'Fra:1 Mem:8.78M (Peak 8.84M) | Time:00:00.01 | Scene | Sample 3/64' | head -c 20000000; echo; echo last; exit 1`), &collectorSink{})
	defer cleanup()
	e, _ := errors.AsType[*Error](err)
	require.NotNil(t, e, "%v", err)
	require.Regexp(t, "^first\nFra:1 [^\n]*\nlast$", e.Tail)
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Less(t, len(text), logHead+logTail+100)
	require.True(t, strings.HasPrefix(string(text), "first\n"))
	require.True(t, strings.HasSuffix(string(text), "last\n"))
	require.Contains(t, string(text), "bytes are left out here")
}

func TestLogHoldsBlendersOwnWords(t *testing.T) {
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	log, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
printf 'Blender 3.4.1\n\nRead\r\n'; loaded; say '{"ev":"note","text":"a movie"}'
printf 'Fra:1 '; say '{"ev":"device","name":"CPU"}'; start 1; printf 'half '; start 1; printf 'a line\n\n'
echo 'VIZ is not ours'; echo ' VIZ {}'; say '{"ev":"fail","kind":"error","reason":"no"}'; printf 'quit\n\n'; exit 3`), &collectorSink{})
	defer cleanup()
	require.EqualError(t, err, "no")
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, "Blender 3.4.1\n\nRead\r\nnote: a movie\nFra:1 \nnote: Cycles renders on CPU\nnote: frame 1 begins\nhalf \nnote: frame 1 begins\na line\n\nVIZ is not ours\n VIZ {}\nerror: no\nquit\n\n", string(text))
}

func TestAttemptThatFillsTheDiskIsStopped(t *testing.T) {
	t.Parallel() // the watchdog takes its time
	a := fakeAttempt(t, `truncate -s 10G $out/holes; head -c 3000000 /dev/zero > $out/big; `+hangs)
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff, MaxDisk: 2 << 20})
	_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
	defer cleanup()
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, lease.FailMachine, e.Kind)
	require.Equal(t, "Blender was stopped because the attempt wrote more than the 0.0 GiB it may take on this machine", e.Reason)
	requireGone(t, a)
}

func TestProgressIsReadAndNotTooOften(t *testing.T) {
	sink := &collectorSink{}
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	_, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
loaded; start 7
i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo "Fra:7 Mem:1.50G (Peak 2.00G) | Time:00:00.16 | Mem:2.26M, Peak:2.26M | Scene, ViewLayer | Sample $i/500"; done
echo "Saved: 'x'"; cp $here/good.png $out; frame 7 good.png a.png`, 7), sink)
	defer cleanup()
	require.NoError(t, err)
	require.Less(t, len(sink.progress), 20)
	var phases []string
	for _, p := range sink.progress {
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	}
	require.Equal(t, []string{phaseLoading, phaseRendering, phaseSaving}, phases)
	last := sink.progress[len(sink.progress)-1]
	require.Equal(t, Progress{Frame: 7, Done: 1, Total: 1, Phase: phaseSaving, Sample: 500, Samples: 500, Memory: 3 << 29, Elapsed: last.Elapsed}, last)
}

func TestAttemptsThatCannotStart(t *testing.T) {
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	for name, c := range map[string]struct {
		change func(*Attempt)
		kind   lease.FailKind
		reason string
	}{
		"no frames":      {func(a *Attempt) { a.Frames = nil }, lease.FailError, "the attempt has no frames"},
		"climbing blend": {func(a *Attempt) { a.Blend = "files/../../x.blend" }, lease.FailError, `the .blend "files/../../x.blend" is not inside the project`},
		"absent blend":   {func(a *Attempt) { a.Blend = "files/none.blend" }, lease.FailError, `the project holds no file "files/none.blend"`},
		"absent Blender": {func(a *Attempt) { a.Build.Path = "/nowhere/blender" }, lease.FailMachine, "this machine's Blender 3.4.1 is gone or cannot be run"},
		"bad manifest": {func(a *Attempt) {
			require.NoError(t, os.WriteFile(filepath.Join(a.Project, ManifestName), []byte("{"), 0o600))
		}, lease.FailError, "the project's vizpeer.json is damaged: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fakeAttempt(t, "exit 0")
			c.change(&a)
			_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
			cleanup()
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, c.kind, e.Kind)
		})
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, attemptPrefix+"123")
	require.NoError(t, os.Mkdir(old, 0o700))
	b := NewBlender(Config{Dir: dir, Sandbox: SandboxOff})
	_, cleanup, _ := b.Run(t.Context(), fakeAttempt(t, "exit 1"), &collectorSink{})
	require.NoDirExists(t, old)
	cleanup()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAttemptIsToldItsDevice(t *testing.T) {
	a := fakeAttempt(t, `for args; do :; done; cp "$args" $here/args; exit 1`)
	ids := map[lease.Backend]string{lease.OptiX: "CUDA_RTX_0000:41:00_OptiX", lease.CUDA: "CUDA_RTX_0000:41:00"}
	a.Build.GPUs = []map[lease.Backend]string{nil, ids}
	b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
	for _, c := range []struct {
		device   lease.Device
		needs    lease.Requirements
		backends []lease.Backend
		gpu      bool
		ids      map[lease.Backend]string
		reason   string
	}{
		{"", lease.Requirements{}, nil, false, nil, ""},
		{"", lease.Requirements{GPUVendor: lease.NVIDIA}, []lease.Backend{lease.OptiX, lease.CUDA}, true, nil, ""},
		{"cpu", lease.Requirements{}, []lease.Backend{lease.CPU}, false, nil, ""},
		{"gpu1", lease.Requirements{}, nil, false, ids, ""},
		{"gpu1", lease.Requirements{Backend: lease.CUDA}, []lease.Backend{lease.CUDA}, true, ids, ""},
		{"gpu0", lease.Requirements{}, nil, false, nil, `this machine's Blender 3.4.1 cannot use its device "gpu0"`},
		{"gpu2", lease.Requirements{}, nil, false, nil, `this machine's Blender 3.4.1 cannot use its device "gpu2"`},
		{"tpu", lease.Requirements{}, nil, false, nil, `this machine's Blender 3.4.1 cannot use its device "tpu"`},
	} {
		a.Device, a.Needs = c.device, c.needs
		_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
		cleanup()
		e, ok := errors.AsType[*Error](err)
		require.True(t, ok, "%v", err)
		if c.reason != "" {
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, lease.FailMachine, e.Kind)
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(a.Build.Path), "args"))
		require.NoError(t, err)
		var args driverArgs
		require.NoError(t, json.Unmarshal(text, &args))
		require.Equal(t, c.backends, args.Backend, c.device)
		require.Equal(t, c.gpu, args.GPU, c.device)
		require.Equal(t, c.ids, args.IDs, c.device)
	}
}

func TestDevicesAreChosen(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3: install it (apt-get install python3)")
	}
	cmd := exec.Command(python, "devices_test.py")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "\nOK\n")
}
