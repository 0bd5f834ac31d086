package coord

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// simNet is a network in memory: streams between hosts, as libp2p gives them, over links
// that can be cut one way, slow or lossy. It is far lighter than libp2p on a simulated
// network of packets, so that a thousand farms fit into a minute; peer/farmtest has the
// real thing.
type simNet struct {
	mu      sync.Mutex
	dice    *rand.Rand
	hosts   map[peer.ID]*simHost
	links   map[[2]peer.ID]*simLink // by sender and receiver
	streams map[*simStream]bool     // one end of each
	changed chan struct{}           // closed and replaced when a link or a host changes
}

// simLink is one direction between two hosts.
type simLink struct {
	cuts  int // faults that keep everything back
	delay time.Duration
	loss  int // of 100 packets, how many are sent again
}

const (
	// simDead is how long nothing may come over a connection until both ends give it up.
	simDead = 30 * time.Second
	// simDial is how long dialling may take.
	simDial = 5 * time.Second
	// simResend is how long a packet that was lost is missed.
	simResend = 200 * time.Millisecond
)

func newSimNet(dice *rand.Rand) *simNet {
	return &simNet{
		dice: dice, hosts: make(map[peer.ID]*simHost), links: make(map[[2]peer.ID]*simLink),
		streams: make(map[*simStream]bool), changed: make(chan struct{}),
	}
}

// link is the direction from a to b. n.mu is held.
func (n *simNet) link(a, b peer.ID) *simLink {
	l := n.links[[2]peer.ID{a, b}]
	if l == nil {
		l = &simLink{delay: time.Millisecond}
		if a == b {
			l.delay = 0
		}
		n.links[[2]peer.ID{a, b}] = l
	}
	return l
}

// open tells whether packets go both ways, as a new connection needs. n.mu is held.
func (n *simNet) open(a, b peer.ID) bool { return n.link(a, b).cuts == 0 && n.link(b, a).cuts == 0 }

// change tells those who wait for a link. n.mu is held.
func (n *simNet) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// cut keeps back what a sends to b from now on, until the answer is called.
func (n *simNet) cut(a, b peer.ID) (heal func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(a, b).cuts++
	dead := time.AfterFunc(simDead, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for s := range n.streams {
			if s.from.id == a && s.to.id == b || s.from.id == b && s.to.id == a {
				s.abort()
				s.other.abort()
			}
		}
	})
	return sync.OnceFunc(func() {
		dead.Stop()
		n.mu.Lock()
		defer n.mu.Unlock()
		l := n.link(a, b)
		if l.cuts--; l.cuts > 0 {
			return
		}
		for s := range n.streams {
			for _, end := range []*simStream{s, s.other} {
				if end.from.id == a && end.to.id == b {
					end.out.release(time.Now().Add(l.delay))
				}
			}
		}
		n.change()
	})
}

// worsen makes what a sends to b slow or lossy until the answer is called.
func (n *simNet) worsen(a, b peer.ID, delay time.Duration, loss int) (heal func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(a, b)
	l.delay, l.loss = l.delay+delay, l.loss+loss
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		l.delay, l.loss = l.delay-delay, l.loss-loss
	})
}

// simHost is one process's end of the network; a process that is started again has a new
// one with the same ID. It is a [Host].
type simHost struct {
	net  *simNet
	id   peer.ID
	keys simKeys

	// Guarded by net.mu.
	move     func() // told when another machine may lead; nil at first
	down     bool
	handlers map[protocol.ID]network.StreamHandler
}

var _ Host = (*simHost)(nil)

// simKeys is a peerstore that holds the host's own key and nothing else.
type simKeys struct {
	peerstore.Peerstore
	key crypto.PrivKey
}

func (k simKeys) PrivKey(peer.ID) crypto.PrivKey { return k.key }

// start puts a new process on the network.
func (n *simNet) start(id peer.ID, key crypto.PrivKey) *simHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &simHost{net: n, id: id, keys: simKeys{key: key}, handlers: make(map[protocol.ID]network.StreamHandler)}
	n.hosts[id] = h
	// What was connected with the process before learns that it is gone.
	for s := range n.streams {
		if s.from.down || s.to.down {
			s.abort()
			s.other.abort()
		}
	}
	n.change()
	return h
}

// kill takes the process off the network, at once. loud has the others hear of it, as the
// system of a machine tells them that goes on without the process.
func (h *simHost) kill(loud bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.down = true
	clear(h.handlers)
	for s := range h.net.streams {
		for _, end := range []*simStream{s, s.other} {
			if end.from == h {
				end.abort()
				if loud && h.net.open(h.id, end.to.id) {
					end.other.abort()
				}
			}
		}
	}
	h.net.change()
}

// onMove sets who is told when another machine may lead.
func (h *simHost) onMove(told func()) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.move = told
}

func (h *simHost) moved() {
	h.net.mu.Lock()
	told := h.move
	h.net.mu.Unlock()
	if told != nil {
		told()
	}
}

func (h *simHost) ID() peer.ID                    { return h.id }
func (h *simHost) Peerstore() peerstore.Peerstore { return h.keys }

func (h *simHost) SetStreamHandler(p protocol.ID, f network.StreamHandler) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.handlers[p] = f
}

func (h *simHost) RemoveStreamHandler(p protocol.ID) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	delete(h.handlers, p)
}

var errUnreachable = errors.New("the machine cannot be reached")

func (h *simHost) NewStream(ctx context.Context, to peer.ID, ps ...protocol.ID) (network.Stream, error) {
	n := h.net
	late := time.NewTimer(simDial)
	defer late.Stop()
	n.mu.Lock()
	for !n.open(h.id, to) && !h.down {
		changed := n.changed
		n.mu.Unlock()
		select {
		case <-changed:
		case <-late.C:
			return nil, errUnreachable
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
	}
	trip := n.link(h.id, to).delay + n.link(to, h.id).delay
	n.mu.Unlock()
	select {
	case <-time.After(trip):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.hosts[to]
	if h.down || r == nil || r.down {
		return nil, errUnreachable
	}
	handler := r.handlers[ps[0]]
	if handler == nil {
		return nil, fmt.Errorf("the machine does not speak %s", ps[0])
	}
	there, back := newSimPipe(), newSimPipe()
	near := &simStream{net: n, from: h, to: r, in: back, out: there, protocol: ps[0]}
	far := &simStream{net: n, from: r, to: h, in: there, out: back, protocol: ps[0], other: near}
	near.other = far
	n.streams[near] = true
	go handler(far)
	return near, nil
}

// simStream is one end of a stream.
type simStream struct {
	net      *simNet
	from, to *simHost // this end's, and the other
	in, out  *simPipe
	other    *simStream
	protocol protocol.ID
}

var _ network.Stream = (*simStream)(nil)

func (s *simStream) Read(b []byte) (int, error) { return s.in.read(b) }

func (s *simStream) Write(b []byte) (int, error) {
	if err := s.send(simChunk{data: append([]byte(nil), b...)}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// send puts something on the link.
func (s *simStream) send(c simChunk) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	l := s.net.link(s.from.id, s.to.id)
	c.due = time.Now().Add(l.delay)
	for l.loss > 0 && s.net.dice.IntN(100) < l.loss {
		c.due = c.due.Add(simResend)
	}
	c.held = l.cuts > 0
	return s.out.put(c)
}

// abort ends this end as a broken connection does.
func (s *simStream) abort() {
	s.in.fail()
	s.out.fail()
}

// Reset ends both ends; the other one learns it when the word has got there.
func (s *simStream) Reset() error {
	_ = s.send(simChunk{end: network.ErrReset})
	s.in.fail()
	s.out.close()
	return nil
}

func (s *simStream) ResetWithError(network.StreamErrorCode) error { return s.Reset() }

func (s *simStream) Close() error {
	s.in.fail()
	return s.CloseWrite()
}

func (s *simStream) CloseWrite() error {
	_ = s.send(simChunk{end: io.EOF})
	s.out.close()
	return nil
}

func (s *simStream) CloseRead() error {
	s.in.fail()
	return nil
}

func (s *simStream) SetReadDeadline(t time.Time) error {
	s.in.setDeadline(t)
	return nil
}

func (s *simStream) SetWriteDeadline(time.Time) error { return nil } // what is written never waits
func (s *simStream) SetDeadline(t time.Time) error    { return s.SetReadDeadline(t) }
func (s *simStream) ID() string                       { return "" }
func (s *simStream) Protocol() protocol.ID            { return s.protocol }
func (s *simStream) SetProtocol(protocol.ID) error    { return nil }
func (s *simStream) Stat() network.Stats              { return network.Stats{} }
func (s *simStream) Scope() network.StreamScope       { return nil }
func (s *simStream) Conn() network.Conn               { return simConn{stream: s} }

// simConn says who is at the ends of a stream.
type simConn struct {
	network.Conn
	stream *simStream
}

func (c simConn) LocalPeer() peer.ID  { return c.stream.from.id }
func (c simConn) RemotePeer() peer.ID { return c.stream.to.id }

// simPipe is one direction of a stream: what was sent and has not been read.
type simPipe struct {
	mu       sync.Mutex
	chunks   []simChunk
	closed   bool // nothing more is sent
	failed   bool // nothing more is read
	deadline time.Time
	wake     chan struct{}
}

// simChunk is something sent: data, or the end.
type simChunk struct {
	data []byte
	end  error
	due  time.Time
	held bool // its link is cut
}

func newSimPipe() *simPipe { return &simPipe{wake: make(chan struct{}, 1)} }

// signal wakes the reader. p.mu is held.
func (p *simPipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *simPipe) put(c simChunk) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return network.ErrReset
	}
	if n := len(p.chunks); n > 0 { // nothing overtakes
		last := p.chunks[n-1]
		c.held = c.held || last.held
		if last.due.After(c.due) {
			c.due = last.due
		}
	}
	p.chunks = append(p.chunks, c)
	p.signal()
	return nil
}

// release lets go what was kept back.
func (p *simPipe) release(due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.chunks {
		if p.chunks[i].held {
			p.chunks[i].held, p.chunks[i].due = false, due
		}
	}
	p.signal()
}

func (p *simPipe) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed, p.closed, p.chunks = true, true, nil
	p.signal()
}

func (p *simPipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

func (p *simPipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.signal()
}

func (p *simPipe) read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		if p.failed {
			p.mu.Unlock()
			return 0, network.ErrReset
		}
		now := time.Now()
		var until time.Time
		if len(p.chunks) > 0 && !p.chunks[0].held {
			c := &p.chunks[0]
			switch {
			case c.due.After(now):
				until = c.due
			case c.end != nil:
				err := c.end
				p.mu.Unlock()
				return 0, err
			default:
				n := copy(b, c.data)
				if c.data = c.data[n:]; len(c.data) == 0 {
					p.chunks = p.chunks[1:]
				}
				p.mu.Unlock()
				return n, nil
			}
		}
		if !p.deadline.IsZero() {
			if !p.deadline.After(now) {
				p.mu.Unlock()
				return 0, os.ErrDeadlineExceeded
			}
			if until.IsZero() || p.deadline.Before(until) {
				until = p.deadline
			}
		}
		p.mu.Unlock()
		if until.IsZero() {
			<-p.wake
			continue
		}
		t := time.NewTimer(time.Until(until))
		select {
		case <-p.wake:
		case <-t.C:
		}
		t.Stop()
	}
}
