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

// still submits a job of one frame of 512 samples, or as change wants it.
func still(t *testing.T, f *farmtest.Farm, change func(*httpapi.Submission)) lease.JobID {
	m := f.Peers[0]
	up, err := m.Local().ImportProject(t.Context(), farmtest.Operator, pictured(`, "picture": {"width": 1920, "height": 1080, "percent": 100, "samples": 512}`))
	require.NoError(t, err)
	return f.Submit(m, "7", func(s *httpapi.Submission) { s.Project = up.Project }, change)
}

// slow farms take a minute for a whole frame on one machine.
func slow(t *testing.T, workers int) *farmtest.Farm {
	f := farmtest.New(t, workers)
	for _, m := range f.Peers {
		m.Blender.PerFrame = time.Minute
	}
	return f
}

func units(f *farmtest.Farm) (n int) {
	for _, m := range f.Peers {
		n += m.Blender.Units()
	}
	return n
}

// A still is rendered by all machines together, each of its samples once, merged by one
// of them, and more samples cost no more than those.
func TestStillIsRenderedByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := slow(t, 3)
		start := time.Now()
		id := still(t, f, func(s *httpapi.Submission) { s.Output = t.TempDir() })
		shown := func() httpapi.Frame {
			frame, err := f.Peers[0].Queue().Frame(t.Context(), farmtest.Operator, id, 7)
			require.NoError(t, err)
			return frame
		}
		f.Within(15*time.Second, "every machine shows what it has", func() bool { return len(shown().Previews) == 4 })
		picture := func(cid string) {
			r, size, err := f.Peers[0].Local().Open(t.Context(), cid, lease.FrameOf(id, 7), 0)
			require.NoError(t, err)
			require.Positive(t, size)
			require.NoError(t, r.Close())
		}
		for _, p := range shown().Previews {
			picture(p.CID)
		}
		f.Await(id, lease.JobDone, 10*time.Minute)
		require.Empty(t, shown().Previews)
		picture(shown().Thumb)
		require.Less(t, time.Since(start), time.Minute*10/36, "four machines together")
		require.Equal(t, 512, units(f), "each sample once")
		for _, m := range f.Peers {
			require.NotZero(t, m.Blender.Units(), "%s rendered nothing", m.Name)
		}
		_, err := f.Peers[0].Queue().Control(t.Context(), farmtest.Operator, id, httpapi.Control{Do: httpapi.AddMore, Samples: 100})
		require.NoError(t, err)
		f.Within(time.Minute, "it is open again", func() bool { return f.Job(id).State != lease.JobDone })
		f.Await(id, lease.JobDone, 10*time.Minute)
		require.Equal(t, 612, units(f), "only the new samples")
	})
}

// A machine that is lost costs its last batch alone: what it gave before is elsewhere.
func TestLostMachineCostsItsLastBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := slow(t, 2)
		id := still(t, f, func(s *httpapi.Submission) { s.Split = lease.WishSamples })
		lost := f.Peers[1]
		f.Within(10*time.Minute, "it has rendered half of what it got", func() bool { return lost.Blender.Units() >= 50 })
		lost.Crash()
		f.Await(id, lease.JobDone, 10*time.Minute)
		require.GreaterOrEqual(t, units(f), 512)
		require.LessOrEqual(t, units(f), 512+2*4, "a batch, and one that nobody had fetched yet")
	})
}

// Tiles are leased one by one, and none is rendered twice.
func TestTilesAreRenderedByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := slow(t, 2)
		id := still(t, f, func(s *httpapi.Submission) { s.Tiles = "3x2" })
		j := f.Await(id, lease.JobDone, 10*time.Minute)
		require.Equal(t, 6, units(f))
		require.Equal(t, lease.Split{By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2}, j.Split)
	})
}

// A machine that is stopped properly gives the samples that it has: none is rendered twice.
func TestStoppedMachineSavesItsSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := slow(t, 2)
		id := still(t, f, func(s *httpapi.Submission) { s.Split = lease.WishSamples })
		stopped := f.Peers[1]
		f.Within(10*time.Minute, "it has rendered half of what it got", func() bool { return stopped.Blender.Units() >= 50 })
		stopped.Stop()
		f.Await(id, lease.JobDone, 10*time.Minute)
		require.Equal(t, 512, units(f))
		require.Less(t, stopped.Blender.Units(), 60, "it did not go on")
	})
}
