package authz

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A farm's next epoch: who is named holds the queue, by the farm key's word alone.
func TestSucceed(t *testing.T) {
	standby, stranger := PeerID("standby"), PeerID("stranger")
	r, g := founded(t)
	farm, at := g.farm, noon.Add(time.Hour)
	_, err := join(t, r, g.ticket, standby, "rack")
	require.NoError(t, err)
	before := snapshotOf(t, r)

	other := newFarm(t)
	forged := farm.SignCharter(standby, 2)
	forged.Coordinator = stranger
	for _, bad := range []struct {
		why string
		s   Succession
		err error
	}{
		{"another farm's key", Succession{Charter: other.SignCharter(standby, 2)}, ErrCharter},
		{"another machine than the one signed", Succession{Charter: forged}, ErrCharter},
		{"the epoch that is over", Succession{Charter: Charter{Farm: farm.Public(), Coordinator: r.Charter().Coordinator, Epoch: 1, Signature: r.Charter().Signature}}, ErrEpoch},
		{"no epoch", Succession{Charter: farm.SignCharter(standby, 0)}, ErrCharter},
	} {
		require.ErrorIs(t, r.Succeed(at, bad.s), bad.err, bad.why)
	}
	require.ErrorContains(t, r.Succeed(at, Succession{Charter: farm.SignCharter(stranger, 2), Name: "new"}), "brings an API key")
	require.Equal(t, before, snapshotOf(t, r), "what is refused changes nothing")
	require.ErrorIs(t, NewRoster().Succeed(at, Succession{Charter: farm.SignCharter(standby, 2)}), ErrNotFounded)

	old := r.View()
	require.NoError(t, r.Succeed(at, Succession{Charter: farm.SignCharter(standby, 2)}))
	m, _ := r.Member(standby)
	require.True(t, m.Coordinator)
	require.Equal(t, Node, m.Role, "it is what it was, and holds the queue beside")
	require.True(t, r.View().Replaces(old))
	require.False(t, old.Replaces(r.View()))

	_, key, err := NewKey(rand.Reader, "new", Admin, at)
	require.NoError(t, err)
	require.NoError(t, r.Succeed(at, Succession{Charter: farm.SignCharter(stranger, 3), Name: "new", Worker: true, KeyID: key.ID, KeyHash: key.Hash}))
	m, _ = r.Member(stranger)
	require.True(t, m.Coordinator && m.Worker)
	require.Equal(t, Admin, m.Role)
	again, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, snapshotOf(t, r), snapshotOf(t, again))
	require.ErrorIs(t, r.Succeed(at, Succession{Charter: farm.SignCharter(standby, 2)}), ErrEpoch, "an old charter is of no use to whom it names")
}

// Of any two charters, all machines follow the same one.
func TestCharterOrder(t *testing.T) {
	farm := newFarm(t)
	all := []Charter{farm.SignCharter("12D3KooWa", 1), farm.SignCharter("12D3KooWa", 2), farm.SignCharter("12D3KooWb", 2), farm.SignCharter("12D3KooWa", 10)}
	for i, a := range all {
		require.True(t, a.Supersedes(Charter{}))
		for j, b := range all {
			require.Equal(t, i > j, a.Supersedes(b), "%d and %d", i, j)
		}
	}
}
