package peer

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/coord"
	"vizpeer/lease"
)

// TestOldLeaderIsSpared: a leader that does not know a message would end the stream for
// it. A question is answered here, and a report waits until somebody leads who knows it.
func TestOldLeaderIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{gate: new(gate), changed: make(chan struct{}), waiting: make(map[uint64]chan coord.Ack), slog: slog.New(slog.DiscardHandler)}
		// lead has another leader on the stream, which knows a level and says yes.
		lead := func(knows int) {
			here, there := net.Pipe()
			t.Cleanup(func() { _, _ = here.Close(), there.Close() })
			l.mu.Lock()
			l.knows = knows
			l.mu.Unlock()
			conn, its := coord.NewConn(here), coord.NewConn(there)
			l.set(libp2ppeer.ID("leader"), conn)
			go func() {
				for {
					var up coord.Up
					if its.Receive(&up) != nil {
						return
					}
					_ = its.Send(coord.Down{Ack: &coord.Ack{Seq: up.Seq}})
				}
			}()
			go func() {
				for {
					var down coord.Down
					if conn.Receive(&down) != nil {
						return
					}
					l.obey(down)
				}
			}()

		}
		old := coord.Up{Record: &lease.Record{}}
		young := coord.Up{Record: &lease.Record{Pieces: []lease.PieceResult{{CID: "piece"}}}}

		lead(1)
		ack, err := l.Ask(t.Context(), young)
		require.NoError(t, err)
		require.Equal(t, coord.CodeUpdate, ack.Code)
		require.Contains(t, ack.Reason, "update it there")
		ack, err = l.Report(t.Context(), old)
		require.NoError(t, err)
		require.Empty(t, ack.Code)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err = l.Report(ctx, young)
		require.ErrorIs(t, err, context.DeadlineExceeded, "it waits")

		reported := make(chan coord.Ack, 1)
		go func() {
			ack, _ := l.Report(t.Context(), young)
			reported <- ack
		}()
		synctest.Wait()
		require.Empty(t, reported)
		l.set("", nil)
		lead(2)
		require.Empty(t, (<-reported).Code)
		l.obey(coord.Down{}) // of a kind that this machine does not know
	})
}

// A claim ends the stream with whoever led before, and costs a moment where it is wrong.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{gate: new(gate), nudge: make(chan struct{}, 1), slog: slog.New(slog.DiscardHandler)}
		ended := 0
		with := func(p libp2ppeer.ID, term uint64) {
			l.term = term
			l.try(p, func(err error) {
				require.ErrorIs(t, err, errSuperseded)
				ended++
			})
		}
		with("a", 3)
		l.Claim("b", 3)
		l.Claim("b", 2)
		require.Zero(t, ended, "of no later term")
		require.Empty(t, l.claimant())
		l.Claim("b", 4)
		require.Equal(t, 1, ended)
		require.Equal(t, libp2ppeer.ID("b"), l.claimant())
		l.Claim("c", 3)
		require.Equal(t, libp2ppeer.ID("b"), l.claimant(), "the latest term counts")
		with("b", 4)
		require.Empty(t, l.claimant(), "it is what it said")
		l.Claim("b", 4)
		require.Equal(t, 1, ended)

		// Whoever claims what is not so keeps nobody away for long.
		l.Claim("d", 1<<40)
		require.Equal(t, 2, ended)
		time.Sleep(claimTime)
		require.Empty(t, l.claimant())
		l.Claim("c", 5)
		require.Equal(t, libp2ppeer.ID("c"), l.claimant(), "a later leader is heard again")
		l.disclaimed("c")
		require.Empty(t, l.claimant())

		// In a new epoch terms are low again.
		with("c", 50)
		l.Renounce()
		l.Claim("e", 2)
		require.Equal(t, libp2ppeer.ID("e"), l.claimant())
	})
}
