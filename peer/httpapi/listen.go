package httpapi

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// connLimit counts the connections of other machines.
type connLimit struct {
	max, each int
	exempt    func(netip.Addr) bool // from each

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

func newConnLimit(max, each int, exempt func(netip.Addr) bool) *connLimit {
	return &connLimit{max: max, each: each, exempt: exempt, of: make(map[netip.Addr]int)}
}

// take counts a connection in. release, which may be called more than once, counts it
// out. Connections of this machine are not counted.
func (l *connLimit) take(a netip.Addr) (release func(), ok bool) {
	if a.IsLoopback() {
		return func() {}, true
	}
	exempt := l.exempt(a)
	if a.Is6() {
		// A machine has as many addresses of its network as it likes.
		if p, err := a.Prefix(64); err == nil {
			a = p.Addr()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.max || !exempt && l.of[a] >= l.each {
		return nil, false
	}
	l.all++
	l.of[a]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all--
		if l.of[a]--; l.of[a] == 0 {
			delete(l.of, a)
		}
	}), true
}

// sorter sorts the connections of a listener that other machines reach: those of this
// machine that do not begin with TLS are plain, all others secure. Those beyond the limit
// are closed at once.
type sorter struct {
	l             net.Listener
	limit         *connLimit
	patience      time.Duration // for the first byte
	plain, secure *sorted
	stopped       chan struct{}
	looking       sync.WaitGroup
}

func newSorter(l net.Listener, limit *connLimit, patience time.Duration) *sorter {
	s := &sorter{l: l, limit: limit, patience: patience, stopped: make(chan struct{})}
	s.plain, s.secure = newSorted(l.Addr()), newSorted(l.Addr())
	return s
}

// run sorts until ctx ends, and closes the listener.
func (s *sorter) run(ctx context.Context) error {
	defer s.looking.Wait()
	defer close(s.stopped)
	defer context.AfterFunc(ctx, func() { _ = s.l.Close() })()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 5*time.Millisecond, time.Second
	for {
		c, err := s.l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // such as too many open files: it may pass
			select {
			case <-time.After(pause.NextBackOff()):
			case <-ctx.Done():
			}
			continue
		}
		pause.Reset()
		var from netip.Addr
		if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = tcp.AddrPort().Addr().Unmap().WithZone("")
		}
		release, ok := s.limit.take(from)
		if !ok {
			_ = c.Close()
			continue
		}
		c = &countedConn{c, release}
		s.looking.Go(func() {
			if from.IsLoopback() {
				s.look(c)
			} else {
				s.secure.give(c, s.stopped)
			}
		})
	}
}

// tlsHandshake is the first byte of every TLS connection, and of no HTTP request.
const tlsHandshake = 22

func (s *sorter) look(c net.Conn) {
	var first [1]byte
	_ = c.SetReadDeadline(time.Now().Add(s.patience))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.stopped:
			_ = c.SetReadDeadline(time.Now())
		case <-stop:
		}
	}()
	n, err := c.Read(first[:])
	if n == 0 || err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := s.plain
	if first[0] == tlsHandshake {
		to = s.secure
	}
	to.give(&begunConn{Conn: c, first: first[:]}, s.stopped)
}

// countedConn is counted out when it is closed.
type countedConn struct {
	net.Conn
	release func()
}

func (c *countedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// begunConn is a connection of which some was read before.
type begunConn struct {
	net.Conn
	first []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// sorted is a listener that is given its connections.
type sorted struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newSorted(addr net.Addr) *sorted {
	done := make(chan struct{})
	return &sorted{addr: addr, conns: make(chan net.Conn), done: done, close: sync.OnceFunc(func() { close(done) })}
}

func (l *sorted) give(c net.Conn, stopped <-chan struct{}) {
	select {
	case l.conns <- c:
	case <-l.done:
		_ = c.Close()
	case <-stopped:
		_ = c.Close()
	}
}

func (l *sorted) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *sorted) Close() error {
	l.close()
	return nil
}

func (l *sorted) Addr() net.Addr { return l.addr }
