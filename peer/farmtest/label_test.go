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
)

// A machine that gives itself a licence gets no work that asks for one, until an
// admin grants it: then the machine's own check passes too.
func TestLicencesAreGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1, func(_ int, can *lease.Capability) { can.Labels = []string{"lic:keyshot", "night"} })
		queue, worker := f.Peers[0].Queue(), f.Peers[1]
		admin := authz.Principal{User: "root", Role: authz.Admin}
		needs := func(s *httpapi.Submission) { s.Needs.Labels = []string{"lic:keyshot", "night"} }
		id := f.Submit(f.Peers[0], "1-4", needs)
		require.Contains(t, f.Job(id).Reason, `needs label "lic:keyshot", has "night"`)
		require.Equal(t, []string{"night"}, worker.Local().Status(t.Context()).Capability.Labels)

		_, err := queue.Label(t.Context(), farmtest.Operator, worker.ID, []string{"lic:keyshot"})
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = queue.Label(t.Context(), admin, "nobody", []string{"lic:keyshot"})
		require.ErrorIs(t, err, httpapi.ErrNotFound)
		_, err = queue.Label(t.Context(), admin, worker.ID, []string{"key shot"})
		require.ErrorIs(t, err, httpapi.ErrInvalid)
		p, err := queue.Label(t.Context(), admin, worker.ID, []string{"lic:keyshot"})
		require.NoError(t, err)
		require.Equal(t, []string{"lic:keyshot"}, p.Granted)

		f.Await(id, lease.JobDone, time.Minute)
		require.Len(t, worker.Blender.Rendered(), 4)
		tasks, err := queue.Tasks(t.Context(), farmtest.Operator, id)
		require.NoError(t, err)
		for _, task := range tasks {
			require.Len(t, task.Attempts, 1, "the worker refused none")
		}
		require.Equal(t, []string{"lic:keyshot", "night"}, worker.Local().Status(t.Context()).Capability.Labels)
	})
}
