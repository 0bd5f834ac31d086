package peer

import (
	"context"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
)

// ahead fetches the project that this machine is likely to need next while it
// renders others: one at a time, and only while no attempt waits for a fetch of
// its own. What it has fetched is pinned for a while, until the job ends or another
// is named.
type ahead struct {
	w *worker

	mu     sync.Mutex
	order  coord.Prefetch     // the latest; the zero one where there is none
	cancel context.CancelFunc // ends the fetch, or the wait for it
	done   chan struct{}      // closed when the fetch has ended; nil before the first
	busy   int                // attempts that fetch
	pause  context.CancelFunc // ends the fetch until no attempt fetches
	idle   chan struct{}      // closed when none does; nil where none does
}

// nextPin holds what was fetched ahead.
func nextPin(j lease.JobID) string { return "next:" + string(j) }

// begin fetches what is ordered, in the place of what was ordered before. It does
// not block.
func (a *ahead) begin(o coord.Prefetch) {
	root, err := cid.Decode(o.CID)
	if err != nil {
		a.w.slog.Warn("a project to be fetched ahead has no CID", "err", err)
		return
	}
	a.mu.Lock()
	before := a.order.Job
	if a.cancel != nil {
		a.cancel()
	}
	ctx, cancel := context.WithCancel(a.w.ctx)
	done := make(chan struct{})
	a.order, a.cancel, a.done = o, cancel, done
	a.mu.Unlock()
	a.w.crew.Go(func() {
		defer cancel()
		if before != "" && before != o.Job {
			a.w.unpin(nextPin(before))
		}
		err := a.fetch(ctx, root, o)
		close(done)
		if err != nil && ctx.Err() == nil {
			a.w.slog.Info("not fetched ahead", "job", o.Job, "err", err)
		}
		// Should its turn not come for long, it stays only while there is room.
		select {
		case <-time.After(aheadKept):
			a.w.unpin(nextPin(o.Job))
		case <-ctx.Done():
		}
	})
}

// aheadKept is how long a project that was fetched ahead is safe from eviction.
const aheadKept = time.Hour

// fetch waits until no attempt fetches, and begins anew when one did.
func (a *ahead) fetch(ctx context.Context, root cid.Cid, o coord.Prefetch) error {
	s := &sources{link: a.w.link, root: root, by: lease.ProjectOf(o.Job), from: o.From}
	for ctx.Err() == nil {
		a.mu.Lock()
		idle := a.idle
		mine, pause := context.WithCancel(ctx)
		a.pause = pause
		a.mu.Unlock()
		if idle != nil {
			select {
			case <-idle:
			case <-ctx.Done():
			}
			pause()
			continue
		}
		err := a.once(mine, root, o, s)
		paused := mine.Err() != nil
		pause()
		if err == nil || !paused {
			return err
		}
	}
	return ctx.Err()
}

func (a *ahead) once(ctx context.Context, root cid.Cid, o coord.Prefetch, s *sources) error {
	if err := a.w.store.Pin(ctx, root, nextPin(o.Job)); err != nil {
		return err
	}
	err := a.w.fetch.Fetch(ctx, swarm.Request{
		Root: root, Scope: s.by.String(), From: s.next(ctx), Background: true,
		Progress: func(done, total int64) { a.w.holdings.has(root, done, total) },
	})
	if err != nil {
		return err
	}
	a.w.holdings.has(root, 1, 1)
	a.w.slog.Info("a project was fetched ahead", "job", o.Job)
	return nil
}

// waits holds the fetching ahead up until done is called: an attempt waits for its
// own project.
func (a *ahead) waits() (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy++; a.busy == 1 {
		a.idle = make(chan struct{})
	}
	if a.pause != nil {
		a.pause()
	}
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.busy--; a.busy == 0 {
			close(a.idle)
			a.idle = nil
		}
	})
}

// giveWay gives up what was fetched ahead, for the room that it takes, and tells
// whether there was anything. It waits until the fetch has ended.
func (a *ahead) giveWay(ctx context.Context) bool {
	a.mu.Lock()
	order, done := a.order, a.done
	if order.Job != "" {
		a.cancel()
		a.order = coord.Prefetch{}
	}
	a.mu.Unlock()
	if order.Job == "" {
		return false
	}
	select {
	case <-done:
	case <-ctx.Done():
		return false
	}
	a.w.unpin(nextPin(order.Job))
	if root, err := cid.Decode(order.CID); err == nil {
		// What has come lately is not evicted, so it is forgotten, unless somebody else
		// needs it.
		if _, err := a.w.store.Forget(ctx, root); err != nil {
			a.w.slog.Warn("what was fetched ahead could not be given up", "job", order.Job, "err", err)
		}
	}
	a.w.slog.Info("what was fetched ahead gives way to what is rendered now", "job", order.Job)
	return true
}

// orders tells whether the latest order is of that job.
func (a *ahead) orders(j lease.JobID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.order.Job == j
}

// ended drops what was fetched ahead for a job that has ended.
func (a *ahead) ended(j lease.JobID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.order.Job == j {
		a.cancel()
		a.order = coord.Prefetch{}
	}
}
