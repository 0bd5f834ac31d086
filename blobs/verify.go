package blobs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
	"golang.org/x/time/rate"
)

// Verified is what Verify found below a root, each block once.
type Verified struct {
	Blocks  int   // that are here and sound
	Bytes   int64 // in those
	Corrupt int   // that were here, had rotted and have been dropped
	Missing int   // that are named and not here; what those would name is not counted
}

// Whole reports whether nothing needs to be fetched.
func (v Verified) Whole() bool { return v.Corrupt == 0 && v.Missing == 0 }

// Verify reads everything below root and compares it with its hashes. What has
// rotted is dropped, so that fetching root again repairs it. progress, if not nil,
// gets the bytes read and those held in all, from one goroutine. Errors: ErrBadNode
// for a CID that this package could not have made, the disk's, ctx's.
func (s *Store) Verify(ctx context.Context, root cid.Cid, progress func(done, total int64)) (Verified, error) {
	var v Verified
	if _, err := digestOf(root); err != nil {
		return v, err
	}
	var total, done int64
	if progress != nil {
		m := &marking{s: s, blocks: newBloom(int(s.index.counts().blocks)), seen: map[digest]struct{}{}}
		var err error
		if total, err = m.walk(ctx, root, m.blocks); err != nil {
			return v, fmt.Errorf("verify %s: %w", root, err)
		}
	}
	looked := map[digest]struct{}{}
	err := s.walk(ctx, root, map[digest]struct{}{}, func(d digest, _ int64) error {
		if _, dup := looked[d]; dup {
			return nil
		}
		looked[d] = struct{}{}
		size := 0
		err := s.view(d.cid(cid.Raw), func(data []byte) error { size = len(data); return nil })
		switch {
		case err == nil:
			v.Blocks++
			v.Bytes += int64(size)
		case errors.Is(err, ErrCorrupt):
			v.Corrupt++
		case errors.Is(err, ErrNotFound):
			v.Missing++
		default:
			return err
		}
		if done += int64(size); progress != nil {
			progress(min(done, total), total)
		}
		return nil
	})
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", root, err)
	}
	return v, nil
}

// Scrubbed is what a Scrub found.
type Scrubbed struct {
	Blocks  int   // read
	Bytes   int64 // in those
	Dropped int   // of those, rotten
	// Lost are the roots, pinned or cached, that a dropped block was part of, and
	// once all was read those that Lacking lists: fetching them again repairs them.
	Lost []cid.Cid
}

// scrubKey holds the digest that an unfinished Scrub goes on from.
var scrubKey = []byte{'s'}

const scrubPage = 256 // blocks read before the place is noted

// Scrub reads every block of the store, at most bytesPerSecond (0: as fast as the
// disk) and drops those that have rotted. One that was ended early, even by kill
// -9, goes on where it was. What arrives meanwhile may or may not be looked at.
// progress, if not nil, gets about how many bytes have been read, by this and
// earlier calls, and how many there are. Beside an error (ctx's, the disk's) it
// still tells what it found.
func (s *Store) Scrub(ctx context.Context, bytesPerSecond int64, progress func(done, total int64)) (Scrubbed, error) {
	var found Scrubbed
	dropped := map[digest]struct{}{}
	err := s.scrub(ctx, bytesPerSecond, progress, &found, dropped)
	if found.Dropped > 0 {
		// Who has lost something is worth knowing even if there was no time for the rest.
		lost, lerr := s.rootsOf(s.ctx, dropped)
		found.Lost, err = lost, errors.Join(err, lerr)
	}
	if err == nil {
		// What was dropped before, and by whom ever, is not among what was read.
		var lacking []cid.Cid
		lacking, err = s.Lacking(ctx)
		for _, c := range lacking {
			if !slices.Contains(found.Lost, c) {
				found.Lost = append(found.Lost, c)
			}
		}
	}
	if err != nil {
		err = failed("scrub", s.dir, err)
	}
	return found, err
}

func (s *Store) scrub(ctx context.Context, bytesPerSecond int64, progress func(done, total int64), found *Scrubbed, dropped map[digest]struct{}) error {
	limit := rate.NewLimiter(rate.Inf, MaxBlockSize)
	if bytesPerSecond > 0 {
		limit.SetLimit(rate.Limit(bytesPerSecond))
	}
	at, err := s.scrubbed()
	if err != nil {
		return err
	}
	stop := errors.New("the page is full") // stays in here
	for {
		var page []digest
		var sizes []int
		err := s.index.each(ctx, at, func(d digest, p place) error {
			page, sizes = append(page, d), append(sizes, p.length)
			if len(page) == scrubPage {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			return err
		}
		for i, d := range page {
			if err := limit.WaitN(ctx, sizes[i]); err != nil {
				return errors.Join(ctx.Err(), s.noteScrubbed(d))
			}
			switch err := s.VerifyBlock(d.cid(cid.Raw)); {
			case errors.Is(err, ErrCorrupt):
				found.Dropped++
				dropped[d] = struct{}{}
			case err != nil && !errors.Is(err, ErrNotFound): // removed meanwhile
				return err
			}
			found.Blocks++
			found.Bytes += int64(sizes[i])
			if progress != nil {
				// Digests are spread evenly, so the place among them is the share done.
				total := s.index.counts().bytes
				progress(int64(float64(total)*float64(binary.BigEndian.Uint32(d[:]))/(1<<32)), total)
			}
		}
		if len(page) < scrubPage {
			break
		}
		at = page[len(page)-1]
		if !at.next() {
			break
		}
		if err := s.noteScrubbed(at); err != nil {
			return err
		}
	}
	if progress != nil {
		total := s.index.counts().bytes
		progress(total, total)
	}
	return s.index.write(freeing, func(t *badger.Txn) error { return t.Delete(scrubKey) })
}

// next makes d the digest after it, or reports that it was the last.
func (d *digest) next() bool {
	for i := len(d) - 1; i >= 0; i-- {
		if d[i]++; d[i] != 0 {
			return true
		}
	}
	return false
}

func (s *Store) scrubbed() (at digest, err error) {
	err = s.index.db.View(func(t *badger.Txn) error {
		it, err := t.Get(scrubKey)
		if err != nil {
			return err
		}
		return it.Value(func(v []byte) error { copy(at[:], v); return nil })
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		err = nil
	}
	return at, err
}

func (s *Store) noteScrubbed(at digest) error {
	return s.index.write(adding, func(t *badger.Txn) error { return t.Set(scrubKey, at[:]) })
}

// Lacking lists the pinned roots that are not here whole: what has rotted and was
// dropped is missing from them, or they have not all come yet. It reads inner nodes
// and no leaves.
func (s *Store) Lacking(ctx context.Context) ([]cid.Cid, error) {
	pinned, err := s.pinnedRoots(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for what is missing: %w", err)
	}
	var lacking []cid.Cid
	for c := range pinned {
		whole, err := s.Has(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("look for what is missing of %s: %w", c, err)
		}
		if !whole {
			lacking = append(lacking, c)
		}
	}
	return lacking, nil
}

// rootsOf lists the roots that reach any of the blocks.
func (s *Store) rootsOf(ctx context.Context, blocks map[digest]struct{}) ([]cid.Cid, error) {
	roots, err := s.rootsByUse(ctx)
	if err != nil {
		return nil, err
	}
	hit := errors.New("hit") // stays in here
	var found []cid.Cid
	for _, r := range roots {
		err := s.walk(ctx, r.CID, map[digest]struct{}{}, func(d digest, _ int64) error {
			if _, ok := blocks[d]; ok {
				return hit
			}
			return nil
		})
		if err == hit {
			found = append(found, r.CID)
		} else if err != nil {
			return found, err
		}
	}
	return found, nil
}
