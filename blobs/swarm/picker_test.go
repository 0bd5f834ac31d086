package swarm

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// check looks for what must hold of a picker at any time.
func (p *picker) check(t *rapid.T, verified, underway map[uint32]bool) {
	owed := map[uint32]int32{}
	avail := make([]int, len(p.owner))
	for slot, s := range p.supplies {
		if s == nil {
			continue
		}
		var owes int64
		for _, i := range s.owed {
			if _, twice := owed[i]; twice {
				t.Fatalf("item %d is owed twice", i)
			}
			owed[i] = int32(slot)
			owes += int64(p.size(i))
		}
		if owes != s.owes {
			t.Fatalf("supply %d owes %d bytes and believes %d", slot, owes, s.owes)
		}
		if !s.whole {
			s.has.each(func(i uint32) { avail[i]++ })
		}
	}
	missing, pooledCount := 0, 0
	for i := range uint32(len(p.owner)) {
		if int(p.avail[i]) != avail[i] {
			t.Fatalf("item %d: %d partial supplies have it, %d are counted", i, avail[i], p.avail[i])
		}
		slot, isOwed := owed[i]
		switch o := p.owner[i]; {
		case o >= 0 && (!isOwed || slot != o), o < 0 && isOwed:
			t.Fatalf("item %d: owner %d, owed by %d", i, o, slot)
		case o == pooled:
			pooledCount++
			if at := p.pos[i]; int(at) >= len(p.order) || p.order[at] != i {
				t.Fatalf("item %d is not where it should be in the pool", i)
			}
			if r := p.rank(i); int(p.pos[i]) < p.bounds[r] || int(p.pos[i]) >= p.bounds[r+1] {
				t.Fatalf("item %d of rank %d is among others", i, r)
			}
			if i < p.low {
				t.Fatalf("item %d lies below %d", i, p.low)
			}
		case o == verifying && !underway[i], o != verifying && underway[i]:
			t.Fatalf("item %d: owner %d, being verified: %v", i, o, underway[i])
		}
		if p.owner[i] != unwanted {
			missing++
		}
		if verified[i] && p.owner[i] != unwanted {
			t.Fatalf("item %d is here and asked for again", i)
		}
	}
	if missing != p.missing || pooledCount != len(p.order) || p.bounds[ranks] != len(p.order) {
		t.Fatalf("missing %d, counted %d; pool %d, counted %d (%d)", missing, p.missing, pooledCount, len(p.order), p.bounds[ranks])
	}
}

// The picker's books balance whatever sources do, and with a supply that has
// everything, all items arrive.
func TestPickerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint32Range(1, 200).Draw(t, "n")
		want := newBitset(n)
		for i := range n {
			if rapid.Bool().Draw(t, "wanted") {
				want.set(i)
			}
		}
		p := newPicker(n, want, func(i uint32) int { return int(i%7)*100_000 + 512 }, rand.New(rand.NewPCG(1, 2)))
		verified, underway := map[uint32]bool{}, map[uint32]bool{}
		var live []*supply
		item := rapid.Uint32Range(0, n-1)
		some := func(t *rapid.T) *supply {
			if len(live) == 0 {
				t.Skip("no supply")
			}
			return live[rapid.IntRange(0, len(live)-1).Draw(t, "supply")]
		}
		finish := func(i uint32, good bool) {
			delete(underway, i)
			if good {
				p.verified(i)
				verified[i] = true
			} else {
				p.refused(i)
			}
		}
		pick := func(t *rapid.T, s *supply) {
			for _, i := range p.pick(s) {
				if !s.holds(i) || !want.has(i) || verified[i] {
					t.Fatalf("item %d was asked for in vain", i)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { p.check(t, verified, underway) },
			"join": func(t *rapid.T) {
				if len(live) == 20 {
					t.Skip("enough")
				}
				whole := rapid.Bool().Draw(t, "whole")
				var has bitset
				if !whole {
					has = newBitset(n)
					for range rapid.IntRange(0, int(n)).Draw(t, "has") {
						has.set(item.Draw(t, "item"))
					}
				}
				live = append(live, p.join(whole, has, rapid.Int64Range(1, 8<<20).Draw(t, "window"), float64(rapid.IntRange(0, 1<<24).Draw(t, "rate"))))
			},
			"leave": func(t *rapid.T) {
				s := some(t)
				p.leave(s)
				live = slices.DeleteFunc(live, func(o *supply) bool { return o == s })
			},
			"pick": func(t *rapid.T) { pick(t, some(t)) },
			"steal": func(t *rapid.T) {
				s := some(t)
				if i, victim := p.steal(s); victim != nil && (!s.holds(i) || !slices.Contains(s.owed, i) || slices.Contains(victim.owed, i)) {
					t.Fatalf("item %d was not taken over", i)
				}
			},
			"arrive": func(t *rapid.T) {
				s, i := some(t), item.Draw(t, "item")
				if len(s.owed) > 0 && rapid.Bool().Draw(t, "as asked") {
					i = s.owed[0]
				}
				had := p.owner[i]
				wanted, _ := p.arrived(s, i)
				if wanted != (had != unwanted && had != verifying) {
					t.Fatalf("item %d in state %d: wanted %v", i, had, wanted)
				}
				if wanted {
					underway[i] = true
				}
			},
			"verify": func(t *rapid.T) {
				for i := range n {
					if underway[i] {
						finish(i, rapid.Bool().Draw(t, "good"))
						return
					}
				}
			},
			"gain":    func(t *rapid.T) { p.gained(some(t), item.Draw(t, "item")) },
			"lack":    func(t *rapid.T) { p.lacks(some(t), item.Draw(t, "item")) },
			"unlend":  func(t *rapid.T) { p.unlend(item.Draw(t, "item")) },
			"lend":    func(t *rapid.T) { p.lend(item.Draw(t, "item")) },
			"reclaim": func(t *rapid.T) { p.reclaim(some(t)) },
			"disperse": func(t *rapid.T) {
				s := some(t)
				for _, i := range p.disperse(s) {
					if !slices.ContainsFunc(live, func(o *supply) bool { return o != s && o.holds(i) }) {
						t.Fatalf("item %d is taken from the only one that has it", i)
					}
				}
			},
		})
		for _, s := range live {
			p.leave(s)
		}
		for i := range underway {
			finish(i, true)
		}
		s := p.join(true, nil, 1<<20, 0)
		for p.missing > 0 {
			pick(t, s)
			if len(s.owed) == 0 {
				t.Fatalf("%d items are missing and nothing is asked for", p.missing)
			}
			for _, i := range slices.Clone(s.owed) {
				p.arrived(s, i)
				finish(i, true)
			}
		}
		p.check(t, verified, underway)
	})
}

func newTestPicker(n uint32) *picker {
	want := newBitset(n)
	want.fill(n)
	return newPicker(n, want, func(uint32) int { return 1000 }, rand.New(rand.NewPCG(3, 4)))
}

// The rarest goes first; what only the holder has is asked of it before what
// others have or have been promised.
func TestPickOrder(t *testing.T) {
	p := newTestPicker(100)
	holder := p.join(true, nil, 10_000, 1e6)
	one, two := newBitset(100), newBitset(100)
	for i := range uint32(50) {
		one.set(i)
	}
	for i := range uint32(25) {
		two.set(i)
	}
	a := p.join(false, one, 20_000, 1e6)
	b := p.join(false, two, 20_000, 1e6)
	for i := uint32(50); i < 75; i++ {
		p.lend(i)
	}
	for _, i := range p.pick(holder) {
		require.GreaterOrEqual(t, i, uint32(75), "something else than what only the holder has")
	}
	for _, i := range p.pick(a) {
		require.True(t, i >= 25 && i < 50, "%d is not among the rarest that it has", i)
	}
	for _, i := range p.pick(b) {
		require.Less(t, i, uint32(25))
	}
	// A lone holder is asked for everything in order.
	p = newTestPicker(100)
	holder = p.join(true, nil, 20_000, 1e6)
	require.Equal(t, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, p.pick(holder))
}

// What a slow supply owes is taken over by a fast one with nothing else to do.
func TestSteal(t *testing.T) {
	p := newTestPicker(20)
	slow := p.join(true, nil, 20_000, 1000)
	fast := p.join(true, nil, 20_000, 1e6)
	p.pick(slow)
	require.Empty(t, p.pick(fast))
	n := 0
	for {
		_, victim := p.steal(fast)
		if victim == nil {
			break
		}
		require.Same(t, slow, victim)
		n++
	}
	require.GreaterOrEqual(t, n, 15)
	i, victim := p.steal(slow)
	require.Nil(t, victim, "%d went back", i)
}

func TestWindow(t *testing.T) {
	const k = 1 << 10
	require.EqualValues(t, 256*k, window(0, 0, 256*k, 8192*k))
	require.EqualValues(t, 1_500_000, window(10e6, 0, 256*k, 8192*k))
	require.EqualValues(t, 8192*k, window(1e9, 0, 256*k, 8192*k))
	require.EqualValues(t, 2048*k, window(1e9, 0, 2048*k, 512*k))
	require.Greater(t, window(5e6, 0.3, 256*k, 8192*k), window(5e6, 0, 256*k, 8192*k))
}
