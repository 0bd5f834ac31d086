package render

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Processes that left Blender's group, and hold its output, do not outlive the
// attempt, nor keep its slot.
func TestNothingOutlivesItsAttempt(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("needs setsid (package util-linux)")
	}
	const render = `cp $here/good.png $out; frame 1 good.png a.png; `
	for name, body := range map[string]string{
		"stopped":                           `setsid sleep 1000 & echo $! > $here/child; loaded; start 1; exec sleep 1000`,
		"stopped, its child without a name": `setsid env -i sleep 1000 & echo $! > $here/child; loaded; start 1; wait`,
		"stopped, an orphan":                `(setsid sleep 1000 & echo $! > $here/child); loaded; start 1; wait; exec sleep 1000`,
		"at its end":                        `setsid sleep 1000 & echo $! > $here/child; loaded; ` + render,
		"at its end by a signal":            `setsid sleep 1000 & echo $! > $here/child; loaded; ` + render + `kill -SEGV $$`,
		"refused":                           `setsid sleep 1000 & echo $! > $here/child; loaded; frame 1 none.png a.png; exec sleep 1000`,
	} {
		t.Run(name, func(t *testing.T) {
			a := fakeAttempt(t, body)
			b := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := time.Now()
			_, cleanup, _ := b.Run(ctx, a, &stopper{phase: phaseRendering, stop: func() {
				stopped = time.Now()
				cancel()
			}})
			took := time.Since(stopped)
			defer cleanup()
			requireGone(t, a)
			require.Less(t, took, killGrace, "it waited for the process")
		})
	}
}

// A peer that was killed leaves nothing behind that its next start does not find.
func TestLeftoverProcessesAreKilled(t *testing.T) {
	dir := t.TempDir()
	old := sessionDir{dir + "/" + sessionPrefix + "1"}
	require.NoError(t, os.MkdirAll(old.tmp(), 0o700))
	left, other := exec.Command("sleep", "1000"), exec.Command("sleep", "1000")
	left.Env, other.Env = environment(old.tmp()), environment(old.tmp()+"2")
	require.NoError(t, left.Start())
	require.NoError(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	b := NewBlender(Config{Dir: dir, Sandbox: SandboxOff})
	_, cleanup, _ := b.Run(t.Context(), fakeAttempt(t, "exit 1"), &collectorSink{})
	cleanup()
	require.Error(t, left.Wait(), "it was killed")
	require.NoDirExists(t, old.root)
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "another's is left alone")
}
