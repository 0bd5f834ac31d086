package peer

import (
	"fmt"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
)

// routed makes h find members whose addresses it does not know by asking those it
// is connected with, over a Kademlia table that the farm's members alone keep
// among themselves: a machine of a large farm is connected with few of the others,
// and may be told to fetch from any. The table says where members listen and
// nothing else; who holds what comes with the lease. Close ends what runs for it,
// before h.
func routed(h host.Host, g *gate) (_ host.Host, close func() error, err error) {
	table, err := dht.New(membersOnly{h, g},
		dht.ProtocolPrefix("/vizpeer"),
		dht.Mode(dht.ModeServer), // by itself it would wait to be seen on the internet
		dht.DisableProviders(),
		dht.DisableValues(),
		dht.QueryFilter(func(_ any, p peer.AddrInfo) bool { return g.member(p.ID) }),
		dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return g.member(p) }),
	)
	if err != nil {
		return h, nil, fmt.Errorf("find members by their IDs: %w", err)
	}
	return routedhost.Wrap(h, table), table.Close, nil
}

// membersOnly is a host whose protocols answer members alone: a coordinator is
// also connected with machines that have yet to redeem a ticket.
type membersOnly struct {
	host.Host
	gate *gate
}

func (m membersOnly) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	m.Host.SetStreamHandler(id, func(s network.Stream) {
		if !m.gate.member(s.Conn().RemotePeer()) {
			_ = s.Reset()
			return
		}
		handle(s)
	})
}
