package farmtest

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// Two machines that join with coordinators' tickets are all it takes for the queue to
// survive any one of the three.
func TestAnyCoordinatorMayDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 2)
		f.Vote(3)
		for i := range 3 {
			job := f.Submit(f.Peers[3], "1-30")
			f.Within(time.Minute, "it is being rendered", func() bool { return f.Job(job).Tasks.Leased > 0 })
			dead := f.Led(0)
			dead.Crash()
			f.Led(10 * time.Second)
			f.Await(job, lease.JobDone, 5*time.Minute)
			dead.Start()
			f.Online(5)
			require.Len(t, f.Led(0).voters(), 3, "after round %d", i+1)
		}
	})
}

// A coordinator that is stopped gives the queue to another one: to a standby, too, where it
// alone votes.
func TestStoppedLeaderHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 2, 1)
		founder, standby := f.Peers[0], f.Peers[1]
		f.Ready(2)
		job := f.Submit(f.Peers[2], "1-10")
		founder.Stop()
		require.Same(t, standby, f.Led(5*time.Second))
		require.Len(t, standby.voters(), 1)
		f.Await(job, lease.JobDone, 5*time.Minute)

		founder.Start()
		f.Ready(2)
		standby.Stop()
		require.Same(t, founder, f.Led(5*time.Second))
		require.Equal(t, lease.JobDone, f.Job(job).State)
	})
}

// A ticket admits a machine also when the coordinator that made it is gone.
func TestTicketOutlivesItsMaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 0)
		f.Vote(3)
		maker := f.Led(0)
		ticket, err := maker.Queue().Invite(t.Context(), Admin, httpapi.Invitation{})
		require.NoError(t, err)
		maker.Crash()
		f.Led(10 * time.Second)
		m := f.Newcomer("late")
		_, err = m.Join(ticket.Ticket)
		require.NoError(t, err)
		m.Start()
		f.Online(3)
	})
}
