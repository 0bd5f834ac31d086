package farmtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// However long the coordinator was away, the members are with it moments after it
// is back, though it does not know where they are.
func TestMembersComeBackSoonAfterALongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 3)
		founder := f.Peers[0]
		founder.Crash()
		// Long enough, in simulated time, for dials in vain to be spaced by minutes and
		// to have been a hundred.
		time.Sleep(22 * time.Minute)
		remembers(t, founder)
		founder.Start()
		f.Within(10*time.Second, "the founder leads again", founder.Leads)
		f.Within(15*time.Second, "all are back", func() bool { return f.online() == 4 })
	})
}

// remembers has a machine that does not run know where these were last, and nobody
// else.
func remembers(t *testing.T, m *Member, others ...*Member) {
	known := make(map[authz.PeerID][]string)
	for _, o := range others {
		for _, a := range o.Addrs() {
			known[o.ID] = append(known[o.ID], strings.TrimSuffix(a, "/p2p/"+string(o.ID)))
		}
	}
	b, err := json.Marshal(known)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(m.cfg.DataDir, "addrs.json"), b, 0o600))
}

// A coordinator that comes back at another address goes to the members.
func TestCoordinatorMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2)
		founder := f.Peers[0]
		founder.Crash()
		time.Sleep(2 * time.Minute)
		founder.Move()
		founder.Start()
		f.Within(10*time.Second, "the founder leads again", founder.Leads)
		f.Within(15*time.Second, "all are back", func() bool { return f.online() == 3 })
	})
}

// A machine that has moved as well, so that neither it nor the coordinator knows
// where the other is, hears it from a member that both know.
func TestCoordinatorAndMemberMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2)
		founder, stays, moves := f.Peers[0], f.Peers[1], f.Peers[2]
		moves.Stop()
		remembers(t, moves, founder, stays)
		founder.Crash()
		founder.Move()
		founder.Start()
		f.Within(30*time.Second, "the other is back", func() bool { return founder.Leads() && f.online() == 2 })
		moves.Move()
		moves.Start()
		f.Within(30*time.Second, "all are back", func() bool { return f.online() == 3 })
	})
}

// The log says once that the leader is lost, and once that it is back, in the words
// that people know it by.
func TestLeaderLostIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		founder, worker := f.Peers[0], f.Peers[1]
		worker.Stop()
		var log bytes.Buffer // read when the peer has ended
		worker.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		led := func() bool { return worker.Local().Status(t.Context()).Leader != "" }
		f.Online(1)
		worker.Start()
		f.Online(2)
		f.Within(10*time.Second, "the worker has a leader", led)
		founder.Crash()
		time.Sleep(2 * time.Minute) // of tries
		require.False(t, led())
		founder.Start()
		f.Within(30*time.Second, "the worker has a leader again", led)
		worker.Stop()
		name := fmt.Sprintf("leader=%q", "founder ("+founder.ID.Short()+")")
		require.Equal(t, 1, strings.Count(log.String(), `level=WARN msg="the leader is out of reach, trying again" `+name), log.String())
		require.Equal(t, 2, strings.Count(log.String(), `level=INFO msg="joined the queue" `+name), log.String())
		require.NotContains(t, log.String(), "peer.ID")
	})
}
