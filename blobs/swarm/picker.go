package swarm

import (
	"math"
	"math/rand/v2"
	"slices"
)

// picker decides which item is asked of which supply: rarest first, ties at
// random, and what several have rather of one that does not have everything. It
// knows neither clock nor network, and is not for several goroutines.
//
// An item that is wanted is in the pool, owed by exactly one supply, or arrived
// and being verified. The pool is ordered by rank: how many supplies that do not
// have everything have the item, one more where another fetcher is about to.
type picker struct {
	size  func(uint32) int
	rand  *rand.Rand
	owner []int32 // a supply's slot, or one of the states below
	avail []uint8 // partial supplies that have it
	lent  bitset

	order  []uint32 // the pool, by rank
	pos    []uint32 // of an item of the pool in order
	bounds [ranks + 1]int
	low    uint32 // no item of the pool is below

	missing  int // not verified yet
	supplies []*supply
	stolen   map[uint32]uint8
}

// The states of an item that nobody owes.
const (
	unwanted  int32 = -1 // or here and verified
	pooled    int32 = -2
	verifying int32 = -3
)

// ranks is how many ranks are told apart.
const ranks = 16

// supply is one source, as the picker sees it.
type supply struct {
	slot  int32
	whole bool   // has everything; then has is nil
	has   bitset // what a partial one has
	owed  []uint32
	owes  int64 // bytes

	window int64   // bytes it may owe
	rate   float64 // bytes a second, as far as known
}

func (s *supply) holds(i uint32) bool { return s.whole || s.has.has(i) }

// room is how many more bytes the supply may be asked for.
func (s *supply) room() int64 { return s.window - s.owes }

// newPicker makes a picker of n items, of which those in want are wanted.
func newPicker(n uint32, want bitset, size func(uint32) int, r *rand.Rand) *picker {
	p := &picker{
		size: size, rand: r, owner: make([]int32, n), avail: make([]uint8, n), lent: newBitset(n),
		pos: make([]uint32, n), stolen: make(map[uint32]uint8),
	}
	for i := range p.owner {
		p.owner[i] = unwanted
	}
	p.missing = int(want.count())
	p.order = make([]uint32, 0, p.missing)
	want.each(p.pool)
	return p
}

func (p *picker) rank(i uint32) int {
	r := int(p.avail[i])
	if p.lent.has(i) {
		r++
	}
	return min(r, ranks-1)
}

func (p *picker) swap(a, b int) {
	x, y := p.order[a], p.order[b]
	p.order[a], p.order[b] = y, x
	p.pos[x], p.pos[y] = uint32(b), uint32(a)
}

// pool puts an item into the pool, at a random place among its equals.
func (p *picker) pool(i uint32) {
	p.owner[i] = pooled
	p.low = min(p.low, i)
	at := len(p.order)
	p.order = append(p.order, i)
	p.pos[i] = uint32(at)
	p.bounds[ranks]++
	r := p.rank(i)
	for b := ranks - 1; b > r; b-- {
		first := p.bounds[b]
		p.swap(at, first)
		at = first
		p.bounds[b]++
	}
	p.swap(at, p.bounds[r]+p.rand.IntN(at-p.bounds[r]+1))
}

// unpool takes an item of rank r out of the pool.
func (p *picker) unpool(i uint32, r int) {
	at := int(p.pos[i])
	for b := r; b < ranks; b++ {
		last := p.bounds[b+1] - 1
		p.swap(at, last)
		at = last
		p.bounds[b+1]--
	}
	p.order = p.order[:len(p.order)-1]
}

// rerank makes a change that may move the item to another rank.
func (p *picker) rerank(i uint32, change func()) {
	if p.owner[i] != pooled {
		change()
		return
	}
	before := p.rank(i)
	change()
	if p.rank(i) != before {
		p.unpool(i, before)
		p.pool(i)
	}
}

// join adds a supply that has everything, or what is in has, which it takes over.
func (p *picker) join(whole bool, has bitset, window int64, rate float64) *supply {
	s := &supply{whole: whole, has: has, window: window, rate: rate}
	s.slot = int32(slices.Index(p.supplies, nil))
	if s.slot < 0 {
		s.slot = int32(len(p.supplies))
		p.supplies = append(p.supplies, nil)
	}
	p.supplies[s.slot] = s
	if !whole {
		if s.has == nil {
			s.has = newBitset(uint32(len(p.owner)))
		}
		s.has.each(func(i uint32) { p.count(i, 1) })
	}
	return s
}

func (p *picker) count(i uint32, by int) {
	p.rerank(i, func() { p.avail[i] = uint8(int(p.avail[i]) + by) })
}

// leave removes a supply; what it owes goes back into the pool.
func (p *picker) leave(s *supply) {
	p.reclaim(s)
	p.supplies[s.slot] = nil
	if !s.whole {
		s.has.each(func(i uint32) { p.count(i, -1) })
	}
}

// reclaim takes back all that s owes and returns it.
func (p *picker) reclaim(s *supply) []uint32 {
	owed := s.owed
	for _, i := range owed {
		p.pool(i)
	}
	s.owed, s.owes = nil, 0
	return owed
}

// disperse takes back what s owes and others have as well, and returns it.
func (p *picker) disperse(s *supply) (lost []uint32) {
	s.owed = slices.DeleteFunc(s.owed, func(i uint32) bool {
		elsewhere := slices.ContainsFunc(p.supplies, func(o *supply) bool { return o != nil && o != s && o.holds(i) })
		if elsewhere {
			s.owes -= int64(p.size(i))
			p.pool(i)
			lost = append(lost, i)
		}
		return elsewhere
	})
	return lost
}

// gained notes that s has an item now.
func (p *picker) gained(s *supply, i uint32) {
	if !s.whole && !s.has.has(i) {
		s.has.set(i)
		p.count(i, 1)
	}
}

// lacks notes that s does not have an item after all.
func (p *picker) lacks(s *supply, i uint32) {
	if s.whole {
		s.whole, s.has = false, newBitset(uint32(len(p.owner)))
		s.has.fill(uint32(len(p.owner)))
		s.has.clear(i)
		s.has.each(func(i uint32) { p.count(i, 1) })
	} else if s.has.has(i) {
		s.has.clear(i)
		p.count(i, -1)
	}
	if p.owner[i] == s.slot {
		p.release(s, i)
		p.pool(i)
	}
}

// lend notes that another fetcher has been promised an item.
func (p *picker) lend(i uint32) {
	if !p.lent.has(i) {
		p.rerank(i, func() { p.lent.set(i) })
	}
}

// unlend takes back lend: whoever was promised the item has not told of it.
func (p *picker) unlend(i uint32) {
	if p.lent.has(i) {
		p.rerank(i, func() { p.lent.clear(i) })
	}
}

func (p *picker) release(s *supply, i uint32) {
	if at := slices.Index(s.owed, i); at >= 0 {
		s.owed = slices.Delete(s.owed, at, at+1)
		s.owes -= int64(p.size(i))
	}
}

// arrived notes that an item came from s. wanted tells whether it is to be
// verified; other is who owed it if not s, to be told that it no longer does.
func (p *picker) arrived(s *supply, i uint32) (wanted bool, other *supply) {
	switch o := p.owner[i]; o {
	case unwanted, verifying:
		return false, nil
	case pooled:
		p.unpool(i, p.rank(i))
	default:
		p.release(p.supplies[o], i)
		if o != s.slot {
			other = p.supplies[o]
		}
	}
	p.owner[i] = verifying
	return true, other
}

// verified notes that an item that arrived is as it should be.
func (p *picker) verified(i uint32) {
	p.owner[i] = unwanted
	p.missing--
}

// refused notes that an item that arrived was another.
func (p *picker) refused(i uint32) { p.pool(i) }

// maxOwed bounds the items a supply may owe, however small they are.
const maxOwed = 2048

// runBytes is how much of neighbouring items is asked of one of several supplies
// at a time: what lies together on a disk is read and written together, and still
// each fetcher gets something else first.
const runBytes = 512 << 10

// pick hands out items of the pool that s holds, as far as it has room, and lets
// it owe them.
func (p *picker) pick(s *supply) []uint32 {
	var picked []uint32
	take := func(i uint32) {
		p.unpool(i, p.rank(i))
		p.owner[i] = s.slot
		s.owed = append(s.owed, i)
		s.owes += int64(p.size(i))
		picked = append(picked, i)
	}
	may := func() bool { return s.room() > 0 && len(s.owed) < maxOwed }
	if p.alone(s) && s.whole {
		for ; may() && len(p.order) > 0; p.low++ {
			if p.owner[p.low] == pooled {
				take(p.low)
			}
		}
		return picked
	}
	at := 0
	if !s.whole {
		at = p.bounds[1] // below, only supplies that have everything have it
	}
	for looks, jumped := 0, false; at < len(p.order) && may(); {
		i := p.order[at]
		r := p.rank(i)
		run := runBytes
		if s.whole && r > 0 {
			if looks > maxLooks {
				break
			}
			run = 1
		}
		if !s.holds(i) || s.whole && r > 0 && !p.spareable(s, i) {
			at++
			if looks++; looks == maxScan && !jumped {
				// It may have but a few of very many: go on somewhere else each time.
				at, looks, jumped = at+p.rand.IntN(len(p.order)-at+1), 0, true
			} else if looks == maxScan {
				break
			}
			continue
		}
		// The run goes on as long as its items are as rare.
		for ; run > 0 && may(); i++ {
			if i >= uint32(len(p.owner)) || p.owner[i] != pooled || !s.holds(i) || p.rank(i) > r {
				break
			}
			run -= p.size(i)
			take(i)
		}
		if !s.whole {
			at = max(at, p.bounds[1])
		}
	}
	return picked
}

// alone tells whether s is the only supply.
func (p *picker) alone(s *supply) bool {
	for _, o := range p.supplies {
		if o != nil && o != s {
			return false
		}
	}
	return true
}

// maxLooks bounds how many common items a pick for a supply that has everything
// passes over, and maxScan how many items one for another does.
const (
	maxLooks = 256
	maxScan  = 8192
)

// spareable tells whether an item that others have, or will have, may be asked of
// s, which has everything: it sends what only it has first, and what others have
// only where they are busy.
func (p *picker) spareable(s *supply, i uint32) bool {
	held := false
	for _, o := range p.supplies {
		if o == nil || o.whole {
			continue
		}
		if o.has.has(i) {
			if o.room() > 0 {
				return false
			}
			held = true
		}
	}
	// What nobody has yet but somebody will soon is not asked for in bulk.
	return held || s.owes == 0
}

// maxSteals is how often an item may change hands.
const maxSteals = 2

// steal lets s, for which there is nothing in the pool, take over the last of what
// a much slower supply owes. It returns the item and its victim.
func (p *picker) steal(s *supply) (item uint32, victim *supply) {
	if s.room() <= 0 || len(s.owed) >= maxOwed || len(p.order) > 0 && p.alone(s) {
		return 0, nil
	}
	worst := 0.0
	for _, v := range p.supplies {
		if v == nil || v == s || len(v.owed) == 0 {
			continue
		}
		i, found := uint32(0), false
		for k := len(v.owed) - 1; k >= 0 && k >= len(v.owed)-16; k-- {
			if o := v.owed[k]; s.holds(o) && p.stolen[o] < maxSteals {
				i, found = o, true
				break
			}
		}
		if !found {
			continue
		}
		theirs := float64(v.owes) / max(v.rate, 1)
		ours := float64(s.owes+int64(p.size(i))) / max(s.rate, 1)
		if theirs > 2*ours+0.2 && theirs > worst {
			worst, item, victim = theirs, i, v
		}
	}
	if victim == nil {
		return 0, nil
	}
	p.release(victim, item)
	p.owner[item] = s.slot
	s.owed = append(s.owed, item)
	s.owes += int64(p.size(item))
	p.stolen[item]++
	return item, victim
}

// window is how much a source may owe: what it sends in the time that keeps its
// queue short and yet never empty, and the time a request takes to reach it.
func window(rate, roundTrip float64, least, most int64) int64 {
	const queue = 0.15
	w := rate * (queue + roundTrip)
	return int64(math.Min(math.Max(w, float64(least)), float64(max(least, most))))
}
