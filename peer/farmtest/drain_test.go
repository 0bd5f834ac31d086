package farmtest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// A machine that fails job after job is taken out, others do the work, and an admin
// lets it back in.
func TestBrokenMachineIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		broken := f.Peers[2]
		broken.Blender.PerFrame = 10 * time.Millisecond
		broken.Blender.Fail = func(int32) *render.Error {
			return &render.Error{Kind: lease.FailMachine, Reason: "the driver is gone"}
		}
		queue := f.Peers[0].Queue()
		admin := authz.Principal{User: "root", Role: authz.Admin}
		show := func() httpapi.Peer {
			t.Helper()
			peers, err := queue.Peers(t.Context(), admin)
			require.NoError(t, err)
			for _, p := range peers {
				if p.ID == broken.ID {
					return p
				}
			}
			t.Fatal("it is no member")
			return httpapi.Peer{}
		}
		single := func(s *httpapi.Submission) { s.Chunk = 1 }
		for range 3 {
			f.Await(f.Submit(f.Peers[0], "1-8", single), lease.JobDone, 2*time.Minute)
		}
		require.Contains(t, show().Drained, "it failed 3 jobs in a row: ")
		require.Contains(t, show().Drained, "the last time because: the driver is gone")
		require.Equal(t, "draining", show().State)
		require.Equal(t, show().Drained, broken.Local().Status(t.Context()).Drained, "the machine knows it too")

		// Where nobody else is left, the job says why it waits.
		for _, m := range f.Peers[:2] {
			_, err := queue.Drain(t.Context(), admin, m.ID, true)
			require.NoError(t, err)
		}
		id := f.Submit(f.Peers[0], "1", single)
		require.Contains(t, f.Job(id).Reason, "every machine that is connected takes no more work; ")
		require.Contains(t, f.Job(id).Reason, " --off`")
		_, err := queue.Drain(t.Context(), farmtest.Operator, broken.ID, false)
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = queue.Drain(t.Context(), admin, "nobody", true)
		require.ErrorIs(t, err, httpapi.ErrNotFound)

		broken.Blender.Fail = nil
		p, err := queue.Drain(t.Context(), admin, broken.ID, false)
		require.NoError(t, err)
		require.Equal(t, "", p.Drained)
		f.Await(id, lease.JobDone, time.Minute)
	})
}
