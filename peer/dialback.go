package peer

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	blankhost "github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	dialler "github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/quic-go/quic-go"
)

// dialback is AutoNAT (version 2) among members: one asks another to dial it at an address
// and so learns whether it can be reached there. It is not libp2p's own instance, for
// three reasons. That dials back under a name drawn by chance, whom the gate takes for a
// stranger: this one dials under the machine's own name, from ports of its own. That asks
// any peer, and in a farm most are on the same local network, where everything can be
// reached: this one asks those alone that were presented to it. And that checks only
// addresses that four others have seen, which a small farm does not have.
type dialback struct {
	*autonatv2.AutoNAT
	bus       event.Bus
	presented event.Emitter
	dials     host.Host // closed with AutoNAT
}

// newDialback answers members that ask, over h, until Close.
func newDialback(h host.Host, g *gate, key crypto.PrivKey) (*dialback, error) {
	dials, err := diallingHost(h.ID(), key, g)
	if err != nil {
		return nil, fmt.Errorf("dial members back: %w", err)
	}
	d := &dialback{bus: eventbus.NewBus(), dials: dials}
	if d.presented, err = d.bus.Emitter(new(event.EvtPeerIdentificationCompleted)); err != nil {
		return nil, err
	}
	if d.AutoNAT, err = autonatv2.New(dials); err != nil {
		return nil, fmt.Errorf("dial members back: %w", err)
	}
	return d, d.Start(presentedOnly{membersOnly{h, g}, d.bus})
}

// present lets p be asked while it is connected and answers such questions.
func (d *dialback) present(p peer.ID) {
	_ = d.presented.Emit(event.EvtPeerIdentificationCompleted{Peer: p}) // the bus is not closed
}

// presentedOnly is a host that is told of no peers but those presented to it.
type presentedOnly struct {
	membersOnly
	bus event.Bus
}

func (p presentedOnly) EventBus() event.Bus { return p.bus }

// diallingHost dials under the name id by TCP and QUIC, from ports that nothing listens
// on, and answers nothing: an answer to a dial from the port that a NAT has seen already
// would prove little.
func diallingHost(id peer.ID, key crypto.PrivKey, g *gate) (host.Host, error) {
	book, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	if err := book.AddPrivKey(id, key); err != nil {
		return nil, err
	}
	net, err := dialler.NewSwarm(id, book, eventbus.NewBus(), dialler.WithConnectionGater(g), dialler.WithDialRanker(dialler.NoDelayDialRanker),
		dialler.WithUDPBlackHoleSuccessCounter(nil), dialler.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return nil, err
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	secured, err := tls.New(tls.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	upgrade, err := upgrader.New([]sec.SecureTransport{secured}, muxers, nil, nil, g)
	if err != nil {
		return nil, err
	}
	byTCP, err := tcp.NewTCPTransport(upgrade, nil, nil, tcp.DisableReuseport())
	if err != nil {
		return nil, err
	}
	sockets, err := quicreuse.NewConnManager(quic.StatelessResetKey{}, quic.TokenGeneratorKey{}, quicreuse.DisableReuseport())
	if err != nil {
		return nil, err
	}
	byQUIC, err := libp2pquic.NewTransport(key, sockets, nil, g, nil)
	if err != nil {
		return nil, err
	}
	if err := net.AddTransport(byTCP); err != nil {
		return nil, err
	}
	if err := net.AddTransport(byQUIC); err != nil {
		return nil, err
	}
	return blankhost.NewBlankHost(net), nil
}
