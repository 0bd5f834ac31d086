package lease_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func TestFailuresHaveKinds(t *testing.T) {
	for said, kept := range map[lease.FailKind]lease.FailKind{
		lease.FailCrash: lease.FailCrash, lease.FailMemory: lease.FailMemory, lease.FailTimeout: lease.FailTimeout, lease.FailImage: lease.FailImage,
		"": "", "of a newer version": lease.FailError,
	} {
		f := newFarm(t)
		j := f.submit("j", "1")
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "bob"), Reason: "no", Kind: said}})
		require.Equal(t, kept, j.Tasks[0].Attempts[0].Kind)
		require.Equal(t, 1, j.Tasks[0].Fails, "the try counts")
	}
	f := newFarm(t)
	j := f.submit("j", "1")
	f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "bob"), Reason: "no Blender", Kind: lease.FailMachine}})
	require.Equal(t, lease.FailMachine, j.Tasks[0].Attempts[0].Kind)
	require.Zero(t, j.Tasks[0].Fails, "the task is not to blame")
}

// An attempt that failed, but whose frames come late, has not failed.
func TestLateFramesUndoAFailure(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	r := f.grant("j", 0, "bob")
	f.do(lease.Command{Fail: &lease.Fail{Report: r, Reason: "crash", Kind: lease.FailCrash}})
	f.do(lease.Command{Record: &lease.Record{Report: r, Frames: results(1), Machines: 2}})
	a := j.Tasks[0].Attempts[0]
	require.Equal(t, lease.OutcomeRendered, a.Outcome)
	require.Empty(t, a.Kind)
}
