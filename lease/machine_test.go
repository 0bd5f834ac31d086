package lease_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// drain tells that p is to be drained, or not any more.
func (f *farm) drain(p authz.PeerID, on bool) []lease.Event {
	f.t.Helper()
	return f.do(lease.Command{Drain: &lease.Drain{Peer: p, On: on, Reason: "drained by ann"}})
}

// failing has a machine fail a task of a job until it is kept off that job. Another
// machine could try, so the job goes on.
func (f *farm) failing(j lease.JobID, p string) {
	f.t.Helper()
	for range lease.MaxTries {
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant(j, 0, p), Reason: "Blender crashed", Others: 1}})
	}
}

func TestDrain(t *testing.T) {
	f := newFarm(t)
	j := f.small("j", 2)
	r := f.grant("j", 0, "bob")
	events := f.drain("peer-bob", true)
	require.Equal(t, []lease.Event{{Type: lease.PeerDrained, Task: -1, Peer: "peer-bob", State: "draining", Reason: "drained by ann"}}, events)
	require.Equal(t, "drained by ann", f.Machine("peer-bob").Drained)
	require.Empty(t, f.do(lease.Command{Drain: &lease.Drain{Peer: "peer-bob", On: true, Reason: "again"}}), "it is as wanted already")

	_, err := f.try(lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: "j", Index: 1}, Peer: "peer-bob"}})
	require.ErrorIs(t, err, lease.ErrDrained)
	require.ErrorContains(t, err, "drained by ann")
	f.do(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: results(1)}})
	require.Equal(t, 1, j.Count(lease.TaskDone), "what was under way counts")
	require.Equal(t, 1, f.Machine("peer-bob").Finished)

	require.Equal(t, []lease.Event{{Type: lease.PeerUndrained, Task: -1, Peer: "peer-bob"}}, f.drain("peer-bob", false))
	require.Empty(t, f.drain("peer-bob", false))
	f.render(j, 1)
	require.Equal(t, lease.JobDone, j.State)
	f.refuse(lease.ErrInvalid, lease.Command{Drain: &lease.Drain{On: true}})

	f.do(lease.Command{Drain: &lease.Drain{Peer: "cyd", On: true, Reason: strings.Repeat("é", 1000)}})
	require.LessOrEqual(t, len(f.Machine("cyd").Drained), 1000)
	f.do(lease.Command{Lose: &lease.Lose{Peer: "cyd"}})
	require.NotEmpty(t, f.Machine("cyd").Drained, "it may come back")
	f.do(lease.Command{Lose: &lease.Lose{Peer: "cyd", Removed: true}})
	require.Equal(t, lease.Machine{}, f.Machine("cyd"))
	require.Equal(t, []authz.PeerID{"peer-bob"}, f.Machines())
}

// A machine that is kept off three jobs in a row takes no more.
func TestThreeJobsInARow(t *testing.T) {
	f := newFarm(t)
	for _, id := range []lease.JobID{"a", "b", "c", "d", "e", "f"} {
		f.small(id, 2)
	}
	f.failing("a", "eve")
	f.failing("b", "eve")
	require.Equal(t, []lease.JobID{"a", "b"}, f.Machine("peer-eve").Failed)
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("c", 1, "eve"), Machines: 1, Frames: results(2)}})
	require.Empty(t, f.Machine("peer-eve").Failed, "they are not in a row")
	f.failing("c", "eve")
	f.failing("d", "eve")
	require.Empty(t, f.Machine("peer-eve").Drained)
	// What it makes beside is nothing against it, or for it, before it ends.
	beside := []lease.Report{f.grant("f", 0, "eve"), f.grant("f", 1, "eve")}
	f.failing("e", "eve")
	why := "it failed 3 jobs in a row: c, d, e; the last time because: Blender crashed"
	require.Equal(t, why, f.Machine("peer-eve").Drained)
	f.refuse(lease.ErrDrained, lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: "a", Index: 1}, Peer: "peer-eve"}})
	for _, r := range beside {
		f.do(lease.Command{Fail: &lease.Fail{Report: r, Reason: "another", Others: 1}})
	}
	require.Equal(t, why, f.Machine("peer-eve").Drained)

	f.drain("peer-eve", false)
	require.Empty(t, f.Machine("peer-eve").Failed, "it begins anew")
	f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("f", 0, "eve"), Reason: "one more", Others: 1}})
	require.Equal(t, []lease.JobID{"f"}, f.Machine("peer-eve").Failed)
}

// Jobs that fail everywhere are their own fault and drain nobody.
func TestBrokenJobsDrainNobody(t *testing.T) {
	f := newFarm(t)
	for _, id := range []lease.JobID{"a", "b", "c", "d"} {
		f.small(id, 2)
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant(id, 1, "bob"), Reason: "no", Others: 1}})
		for range lease.MaxTries {
			f.do(lease.Command{Fail: &lease.Fail{Report: f.grant(id, 0, "eve"), Reason: "no", Others: 1, Kind: lease.FailMachine}})
		}
	}
	require.Equal(t, lease.Machine{}, f.Machine("peer-eve"))
}

// A job that is tried again counts once.
func TestFailedJobCountsOnce(t *testing.T) {
	f := newFarm(t)
	f.small("a", 1)
	for range 3 {
		f.failing("a", "eve")
		f.do(lease.Command{Cancel: &lease.Cancel{Job: "a"}})
		f.do(lease.Command{Retry: &lease.Retry{Job: "a"}})
	}
	require.Equal(t, []lease.JobID{"a"}, f.Machine("peer-eve").Failed)
}

// What earlier programs stored of machines is read, and what is stored now is read
// as it was.
func TestMachinesAreRemembered(t *testing.T) {
	s, err := lease.Restore(strings.NewReader(`{"version":2,"seq":7,"jobs":0,"finished":{"ann":3,"bob":1},"stores":{"ann":"a1"}}`))
	require.NoError(t, err)
	require.Equal(t, lease.Machine{Finished: 3, Store: "a1"}, s.Machine("ann"))
	require.Equal(t, lease.Machine{Finished: 1}, s.Machine("bob"))

	f := newFarm(t)
	f.State = s
	f.small("a", 1)
	f.failing("a", "eve")
	f.drain("cyd", true)
	f.do(lease.Command{Store: &lease.Store{Peer: "bob", ID: "b1"}})
	frozen := f.Freeze()
	f.drain("bob", true)
	f.do(lease.Command{Lose: &lease.Lose{Peer: "ann", Removed: true}})
	again, err := lease.Restore(bytes.NewReader(written(t, frozen)))
	require.NoError(t, err)
	for p, want := range map[authz.PeerID]lease.Machine{
		"ann": {Finished: 3, Store: "a1"}, "bob": {Finished: 1, Store: "b1"}, "cyd": {Drained: "drained by ann"}, "peer-eve": {Failed: []lease.JobID{"a"}}, "zoe": {},
	} {
		require.Equal(t, want, again.Machine(p), p)
	}
}
