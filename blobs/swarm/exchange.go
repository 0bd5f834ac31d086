// Package swarm moves the content of one store to others: it serves what is held
// here to peers that have a right to it, and fetches what is missing from all who
// have it at once.
//
// Everything is asked for as part of a root. A fetcher opens one stream to each
// source, names the root and, where it helps, why it may have it; the source asks
// Config.Allow, and answers a peer that may not have the root exactly as one that
// asks for something that is not here. On a stream for one root no block of
// another can be read. First the inner nodes are fetched, by their digests; they
// number the leaves, so that from then on what somebody holds is a bitmap and what
// is wanted are spans of numbers. Those who fetch the same root at the same time
// find each other and exchange what they have, rarest first, so that the one who
// has everything sends little more than one copy.
//
// What it promises:
//   - Every block is verified by its hash before it is stored or given on. A source
//     that sends another block is left out, and told, so that it looks at its own.
//   - What is held is never asked for again: a fetch that was killed goes on.
//   - A source that is silent or far slower than the rest loses what it owes to
//     others; one that dies is tried again for a while.
//   - Memory stays bounded whatever peers send: each fetch holds 60 bytes a block,
//     which is half a GiB for the largest content, a few MiB a source and 32 MiB of
//     what the store does not give out yet; each stream served at most 2 MiB.
//   - Drop and Recheck end what a peer may no longer have in mid-transfer.
//
// What it does not do: it knows no jobs, members or rights, it looks for no sources
// beyond those it is told of and those who ask it for the same root, and it pins
// nothing.
//
// An Exchange may be used from any goroutine.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"vizpeer/blobs"
)

// Protocol is what peers speak to exchange blocks.
const Protocol protocol.ID = "/vizpeer/blobs/1"

// How many streams one peer, and all peers together, may have open here.
const (
	maxStreamsPeer = 64
	maxStreams     = 2048
)

// How many fetches run at once; others wait for their turn. Together they open
// fewer streams to one source than it allows.
const (
	maxFetches    = 24
	maxBackground = 8
)

// RaiseLimits lifts the limits of a host's resource manager that an Exchange may
// run into. Call it on the configuration the host is built with, before Build;
// limits already set are left alone.
func RaiseLimits(cfg *rcmgr.PartialLimitConfig) {
	if cfg.Protocol == nil {
		cfg.Protocol = map[protocol.ID]rcmgr.ResourceLimits{}
	}
	if cfg.ProtocolPeer == nil {
		cfg.ProtocolPeer = map[protocol.ID]rcmgr.ResourceLimits{}
	}
	if _, set := cfg.Protocol[Protocol]; !set {
		cfg.Protocol[Protocol] = rcmgr.ResourceLimits{Streams: 2 * maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams, Memory: 1 << 30}
	}
	if _, set := cfg.ProtocolPeer[Protocol]; !set {
		cfg.ProtocolPeer[Protocol] = rcmgr.ResourceLimits{Streams: 4 * maxStreamsPeer, StreamsInbound: 2 * maxStreamsPeer, StreamsOutbound: 2 * maxStreamsPeer, Memory: 256 << 20}
	}
	// The windows of its streams count against a peer as a whole, and must leave
	// some to other protocols.
	if cfg.PeerDefault.Memory == rcmgr.DefaultLimit64 {
		cfg.PeerDefault.Memory = 512 << 20
	}
}

// ErrNoSource: nobody who was asked gives the content, or nobody could be asked.
var ErrNoSource = errors.New("nobody gives the content")

// Config tunes an Exchange. Allow must be set.
type Config struct {
	// Allow says whether a peer may have everything below root. scope is what the
	// peer says it needs it for, and is not to be believed. Allow is called from
	// many goroutines, once for each stream and again by Recheck; it may wait, for
	// 15 s at most. An error is a no. Required: an exchange without it would serve
	// anybody.
	Allow func(ctx context.Context, who peer.ID, root cid.Cid, scope string) (bool, error)
	// Caps limit the bytes a second sent and received; the zero value does not. See
	// also SetCaps.
	Caps Caps
	// StallTimeout ends a Fetch that has got nothing for so long. 0: 30 s.
	StallTimeout time.Duration
	// MaxBytes is the largest content one Fetch takes. 0: 256 GiB.
	MaxBytes int64
	// Came, if set, is told of the bytes of each block that comes, wanted or not. It must
	// not block.
	Came func(from peer.ID, bytes int64)
	// Logger receives warnings about sources that lie, and debug lines; nil discards.
	Logger *slog.Logger
}

// Stats counts what an Exchange has moved since it was made, in bytes of blocks.
type Stats struct {
	Sent     int64
	Received int64 // everything, of which
	Wasted   int64 // was held already, or had another hash than it should
}

// Exchange serves a store to other peers and fetches from theirs. Make it with New.
type Exchange struct {
	host  host.Host
	store *blobs.Store
	cfg   Config
	log   *slog.Logger
	caps  atomic.Pointer[Caps]
	up    *limiter
	down  *limiter
	stats struct{ sent, received, wasted atomic.Int64 }

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	turns  chan struct{} // one for each fetch that runs
	quiet  chan struct{} // one for each background fetch that runs

	mu      sync.Mutex
	closed  bool
	shares  map[cid.Cid]*share
	streams map[*serving]struct{}
	peers   map[peer.ID]int // streams of each
	fetches map[cid.Cid]*fetch
}

// New starts serving s on h, which should have been built with RaiseLimits. Close
// the Exchange before the host and the store.
func New(h host.Host, s *blobs.Store, cfg Config) (*Exchange, error) {
	if cfg.Allow == nil {
		return nil, errors.New("block exchange: Config.Allow is required; it decides who may have what")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = 30 * time.Second
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 256 << 30
	}
	e := &Exchange{
		host: h, store: s, cfg: cfg, log: cfg.Logger, up: newLimiter(), down: newLimiter(),
		turns: make(chan struct{}, maxFetches), quiet: make(chan struct{}, maxBackground),
		shares: make(map[cid.Cid]*share), streams: make(map[*serving]struct{}),
		peers: make(map[peer.ID]int), fetches: make(map[cid.Cid]*fetch),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.SetCaps(cfg.Caps)
	h.SetStreamHandler(Protocol, e.serve)
	return e, nil
}

// Close stops serving, ends every Fetch, and waits for both.
func (e *Exchange) Close() error {
	e.host.RemoveStreamHandler(Protocol)
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
	return nil
}

// SetCaps replaces Config.Caps.
func (e *Exchange) SetCaps(c Caps) {
	c.Hours = slices.Clone(c.Hours)
	e.caps.Store(&c)
	e.up.set(first(c.At(time.Now())))
	e.down.set(second(c.At(time.Now())))
}

func first(up, _ int64) int64    { return up }
func second(_, down int64) int64 { return down }

// Stats tells what has been moved.
func (e *Exchange) Stats() Stats {
	return Stats{Sent: e.stats.sent.Load(), Received: e.stats.received.Load(), Wasted: e.stats.wasted.Load()}
}

// Drop ends at once every stream on which who is served. What it may have it may
// ask for again.
func (e *Exchange) Drop(who peer.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.streams {
		if s.peer == who {
			s.cancel()
		}
	}
}

// Recheck asks Allow again about the streams on which these peers are served, all
// if none is named, and ends those that it no longer allows. It does not wait.
func (e *Exchange) Recheck(who ...peer.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	for s := range e.streams {
		if !s.hello.root.Defined() || len(who) > 0 && !slices.Contains(who, s.peer) {
			continue
		}
		e.wg.Go(func() {
			if !s.allowed(e.ctx) {
				s.cancel()
			}
		})
	}
}

// enter counts a stream, unless there are too many.
func (e *Exchange) enter(s *serving) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.streams) >= maxStreams || e.peers[s.peer] >= maxStreamsPeer {
		return false
	}
	e.streams[s] = struct{}{}
	e.peers[s.peer]++
	e.wg.Add(1)
	return true
}

func (e *Exchange) exit(s *serving) {
	e.mu.Lock()
	delete(e.streams, s)
	if e.peers[s.peer]--; e.peers[s.peer] == 0 {
		delete(e.peers, s.peer)
	}
	e.mu.Unlock()
	e.wg.Done()
}

// share returns what is known of a root, until release.
func (e *Exchange) share(root cid.Cid) *share {
	e.mu.Lock()
	defer e.mu.Unlock()
	sh := e.shares[root]
	if sh == nil {
		sh = &share{root: root}
		e.shares[root] = sh
	}
	sh.users++
	return sh
}

func (e *Exchange) release(sh *share) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if sh.users--; sh.users == 0 {
		delete(e.shares, sh.root)
	}
}

// send writes b within the limit on what is sent. Each slice has writeTime: a line
// that is shared by many may be thin.
func (e *Exchange) send(ctx context.Context, stream network.Stream, b []byte) error {
	for len(b) > 0 {
		e.up.set(first(e.caps.Load().At(time.Now())))
		n := min(len(b), e.up.turn())
		if err := e.up.take(ctx, n); err != nil {
			return err
		}
		_ = stream.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := stream.Write(b[:n]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// Turn waits until n bytes of others, which this machine passes on, may be sent within
// the limit on what it sends.
func (e *Exchange) Turn(ctx context.Context, n int) error {
	e.up.set(first(e.caps.Load().At(time.Now())))
	return e.up.take(ctx, n)
}

// throttled reads what a source sends within the limit on what is received.
type throttled struct {
	s   *source
	ctx context.Context
	r   io.Reader
}

func (t *throttled) Read(b []byte) (int, error) {
	e := t.s.f.e
	e.down.set(second(e.caps.Load().At(time.Now())))
	if e.down.limited() {
		b = b[:min(len(b), e.down.turn())]
	}
	n, err := t.r.Read(b)
	if n > 0 {
		t.s.f.moved.Add(int64(n))
		free := t.s.busy()
		if lerr := e.down.take(t.ctx, n); lerr != nil && err == nil {
			err = lerr
		}
		free()
	}
	return n, err
}
