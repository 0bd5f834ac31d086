package peer_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
)

// A member that speaks gossip by itself is heard with an honest ad of its own, and with
// nothing else: not in another's name, not with what is no ad, nor with one too large.
func TestGossipIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		founder, victim := f.Peers[0], f.Peers[1]
		machine := f.Newcomer("liar")
		f.Peers = f.Peers[:len(f.Peers)-1]
		_, err := machine.Join(founder.Mint(t, authz.Node, false))
		require.NoError(t, err)
		liar := f.Impersonate(machine)
		key := liar.Peerstore().PrivKey(liar.ID())
		topic := "/vizpeer/" + string(founder.Roster().Farm()) + "/ads/1"
		seq := byte(0)
		ad := func(cores int) string {
			b, err := json.Marshal(lease.Capability{OS: "linux", Arch: "amd64", Cores: cores})
			require.NoError(t, err)
			return string(b)
		}
		// say sends a message from somebody, signed by the liar, after tamper had its way with it.
		say := func(from libp2ppeer.ID, data string, tamper func(*pubsub_pb.Message)) {
			seq++
			m := &pubsub_pb.Message{From: []byte(from), Data: []byte(data), Seqno: []byte{0, 0, 0, 0, 0, 0, 0, seq}, Topic: &topic}
			b, err := proto.Marshal(m)
			require.NoError(t, err)
			m.Signature, err = key.Sign(append([]byte(pubsub.SignPrefix), b...))
			require.NoError(t, err)
			if tamper != nil {
				tamper(m)
			}
			b, err = proto.Marshal(&pubsub_pb.RPC{Publish: []*pubsub_pb.Message{m}})
			require.NoError(t, err)
			s, err := liar.NewStream(t.Context(), founder.HostID(), "/meshsub/1.1.0")
			require.NoError(t, err)
			require.NoError(t, msgio.NewVarintWriter(s).WriteMsg(b))
			time.Sleep(time.Second) // of simulated time
			_ = s.Reset()
			time.Sleep(time.Second)
		}
		cores := func(id authz.PeerID) int { return founder.Heard(id).Cores }
		self := authz.PeerID(liar.ID().String())

		say(liar.ID(), ad(51), nil)
		require.Equal(t, 51, cores(self), "what it says of itself is heard")
		honest := cores(victim.ID)
		require.NotZero(t, honest)
		public, err := key.GetPublic().Raw()
		require.NoError(t, err)
		for name, tamper := range map[string]func(*pubsub_pb.Message){
			"its own signature":         nil,
			"its own key with it":       func(m *pubsub_pb.Message) { m.Key = public },
			"no signature":              func(m *pubsub_pb.Message) { m.Signature = nil },
			"a signature of something":  func(m *pubsub_pb.Message) { m.Signature = []byte(strings.Repeat("x", 64)) },
			"nothing but the content":   func(m *pubsub_pb.Message) { m.Signature, m.Seqno = nil, nil },
			"the name put in afterward": func(m *pubsub_pb.Message) { m.From = []byte(victim.HostID()) },
		} {
			from := victim.HostID()
			if strings.HasPrefix(name, "the name") {
				from = liar.ID()
			}
			say(from, ad(66), tamper)
			require.Equal(t, honest, cores(victim.ID), name)
		}
		for name, data := range map[string]string{
			"no JSON": "cores: 66", "nothing": "", "no ad": `{"cores": 66, "slots": -1}`, "too large": ad(66) + strings.Repeat(" ", 17<<10),
		} {
			say(liar.ID(), data, nil)
			require.Equal(t, 51, cores(self), name)
		}
		say(liar.ID(), ad(52), nil)
		require.Equal(t, 52, cores(self), "and it is heard again after all that")
	})
}
