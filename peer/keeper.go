package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/semaphore"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
)

// keeper holds the frames and projects that this machine is asked to hold, and
// writes the frames of its own user's jobs to their output folder. It tries until
// it succeeds or the job no longer needs it.
type keeper struct {
	store *blobs.Store
	fetch fetcher
	link  *link
	slog  *slog.Logger
	ctx   context.Context // the peer's
	crew  crew
	slots *semaphore.Weighted
	// stocked is told of projects that are here whole.
	stocked func(root cid.Cid)

	mu      sync.Mutex
	pending map[coord.KeepID]*keeping
}

// keepers is how many frames are fetched or written at once.
const keepers = 8

// keeping is something that is being fetched or written.
type keeping struct {
	ctx    context.Context // ends when nobody wants it any more
	cancel context.CancelFunc

	// Guarded by the keeper's mu.
	order coord.Keep         // the latest; its sources may change
	tried bool               // its sources could not give it
	retry context.CancelFunc // ends the try, or the pause, under way
}

// keep begins to keep what was ordered. It does not block.
func (k *keeper) keep(order coord.Keep) {
	id := order.ID()
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.pending[id]; p != nil {
		// What is fetched already is not fetched again.
		p.order, p.tried = order, false
		p.retry()
		return
	}
	p := &keeping{order: order, retry: func() {}}
	p.ctx, p.cancel = context.WithCancel(k.ctx)
	k.pending[id] = p
	k.crew.Go(func() { k.persist(id, p) })
}

// heldSoon is how long the word that a frame is here waits until it is written, too.
const heldSoon = 500 * time.Millisecond

// persist tries until the content is here and says so, and then, where it is to
// be written, until it is and says that: mostly in one report for both. A folder that
// cannot be written holds up neither the frame nor the job.
func (k *keeper) persist(id coord.KeepID, p *keeping) {
	defer p.cancel()
	hold := lease.Hold{Job: id.Job, Frame: id.Frame, CID: id.CID, Extra: id.Extra}
	switch {
	case !k.try(p, false, func(ctx context.Context, order coord.Keep) error { return k.hold(ctx, p, order) }):
		return
	case id.Project:
		k.forget(id, p)
		_, _ = k.link.Report(p.ctx, coord.Up{Stock: &lease.Stock{Job: id.Job}})
		return
	case id.Write:
		held := hold
		late := time.AfterFunc(heldSoon, func() {
			k.crew.Go(func() { _, _ = k.link.Report(p.ctx, coord.Up{Hold: &held}) })
		})
		defer late.Stop()
		if !k.try(p, true, func(ctx context.Context, order coord.Keep) error { return k.rewrite(ctx, p, order) }) {
			return
		}
		late.Stop()
		hold.Delivered = true
	}
	k.forget(id, p)
	_, _ = k.link.Report(p.ctx, coord.Up{Hold: &hold})
}

// forget takes something off the list before it is reported, so that a leader
// that asks again because it missed the report is answered.
func (k *keeper) forget(id coord.KeepID, p *keeping) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending[id] == p {
		delete(k.pending, id)
	}
}

// try does a step of keeping again and again, with growing pauses, and tells
// whether it was done: it is not where nobody wants it any more.
func (k *keeper) try(p *keeping, writing bool, step func(context.Context, coord.Keep) error) bool {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, 30*time.Second
	for fails := 0; ; {
		ctx, cancel := context.WithCancel(p.ctx)
		k.mu.Lock()
		order := p.order
		p.retry = cancel
		k.mu.Unlock()
		err := k.once(ctx, order, step)
		if err != nil && ctx.Err() == nil {
			k.slog.Warn("not kept yet", "job", order.Job, "err", err)
			// A source that is away for a moment troubles nobody: the next try asks
			// who has it by now.
			if fails++; fails > 1 || writing {
				k.link.Tell(coord.Up{Trouble: &coord.Trouble{Job: order.Job, Writing: writing, Reason: err.Error()}})
			}
			select {
			case <-time.After(pause.NextBackOff()):
			case <-ctx.Done():
			}
		}
		cancel()
		if p.ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
	}
}

// once does a step when it is its turn.
func (k *keeper) once(ctx context.Context, order coord.Keep, step func(context.Context, coord.Keep) error) error {
	if err := k.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer k.slots.Release(1)
	return step(ctx, order)
}

// drop gives up on what nobody wants any more.
func (k *keeper) drop(unwanted func(coord.KeepID) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.pending {
		if unwanted(id) {
			delete(k.pending, id)
			p.cancel()
		}
	}
}

// hold pins and fetches what was ordered.
func (k *keeper) hold(ctx context.Context, p *keeping, order coord.Keep) error {
	c, err := cid.Decode(order.CID)
	if err != nil {
		return fmt.Errorf("the content's CID: %w", err)
	}
	what, by := fmt.Sprintf("frame %d", order.Frame), lease.FrameOf(order.Job, order.Frame)
	if order.Project {
		what, by = "the project", lease.ProjectOf(order.Job)
		if err := k.store.Pin(ctx, c, jobPin(order.Job)); err != nil {
			return fmt.Errorf("keep %s: %w", what, err)
		}
	}
	k.mu.Lock()
	tried := p.tried
	p.tried = true
	s := &sources{link: k.link, root: c, by: by, from: order.From, tried: tried}
	k.mu.Unlock()
	if err := k.fetch.Fetch(ctx, swarm.Request{Root: c, Scope: by.String(), From: s.next(ctx), Size: order.Size}); err != nil {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	if order.Project {
		k.stocked(c)
		return nil
	}
	// Whoever rendered it said how large it is; a few blocks can describe a file
	// that fills a disk.
	r, size, err := k.store.OpenFile(ctx, c)
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	if err := r.Close(); err != nil {
		return err
	}
	if size != order.Size {
		return fmt.Errorf("%s has %d bytes where %d were reported", what, size, order.Size)
	}
	// Only now: what a machine calls a frame is not kept for weeks before it may be
	// one. Until here the fetch has kept it.
	if order.Extra != "" {
		if err := k.holdExtra(ctx, order, tried); err != nil {
			return err
		}
	}
	if err := k.store.Pin(ctx, c, framePin(order.Job)); err != nil {
		return fmt.Errorf("keep %s: %w", what, err)
	}
	return nil
}

// perExtra is what a file beside a frame may come to in the store beyond its content, in
// bytes: what describes it and the folders that it lies in.
const perExtra = 64 << 10

// holdExtra fetches and pins what belongs beside a frame, if it is what was reported and
// has its place in a folder of pictures.
func (k *keeper) holdExtra(ctx context.Context, order coord.Keep, tried bool) error {
	c, err := cid.Decode(order.Extra)
	if err != nil {
		return fmt.Errorf("the CID of what is beside the frame: %w", err)
	}
	by := lease.FrameOf(order.Job, order.Frame)
	s := &sources{link: k.link, root: c, by: by, from: order.From, tried: tried}
	request := swarm.Request{Root: c, Scope: by.String(), From: s.next(ctx), Size: order.ExtraSize + perExtra*int64(order.ExtraFiles)}
	if err := k.fetch.Fetch(ctx, request); err != nil {
		return fmt.Errorf("fetch what is beside frame %d: %w", order.Frame, err)
	}
	files, size := 0, int64(0)
	for e, err := range k.store.List(ctx, c) {
		if err != nil {
			return fmt.Errorf("read what is beside frame %d: %w", order.Frame, err)
		}
		if err := lease.CheckExtra(e.Path, order.Frame); err != nil {
			return fmt.Errorf("beside frame %d there is %q: %w", order.Frame, e.Path, err)
		}
		files, size = files+1, size+e.Size
		if files > order.ExtraFiles || size > order.ExtraSize {
			break
		}
	}
	if files != order.ExtraFiles || size != order.ExtraSize {
		return fmt.Errorf("beside frame %d there are other files than the %d with %d bytes that were reported", order.Frame, order.ExtraFiles, order.ExtraSize)
	}
	if err := k.store.Pin(ctx, c, framePin(order.Job)); err != nil {
		return fmt.Errorf("keep what is beside frame %d: %w", order.Frame, err)
	}
	return nil
}

// rewrite writes a frame, and fetches it again first where it has been lost since it
// was kept.
func (k *keeper) rewrite(ctx context.Context, p *keeping, order coord.Keep) error {
	err := k.write(ctx, order)
	if !errors.Is(err, blobs.ErrNotFound) && !errors.Is(err, blobs.ErrCorrupt) {
		return err
	}
	if err := k.hold(ctx, p, order); err != nil {
		return err
	}
	return k.write(ctx, order)
}

// write writes a frame that is here to the job's output folder.
func (k *keeper) write(ctx context.Context, order coord.Keep) error {
	c, err := cid.Decode(order.CID)
	if err != nil {
		return fmt.Errorf("the content's CID: %w", err)
	}
	if order.Name != filepath.Base(order.Name) || order.Name == ".." {
		return fmt.Errorf("frame %d has the file name %q", order.Frame, order.Name)
	}
	if err := os.MkdirAll(order.Dir, 0o755); err != nil {
		return fmt.Errorf("the output folder cannot be made: %w", err)
	}
	if err := k.writeExtra(ctx, order); err != nil {
		return err
	}
	if err := k.store.ExportFile(ctx, c, filepath.Join(order.Dir, order.Name)); err != nil {
		return fmt.Errorf("frame %d cannot be written to %s: %w", order.Frame, order.Dir, err)
	}
	return nil
}

// writeExtra writes what belongs beside a frame, before the frame: whoever sees that has
// all of it.
func (k *keeper) writeExtra(ctx context.Context, order coord.Keep) error {
	if order.Extra == "" {
		return nil
	}
	c, err := cid.Decode(order.Extra)
	if err != nil {
		return fmt.Errorf("the CID of what is beside the frame: %w", err)
	}
	if err := k.store.ExportDurably(ctx, c, order.Dir); err != nil {
		return fmt.Errorf("what is beside frame %d cannot be written to %s: %w", order.Frame, order.Dir, err)
	}
	return nil
}

// lost tells the farm that this machine's copies of some content are gone or
// damaged, so that others, or it itself, are asked to keep it: whatever holds a
// pin here was promised to somebody. It reports each once and gives up with ctx.
func (k *keeper) lost(ctx context.Context, roots map[cid.Cid]bool) error {
	type promise struct {
		job  lease.JobID
		root cid.Cid
	}
	promised := make(map[promise]bool)
	for pin, err := range k.store.Pins(ctx) {
		if err != nil {
			return fmt.Errorf("find out what was promised of damaged content: %w", err)
		}
		for _, prefix := range []string{jobPin(""), framePin("")} {
			if job, ok := strings.CutPrefix(pin.Holder, prefix); ok && roots[pin.Root] {
				promised[promise{lease.JobID(job), pin.Root}] = true
			}
		}
	}
	for p := range promised {
		k.slog.Warn("a copy kept for others is damaged: the farm is told", "job", p.job, "root", p.root)
		if _, err := k.link.Report(ctx, coord.Up{Unhold: &lease.Unhold{Job: p.job, CID: p.root.String()}}); err != nil {
			return err
		}
	}
	return nil
}

// checkOutput makes sure that frames can be written to dir, and that it is not
// where the peer keeps its own data.
func checkOutput(dir string, data dataDir) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("the output folder %q is not an absolute path", dir)
	}
	if own, err := filepath.Abs(data.path()); err != nil || contains(own, dir) {
		return fmt.Errorf("the output folder %q lies in vizpeer's own data folder: choose another with --output", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("the output folder cannot be made: %w; choose another with --output", err)
	}
	f, err := os.CreateTemp(dir, ".vizpeer-*")
	if err != nil {
		return fmt.Errorf("the output folder cannot be written: %w; choose another with --output", err)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return fmt.Errorf("the output folder cannot be written: %w; choose another with --output", err)
	}
	return nil
}

// contains tells whether path is dir or lies below it.
func contains(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && (rel == "." || filepath.IsLocal(rel))
}
