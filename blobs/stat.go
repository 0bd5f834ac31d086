package blobs

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
)

// Stat is what a store holds.
type Stat struct {
	Blocks   int   // stored
	Bytes    int64 // in those blocks
	Disk     int64 // bytes the folder really takes on disk, its index and what is held back for a full disk included
	Quota    int64 // and may take
	Most     int64 // and may take beside what is held back for when the disk is full
	Reserved int64 // bytes kept for what is still to come
	Roots    int   // pinned or cached
	Pins     int   // distinct pinned roots

	// Bytes comes to these three, as of Measured: GC, eviction and Measure count
	// them. A zero Measured says that none has since Open.
	Pinned   int64 // reached by a pin, or in its grace time
	Cached   int64 // reached by a cached root alone
	Garbage  int64 // reached by nothing: unfinished imports and fetches, or what GC will remove
	Measured time.Time
}

// usage is the outcome of the last marking.
type usage struct {
	mu             sync.Mutex
	pinned, cached int64
	garbage        int64
	at             time.Time
}

func (u *usage) set(pinned, cached, all int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pinned, u.cached, u.garbage, u.at = pinned, cached, max(0, all-pinned-cached), time.Now()
}

// Stat tells what the store holds. It looks at the pins and roots, not at the
// blocks: milliseconds for thousands of them.
func (s *Store) Stat(ctx context.Context) (Stat, error) {
	all := s.index.counts()
	st := Stat{Blocks: int(all.blocks), Bytes: all.bytes, Quota: s.space.quota}
	s.space.mu.Lock()
	st.Reserved = s.space.reserved
	s.space.mu.Unlock()
	s.usage.mu.Lock()
	st.Pinned, st.Cached, st.Garbage, st.Measured = s.usage.pinned, s.usage.cached, s.usage.garbage, s.usage.at
	s.usage.mu.Unlock()
	pinned, err := s.pinnedRoots(ctx)
	if err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	roots, err := s.rootsByUse(ctx)
	if err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	st.Pins, st.Roots = len(pinned), len(roots)
	if st.Disk, err = s.diskUse(); err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	st.Most = st.Quota - s.index.ballast.size
	return st, nil
}

// Measure is Stat with Pinned, Cached and Garbage as they are now. It goes through
// every root: about a second for 500,000 blocks.
func (s *Store) Measure(ctx context.Context) (Stat, error) {
	s.gcMu.Lock()
	_, err := s.mark(ctx, math.MaxInt64, math.MaxInt64)
	s.gcMu.Unlock()
	if err != nil {
		return Stat{}, fmt.Errorf("measure: %w", err)
	}
	return s.Stat(ctx)
}
