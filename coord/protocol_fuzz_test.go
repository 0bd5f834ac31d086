package coord

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// pipe is a stream whose other end says what it likes.
type pipe struct{ bytes.Buffer }

func (*pipe) Close() error { return nil }

// A member may send anything over its work stream.
func FuzzReceive(f *testing.F) {
	for _, m := range []any{
		Up{Seq: 1, Renew: &Renew{Leases: []Running{{Lease: "l"}}}},
		Up{Seq: 2, Complete: &lease.Complete{Report: lease.Report{Lease: "l"}, Frames: []lease.Result{{Frame: 1, CID: "c"}}}},
		Down{Grant: &Order{}}, Hello{},
	} {
		var b pipe
		require.NoError(f, NewConn(&b).Send(m))
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f, '{'}) // a length that is not there
	f.Fuzz(func(t *testing.T, stream []byte) {
		for range 2 {
			var b pipe
			b.Write(stream)
			c := NewConn(&b)
			var up Up
			var down Down
			if c.Receive(&up) == nil {
				up.weight()
				if up.Complete != nil {
					_ = resultsMakeSense(up.Complete.Frames)
				}
			}
			_ = c.Receive(&down)
		}
	})
}
