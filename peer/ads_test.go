package peer

import (
	"testing"
	"testing/synctest"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/stretchr/testify/require"
)

// A member that says ever more of itself is heard as often as an honest one, and
// does not keep others from being heard.
func TestAdsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pace{rate: adRate, burst: adBurst}
		loud, quiet := aPeer(t), aPeer(t)
		heard := 0
		for range 1000 {
			if c.may(loud, 1) {
				heard++
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.InDelta(t, adBurst+10*adRate, heard, 1)
		require.True(t, c.may(quiet, 1))
		for range 60 { // as often as an honest one
			time.Sleep(adPause)
			require.True(t, c.may(quiet, 1))
		}
	})
}

// What a neighbour passes on is weighed by how much there is to look at, and bounded.
func TestNeighboursAreBounded(t *testing.T) {
	rpc := &pubsub.RPC{}
	require.Equal(t, 1, weight(rpc))
	for range 99 {
		rpc.Publish = append(rpc.Publish, &pubsub_pb.Message{})
	}
	rpc.Control = &pubsub_pb.ControlMessage{Ihave: []*pubsub_pb.ControlIHave{{MessageIDs: make([]string, 1000)}}, Iwant: []*pubsub_pb.ControlIWant{{MessageIDs: make([]string, 900)}}}
	require.Equal(t, 2000, weight(rpc))
	synctest.Test(t, func(t *testing.T) {
		passed := pace{rate: passRate, burst: passBurst}
		loud, quiet := aPeer(t), aPeer(t)
		heard := 0
		for range 100 {
			if passed.may(loud, weight(rpc)) {
				heard++
			}
		}
		require.Equal(t, passBurst/2000, heard)
		require.True(t, passed.may(quiet, 1))
		time.Sleep(2 * time.Second)
		require.True(t, passed.may(loud, 2000))
		require.False(t, passed.may(loud, 1))
	})
}

// What a member said before is not heard again, until it has been silent for so long that
// its clock may have been set back.
func TestAdsAreNotReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o order
		one, other := aPeer(t), aPeer(t)
		number := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 1, n} }
		require.True(t, o.newer(one, number(5), time.Now()))
		require.True(t, o.newer(one, number(9), time.Now()))
		for _, old := range []byte{5, 8, 9} {
			require.False(t, o.newer(one, number(old), time.Now()))
		}
		require.True(t, o.newer(other, number(5), time.Now()))
		require.False(t, o.newer(other, nil, time.Now()))
		time.Sleep(forgotten)
		require.True(t, o.newer(one, number(1), time.Now()))
	})
}
