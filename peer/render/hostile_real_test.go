//go:build linux

package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// hostileFarm is what hostile files aim at, and the attempts that render them.
type hostileFarm struct {
	root    string // the project
	folder  string // of the files in it, known by its name
	outside string // where nothing may appear
	etc     string
	data    string // like a daemon's folder, with a key in it
	build   lease.Build
}

// newHostileFarm makes the files. Its Blender has limits of its own, so that a file
// that breaks through ours does this machine no harm.
func newHostileFarm(t *testing.T) *hostileFarm {
	t.Helper()
	real := realBlender(t)
	if kind, why := SandboxKind(); kind == "" {
		t.Skip("needs bubblewrap, for these files are not to be opened without: " + why)
	}
	f := &hostileFarm{root: t.TempDir(), outside: t.TempDir(), data: t.TempDir()}
	name := fmt.Sprintf("vizpeer-hostile-%d", os.Getpid())
	f.etc = "/etc/" + name
	t.Cleanup(func() { _ = os.Remove(f.etc); _ = os.RemoveAll(f.etc + ".d") })
	f.folder = filepath.Join(f.root, "files", name)
	require.NoError(t, os.MkdirAll(f.folder, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(f.data, "key"), []byte("secret"), 0o600))

	red := image.NewRGBA(image.Rect(0, 0, 4, 4))
	draw.Draw(red, red.Rect, image.NewUniform(color.RGBA{R: 255, A: 255}), image.Point{}, draw.Src)
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, red))
	secret := filepath.Join(f.data, "red.png")
	require.NoError(t, os.WriteFile(secret, b.Bytes(), 0o600))

	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	unix, err := net.Listen("unix", "@"+name)
	require.NoError(t, err)
	for _, l := range []net.Listener{tcp, unix} {
		t.Cleanup(func() { l.Close() })
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Close()
				t.Error("a hostile file reached ", l.Addr())
			}
		}()
	}
	library := t.TempDir()
	places, err := json.Marshal(map[string]any{
		"outside": f.outside, "etc": f.etc, "data": f.data, "secret": secret, "library": library,
		"port": tcp.Addr().(*net.TCPAddr).Port, "socket": name, "pid": os.Getpid(),
	})
	require.NoError(t, err)
	aims := filepath.Join(t.TempDir(), "places.json")
	require.NoError(t, os.WriteFile(aims, places, 0o600))
	said, err := exec.Command(real.Path, "-b", "--factory-startup", "-noaudio", "-Y", "--python-exit-code", "3",
		"-P", "testdata/hostile.py", "--", f.folder, aims).CombinedOutput()
	require.NoError(t, err, "%s", said)
	f.clear(t) // of what Blender made as it was told these paths
	for link, to := range map[string]string{"link.png": secret, "shadow.png": "/etc/shadow"} {
		require.NoError(t, os.Symlink(to, filepath.Join(f.folder, link)))
	}
	require.NoError(t, syscall.Mkfifo(filepath.Join(f.folder, "pipe.png"), 0o600))
	f.build = real
	return f
}

// clear removes what fluid caches left.
func (f *hostileFarm) clear(t *testing.T) {
	t.Helper()
	for _, dir := range []string{f.outside, f.etc + ".d"} {
		require.NoError(t, os.RemoveAll(dir))
	}
	require.NoError(t, os.Mkdir(f.outside, 0o700))
}

// bounded is the farm's Blender within limits of the test's own, and, where trust is
// set, one that runs whatever is in a file, as if its own guard had failed.
func (f *hostileFarm) bounded(t *testing.T, trust bool) lease.Build {
	t.Helper()
	real, err := exec.LookPath(f.build.Path)
	require.NoError(t, err)
	flags := `"$@"`
	if trust {
		flags = `$(printf '%s\n' "$@" | sed 's/^-Y$/-y/')`
	}
	path := filepath.Join(t.TempDir(), "blender")
	line := "#!/bin/sh\nulimit -v 8000000; ulimit -t 60\nexec " + real + " " + flags + "\n"
	require.NoError(t, os.WriteFile(path, []byte(line), 0o755))
	return lease.Build{Name: "Blender", Path: path}
}

// alive lists the processes that have a file of the farm's in their command line.
func (f *hostileFarm) alive() (lines []string) {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range found {
		line, _ := os.ReadFile(path)
		if bytes.Contains(line, []byte(filepath.Base(f.folder)+"/")) {
			lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}

// The ends that a hostile file may come to.
const (
	endsWell = "a frame" // with nothing bad in it
	endsBad  = "an error"
	endsAny  = "a frame or an error" // as the Blender has it
)

type hostileCase struct {
	ends    string // one of the above, or the kind of the failure
	reason  string // a pattern of its reason
	trust   bool   // Blender runs the file's code
	timeout time.Duration
	hue     string // of the frame
}

func TestHostileFiles(t *testing.T) {
	f := newHostileFarm(t)
	const (
		tooMuch    = "^Blender was stopped because it used more than the .* GiB of memory|^Blender ran out of memory"
		tooLong    = "^Blender was stopped .* because the attempt ran past"
		tooBig     = "^Blender was stopped because the attempt wrote more than"
		cannotOpen = "^Blender could not open the file"
		missing    = "pink: a texture is missing"
	)
	// What Blender's -Y and the guard stop: where that is all there is.
	f.run(t, "scripts without a sandbox", SandboxOff, map[string]hostileCase{
		"text": {ends: endsWell}, "handler": {ends: endsWell}, "driver": {ends: endsWell}, "namespace": {ends: endsWell},
		"freestyle": {ends: endsWell}, "osl": {ends: endsWell},
	})
	// Paths out of the project.
	paths := map[string]hostileCase{
		"outputs": {ends: endsWell}, "movie": {ends: endsWell}, "climb": {ends: endsWell}, "fluid": {ends: endsWell},
		"link": {ends: endsWell, hue: missing}, "shadow": {ends: endsWell, hue: missing},
		"absolute": {ends: endsWell, hue: missing}, "climbing": {ends: endsWell, hue: missing},
	}
	f.run(t, "paths without a sandbox", SandboxOff, paths)
	f.run(t, "paths", SandboxAuto, paths)
	f.run(t, "bombs", SandboxAuto, map[string]hostileCase{
		"faces":    {ends: string(lease.FailMemory), reason: tooMuch},
		"levels":   {ends: string(lease.FailMemory), reason: tooMuch},
		"huge":     {ends: endsBad, timeout: 5 * time.Second},
		"doubling": {ends: endsBad, timeout: 5 * time.Second},
		"deep":     {ends: endsAny},
		"library":  {ends: endsWell},
		// Devices and pipes that never end, or never begin.
		"endless": {ends: endsAny}, "stdin": {ends: endsWell}, "memory": {ends: endsWell},
		"zero": {ends: string(lease.FailTimeout), reason: tooLong, timeout: 3 * time.Second},
		"pipe": {ends: string(lease.FailTimeout), reason: tooLong, timeout: 3 * time.Second},
		// What is no .blend.
		"cut": {ends: endsBad, reason: cannotOpen}, "garbage": {ends: endsBad}, "noise": {ends: endsBad, reason: cannotOpen},
		"lengths": {ends: endsBad}, "empty": {ends: endsBad, reason: cannotOpen}, "packed": {ends: endsBad},
	})
	// The same with the file's code running: what the sandbox itself stops.
	f.run(t, "trusted", SandboxAuto, map[string]hostileCase{
		"text": {trust: true, ends: endsWell}, "handler": {trust: true, ends: endsWell}, "driver": {trust: true, ends: endsWell},
		"namespace": {trust: true, ends: endsWell}, "freestyle_unguarded": {trust: true, ends: endsWell},
		"outputs_unguarded": {trust: true, ends: endsWell}, "wall": {trust: true, ends: endsWell},
		"forks":    {trust: true, ends: string(lease.FailError), reason: "^Blender was stopped because it had more than the 150 processes and threads"},
		"hoard":    {trust: true, ends: string(lease.FailMemory), reason: tooMuch},
		"nameless": {trust: true, ends: string(lease.FailMemory), reason: tooMuch},
		"unlinked": {trust: true, ends: string(lease.FailMachine), reason: tooBig},
		"shared":   {trust: true, ends: string(lease.FailMachine), reason: tooBig},
	})
}

// run renders each of the files, and looks then whether all is as it was.
func (f *hostileFarm) run(t *testing.T, name, sandbox string, cases map[string]hostileCase) {
	before := tree(t, f.root)
	t.Run(name, func(t *testing.T) { // which ends when all have
		for file, c := range cases {
			t.Run(file, func(t *testing.T) {
				t.Parallel()
				f.render(t, sandbox, file, c)
			})
		}
	})
	require.NoFileExists(t, f.etc)
	left, err := os.ReadDir(f.outside)
	require.NoError(t, err)
	require.Empty(t, left, "%s: written outside of the attempts' folders", name)
	require.NoDirExists(t, f.etc+".d")
	require.Equal(t, before, tree(t, f.root), "%s: the project is as it was", name)
	left, err = os.ReadDir(f.data)
	require.NoError(t, err)
	require.Len(t, left, 2, "%s: the daemon's folder is as it was", name)
	// The kernel takes a sandbox's processes away in its own time.
	require.Eventually(t, func() bool { return len(f.alive()) == 0 }, 10*time.Second, 10*time.Millisecond, "%s: processes are left", name)
}

func (f *hostileFarm) render(t *testing.T, sandbox, file string, c hostileCase) {
	if c.timeout == 0 {
		c.timeout = 30 * time.Second
	}
	dir := t.TempDir()
	b := NewBlender(Config{Dir: dir, Sandbox: sandbox, MaxMemory: 800 << 20, MaxThreads: 150, MaxDisk: 256 << 20})
	sink := &collectorSink{}
	began := time.Now()
	log, cleanup, err := b.Run(t.Context(), Attempt{
		Project: f.root, Blend: "files/" + filepath.Base(f.folder) + "/" + file + ".blend",
		Build: f.bounded(t, c.trust), Frames: []int32{1}, Timeout: c.timeout,
	}, sink)
	took := time.Since(began)
	said, _ := os.ReadFile(log)
	t.Logf("%.1f s: %v", took.Seconds(), err)
	e, isError := errors.AsType[*Error](err)
	require.True(t, err == nil || isError, "%v", err)
	switch c.ends {
	case endsWell:
		require.NoError(t, err, "%s", said)
	case endsBad:
		require.Error(t, err, "%s", said)
	case endsAny:
	default:
		require.Error(t, err, "%s", said)
		require.Equal(t, c.ends, string(e.Kind), "%v\n%s", err, said)
	}
	if c.reason != "" {
		require.Regexp(t, c.reason, e.Reason)
	}
	if err == nil {
		require.Len(t, sink.frames, 1)
		if c.hue != "" {
			require.Equal(t, c.hue, hue(pixels(t, sink.images[1]), 8, 8))
		}
	}
	switch ran := bytes.Contains(said, []byte("\nPAYLOAD")); {
	case !c.trust:
		require.False(t, ran, "the file's code ran:\n%s", said)
	case file == "wall":
		requireWalls(t, said)
	case e == nil: // a bomb does not speak
		require.True(t, ran, "the file's code did not run:\n%s", said)
	}
	require.Less(t, took, c.timeout+5*time.Second)
	require.Less(t, diskUse(dir), int64(1<<30))
	cleanup()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// wallLine is a line of the file "wall": what it tried, and how that went.
var wallLine = regexp.MustCompile(`(?m)^WALL ([^:]+): (.*)$`)

func requireWalls(t *testing.T, said []byte) {
	t.Helper()
	found := wallLine.FindAllSubmatch(said, -1)
	for _, m := range found {
		if bytes.HasPrefix(m[2], []byte("open")) {
			t.Errorf("%s: %s", m[1], m[2])
		}
	}
	require.Contains(t, string(said), "WALL end", "it ran to its end")
	t.Logf("%d walls", len(found))
}
