package render

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// python is a line of shell that runs Python, or the end of the test.
func python(t *testing.T, text string) string {
	t.Helper()
	const path = "/usr/bin/python3" // which is there in the sandbox too
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs " + path)
	}
	return "loaded; start 1; exec " + path + " -c '" + text + "'"
}

func TestAttemptsStayWithinTheirBounds(t *testing.T) {
	// Each stops by itself, should nothing else stop it.
	const (
		hoard  = `import time; x = b"x" * (300 << 20); time.sleep(20)`
		shares = `import mmap, os, time; m = mmap.mmap(-1, 300 << 20); m.write(b"x" * (300 << 20)); time.sleep(20)`
		hides  = `import os, time; f = [os.memfd_create("f") for _ in range(10)]; [os.write(i, bytes(1 << 20)) for i in f * 30]; time.sleep(20)`
		forks  = `import os, time; [os.fork() for _ in range(6)]; time.sleep(20)`
		spins  = `import threading, time; [threading.Thread(target=time.sleep, args=(20,)).start() for _ in range(80)]`
		fd     = `import tempfile, time; f = tempfile.TemporaryFile(); [f.write(bytes(1 << 20)) for _ in range(40)]; f.flush(); time.sleep(20)`
		forked = `import os, time; x = b"x" * (120 << 20); [os.fork() for _ in range(3)]; time.sleep(2); os._exit(7)`
	)
	for name, c := range map[string]struct {
		body   string
		kind   lease.FailKind
		reason string
	}{
		"memory":                  {hoard, lease.FailMemory, "Blender was stopped because it used more than the 0.2 GiB of memory that an attempt may take on this machine"},
		"shared memory":           {shares, lease.FailMemory, "Blender was stopped because it used more than the 0.2 GiB of memory that an attempt may take on this machine"},
		"memory of a file":        {hides, lease.FailMemory, "Blender was stopped because it used more than the 0.2 GiB of memory that an attempt may take on this machine"},
		"processes":               {forks, lease.FailError, "Blender was stopped because it had more than the 50 processes and threads that an attempt may have on this machine"},
		"threads":                 {spins, lease.FailError, "Blender was stopped because it had more than the 50 processes and threads that an attempt may have on this machine"},
		"files without a name":    {fd, lease.FailMachine, "Blender was stopped because the attempt wrote more than the 0.0 GiB it may take on this machine"},
		"memory that forks share": {forked, lease.FailError, "Blender ended with exit code 7 at frame 1: it said nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a look comes in its own time
			each(t, func(t *testing.T, b *Blender) {
				b.cfg.MaxMemory, b.cfg.MaxThreads, b.cfg.MaxDisk = 200<<20, 50, 34<<20
				a := fakeAttempt(t, python(t, c.body))
				a.Timeout = 15 * time.Second
				_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
				defer cleanup()
				e, ok := errors.AsType[*Error](err)
				require.True(t, ok, "%v", err)
				require.Equal(t, c.reason, e.Reason)
				require.Equal(t, c.kind, e.Kind)
			})
		})
	}
}

// Out of memory, the kernel ends Blender before the daemon and the artist's programs.
func TestBlenderIsTheFirstToGo(t *testing.T) {
	each(t, func(t *testing.T, b *Blender) {
		log, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
i=0; until [ "$(cat /proc/self/oom_score_adj)" = 900 ] || [ $i = 500 ]; do i=$((i+1)); sleep 0.01; done
cat /proc/self/oom_score_adj; exit 1`), &collectorSink{})
		defer cleanup()
		require.Error(t, err)
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		require.Equal(t, "900\n", string(text))
	})
}

func TestSystemCallsAreRefusedInTheSandbox(t *testing.T) {
	if kind, why := SandboxKind(); kind == "" {
		t.Skip("no sandbox on this machine: " + why)
	}
	if len(seccomp) == 0 {
		t.Skip("there is no filter for this processor")
	}
	require.True(t, filters(), "bubblewrap does not take the filter")
	b := NewBlender(Config{Dir: t.TempDir()})
	log, cleanup, err := b.Run(t.Context(), fakeAttempt(t, `
unshare -U true && echo a namespace
grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status
for f in /dev/x /x /vizpeer/x /proc/pressure/cpu; do (: > $f) 2>/dev/null && echo $f; done
: > /dev/shm/x && : > /tmp/x && : > "$out/x" && echo x > /dev/null || echo too narrow
exit 1`), &collectorSink{})
	defer cleanup()
	require.Error(t, err)
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, "NoNewPrivs:\t1\nSeccomp:\t2\n", strings.ReplaceAll(string(text), "unshare: unshare failed: Operation not permitted\n", ""))
}

// A sandbox's start is a part of every attempt.
func BenchmarkSandbox(b *testing.B) {
	if kind, why := SandboxKind(); kind == "" {
		b.Skip("no sandbox on this machine: " + why)
	}
	exe, err := exec.LookPath("true")
	require.NoError(b, err)
	root := b.TempDir()
	require.NoError(b, os.MkdirAll(filepath.Join(root, "files", "shot"), 0o755))
	for _, filter := range []bool{true, false} {
		b.Run(fmt.Sprintf("filter %v", filter), func(b *testing.B) {
			for b.Loop() {
				dir := sessionDir{b.TempDir()}
				for _, sub := range []string{dir.out(), dir.tmp(), dir.driver()} {
					require.NoError(b, os.Mkdir(sub, 0o700))
				}
				s, err := newSandbox(exe, dir, project{root: root, blend: "files/shot/a.blend"}, 1000)
				require.NoError(b, err)
				if i := slices.Index(s.args, "--seccomp"); !filter {
					s.args = slices.Delete(s.args, i, i+2)
				}
				line := append(s.prefix(), exe)
				cmd := exec.Command(line[0], line[1:]...)
				cmd.Env, cmd.ExtraFiles = s.env(), s.files
				out, err := cmd.CombinedOutput()
				require.NoError(b, err, "%s", out)
				s.release()
			}
		})
	}
}

// BenchmarkLook is what a look at an attempt's processes costs, every quarter of a
// second in the sandbox and every second without.
func BenchmarkLook(b *testing.B) {
	for _, tmp := range []string{"", "/nowhere"} {
		b.Run("tmp "+tmp, func(b *testing.B) {
			h := &herd{first: os.Getpid(), tmp: tmp, most: 1 << 40, known: map[string]bool{}}
			if tmp == "" {
				h.proc = "/proc"
			}
			for b.Loop() {
				h.look()
			}
		})
	}
}
