package peer_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// without is the roster after a member was removed.
func without(t *testing.T, v *authz.View, id authz.PeerID) *authz.View {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(b, &doc))
	doc["version"] = v.Version() + 1
	doc["members"] = slices.DeleteFunc(doc["members"].([]any), func(m any) bool { return m.(map[string]any)["id"] == string(id) })
	b, err = json.Marshal(doc)
	require.NoError(t, err)
	out, err := authz.ParseView(b, v.Farm())
	require.NoError(t, err)
	return out
}

// Who is no member any more is cut off in mid-transfer, and does not come back.
func TestRevokedInMidTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		holder, reader := f.Peers[1], f.Peers[0]
		admin := authz.Principal{User: "admin", Role: authz.Admin}
		const size = 32 << 20
		project := f.Upload(holder, 1, size)
		var revoke sync.Once
		var got int64
		_, err := reader.Local().FetchBlob(t.Context(), admin, project, func(done, total int64) {
			got = done
			if done > size/8 {
				revoke.Do(func() { holder.Revise(without(t, holder.Roster(), reader.ID)) })
			}
		})
		require.Error(t, err)
		require.Greater(t, got, int64(size/8))
		require.Less(t, got, int64(size), "it was cut off on the way")
		time.Sleep(time.Minute)
		_, err = reader.Local().FetchBlob(t.Context(), admin, project, nil)
		require.Error(t, err)
	})
}

// revocable is how soon every machine must refuse one that was removed.
const revocable = 5 * time.Second

// A machine that was removed is cut off everywhere within seconds, also by one that was
// itself cut off from the leader meanwhile; what it had is rendered by others; and it
// stops by itself and says why.
func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 4)
		founder, bad, cut, off := f.Peers[0], f.Peers[1], f.Peers[2], f.Peers[3]
		bad.Blender.PerFrame = time.Hour
		id := f.Submit(founder, "1-10", func(s *httpapi.Submission) { s.Chunk = 1 })
		f.Within(time.Minute, "it renders", func() bool { return len(bad.Local().Status(t.Context()).Running) == 1 })
		for _, m := range f.Peers {
			if m != bad {
				require.NoError(t, m.Dial(t.Context(), bad.ID))
			}
		}
		f.Sever(cut, founder)
		token := token(t, bad)
		_, err := founder.Local().Authenticate(t.Context(), token)
		require.NoError(t, err)

		began := time.Now()
		_, err = founder.Queue().Revoke(t.Context(), farmtest.Admin, bad.ID, founder.ID)
		require.NoError(t, err)
		f.Within(revocable, "the others have closed their connections", func() bool {
			return !founder.Connected(bad.ID) && !off.Connected(bad.ID) && !f.Peers[4].Connected(bad.ID)
		})
		f.Within(revocable, "its task is queued again", func() bool {
			for _, a := range attempts(t, founder, id) {
				if a.Peer == bad.ID && a.Outcome == "" {
					return false
				}
			}
			return true
		})
		t.Logf("cut off by %d machines after %s", 3, time.Since(began))
		_, err = founder.Local().Authenticate(t.Context(), token)
		require.ErrorIs(t, err, authz.ErrToken)
		for _, m := range []*farmtest.Member{founder, off, f.Peers[4]} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			require.Error(t, m.Dial(ctx, bad.ID), m.Name)
			cancel()
		}
		err = bad.Ended(30 * time.Second)
		require.ErrorIs(t, err, peer.ErrRemoved)
		require.ErrorContains(t, err, "admin removed it on 2000-01-0")
		require.ErrorContains(t, err, "vizpeer join TICKET")
		require.ErrorIs(t, bad.Revived(), peer.ErrRemoved)

		// One that does not stop still gets at the machine that has not heard yet.
		thief := f.Impersonate(bad)
		dial := func(m *farmtest.Member) error {
			ctx, cancel := context.WithTimeout(t.Context(), revocable)
			defer cancel()
			_, err := thief.Network().DialPeer(ctx, m.HostID())
			return err
		}
		require.NoError(t, dial(cut))
		f.Within(time.Second, "they are connected", func() bool { return cut.Connected(bad.ID) })
		f.Heal()
		f.Within(time.Minute, "the one that was cut off is back", func() bool { return cut.Local().Status(t.Context()).Leader == founder.ID })
		began = time.Now()
		f.Within(revocable, "it has heard", func() bool { _, still := cut.Roster().Member(bad.ID); return !still && !cut.Connected(bad.ID) })
		t.Logf("cut off by the machine that came back after %s", time.Since(began))
		for _, m := range []*farmtest.Member{cut, off, f.Peers[4]} {
			_ = dial(m) // it learns that it was refused only when it uses the connection
			time.Sleep(time.Second)
			require.False(t, m.Connected(bad.ID), m.Name)
		}
		f.Await(id, lease.JobDone, 10*time.Minute)
	})
}

// A machine that was off when it was removed hears of it when it comes back; and can be
// admitted again, by a new ticket, as the same machine.
func TestRevokedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		founder, away := f.Peers[0], f.Peers[1]
		was := away.ID
		away.Stop()
		first, err := founder.Queue().Invite(t.Context(), farmtest.Admin, httpapi.Invitation{Uses: 3})
		require.NoError(t, err)
		_, err = founder.Queue().Revoke(t.Context(), farmtest.Admin, was, founder.ID)
		require.NoError(t, err)
		away.Start()
		require.ErrorIs(t, away.Ended(30*time.Second), peer.ErrRemoved)
		// Its folder waits for a ticket.
		_, err = away.Join(first.Ticket)
		require.NoError(t, err)
		require.Equal(t, was, away.ID)
		away.Start()
		f.Online(2)

		// What is left of the ticket that it was admitted by is no way back.
		gone, err := founder.Queue().Revoke(t.Context(), farmtest.Admin, was, founder.ID)
		require.NoError(t, err)
		require.Len(t, gone.Tickets, 1, "but whoever has it should know")
		require.Equal(t, first.ID, gone.Tickets[0].ID)
		require.ErrorIs(t, away.Ended(30*time.Second), peer.ErrRemoved)
		_, err = away.Join(first.Ticket)
		require.ErrorIs(t, err, authz.ErrTicketBefore)
		_, err = founder.Queue().RevokeTicket(t.Context(), farmtest.Admin, first.ID)
		require.NoError(t, err)
		_, err = f.Join("other", first.Ticket)
		require.ErrorIs(t, err, authz.ErrTicketUnknown)
	})
}

func TestWhomNotToRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		founder, box := f.Peers[0], f.Peers[1]
		revoke := func(p authz.Principal, id, from authz.PeerID) error {
			_, err := founder.Queue().Revoke(t.Context(), p, id, from)
			return err
		}
		require.ErrorIs(t, revoke(farmtest.Operator, box.ID, founder.ID), httpapi.ErrDenied)
		require.ErrorIs(t, revoke(farmtest.Admin, "12D3KooNobody", founder.ID), httpapi.ErrNotFound)
		err := revoke(farmtest.Admin, box.ID, box.ID)
		require.ErrorIs(t, err, httpapi.ErrConflict)
		require.ErrorContains(t, err, "do it from another machine")
		err = revoke(farmtest.Admin, founder.ID, box.ID)
		require.ErrorIs(t, err, httpapi.ErrConflict)
		require.ErrorContains(t, err, "let another coordinator join")
		f.Online(2)
	})
}

func attempts(t *testing.T, at *farmtest.Member, id lease.JobID) (all []lease.Attempt) {
	tasks, err := at.Queue().Tasks(t.Context(), farmtest.Operator, id)
	require.NoError(t, err)
	for _, task := range tasks {
		all = append(all, task.Attempts...)
	}
	return all
}

func token(t *testing.T, m *farmtest.Member) string {
	b, err := os.ReadFile(filepath.Join(m.DataDir(), "token"))
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}
