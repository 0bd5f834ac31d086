package peer

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

// maxAddresses is how many addresses a count of visits remembers: with one more, the one
// that has been silent for the longest begins anew.
const maxAddresses = 10_000

// visits counts what strangers do, by their address: IDs cost them nothing.
type visits struct {
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	seen *simplelru.LRU[netip.Addr, *rate.Limiter]
}

func newVisits(each time.Duration, burst int) *visits {
	seen, err := simplelru.NewLRU[netip.Addr, *rate.Limiter](maxAddresses, nil)
	if err != nil {
		panic(err) // of a size below 1
	}
	return &visits{rate: rate.Every(each), burst: burst, seen: seen}
}

// may tells whether the machines at addr may go on, and counts n.
func (v *visits) may(addr netip.Addr, n int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	l, ok := v.seen.Get(addr)
	if !ok {
		l = rate.NewLimiter(v.rate, v.burst)
		v.seen.Add(addr, l)
	}
	now := time.Now()
	return l.TokensAt(now) >= 1 && l.AllowN(now, n)
}

// addressOf is the address that stands for all that one machine can give itself: of
// IPv6, the network. It is the zero Addr where there is none.
func addressOf(m multiaddr.Multiaddr) netip.Addr {
	ip, err := manet.ToIP(m)
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(ip)
	if addr = addr.Unmap(); addr.Is6() && !addr.IsLoopback() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}
