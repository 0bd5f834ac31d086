package peer

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

// pace counts what each member does: says in gossip, asks of the CA, sends in joining
// again. Strangers are counted by their address: see visits.
type pace struct {
	rate  rate.Limit
	burst int

	mu   sync.Mutex
	done map[peer.ID]*rate.Limiter // of members; who is none any more costs a few bytes
}

// may tells whether p may do n more now, and counts them.
func (c *pace) may(p peer.ID, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(map[peer.ID]*rate.Limiter)
	}
	l := c.done[p]
	if l == nil {
		l = rate.NewLimiter(c.rate, c.burst)
		c.done[p] = l
	}
	return l.AllowN(time.Now(), n)
}
