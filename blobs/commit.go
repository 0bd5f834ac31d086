package blobs

import (
	"slices"
	"sync"
	"time"

	"vizpeer/blobs/pack"
)

// commits makes batches of all writers durable together: one of those waiting does
// it for all. A sync holds up the writes beside it, so unless somebody waits for them
// they keep apart from each other, the further the longer they take.
type commits struct {
	hurry chan struct{} // holds one when somebody waits

	mu      sync.Mutex
	waiting []*commit
	busy    bool
	next    time.Time // when the next one may begin
}

const (
	commitPause  = 4 // times what the one before took,
	leastPause   = 50 * time.Millisecond
	longestPause = 250 * time.Millisecond // for whoever waits to read what has come
)

// commit is a batch that has been written and waits to become durable.
type commit struct {
	extent *pack.Extent
	batch  *batch
	turn   chan bool // true: do it for all who wait; false: err is the result
	err    error
}

func (q *commits) rush() {
	select {
	case q.hurry <- struct{}{}:
	default:
	}
}

// append writes a batch into the room given, not durably. commit, or Settle, must follow.
func (s *Store) append(b *batch, room *reservation) (*pack.Extent, error) {
	release, err := s.takeRoom(s.ctx, int64(b.bytes)+pack.Align, room)
	if err != nil {
		return nil, err
	}
	e, err := s.packs.Place(b.bytes)
	release() // it is counted now
	if err == nil {
		err = e.Write(b.buf[:b.bytes])
	}
	if err != nil {
		return nil, failed("store blocks", s.dir, err)
	}
	return e, nil
}

// commit makes a batch durable. Until then none of its blocks is in the index, so
// that no entry ever points at nothing.
func (s *Store) commit(e *pack.Extent, b *batch) error {
	defer e.Settle()
	defer s.journal.settle(s.journal.note(e, b))
	c := &commit{extent: e, batch: b, turn: make(chan bool, 1)}
	q := &s.commits
	q.mu.Lock()
	q.waiting = append(q.waiting, c)
	lead := !q.busy
	q.busy = true
	q.mu.Unlock()
	if b.urgent.Load() {
		q.rush()
	}
	if lead || <-c.turn {
		s.commitAll()
	}
	if c.err != nil {
		return failed("store blocks", s.dir, c.err)
	}
	return nil
}

// commitAll commits for everybody who waits, the caller among them, and hands the
// duty on to one of those who have come meanwhile.
func (s *Store) commitAll() {
	q := &s.commits
	q.mu.Lock()
	pause := time.Until(q.next)
	q.mu.Unlock()
	if pause > 0 {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-q.hurry: // sent by somebody who waits already
			timer.Stop()
		}
	}
	q.mu.Lock()
	group := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	began := time.Now()
	err := s.commitGroup(group)
	ended := time.Now()
	for _, c := range group {
		c.err = err
		c.turn <- false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next = ended.Add(min(max(commitPause*ended.Sub(began), leastPause), longestPause))
	if len(q.waiting) == 0 {
		q.busy = false
		return
	}
	q.waiting[0].turn <- true
}

func (s *Store) commitGroup(group []*commit) error {
	es := make([]*pack.Extent, len(group))
	for i, c := range group {
		es[i] = c.extent
	}
	if err := s.packs.Sync(es...); err != nil {
		return err
	}
	if slices.ContainsFunc(group, func(c *commit) bool { return c.batch.pin != nil }) {
		s.pinning.Lock()
		defer s.pinning.Unlock()
	}
	return s.index.update(adding, func(ch *change) error {
		for _, c := range group {
			if p := c.batch.pin; p != nil {
				if err := ch.step(); err != nil {
					return err
				}
				if err := s.note(ch.t, *p); err != nil {
					return err
				}
			}
			at := c.extent.Offset + int64(c.batch.skip)
			for _, b := range c.batch.blocks {
				if err := ch.enter(b.digest, place{c.extent.File, at, b.size}); err != nil {
					return err
				}
				at += int64(b.size)
			}
		}
		return nil
	})
}
