package httpapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Protocol is the libp2p protocol whose streams carry HTTP/1.1 requests to the
// leader, one on each stream.
const Protocol protocol.ID = "/vizpeer/api/1"

// Config tunes a [Server]. The zero value works, and lets no peer in.
type Config struct {
	// Version is vizpeer's, for the OpenAPI document.
	Version string
	// Member tells whether a peer is in the farm's roster. Streams of others are
	// reset, and nothing is ever sent to them. nil: nobody is.
	Member func(peer.ID) bool
	// MaxProject is the largest upload, in bytes; 0: 256 GiB.
	MaxProject int64
	// MaxEntries is how many files and folders an upload may hold; 0: 1,000,000.
	MaxEntries int
	// LeaderWait is how long a request waits for an election to end; 0: 3 s.
	LeaderWait time.Duration
	// KeepAlive is how often a silent event stream shows that it lives; 0: 15 s.
	KeepAlive time.Duration
	// TLS is for the listeners that other machines reach; nil: there may be none.
	TLS *tls.Config
	// Proxies are those whose X-Forwarded-For is believed.
	Proxies []netip.Prefix
	// MaxConns and MaxConnsEach are how many connections other machines may hold, all
	// together and each address (of IPv6: each network of 64 bits); proxies count as one
	// of all. 0: 4096 and 256.
	MaxConns, MaxConnsEach int
	// HeaderWait is how long a caller may take to say what it wants, TLS and all, and
	// BodyWait how long for a body that is a document; 0: 10 s and 30 s.
	HeaderWait, BodyWait time.Duration
	// Metrics takes the numbers of this server and is what GET /metrics shows; nil: its
	// own numbers alone.
	Metrics *prometheus.Registry
	// Stall is how long a caller may neither send nor take a byte; 0: 60 s.
	Stall time.Duration
	// Grace is how long requests may go on after the server was told to stop;
	// 0: 5 s.
	Grace time.Duration
	// Requests is how many requests a second a client address may make, in bursts of
	// twice as many; 0: 50. Other peers pass on ten times as many.
	Requests int
	// Logins is how many passwords a minute a client address may try before it has to
	// wait, for longer each time; 0: 10.
	Logins int
	Logger *slog.Logger // nil discards
}

// Server is the HTTP API of one peer. Serve answers programs and people, on as many
// listeners as there are; ServePeers, which may run once, the farm's other peers.
type Server struct {
	cfg    Config
	log    *slog.Logger
	local  Local
	queue  Queue
	leader Leader
	host   host.Host
	farm   *farmTransport

	requests, passed   *meter // of clients, and of peers for theirs
	tries, passedTries *meter // of passwords

	openAPI  []byte
	loopback http.Handler
	remote   http.Handler
	peers    http.Handler

	took  *prometheus.HistogramVec // requests
	conns *connLimit               // of other machines

	readers readers // of events
}

// New makes a server that answers from local and, where leader says that this
// peer leads, from queue; other farm requests go through host to the leader.
func New(cfg Config, local Local, queue Queue, leader Leader, host host.Host) *Server {
	cfg.MaxProject = cmp.Or(cfg.MaxProject, 256<<30)
	cfg.MaxEntries = cmp.Or(cfg.MaxEntries, 1_000_000)
	cfg.LeaderWait = cmp.Or(cfg.LeaderWait, 3*time.Second)
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, 15*time.Second)
	cfg.Stall = cmp.Or(cfg.Stall, time.Minute)
	cfg.Grace = cmp.Or(cfg.Grace, 5*time.Second)
	cfg.MaxConns = cmp.Or(cfg.MaxConns, 4096)
	cfg.MaxConnsEach = cmp.Or(cfg.MaxConnsEach, 256)
	cfg.HeaderWait = cmp.Or(cfg.HeaderWait, 10*time.Second)
	cfg.BodyWait = cmp.Or(cfg.BodyWait, 30*time.Second)
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	cfg.Requests = cmp.Or(cfg.Requests, 50)
	cfg.Logins = cmp.Or(cfg.Logins, 10)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Member == nil {
		cfg.Member = func(peer.ID) bool { return false }
	}
	s := &Server{cfg: cfg, log: cfg.Logger, local: local, queue: queue, leader: leader, host: host}
	s.requests = newMeter(float64(cfg.Requests), 2*cfg.Requests, false)
	s.passed = newMeter(float64(peerShare*cfg.Requests), 2*peerShare*cfg.Requests, false)
	s.tries = newMeter(float64(cfg.Logins)/60, cfg.Logins, true)
	s.passedTries = newMeter(float64(peerShare*cfg.Logins)/60, peerShare*cfg.Logins, false)
	s.farm = newFarmTransport(host, cfg.Member, leader)
	s.conns = newConnLimit(cfg.MaxConns, cfg.MaxConnsEach, s.proxy)
	s.measure(cfg.Metrics)
	s.loopback = s.handler(loopback)
	s.remote = s.handler(remote)
	s.peers = s.handler(stream)
	return s
}

// Listen opens an address of the API, such as 127.0.0.1:8787, localhost:0 or
// 0.0.0.0:8787.
func Listen(addr string) (net.Listener, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("the API address %q is not an address and a port: write it like 127.0.0.1:8787", addr)
	}
	if name == "localhost" {
		name = "127.0.0.1"
	}
	if name != "" && net.ParseIP(name) == nil {
		return nil, fmt.Errorf("the API address %q names a host: give one of this machine's addresses, such as 0.0.0.0 for all of them", addr)
	}
	network := "tcp"
	if ip := net.ParseIP(name); ip != nil && ip.To4() != nil {
		network = "tcp4" // Go would take 0.0.0.0 for every address of IPv6, too
	}
	l, err := net.Listen(network, net.JoinHostPort(name, port))
	if err != nil {
		return nil, fmt.Errorf("opening the API address %s: %w: another vizpeer may run here; give this one a port of its own with --api-listen, such as 127.0.0.1:0 for any that is free", addr, err)
	}
	return l, nil
}

var errBeyondLoopback = errors.New("other machines can reach that, and there is no certificate for HTTPS")

// Loopback tells whether only this machine's programs reach a listener.
func Loopback(l net.Listener) bool {
	tcp, ok := l.Addr().(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// Serve answers on l, which it closes, until ctx ends; then it ends the event
// streams, lets other requests finish for Config.Grace, and returns nil. When it
// returns, no request is being answered any more.
//
// Where only this machine reaches l, it speaks plain HTTP. Elsewhere it speaks HTTPS,
// but for connections of this machine that begin no TLS: they are as those on loopback.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if Loopback(l) {
		return s.serve(ctx, l, s.loopback)
	}
	if s.cfg.TLS == nil {
		return errors.Join(fmt.Errorf("serving the API on %s: %w", l.Addr(), errBeyondLoopback), l.Close())
	}
	sorted := newSorter(l, s.conns, s.cfg.HeaderWait)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return sorted.run(ctx) })
	g.Go(func() error { return s.serve(ctx, sorted.plain, s.loopback) })
	g.Go(func() error { return s.serve(ctx, tls.NewListener(sorted.secure, s.cfg.TLS), s.remote) })
	return g.Wait()
}

// ServePeers answers the streams on which other peers pass requests to this one,
// until ctx ends, as Serve does.
func (s *Server) ServePeers(ctx context.Context) error {
	l, err := gostream.Listen(s.host, Protocol)
	if err != nil {
		return fmt.Errorf("listening for requests of other peers: %w", err)
	}
	return s.serve(ctx, &memberListener{l, s.cfg.Member}, s.peers)
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	// Requests outlive ctx by the grace period; event streams, which never end by
	// themselves, look at ctx itself.
	base, giveUp := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), stoppingKey{}, ctx))
	defer giveUp()

	// A request holds the barrier for reading, so that nothing is answered from
	// backends that the caller closes after serve has returned.
	var barrier sync.RWMutex
	over := false
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			barrier.RLock()
			defer barrier.RUnlock()
			if !over {
				h.ServeHTTP(w, r)
			}
		}),
		// There is no ReadTimeout and no WriteTimeout: a project may take an hour
		// to upload. The gate sets deadlines that move while bytes flow.
		ReadHeaderTimeout: s.cfg.HeaderWait, // and of the TLS handshake
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, remoteKey{}, c.RemoteAddr())
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()

	select {
	case err := <-served:
		srv.Close()
		return fmt.Errorf("serving the API on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(base, s.cfg.Grace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		s.log.Warn("giving up requests that did not end in time", "grace", s.cfg.Grace)
		giveUp()
		srv.Close()
	}
	<-served
	barrier.Lock()
	over = true
	barrier.Unlock()
	return nil
}

type stoppingKey struct{}

// stopping is done when the server of this request was told to stop.
func stopping(ctx context.Context) context.Context {
	return ctx.Value(stoppingKey{}).(context.Context)
}

type remoteKey struct{}

// remotePeer is the peer at the other end of the stream that ctx's request came
// on, as the connection's handshake proved it.
func remotePeer(ctx context.Context) (peer.ID, error) {
	addr, ok := ctx.Value(remoteKey{}).(net.Addr)
	if !ok || addr.Network() != gostream.Network {
		return "", errors.New("the request did not come on a peer's stream")
	}
	return peer.Decode(addr.String())
}

// memberListener accepts the streams of members only.
type memberListener struct {
	net.Listener
	member func(peer.ID) bool
}

func (l *memberListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if id, err := peer.Decode(c.RemoteAddr().String()); err == nil && l.member(id) {
			return c, nil
		}
		// Not Close, which would wait for a stranger to read what was never sent.
		if r, ok := c.(interface{ Reset() error }); ok {
			r.Reset()
		}
	}
}
