package farmtest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz/level"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// A coordinator whose vizpeer is too old for the farm renders, but holds no queue, and the
// status says so, until it is updated.
func TestOldCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 2, 1, func(i int, can *lease.Capability) {
			can.Version = "0.4"
			if i == 1 {
				can.Level, can.Version = 2, "0.3"
			}
		})
		old := f.Peers[1]
		status := func() (httpapi.Farm, httpapi.CoordinatorInfo) {
			farm, err := f.Led(0).Queue().Farm(t.Context(), Admin)
			require.NoError(t, err)
			for _, c := range farm.Coord.Coordinators {
				if c.Peer == old.ID {
					return farm, c
				}
			}
			require.Fail(t, "it is not listed")
			return farm, httpapi.CoordinatorInfo{}
		}
		f.Within(10*time.Second, "the farm is at this level", func() bool {
			farm, c := status()
			return farm.Coord.Level == level.Known && c.State == "old"
		})
		farm, c := status()
		require.Equal(t, map[string]int{"0.4": 2, "0.3": 1}, farm.Versions)
		require.Equal(t, "0.3", c.Version)
		require.Equal(t, 2, c.Level)
		require.False(t, c.HoldsBack, "it does not hold the queue")
		job := f.Submit(f.Peers[2], "1-12")
		done := f.Await(job, lease.JobDone, 5*time.Minute)
		require.True(t, slices.ContainsFunc(done.Frames, func(r httpapi.Frame) bool { return r.Peer == old.ID }), "it renders")
		_, c = status()
		require.Equal(t, "old", c.State, "still")

		old.Stop()
		old.Update()
		old.Start()
		f.Within(time.Minute, "it has the queue", func() bool {
			farm, c := status()
			return c.State == "ready" && c.Level == level.Known && len(farm.Coord.Standbys) == 1
		})
	})
}
