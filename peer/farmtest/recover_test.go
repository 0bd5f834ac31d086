package farmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
)

// recovery is what the farm's recovery file holds.
func (f *Farm) recovery() peer.Recovering {
	file, err := os.ReadFile(filepath.Join(f.Peers[0].cfg.DataDir, peer.RecoveryFile))
	require.NoError(f.t, err)
	r, err := peer.ReadRecovery(file)
	require.NoError(f.t, err)
	return r
}

// done counts a job's frames that are done.
func (f *Farm) done(id lease.JobID) (n int) {
	for _, frame := range f.Job(id).Frames {
		if frame.State == lease.TaskDone {
			n++
		}
	}
	return n
}

// holds demands that the leader's audit holds.
func (f *Farm) auditHolds() {
	f.t.Helper()
	v, err := f.leader().Queue().VerifyAudit(f.t.Context(), Admin, func(int64, int64) {})
	require.NoError(f.t, err)
	require.True(f.t, v.OK, "%+v", v.Fault)
}

// The only voter is gone for good, in the middle of a job: a standby takes the farm over,
// and the job goes on and ends. The old leader, back from the dead, is a standby of the
// new epoch, also after a restart.
func TestRecoverOnAStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 2, 2)
		founder, heir, worker := f.Peers[0], f.Peers[1], f.Peers[2]
		f.Ready(2)
		job := f.Submit(worker, "1-60")
		f.Within(time.Minute, "some frames are done", func() bool { return f.done(job) >= 10 })
		_, err := peer.Recover(heir.cfg, f.recovery())
		require.ErrorIs(t, err, peer.ErrRunning)
		founder.Crash()
		time.Sleep(time.Minute)
		require.False(t, heir.Leads())
		heir.Stop()
		out, err := peer.Recover(heir.cfg, f.recovery())
		require.NoError(t, err)
		require.EqualValues(t, 2, out.Epoch)
		require.Equal(t, 1, out.Jobs)
		require.Equal(t, []authz.PeerID{founder.ID}, out.Voters)
		_, err = peer.Recover(heir.cfg, f.recovery())
		require.ErrorIs(t, err, peer.ErrNothingToRecover)
		// Cut off right behind the queue, the rest comes by itself.
		require.NoError(t, os.Remove(filepath.Join(heir.cfg.DataDir, "charter.json")))
		heir.Start()
		require.Same(t, heir, f.Led(10*time.Second))
		f.Online(3)
		f.Await(job, lease.JobDone, 5*time.Minute)
		for frame := int32(1); frame <= 60; frame++ {
			require.LessOrEqual(t, f.Peers[2].Blender.Rendered()[frame]+f.Peers[3].Blender.Rendered()[frame], 1, "frame %d", frame)
		}
		f.auditHolds()

		founder.Start()
		f.Within(time.Minute, "the founder follows", func() bool { return founder.Epoch() == 2 })
		f.Ready(2)
		require.False(t, founder.Leads())
		require.Same(t, heir, f.Led(0))
		require.DirExists(t, filepath.Join(founder.cfg.DataDir, "queue.epoch-1"))
		founder.Stop()
		founder.Start()
		f.Ready(2)
		require.False(t, founder.Leads())
		_, err = peer.Recover(heir.cfg, f.recovery())
		require.ErrorIs(t, err, peer.ErrRunning)

		// It is a coordinator like any other: the queue may come back to it.
		heir.Stop()
		require.Same(t, founder, f.Led(10*time.Second))
		f.Await(f.Submit(worker, "1-5"), lease.JobDone, time.Minute)
	})
}

// The old leader is not dead but cut off, with a worker and an artist, and goes on; the
// rest of the farm goes on in a new epoch. When the cable is back there is one farm.
func TestOldLeaderIsCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 2)
		founder, heir, third, here, there := f.Peers[0], f.Peers[1], f.Peers[2], f.Peers[3], f.Peers[4]
		for _, m := range f.Peers[:3] { // nobody else votes
			if m != founder {
				_, err := founder.Queue().Coordinate(t.Context(), Admin, m.ID, "demote")
				require.NoError(t, err)
			}
		}
		f.Ready(3)
		job := f.Submit(here, "1-40")
		f.Within(time.Minute, "some frames are done", func() bool { return f.done(job) >= 5 })
		for _, m := range []*Member{heir, third, here} {
			f.Sever(m, founder, there)
		}
		time.Sleep(30 * time.Second)
		alone := f.Submit(there, "1-3")
		f.Await(alone, lease.JobDone, time.Minute)
		heir.Stop()
		_, err := peer.Recover(heir.cfg, f.recovery())
		require.NoError(t, err)
		heir.Start()
		f.Within(10*time.Second, "the heir leads", heir.Leads)
		f.Within(time.Minute, "the job ends on this side", func() bool {
			j, err := heir.Queue().Job(t.Context(), Operator, job, "")
			return err == nil && j.State == lease.JobDone
		})
		require.True(t, founder.Leads())
		f.Heal()
		f.Within(2*time.Minute, "the old leader leads no more", func() bool { return !founder.Leads() })
		f.Within(2*time.Minute, "all are in one farm", func() bool { return f.online() == 5 })
		for _, m := range f.Peers {
			f.Within(time.Minute, m.Name+" follows", func() bool { return m.Epoch() == 2 })
		}
		_, err = heir.Queue().Job(t.Context(), Operator, alone, "")
		require.Error(t, err, "what only the old leader had is not the farm's any more")
		f.Await(f.Submit(there, "1-5"), lease.JobDone, time.Minute)
		f.auditHolds()
	})
}

// A machine that was switched off through it all, and one that comes with the old epoch's
// charter in its hand, follow the new one.
func TestAwayWhileTheFarmWasRecovered(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 2, 2)
		founder, heir, away := f.Peers[0], f.Peers[1], f.Peers[2]
		f.Ready(2)
		away.Stop()
		founder.Crash()
		heir.Stop()
		_, err := peer.Recover(heir.cfg, f.recovery())
		require.NoError(t, err)
		heir.Start()
		f.Within(10*time.Second, "the heir leads", heir.Leads)
		f.Online(2)
		heir.Stop()
		f.Peers[3].Stop()
		// The old leader and the machine that was away find each other first: neither has
		// heard of anything.
		founder.Start()
		away.Start()
		require.Same(t, founder, f.Led(10*time.Second))
		f.Online(2)
		f.Within(time.Minute, "it follows the old leader", func() bool { return founder.Leads() && away.Local().Status(t.Context()).Leader == founder.ID })
		heir.Start()
		f.Peers[3].Start()
		f.Within(time.Minute, "it follows the new one", func() bool { return away.Local().Status(t.Context()).Leader == heir.ID })
		f.Online(4)
		require.False(t, founder.Leads())
	})
}

// All coordinators are lost. A machine that the farm has never seen brings it back with a
// backup from the middle of a job: the workers follow it, and what they hold is there.
func TestRestoreOnANewMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 2, 3)
		worker := f.Peers[2]
		f.Ready(2)
		job := f.Submit(worker, "1-60")
		f.Within(time.Minute, "some frames are done", func() bool { return f.done(job) >= 20 })
		var backup bytes.Buffer
		_, err := f.leader().Queue().Backup(t.Context(), Admin, &backup)
		require.NoError(t, err)
		f.Within(time.Minute, "some more are", func() bool { return f.done(job) >= 25 })
		recovery := f.recovery()
		for _, m := range f.Peers[:2] {
			m.Crash()
		}
		time.Sleep(time.Minute)

		spare := f.Newcomer("spare")
		recovery.Name = spare.Name
		out, err := peer.Restore(spare.cfg, bytes.NewReader(backup.Bytes()), recovery)
		require.NoError(t, err)
		require.True(t, out.New)
		require.EqualValues(t, 2, out.Epoch)
		spare.ID = out.Peer
		_, err = peer.Restore(spare.cfg, bytes.NewReader(backup.Bytes()), recovery)
		require.ErrorIs(t, err, peer.ErrEpoch, "it is in the next epoch by now")
		spare.Start()
		require.Same(t, spare, f.Led(10*time.Second))
		f.Within(2*time.Minute, "the workers are back", func() bool { return f.online() == 4 })
		j := f.Await(job, lease.JobDone, 5*time.Minute)
		require.Len(t, j.Frames, 60)
		twice := 0
		for frame := int32(1); frame <= 60; frame++ {
			n := 0
			for _, m := range f.Peers {
				n += m.Blender.Rendered()[frame]
			}
			twice += n - 1
		}
		t.Logf("%d of 60 frames were rendered again", twice)
		require.Less(t, twice, 40, "frames that were done when the backup was made, and are held by workers, stay done")
		f.auditHolds()

		// A coordinator of the old epoch that was not lost after all is kept out.
		f.Peers[0].Start()
		f.Online(5)
		require.Same(t, spare, f.Led(0))
		require.False(t, f.Peers[0].Leads())
	})
}

// A worker, too, can bring the farm back.
func TestRestoreOnAWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2)
		job := f.Submit(f.Peers[1], "1-30")
		var backup bytes.Buffer
		_, err := f.leader().Queue().Backup(t.Context(), Admin, &backup)
		require.NoError(t, err)
		recovery, heir := f.recovery(), f.Peers[1]
		f.Peers[0].Crash()
		_, err = peer.Restore(heir.cfg, bytes.NewReader(backup.Bytes()), recovery)
		require.ErrorIs(t, err, peer.ErrRunning)
		heir.Stop()
		_, err = peer.Restore(heir.cfg, bytes.NewReader(backup.Bytes()[:backup.Len()/2]), recovery)
		require.ErrorContains(t, err, "cannot be used")
		out, err := peer.Restore(heir.cfg, bytes.NewReader(backup.Bytes()), recovery)
		require.NoError(t, err)
		require.False(t, out.New)
		require.Equal(t, heir.ID, out.Peer)
		heir.Start()
		require.Same(t, heir, f.Led(10*time.Second))
		f.Online(2)
		f.Await(job, lease.JobDone, 5*time.Minute)
	})
}

// Somebody recovers the farm on two machines. All follow the same one of them, which is
// the one farm, and the other one is its standby.
func TestRecoveredTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 1)
		one, other := f.Peers[1], f.Peers[2]
		f.Ready(3)
		f.Peers[0].Crash()
		for _, m := range f.Peers[1:3] {
			m.Stop()
			_, err := peer.Recover(m.cfg, f.recovery())
			require.NoError(t, err)
			m.Start()
		}
		if other.ID > one.ID {
			one, other = other, one
		}
		f.Within(time.Minute, "one leads", func() bool { return one.Leads() && !other.Leads() })
		f.Online(3)
		f.Ready(2)
		require.DirExists(t, filepath.Join(other.cfg.DataDir, "queue.epoch-2"))
		f.Await(f.Submit(f.Peers[3], "1-5"), lease.JobDone, time.Minute)
		f.auditHolds()
	})
}
