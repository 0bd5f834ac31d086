package sched_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// worker is a machine of a simulated farm.
type worker struct {
	sched.Machine
	frame time.Duration // it takes for a frame
}

// render lets the farm render until its queue is empty, and tells how long that took
// and how many attempts it were. A machine that load takes has no use for it.
func render(t *testing.T, s *lease.State, workers []worker, load time.Duration) (took time.Duration, attempts int) {
	t.Helper()
	now := time.Unix(100, 0)
	do := func(c lease.Command) []lease.Event {
		c.At = now
		events, err := s.Apply(c)
		require.NoError(t, err)
		return events
	}
	type ends struct {
		at     time.Time
		worker int
		device lease.Device
		report lease.Report
	}
	var running []ends
	for {
		machines := make([]sched.Machine, len(workers))
		for i, w := range workers {
			machines[i] = w.Machine
			machines[i].Free = slices.Clone(w.Free)
			for _, r := range running {
				if r.worker == i {
					at := slices.Index(machines[i].Free, r.device)
					machines[i].Free = slices.Delete(machines[i].Free, at, at+1)
				}
			}
		}
		for _, p := range sched.Place(s.Waiting(now, nil), machines, nil) {
			attempts++
			g := lease.Grant{Lease: lease.ID(fmt.Sprint("l", attempts)), Task: p.Task, Peer: p.Peer, Device: p.Device, Frames: p.Frames}
			for _, e := range do(lease.Command{Grant: &g}) {
				if e.Type == lease.TaskGranted {
					g.Task.Index = e.Task
				}
			}
			w := slices.IndexFunc(workers, func(w worker) bool { return w.Peer == p.Peer })
			j, task, err := s.Task(g.Task)
			require.NoError(t, err)
			d := load + time.Duration(len(j.Remaining(task)))*workers[w].frame
			require.LessOrEqual(t, d-load, max(lease.MaxChunkFor, workers[w].frame))
			running = append(running, ends{now.Add(d), w, p.Device, lease.Report{Lease: g.Lease, Task: g.Task, Peer: g.Peer}})
		}
		if len(running) == 0 {
			return now.Sub(time.Unix(100, 0)), attempts
		}
		slices.SortFunc(running, func(a, b ends) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.worker, b.worker)) })
		first := running[0]
		running, now = running[1:], first.at
		j, task, err := s.Task(first.report.Task)
		require.NoError(t, err)
		var frames []lease.Result
		for _, f := range j.Remaining(task) {
			frames = append(frames, lease.Result{Frame: f, CID: fmt.Sprint("c", f), Name: fmt.Sprintf("%04d.png", f), Size: 1, Seconds: workers[first.worker].frame.Seconds()})
		}
		do(lease.Command{Complete: &lease.Complete{Report: first.report, Frames: frames, Machines: 1}})
	}
}

// Chunks are as large as pays, and machines of very different speed end together.
func TestChunks(t *testing.T) {
	farm := func(frames ...time.Duration) (workers []worker) {
		for i, f := range frames {
			workers = append(workers, worker{machine(fmt.Sprint("m", i), 1, 16), f})
		}
		return workers
	}
	const s = time.Second
	for name, c := range map[string]struct {
		frames   int32
		workers  []worker
		load     time.Duration
		over     float64 // the time at most, of the best possible without loading
		attempts int     // at most
	}{
		"quick frames, one machine":    {1000, farm(s / 10), 2 * s, 1.15, 7},
		"quick frames, three machines": {1000, farm(s/10, s/10, s/10), 2 * s, 1.5, 16},
		"of different speed":           {1000, farm(s, 2*s, 4*s, 8*s), 2 * s, 1.1, 50},
		"slow frames":                  {100, farm(300*s, 300*s, 900*s), 5 * s, 1.2, 100},
		"a large project":              {1000, farm(2*s, 2*s), 60 * s, 1.6, 15},
		"one frame each":               {3, farm(s, s, s), s, 2.1, 3},
		"an hour a frame":              {4, farm(3600*s, 3600*s), s, 1.1, 4},
		"attempts that cost nothing":   {200, farm(s/5, s/2), s / 10, 1.05, 20},
		"none takes time":              {500, farm(0, 0), s, 0, 20},
	} {
		t.Run(name, func(t *testing.T) {
			state := lease.NewState()
			submit(t, state, "j", c.frames, func(s *lease.Spec) { s.Chunk = 0 })
			took, attempts := render(t, state, c.workers, c.load)
			rate := 0.0
			for _, w := range c.workers {
				rate += 1 / max(w.frame.Seconds(), 1e-9)
			}
			best := float64(c.frames) / rate
			t.Logf("%d attempts, %.0f s where %.0f are possible: %.3f", attempts, took.Seconds(), best, took.Seconds()/best)
			if c.over > 0 {
				require.LessOrEqual(t, took.Seconds(), c.over*best)
			}
			require.LessOrEqual(t, attempts, c.attempts)
			j, _ := state.Job("j")
			require.Equal(t, lease.JobDone, j.State)
		})
	}
}

// What takes far longer than its siblings is tried elsewhere, by one more machine.
func TestStuck(t *testing.T) {
	s := lease.NewState()
	submit(t, s, "j", 6, func(s *lease.Spec) { s.Order = lease.Linear })
	now := time.Unix(10, 0)
	do := func(c lease.Command) {
		c.At = now
		_, err := s.Apply(c)
		require.NoError(t, err)
	}
	report := func(task int32, peer authz.PeerID) lease.Report {
		r := lease.Report{Lease: lease.ID(fmt.Sprint("l", task, peer)), Task: lease.TaskID{Job: "j", Index: task}, Peer: peer}
		do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: peer}})
		return r
	}
	slow := sched.Running{Report: report(5, "a"), Since: now}
	began := now
	j, _ := s.Job("j")
	for i := range int32(5) {
		_, known := sched.Stuck(j, slow)
		require.Equal(t, i >= 3, known, "siblings are measured first")
		r := report(i, "b")
		now = now.Add(20 * time.Second)
		do(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: []lease.Result{{Frame: i + 1, CID: "c", Name: fmt.Sprintf("%04d.png", i+1), Size: 1, Seconds: 20}}}})
	}
	due, known := sched.Stuck(j, slow)
	require.True(t, known)
	require.WithinRange(t, due, began.Add(60*time.Second), began.Add(120*time.Second))
	slow.First = true
	later, _ := sched.Stuck(j, slow)
	require.True(t, later.After(due), "its project may have to be fetched")

	jobs := s.Waiting(now, func(*lease.Job) bool { return true })
	stuck := map[lease.JobID][]int32{"j": {5}}
	require.Empty(t, sched.Place(jobs, []sched.Machine{machine("a", 1, 16)}, stuck), "not twice on one machine")
	placed := sched.Place(jobs, []sched.Machine{machine("a", 1, 16), machine("b", 2, 16)}, stuck)
	require.Equal(t, []sched.Placement{{Task: slow.Task, Peer: "b", Device: lease.CPUDevice, Second: true}}, placed)
	do(lease.Command{Grant: &lease.Grant{Lease: "second", Task: slow.Task, Peer: "b", Second: true}})
	_, known = sched.Stuck(j, slow)
	require.False(t, known, "two are enough")
	do(lease.Command{Complete: &lease.Complete{Report: lease.Report{Lease: "second", Task: slow.Task, Peer: "b"}, Machines: 1, Frames: []lease.Result{{Frame: 6, CID: "c", Name: "0006.png", Size: 1, Seconds: 20}}}})
	require.Equal(t, lease.JobDone, j.State)
	for _, a := range j.Tasks[5].Attempts {
		require.Equal(t, a.Lease == "second", a.Outcome == lease.OutcomeRendered)
		require.Equal(t, a.Lease == slow.Lease, a.Outcome == lease.OutcomeRevoked)
	}
}

// A machine that says it takes no time for a frame is believed to be fast, no more:
// what it and the others get can still be granted.
func TestChunksOfALiar(t *testing.T) {
	s := lease.NewState()
	submit(t, s, "j", 100, func(s *lease.Spec) { s.Chunk = 0 })
	r := lease.Report{Lease: "l", Task: lease.TaskID{Job: "j"}, Peer: "b"}
	for _, c := range []lease.Command{{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer}},
		{Complete: &lease.Complete{Report: r, Machines: 1, Frames: []lease.Result{{Frame: 1, CID: "c", Name: "0001.png", Size: 1, Seconds: 5}}}}} {
		_, err := s.Apply(c)
		require.NoError(t, err)
	}
	liar := machine("a", 1, 16)
	liar.Speeds = map[lease.Device]float64{lease.CPUDevice: math.Inf(1)}
	placed := place(s, []sched.Machine{liar, machine("b", 1, 16)})
	require.Len(t, placed, 2)
	for i, p := range placed {
		require.Positive(t, p.Frames)
		_, err := s.Apply(lease.Command{At: time.Unix(2, 0), Grant: &lease.Grant{Lease: lease.ID(fmt.Sprint("l", i)), Task: p.Task, Peer: p.Peer, Frames: p.Frames}})
		require.NoError(t, err)
	}
}

// One frame tells little: a scene may begin in the dark, and nobody knows by what a
// GPU does how fast a CPU is.
func TestChunksGrow(t *testing.T) {
	s := lease.NewState()
	submit(t, s, "j", 1000, func(s *lease.Spec) { s.Chunk, s.Order = 0, lease.Linear })
	card := gpu(8)
	card.Backends = []lease.Backend{lease.CUDA}
	m := machine("a", 1, 16, card)
	m.Can.Backends = append(m.Can.Backends, lease.CUDA)
	now := time.Unix(10, 0)
	do := func(c lease.Command) []lease.Event {
		c.At = now
		events, err := s.Apply(c)
		require.NoError(t, err)
		return events
	}
	var sizes []int32
	for i := range 4 {
		if i > 0 {
			m.Free = []lease.Device{lease.CPUDevice}
			require.EqualValues(t, 1, place(s, []sched.Machine{m})[0].Frames)
		}
		m.Free = []lease.Device{lease.GPUDevice(0)}
		p := sched.Place(s.Waiting(now, nil), []sched.Machine{m}, nil)[0]
		sizes = append(sizes, p.Frames)
		g := lease.Grant{Lease: lease.ID(fmt.Sprint("l", i)), Task: p.Task, Peer: p.Peer, Device: p.Device, Frames: p.Frames}
		for _, e := range do(lease.Command{Grant: &g}) {
			if e.Type == lease.TaskGranted {
				g.Task.Index = e.Task
			}
		}
		j, task, err := s.Task(g.Task)
		require.NoError(t, err)
		var frames []lease.Result
		for _, f := range j.Remaining(task) {
			frames = append(frames, lease.Result{Frame: f, CID: "c", Name: fmt.Sprintf("%04d.png", f), Size: 1, Seconds: 0.01})
		}
		now = now.Add(time.Second)
		do(lease.Command{Complete: &lease.Complete{Report: lease.Report{Lease: g.Lease, Task: g.Task, Peer: g.Peer}, Frames: frames, Machines: 1}})
	}
	require.Equal(t, []int32{5, 40, 360, 595}, sizes)
}
