package farmtest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// TestChaos renders jobs on farms whose machines crash, stop and come back at
// random, the one that leads included, with slow frames, frames that fail, jobs
// that are cancelled and output folders that cannot be written for a while. Then
// it looks for what must hold whatever happened.
//
// CHAOS_SEED repeats one farm, CHAOS_SEEDS changes how many there are.
func TestChaos(t *testing.T) {
	first, n := uint64(1), uint64(30)
	if testing.Short() {
		n = 4
	}
	number := func(name string, to *uint64) bool {
		v, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err == nil {
			*to = v
		}
		return err == nil
	}
	number("CHAOS_SEEDS", &n)
	if number("CHAOS_SEED", &first) {
		n = 1
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel() // they wait for the disk more than they compute
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
			if t.Failed() {
				t.Logf("repeat it with CHAOS_SEED=%d", seed)
			}
		})
	}
}

// perJob is how far apart the frame numbers of two jobs are: a frame's number
// tells its job.
const perJob = 1000

type chaos struct {
	*Farm
	t    *testing.T
	rand *rand.Rand
	jobs []*chaosJob

	mu sync.Mutex
	// kept holds the frames that were done when somebody looked, by number.
	kept map[int32]string
	// again lists frames that were to be rendered although they were done.
	again []string
}

// chaosJob is a job and what is expected of it.
type chaosJob struct {
	id        lease.JobID
	frames    int
	replicas  int
	out       string
	cancelled bool
	poisoned  int32 // a frame that no machine can render; 0: none
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{t: t, rand: rand.New(rand.NewPCG(seed, 0)), kept: make(map[int32]string)}
	c.Farm = New(t, 2+c.rand.IntN(2))
	for i, m := range c.Peers {
		m.Blender.PerFrame = time.Duration(200+c.rand.IntN(3000)) * time.Millisecond
		// Each machine has its own dice: what it does may not hang on the order in
		// which goroutines run.
		dice := rand.New(rand.NewPCG(seed, uint64(i+1)))
		var mu sync.Mutex
		m.Blender.Fail = func(frame int32) *render.Error {
			mu.Lock()
			defer mu.Unlock()
			if c.poison(frame) || dice.IntN(100) < 1 {
				return &render.Error{Kind: lease.FailCrash, Reason: "Blender crashed (signal 11)"}
			}
			return nil
		}
		m.Blender.Begin, m.Blender.Extra = c.begin, true
	}
	return c
}

func (c *chaos) poison(frame int32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := int(frame / perJob)
	return i < len(c.jobs) && c.jobs[i].poisoned == frame
}

// begin watches that nobody is asked for a frame that is done.
func (c *chaos) begin(a render.Attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range a.Frames {
		if c.kept[f] != "" {
			c.again = append(c.again, fmt.Sprintf("frame %d under lease %s", f, a.ID))
		}
	}
}

func (c *chaos) run() {
	for range 1 + c.rand.IntN(3) {
		c.submit()
	}
	for range 4 + c.rand.IntN(8) {
		c.pause(time.Duration(c.rand.IntN(12_000)) * time.Millisecond)
		c.mishap()
	}
	c.repair()
	c.verify()
}

func (c *chaos) submit() {
	j := &chaosJob{frames: 3 + c.rand.IntN(20), replicas: 1 + c.rand.IntN(3), out: filepath.Join(c.t.TempDir(), "out")}
	first := int32(len(c.jobs) * perJob)
	if c.rand.IntN(6) == 0 {
		j.poisoned = first + 1 + c.rand.Int32N(int32(j.frames))
	}
	c.mu.Lock()
	c.jobs = append(c.jobs, j)
	c.mu.Unlock()
	at := c.Peers[c.rand.IntN(len(c.Peers))]
	j.id = c.Submit(at, fmt.Sprintf("%d-%d", first+1, int(first)+j.frames), func(s *httpapi.Submission) {
		s.Chunk, s.Output = 1+c.rand.IntN(6), j.out
		s.Replicas = j.replicas
	})
}

// pause lets time pass, and notes what is done.
func (c *chaos) pause(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(250*time.Millisecond, time.Until(end)))
		c.look()
	}
}

func (c *chaos) look() {
	leader := c.Peers[0]
	if leader.stop == nil || !leader.Leads() {
		return
	}
	for _, j := range c.jobs {
		doc, err := leader.Queue().Job(context.Background(), Operator, j.id, "")
		if err != nil {
			continue
		}
		c.mu.Lock()
		for _, f := range doc.Frames {
			if f.State == lease.TaskDone && f.CID != "" {
				c.kept[f.Frame] = f.CID
			}
		}
		c.mu.Unlock()
	}
}

func (c *chaos) mishap() {
	m := c.Peers[c.rand.IntN(len(c.Peers))]
	j := c.jobs[c.rand.IntN(len(c.jobs))]
	switch k := c.rand.IntN(20); {
	case m.stop == nil:
		m.Start()
	case k < 9:
		m.Crash()
		if c.rand.IntN(2) == 0 { // a quick restart: nobody has missed it yet
			m.Start()
		}
	case k < 12:
		m.Stop()
	case k < 13: // the lights go out
		for _, m := range c.Peers {
			if m.stop != nil {
				m.Crash()
			}
		}
	case k < 15 && !j.cancelled:
		if leader := c.Peers[0]; leader.stop != nil && leader.Leads() {
			if _, err := leader.Queue().Control(c.t.Context(), Operator, j.id, httpapi.Control{Do: httpapi.Cancel}); err == nil {
				j.cancelled = true
			}
		}
	case k < 18: // a file where the folder should be
		if os.Rename(j.out, j.out+".away") == nil {
			require.NoError(c.t, os.WriteFile(j.out, nil, 0o600))
		}
	}
}

// repair brings everything back and waits until there is nothing left to do.
func (c *chaos) repair() {
	for _, j := range c.jobs {
		if i, err := os.Stat(j.out); err == nil && !i.IsDir() {
			require.NoError(c.t, os.Remove(j.out))
			require.NoError(c.t, os.Rename(j.out+".away", j.out))
		}
	}
	for _, m := range c.Peers {
		if m.stop == nil {
			m.Start()
		}
	}
	synctest.Wait() // until they run: a machine that crashed just now may still be counted
	c.Within(time.Minute, "the founder leads", c.Peers[0].Leads)
	c.Online(len(c.Peers))
	for _, j := range c.jobs {
		c.Within(20*time.Minute, fmt.Sprintf("job %s has ended", j.id), func() bool { c.look(); return c.Job(j.id).State.Ended() })
		// A folder that was in the way until now is tried again after a while.
		c.Within(3*time.Minute, fmt.Sprintf("the frames of job %s are in their folder", j.id), func() bool {
			return !slices.ContainsFunc(c.Job(j.id).Frames, func(f httpapi.Frame) bool { return f.CID != "" && !f.Delivered })
		})
	}
	for _, j := range c.jobs {
		c.Within(time.Minute, fmt.Sprintf("the frames of job %s have copies enough", j.id), func() bool {
			return !slices.ContainsFunc(c.Job(j.id).Frames, func(f httpapi.Frame) bool { return f.State == lease.TaskDone && f.Holders < j.replicas })
		})
	}
	for _, m := range c.Peers {
		c.Within(time.Minute, m.Name+" holds nothing that is not safe", func() bool {
			s := m.Local().Status(c.t.Context())
			return s.Unkept == 0 && len(s.Running) == 0
		})
	}
	c.pause(30 * time.Second) // whatever is still under way would end a lease or start one
}

func (c *chaos) verify() {
	require.Empty(c.t, c.again, "done frames are not rendered again")
	for _, j := range c.jobs {
		doc := c.Job(j.id)
		switch {
		case j.cancelled:
			require.Equal(c.t, lease.JobCancelled, doc.State)
		case j.poisoned != 0:
			require.Equal(c.t, lease.JobFailed, doc.State, doc.Reason)
		default:
			// Unlucky frames may fail three times.
			require.Contains(c.t, []lease.JobState{lease.JobDone, lease.JobFailed}, doc.State, doc.Reason)
		}
		require.Empty(c.t, doc.OutputError)
		require.Zero(c.t, doc.Tasks.Leased, "no lease outlives its job")
		c.frames(j, doc)
	}
	copies := make(map[string]int) // in the machines' stores
	wanted := make(map[string]int)
	for _, j := range c.jobs {
		for _, f := range c.Job(j.id).Frames {
			if f.State == lease.TaskDone {
				for _, root := range []string{f.CID, f.Extra} {
					copies[root], wanted[root] = 0, max(wanted[root], j.replicas)
				}
			}
		}
	}
	for _, m := range slices.Backward(c.Peers) {
		m.Stop()
		left, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "results", "journal"))
		require.NoError(c.t, err)
		require.Empty(c.t, string(left), "%s has nothing left to offer", m.Name)
		c.inside(m, copies)
	}
	for frame, n := range wanted {
		require.GreaterOrEqual(c.t, copies[frame], n, "machines that hold %s", frame)
	}
}

// frames looks at every frame of a job that has ended.
func (c *chaos) frames(j *chaosJob, doc httpapi.Job) {
	want := make(map[string]string) // what must be in the folder
	for _, f := range doc.Frames {
		if doc.State == lease.JobDone {
			require.Equal(c.t, lease.TaskDone, f.State, "frame %d", f.Frame)
		}
		if cid := c.kept[f.Frame]; cid != "" {
			require.Equal(c.t, cid, f.CID, "frame %d was done and is another one now", f.Frame)
		}
		if f.CID == "" {
			continue
		}
		text := fmt.Sprintf("frame %d of shot.blend", f.Frame)
		want[f.Name], want[ExtraName(f.Frame)] = text, fmt.Sprint("beside frame ", f.Frame)
		if f.State != lease.TaskDone {
			continue // its only holder may be gone
		}
		m := c.Peers[c.rand.IntN(len(c.Peers))]
		if m.ID != doc.Submitter && m.ID != f.Peer {
			m = c.Peers[0] // the others have no right to it
		}
		r, _, err := m.Local().Open(c.t.Context(), f.CID, lease.FrameOf(j.id, f.Frame), f.Size)
		require.NoError(c.t, err, "frame %d is done and %s cannot get it", f.Frame, m.Name)
		b, err := io.ReadAll(r)
		require.NoError(c.t, err)
		require.True(c.t, strings.HasPrefix(string(b), text), "frame %d is %q", f.Frame, b)
		want[f.Name] = string(b)
		require.NoError(c.t, r.Close())
	}
	got := make(map[string]string)
	for _, name := range Files(c.t, j.out) {
		b, err := os.ReadFile(filepath.Join(j.out, name))
		require.NoError(c.t, err)
		got[name] = string(b)
	}
	require.Equal(c.t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)), "the folder holds the job's frames and nothing else")
	for name := range want {
		require.True(c.t, strings.HasPrefix(got[name], want[name]), "%s holds %q and should hold %q", name, got[name], want[name])
	}
}

// inside looks into the store of a machine that is stopped, and counts the copies
// that it has.
func (c *chaos) inside(m *Member, copies map[string]int) {
	store, err := blobs.Open(filepath.Join(m.cfg.DataDir, "store"), blobs.Config{})
	require.NoError(c.t, err)
	defer store.Close()
	for pin, err := range store.Pins(c.t.Context()) {
		require.NoError(c.t, err)
		require.False(c.t, strings.HasPrefix(pin.Holder, "job:"), "%s still holds the project for %s", m.Name, pin.Holder)
	}
	for text := range copies {
		root, err := blobs.ParseCID(text)
		require.NoError(c.t, err)
		whole, err := store.Has(c.t.Context(), root)
		require.NoError(c.t, err)
		if whole {
			copies[text]++
		}
	}
}
