package blobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
)

// Freed is what a GC removed.
type Freed struct {
	Roots  int   // cached roots that were evicted, or had lost their own block
	Blocks int   // removed
	Bytes  int64 // in those blocks
	Disk   int64 // by how much the folder shrank; may be negative while others write
}

// GC removes the blocks that no root reaches, pinned or cached, and no running or
// recent operation needs, and gives their space back to the disk. It may run at
// any time beside imports, fetches and reads, which it stops only for moments;
// calls queue up. A reader of content that nothing holds may see ErrNotFound.
func (s *Store) GC(ctx context.Context) (Freed, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	return s.collect(ctx, math.MaxInt64, math.MaxInt64)
}

// Evict gives up cached roots, the least recently used first, until all that the
// store holds comes to at most keep bytes, or to what pins and running operations
// need; then it does what GC does. Evict(ctx, 0) leaves nothing that is not needed.
func (s *Store) Evict(ctx context.Context, keep int64) (Freed, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	return s.collect(ctx, max(keep, 0), math.MaxInt64)
}

// collect is GC, with eviction of the least recently used cached roots until all
// that is held comes to at most keep bytes. If what may not be evicted comes to
// more than limit, nothing is: it would be in vain. gcMu is held.
func (s *Store) collect(ctx context.Context, keep, limit int64) (Freed, error) {
	var freed Freed
	// Before the roots are read: from here on, whatever is imported, fetched or
	// pinned is spared.
	s.grace.beginGC()
	defer s.grace.endGC()
	before, err := s.diskUse()
	if err != nil {
		return freed, fmt.Errorf("gc: %w", err)
	}
	live, err := s.mark(ctx, keep, limit)
	if err != nil {
		return freed, fmt.Errorf("gc: mark: %w", err)
	}
	if freed.Roots, err = s.evict(ctx, live.evict); err != nil {
		return freed, failed("gc: evict", s.dir, err)
	}
	// Where the disk is full, what has been removed makes room to remove the rest.
	for full := true; full; {
		packs := s.packs.Allocated()
		err := s.remove(ctx, live.blocks, &freed)
		if full = errors.Is(err, ErrDiskFull); err != nil && !full {
			return freed, failed("gc: sweep", s.dir, err)
		}
		if err := s.reclaim(ctx); err != nil {
			return freed, failed("gc: reclaim", s.dir, err)
		}
		if full && s.packs.Allocated() >= packs {
			return freed, failed("gc: sweep", s.dir, err)
		}
	}
	after, err := s.diskUse()
	if err != nil {
		return freed, fmt.Errorf("gc: %w", err)
	}
	freed.Disk = before - after
	level := slog.LevelDebug
	if freed.Roots > 0 {
		level = slog.LevelInfo
	}
	s.log.Log(ctx, level, "gc done", "roots", freed.Roots, "blocks", freed.Blocks, "bytes", freed.Bytes, "disk", freed.Disk)
	return freed, nil
}

// marking is what the roots reach.
type marking struct {
	s       *Store
	blocks  *bloom
	seen    map[digest]struct{} // inner nodes
	asked   []digest            // blocks whose length is wanted
	pinned  int64               // bytes that pins and grace reach
	running int64               // those that operations under way have touched beside
	cached  int64               // and those that only cached roots reach
	evict   []cid.Cid
}

// mark goes through all roots: first those that must stay, then the cached ones,
// the most recently used first, as long as all comes to at most keep.
func (s *Store) mark(ctx context.Context, keep, limit int64) (*marking, error) {
	n := int(s.index.counts().blocks)
	m := &marking{s: s, blocks: newBloom(n), seen: map[digest]struct{}{}}
	pinned, err := s.pinnedRoots(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range s.grace.held(time.Now()) {
		pinned[c] = struct{}{}
	}
	for c := range pinned {
		n, err := m.walk(ctx, c, m.blocks)
		if err != nil {
			return nil, err
		}
		m.pinned += n
	}
	if keep < math.MaxInt64 {
		if err := m.spared(ctx); err != nil {
			return nil, err
		}
	}
	if m.pinned+m.running > limit {
		keep = math.MaxInt64
	}
	roots, err := s.rootsByUse(ctx)
	if err != nil {
		return nil, err
	}
	into := m.blocks
	if keep < math.MaxInt64 {
		into = newBloom(n) // not to keep half of a root that does not fit
	}
	for i, r := range roots {
		if _, ok := pinned[r.CID]; ok {
			continue
		}
		if held, err := s.rootHeld(r.CID); err != nil {
			return nil, err
		} else if !held { // pinned once, and never came
			m.evict = append(m.evict, r.CID)
			continue
		}
		n, err := m.walk(ctx, r.CID, into)
		if err != nil {
			return nil, err
		}
		if m.pinned+m.running+m.cached+n > keep {
			for _, r := range roots[i:] {
				if _, ok := pinned[r.CID]; !ok {
					m.evict = append(m.evict, r.CID)
				}
			}
			break
		}
		m.cached += n
		if into != m.blocks {
			m.blocks.merge(into)
		}
	}
	s.usage.set(m.pinned, m.cached, s.index.counts().bytes)
	return m, nil
}

// rootHeld reports whether anything can be reached from a root.
func (s *Store) rootHeld(root cid.Cid) (bool, error) {
	d, err := digestOf(root)
	if err != nil {
		return false, nil
	}
	held, err := s.has(d)
	return err == nil && held[0], err
}

// walk adds what root reaches to into and returns the bytes of it that are held
// and in neither into nor m.blocks yet.
func (m *marking) walk(ctx context.Context, root cid.Cid, into *bloom) (int64, error) {
	var sum int64
	err := m.s.walk(ctx, root, m.seen, func(d digest, _ int64) error {
		if m.blocks.has(d) || into != m.blocks && into.has(d) {
			return nil
		}
		into.add(d)
		if m.asked = append(m.asked, d); len(m.asked) < 1024 {
			return nil
		}
		return m.measure(&sum)
	})
	if err != nil {
		return 0, err
	}
	return sum, m.measure(&sum)
}

// spared adds what no root reaches that must stay, and yet GC will not remove.
func (m *marking) spared(ctx context.Context) error {
	ts := m.s.grace.spared()
	return m.s.index.each(ctx, digest{}, func(d digest, p place) error {
		if !m.blocks.has(d) && slices.ContainsFunc(ts, func(t *touched) bool { return t.has(d) }) {
			m.blocks.add(d)
			m.running += int64(p.length)
		}
		return nil
	})
}

func (m *marking) measure(sum *int64) error {
	err := m.s.index.find(m.asked, func(_ int, p place) { *sum += int64(p.length) })
	m.asked = m.asked[:0]
	return err
}

// evict forgets roots that no pin has taken and nobody has brought again meanwhile.
func (s *Store) evict(ctx context.Context, roots []cid.Cid) (int, error) {
	n := 0
	for _, c := range roots {
		gone, err := s.forget(ctx, c, false)
		if err != nil {
			return n, err
		}
		if gone {
			n++
			s.log.Debug("forgot a cached root", "root", c)
		}
	}
	return n, nil
}

const sweepBatch = 1024 // keeps imports waiting for one fsync at a time

func (s *Store) remove(ctx context.Context, live *bloom, freed *Freed) error {
	var batch []digest
	flush := func() error {
		s.sweep.Lock()
		defer s.sweep.Unlock()
		spared := s.grace.spared()
		var n count
		err := s.index.update(freeing, func(c *change) error {
			for _, d := range batch {
				if slices.ContainsFunc(spared, func(t *touched) bool { return t.has(d) }) {
					continue
				}
				p, err := c.remove(d)
				if err != nil {
					return err
				}
				if p.length >= 0 {
					n.add(1, p.length)
				}
			}
			return nil
		})
		batch = batch[:0]
		if err == nil {
			freed.Blocks += int(n.blocks)
			freed.Bytes += n.bytes
		}
		return err
	}
	err := s.index.each(ctx, digest{}, func(d digest, _ place) error {
		if live.has(d) {
			return nil
		}
		if batch = append(batch, d); len(batch) == sweepBatch {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}
