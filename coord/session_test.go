package coord

import (
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
