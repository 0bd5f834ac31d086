package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// process is a process of this machine, told apart from a later one of its number.
type process struct {
	pid    int
	began  string // in the kernel's ticks
	parent int
	name   string
	dead   bool // ended, and only not waited for
}

// processes lists those that there are.
func processes(t testing.TB) map[int]process {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	all := make(map[int]process, len(stats))
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has just ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		name, rest, _ := strings.Cut(string(text[bytes.IndexByte(text, '(')+1:bytes.LastIndexByte(text, ')')])+"\n"+string(text[bytes.LastIndexByte(text, ')')+2:]), "\n")
		fields := strings.Fields(rest)
		parent, _ := strconv.Atoi(fields[1])
		all[pid] = process{pid: pid, began: fields[19], parent: parent, name: name, dead: fields[0] == "Z" || fields[0] == "X"}
	}
	return all
}

// attempts lists the processes that render for the peer: those that it started, and
// those that name its folder of attempts.
func (p *realPeer) attempts() (mine []process) {
	all := processes(p.farm.t)
	folder := []byte(filepath.Join(p.dir, "work", "attempts"))
	for _, proc := range all {
		ours := false
		for at := proc.parent; at > 1 && !ours; at = all[at].parent {
			ours = at == p.cmd.Process.Pid
		}
		for _, file := range []string{"cmdline", "environ"} {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", proc.pid, file))
			ours = ours || proc.pid != p.cmd.Process.Pid && bytes.Contains(text, folder)
		}
		if ours && !proc.dead {
			mine = append(mine, proc)
		}
	}
	return mine
}

func names(list []process) (names []string) {
	for _, p := range list {
		names = append(names, p.name)
	}
	slices.Sort(names)
	return names
}

// slowScene is a file whose frames take hours.
func slowScene(t *testing.T) string {
	t.Helper()
	blend := filepath.Join(t.TempDir(), "slow.blend")
	out, err := exec.Command("blender", "-b", "--factory-startup", "-noaudio", "--python-exit-code", "3", "--python-expr", fmt.Sprintf(`
import bpy
s = bpy.context.scene
s.render.engine = "CYCLES"
s.cycles.use_denoising = s.cycles.use_adaptive_sampling = False
s.render.resolution_x = s.render.resolution_y = 128
s.cycles.samples = 10000000
bpy.ops.wm.save_as_mainfile(filepath=%q)`, blend)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return blend
}

// stubborn is a Blender that no signal ends but the last, and that leaves a process
// behind which is in no group of its own.
func stubborn(t *testing.T) string {
	t.Helper()
	real, err := exec.LookPath("blender")
	require.NoError(t, err)
	_, err = exec.LookPath("setsid")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "blender")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\ntrap '' TERM INT HUP\n"+
		`case "$*" in *driver.py*) setsid sleep 1000 & esac`+"\nexec "+real+" \"$@\"\n"), 0o755))
	return path
}

// withoutSandbox hides bubblewrap from what the test starts.
func withoutSandbox(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"vizpeer", "blender", "prlimit", "setsid", "sleep", "sh"} {
		path, err := exec.LookPath(tool)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(dir, tool)))
	}
	t.Setenv("PATH", dir)
}

// A cancelled job's Blenders are gone within five seconds, wherever they are.
func TestRealFarmCancelEndsEveryBlender(t *testing.T) {
	const bound = 5 * time.Second
	for _, c := range []struct {
		name      string
		sandboxed bool
		blender   func(*testing.T) string
	}{
		{"a Blender", true, nil},
		{"a stubborn one in the sandbox", true, stubborn},
		{"a stubborn one without a sandbox", false, stubborn},
	} {
		t.Run(c.name, func(t *testing.T) {
			if kind, why := render.SandboxKind(); kind == "" && c.sandboxed {
				t.Skip("no sandbox on this machine: " + why)
			}
			if testing.Short() {
				t.Skip("-short: the tests with real Blender are left out")
			}
			if _, err := exec.LookPath("blender"); err != nil {
				t.Skip("no Blender on this machine: a real farm cannot render")
			}
			blend := slowScene(t)
			if c.blender != nil {
				t.Setenv("VIZPEER_BLENDER", c.blender(t))
			}
			if !c.sandboxed {
				withoutSandbox(t)
			}
			f := startRealFarm(t, "desk", "box1")
			var sent httpapi.Submitted
			f.peers[0].run(&sent, "render", blend, "--frames", "1-2", "--chunk", "1")
			before := make([][]process, len(f.peers))
			for i, p := range f.peers {
				f.within(2*time.Minute, "Blender is at work on "+filepath.Base(p.dir), func() bool {
					var st httpapi.Status
					p.run(&st, "status")
					var progress render.Progress
					return len(st.Running) == 1 && json.Unmarshal(st.Running[0].Progress, &progress) == nil && progress.Phase == "rendering"
				})
				before[i] = p.attempts()
				require.Contains(t, names(before[i]), "blender")
				require.Equal(t, c.blender != nil, slices.Contains(names(before[i]), "sleep"), "%v", names(before[i]))
				require.Equal(t, c.sandboxed, slices.Contains(names(before[i]), "bwrap"))
			}

			f.peers[0].run(nil, "job", "pause", string(sent.Job))
			for i, p := range f.peers {
				require.Equal(t, names(before[i]), names(p.attempts()), "a pause ends nothing")
			}
			began := time.Now()
			f.peers[0].run(nil, "job", "cancel", string(sent.Job))
			told := time.Since(began)
			for i, p := range f.peers {
				f.within(bound, "no Blender is alive on "+filepath.Base(p.dir), func() bool {
					now := processes(t)
					return len(p.attempts()) == 0 && !slices.ContainsFunc(before[i], func(old process) bool {
						still, there := now[old.pid]
						return there && still.began == old.began && !still.dead
					})
				})
			}
			took := time.Since(began)
			t.Logf("cancelled after %s, and every Blender gone after %s", told, took)
			require.Less(t, took, bound)
			require.Equal(t, lease.JobCancelled, f.peers[0].job(sent.Job).State)
			for _, p := range f.peers {
				f.within(bound, "the slot of "+filepath.Base(p.dir)+" is free", func() bool {
					var st httpapi.Status
					p.run(&st, "status")
					return len(st.Running) == 0
				})
				left, err := filepath.Glob(filepath.Join(p.dir, "work", "attempts", "*"))
				require.NoError(t, err)
				require.Empty(t, left)
			}
		})
	}
}
