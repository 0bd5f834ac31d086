package coord

import (
	"context"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Host is what a coordinator needs of this machine's libp2p host, which is one: streams
// whose other end is authenticated, and the machine's own key.
type Host interface {
	ID() peer.ID
	Peerstore() peerstore.Peerstore
	SetStreamHandler(protocol.ID, network.StreamHandler)
	RemoveStreamHandler(protocol.ID)
	NewStream(context.Context, peer.ID, ...protocol.ID) (network.Stream, error)
}
