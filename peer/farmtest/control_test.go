package farmtest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// What people want of jobs under way happens on the machines that render them.
func TestJobsAreControlled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		queue := f.Peers[0].Queue()
		control := func(id lease.JobID, do httpapi.Verb, tier lease.Tier) httpapi.JobSummary {
			t.Helper()
			sum, err := queue.Control(t.Context(), farmtest.Operator, id, httpapi.Control{Do: do, Tier: tier})
			require.NoError(t, err)
			return sum
		}
		for _, m := range f.Peers {
			m.Blender.PerFrame = 10 * time.Second
		}
		single := func(s *httpapi.Submission) { s.Chunk = 1 }
		id := f.Submit(f.Peers[0], "1-8", single)
		f.Within(time.Minute, "both render", func() bool { return f.Job(id).Tasks.Leased == 2 })
		require.Equal(t, lease.JobPaused, control(id, httpapi.Pause, "").State)

		// What is under way goes on and counts; nothing more of the job is granted, and
		// the machines are for others.
		other := f.Submit(f.Peers[0], "1-4", single, func(s *httpapi.Submission) { s.Priority = lease.Low })
		then := f.Submit(f.Peers[0], "1", single, func(s *httpapi.Submission) { s.After = []lease.JobID{id} })
		f.Await(other, lease.JobDone, 2*time.Minute)
		j := f.Job(id)
		require.Equal(t, 2, j.Tasks.Done)
		require.Equal(t, 6, j.Tasks.Queued)
		require.Contains(t, j.Reason, "it is paused")
		require.Contains(t, f.Job(then).Reason, "it waits for job "+string(id)+", after which it comes and which is paused")

		require.Equal(t, lease.JobRunning, control(id, httpapi.Resume, "").State)
		f.Within(time.Minute, "both render again", func() bool { return f.Job(id).Tasks.Leased == 2 })
		require.Equal(t, lease.JobCancelled, control(id, httpapi.Cancel, "").State)
		require.Equal(t, lease.JobCancelled, f.Job(then).State)
		f.Within(5*time.Second, "nobody renders it any more", func() bool {
			return len(f.Peers[0].Local().Status(t.Context()).Running)+len(f.Peers[1].Local().Status(t.Context()).Running) == 0
		})

		// Tried again, it goes on where it was, before what is less urgent.
		require.Equal(t, lease.Urgent, control(f.Submit(f.Peers[0], "1-4", single), httpapi.Prioritise, lease.Urgent).Tier)
		require.Equal(t, lease.JobRunning, control(id, httpapi.Retry, "").State)
		f.Await(id, lease.JobDone, 5*time.Minute)
		rendered := map[int32]int{}
		for _, m := range f.Peers {
			for frame, n := range m.Blender.Rendered() {
				rendered[frame] += n
			}
		}
		require.LessOrEqual(t, rendered[8], 2, "what was done is not rendered again")
		why, err := queue.Why(t.Context(), farmtest.Operator, id, 0)
		require.NoError(t, err)
		require.Equal(t, "done", why.State)
	})
}
