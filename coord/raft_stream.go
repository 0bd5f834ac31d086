package coord

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// RaftProtocol carries raft between coordinators. Nobody else gets an answer. Each of a
// farm's epochs but the first has one of its own: see raftProtocol.
const RaftProtocol = "/vizpeer/raft/1"

// streamLayer gives raft its connections: libp2p streams, whose ends are
// authenticated and encrypted, between members that allow admits. A server's
// raft address is its peer ID.
type streamLayer struct {
	host     Host
	protocol protocol.ID
	allow    func(peer.ID) bool
	incoming chan net.Conn
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc

	mu   sync.Mutex
	open map[*streamConn]struct{} // nil once closed
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func newStreamLayer(h Host, id protocol.ID, allow func(peer.ID) bool) *streamLayer {
	ctx, cancel := context.WithCancel(context.Background())
	l := &streamLayer{
		host: h, protocol: id, allow: allow, incoming: make(chan net.Conn),
		ctx: ctx, cancel: cancel, open: make(map[*streamConn]struct{}),
	}
	h.SetStreamHandler(id, l.receive)
	return l
}

func (l *streamLayer) receive(s network.Stream) {
	if !l.allow(s.Conn().RemotePeer()) {
		_ = s.Reset()
		return
	}
	c, err := l.track(s)
	if err != nil {
		return
	}
	select {
	case l.incoming <- c:
	case <-l.ctx.Done():
		_ = c.Close()
	}
}

// Accept waits for a coordinator's stream.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Dial opens a stream to the coordinator of that peer ID.
func (l *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, err := peer.Decode(string(to))
	if err != nil {
		return nil, fmt.Errorf("%.64q is not a coordinator's peer ID: %w", string(to), err)
	}
	if !l.allow(id) {
		return nil, fmt.Errorf("%s is no coordinator of this farm", id)
	}
	ctx, cancel := l.ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(l.ctx, timeout)
	}
	defer cancel()
	s, err := l.host.NewStream(ctx, id, l.protocol)
	if err != nil {
		return nil, fmt.Errorf("reaching coordinator %s: %w", id, err)
	}
	return l.track(s)
}

// Addr is this machine's own peer ID.
func (l *streamLayer) Addr() net.Addr { return peerAddr(l.host.ID()) }

// Close takes no more streams and resets those that are open, so that whoever
// waits on one returns.
func (l *streamLayer) Close() error {
	l.host.RemoveStreamHandler(l.protocol)
	l.cancel()
	l.mu.Lock()
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for c := range open {
		_ = c.Stream.Reset()
	}
	return nil
}

func (l *streamLayer) track(s network.Stream) (*streamConn, error) {
	c := &streamConn{s, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		_ = s.Reset()
		return nil, net.ErrClosed
	}
	l.open[c] = struct{}{}
	return c, nil
}

// streamConn is a stream as raft's transport wants it.
type streamConn struct {
	network.Stream
	layer *streamLayer
}

// Close resets the stream: a plain close would leave the other end, and our own
// reader, waiting.
func (c *streamConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c)
	c.layer.mu.Unlock()
	return c.Stream.Reset()
}

func (c *streamConn) LocalAddr() net.Addr  { return peerAddr(c.Conn().LocalPeer()) }
func (c *streamConn) RemoteAddr() net.Addr { return peerAddr(c.Conn().RemotePeer()) }

// peerAddr is a peer ID as a net.Addr.
type peerAddr peer.ID

func (peerAddr) Network() string  { return "libp2p" }
func (a peerAddr) String() string { return peer.ID(a).String() }
