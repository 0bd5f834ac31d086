package probe

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// recorded is a machine whose GPU tools say what they said elsewhere. Other
// programs run for real.
type recorded struct {
	tools map[string]string // by command line, or by program
	fails map[string]string // likewise: what is said before the program exits with an error
	tree  fstest.MapFS
	runs  int // of real programs
}

func (r *recorded) files() fs.FS { return r.tree }

func (r *recorded) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	if filepath.IsAbs(name) {
		r.runs++
		return thisMachine{}.run(ctx, name, args...)
	}
	for _, key := range []string{strings.Join(append([]string{name}, args...), " "), name} {
		if text, ok := r.tools[key]; ok {
			return []byte(text), nil
		}
		if text, ok := r.fails[key]; ok {
			return []byte(text), errors.New("exit status 9")
		}
	}
	return nil, exec.ErrNotFound
}

func proberOf(t *testing.T, sys *recorded) prober {
	t.Setenv(EnvBlender, "")
	t.Setenv("PATH", "/usr/bin:/bin")
	return prober{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, sys: sys}
}

func TestGPUs(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: other systems add what they see themselves")
	}
	cardFiles := func(n, vendor, device, vram string) fstest.MapFS {
		m := fstest.MapFS{
			"sys/class/drm/card" + n + "/device/vendor":        {Data: []byte(vendor + "\n")},
			"sys/class/drm/card" + n + "/device/device":        {Data: []byte(device + "\n")},
			"sys/class/drm/card" + n + "/device/uevent":        {Data: []byte("DRIVER=x\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:0" + n + ":00.0\n")},
			"sys/class/drm/card" + n + "-DP-1/device/vendor":   {Data: []byte(vendor + "\n")},
			"sys/class/drm/renderD12" + n + "/device/vendor":   {Data: []byte(vendor + "\n")},
			"sys/class/drm/card" + n + "-DP-1/device/irrelevt": {},
		}
		if vram != "" {
			m["sys/class/drm/card"+n+"/device/mem_info_vram_total"] = &fstest.MapFile{Data: []byte(vram + "\n")}
		}
		return m
	}
	join := func(trees ...fstest.MapFS) fstest.MapFS {
		all := fstest.MapFS{"usr/share/misc/pci.ids": {Data: []byte("# list\n1002  AMD\n\t744c  Navi 31 [Radeon RX 7900 XT]\n\t\t1002 0e0d  a board\n8086  Intel\n\t56a0  DG2 [Arc A770]\n")}}
		for _, tree := range trees {
			for name, file := range tree {
				all[name] = file
			}
		}
		return all
	}
	for name, c := range map[string]struct {
		sys  recorded
		want []card
	}{
		"none": {recorded{tree: join()}, nil},
		"two of NVIDIA, seen by the kernel too": {
			recorded{
				tools: map[string]string{"nvidia-smi": "NVIDIA H100 80GB HBM3, 81559, GPU-2d5f1b1e-0000-1111-2222-333344445555, 550.54.15, 00000000:81:00.0\n" +
					"NVIDIA GeForce RTX 3090, 24576, GPU-7c0d1b1e-0000-1111-2222-333344445555, 550.54.15, 00010000:C1:00.0\n"},
				tree: join(fstest.MapFS{}),
			},
			[]card{
				{lease.GPU{Vendor: lease.NVIDIA, Model: "NVIDIA H100 80GB HBM3", VRAM: 81559 << 20, Driver: "550.54.15"}, "0000:81:00"},
				{lease.GPU{Vendor: lease.NVIDIA, Model: "NVIDIA GeForce RTX 3090", VRAM: 24576 << 20, Driver: "550.54.15"}, "10000:c1:00"},
			},
		},
		"a driver that does not answer": {
			recorded{
				tools: map[string]string{"nvidia-smi": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\n\n"},
				tree:  join(cardFiles("0", "0x10de", "0x2204", "")),
			},
			[]card{{lease.GPU{Vendor: lease.NVIDIA, Model: "NVIDIA 0x2204", Driver: "x"}, "0000:00:00"}},
		},
		"shared memory": {
			recorded{tools: map[string]string{"nvidia-smi": "NVIDIA GH200, [N/A], GPU-2d5f1b1e-0000-1111-2222-333344445555, 550.54.15\n"}, tree: join()},
			[]card{{lease.GPU{Vendor: lease.NVIDIA, Model: "NVIDIA GH200", Driver: "550.54.15"}, ""}},
		},
		"AMD by its tool": {
			recorded{
				tools: map[string]string{"rocm-smi": "WARNING: something\n" + `{"card0": {"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "27000832", "Card Series": "Radeon RX 7900 XTX", "Card Model": "0x744c", "PCI Bus": "0000:00:00.0"}, "system": {"Driver version": "6.7"}}`},
				tree:  join(cardFiles("0", "0x1002", "0x744c", "25753026560")),
			},
			[]card{{lease.GPU{Vendor: lease.AMD, Model: "Radeon RX 7900 XTX", VRAM: 25753026560, Driver: "6.7"}, "0000:00:00"}},
		},
		"AMD and Intel by the kernel, and a virtual one": {
			recorded{tree: join(cardFiles("0", "0x1002", "0x744c", "25753026560"), cardFiles("1", "0x8086", "0x56a0", ""), cardFiles("2", "0x1af4", "0x1050", ""))},
			[]card{
				{lease.GPU{Vendor: lease.AMD, Model: "Navi 31 [Radeon RX 7900 XT]", VRAM: 25753026560, Driver: "x"}, "0000:00:00"},
				{lease.GPU{Vendor: lease.Intel, Model: "DG2 [Arc A770]", Driver: "x"}, "0000:01:00"},
			},
		},
		"nonsense": {recorded{tools: map[string]string{"nvidia-smi": "\"\x00,,,\n", "rocm-smi": "[1]"}, tree: join(cardFiles("0", "what", "", "x"))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, proberOf(t, &c.sys).gpus(t.Context(), lease.Capability{}).list)
		})
	}
}

// fakeBlender is a program that answers as a Blender with the given version line.
func fakeBlender(t *testing.T, first, answer string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	path := filepath.Join(t.TempDir(), "blender")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nif [ \"$1\" = --version ]; then echo '"+first+"'; exit; fi\n"+
		"for out; do :; done\nprintf '%s\\n' '"+answer+"' >\"$out\"\n"), 0o755))
	return path
}

const fakeAnswer = `{"version": "4.2.1", "hash": "396f546c9d82", "engines": ["CYCLES", "BLENDER_EEVEE_NEXT"], "oidn": true, "gpus": {"OPTIX": [{"id": "CUDA_NVIDIA A_0000:01:00_OptiX", "name": "NVIDIA A"}], "CUDA": [{"id": "CUDA_NVIDIA A_0000:01:00", "name": "NVIDIA A"}]}}`

func TestBlendersAreAskedOnce(t *testing.T) {
	sys := &recorded{tree: fstest.MapFS{}}
	p := proberOf(t, sys)
	p.cfg.DataDir = t.TempDir()
	path := fakeBlender(t, "Blender 4.2.1 LTS", fakeAnswer)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	p.cfg.Blender = []string{path, link, filepath.Dir(path), "/nowhere/blender", fakeBlender(t, "hello", ""), fakeBlender(t, "Blender 9.9.9", "{")}
	t.Setenv("PATH", "/usr/bin:/bin")
	p.places = nil
	hide := t.TempDir() // no Blender of this machine's own
	for _, tool := range []string{"cat", "sh"} {
		real, err := exec.LookPath(tool)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(real, filepath.Join(hide, tool)))
	}
	t.Setenv("PATH", hide)

	c := p.probe(t.Context())
	require.Equal(t, []lease.Build{{
		Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 1}, Hash: "396f546c9d82",
		Engines: []string{"CYCLES", "BLENDER_EEVEE_NEXT"}, OIDN: true, Path: path, Backends: []lease.Backend{lease.OptiX, lease.CUDA, lease.CPU},
		GPUs: []map[lease.Backend]string{{lease.OptiX: "CUDA_NVIDIA A_0000:01:00_OptiX", lease.CUDA: "CUDA_NVIDIA A_0000:01:00"}},
	}}, c.Builds)
	require.Equal(t, 2, c.TotalSlots(), "the CPU and the GPU")
	require.Equal(t, []lease.Backend{lease.OptiX, lease.CUDA, lease.CPU}, c.Backends)
	require.Equal(t, 1, c.Slots)
	require.Equal(t, runtime.NumCPU(), c.Cores)
	require.Positive(t, c.RAM)
	require.Positive(t, c.FreeDisk)

	sys.runs, p.cfg.Blender, p.cfg.Slots = 0, []string{link}, 3
	c = p.probe(t.Context())
	require.Zero(t, sys.runs, "what is known is not asked again")
	require.Equal(t, path, c.Builds[0].Path)
	require.Equal(t, 3, c.Slots)

	sys.tools = map[string]string{"nvidia-smi": "NVIDIA A, 1024, GPU-1, 1\n"}
	p.probe(t.Context())
	require.Positive(t, sys.runs, "another GPU, another answer")

	require.NoError(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)))
	sys.runs = 0
	p.probe(t.Context())
	require.Positive(t, sys.runs, "another Blender, another answer")

	require.NoError(t, os.WriteFile(p.cache(), []byte("{damaged"), 0o600))
	sys.runs, p.cfg.NoWork = 0, true
	c = p.probe(t.Context())
	require.Positive(t, sys.runs)
	require.Len(t, c.Builds, 1)
	require.Zero(t, c.Slots, "a machine that must not work has no slots")

	p.cfg.Blender = nil
	c = p.probe(t.Context())
	require.Empty(t, c.Builds)
	require.Empty(t, c.Backends)
	require.Zero(t, c.Slots)
}

func TestBlenderThatHangsIsLeftOut(t *testing.T) {
	p := proberOf(t, &recorded{tree: fstest.MapFS{}})
	path := filepath.Join(t.TempDir(), "blender")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755))
	_, err := p.run(t.Context(), 50*time.Millisecond, path, "--version")
	require.EqualError(t, err, "no answer within 50ms")
}

func TestBlenderOfTheOwnersThatDoesNotWorkIsNamed(t *testing.T) {
	p := proberOf(t, &recorded{tree: fstest.MapFS{}})
	t.Setenv("PATH", t.TempDir())
	var log bytes.Buffer
	p.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	broken := fakeBlender(t, "hello", "")
	p.cfg.Blender = []string{"/nowhere/blender", broken}
	require.Empty(t, p.probe(t.Context()).Builds)
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 2, "%s", &log)
	require.Contains(t, lines[0], "level=WARN")
	require.Contains(t, lines[0], "correct --blender")
	require.Contains(t, lines[0], "path=/nowhere/blender")
	require.Contains(t, lines[1], "level=WARN")
	require.Contains(t, lines[1], "give another with --blender")
	require.Contains(t, lines[1], "path="+broken)
}

func TestInterruptedProbeBlamesNoBlender(t *testing.T) {
	sys := &recorded{tree: fstest.MapFS{}}
	p := proberOf(t, sys)
	p.cfg.DataDir = t.TempDir()
	var log bytes.Buffer
	p.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("interrupted"))
	p.cfg.Blender = []string{fakeBlender(t, "Blender 4.2.1 LTS", fakeAnswer)}
	require.Empty(t, p.probe(ctx).Builds)
	require.Empty(t, log.String())
	require.NoFileExists(t, p.cache(), "half an answer is not kept")
}

// A suite says its own name and version, and the Blender in it what it is made of.
func TestSuite(t *testing.T) {
	sys := &recorded{tree: fstest.MapFS{}}
	p := proberOf(t, sys)
	folder := t.TempDir()
	path := filepath.Join(folder, "VIZidSuite-2.1", "VIZidSuite")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.Rename(fakeBlender(t, "VIZidSuite 2.1.0 (based on Blender 4.2.1 LTS)", fakeAnswer), path))
	t.Setenv("PATH", t.TempDir())
	p.places = []string{filepath.Join(folder, "VIZidSuite*", "VIZidSuite")}
	b, err := One(t.Context(), filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, "VIZidSuite", b.Name)
	require.Equal(t, "4.2.1", b.Version.String())
	require.Equal(t, path, b.Path)
	found := p.blenders(t.Context(), gpus{})
	require.Len(t, found, 1)
	require.Equal(t, "VIZidSuite", found[0].Name)
	require.Equal(t, lease.Version{Major: 4, Minor: 2, Patch: 1}, found[0].Version)
}

// A Blender is known again by its content, a script that starts one is not.
func TestBlenderIsKnownByItsContent(t *testing.T) {
	sys := &recorded{tree: fstest.MapFS{}}
	p := proberOf(t, sys)
	p.cfg.DataDir = t.TempDir()
	grow := func(path string, by int64) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		_, err = f.WriteString("exit\n")
		require.NoError(t, err)
		require.NoError(t, f.Truncate(by))
		require.NoError(t, f.Close())
	}
	t.Setenv("PATH", t.TempDir())
	big, small := fakeBlender(t, "Blender 4.2.1 LTS", fakeAnswer), fakeBlender(t, "Blender 4.2.1 LTS", fakeAnswer)
	grow(big, minContent)
	for _, path := range []string{big, small} {
		p.cfg.Blender = []string{path}
		require.Len(t, p.blenders(t.Context(), gpus{}), 1)
		elsewhere := filepath.Join(t.TempDir(), "blender")
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(elsewhere, text, 0o755))
		p.cfg.Blender, sys.runs = []string{elsewhere}, 0
		found := p.blenders(t.Context(), gpus{})
		require.Len(t, found, 1)
		require.Equal(t, elsewhere, found[0].Path)
		require.Equal(t, path == small, sys.runs > 0)
		// And from then on by its place.
		sys.runs = 0
		require.Equal(t, found, p.blenders(t.Context(), gpus{}))
		require.Zero(t, sys.runs)
		// Another GPU, another answer.
		require.Len(t, p.blenders(t.Context(), gpus{fingerprint: "a GPU"}), 1)
		require.Positive(t, sys.runs)
	}
}

func TestUsualPlaces(t *testing.T) {
	env := func(name string) string {
		return map[string]string{"HOME": "/home/ann", "ProgramFiles": `C:\Program Files`, "ProgramFiles(x86)": `C:\Program Files (x86)`}[name]
	}
	require.Contains(t, usualPlaces("linux", env), "/opt/blender*/blender")
	require.Contains(t, usualPlaces("linux", env), "/home/ann/blender*/blender")
	require.Contains(t, usualPlaces("windows", env), `C:\Program Files\Blender Foundation\Blender*\blender.exe`)
	require.Contains(t, usualPlaces("darwin", env), "/Applications/Blender*.app/Contents/MacOS/Blender")
	require.Contains(t, usualPlaces("linux", env), "/opt/VIZidSuite*/VIZidSuite")
	require.Contains(t, usualPlaces("linux", env), "/home/ann/VIZidSuite*/blender")
	require.Contains(t, usualPlaces("windows", env), `C:\Program Files\VIZidSuite*\VIZidSuite.exe`)
	require.Contains(t, usualPlaces("darwin", env), "/Applications/VIZidSuite*.app/Contents/MacOS/VIZidSuite")
}

// A Blender that does not say whether it has OpenImageDenoise is not kept from what
// needs it; one that says so is believed.
func TestBlenderThatDoesNotTellMayDenoise(t *testing.T) {
	path, err := program(cmp.Or(os.Getenv(EnvBlender), "blender"))
	if err != nil {
		t.Skip("needs Blender: install it (apt-get install blender), or set VIZPEER_BLENDER")
	}
	file, out := filepath.Join(t.TempDir(), "probe.py"), filepath.Join(t.TempDir(), "answer.json")
	require.NoError(t, os.WriteFile(file, script, 0o600))
	for python, want := range map[string]bool{
		"del _cycles.with_openimagedenoise":     true,
		"_cycles.with_openimagedenoise = False": false,
	} {
		said, err := exec.Command(path, "-b", "--factory-startup", "-noaudio", "--python-exit-code", "3",
			"--python-expr", "import _cycles; "+python, "-P", file, "--", out).CombinedOutput()
		require.NoError(t, err, "%s", said)
		text, err := os.ReadFile(out)
		require.NoError(t, err)
		var answer blender
		require.NoError(t, json.Unmarshal(text, &answer))
		require.Equal(t, want, answer.OIDN, python)
	}
}

func TestProbeOfThisMachinesBlender(t *testing.T) {
	if _, err := program(cmp.Or(os.Getenv(EnvBlender), "blender")); err != nil {
		t.Skip("needs Blender: install it (apt-get install blender), or set VIZPEER_BLENDER")
	}
	dir := t.TempDir()
	c, err := Probe(t.Context(), Config{DataDir: dir, Labels: []string{"b", "a", "b"}})
	require.NoError(t, err)
	require.NotEmpty(t, c.Builds)
	require.NotZero(t, c.Builds[0].Version)
	require.Contains(t, c.Builds[0].Engines, "CYCLES")
	require.Contains(t, c.Builds[0].Engines, "BLENDER_WORKBENCH")
	require.Contains(t, c.Backends, lease.CPU)
	require.Equal(t, []string{"a", "b"}, c.Labels)
	require.NotEmpty(t, c.CPU)
	require.Equal(t, 1, c.Slots)
	again, err := Probe(t.Context(), Config{DataDir: dir, Labels: []string{"a", "b"}})
	require.NoError(t, err)
	again.FreeDisk = c.FreeDisk
	require.Equal(t, c, again)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Probe(ended, Config{})
	require.True(t, errors.Is(err, context.Canceled))
}
