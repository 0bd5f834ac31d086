package coord

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// A member that talks without end is slowed down, and one that speaks of more
// attempts than there can be is cut off.
func TestTalkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		eve := d.join("eve", machine(0))
		began := time.Now()
		for range 3 * messages {
			require.NotEmpty(t, eve.says(Up{Unhold: &lease.Unhold{Job: "none", CID: aCID(1)}}).Code)
		}
		require.GreaterOrEqual(t, time.Since(began), 1900*time.Millisecond)
		began = time.Now()
		for range 2 * messages / heavy {
			require.NotNil(t, eve.says(Up{Part: &Part{}}).Parting)
		}
		require.GreaterOrEqual(t, time.Since(began), 1900*time.Millisecond)
		require.NoError(t, eve.conn.Send(Up{Renew: &Renew{Leases: make([]Running, maxRunning+1)}}))
		d.within(time.Second, "eve is cut off", func() bool { return !d.Knowledge().Members["eve"].Connected })
	})
}

// Reports that orders ask for are not slowed down, however many there are, and no more
// of them than there are orders.
func TestWorkIsNotSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		const frames = 3 * messages
		id := d.submit("ann", aCID(0), frames, func(s *lease.Spec) { s.Chunk = frames })
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		began := time.Now()
		for n := range int32(frames) {
			f := lease.Result{Frame: n + 1, CID: aCID(int(n) + 1), Name: fmt.Sprintf("%04d.png", n+1), Size: 1}
			require.Empty(t, bob.says(Up{Record: &lease.Record{Report: bob.orders()[0].Report, Frames: []lease.Result{f}}}).Code)
			synctest.Wait() // until ann is asked to keep it
			require.Empty(t, ann.says(Up{Hold: &lease.Hold{Job: id, Frame: n + 1, CID: aCID(int(n) + 1)}}).Code)
		}
		require.Less(t, time.Since(began), time.Second)
		began = time.Now()
		for range 3 * messages {
			ann.says(Up{Hold: &lease.Hold{Job: id, Frame: 1, CID: aCID(1)}})
		}
		require.Less(t, time.Since(began), time.Second, "she might have written them, too")
		for range 3 * messages {
			ann.says(Up{Hold: &lease.Hold{Job: id, Frame: 1, CID: aCID(1)}})
		}
		require.GreaterOrEqual(t, time.Since(began), 1900*time.Millisecond)
	})
}

// A slot is free as soon as its attempt is said to be completed, and stays so where
// that is told late or twice.
func TestSlotIsFreeWhenTheAttemptIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		bob := d.join("bob", machine(2))
		d.submit("ann", aCID(0), 5)
		d.within(time.Second, "both slots render", func() bool { return len(bob.orders()) == 2 })
		busy := func() int { return d.Knowledge().Members["bob"].Busy }
		o := bob.orders()[0]
		require.Empty(t, bob.says(Up{Complete: &lease.Complete{Report: o.Report, Frames: []lease.Result{{Frame: o.Frames[0], CID: aCID(1), Name: "0001.png", Size: 1}}}}).Code)
		d.within(time.Second, "it has another task", func() bool { return len(bob.orders()) == 3 })
		renew := &Renew{}
		for i, o := range bob.orders() {
			renew.Leases = append(renew.Leases, Running{Lease: o.Lease, Over: i == 0})
		}
		require.NoError(t, bob.conn.Send(Up{Renew: renew}))
		synctest.Wait()
		require.Equal(t, 2, busy())

		// Whatever becomes of the report: nothing renders there.
		o = bob.orders()[1]
		require.NotEmpty(t, bob.says(Up{Complete: &lease.Complete{Report: o.Report, Frames: []lease.Result{{Frame: 99, CID: aCID(1), Name: "0099.png", Size: 1}}}}).Code)
		d.within(time.Second, "it has another task", func() bool { return len(bob.orders()) == 4 })
		time.Sleep(LeaseTTL)
		require.Len(t, bob.orders(), 4)
		require.Equal(t, 2, busy())
	})
}

// What one side does not know costs nobody the stream: it is answered, where an answer is
// waited for, or passed over.
func TestUnknownMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann := d.join("ann", machine(1))
		ack := ann.says(Up{})
		require.Equal(t, CodeUpdate, ack.Code)
		require.Contains(t, ack.Reason, "update it there")
		require.NoError(t, ann.conn.Send(map[string]any{"dance": map[string]any{"to": "music"}}))
		require.NoError(t, ann.conn.Send(map[string]any{"renew": map[string]any{"leases": []any{}, "mood": "good"}, "dance": 1}))
		require.NotNil(t, ann.says(Up{Part: &Part{}}).Parting, "the stream goes on")
	})
}

// A member is told nothing, and is given no work, that its vizpeer does not know.
func TestOldMemberIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		old := machine(1)
		old.Level = 1 // knew no frames that are split
		bob := d.join("bob", old)
		split := d.submit("ann", aCID(0), 1, func(s *lease.Spec) {
			s.Chunk, s.Split = 0, lease.Split{By: lease.BySamples, Units: 100}
		})
		plain := d.submit("ann", aCID(0), 1)
		d.within(time.Second, "bob renders what he knows", func() bool { return len(bob.orders()) == 1 })
		require.Equal(t, plain, bob.orders()[0].Task.Job)

		l := d.leading.Load()
		l.mu.Lock()
		s := l.sessions["bob"]
		sent := len(s.out)
		s.send(Down{Grant: &Order{Spec: lease.Spec{Movie: "mp4"}}})
		require.Len(t, s.out, sent)
		l.mu.Unlock()

		bob.leave()
		young := machine(2)
		young.Level = 3
		bob = d.join("bob", young) // updated
		d.within(time.Minute, "bob renders the other too", func() bool {
			return slices.ContainsFunc(bob.orders(), func(o Order) bool { return o.Task.Job == split })
		})
	})
}
