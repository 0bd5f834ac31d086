package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// number is a number that the environment gives a test.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "$%s", name)
	return n
}

// seedOf is what a test's chances come from: $CHAOS_SEED repeats a run, as far as other
// processes let it.
func seedOf(t *testing.T) int {
	t.Helper()
	seed := number(t, "CHAOS_SEED", int(time.Now().UnixNano()%1_000_000))
	t.Logf("CHAOS_SEED=%d", seed)
	return seed
}

// watched is what was told of a job's frames so far.
type watched struct {
	mu   sync.Mutex
	done map[lease.JobID]map[int32]doneFrame
	bad  []string
}

type doneFrame struct {
	cid  string
	told time.Time // when the test heard of it first
}

// frame notes that a frame is done.
func (w *watched) frame(job lease.JobID, frame int32, cid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done[job] == nil {
		w.done[job] = make(map[int32]doneFrame)
	}
	switch was, known := w.done[job][frame]; {
	case !known:
		w.done[job][frame] = doneFrame{cid, time.Now()}
	case was.cid != cid:
		w.bad = append(w.bad, fmt.Sprintf("frame %d of %s was done as %s and is now %s", frame, job, was.cid, cid))
	}
}

// take notes all of a job. What was done before must be done still.
func (w *watched) take(j httpapi.Job) {
	now := make(map[int32]bool)
	w.mu.Lock()
	before := w.done[j.ID]
	w.mu.Unlock()
	for _, f := range j.Frames {
		if f.State == lease.TaskDone {
			now[f.Frame] = true
			w.frame(j.ID, f.Frame, f.CID)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for frame := range before {
		if !now[frame] {
			w.bad = append(w.bad, fmt.Sprintf("frame %d of %s was done and is not", frame, j.ID))
		}
	}
}

// TestSolePeerIsKilledAgainAndAgain kills the only machine of a farm with -9 at random
// moments of its jobs, and starts it again each time. In the end every frame is there, and
// none was rendered again after somebody was told that it is done.
//
// KILL_ROUNDS is how often: `make chaos` does it 200 times.
func TestSolePeerIsKilledAgainAndAgain(t *testing.T) {
	if testing.Short() || runtime.GOOS == "windows" {
		t.Skip("-short: peers are killed without the race detector; and it needs a shell")
	}
	t.Parallel() // to the chaos
	rounds := number(t, "KILL_ROUNDS", 15)
	chance := rand.New(rand.NewPCG(uint64(seedOf(t)), 1))
	blender, ledger := standInBlender(t, 15*time.Millisecond)
	f := &realFarm{t: t, dir: t.TempDir()}
	p := &realPeer{farm: f, dir: filepath.Join(f.dir, "desk"), env: unconfined(t), more: []string{"--blender", blender, "--slots", "2"}}
	f.peers = append(f.peers, p)
	p.run(nil, "init", "--name", "attic", "--machine", "desk")
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, configName), []byte("api_rate = 100000\n"), 0o600))

	const frames = 120
	seen := &watched{done: make(map[lease.JobID]map[int32]doneFrame)}
	scenes := make(map[lease.JobID]string)
	var jobs []lease.JobID
	var starts []time.Duration
	began := time.Now()
	up := func() *client {
		at := time.Now()
		p.up()
		starts = append(starts, time.Since(at))
		cl, err := (&cli{dataDir: p.dir}).client()
		require.NoError(t, err)
		return cl
	}
	submit := func(cl *client) {
		scene := fmt.Sprintf("scene%d", len(jobs))
		var project httpapi.Project
		resp, err := cl.exchange(t.Context(), http.MethodPost, "/v1/projects", "application/x-tar", sceneTar(t, scene))
		require.NoError(t, err)
		require.NoError(t, cl.decode(t.Context(), resp, "a project", &project))
		var sent httpapi.Submitted
		require.NoError(t, cl.call(t.Context(), http.MethodPost, "/v1/jobs", standInJob(project.Project, fmt.Sprintf("1-%d", frames), 4), &sent))
		jobs, scenes[sent.Job] = append(jobs, sent.Job), scene
	}
	current := func(cl *client) httpapi.Job {
		j, err := cl.job(t.Context(), jobs[len(jobs)-1])
		require.NoError(t, err)
		seen.take(j)
		return j
	}
	for round := range rounds {
		cl := up()
		if len(jobs) == 0 || current(cl).State.Ended() {
			submit(cl)
		}
		life, end := context.WithCancel(t.Context())
		var listening sync.WaitGroup
		listening.Go(func() {
			_ = cl.events(life, "", listener{opened: func() error { return nil }, event: func(ev httpapi.Event) error {
				if ev.Type == lease.FrameKept {
					seen.frame(ev.Job, *ev.Frame, ev.CID)
				}
				return nil
			}})
		})
		select {
		case <-time.After(time.Duration(chance.IntN(1000)) * time.Millisecond):
		case <-t.Context().Done():
		}
		p.kill()
		end()
		listening.Wait()
		if round%5 == 4 { // also while it starts
			p.start()
			time.Sleep(time.Duration(chance.IntN(500)) * time.Millisecond)
			p.kill()
		}
	}
	cl := up()
	for _, id := range jobs {
		f.within(2*time.Minute, "the job is done", func() bool {
			j, err := cl.job(t.Context(), id)
			require.NoError(t, err)
			return j.State == lease.JobDone
		})
		j, err := cl.job(t.Context(), id)
		require.NoError(t, err)
		seen.take(j)
		require.Len(t, seen.done[id], frames)
		for _, fr := range j.Frames {
			text, err := cl.read(t.Context(), fmt.Sprintf("/v1/jobs/%s/frames/%d", id, fr.Frame))
			require.NoError(t, err, "frame %d of %s", fr.Frame, id)
			require.Equal(t, fr.CID, cidOf(t, text))
		}
	}
	again := 0
	times := make(map[string]int)
	for _, r := range readLedger(t, ledger) {
		key := fmt.Sprint(r.scene, " ", r.frame)
		times[key]++
		if times[key] > 1 {
			again++
		}
		for id, scene := range scenes {
			if was, done := seen.done[id][r.frame]; done && scene == r.scene && r.began.After(was.told) {
				seen.bad = append(seen.bad, fmt.Sprintf("frame %d of %s was begun %s after it was done", r.frame, id, r.began.Sub(was.told)))
			}
		}
	}
	require.Empty(t, seen.bad)
	p.run(nil, "audit", "verify")
	slices.Sort(starts)
	t.Logf("%d kills in %s: %d jobs with %d frames, %d of them begun again before they were done; a start takes %s (median), %s at most",
		rounds+rounds/5, time.Since(began).Round(time.Second), len(jobs), len(jobs)*frames, again, starts[len(starts)/2].Round(time.Millisecond), starts[len(starts)-1].Round(time.Millisecond))
}
