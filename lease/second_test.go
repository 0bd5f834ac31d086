package lease_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

func (f *farm) second(j lease.JobID, task int32, p string) lease.Report {
	f.t.Helper()
	r := lease.Report{Lease: lease.ID("second-" + p), Task: lease.TaskID{Job: j, Index: task}, Peer: authz.PeerID("peer-" + p)}
	f.do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer, Second: true}})
	return r
}

func types(events []lease.Event) (out []lease.EventType) {
	for _, e := range events {
		out = append(out, e.Type)
	}
	return out
}

func TestTheFirstOfTwoWins(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	_, err := f.try(lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: "j"}, Peer: "peer-b", Second: true}})
	require.ErrorIs(t, err, lease.ErrNotStuck, "nobody has it")
	slow := f.grant("j", 0, "a")
	_, err = f.try(lease.Command{Grant: &lease.Grant{Lease: "x", Task: slow.Task, Peer: slow.Peer, Second: true}})
	require.ErrorIs(t, err, lease.ErrNotStuck, "it has it already")
	f.do(lease.Command{Record: &lease.Record{Report: slow, Frames: results(1), Machines: 3}})
	quick := f.second("j", 0, "b")
	_, err = f.try(lease.Command{Grant: &lease.Grant{Lease: "x", Task: slow.Task, Peer: "peer-c", Second: true}})
	require.ErrorIs(t, err, lease.ErrNotStuck, "two are enough")
	require.True(t, j.Renders("peer-a") && j.Renders("peer-b"))

	events := f.do(lease.Command{Complete: &lease.Complete{Report: quick, Frames: results(2), Machines: 3}})
	require.Contains(t, types(events), lease.LeaseRevoked, "the other is told to stop")
	require.Equal(t, lease.TaskRendered, j.Tasks[0].State)
	require.False(t, j.Renders("peer-a") || j.Renders("peer-b"))
	require.EqualValues(t, "peer-a", j.Frames[0].Peer, "the first result counts")
	require.EqualValues(t, "peer-b", j.Frames[1].Peer)
	_, err = f.try(lease.Command{Complete: &lease.Complete{Report: slow, Frames: results(2), Machines: 3}})
	require.ErrorIs(t, err, lease.ErrStale)
}

func TestTheSecondGoesOnAlone(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	first := f.grant("j", 0, "a")
	other := f.second("j", 0, "b")
	events := f.do(lease.Command{Lose: &lease.Lose{Peer: first.Peer, Machines: 2}})
	require.Equal(t, []lease.EventType{lease.LeaseEnded}, types(events))
	require.Equal(t, lease.TaskLeased, j.Tasks[0].State)
	third := f.second("j", 0, "c")
	f.do(lease.Command{Fail: &lease.Fail{Report: other, Reason: "crash"}})
	require.Equal(t, lease.TaskLeased, j.Tasks[0].State)
	f.do(lease.Command{Release: &lease.Release{Report: third, Reason: "stopped"}})
	require.Equal(t, lease.TaskQueued, j.Tasks[0].State)
	require.Equal(t, 1, j.Tasks[0].Fails)

	// Whoever is left of two has the last word on whether the task failed.
	for range 2 {
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "a"), Reason: "crash"}})
	}
	_ = j
	require.Equal(t, lease.JobFailed, j.State)
}

// A machine that was out of sight brings frames of a task that was cut meanwhile.
func TestLateFramesOfACutTask(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-9", func(s *lease.Spec) { s.Chunk, s.Order = 0, lease.Linear })
	require.Len(t, j.Tasks, 1)
	away := f.grant("j", 0, "a")
	f.do(lease.Command{Lose: &lease.Lose{Peer: away.Peer, Machines: 2}})
	f.do(lease.Command{Grant: &lease.Grant{Lease: "b", Task: away.Task, Peer: "peer-b", Frames: 3}})
	f.do(lease.Command{Grant: &lease.Grant{Lease: "c", Task: away.Task, Peer: "peer-c", Frames: 3}})
	require.Len(t, j.Tasks, 3)
	require.Equal(t, []int32{1, 2, 3}, j.TaskFrames(&j.Tasks[1]))
	require.Equal(t, []int32{4, 5, 6}, j.TaskFrames(&j.Tasks[2]))
	require.Equal(t, []int32{7, 8, 9}, j.TaskFrames(&j.Tasks[0]))

	// All of them are taken; what nobody has now is done with.
	f.do(lease.Command{Record: &lease.Record{Report: away, Frames: results(1, 2, 7, 8, 9), Machines: 3}})
	require.Equal(t, lease.TaskRendered, j.Tasks[0].State)
	require.Equal(t, lease.TaskLeased, j.Tasks[1].State)
	require.Equal(t, []int32{3}, j.Remaining(&j.Tasks[1]))
	// Whoever had no right to a frame gives none.
	_, err := f.try(lease.Command{Record: &lease.Record{Report: lease.Report{Lease: "b", Task: lease.TaskID{Job: "j", Index: 1}, Peer: "peer-b"}, Frames: results(4), Machines: 3}})
	require.ErrorIs(t, err, lease.ErrInvalid)
	f.do(lease.Command{Release: &lease.Release{Report: lease.Report{Lease: "b", Task: lease.TaskID{Job: "j", Index: 1}, Peer: "peer-b"}, Reason: "stopped"}})
	f.do(lease.Command{Record: &lease.Record{Report: away, Frames: results(3, 4, 5, 6), Machines: 3}})
	require.Equal(t, lease.TaskRendered, j.Tasks[1].State)
	require.Equal(t, lease.TaskLeased, j.Tasks[2].State, "somebody renders it still")

	fixed := f.submit("k", "1-4")
	_, err = f.try(lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: fixed.ID}, Peer: "peer-b", Frames: 1}})
	require.ErrorIs(t, err, lease.ErrInvalid, "whoever gave the size means it")
}

func TestFramesAreRenderedAgain(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-4")
	for i := range int32(2) {
		f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", i, "a"), Frames: results(2*i+1, 2*i+2), Machines: 1}})
	}
	for i := range int32(4) {
		f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: i + 1, CID: results(i + 1)[0].CID, Peer: "ann", Delivered: true, Machines: 1}})
	}
	require.Equal(t, lease.JobDone, j.State)
	_, err := f.try(lease.Command{Retry: &lease.Retry{Job: "j"}})
	require.ErrorIs(t, err, lease.ErrState)
	_, err = f.try(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 4, Last: 5, Step: 1}}}})
	require.ErrorContains(t, err, "no frame 5")

	f.do(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 2, Last: 3, Step: 1}}}})
	require.Equal(t, lease.JobRunning, j.State)
	require.Equal(t, 2, j.Unrendered())
	require.True(t, j.Undelivered())
	require.Equal(t, "cid2", j.Frames[1].CID, "it stays until there is another")
	r := f.grant("j", 0, "b")
	require.Equal(t, []int32{2}, j.Remaining(&j.Tasks[0]))
	better := results(2)
	better[0].CID = "better"
	events := f.do(lease.Command{Complete: &lease.Complete{Report: r, Frames: better, Machines: 1}})
	require.Contains(t, types(events), lease.FrameLost, "whoever holds the old one may let it go")
	require.Equal(t, "better", j.Frames[1].CID)
	require.Equal(t, lease.TaskDone, j.Tasks[0].State)
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 1, "b"), Frames: results(3), Machines: 1}}) // the same to the byte
	require.Equal(t, lease.JobDone, j.State)
	require.True(t, j.Undelivered(), "the new ones are to be written")
}

// Who ran out of memory is not to blame where others have more.
func TestOutOfMemory(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	for range 5 {
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "small"), Reason: "out of memory", Kind: lease.FailMemory, Had: lease.Memory{RAM: 8 << 30}, Others: 1}})
	}
	require.Equal(t, lease.JobRunning, j.State)
	require.Equal(t, lease.Memory{RAM: 8 << 30}, j.Above)
	require.False(t, j.KeptOff("peer-small"))
	for range 3 {
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "big"), Reason: "out of memory", Kind: lease.FailMemory, Had: lease.Memory{RAM: 64 << 30}}})
	}
	require.Equal(t, lease.JobFailed, j.State, "there is none with more")
}

// Only who is asked after a frame was wanted again may replace it.
func TestOldLeasesDoNotUndoARetry(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	old := f.grant("j", 0, "a")
	f.do(lease.Command{Complete: &lease.Complete{Report: old, Frames: results(1, 2), Machines: 3}})
	f.do(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 2, Last: 2, Step: 1}}}})
	other := results(2)
	other[0].CID = "other"
	for _, late := range [][]lease.Result{results(2), other} {
		f.do(lease.Command{Record: &lease.Record{Report: old, Frames: late, Machines: 3}})
		require.Equal(t, lease.TaskQueued, j.Tasks[0].State)
		require.Equal(t, "cid2", j.Frames[1].CID)
	}
	f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 2, CID: "cid2", Peer: "ann", Delivered: true, Machines: 3}})
	require.Zero(t, j.Done(), "a copy of what is to be replaced makes nothing done")
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 0, "b"), Frames: other, Machines: 3}})
	require.Equal(t, "other", j.Frames[1].CID)
}

// A job whose last frame was kept after its end is done as soon as it is tried again.
func TestRetryOfWhatIsDone(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 0, "a"), Frames: results(1), Machines: 3}})
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "j"}})
	f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 1, CID: "cid1", Peer: "ann", Machines: 3}})
	f.do(lease.Command{Retry: &lease.Retry{Job: "j"}})
	require.Equal(t, lease.JobDone, j.State)
}

// The event of a task's end names who rendered it, not who tried it last.
func TestTheRendererIsNamed(t *testing.T) {
	f := newFarm(t)
	f.submit("j", "1")
	f.grant("j", 0, "a")
	quick := f.second("j", 0, "b")
	f.do(lease.Command{Complete: &lease.Complete{Report: quick, Frames: results(1), Machines: 3}})
	events := f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 1, CID: "cid1", Peer: "ann", Machines: 3}})
	for _, e := range events {
		if e.Type == lease.TaskEnded {
			require.Equal(t, quick.Lease, e.Lease)
		}
	}
	require.Contains(t, types(events), lease.TaskEnded)

	// Frames that came late are not the next one's to be praised for.
	j := f.submit("k", "1")
	late := f.grant("k", 0, "a")
	f.do(lease.Command{Expire: &lease.Expire{Lease: late.Lease, Task: late.Task}})
	next := f.grant("k", 0, "b")
	f.do(lease.Command{Record: &lease.Record{Report: late, Frames: results(1), Machines: 3}})
	f.do(lease.Command{Fail: &lease.Fail{Report: next, Reason: "crash", Kind: lease.FailCrash}})
	require.Equal(t, lease.TaskRendered, j.Tasks[0].State)
	require.Equal(t, lease.OutcomeFailed, j.Tasks[0].Attempts[1].Outcome)
	require.Equal(t, 1, f.Machine("peer-a").Finished)
}
