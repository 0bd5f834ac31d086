package peer

import (
	"context"
	"time"

	"vizpeer/peer/spot"
)

// spotMargin is what is left of the time before the machine is taken away when attempts
// are stopped for good: what they gave has to reach others.
const spotMargin = 10 * time.Second

// spotUnknown is how long attempts may go on where nobody says when that will be: the
// shortest notice of the large clouds.
const spotUnknown = 25 * time.Second

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
	p.ads.Nudge() // that it drains
	p.worker.conclude(until, n.Reason, true)
	if ctx.Err() == nil {
		p.worker.handBack()
	}
	return nil
}
