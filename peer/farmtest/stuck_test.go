package farmtest_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// A frame that is stuck on one machine is tried on another, and whoever is first
// wins: the job does not wait for a Blender that hangs.
func TestStuckFrameIsTriedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		var hangs atomic.Value // the name of the machine
		release := make(chan struct{})
		t.Cleanup(func() { close(release) })
		for _, m := range f.Peers {
			m.Blender.PerFrame = 10 * time.Second
			m.Blender.Fail = func(frame int32) *render.Error {
				if frame == 9 && (hangs.CompareAndSwap(nil, m.Name) || hangs.Load() == m.Name) {
					<-release
				}
				return nil
			}
		}
		id := f.Submit(f.Peers[0], "1-9", func(s *httpapi.Submission) { s.Chunk = 1; s.Order = lease.Linear })
		f.Await(id, lease.JobDone, 10*time.Minute)
		tasks, err := f.Peers[0].Queue().Tasks(t.Context(), farmtest.Operator, id)
		require.NoError(t, err)
		require.Len(t, tasks[8].Attempts, 2)
		for _, a := range tasks[8].Attempts {
			require.NotEmpty(t, a.Outcome)
		}
	})
}

// The farm finds out how long a frame takes, and gives each machine what it can do in
// a minute.
func TestChunksFollowTheFrameTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		for i, m := range f.Peers {
			m.Blender.PerFrame = time.Duration(1+3*i) * time.Second
		}
		id := f.Submit(f.Peers[0], "1-600", func(s *httpapi.Submission) { s.Chunk = 0 })
		f.Await(id, lease.JobDone, time.Hour)
		tasks, err := f.Peers[0].Queue().Tasks(t.Context(), farmtest.Operator, id)
		require.NoError(t, err)
		require.Less(t, len(tasks), 50)
		j := f.Job(id)
		took := j.EndedAt.Sub(*j.StartedAt).Seconds()
		best := 600 / (1 + 1.0/4 + 1.0/7)
		t.Logf("%d tasks in %.0f s, where %.0f are possible", len(tasks), took, best)
		require.Less(t, took, 1.15*best)
	})
}

// What runs out of memory goes to machines with more, and stays off those with as
// little.
func TestOutOfMemoryLooksForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2, func(i int, can *lease.Capability) { can.RAM = []int64{8, 16, 64}[i] << 30 })
		for i, m := range f.Peers {
			m.Blender.PerFrame = time.Second
			if i < 2 {
				m.Blender.Fail = func(int32) *render.Error {
					return &render.Error{Kind: lease.FailMemory, Reason: "Blender ran out of memory"}
				}
			}
		}
		id := f.Submit(f.Peers[0], "1-8", func(s *httpapi.Submission) { s.Chunk = 1 })
		f.Await(id, lease.JobDone, time.Minute)
		tasks, err := f.Peers[0].Queue().Tasks(t.Context(), farmtest.Operator, id)
		require.NoError(t, err)
		failed := 0
		for _, task := range tasks {
			require.Zero(t, task.Tries, "nobody is to blame")
			for _, a := range task.Attempts {
				if a.Outcome == lease.OutcomeFailed {
					require.Equal(t, lease.FailMemory, a.Kind)
					failed++
				}
			}
		}
		require.LessOrEqual(t, failed, 3, "once each, and what was under way")

		id = f.Submit(f.Peers[0], "1", func(s *httpapi.Submission) { s.Chunk = 1; s.Needs.MinRAM = 64 << 30 })
		f.Await(id, lease.JobDone, time.Minute)
	})
}

// A job that every machine failed, by no fault of its own, is tried again by itself when
// what was wrong has passed.
func TestWhatEveryMachineFailedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		var tries atomic.Int32
		for _, m := range f.Peers {
			m.Blender.PerFrame = time.Second
			m.Blender.Fail = func(int32) *render.Error {
				if tries.Add(1) <= 2*lease.MaxTries {
					return &render.Error{Kind: lease.FailMachine, Reason: "the disk of the projects is away"}
				}
				return nil
			}
		}
		id := f.Submit(f.Peers[0], "1", func(s *httpapi.Submission) { s.Chunk = 1 })
		f.Within(time.Minute, "both have failed", func() bool { return tries.Load() == 2*lease.MaxTries })
		require.Equal(t, lease.JobRunning, f.Job(id).State)
		f.Await(id, lease.JobDone, 15*time.Minute)
	})
}
