package peer

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/render"
)

// holdings remembers which projects this machine holds, whole or in part, for its
// ads: the latest used, a few more than an ad may name.
type holdings struct {
	store   *blobs.Store
	changed func() // something that others should hear of soon; must not block

	loaded sync.Once

	mu    sync.Mutex
	known map[cid.Cid]holding
}

type holding struct {
	eighths int
	used    time.Time
	looked  time.Time // when the store was last asked
}

// maxHoldings bounds what is remembered.
const maxHoldings = 2 * lease.MaxHoldings

// looks is how many projects are looked up in the store before each ad: what was
// evicted is noticed within minutes, and an ad costs little.
const looks = 4

func newHoldings(store *blobs.Store, changed func()) *holdings {
	return &holdings{store: store, changed: changed, known: make(map[cid.Cid]holding)}
}

// load begins with the projects that the store holds, pinned or cached. What
// cannot be read is not told of.
func (h *holdings) load(ctx context.Context) {
	roots, err := h.store.Roots(ctx)
	if err != nil {
		return
	}
	known := 0
	for _, r := range slices.Backward(roots) {
		if r.CID.Type() == cid.Raw {
			continue // a file of one block: all of it would be read to find that out
		}
		if _, err := h.store.Lookup(ctx, r.CID, render.ManifestName); err != nil {
			continue // a frame, or something that a person keeps
		}
		if whole, err := h.store.Has(ctx, r.CID); err == nil && whole {
			h.note(r.CID, 1, 1, r.Used)
			known++
		}
		if known == lease.MaxHoldings || ctx.Err() != nil {
			return
		}
	}
}

// has notes that done of total bytes of a project are here.
func (h *holdings) has(root cid.Cid, done, total int64) { h.note(root, done, total, time.Now()) }

func (h *holdings) note(root cid.Cid, done, total int64, at time.Time) {
	if total <= 0 {
		return
	}
	eighths := int(min(done, total) * lease.Whole / total)
	h.mu.Lock()
	was := h.known[root].eighths
	h.known[root] = holding{eighths: eighths, used: at, looked: at}
	if len(h.known) > maxHoldings {
		delete(h.known, slices.MinFunc(slices.Collect(maps.Keys(h.known)), func(a, b cid.Cid) int { return h.known[a].used.Compare(h.known[b].used) }))
	}
	h.mu.Unlock()
	if eighths == lease.Whole && was != lease.Whole {
		h.changed()
	}
}

// room is how many bytes the store can take, evicting what nobody pins; nil where
// that cannot be told. Until it was looked at what is pinned, all of it counts.
func (h *holdings) room(ctx context.Context) *int64 {
	st, err := h.store.Stat(ctx)
	if err != nil {
		return nil
	}
	// What came since it was last measured may all be pinned.
	fresh := max(0, st.Bytes-st.Pinned-st.Cached-st.Garbage)
	room := max(0, st.Most-st.Pinned-fresh-st.Reserved)
	return &room
}

// list is what the next ad says.
func (h *holdings) list(ctx context.Context) lease.Holdings {
	h.loaded.Do(func() { h.load(ctx) })
	h.look(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	roots := slices.SortedFunc(maps.Keys(h.known), func(a, b cid.Cid) int {
		return cmp.Or(h.known[b].used.Compare(h.known[a].used), strings.Compare(a.KeyString(), b.KeyString()))
	})
	var out lease.Holdings
	for _, root := range roots {
		if e := h.known[root].eighths; e > 0 && len(out) < lease.MaxHoldings {
			out = append(out, lease.Holding{Project: lease.ShortCID(root.String()), Eighths: e})
		}
	}
	return out
}

// look asks the store about the projects that it was not asked about for the
// longest time, and forgets those that are whole no more.
func (h *holdings) look(ctx context.Context) {
	h.mu.Lock()
	var due []cid.Cid
	for root, k := range h.known {
		if k.eighths == lease.Whole && time.Since(k.looked) > adPeriod/2 {
			due = append(due, root)
		}
	}
	slices.SortFunc(due, func(a, b cid.Cid) int { return h.known[a].looked.Compare(h.known[b].looked) })
	h.mu.Unlock()
	for _, root := range due[:min(len(due), looks)] {
		whole, err := h.store.Has(ctx, root)
		if err != nil {
			continue
		}
		h.mu.Lock()
		if k, ok := h.known[root]; ok && whole {
			k.looked = time.Now()
			h.known[root] = k
		} else if ok {
			delete(h.known, root)
		}
		h.mu.Unlock()
	}
}
