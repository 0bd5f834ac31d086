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
