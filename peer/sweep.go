package peer

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"vizpeer/blobs"
	"vizpeer/lease"
)

// How long this machine promises to keep what nobody asks it for any more. What is
// let go then stays cached until there is need of room.
const (
	keepUploads = 24 * time.Hour // projects that no job took, pictures of frames under way
	// Frames and logs, since they were kept, and in any case as long as the farm
	// remembers their job: that is while it is open and as long again after its end.
	keepFrames  = 30 * 24 * time.Hour
	sweepPeriod = time.Hour
)

// measurePause is how long what was let go waits for more to be let go, before it
// is counted: several jobs may end at once. Where the counting is long, the pause
// is longer, so that at most a twentieth of the time goes into it.
const measurePause = 5 * time.Second

// sweep lets go of what was kept for long enough and removes what unfinished
// uploads and fetches left, once after the start and then every hour; when
// something was let go, it finds out how much room there is. It runs until ctx
// ends. Need of room has the store itself sweep.
func (p *Peer) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepPeriod)
	defer tick.Stop()
	work := p.sweepOnce
	for {
		began := time.Now()
		if err := work(ctx); err != nil && ctx.Err() == nil {
			p.slog.Warn("the store could not be looked through; it is tried again in an hour", "err", err)
		}
		took := time.Since(began)
		p.ads.Nudge() // how much room there is was just measured
		select {
		case <-p.freed:
			select {
			case <-time.After(max(measurePause, 20*took)):
			case <-ctx.Done():
				return nil
			}
			work = p.measure
		case <-tick.C:
			work = p.sweepOnce
		case <-ctx.Done():
			return nil
		}
	}
}

// letGo says that pins were taken back, so that there may be more room than the
// last ad said.
func (p *Peer) letGo() {
	select {
	case p.freed <- struct{}{}:
	default: // it is known already
	}
}

func (p *Peer) measure(ctx context.Context) error {
	_, err := p.store.Measure(ctx)
	return err
}

func (p *Peer) sweepOnce(ctx context.Context) error {
	stale, err := stale(p.store.Pins(ctx), time.Now(), func(jobs []lease.JobID) ([]lease.JobID, error) { return p.link.Recall(ctx, jobs) })
	if err != nil {
		return err
	}
	for _, pin := range stale {
		if err := p.store.Unpin(ctx, pin.Root, pin.Holder); err != nil {
			return err
		}
	}
	freed, err := p.store.GC(ctx)
	if freed.Blocks > 0 {
		p.slog.Info("room was given back", "blocks", freed.Blocks, "bytes", freed.Bytes)
	}
	return err
}

// recallBatch is how many jobs are asked about at once.
const recallBatch = 10_000

// stale lists the pins that are to be taken back. recall asks the farm which jobs
// it remembers: where it cannot be asked, frames are kept until it can.
func stale(pins iter.Seq2[blobs.Pin, error], now time.Time, recall func([]lease.JobID) ([]lease.JobID, error)) ([]blobs.Pin, error) {
	var stale []blobs.Pin
	frames := make(map[lease.JobID][]blobs.Pin) // that have been kept for long enough, were their jobs over
	for pin, err := range pins {
		if err != nil {
			return nil, err
		}
		age := now.Sub(pin.At)
		if (strings.HasPrefix(pin.Holder, uploadPin("")) || strings.HasPrefix(pin.Holder, shownPin(""))) && age > keepUploads {
			stale = append(stale, pin)
		}
		if job, ok := strings.CutPrefix(pin.Holder, framePin("")); ok && age > keepFrames {
			frames[lease.JobID(job)] = append(frames[lease.JobID(job)], pin)
		}
	}
	for jobs := range slices.Chunk(slices.Collect(maps.Keys(frames)), recallBatch) {
		known, err := recall(jobs)
		if err != nil {
			break
		}
		for _, id := range known {
			delete(frames, id)
		}
		for _, id := range jobs {
			stale = append(stale, frames[id]...)
		}
	}
	return stale, nil
}
