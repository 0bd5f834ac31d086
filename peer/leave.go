package peer

import (
	"context"
	"sync"
	"time"

	"vizpeer/lease"
	"vizpeer/peer/spot"
)

// alone is what this machine rendered and nobody else is known to hold, by its CID. The
// zero value is ready.
type alone struct {
	mu    sync.Mutex
	of    map[string]lease.JobID
	empty chan struct{} // closed when nothing is; nil while nobody waits
}

func (a *alone) add(cid string, j lease.JobID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = make(map[string]lease.JobID)
	}
	a.of[cid] = j
}

// drop takes off what others hold by now, or nobody wants.
func (a *alone) drop(is func(cid string, j lease.JobID) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for cid, j := range a.of {
		if is(cid, j) {
			delete(a.of, cid)
		}
	}
	if len(a.of) == 0 && a.empty != nil {
		close(a.empty)
		a.empty = nil
	}
}

// wait returns when others hold everything, or when ctx ends. One may wait at a time.
func (a *alone) wait(ctx context.Context) {
	a.mu.Lock()
	if len(a.of) == 0 {
		a.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	a.empty = empty
	a.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// spotMargin is what is left of the time before the machine is taken away when attempts
// are stopped for good: what they gave has to reach others.
const spotMargin = 10 * time.Second

// spotUnknown is how long attempts may go on where nobody says when that will be: the
// shortest notice of the large clouds.
const spotUnknown = 25 * time.Second

// CheckSpotNotice reports what is wrong with a [Config.SpotNotice].
func CheckSpotNotice(source string) error { return spot.Check(source) }

// watchSpot waits for the word that the machine will be taken away. Then nothing more is
// begun here, attempts end with what they have while there is time, and what they leave
// is for others.
func (p *Peer) watchSpot(ctx context.Context) error {
	if p.cfg.SpotNotice == "" {
		return nil
	}
	n, err := spot.Watch(ctx, p.cfg.SpotNotice, p.slog)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		p.slog.Error("nobody will say when this machine is taken away", "err", err)
		return nil
	}
	left := spotUnknown
	if !n.At.IsZero() {
		left = max(0, time.Until(n.At)-spotMargin)
	}
	p.slog.Warn("this machine will be taken away: it takes no more work and saves what it has", "why", n.Reason, "at", n.At)
	until, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	p.worker.leave(n.Reason)
	p.ads.Nudge() // that it drains
	p.worker.conclude(until, true)
	if ctx.Err() == nil {
		p.worker.handBack()
		p.worker.alone.wait(until)
	}
	return nil
}
