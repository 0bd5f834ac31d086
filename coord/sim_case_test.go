package coord

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
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

// hands makes a farm of three coordinators that render nothing and two machines that do,
// each frame taking as long as it says.
func hands(t *testing.T, a, b time.Duration) (f *simFarm, first, second *simMachine) {
	f = newSimFarm(t, 1, 3, 2)
	for _, m := range f.coordinators() {
		m.slots = 0
		m.worker.wake()
	}
	first, second = f.machines[3], f.machines[4]
	first.perFrame, second.perFrame = a, b
	for _, m := range f.machines { // they say so when they come
		m.kill(true)
	}
	for _, m := range f.machines {
		m.start()
	}
	f.within(time.Minute, "all are back", func() bool { m := f.leader(); return m != nil && f.connected(m) == len(f.machines) })
	return f, first, second
}

// frames says whose results a job's frames are.
func (f *simFarm) frames(id lease.JobID) (by []authz.PeerID) {
	f.leader().coord.Read(func(q *lease.State, _ *authz.Roster) {
		j, _ := q.Job(id)
		for _, frame := range j.Frames {
			if frame == nil {
				by = append(by, "")
			} else {
				by = append(by, frame.Peer)
			}
		}
	})
	return by
}

// Where a farm is cut in two the side with most coordinators goes on. The leader on the
// other side steps down and says yes to nobody; a machine there finishes what it renders,
// and that counts when the farm is one again.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, cut, other := hands(t, 40*time.Second, 200*time.Second)
		old := f.leader()
		id, err := f.submitAt(old, "shot", func(s *lease.Spec) { s.Frames, s.Replicas = lease.Frames{{First: 1, Last: 2, Step: 1}}, 1 })
		require.NoError(t, err)
		f.within(10*time.Second, "both render", func() bool { return f.check.count(&f.check.grants) == 2 })
		frame := func(m *simMachine) int { // which of the two it has
			m.worker.mu.Lock()
			defer m.worker.mu.Unlock()
			for _, a := range m.worker.attempts {
				return int(a.order.Frames[0])
			}
			return 0
		}
		mine, theirs := frame(cut), frame(other)
		require.Equal(t, 3, mine+theirs)

		began := time.Now()
		f.part(map[*simMachine]bool{old: true, cut: true}, true)
		f.within(10*time.Second, "the cut-off leader has stepped down", func() bool { return !old.coord.Leading() })
		require.Less(t, time.Since(began), 2*time.Second)
		f.within(10*time.Second, "the others go on", func() bool { m := f.leader(); return m != nil && m != old })
		require.Less(t, time.Since(began), 10*time.Second)
		_, err = f.submitAt(old, "there")
		require.False(t, Refused(err))
		require.Error(t, err)
		next, err := f.submitAt(f.leader(), "here", func(s *lease.Spec) { s.Frames, s.Replicas = lease.Frames{{First: 1, Last: 1, Step: 1}}, 1 })
		require.NoError(t, err)
		f.within(20*time.Second, "its lease has run out", func() bool { return f.check.count(&f.check.expired) == 1 })
		time.Sleep(40 * time.Second)
		require.Len(t, cut.orphans(func(lease.ID) bool { return false }), 1, "it has finished, and keeps what it has")
		require.Equal(t, []authz.PeerID{"", ""}, f.frames(id))
		require.Equal(t, 2, f.check.count(&f.check.grants))

		f.healAll()
		f.within(10*time.Second, "its result counts", func() bool { return f.frames(id)[mine-1] == cut.id })
		f.within(5*time.Minute, "all is rendered", func() bool { return f.leader().coord.Numbers().OpenJobs == 0 })
		require.Equal(t, other.id, f.frames(id)[theirs-1])
		require.Equal(t, 3, f.check.count(&f.check.grants), "and nothing twice")
		require.NotEmpty(t, f.frames(next)[0])
		f.within(10*time.Second, "all know the same", f.level)
		f.check.states()
		require.Empty(t, f.check.faults)
	})
}

// Whoever leads may be killed again and again: no lease runs out, and nothing is rendered
// twice.
func TestLeadersAreKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := hands(t, 90*time.Second, 70*time.Second)
		terms := len(f.check.terms)
		_, err := f.submitAt(f.leader(), "shot")
		require.NoError(t, err)
		for range 6 {
			f.within(20*time.Second, "somebody leads", func() bool { return f.leader() != nil })
			time.Sleep(5 * time.Second)
			m := f.leader()
			m.kill(f.dice.IntN(2) == 0)
			time.Sleep(10 * time.Second)
			m.start()
		}
		f.within(10*time.Minute, "the job has ended", func() bool { m := f.leader(); return m != nil && m.coord.Numbers().OpenJobs == 0 })
		require.GreaterOrEqual(t, len(f.check.terms), terms+6)
		require.Zero(t, f.check.count(&f.check.expired))
		require.Equal(t, 4, f.check.count(&f.check.grants))
		require.Empty(t, f.check.faults)
	})
}
