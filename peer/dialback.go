package peer

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
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
// and so learns whether it can be reached there. It is not the instance that libp2p makes
// by itself, for three reasons. That dials back under a name drawn by chance, whom the
// gate takes for a stranger: this one dials under the machine's own name, from ports of
// its own. That asks any peer, and in a farm most are on the same local network, where
// everything can be reached: this one asks whom it is told to. And that checks only
// addresses that four others have seen, which a small farm does not have.
type dialback struct {
	host    membersOnly
	answers *autonatv2.AutoNAT
	dials   host.Host // closed with answers
	options []autonatv2.AutoNATOption
}

// newDialback answers members that ask, over h, until close.
func newDialback(h host.Host, g *gate, key crypto.PrivKey, options ...autonatv2.AutoNATOption) (*dialback, error) {
	dials, err := diallingHost(h.ID(), key, g)
	if err != nil {
		return nil, fmt.Errorf("dial members back: %w", err)
	}
	d := &dialback{host: membersOnly{h, g}, dials: dials, options: options}
	if d.answers, err = autonatv2.New(dials, options...); err != nil {
		return nil, errors.Join(fmt.Errorf("dial members back: %w", err), dials.Close())
	}
	return d, d.answers.Start(dialsHost{d.host, make(peersTold)})
}

func (d *dialback) close() { d.answers.Close() }

// ask has p, which is connected, dial this machine at the first of these addresses that
// it can dial at all. It is called by one goroutine at a time.
func (d *dialback) ask(ctx context.Context, p peer.ID, at []autonatv2.Request) (autonatv2.Result, error) {
	// The library chooses whom it asks among all that it was told of, and leaves each
	// alone for minutes: so there is one for each question, which hears of p alone.
	told := make(peersTold)
	one, err := autonatv2.New(unclosed{d.dials}, d.options...)
	if err != nil {
		return autonatv2.Result{}, err
	}
	if err := one.Start(dialledHost{d.host, told}); err != nil {
		return autonatv2.Result{}, err
	}
	defer one.Close()
	for range 2 { // once the second is taken, the first has been looked at
		select {
		case told <- event.EvtPeerIdentificationCompleted{Peer: p}:
		case <-ctx.Done():
			return autonatv2.Result{}, ctx.Err()
		}
	}
	return one.GetReachability(ctx, at)
}

// dialsHost is a host for the side that dials back; it needs to hear of nobody.
type dialsHost struct {
	membersOnly
	bus peersTold
}

func (a dialsHost) EventBus() event.Bus { return a.bus }

func (a dialsHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	if id != autonatv2.DialBackProtocol {
		a.membersOnly.SetStreamHandler(id, handle)
	}
}

// dialledHost is a host for the side that is dialled back.
type dialledHost struct {
	membersOnly
	bus peersTold
}

func (a dialledHost) EventBus() event.Bus { return a.bus }

func (a dialledHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	if id == autonatv2.DialBackProtocol {
		a.membersOnly.SetStreamHandler(id, handle)
	}
}

func (a dialledHost) RemoveStreamHandler(id protocol.ID) {
	if id == autonatv2.DialBackProtocol {
		a.membersOnly.RemoveStreamHandler(id)
	}
}

// peersTold is a bus with one subscriber, which hears what is sent.
type peersTold chan any

func (b peersTold) Subscribe(any, ...event.SubscriptionOpt) (event.Subscription, error) {
	return b, nil
}
func (peersTold) Emitter(any, ...event.EmitterOpt) (event.Emitter, error) {
	return nil, errors.ErrUnsupported
}
func (peersTold) GetAllEventTypes() []reflect.Type { return nil }
func (b peersTold) Out() <-chan any                { return b }
func (peersTold) Name() string                     { return "peers told" }
func (peersTold) Close() error                     { return nil }

// unclosed is a host that others go on using.
type unclosed struct{ host.Host }

func (unclosed) Close() error { return nil }

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
