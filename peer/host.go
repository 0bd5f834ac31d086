package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/gologshim"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	dialler "github.com/libp2p/go-libp2p/p2p/net/swarm"
	hops "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"vizpeer/authz"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/peer/httpapi"
)

// The network library speaks to its developers: what matters to an operator comes
// back as an error. GOLOG_LOG_LEVEL lets it speak.
func init() {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" {
		gologshim.SetDefaultHandler(slog.DiscardHandler)
	}
}

// newHost builds this machine's libp2p host: TCP with TLS and QUIC, nothing that
// talks to anyone outside the farm. What reaches beyond the local network, and asks the
// router for a port, is [reach]'s to add.
func newHost(key crypto.PrivKey, g *gate, listen []string, more ...libp2p.Option) (host.Host, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	anywhere := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 0, ConnCount: maxConns}} // a site may be behind one address
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(raised().Build(limits.AutoScale())), rcmgr.WithLimitPerSubnet(anywhere, anywhere), rcmgr.WithMetricsDisabled())
	if err != nil {
		return nil, err
	}
	connections, err := connmgr.NewConnManager(maxConns, maxConns) // whom to keep is the gate's to say
	if err != nil {
		return nil, err
	}
	h, err := libp2p.New(append([]libp2p.Option{
		libp2p.Identity(key),
		libp2p.ListenAddrStrings(listen...),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), // two peers must not share a port
		libp2p.Transport(libp2pquic.NewTransport),
		libp2p.Security(tls.ID, tls.New),
		libp2p.ConnectionGater(g),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(connections),
		libp2p.DisableRelay(),
		libp2p.Ping(false), // nobody asks, and strangers get an answer by join alone
		// After many dials in vain these would take all of UDP, or of IPv6, for blocked,
		// and refuse to dial a member that is back.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		libp2p.DisableMetrics(),
		libp2p.UserAgent("vizpeer"),
	}, more...)...)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "address already in use") {
			return nil, fmt.Errorf("the peer port is in use (%s): another vizpeer may run here; choose another with --p2p-listen, such as /ip4/0.0.0.0/tcp/0", strings.Join(listen, ", "))
		}
		return nil, fmt.Errorf("listen for peers on %s: %w", strings.Join(listen, ", "), err)
	}
	if missing := unheard(listen, h.Network().ListenAddresses()); missing != "" {
		return nil, errors.Join(fmt.Errorf("the address for other peers %s cannot be listened on: another vizpeer, or another program, may have it; choose another with --p2p-listen, such as /ip4/0.0.0.0/tcp/0", missing), h.Close())
	}
	h.Network().Notify(g)
	return h, nil
}

// maxConns is how many connections a host may have: two to every member of the
// largest farm, whom the gate has let in.
const maxConns = 2 * authz.MaxMembers

// raised are the limits that the library's own are too low for: all members of a farm
// may be connected to its leader, each with a stream for work, a few of pubsub and of
// the API, and those of the exchange.
func raised() rcmgr.PartialLimitConfig {
	var c rcmgr.PartialLimitConfig
	swarm.RaiseLimits(&c)
	many := rcmgr.ResourceLimits{
		Conns: maxConns, ConnsInbound: maxConns, ConnsOutbound: maxConns, FD: maxConns,
		Streams: 16 * maxConns, StreamsInbound: 16 * maxConns, StreamsOutbound: 16 * maxConns,
	}
	c.System = many
	perProtocol := rcmgr.ResourceLimits{Streams: 2 * maxConns, StreamsInbound: 2 * maxConns, StreamsOutbound: 2 * maxConns}
	c.ProtocolDefault, c.ServiceDefault = perProtocol, perProtocol
	// One machine alone must leave room for others, whatever it does. A connection each way
	// by TCP and by QUIC is what two that dial each other may have for a moment.
	c.PeerDefault.Conns, c.PeerDefault.ConnsInbound, c.PeerDefault.ConnsOutbound = 16, 8, 8
	c.PeerDefault.FD = 16
	c.PeerDefault.Streams, c.PeerDefault.StreamsInbound, c.PeerDefault.StreamsOutbound = 1024, 512, 512
	for p, inbound := range perMember {
		c.ProtocolPeer[p] = rcmgr.ResourceLimits{Streams: rcmgr.LimitVal(2 * inbound), StreamsInbound: rcmgr.LimitVal(inbound), StreamsOutbound: rcmgr.LimitVal(inbound)}
	}
	// A circuit is a stream at either end, and two buffers.
	const circuitMemory = 2*circuitBuffer + 16<<10
	c.Service = map[string]rcmgr.ResourceLimits{relay.ServiceName: {
		Streams: 2 * maxCircuits, StreamsInbound: maxCircuits, StreamsOutbound: maxCircuits, Memory: maxCircuits * circuitMemory,
	}}
	c.ServicePeer = map[string]rcmgr.ResourceLimits{relay.ServiceName: {
		Streams: 2 * maxCircuitsEach, StreamsInbound: maxCircuitsEach, StreamsOutbound: maxCircuitsEach, Memory: maxCircuitsEach * circuitMemory,
	}}
	// A farm that starts in the morning connects all at once.
	c.Transient = rcmgr.ResourceLimits{
		Conns: authz.MaxMembers, ConnsInbound: authz.MaxMembers, ConnsOutbound: authz.MaxMembers, FD: authz.MaxMembers,
		Streams: maxConns, StreamsInbound: maxConns, StreamsOutbound: maxConns,
	}
	return c
}

// perMember is how many streams by a protocol one machine may have open at once: one for
// each request that it passes on, for its work, for what raft says at once, while it joins,
// for older records of the audit, and for circuits. The exchange bounds its own.
var perMember = map[protocol.ID]int{
	httpapi.Protocol:   256,
	coord.WorkProtocol: 8,
	coord.RaftProtocol: 32,
	joinProtocol:       8,

	coord.AuditProtocol: 4,

	hops.ProtoIDv2Hop:  maxCircuitsEach,
	hops.ProtoIDv2Stop: maxCircuitsEach,
}

// dialAnew lets the next dial of p try every address at once. libp2p itself leaves
// an address alone for longer and longer, up to five minutes, once it was dialled in
// vain: whoever calls this paces itself.
func dialAnew(h host.Host, p peer.ID) {
	if n, ok := h.Network().(interface{ Backoff() *dialler.DialBackoff }); ok {
		n.Backoff().Clear(p)
	}
}

// dialError is why a peer could not be dialled, for people: a line for each of its
// addresses.
type dialError struct {
	to  peer.AddrInfo
	err error
}

func (e *dialError) Error() string {
	why, rest := make(map[string]error), e.err
	var failed *dialler.DialError
	if errors.As(e.err, &failed) && failed.Cause != nil {
		rest = failed.Cause
		for _, one := range failed.DialErrors {
			why[one.Address.String()] = one.Cause
		}
	}
	var lines []string
	for _, a := range e.to.Addrs {
		lines = append(lines, hostPort(a)+": "+plainCause(cmp.Or(why[a.String()], rest)))
	}
	if len(lines) == 0 {
		return authz.PeerID(e.to.ID.String()).Short() + ": no address is known"
	}
	return strings.Join(lines, "\n")
}

func (e *dialError) Unwrap() error { return e.err }

// hostPort writes an address as people do.
func hostPort(m multiaddr.Multiaddr) string {
	network, addr, err := manet.DialArgs(m)
	switch {
	case err != nil:
		return m.String()
	case strings.HasPrefix(network, "udp"):
		return addr + " (QUIC)"
	}
	return addr
}

// plainCause is the innermost reason that a dial failed for.
func plainCause(err error) string {
	var refused syscall.Errno
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.Canceled):
		return "no answer in time"
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

// unheard finds an address that was asked for and is not listened on; "" where
// there is none. libp2p itself is content with one of many. IPv6 on every
// interface is not missed: many machines have none.
func unheard(asked []string, have []multiaddr.Multiaddr) string {
	for _, a := range asked {
		want, err := multiaddr.NewMultiaddr(a)
		if err != nil || strings.HasPrefix(a, "/ip6/::/") {
			continue
		}
		if !slices.ContainsFunc(have, func(m multiaddr.Multiaddr) bool { return sameListener(want, m) }) {
			return a
		}
	}
	return ""
}

// sameListener tells whether have is what want asked for; port 0 asks for any.
func sameListener(want, have multiaddr.Multiaddr) bool {
	w, h := strings.Split(want.String(), "/"), strings.Split(have.String(), "/")
	if len(w) > len(h) {
		return false
	}
	for i := range w {
		if w[i] != h[i] && w[i] != "0" {
			return false
		}
	}
	return true
}
