package farmtest

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

var admin = authz.Principal{User: "admin", Role: authz.Admin}

// fetch lets a machine try to get content that nobody asked it to.
func fetch(t *testing.T, m *Member, cid string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := m.Local().FetchBlob(ctx, admin, cid, nil)
	return err
}

// has tells whether a machine holds all of some content.
func has(t *testing.T, m *Member, cid string) bool {
	for r, err := range m.Local().Roots(t.Context(), admin) {
		require.NoError(t, err)
		if r.CID == cid {
			return r.Whole
		}
	}
	return false
}

func of(project string) func(*httpapi.Submission) {
	return func(s *httpapi.Submission) { s.Project, s.Replicas = project, 1 }
}

// A member gets what its work needs and nothing else.
func TestNoLeaseNoContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The last one can hold nothing for others.
		f := New(t, 3, func(i int, can *lease.Capability) {
			if i == 3 {
				can.Slots, can.FreeDisk = 0, 512<<20
			}
		})
		submitter, worker, idle := f.Peers[1], f.Peers[2], f.Peers[3]
		secret := f.Upload(submitter, 1, 300_000)
		require.ErrorIs(t, fetch(t, worker, secret), swarm.ErrNoSource, "no job has it")
		require.NoError(t, fetch(t, f.Peers[0], secret), "an admin's machine may have it")

		for _, m := range f.Peers {
			m.Blender.PerFrame = 10 * time.Second
		}
		id := f.Submit(submitter, "1-12", of(f.Upload(submitter, 2, 300_000)))
		f.Within(time.Minute, "the worker renders", func() bool { return len(worker.Blender.Rendered()) > 0 })
		j := f.Job(id)
		require.True(t, has(t, worker, j.Project))
		require.ErrorIs(t, fetch(t, idle, j.Project), swarm.ErrNoSource)
		j = f.Await(id, lease.JobDone, 5*time.Minute)
		for _, frame := range j.Frames {
			require.ErrorIs(t, fetch(t, idle, frame.CID), swarm.ErrNoSource)
			require.False(t, has(t, idle, frame.CID))
			_, _, err := idle.Local().Open(t.Context(), frame.CID, lease.FrameOf(id, frame.Frame), 0)
			require.Error(t, err)
		}
	})
}

// A machine that is lost leaves frames with too few copies, and the farm makes
// others, although the job has ended long since.
func TestLostKeeperHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The submitter and the founder keep every frame. The third machine renders.
		f := New(t, 3, func(i int, can *lease.Capability) {
			if i != 2 {
				can.Slots = 0
			}
		})
		spare := f.Peers[3]
		f.Peers[2].Blender.Extra = true
		id := f.Submit(f.Peers[1], "1-20", func(s *httpapi.Submission) { s.Replicas = 3 })
		j := f.Await(id, lease.JobDone, time.Minute)
		for _, frame := range j.Frames {
			require.False(t, has(t, spare, frame.CID))
			require.Equal(t, 1, frame.ExtraFiles)
			require.True(t, has(t, f.Peers[1], frame.Extra), "whoever holds a frame holds what is beside it")
		}
		f.Peers[2].Crash()
		f.Within(coord.AwayBound+time.Minute, "the spare machine holds all frames", func() bool {
			for _, frame := range j.Frames {
				if !has(t, spare, frame.CID) || !has(t, spare, frame.Extra) {
					return false
				}
			}
			return true
		})
		for _, frame := range f.Job(id).Frames {
			require.Equal(t, lease.TaskDone, frame.State)
		}
	})
}

// While a machine renders, the next job's project comes to it.
func TestNextProjectIsFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2, func(i int, can *lease.Capability) {
			if i != 2 {
				can.Slots = 0
			}
		})
		submitter, worker := f.Peers[1], f.Peers[2]
		worker.Blender.PerFrame = 5 * time.Minute
		first := f.Submit(submitter, "1-2", of(f.Upload(submitter, 1, 300_000)))
		f.Within(time.Minute, "the worker renders", func() bool { return f.Job(first).State == lease.JobRunning })
		project := f.Upload(submitter, 2, 2_000_000)
		next := f.Submit(submitter, "1", of(project))
		f.Within(time.Minute, "the next project is there", func() bool { return has(t, worker, project) })
		require.Equal(t, lease.JobQueued, f.Job(next).State, "it was there before its first lease")

		// What was fetched ahead is let go with its job, unless others need it.
		_, err := f.Peers[0].Queue().Control(t.Context(), Operator, next, httpapi.Control{Do: httpapi.Cancel})
		require.NoError(t, err)
		f.Within(time.Minute, "the pin is taken back", func() bool {
			for r, err := range worker.Local().Roots(t.Context(), admin) {
				require.NoError(t, err)
				if r.CID == project {
					return len(r.Pins) == 0
				}
			}
			return true
		})
	})
}

// Among machines that are alike, the one that has the project gets the work.
func TestWorkGoesWhereTheDataIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 3, func(i int, can *lease.Capability) {
			if i < 2 {
				can.Slots = 0
			}
		})
		submitter, low, high := f.Peers[1], f.Peers[2], f.Peers[3]
		if low.ID > high.ID {
			low, high = high, low
		}
		project := f.Upload(submitter, 1, 300_000)
		render := func(project string) (by authz.PeerID) {
			j := f.Await(f.Submit(submitter, "1", of(project)), lease.JobDone, time.Minute)
			return j.Frames[0].Peer
		}
		require.Equal(t, low.ID, render(f.Upload(submitter, 2, 1000)), "by its ID, where all else is equal")
		// The one that would be asked first is away when the project is rendered.
		low.Stop()
		require.Equal(t, high.ID, render(project))
		low.Start()
		f.Online(4)
		for range 3 {
			require.Equal(t, high.ID, render(project))
		}
	})
}

// A machine whose store cannot take a project gets no lease for it, and the job
// says so; it goes on where there is room.
func TestProjectLargerThanTheStore(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes long under the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2, func(i int, can *lease.Capability) {
			if i < 2 {
				can.Slots = 0
			}
		})
		submitter, worker := f.Peers[1], f.Peers[2]
		worker.Stop()
		f.Online(2)
		worker.cfg.Quota = 64 << 20
		worker.Start()
		f.Online(3)
		id := f.Submit(submitter, "1-2", of(f.Upload(submitter, 1, 48<<20)))
		f.Within(time.Minute, "the job says what it waits for", func() bool {
			return strings.Contains(f.Job(id).Reason, "the nearest is worker2: needs 49 MiB of room in its store, has ")
		})
		f.Await(f.Submit(submitter, "1-2", of(f.Upload(submitter, 2, 1<<20))), lease.JobDone, time.Minute)
		require.Equal(t, lease.JobQueued, f.Job(id).State)
		tasks, err := f.Peers[0].Queue().Tasks(t.Context(), Operator, id)
		require.NoError(t, err)
		for _, task := range tasks {
			require.Empty(t, task.Attempts)
		}

		// By its ad this one fits just so, and the store finds that it does not.
		tight := f.Submit(submitter, "1-2", of(f.Upload(submitter, 3, 45<<20)))
		f.Within(time.Minute, "the job says what was found", func() bool {
			return strings.Contains(f.Job(tight).Reason, "needs room for the project, has less than that")
		})
		tasks, err = f.Peers[0].Queue().Tasks(t.Context(), Operator, tight)
		require.NoError(t, err)
		require.Len(t, tasks[0].Attempts, 1)
		require.Equal(t, lease.OutcomeReleased, tasks[0].Attempts[0].Outcome)
		require.Contains(t, tasks[0].Attempts[0].Reason, "no room in the content store")

		worker.Stop()
		worker.cfg.Quota = 256 << 20
		worker.Start()
		f.Await(id, lease.JobDone, time.Minute)
		f.Await(tight, lease.JobDone, time.Minute)
	})
}
