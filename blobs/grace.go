package blobs

import (
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// grace remembers what must outlive a GC although no root reaches it yet: every
// block touched by an operation still running, or by one that has ended since GC
// began, and the roots of operations that ended a short while ago.
type grace struct {
	mu      sync.Mutex
	running map[*touched]struct{}
	gc      []*touched // while GC runs: what pins and operations that ended meanwhile have touched; else nil
	recent  map[cid.Cid]time.Time
}

// touched are the blocks that one operation relies on, in memory that grows with
// their number: two bytes each.
type touched struct {
	mu     sync.Mutex
	blooms []*bloom
	room   int // blocks that may still be added to the last of blooms
	next   int // blocks that the bloom after it will take
}

const (
	touchedAtFirst = 4 << 10
	touchedAtMost  = 1 << 20
)

func (t *touched) add(ds ...digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range ds {
		if t.room == 0 {
			t.next = min(max(4*t.next, touchedAtFirst), touchedAtMost)
			t.blooms, t.room = append(t.blooms, newBloom(t.next)), t.next
		}
		t.room--
		t.blooms[len(t.blooms)-1].add(d)
	}
}

func (t *touched) has(d digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.blooms {
		if b.has(d) {
			return true
		}
	}
	return false
}

// begin starts an operation.
func (g *grace) begin() *touched {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running == nil {
		g.running = map[*touched]struct{}{}
	}
	t := &touched{}
	g.running[t] = struct{}{}
	return t
}

func (g *grace) end(t *touched) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.running, t)
	if g.gc != nil { // it has read the roots already, perhaps before this one's
		g.gc = append(g.gc, t)
	}
}

func (g *grace) beginGC() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gc = []*touched{{}}
}

func (g *grace) endGC() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gc = nil
}

// pinned is what blocks that become pinned while GC runs are added to, or nil.
func (g *grace) pinned() *touched {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gc == nil {
		return nil
	}
	return g.gc[0]
}

// spared lists all that GC must not remove from.
func (g *grace) spared() []*touched {
	g.mu.Lock()
	defer g.mu.Unlock()
	ts := append([]*touched(nil), g.gc...)
	for t := range g.running {
		ts = append(ts, t)
	}
	return ts
}

// hold spares root until the given time or until it is pinned.
func (g *grace) hold(root cid.Cid, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.recent == nil {
		g.recent = map[cid.Cid]time.Time{}
	}
	g.recent[root] = until
}

func (g *grace) release(root cid.Cid) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.recent, root)
}

// holds tells whether root is still in its time.
func (g *grace) holds(root cid.Cid, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.recent[root]
	return ok && !now.After(until)
}

// held lists the roots still in their time and forgets the others.
func (g *grace) held(now time.Time) []cid.Cid {
	g.mu.Lock()
	defer g.mu.Unlock()
	var roots []cid.Cid
	for c, until := range g.recent {
		if now.After(until) {
			delete(g.recent, c)
			continue
		}
		roots = append(roots, c)
	}
	return roots
}

// claim reports which blocks are held and adds all of them to t before any GC can
// remove them.
func (s *Store) claim(t *touched, ds ...digest) ([]bool, error) {
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	t.add(ds...)
	return s.has(ds...)
}
