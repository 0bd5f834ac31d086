package httpapi

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

const (
	// maxOrigins is how many origins a meter remembers: with one more, the one that has
	// been silent for the longest begins anew.
	maxOrigins = 10_000
	// minBar and maxBar are the first and the longest delay after too many passwords;
	// each is twice the one before.
	minBar, maxBar = 5 * time.Second, 15 * time.Minute
	// peerShare is how many clients' worth of requests a peer may pass on.
	peerShare = 10
)

// origin is who sends requests, as far as limits go: the address of a client or,
// where another peer passes requests on, that peer.
type origin struct {
	addr netip.Addr
	peer peer.ID
}

// originOf is the origin of a request that came to this peer.
func originOf(r *http.Request, from side) origin {
	if from == stream {
		id, _ := remotePeer(r.Context())
		return origin{peer: id}
	}
	return origin{addr: household(clientAddr(r.Context()))}
}

// household is the address that stands for all that one machine can give itself:
// loopback, and a network of IPv6.
func household(a netip.Addr) netip.Addr {
	switch {
	case a.IsLoopback():
		return netip.IPv6Loopback()
	case a.Is6():
		p, _ := a.Prefix(64) // of an IPv6 address there is one
		return p.Addr()
	}
	return a
}

// meter counts what each origin does.
type meter struct {
	rate  rate.Limit // a second
	burst int
	grows bool // who does too much is barred, for longer every time

	mu   sync.Mutex
	seen *simplelru.LRU[origin, *allowance]
}

// allowance is what an origin has left.
type allowance struct {
	bucket *rate.Limiter
	barred time.Time     // until then it may do nothing
	bar    time.Duration // how long it was barred the last time
}

func newMeter(perSecond float64, burst int, grows bool) *meter {
	seen, err := simplelru.NewLRU[origin, *allowance](maxOrigins, nil)
	if err != nil {
		panic(err) // of a size below 1
	}
	return &meter{rate: rate.Limit(perSecond), burst: burst, grows: grows, seen: seen}
}

// take counts one more, and answers how long to wait where it is one too many: then
// it has not been counted.
func (m *meter) take(o origin, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.seen.Get(o)
	if !ok {
		a = &allowance{bucket: rate.NewLimiter(m.rate, m.burst)}
		m.seen.Add(o, a)
	}
	if wait := a.barred.Sub(now); wait > 0 {
		return wait
	}
	r := a.bucket.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return 0
	}
	r.CancelAt(now)
	if !m.grows {
		return wait
	}
	if now.Sub(a.barred) > max(time.Minute, a.bar) {
		a.bar = 0 // it has been good for a while
	}
	a.bar = min(maxBar, max(minBar, 2*a.bar))
	a.barred = now.Add(a.bar)
	return a.bar
}

// tooMany is the answer to one too many of what.
func tooMany(what string, wait time.Duration) *Problem {
	seconds := max(1, int(math.Ceil(wait.Seconds())))
	return newProblem(http.StatusTooManyRequests, CodeTooMany, fmt.Sprintf("too many %s from this address: try again in %d s", what, seconds), "Retry-After", strconv.Itoa(seconds))
}

// limit refuses a request of an origin that makes too many.
func (s *Server) limit(from side, r *http.Request) error {
	m := s.requests
	if from == stream {
		m = s.passed
	}
	if wait := m.take(originOf(r, from), time.Now()); wait > 0 {
		return tooMany("requests", wait)
	}
	return nil
}

// limitTries refuses a password of an origin that tries too many, before anybody
// spends time on it.
func (s *Server) limitTries(from side, r *http.Request) error {
	m := s.tries
	if from == stream {
		m = s.passedTries
	}
	if wait := m.take(originOf(r, from), time.Now()); wait > 0 {
		return tooMany("passwords", wait)
	}
	return nil
}

// recheck is how long a stream of events believes that its reader may go on.
const recheck = time.Second

// stillAllowed makes what tells whether the caller of ctx may still read what it
// follows: its key may be revoked meanwhile, its session over.
func (s *Server) stillAllowed(ctx context.Context) func() bool {
	c, checked, ok := callerOf(ctx), time.Now(), true
	return func() bool {
		if now := time.Now(); ok && now.Sub(checked) >= recheck {
			p, err := s.local.Authenticate(ctx, c.token)
			checked, ok = now, err == nil && p.User == c.User && p.Role == c.Role && !p.MustChange
		}
		return ok
	}
}
