package lease_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/lease"
)

// model drives a State with random commands and checks after each what must
// always hold.
type model struct {
	s     *lease.State
	log   []lease.Command
	clock time.Time
	n     int
	jobs  []lease.JobID
	// live holds every lease that was granted and not ended, as the events told.
	live map[lease.ID]lease.Report
	past []lease.Report
	// accepted counts, by job and frame, the results taken and not lost.
	accepted map[string]int
	ended    map[lease.JobID]lease.JobState
}

var peers = []authz.PeerID{"ann", "bob", "cyd"}

func newModel() *model {
	return &model{
		s: lease.NewState(), clock: time.Unix(1e9, 0).UTC(), live: map[lease.ID]lease.Report{}, accepted: map[string]int{}, ended: map[lease.JobID]lease.JobState{},
	}
}

func (m *model) id(prefix string) string {
	m.n++
	return fmt.Sprintf("%s%d", prefix, m.n)
}

func (m *model) apply(t *rapid.T, c lease.Command) error {
	m.clock = m.clock.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
	c.At = m.clock
	before := m.bytes(t)
	events, err := m.s.Apply(c)
	if err != nil {
		require.Equal(t, before, m.bytes(t), "a refused command changed the state")
		require.Empty(t, events)
		return err
	}
	m.log = append(m.log, c)
	for _, e := range events {
		m.heard(t, e)
	}
	return nil
}

func (m *model) heard(t *rapid.T, e lease.Event) {
	frame := func() string { return fmt.Sprintf("%s/%d", e.Job, *e.Frame) }
	switch e.Type {
	case lease.TaskGranted:
		for _, r := range m.live {
			require.NotEqual(t, r.Task, lease.TaskID{Job: e.Job, Index: e.Task}, "a task was leased twice")
		}
		r := lease.Report{Lease: e.Lease, Task: lease.TaskID{Job: e.Job, Index: e.Task}, Peer: e.Peer}
		m.live[e.Lease] = r
		m.past = append(m.past, r)
	case lease.TaskRequeued, lease.LeaseRevoked:
		delete(m.live, e.Lease)
	case lease.TaskEnded:
		delete(m.live, e.Lease)
	case lease.FrameResult:
		m.accepted[frame()]++
		require.Equal(t, 1, m.accepted[frame()], "a frame was accepted twice")
	case lease.FrameLost:
		m.accepted[frame()]--
	case lease.JobEnded:
		require.NotContains(t, m.ended, e.Job, "a job ended twice")
		m.ended[e.Job] = lease.JobState(e.State)
	case lease.JobSubmitted: // for the first time, or again
		delete(m.ended, e.Job)
	}
}

func (m *model) bytes(t require.TestingT) []byte {
	var b bytes.Buffer
	require.NoError(t, m.s.Snapshot(&b))
	return b.Bytes()
}

func (m *model) drawReport(t *rapid.T) (lease.Report, bool) {
	if len(m.past) == 0 {
		return lease.Report{}, false
	}
	r := rapid.SampledFrom(m.past[max(0, len(m.past)-12):]).Draw(t, "attempt")
	if rapid.IntRange(0, 9).Draw(t, "forge") == 0 {
		r.Peer = rapid.SampledFrom(peers).Draw(t, "forger")
	}
	return r, true
}

func (m *model) results(t *rapid.T, r lease.Report) []lease.Result {
	j, task, err := m.s.Task(r.Task)
	require.NoError(t, err)
	var out []lease.Result
	for _, f := range j.TaskFrames(task) {
		if rapid.Bool().Draw(t, "has") {
			out = append(out, lease.Result{Frame: f, CID: fmt.Sprintf("cid-%s-%d-%s", j.ID, f, r.Peer), Name: fmt.Sprintf("%04d.png", f), Size: 1})
		}
	}
	return out
}

func (m *model) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"submit": func(t *rapid.T) {
			first := rapid.Int32Range(-20, 20).Draw(t, "first")
			spec := spec(lease.Frames{{First: first, Last: first + rapid.Int32Range(-1, 12).Draw(t, "more"), Step: rapid.Int32Range(1, 3).Draw(t, "step")}})
			spec.Chunk = rapid.IntRange(0, 4).Draw(t, "chunk")
			spec.Tier = rapid.SampledFrom([]lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}).Draw(t, "tier")
			spec.Replicas = rapid.IntRange(1, 3).Draw(t, "replicas")
			spec.Order = rapid.SampledFrom([]lease.Order{"", lease.Linear}).Draw(t, "order")
			if len(m.jobs) > 0 && rapid.IntRange(0, 3).Draw(t, "after") == 0 {
				spec.After = []lease.JobID{rapid.SampledFrom(m.jobs).Draw(t, "first")}
			}
			id := lease.JobID(m.id("j"))
			if m.apply(t, lease.Command{Submit: &lease.Submit{Job: id, Spec: spec}}) == nil {
				m.jobs = append(m.jobs, id)
			}
		},
		"grant": func(t *rapid.T) {
			if len(m.jobs) == 0 {
				t.Skip("no job")
			}
			j, _ := m.s.Job(rapid.SampledFrom(m.jobs).Draw(t, "job"))
			task := rapid.Int32Range(-1, int32(len(j.Tasks))).Draw(t, "task")
			if next := j.Next(1); len(next) > 0 && rapid.Bool().Draw(t, "next") {
				task = next[0]
			}
			_ = m.apply(t, lease.Command{Grant: &lease.Grant{Lease: lease.ID(m.id("l")), Task: lease.TaskID{Job: j.ID, Index: task}, Peer: rapid.SampledFrom(peers).Draw(t, "peer"),
				Device: rapid.SampledFrom([]lease.Device{"", "cpu", "gpu0", "gpu1"}).Draw(t, "device")}})
		},
		"record": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Record: &lease.Record{Report: r, Frames: m.results(t, r), Machines: rapid.IntRange(0, 3).Draw(t, "machines")}})
			}
		},
		"complete": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Complete: &lease.Complete{Report: r, Frames: m.results(t, r), Machines: rapid.IntRange(0, 3).Draw(t, "machines")}})
			}
		},
		"fail": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Fail: &lease.Fail{Report: r, Reason: "crash", Kind: rapid.SampledFrom(append(lease.FailKinds(), "", "alien")).Draw(t, "kind"), Machine: rapid.IntRange(0, 3).Draw(t, "machine") == 0}})
			}
		},
		"release": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Release: &lease.Release{Report: r, Reason: "stopped"}})
			}
		},
		"expire": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Expire: &lease.Expire{Lease: r.Lease, Task: r.Task}})
			}
		},
		"hold": func(t *rapid.T) {
			r, ok := m.drawReport(t)
			if !ok {
				return
			}
			j, task, _ := m.s.Task(r.Task)
			f := j.Frames[task.Lo]
			if f == nil {
				return
			}
			_ = m.apply(t, lease.Command{Hold: &lease.Hold{Job: j.ID, Frame: f.Result.Frame, CID: f.CID, Peer: rapid.SampledFrom(peers).Draw(t, "keeper"), Delivered: rapid.Bool().Draw(t, "delivered"), Machines: 3}})
		},
		"stock": func(t *rapid.T) {
			if len(m.jobs) > 0 {
				_ = m.apply(t, lease.Command{Stock: &lease.Stock{Job: rapid.SampledFrom(m.jobs).Draw(t, "job"), Peer: rapid.SampledFrom(peers).Draw(t, "peer")}})
			}
		},
		"lose": func(t *rapid.T) {
			_ = m.apply(t, lease.Command{Lose: &lease.Lose{Peer: rapid.SampledFrom(peers).Draw(t, "peer"), Machines: rapid.IntRange(0, 3).Draw(t, "machines"), Removed: rapid.IntRange(0, 3).Draw(t, "removed") == 0}})
		},
		"store": func(t *rapid.T) {
			_ = m.apply(t, lease.Command{Store: &lease.Store{Peer: rapid.SampledFrom(peers).Draw(t, "peer"), ID: rapid.SampledFrom([]string{"", "one", "two"}).Draw(t, "store")}})
		},
		"unhold": func(t *rapid.T) {
			if len(m.jobs) == 0 {
				return
			}
			j, _ := m.s.Job(rapid.SampledFrom(m.jobs).Draw(t, "job"))
			cids := []string{j.Spec.Project, "cid-of-nothing"}
			for _, f := range j.Frames {
				if f != nil {
					cids = append(cids, f.CID)
				}
			}
			_ = m.apply(t, lease.Command{Unhold: &lease.Unhold{Job: j.ID, CID: rapid.SampledFrom(cids).Draw(t, "cid"), Peer: rapid.SampledFrom(peers).Draw(t, "peer"), Machines: 3}})
		},
		"cancel": func(t *rapid.T) {
			if len(m.jobs) > 0 && rapid.IntRange(0, 5).Draw(t, "rarely") == 0 {
				_ = m.apply(t, lease.Command{Cancel: &lease.Cancel{Job: rapid.SampledFrom(m.jobs).Draw(t, "job"), Reason: "by ann"}})
			}
		},
		"pause":  m.control(func(j lease.JobID) lease.Command { return lease.Command{Pause: &lease.Pause{Job: j}} }),
		"resume": m.control(func(j lease.JobID) lease.Command { return lease.Command{Resume: &lease.Resume{Job: j}} }),
		"retry":  m.control(func(j lease.JobID) lease.Command { return lease.Command{Retry: &lease.Retry{Job: j}} }),
		"prioritise": func(t *rapid.T) {
			to := rapid.SampledFrom([]lease.Tier{lease.Low, lease.Urgent, "none"}).Draw(t, "to")
			m.control(func(j lease.JobID) lease.Command {
				return lease.Command{Prioritise: &lease.Prioritise{Job: j, Tier: to}}
			})(t)
		},
		"": m.check,
	}
}

// control applies a command to some job.
func (m *model) control(command func(lease.JobID) lease.Command) func(*rapid.T) {
	return func(t *rapid.T) {
		if len(m.jobs) > 0 {
			_ = m.apply(t, command(rapid.SampledFrom(m.jobs).Draw(t, "job")))
		}
	}
}

// check compares the state with what the events told.
func (m *model) check(t *rapid.T) {
	live := 0
	everybody := lease.Presence{Here: func(authz.PeerID) bool { return true }, Voters: peers}
	for _, p := range peers {
		// What is safe job by job is safe as a whole.
		safe := true
		for _, j := range m.s.Jobs() {
			safe = safe && j.Parting(p, everybody).Safe
		}
		require.Equal(t, safe, m.s.Parting(p, everybody).Safe)
	}
	for _, j := range m.s.Jobs() {
		counts := map[lease.TaskState]int{}
		renders := map[authz.PeerID]bool{}
		for i := range j.Tasks {
			task := &j.Tasks[i]
			counts[task.State]++
			if a, ok := task.Live(); ok {
				live++
				require.Equal(t, m.live[a.Lease].Peer, a.Peer)
				renders[a.Peer] = true
			}
			for k := task.Lo; k < task.Hi; k++ {
				f := j.Frames[k]
				have := 0
				if f != nil {
					have = 1
					if !j.State.Ended() {
						require.NotEmpty(t, f.Holders)
					}
					for i, p := range f.Holders {
						require.NotContains(t, f.Holders[:i], p, "a holder is counted twice")
					}
				}
				require.Equal(t, have, m.accepted[fmt.Sprintf("%s/%d", j.ID, j.Numbers()[k])])
				if task.State == lease.TaskRendered || task.State == lease.TaskDone {
					require.NotNil(t, f, "a frame of a finished task is missing")
				}
				if task.State == lease.TaskDone {
					require.True(t, f.Done)
				}
			}
			if task.State == lease.TaskQueued {
				require.NotEmpty(t, j.Remaining(task), "a task with nothing left to do waits")
			}
		}
		for _, p := range peers {
			require.Equal(t, renders[p], j.Renders(p))
			m.rights(t, j, p)
		}
		for state, n := range counts {
			require.Equal(t, n, j.Count(state), state)
		}
		require.Equal(t, counts[lease.TaskQueued], len(j.Next(len(j.Tasks)+1)))
		state, ended := m.ended[j.ID]
		require.Equal(t, ended, j.State.Ended())
		if ended {
			require.Equal(t, state, j.State)
			require.Zero(t, counts[lease.TaskQueued]+counts[lease.TaskLeased])
		}
		require.Equal(t, !ended, slices.Contains(m.s.Open(), j))
	}
	require.Equal(t, len(m.live), live)
	open := m.s.Open()
	require.True(t, slices.IsSortedFunc(open, func(a, b *lease.Job) int {
		if d := b.Tier.Rank() - a.Tier.Rank(); d != 0 {
			return d
		}
		return int(a.Seq) - int(b.Seq)
	}), "open jobs are out of order")
	for _, j := range m.s.Waiting(m.clock) {
		require.True(t, j.HasQueued() && !j.State.Ended() && j.State != lease.JobPaused)
		require.Empty(t, m.s.Awaits(j))
	}
}

// rights compares what a node may have with what the state says of it.
func (m *model) rights(t *rapid.T, j *lease.Job, p authz.PeerID) {
	node := authz.Member{ID: p, Role: authz.Node, User: string(p) + "-2"}
	may := p == j.Spec.Submitter || j.Renders(p) || !j.State.Ended() && slices.Contains(j.Holders, p)
	require.Equal(t, may, m.s.MayHave(node, j.Spec.Project, lease.ProjectOf(j.ID)))
	require.False(t, m.s.MayHave(node, j.Spec.Project, lease.Scope{}))
	for _, f := range j.Frames {
		if f == nil {
			continue
		}
		by := lease.FrameOf(j.ID, f.Result.Frame)
		require.Equal(t, p == "ann", m.s.MayHave(node, f.CID, by))
		require.False(t, m.s.MayHave(node, j.Spec.Project, by), "a frame's scope gives no right to the project")
		require.False(t, m.s.MayHave(node, f.CID, lease.ProjectOf(j.ID)), "a job's scope gives no right to its frames")
	}
}

func TestStateHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		t.Repeat(m.actions())

		// A replay of the log and a restored snapshot are the same state.
		replay := lease.NewState()
		for _, c := range m.log {
			_, err := replay.Apply(c)
			require.NoError(t, err)
		}
		var b bytes.Buffer
		require.NoError(t, replay.Snapshot(&b))
		require.Equal(t, m.bytes(t), b.Bytes())
		restored, err := lease.Restore(bytes.NewReader(m.bytes(t)))
		require.NoError(t, err)
		m.s = restored
		m.check(t)
		b.Reset()
		require.NoError(t, restored.Snapshot(&b))
		require.Equal(t, m.bytes(t), b.Bytes())
	})
}

func spec(frames lease.Frames) lease.Spec {
	return lease.Spec{
		Name: "shot", Owner: "ann", Project: "bafy", Blend: "files/shot.blend", Frames: frames, Chunk: 2, Tier: lease.Normal, Replicas: 2,
		Submitter: "ann", Output: lease.Output{Peer: "ann", Dir: "/out"},
	}
}
