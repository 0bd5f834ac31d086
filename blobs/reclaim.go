package blobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs/pack"
)

// reclaim gives the disk back what pack files hold and the index does not know:
// whole files, holes where the file system can have them, and where too much
// remains, by moving what is left of a file to another. gcMu is held.
func (s *Store) reclaim(ctx context.Context) error {
	var holey []pack.Info // with gaps to be punched
	var blocks int64
	for _, f := range s.packs.List() { // first: what is settled now is in the index, or never will be
		n := s.index.fileCount(f.File)
		switch {
		case n.blocks == 0:
			if err := s.packs.Remove(f.File, f.End); err != nil {
				return err
			}
			delete(s.punched, f.File)
			continue
		case !s.packs.CanPunch() || f.Allocated-n.bytes < max(punchAtLeast, n.bytes/64) || s.punched[f.File] == n:
			continue
		}
		// As many at once as fit in memory: each time takes a scan of the index.
		if blocks += n.blocks; blocks > reclaimBlocks && len(holey) > 0 {
			if err := s.punch(ctx, holey); err != nil {
				return err
			}
			holey, blocks = nil, n.blocks
		}
		holey = append(holey, f)
	}
	if err := s.punch(ctx, holey); err != nil {
		return err
	}
	files := s.packs.List()
	slices.SortFunc(files, func(a, b pack.Info) int { return cmp.Compare(a.Allocated, b.Allocated) }) // the next may need the room
	for _, f := range files {
		n := s.index.fileCount(f.File)
		// Holes end at pages, so between small blocks some garbage stays.
		if waste := f.Allocated - n.bytes; waste > wasteAtLeast && waste > f.Allocated/3 {
			if err := s.rewrite(ctx, f, n.bytes); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	reclaimBlocks = 1 << 20
	punchAtLeast  = 64 << 10 // of garbage in one file, before it is worth looking for
	wasteAtLeast  = 1 << 20  // and before it is worth moving what is left
)

// stretch is a part of a pack file.
type stretch struct{ from, to int64 }

// punch makes holes where none of the blocks known lies.
func (s *Store) punch(ctx context.Context, files []pack.Info) error {
	if len(files) == 0 {
		return nil
	}
	live := make(map[uint32][]stretch, len(files))
	for _, f := range files {
		live[f.File] = []stretch{}
		s.punched[f.File] = s.index.fileCount(f.File) // before the scan: what goes later counts next time
	}
	err := s.index.each(ctx, digest{}, func(_ digest, p place) error {
		if at, ok := live[p.file]; ok {
			live[p.file] = append(at, stretch{p.offset, p.offset + int64(p.length)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range files {
		at := live[f.File]
		slices.SortFunc(at, func(a, b stretch) int { return cmp.Compare(a.from, b.from) })
		end := int64(0)
		for _, next := range append(at, stretch{f.Settled, f.Settled}) {
			if to := min(next.from, f.Settled); to-end >= pack.Align {
				if err := s.packs.Punch(f.File, end, to); err != nil {
					return err
				}
			}
			end = max(end, next.to)
		}
		if _, err := s.packs.Measure(f.File); err != nil {
			return err
		}
		if f.Settled < f.End { // what was still under way may be garbage by now
			delete(s.punched, f.File)
		}
	}
	return nil
}

// rewrite moves what is left of a file to the current one and removes it. A block
// that has rotted is left behind, which loses no more than reading it would.
func (s *Store) rewrite(ctx context.Context, f pack.Info, bytes int64) error {
	// Where there are holes, what has been moved is given back at once.
	extra := bytes + bytes/128 + pack.Align // batches take whole pages
	if s.packs.CanPunch() {
		extra = min(extra, 2*batchBytes)
	}
	s.space.mu.Lock()
	room, _, err := s.grant(extra, &reservation{})
	s.space.mu.Unlock()
	if err != nil || !room {
		return err
	}
	defer func() { s.release(extra) }()
	if f.Settled < f.End || !s.packs.Finish(f.File, f.End) {
		return nil // still being written to; it will be looked at again
	}
	type old struct {
		digest digest
		at     place
	}
	var left []old
	err = s.index.each(ctx, digest{}, func(d digest, p place) error {
		if p.file == f.File {
			left = append(left, old{d, p})
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(left, func(a, b old) int { return cmp.Compare(a.at.offset, b.at.offset) })
	buf := pack.NewBuffer(batchBytes)
	for len(left) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		used, n := 0, 0
		var moves []func(c *change, e *pack.Extent) error
		for n < len(left) && used+left[n].at.length <= len(buf) {
			b := left[n]
			n++
			data := buf[used : used+b.at.length]
			err := s.packs.ReadAt(data, b.at.file, b.at.offset)
			if err != nil && !lost(err) {
				return err
			}
			if err != nil || sha256.Sum256(data) != b.digest {
				again, err := s.drop(b.digest.cid(cid.Raw), b.digest, nil)
				if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
					continue
				}
				if err != nil {
					return err
				}
				copy(data, again) // the disk has thought better of it
			}
			at := int64(used)
			moves = append(moves, func(c *change, e *pack.Extent) error {
				return c.move(b.digest, b.at, place{e.File, e.Offset + at, b.at.length})
			})
			used += b.at.length
		}
		moved := left[n-1].at
		left = left[n:]
		if used == 0 {
			continue
		}
		e, err := s.packs.Append(buf[:used])
		if err != nil {
			return err
		}
		if !s.packs.CanPunch() { // else there is as much to be written again
			n := min(extra, int64(used))
			s.release(n) // it is counted now
			extra -= n
		}
		err = s.packs.Sync(e)
		if err == nil {
			err = s.index.update(adding, func(c *change) error {
				for _, move := range moves {
					if err := move(c, e); err != nil {
						return err
					}
				}
				return nil
			})
		}
		e.Settle()
		if err == nil {
			err = s.packs.Punch(f.File, 0, moved.offset+int64(moved.length))
		}
		if err == nil {
			_, err = s.packs.Measure(f.File)
		}
		if err != nil {
			return err
		}
	}
	if s.index.fileCount(f.File).blocks > 0 {
		return nil // left for the next time
	}
	return s.packs.Remove(f.File, f.End)
}
