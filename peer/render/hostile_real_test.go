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
	for link, to := range map[string]string{"link.png": secret, "shadow.png": "/etc/shadow"} {
		require.NoError(t, os.Symlink(to, filepath.Join(f.folder, link)))
	}
	require.NoError(t, syscall.Mkfifo(filepath.Join(f.folder, "pipe.png"), 0o600))
	f.build = real
	return f
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
	line := "#!/bin/sh\nulimit -v 8000000; ulimit -f 1000000; ulimit -t 60\nexec " + real + " " + flags + "\n"
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
	memory  int64
	hue     string // of the frame
}

func TestHostileFiles(t *testing.T) {
	f := newHostileFarm(t)
	before := tree(t, f.root)
	tooMuch := "^Blender was stopped because it used more than the .* GiB of memory|^Blender ran out of memory"
	tooLong := "^Blender was stopped .* because the attempt ran past"
	tooBig := "^Blender was stopped because the attempt wrote more than"
	cannotOpen := "^Blender could not open the file"
	cases := map[string]hostileCase{
		// What Blender's -Y and the guard stop.
		"text": {ends: endsWell}, "handler": {ends: endsWell}, "driver": {ends: endsWell}, "namespace": {ends: endsWell},
		"freestyle": {ends: endsWell}, "outputs": {ends: endsWell}, "movie": {ends: endsWell}, "climb": {ends: endsWell}, "osl": {ends: endsWell},
		"fluid": {ends: endsWell}, "endless": {ends: endsAny}, "library": {ends: endsWell},
		// What only the sandbox stops: the same with the file's code running.
		"text trusted": {trust: true, ends: endsWell}, "handler trusted": {trust: true, ends: endsWell}, "driver trusted": {trust: true, ends: endsWell},
		"namespace trusted": {trust: true, ends: endsWell}, "freestyle_unguarded trusted": {trust: true, ends: endsAny},
		"outputs_unguarded trusted": {trust: true, ends: endsAny}, "wall trusted": {trust: true, ends: endsWell},
		// Files that are not the project's.
		"link": {ends: endsWell, hue: "pink: a texture is missing"}, "shadow": {ends: endsWell, hue: "pink: a texture is missing"},
		"absolute": {ends: endsWell, hue: "pink: a texture is missing"}, "climbing": {ends: endsWell, hue: "pink: a texture is missing"},
		"zero": {ends: endsWell}, "stdin": {ends: endsWell}, "memory": {ends: endsWell},
		"pipe": {ends: string(lease.FailTimeout), reason: tooLong, timeout: 4 * time.Second},
		// Bombs.
		"faces":            {ends: string(lease.FailMemory), reason: tooMuch},
		"levels":           {ends: string(lease.FailMemory), reason: tooMuch},
		"huge":             {ends: endsBad, timeout: 8 * time.Second},
		"doubling":         {ends: endsBad, timeout: 8 * time.Second},
		"deep":             {ends: endsAny},
		"forks trusted":    {trust: true, ends: string(lease.FailError), reason: "^Blender was stopped because it had more than the 150 processes and threads"},
		"hoard trusted":    {trust: true, ends: string(lease.FailMemory), reason: tooMuch},
		"nameless trusted": {trust: true, ends: string(lease.FailMemory), reason: tooMuch},
		"unlinked trusted": {trust: true, ends: string(lease.FailMachine), reason: tooBig},
		"shared trusted":   {trust: true, ends: string(lease.FailMachine), reason: tooBig},
		// What is no .blend.
		"cut": {ends: endsBad, reason: cannotOpen}, "garbage": {ends: endsBad}, "noise": {ends: endsBad, reason: cannotOpen},
		"lengths": {ends: endsBad}, "empty": {ends: endsBad, reason: cannotOpen}, "packed": {ends: endsBad},
	}
	t.Run("files", func(t *testing.T) { // which ends when all have
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				file, _, _ := strings.Cut(name, " ")
				if c.timeout == 0 {
					c.timeout = 30 * time.Second
				}
				dir := t.TempDir()
				b := NewBlender(Config{Dir: dir, MaxMemory: 800 << 20, MaxThreads: 150, MaxDisk: 256 << 20})
				sink := &collectorSink{}
				began := time.Now()
				log, cleanup, err := b.Run(t.Context(), Attempt{
					Project: f.root, Blend: "files/" + filepath.Base(f.folder) + "/" + file + ".blend", Build: f.bounded(t, c.trust), Frames: []int32{1}, Timeout: c.timeout,
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
				if file == "wall" {
					requireWalls(t, said)
				}
				require.Less(t, took, c.timeout+5*time.Second)
				require.Less(t, diskUse(dir), int64(1<<30))
				cleanup()
				left, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Empty(t, left)
			})
		}
	})
	left, err := os.ReadDir(f.outside)
	require.NoError(t, err)
	require.Empty(t, left, "written outside of the attempts' folders")
	require.NoFileExists(t, f.etc)
	require.NoDirExists(t, f.etc+".d")
	require.Equal(t, before, tree(t, f.root), "the project is as it was")
	left, err = os.ReadDir(f.data)
	require.NoError(t, err)
	require.Len(t, left, 2, "the daemon's folder is as it was")
	// The kernel takes a sandbox's processes away in its own time.
	require.Eventually(t, func() bool { return len(f.alive()) == 0 }, 10*time.Second, 10*time.Millisecond, "processes are left")
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
