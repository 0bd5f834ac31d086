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
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// The most that may pass between a leader's death and the next grant: at the median and
// at the worst.
const (
	medianGrant = 2 * time.Second
	worstGrant  = 5 * time.Second
)

// grantsWatch is what the survivors' event streams tell.
type grantsWatch struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each event
	grants  []httpapi.Event
	silent  []httpapi.Event // leases that ended because nobody was heard
}

func (w *grantsWatch) event(ev httpapi.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case ev.Type == lease.TaskGranted:
		w.grants = append(w.grants, ev)
	case (ev.Type == lease.TaskRequeued || ev.Type == lease.LeaseEnded) && ev.Reason == "the machine was not heard from":
		w.silent = append(w.silent, ev)
	}
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

// after is when the first grant after a time was made, to one machine or, where that is
// "", to any; once there is one.
func (w *grantsWatch) after(t testing.TB, at time.Time, to authz.PeerID, limit time.Duration) time.Time {
	t.Helper()
	over := time.After(limit)
	for {
		w.mu.Lock()
		var first time.Time
		for _, g := range w.grants {
			if g.Time.After(at) && (to == "" || g.Peer == to) && (first.IsZero() || g.Time.Before(first)) {
				first = g.Time
			}
		}
		changed := w.changed
		w.mu.Unlock()
		if !first.IsZero() {
			return first
		}
		select {
		case <-changed:
		case <-over:
			require.Fail(t, "nothing was granted", "within %s", limit)
		}
	}
}

// nextGrants kills the leader of three coordinators with -9, so many times, while they and
// a fourth machine render, and measures how long it takes until the next task is granted.
// The fourth, which hears of the log only what it is told, must be granted one soon, too.
func nextGrants(t testing.TB, rounds int) (took []time.Duration) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	blender, _ := standInBlender(t, 50*time.Millisecond)
	f := &realFarm{t: t, dir: t.TempDir()}
	env := unconfined(t)
	for i := range 4 {
		p := &realPeer{farm: f, dir: filepath.Join(f.dir, fmt.Sprintf("m%d", i)), env: env, quic: true, more: []string{"--blender", blender, "--slots", "1", "--vote-after", "2s"}}
		f.peers = append(f.peers, p)
		if i == 0 {
			p.run(nil, "init", "--name", "attic", "--machine", "m0")
		} else {
			var invited httpapi.Invited
			f.peers[0].run(&invited, "invite", "--role", "admin", fmt.Sprintf("--coordinator=%v", i < 3))
			p.run(nil, "join", invited.Ticket, "--name", filepath.Base(p.dir))
			known, err := os.ReadFile(filepath.Join(f.peers[0].dir, "probe.json"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(p.dir, "probe.json"), known, 0o600))
		}
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, configName), []byte("api_rate = 100000\n"), 0o600))
		p.up()
	}
	ids := make([]authz.PeerID, len(f.peers))
	for i, p := range f.peers {
		var s httpapi.Status
		p.run(&s, "status")
		ids[i] = s.Peer
	}
	// whole tells whether all three vote and go by the same leader, and who that is.
	whole := func() (leader int, ok bool) {
		for i, p := range f.peers {
			var s httpapi.Status
			cl, err := (&cli{dataDir: p.dir}).client()
			if err == nil {
				s, err = cl.status(t.Context())
			}
			if at := slices.Index(ids, s.Leader); err != nil || at < 0 || i > 0 && at != leader {
				return 0, false
			} else {
				leader = at
			}
		}
		var c httpapi.Coordination
		f.peers[leader].run(&c, "coord", "status")
		return leader, len(c.Voters) == 3
	}
	leader := 0
	f.within(3*time.Minute, "all three vote", func() (ok bool) {
		leader, ok = whole()
		return ok
	})

	// There is always something to render.
	submit := func() {
		cl, err := (&cli{dataDir: f.peers[leader].dir}).client()
		require.NoError(t, err)
		var project httpapi.Project
		resp, err := cl.exchange(t.Context(), http.MethodPost, "/v1/projects", "application/x-tar", sceneTar(t, "next"))
		require.NoError(t, err)
		require.NoError(t, cl.decode(t.Context(), resp, "a project", &project))
		_, err = cl.submit(t.Context(), httpapi.Submission{Project: project.Project, Frames: "1-2000", Chunk: 1, Needs: lease.Requirements{Blender: standInVersion}}, func(error) {})
		require.NoError(t, err)
	}
	submit()
	for range rounds {
		f.within(time.Minute, "all three vote and go by one leader", func() (ok bool) {
			leader, ok = whole()
			return ok
		})
		w := &grantsWatch{changed: make(chan struct{})}
		following, stop := context.WithCancel(t.Context())
		var followers sync.WaitGroup
		var opened sync.WaitGroup
		for i, p := range f.peers {
			if i == leader {
				continue
			}
			cl, err := (&cli{dataDir: p.dir}).client()
			require.NoError(t, err)
			opened.Add(1)
			once := sync.OnceFunc(opened.Done)
			followers.Go(func() {
				defer once()
				_ = cl.events(following, "", listener{opened: func() error { once(); return nil }, event: w.event})
			})
		}
		opened.Wait()
		w.after(t, time.Now(), "", 20*time.Second) // work is under way
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		at := time.Now()
		f.peers[leader].kill()
		took = append(took, w.after(t, at, "", 30*time.Second).Sub(at))
		worker := w.after(t, at, ids[3], 10*time.Second).Sub(at) // before its lease could expire
		f.peers[leader].up()
		t.Logf("the next grant came %s after the death of m%d, the next one to a machine that does not coordinate after %s",
			took[len(took)-1].Round(time.Millisecond), leader, worker.Round(time.Millisecond))
		stop()
		followers.Wait()
		require.Empty(t, w.silent, "leases expired")
	}
	slices.Sort(took)
	return took
}

// TestNextGrantAfterTheLeadersDeath kills a few leaders; `make bench` kills twenty.
func TestNextGrantAfterTheLeadersDeath(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: peers are killed without the race detector")
	}
	took := nextGrants(t, number(t, "LEADER_ROUNDS", 3))
	t.Logf("from a leader's death to the next grant: %v", took)
	require.LessOrEqual(t, took[len(took)/2], medianGrant)
	require.LessOrEqual(t, took[len(took)-1], worstGrant)
}

func BenchmarkNextGrant(b *testing.B) {
	for b.Loop() {
		took := nextGrants(b, 20)
		b.ReportMetric((took[9]+took[10]).Seconds()/2, "median-s")
		b.ReportMetric(took[19].Seconds(), "worst-s")
	}
}
