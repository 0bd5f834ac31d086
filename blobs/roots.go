package blobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
)

// Every root that was imported, fetched or pinned stays cached until Forget, or
// until it is the least recently used when room is needed:
//
//	r root-CID → last use, Unix nanoseconds
const rootPrefix = 'r'

// useGrain is how exact a last use is: closer ones are not written down.
const useGrain = time.Minute

// Root is content that this store keeps, or has begun to.
type Root struct {
	CID    cid.Cid
	Used   time.Time // when it was last imported, fetched, pinned or given to Use
	Pinned bool
}

func rootKey(c cid.Cid) []byte { return append([]byte{rootPrefix}, c.Bytes()...) }

// Use says that root is being used now, so that others are evicted before it. It
// is recorded durably, though not if it was less than a minute ago, nor where the
// disk is full: what is here can be used all the same.
func (s *Store) Use(root cid.Cid) error {
	if _, err := digestOf(root); err != nil {
		return err
	}
	err := s.noteUse(root)
	if errors.Is(err, ErrDiskFull) {
		s.log.Debug("a use was not noted", "root", root, "err", err)
		return nil
	}
	return err
}

func (s *Store) noteUse(root cid.Cid) error {
	err := s.index.write(adding, func(t *badger.Txn) error { return s.use(t, root, useGrain) })
	if err != nil {
		return failed(fmt.Sprintf("note the use of %s", root), s.dir, err)
	}
	return nil
}

// keep caches a root that has just come, and keeps GC and eviction from it for
// Config.Grace or until it is pinned.
func (s *Store) keep(root cid.Cid) error {
	s.spare(root)
	return s.noteUse(root)
}

// spare keeps GC and eviction from root for Config.Grace.
func (s *Store) spare(root cid.Cid) {
	s.pinning.Lock() // an eviction that has begun forgets what was before this
	defer s.pinning.Unlock()
	s.grace.hold(root, time.Now().Add(s.cfg.Grace))
}

func (s *Store) use(t *badger.Txn, root cid.Cid, grain time.Duration) error {
	key, now := rootKey(root), time.Now()
	it, err := t.Get(key)
	if err == nil {
		var last time.Time
		if err := it.Value(func(v []byte) error { last = parseTime(v); return nil }); err != nil {
			return err
		}
		if d := now.Sub(last); d >= 0 && d < grain {
			return nil
		}
	} else if !errors.Is(err, badger.ErrKeyNotFound) {
		return err
	}
	return t.Set(key, timeBytes(now))
}

func timeBytes(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano()))
}

// parseTime: what is not a time is long ago.
func parseTime(v []byte) time.Time {
	if len(v) != 8 {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(v)))
}

// Roots lists what is pinned or cached, the least recently used first. A root may
// be here in part, or not at all yet: ask Has.
func (s *Store) Roots(ctx context.Context) ([]Root, error) {
	pinned, err := s.pinnedRoots(ctx)
	if err != nil {
		return nil, fmt.Errorf("list roots: %w", err)
	}
	roots, err := s.rootsByUse(ctx)
	if err != nil {
		return nil, fmt.Errorf("list roots: %w", err)
	}
	for i := range roots {
		_, roots[i].Pinned = pinned[roots[i].CID]
	}
	slices.Reverse(roots)
	return roots, nil
}

// rootsByUse are all roots, the most recently used first. Pinned is not set.
func (s *Store) rootsByUse(ctx context.Context) ([]Root, error) {
	var roots []Root
	err := eachKey(ctx, s.index.db, []byte{rootPrefix}, nil, func(it *badger.Item) error {
		c, err := cid.Cast(bytes.Clone(it.Key()[1:]))
		if err != nil {
			return err
		}
		return it.Value(func(v []byte) error {
			roots = append(roots, Root{CID: c, Used: parseTime(v)})
			return nil
		})
	})
	slices.SortStableFunc(roots, func(a, b Root) int { return cmp.Compare(b.Used.UnixNano(), a.Used.UnixNano()) })
	return roots, err
}

// Forget gives root up: the next GC, or whoever needs room, removes what nothing
// else holds. A pinned root stays, and Forget answers false.
func (s *Store) Forget(ctx context.Context, root cid.Cid) (bool, error) {
	if _, err := digestOf(root); err != nil {
		return false, err
	}
	gone, err := s.forget(ctx, root, true)
	if err != nil {
		return false, failed(fmt.Sprintf("forget %s", root), s.dir, err)
	}
	return gone, nil
}

// forget excludes pinning, so that no pin is left without its root. What is in its
// grace time stays, unless that is to end too.
func (s *Store) forget(ctx context.Context, root cid.Cid, grace bool) (bool, error) {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	if !grace && s.grace.holds(root, time.Now()) {
		return false, nil
	}
	pins := append([]byte{pinByRoot}, root.Bytes()...)
	stop := errors.New("pinned") // stays in here
	err := eachKey(ctx, s.index.db, pins, nil, func(*badger.Item) error { return stop })
	if err == stop {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.grace.release(root)
	return true, s.index.write(freeing, func(t *badger.Txn) error { return t.Delete(rootKey(root)) })
}
