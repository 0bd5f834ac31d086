package farmtest_test

import (
	"context"
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
