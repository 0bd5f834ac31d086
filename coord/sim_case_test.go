package coord

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// submitAt submits a job at a coordinator.
func (f *simFarm) submitAt(m *simMachine, name string, change ...func(*lease.Spec)) (lease.JobID, error) {
	spec := lease.Spec{
		Name: name, Owner: "ann", Project: simCID("project ", name), Blend: "shot.blend", Frames: lease.Frames{{First: 1, Last: 4, Step: 1}},
		Chunk: 1, Tier: lease.Normal, Replicas: 2, Submitter: m.id,
	}
	require.NoError(f.t, m.put(spec.Project))
	for _, c := range change {
		c(&spec)
	}
	id, _, err := m.coord.Submit(f.t.Context(), lease.Submit{Spec: spec})
	return id, err
}

// A coordinator whose disk is full while the others go on has what it missed as soon as
// there is room, under the same leader.
func TestFollowerWithFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSimFarm(t, 1, 3, 1)
		leader, other := f.machines[0], f.machines[1]
		other.disk.setFull(true)
		for range 10 {
			_, err := f.submitAt(leader, "shot")
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		other.disk.setFull(false)
		f.within(20*time.Second, "it has caught up", f.level)
		require.True(t, leader.coord.Leading())
		require.Len(t, f.check.terms, 1)
	})
}

// A leader whose disk is full refuses nothing: it does not know how far a command had got,
// and another one leads.
func TestLeaderWithFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSimFarm(t, 1, 3, 1)
		leader := f.machines[0]
		leader.disk.setFull(true)
		_, err := f.submitAt(leader, "shot")
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		require.False(t, Refused(err))
		f.within(10*time.Second, "another one leads", func() bool { m := f.leader(); return m != nil && m != leader })
		var elsewhere ErrNotLeader
		_, err = f.submitAt(leader, "shot")
		require.True(t, errors.As(err, &elsewhere) || errors.Is(err, ErrOutcomeUnknown), err)
		_, err = f.submitAt(f.leader(), "shot")
		require.NoError(t, err)
	})
}
