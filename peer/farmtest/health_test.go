package farmtest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/farmtest"
)

// number is one of a machine's numbers: its name, and the values of its labels in the
// order of the labels' names.
func number(t *testing.T, m *farmtest.Member, name string, labels ...string) float64 {
	t.Helper()
	families, err := m.Metrics().Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, one := range f.GetMetric() {
			var values []string
			for _, l := range one.GetLabel() {
				values = append(values, l.GetValue())
			}
			if strings.Join(values, " ") == strings.Join(labels, " ") {
				return one.GetGauge().GetValue() + one.GetCounter().GetValue() + float64(one.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Fatalf("%s has no number %s %v", m.Name, name, labels)
	return 0
}

func TestNumbersOfAFarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		founder, box := f.Peers[0], f.Peers[1]
		f.Await(f.Submit(founder, "1-30"), lease.JobDone, 2*time.Minute)
		require.Equal(t, 30.0, number(t, founder, "vizpeer_frames_done_total"))
		done := number(t, founder, "vizpeer_queue_tasks", "done", "normal")
		require.NotZero(t, done)
		require.Equal(t, done, number(t, founder, "vizpeer_tasks_total", "done"))
		require.Zero(t, number(t, founder, "vizpeer_tasks_total", "failed"))
		require.Zero(t, number(t, founder, "vizpeer_queue_tasks", "queued", "normal"))
		require.Equal(t, 3.0, number(t, founder, "vizpeer_workers", "idle"))
		require.Equal(t, 1.0, number(t, founder, "vizpeer_raft_is_leader"))
		require.NotZero(t, number(t, founder, "vizpeer_raft_commit_seconds"))
		require.NotZero(t, number(t, box, "vizpeer_fetch_bytes_total", "coordinator"))

		// A machine that is cut off in the middle loses its leases, and is missed.
		id := f.Submit(founder, "1-200")
		f.Within(time.Minute, "the machine renders", func() bool { return number(t, box, "vizpeer_attempts") > 0 })
		require.NotZero(t, number(t, founder, "vizpeer_queue_tasks", "leased", "normal"))
		require.Equal(t, 1.0, number(t, founder, "vizpeer_queue_open_jobs"))
		box.Crash()
		f.Within(time.Minute, "it is missed", func() bool { return number(t, founder, "vizpeer_workers", "offline") == 1 })
		f.Await(id, lease.JobDone, 10*time.Minute)
	})
}

// failing names the checks that fail on a machine.
func failing(t *testing.T, m *farmtest.Member) []string {
	names := []string{}
	for _, c := range m.Local().Ready(t.Context()) {
		if c.Err != nil {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		founder, box := f.Peers[0], f.Peers[1]
		require.Empty(t, failing(t, founder))
		farm, err := founder.Queue().Farm(t.Context(), farmtest.Operator)
		require.NoError(t, err)
		require.Equal(t, founder.Local().Status(t.Context()).CA, farm.CA)
		require.Len(t, farm.CA, 1)
		require.Empty(t, failing(t, box))

		store := filepath.Join(box.DataDir(), "store")
		require.NoError(t, os.Rename(store, store+"-away"))
		time.Sleep(10 * time.Second) // of simulated time: the disk is not asked more often
		require.Equal(t, []string{"store"}, failing(t, box))
		require.NoError(t, os.Rename(store+"-away", store))
		time.Sleep(10 * time.Second)
		require.Empty(t, failing(t, box))
		left, err := filepath.Glob(filepath.Join(store, ".ready*"))
		require.NoError(t, err)
		require.Empty(t, left)

		founder.Stop()
		f.Within(time.Minute, "the leader is missed", func() bool { return len(failing(t, box)) > 0 })
		require.Equal(t, []string{"leader"}, failing(t, box))
		founder.Start()
		f.Within(time.Minute, "it is back", func() bool { return len(failing(t, box)) == 0 })
	})
}
