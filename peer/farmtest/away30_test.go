package farmtest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer"
	"vizpeer/peer/httpapi"
)

const day = 24 * time.Hour

// pass lets days pass. The founder sleeps through most of them, as a machine that is
// switched off at night does: a month of its heartbeats would take a while.
func (f *Farm) pass(days int) {
	founder := f.Peers[0]
	for range days {
		founder.Stop()
		time.Sleep(day - 3*time.Minute)
		founder.Start()
		f.Within(time.Minute, "the founder leads again", founder.Leads)
		time.Sleep(3 * time.Minute)
	}
}

// A machine that stays away for 30 days is no member any more; one that comes back
// before that is one, by itself; and one that is there stays, however long.
func TestAMemberExpires(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a month of a farm takes long under the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 3)
		founder, late, gone, other := f.Peers[0], f.Peers[1], f.Peers[2], f.Peers[3]
		time.Sleep(2 * time.Minute) // all are noted
		other.Stop()
		late.Stop()
		gone.Stop()
		isMember := func(m *Member) bool {
			peers, err := founder.Queue().Peers(t.Context(), Admin)
			require.NoError(t, err)
			return slices.ContainsFunc(peers, func(p httpapi.Peer) bool { return p.ID == m.ID })
		}
		f.pass(29)
		late.Start()
		f.Within(time.Minute, "it is back by itself", func() bool { return f.online() == 2 })
		time.Sleep(2 * time.Minute)
		late.Stop()
		require.True(t, isMember(gone))
		f.pass(2)
		require.True(t, isMember(gone), "nobody else is there who could say that it is so late")
		other.Start()
		f.Online(1)
		time.Sleep(3 * time.Minute)
		require.False(t, isMember(gone))
		require.True(t, isMember(late), "it was seen two days ago")
		records, err := founder.Queue().Audit(t.Context(), Admin, httpapi.AuditQuery{Action: "expire-peers"})
		require.NoError(t, err)
		require.Len(t, records.Records, 1)
		require.Equal(t, string(gone.ID), records.Records[0].Object)
		require.True(t, isMember(founder))

		gone.Start()
		err = gone.Ended(time.Minute)
		require.ErrorIs(t, err, peer.ErrRemoved)
		require.ErrorContains(t, err, "it was away for 30 days")
	})
}

// The time that the whole farm is off, such as a summer, is nobody's fault.
func TestAFarmThatIsOffExpiresNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		time.Sleep(2 * time.Minute)
		for _, m := range f.Peers {
			m.Stop()
		}
		time.Sleep(60 * day)
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		time.Sleep(5 * time.Minute)
		f.Peers[1].Start()
		f.Online(2)
	})
}
