package coord

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// What a merge or a movie is made of goes out with its order: the largest must fit into
// a message, or the member would be cut off, and again each time that it is back.
func TestTheLargestOrdersFit(t *testing.T) {
	cid := strings.Repeat("b", 62)
	var o Order
	for i := range int32(lease.MaxMovieFrames) {
		o.Movie = append(o.Movie, lease.Result{Frame: lease.MaxFrame - i, CID: cid, Name: ".jpeg", Size: 1 << 33})
	}
	fits := func() {
		b, err := json.Marshal(Down{Grant: &o})
		require.NoError(t, err)
		require.Less(t, len(b), MaxMessage)
	}
	fits()
	o.Movie = nil
	for i := range int32(lease.MaxTiles) {
		o.Pieces = append(o.Pieces, Piece{Span: lease.Span{From: i, To: i + 1}, CID: cid, Size: 1 << 33})
	}
	fits()
	addr := Addr{Peer: "12D3KooWBC8ryoi9c8HVUvrn1tQEx4VV47hD5Simj34wdN3QpZNX"}
	for range MaxAddrs {
		addr.Addrs = append(addr.Addrs, "/ip6/2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/udp/65535/quic-v1/webtransport")
	}
	o.Pieces = o.Pieces[:maxWithSources]
	for i := range o.Pieces {
		o.Pieces[i].Sources = []Addr{addr, addr, addr}
	}
	fits()
}
