package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz/level"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// TestRollingUpgrade updates a farm of an earlier version, machine by machine, while a
// job is rendered: a worker first, then the coordinator, then the rest. Each mix of
// versions renders and takes jobs, from every machine. `make upgrade` builds that version
// from the repository's history and runs this; the same without that history is tested by
// what the version left in testdata/level-N of each package.
func TestRollingUpgrade(t *testing.T) {
	previous := os.Getenv("VIZPEER_PREVIOUS")
	if previous == "" {
		t.Skip("VIZPEER_PREVIOUS names no earlier version's program: run `make upgrade`")
	}
	f := startRealFarmOf(t, previous, "desk", "box1", "box2")
	desk, box1, box2 := f.peers[0], f.peers[1], f.peers[2]
	blend, out := sampleScene(t), t.TempDir()
	const frames = 120
	var sent httpapi.Submitted
	desk.run(&sent, "render", blend, "--frames", fmt.Sprintf("1-%d", frames), "--chunk", "2", "--output", out)
	tasksOf := func(name string) int {
		var peers []httpapi.Peer
		desk.run(&peers, "peer", "ls")
		for _, p := range peers {
			if p.Name == name {
				return p.TasksDone
			}
		}
		t.Fatalf("%s is not there", name)
		return 0
	}
	finishes := func(name string, n int) {
		t.Helper()
		was := tasksOf(name)
		f.within(2*time.Minute, fmt.Sprintf("%s ends %d more tasks", name, n), func() bool { return tasksOf(name) >= was+n })
	}
	// still is a job of its own, submitted at that machine and waited for.
	still := func(at *realPeer, frame int) {
		t.Helper()
		to := t.TempDir()
		at.run(nil, "render", blend, "--frames", fmt.Sprint(frame), "--priority", "urgent", "--output", to, "--wait")
		require.Len(t, pictures(t, to), 1)
	}
	update := func(p *realPeer) {
		t.Helper()
		p.halt()
		p.program = ""
		p.up()
	}
	text := func(p *realPeer, args ...string) string {
		t.Helper()
		var said, told bytes.Buffer
		cmd := p.command(append(args, "--data-dir", p.dir)...)
		cmd.Stdout, cmd.Stderr = &said, &told
		require.NoError(t, cmd.Run(), "%v: %s%s", args, said.String(), told.String())
		return said.String()
	}
	for _, name := range []string{"desk", "box1", "box2"} {
		finishes(name, 1)
	}

	update(box1)
	t.Log("a new worker with an old leader")
	finishes("box1", 2)
	still(box1, 201)
	require.Regexp(t, `level +not known: the vizpeer of the machine that leads is too old to say`, text(box1, "coord", "status"))
	require.Regexp(t, `farm's level +not known`, text(box1, "status"))

	update(desk)
	t.Log("an old worker with a new leader")
	finishes("box2", 2)
	finishes("box1", 1)
	still(box2, 202)
	still(box1, 203)
	f.within(time.Minute, "the farm is at the new level", func() bool {
		var co httpapi.Coordination
		desk.run(&co, "coord", "status")
		return co.Level == level.Known
	})
	require.Regexp(t, `versions differ +.*\(level 2\) on box2`, text(desk, "status"))
	require.Regexp(t, `versions differ +.* on \d, .* on \d of the machines`, text(box1, "status"))
	require.Regexp(t, `warning +versions +machines run different versions`, text(box1, "doctor"))

	update(box2)
	t.Log("all are new")
	finishes("box2", 1)
	still(box2, 204)
	f.within(30*time.Second, "nothing differs any more", func() bool { return !bytes.Contains([]byte(text(desk, "status")), []byte("versions differ")) })
	f.within(5*time.Minute, "the job is done", func() bool { return desk.job(sent.Job).State == lease.JobDone })
	job := desk.job(sent.Job)
	require.Equal(t, frames, job.FramesDone)
	require.Zero(t, job.Tasks.Failed)
	require.Empty(t, job.Failures)
	require.Len(t, pictures(t, out), frames)
	desk.run(nil, "audit", "verify")

	// Back again: the old program must not go on with a log that it cannot read.
	desk.halt()
	cmd := exec.Command(previous, "up", "--no-mdns", "--stop-with-stdin", "--api-listen", "127.0.0.1:0", "--p2p-listen", desk.listen(), "--data-dir", desk.dir)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	ended := make(chan struct{})
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	select {
	case <-ended:
		require.NotZero(t, cmd.ProcessState.ExitCode())
		require.Contains(t, said.String(), "update vizpeer", "it says what to do")
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("the old program runs on: %s", said.String())
	}
	desk.up()
	require.Equal(t, lease.JobDone, desk.job(sent.Job).State)
}
