package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
)

// A pin is stored twice: by root, for GC, and by holder, for UnpinAll.
//
//	p root-CID holder       → when, Unix nanoseconds
//	h holder NUL root-CID   → nothing
const (
	pinByRoot   = 'p'
	pinByHolder = 'h'
	maxHolder   = 200
)

// cidBytes: every CID digestOf accepts is version, codec, hash code, length, digest.
const cidBytes = 4 + len(digest{})

// Pin says that holder needs root.
type Pin struct {
	Root   cid.Cid
	Holder string // "job:ID", "frame:ID"; no meaning here
	At     time.Time
}

func pinKeys(root cid.Cid, holder string) (byRoot, byHolder []byte, err error) {
	if _, err := digestOf(root); err != nil {
		return nil, nil, err
	}
	prefix, err := holderPrefix(holder)
	if err != nil {
		return nil, nil, err
	}
	byRoot = append(append([]byte{pinByRoot}, root.Bytes()...), holder...)
	return byRoot, append(prefix, root.Bytes()...), nil
}

func holderPrefix(holder string) ([]byte, error) {
	if holder == "" || len(holder) > maxHolder || strings.ContainsRune(holder, 0) {
		return nil, fmt.Errorf("pin holder %q: must be 1 to %d bytes without NUL", holder, maxHolder)
	}
	return append(append([]byte{pinByHolder}, holder...), 0), nil
}

// Pin keeps root and all below it from GC until Unpin, durably. Pinning twice
// renews At. It does not ask whether the content is here: pin before Fetch, and
// what is fetched stays. Content that Has reports after Pin returned is safe. Where
// the disk is full, cached roots are evicted for it. Errors: ErrDiskFull, ctx's.
func (s *Store) Pin(ctx context.Context, root cid.Cid, holder string) error {
	if _, _, err := pinKeys(root, holder); err != nil {
		return err
	}
	write := func() error {
		s.pinning.Lock()
		defer s.pinning.Unlock()
		return s.index.write(adding, func(t *badger.Txn) error { return s.note(t, Pin{Root: root, Holder: holder}) })
	}
	err := write()
	if errors.Is(err, ErrDiskFull) {
		if release, rerr := s.takeRoom(ctx, 0, &reservation{}); rerr == nil {
			release()
			err = write()
		}
	}
	if err != nil {
		return failed(fmt.Sprintf("pin %s", root), s.dir, err)
	}
	s.grace.release(root)
	if s.gcMu.TryLock() { // no GC: the next one will see the pin
		s.gcMu.Unlock()
		return nil
	}
	// The running GC may have read the pins already, so show it the blocks one by one.
	t := s.grace.pinned()
	if t == nil {
		return nil
	}
	return s.walk(ctx, root, map[digest]struct{}{}, func(d digest, _ int64) error {
		_, err := s.claim(t, d)
		return err
	})
}

// note writes a root and, if it has a holder, its pin. s.pinning is held.
func (s *Store) note(t *badger.Txn, p Pin) error {
	err := s.use(t, p.Root, 0)
	if err != nil || p.Holder == "" {
		return err
	}
	byRoot, byHolder, err := pinKeys(p.Root, p.Holder)
	if err != nil {
		return err
	}
	return errors.Join(t.Set(byRoot, timeBytes(time.Now())), t.Set(byHolder, nil))
}

// Unpin takes back a Pin; without one it does nothing. The root stays cached, see
// Forget, and counts as used when it was last pinned or given to Use.
func (s *Store) Unpin(_ context.Context, root cid.Cid, holder string) error {
	if _, _, err := pinKeys(root, holder); err != nil {
		return err
	}
	if err := s.index.write(freeing, func(t *badger.Txn) error { return unpin(t, root, holder) }); err != nil {
		return failed(fmt.Sprintf("unpin %s", root), s.dir, err)
	}
	return nil
}

func unpin(t *badger.Txn, root cid.Cid, holder string) error {
	byRoot, byHolder, err := pinKeys(root, holder)
	if err != nil {
		return err
	}
	return errors.Join(t.Delete(byRoot), t.Delete(byHolder))
}

// unpinAtOnce is how many pins go in one transaction, which Badger bounds.
const unpinAtOnce = 512

// UnpinAll takes back every pin of holder and returns how many there were.
func (s *Store) UnpinAll(ctx context.Context, holder string) (int, error) {
	prefix, err := holderPrefix(holder)
	if err != nil {
		return 0, err
	}
	var roots []cid.Cid
	err = eachKey(ctx, s.index.db, prefix, nil, func(it *badger.Item) error {
		c, err := cid.Cast(bytes.Clone(it.Key()[len(prefix):]))
		roots = append(roots, c)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("unpin all of %q: %w", holder, err)
	}
	for some := range slices.Chunk(roots, unpinAtOnce) {
		err := s.index.write(freeing, func(t *badger.Txn) error {
			for _, root := range some {
				if err := unpin(t, root, holder); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, failed(fmt.Sprintf("unpin all of %q", holder), s.dir, err)
		}
	}
	return len(roots), nil
}

// Pins iterates over all pins, grouped by root. An error ends it. The loop body
// must not wait for another call that writes to the store.
func (s *Store) Pins(ctx context.Context) iter.Seq2[Pin, error] {
	return func(yield func(Pin, error) bool) {
		stop := fmt.Errorf("stopped") // not seen by anybody
		err := eachKey(ctx, s.index.db, []byte{pinByRoot}, nil, func(it *badger.Item) error {
			p, err := parsePin(it.Key())
			if err != nil {
				return err
			}
			if err := it.Value(func(v []byte) error {
				p.At = parseTime(v)
				return nil
			}); err != nil {
				return err
			}
			if !yield(p, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(Pin{}, fmt.Errorf("list pins: %w", err))
		}
	}
}

func parsePin(key []byte) (Pin, error) {
	if len(key) <= 1+cidBytes {
		return Pin{}, fmt.Errorf("pin key of %d bytes", len(key))
	}
	c, err := cid.Cast(bytes.Clone(key[1 : 1+cidBytes]))
	return Pin{Root: c, Holder: string(key[1+cidBytes:])}, err
}

func (s *Store) pinnedRoots(ctx context.Context) (map[cid.Cid]struct{}, error) {
	roots := map[cid.Cid]struct{}{}
	err := eachKey(ctx, s.index.db, []byte{pinByRoot}, nil, func(it *badger.Item) error {
		p, err := parsePin(it.Key())
		roots[p.Root] = struct{}{}
		return err
	})
	return roots, err
}
