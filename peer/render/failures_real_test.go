//go:build linux

package render

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// heavy makes two files of the factory scene: one that renders for hours and one
// whose mesh takes more than half a gigabyte.
const heavy = `
import bpy, os
s = bpy.context.scene
s.render.engine = "CYCLES"
s.cycles.use_denoising = s.cycles.use_adaptive_sampling = False
s.render.resolution_x = s.render.resolution_y = 128
s.cycles.samples = 10000000
bpy.ops.wm.save_as_mainfile(filepath=os.path.join(os.environ["SCENE_ROOT"], "slow.blend"))
m = bpy.data.objects["Cube"].modifiers.new("dense", "SUBSURF")
m.render_levels, m.levels = 9, 0
s.cycles.samples = 1
bpy.ops.wm.save_as_mainfile(filepath=os.path.join(os.environ["SCENE_ROOT"], "dense.blend"))
`

// blendersOf lists the Blenders at work on a file of that name.
func blendersOf(name string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if string(comm) == "blender\n" && bytes.Contains(line, []byte(name)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// smallGroup is a control group whose processes may take only so many bytes of
// memory, or the end of the test. It answers the file that takes processes in.
func smallGroup(t *testing.T, limit int) string {
	t.Helper()
	name := fmt.Sprintf("vizpeer-test-%d", os.Getpid())
	for _, v := range []struct{ dir, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, // version 1
		{"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(v.dir, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.Itoa(limit)), 0o644) == nil {
			_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0o644)
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	t.Skip("needs a control group of its own to run out of memory in: run the test as root")
	return ""
}

func TestRealFailuresAreToldApart(t *testing.T) {
	build := realBlender(t)
	scenes := t.TempDir()
	t.Setenv("SCENE_ROOT", scenes)
	script(t, build, heavy)
	real, err := exec.LookPath(build.Path)
	require.NoError(t, err)
	// wrapped is Blender, started by a line of shell.
	wrapped := func(t *testing.T, line string) lease.Build {
		path := filepath.Join(t.TempDir(), "blender")
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+line+" "+real+` "$@"`+"\n"), 0o755))
		return lease.Build{Name: "Blender", Path: path}
	}
	signal := func(s syscall.Signal) func(*testing.T, []int) {
		return func(t *testing.T, pids []int) {
			for _, pid := range pids {
				require.NoError(t, syscall.Kill(pid, s))
			}
		}
	}
	each(t, func(t *testing.T, b *Blender) {
		for name, c := range map[string]struct {
			scene   string
			build   func(*testing.T) lease.Build
			timeout time.Duration
			// once is what happens to Blender once it renders.
			once   func(t *testing.T, blenders []int)
			kind   lease.FailKind
			reason string
		}{
			"kill":      {scene: "slow", once: signal(syscall.SIGKILL), kind: lease.FailCrash, reason: "another program killed Blender at frame 1"},
			"terminate": {scene: "slow", once: signal(syscall.SIGTERM), kind: lease.FailCrash, reason: "another program ended Blender at frame 1"},
			"segment":   {scene: "slow", once: signal(syscall.SIGSEGV), kind: lease.FailCrash, reason: `Blender crashed at frame 1 \(segmentation fault\)`},
			"timeout":   {scene: "slow", timeout: 3 * time.Second, kind: lease.FailTimeout, reason: "Blender was stopped .* because the attempt ran past the 3s that the job's task time-out allows"},
			"malloc": {scene: "dense", build: func(t *testing.T) lease.Build {
				if _, err := exec.LookPath("prlimit"); err != nil {
					t.Skip("needs prlimit")
				}
				return wrapped(t, "exec prlimit --as=1200000000 --")
			}, kind: lease.FailMemory, reason: "Blender ran out of memory at frame 1"},
			"the kernel, for memory": {scene: "dense", once: func(t *testing.T, blenders []int) {
				procs := smallGroup(t, 200<<20) // what it has already is not counted
				for _, pid := range blenders {
					require.NoError(t, os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0o644))
				}
			}, kind: lease.FailMemory, reason: "the system killed Blender at frame 1 because the machine ran out of memory"},
		} {
			t.Run(name, func(t *testing.T) {
				root := t.TempDir()
				file := fmt.Sprintf("%s-%d.blend", c.scene, time.Now().UnixNano()) // its own, to find its Blender by
				require.NoError(t, os.MkdirAll(filepath.Join(root, "files"), 0o755))
				text, err := os.ReadFile(filepath.Join(scenes, c.scene+".blend"))
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(root, "files", file), text, 0o644))
				a := Attempt{Project: root, Blend: "files/" + file, Build: build, Frames: []int32{1}, Timeout: c.timeout}
				if c.build != nil {
					a.Build = c.build(t)
				}
				log, cleanup, err := b.Run(t.Context(), a, &stopper{phase: phaseRendering, stop: sync.OnceFunc(func() {
					if c.once != nil {
						pids := blendersOf(file)
						require.NotEmpty(t, pids)
						c.once(t, pids)
					}
				})})
				defer cleanup()
				e, ok := errors.AsType[*Error](err)
				said, _ := os.ReadFile(log)
				require.True(t, ok, "%v\n%s", err, said)
				require.Equal(t, c.kind, e.Kind, "%s\n%s", e, said)
				require.Regexp(t, "^"+c.reason, e.Reason, "%s", said)
			})
		}
	})
}
