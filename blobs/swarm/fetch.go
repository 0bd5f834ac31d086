package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/blobs"
)

// Request says what to fetch, and of whom.
type Request struct {
	Root cid.Cid
	// Scope tells sources what the content is needed for, at most 512 bytes. They
	// do not believe it; it makes their check cheap.
	Scope string
	// From are peers that may have it, the most likely first. Others that fetch the
	// same root from here are asked as well.
	From []peer.AddrInfo
	// Size is how many bytes the content has, where it is one file and that is known:
	// what claims to be much larger, or is cut into far more blocks than that needs,
	// is ErrTooLarge. 0 where it is not known.
	Size int64
	// Background lets the fetch step back behind others.
	Background bool
	// Progress, if not nil, gets the bytes of leaves held and those in all, as the
	// nodes claim. It is called by one goroutine at a time and must return soon;
	// first when all inner nodes are here, and never after Fetch returned.
	Progress func(done, total int64)
}

// Fetch brings everything below a root into the store, durably. What is held costs
// nothing but a walk and needs no peer; calling it once more after a failure, or
// after the process was killed, goes on with what is missing. Calls for the same
// root share one fetch. GC spares the root while Fetch runs and for the store's
// Config.Grace after it succeeded; pin it for longer, best before.
//
// Errors: ErrNoSource where nobody gives it, which is also what a refusal looks
// like; blobs.ErrStalled, ErrBadNode, ErrTooLarge, ErrNoRoom, ErrDiskFull, and
// ctx's.
func (e *Exchange) Fetch(ctx context.Context, req Request) error {
	if _, err := blobs.ParseCID(req.Root.String()); err != nil {
		return err
	}
	if len(req.Scope) > maxScope {
		return fmt.Errorf("fetch %s: a scope of %d bytes, of at most %d", req.Root, len(req.Scope), maxScope)
	}
	for again := true; ; again = false {
		err, mine := e.fetch(ctx, req)
		switch {
		case err == nil:
			return nil
		case !mine && again && (errors.Is(err, ErrNoSource) || errors.Is(err, blobs.ErrTooLarge)):
			// It failed for somebody who knew of others, perhaps before this caller's
			// sources were asked, or who expected less.
			continue
		}
		return fmt.Errorf("fetch %s: %w", req.Root, err)
	}
}

// fetch waits for the fetch of a root, and tells whether this call began it.
func (e *Exchange) fetch(ctx context.Context, req Request) (err error, mine bool) {
	f, w, err := e.join(ctx, req)
	if err != nil {
		return err, true
	}
	select {
	case <-f.done:
		err = f.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.part(w)
	return err, w.first
}

// watcher is one caller of Fetch.
type watcher struct {
	progress func(done, total int64)
	first    bool // it began the fetch
}

// fetch is what all callers of Fetch for one root share.
type fetch struct {
	e      *Exchange
	root   cid.Cid
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done
	share  *share
	in     *blobs.Intake

	watchers map[*watcher]struct{} // guarded by the exchange's mu

	// Guarded by told, which is held while they are called.
	told        sync.Mutex
	hear        map[*watcher]struct{}
	known       bool // total is
	have, total int64

	hurry     chan struct{} // closed when it is no longer a background fetch
	hurryOnce sync.Once
	changed   chan struct{} // candidates or sources have
	failed    chan error    // of the store
	work      chan arrival
	wg        sync.WaitGroup
	moved     atomic.Int64 // bytes that came, of blocks and all else

	mu         sync.Mutex
	scope      string
	size       int64 // expected; 0 where it is not known
	nodes      int64 // bytes of inner nodes that came
	over       bool  // no source may start any more
	candidates map[peer.ID]*candidate
	order      []*candidate
	sources    map[*source]struct{}
	round      *round
	tree       *tree
	twins      map[uint32][]uint32 // of a leaf that is named more than once, the others
	waiting    map[digest]*landing
	ahead      int       // bytes of them that are in memory
	advanced   time.Time // when something was verified
	storing    int       // verifiers that wait for the store, perhaps
	loans      []loans
}

// join makes the caller a watcher of the fetch of its root.
func (e *Exchange) join(ctx context.Context, req Request) (*fetch, *watcher, error) {
	w := &watcher{progress: req.Progress}
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return nil, nil, errors.New("this peer is stopping")
		}
		f := e.fetches[req.Root]
		if f == nil {
			f, w.first = e.start(req), true
		}
		if len(f.watchers) > 0 || f.fresh() {
			f.watchers[w] = struct{}{}
			e.mu.Unlock()
			f.listen(w)
			f.mu.Lock()
			f.scope = req.Scope // the latest reason is the one most likely to hold
			if req.Size == 0 || f.size != 0 && req.Size > f.size {
				f.size = req.Size // who expects less may be wrong
			}
			f.mu.Unlock()
			f.offer(true, req.From...)
			if !req.Background {
				f.hurryOnce.Do(func() { close(f.hurry) })
			}
			return f, w, nil
		}
		e.mu.Unlock()
		// It is being given up: what it has got is kept, and then it begins anew.
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// fresh tells whether nobody has watched the fetch yet.
func (f *fetch) fresh() bool { return f.ctx.Err() == nil && len(f.watchers) == 0 }

// start begins a fetch; the caller holds the exchange's mu.
func (e *Exchange) start(req Request) *fetch {
	f := &fetch{
		e: e, root: req.Root, done: make(chan struct{}),
		watchers: make(map[*watcher]struct{}), hear: make(map[*watcher]struct{}),
		hurry: make(chan struct{}), changed: make(chan struct{}, 1), failed: make(chan error, 1), work: make(chan arrival),
		candidates: make(map[peer.ID]*candidate), sources: make(map[*source]struct{}), waiting: make(map[digest]*landing),
	}
	f.ctx, f.cancel = context.WithCancel(e.ctx)
	// Before it runs: a fetch that knows nobody to ask ends at once.
	f.scope, f.size = req.Scope, req.Size
	f.offer(true, req.From...)
	e.fetches[req.Root] = f
	e.wg.Go(f.run)
	return f
}

// bounds are how large the content may be.
func (f *fetch) bounds() bounds {
	f.mu.Lock()
	defer f.mu.Unlock()
	return boundsOf(f.e.cfg.MaxBytes, f.size)
}

// part ends a watch; the last to part ends the fetch and waits for it.
func (f *fetch) part(w *watcher) {
	f.told.Lock()
	delete(f.hear, w)
	f.told.Unlock()
	f.e.mu.Lock()
	delete(f.watchers, w)
	last := len(f.watchers) == 0
	if last {
		f.cancel()
	}
	f.e.mu.Unlock()
	if last {
		<-f.done
	}
}

func (f *fetch) listen(w *watcher) {
	if w.progress == nil {
		return
	}
	f.told.Lock()
	defer f.told.Unlock()
	f.hear[w] = struct{}{}
	if f.known {
		w.progress(f.have, f.total)
	}
}

// tell adds to what is held.
func (f *fetch) tell(bytes int64) {
	f.told.Lock()
	defer f.told.Unlock()
	f.have += bytes
	for w := range f.hear {
		w.progress(f.have, f.total)
	}
}

// run is the fetch.
func (f *fetch) run() {
	defer close(f.done)
	err := f.turn()
	if err == nil {
		err = f.bring()
	}
	f.e.mu.Lock()
	f.err = err
	delete(f.e.fetches, f.root)
	f.cancel()
	f.e.mu.Unlock()
}

// turn waits until it is this fetch's turn; what it takes is given back when the
// fetch is done.
func (f *fetch) turn() error {
	take := func(turns chan struct{}, or <-chan struct{}) error {
		select {
		case turns <- struct{}{}:
			go func() { <-f.done; <-turns }()
			return nil
		case <-or:
			return nil
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
	select {
	case <-f.hurry:
	default:
		if err := take(f.e.quiet, f.hurry); err != nil {
			return err
		}
	}
	return take(f.e.turns, nil)
}

func (f *fetch) bring() error {
	f.share = f.e.share(f.root)
	defer f.e.release(f.share)
	f.in = f.e.store.NewIntake(f.readable)
	defer f.in.Close()
	f.share.mu.Lock()
	f.share.fetch = f
	f.share.mu.Unlock()
	defer f.unshare()
	f.advanced = time.Now()
	err := f.content()
	f.quit()
	if err == nil {
		err = f.in.Hold(f.root)
	} else {
		_ = f.in.Flush() // keep what came, to go on from
	}
	f.mu.Lock()
	for d := range f.waiting { // what somebody else stored meanwhile
		f.land(d)
	}
	f.mu.Unlock()
	return err
}

// unshare leaves what is here to the streams that are served from it.
func (f *fetch) unshare() {
	f.share.mu.Lock()
	defer f.share.mu.Unlock()
	f.share.fetch, f.share.nodes = nil, nil
	if f.share.tree != nil {
		return
	}
	for s := range f.share.streams { // there is nothing to wait for
		s.cancel()
	}
}

// quit ends all sources and what works for them.
func (f *fetch) quit() {
	f.mu.Lock()
	f.over = true
	for s := range f.sources {
		s.end(errOver)
	}
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}

var errOver = errors.New("the fetch is over")
