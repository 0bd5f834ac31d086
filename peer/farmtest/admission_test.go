package farmtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

func TestTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		invite := func(in httpapi.Invitation) string {
			out, err := f.Peers[0].Queue().Invite(t.Context(), authz.Principal{User: "admin", Role: authz.Admin}, in)
			require.NoError(t, err)
			return out.Ticket
		}
		_, err := f.Peers[0].Queue().Invite(t.Context(), farmtest.Operator, httpapi.Invitation{})
		require.ErrorIs(t, err, httpapi.ErrDenied)

		ticket := invite(httpapi.Invitation{Role: authz.Operator})
		joined, err := f.Join("desk", ticket)
		require.NoError(t, err)
		require.Equal(t, authz.Operator, joined.Role)

		_, err = f.Join("late", ticket)
		require.ErrorIs(t, err, authz.ErrTicketUsed)

		short := invite(httpapi.Invitation{ExpiresIn: 60})
		time.Sleep(2 * time.Minute) // of simulated time: tickets expire by the clock
		_, err = f.Join("slow", short)
		require.ErrorIs(t, err, authz.ErrTicketExpired)

		_, err = f.Join("cut", ticket[:len(ticket)-9])
		require.ErrorIs(t, err, authz.ErrTicketText)

		twice := invite(httpapi.Invitation{Uses: 2})
		for _, name := range []string{"one", "two"} {
			_, err = f.Join(name, twice)
			require.NoError(t, err)
		}
		_, err = f.Join("three", twice)
		require.ErrorIs(t, err, authz.ErrTicketUsed)
	})
}

// Whoever tries tickets is stopped soon, whatever it calls itself, and is on record.
func TestGuessedTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		good, err := f.Peers[0].Queue().Invite(t.Context(), farmtest.Admin, httpapi.Invitation{})
		require.NoError(t, err)
		guesser := f.Newcomer("guesser")
		for i := range 12 {
			guess, err := authz.NewTicket(strings.NewReader(strings.Repeat(string(rune('a'+i)), 64)), authz.FarmID(mustFarm(t, f)), authz.Node, false, f.Peers[0].Addrs())
			require.NoError(t, err)
			_, err = guesser.Join(guess.String())
			require.ErrorIs(t, err, peer.ErrRefused)
			if i >= 10 {
				require.ErrorContains(t, err, "too many tickets")
			}
		}
		_, err = guesser.Join(good.Ticket)
		require.ErrorContains(t, err, "too many tickets", "not even a good one")
		_, err = f.Join("another", good.Ticket)
		require.NoError(t, err, "from elsewhere")
		time.Sleep(2 * time.Minute)
		page, err := f.Peers[0].Queue().Audit(t.Context(), farmtest.Admin, httpapi.AuditQuery{Action: "join", Outcome: httpapi.AnyRefusal})
		require.NoError(t, err)
		require.NotEmpty(t, page.Records)
		require.NotEmpty(t, page.Records[0].Address)
	})
}

// A ticket that is good for a machine lets it ask again, and not without end: each time costs
// a place in the log, a record, and a new roster for everybody.
func TestTicketShownAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		head := func() uint64 {
			page, err := f.Peers[0].Queue().Audit(t.Context(), farmtest.Admin, httpapi.AuditQuery{})
			require.NoError(t, err)
			return page.Head.Seq
		}
		good, err := f.Peers[0].Queue().Invite(t.Context(), farmtest.Admin, httpapi.Invitation{})
		require.NoError(t, err)
		node := f.Newcomer("node")
		f.Peers = f.Peers[:len(f.Peers)-1]
		_, err = node.Join(good.Ticket)
		require.NoError(t, err)
		before := head()
		raw := f.Impersonate(node)
		ask := func(i int) (answer struct{ Code, Reason string }) {
			s, err := raw.NewStream(t.Context(), f.Peers[0].HostID(), "/vizpeer/join/1")
			require.NoError(t, err)
			defer s.Reset()
			in := json.NewDecoder(s)
			require.NoError(t, in.Decode(new(authz.Charter)))
			require.NoError(t, json.NewEncoder(s).Encode(map[string]any{"ticket": good.Ticket, "name": fmt.Sprintf("node-%d", i)}))
			require.NoError(t, in.Decode(&answer))
			return answer
		}
		for i := range 100 {
			ask(i)
		}
		require.Contains(t, ask(100).Reason, "too often")
		require.LessOrEqual(t, head()-before, uint64(20))
		time.Sleep(time.Minute)
		require.Empty(t, ask(101).Code, "after a while it may again")
	})
}

func mustFarm(t *testing.T, f *farmtest.Farm) string {
	farm, err := f.Peers[0].Queue().Farm(t.Context(), farmtest.Admin)
	require.NoError(t, err)
	return farm.Farm
}

func TestTicketOfAnotherFarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 0)
		// A ticket with this farm's address and another farm's ID.
		key, err := authz.NewFarmKey(strings.NewReader(strings.Repeat("x", 64)))
		require.NoError(t, err)
		ticket, err := authz.NewTicket(strings.NewReader(strings.Repeat("y", 64)), key.ID(), authz.Node, false, f.Peers[0].Addrs())
		require.NoError(t, err)
		_, err = f.Join("lost", ticket.String())
		require.ErrorIs(t, err, peer.ErrOtherFarm)
	})
}

// A machine that holds no membership gets no answer on any protocol but join.
func TestStrangerIsTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		stranger := f.Stranger()
		for _, m := range f.Peers {
			for _, p := range []protocol.ID{"/vizpeer/work/1", "/vizpeer/api/1", "/vizpeer/raft/1", "/vizpeer/blobs/1"} {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				s, err := stranger.NewStream(network.WithForceDirectDial(ctx, "test"), m.HostID(), p)
				if err == nil {
					_ = s.SetDeadline(time.Now().Add(5 * time.Second))
					_, _ = s.Write([]byte("\x10{\"hello\":{}}GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
					var b [1]byte
					_, err = s.Read(b[:])
				}
				cancel()
				require.Error(t, err, "%s answered a stranger on %s", m.Name, p)
			}
		}
	})
}
