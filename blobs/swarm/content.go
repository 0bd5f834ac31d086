package swarm

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

const (
	tickTime = 100 * time.Millisecond
	// trickle is how many bytes count as a sign that a fetch is not stalled,
	// although no block of them is complete: few, for many fetches may share a line.
	trickle = 16 << 10
)

// round is a set of items that the sources are asked for: inner nodes of one level,
// or all leaves.
type round struct {
	picker *picker
	nodes  []digest // nil in the round of the leaves
	index  map[digest]uint32
	least  int64             // bytes that a source may always owe
	kept   map[digest][]byte // nodes that came, as far as maxKept goes
	bytes  int               // of kept
	done   chan struct{}
}

// maxKept bounds the bytes of inner nodes that are held in memory, so that they
// need not be durable before they are read.
const maxKept = 8 << 20

// content fetches inner nodes, then leaves.
func (f *fetch) content() error {
	t, err := f.inner()
	if err != nil {
		return err
	}
	held, err := t.claim(f.in)
	if err != nil {
		return err
	}
	want := newBitset(t.n())
	want.fill(t.n())
	f.have = 0
	for i := range t.n() {
		if held.has(i) {
			want.clear(i)
			f.have += int64(t.sizes[i])
		}
	}
	f.share.publish(t, held)
	f.mu.Lock()
	f.tree = t
	f.twins = twins(t, want)
	f.mu.Unlock()
	f.told.Lock()
	f.known, f.total = true, t.total
	f.told.Unlock()
	f.tell(0)
	if want.count() == 0 {
		return nil
	}
	size := func(i uint32) int { return max(int(t.sizes[i]), leastSize) }
	if t.inner == nil {
		size = func(uint32) int { return blobs.MaxBlockSize } // nobody has said
	}
	room, largest := int64(0), 0
	want.each(func(i uint32) { room, largest = room+int64(size(i)), max(largest, size(i)) })
	if err := f.in.Reserve(f.ctx, room); err != nil {
		return err
	}
	return f.get(&round{least: max(leastOwed, 2*int64(largest)), picker: newPicker(t.n(), want, size, newRand()), done: make(chan struct{})})
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }

// leastSize is what a leaf counts for at least, in bytes.
const leastSize = 512

// twins finds the wanted leaves that are named more than once, and leaves the
// first of each in want.
func twins(t *tree, want bitset) map[uint32][]uint32 {
	sorted := make([]uint32, 0, want.count())
	want.each(func(i uint32) { sorted = append(sorted, i) })
	slices.SortFunc(sorted, func(a, b uint32) int {
		return cmp.Or(slices.Compare(t.leaves[a][:], t.leaves[b][:]), cmp.Compare(a, b))
	})
	out := make(map[uint32][]uint32)
	for i := 0; i < len(sorted); {
		first := sorted[i]
		for i++; i < len(sorted) && t.leaves[sorted[i]] == t.leaves[first]; i++ {
			out[first] = append(out[first], sorted[i])
			want.clear(sorted[i])
		}
	}
	return out
}

// inner numbers the tree, fetching the inner nodes that are not here.
func (f *fetch) inner() (*tree, error) {
	b := newNumbering(f.root, f.bounds())
	for ; len(b.level) > 0; b.descend() {
		cs := make([]cid.Cid, len(b.level))
		for i, d := range b.level {
			cs[i] = d.cid(cid.DagProtobuf)
		}
		held, err := f.in.Claim(cs...)
		if err != nil {
			return nil, err
		}
		r := &round{least: leastOwed, index: make(map[digest]uint32), kept: make(map[digest][]byte), done: make(chan struct{})}
		for i, h := range held {
			if !h {
				r.index[b.level[i]] = uint32(len(r.nodes))
				r.nodes = append(r.nodes, b.level[i])
			}
		}
		if len(r.nodes) > 0 {
			n := uint32(len(r.nodes))
			all := newBitset(n)
			all.fill(n)
			const guess = 8 << 10 // bytes of a node
			r.picker = newPicker(n, all, func(uint32) int { return guess }, newRand())
			if err := f.get(r); err != nil {
				return nil, fmt.Errorf("inner nodes: %w", err)
			}
			if len(r.kept) < len(r.nodes) {
				if err := f.in.Flush(); err != nil { // to read the others
					return nil, err
				}
			}
		}
		b.most = f.bounds() // somebody may expect more by now
		for i, c := range cs {
			var links []blobs.Link
			if data := r.kept[b.level[i]]; data != nil {
				links, err = blobs.LinksOf(data)
			} else {
				links, err = f.e.store.Links(c)
			}
			if err != nil {
				return nil, fmt.Errorf("node %s: %w", c, err)
			}
			if err := b.add(links); err != nil {
				return nil, err
			}
		}
	}
	return b.t, nil
}

// get has the sources fetch the items of a round.
func (f *fetch) get(r *round) error {
	f.mu.Lock()
	f.advanced = time.Now()
	f.round = r
	for s := range f.sources {
		f.attach(s)
	}
	f.mu.Unlock()
	f.staff()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.round = nil
		for s := range f.sources {
			s.supply = nil
		}
	}()
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	moved := f.moved.Load()
	for {
		if err := f.recruit(r, time.Now()); err != nil {
			return err
		}
		select {
		case <-r.done:
			return nil
		case <-f.changed:
		case err := <-f.failed:
			return err
		case <-f.ctx.Done():
			return f.ctx.Err()
		case <-tick.C:
			now := f.moved.Load()
			if err := f.watch(r, time.Now(), now-moved >= trickle); err != nil {
				return err
			}
			if now-moved >= trickle {
				moved = now
			}
		}
	}
}
