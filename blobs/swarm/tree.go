package swarm

import (
	"fmt"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// tree numbers the blocks below a root in an order that everybody who holds its
// inner nodes finds: level by level, each inner node once, and in it the leaves as
// it names them. A leaf that is named twice has two numbers.
type tree struct {
	leaves []digest
	sizes  []uint32 // as the nodes claim
	inner  map[digest]struct{}
	total  int64 // of sizes
}

func (t *tree) n() uint32 { return uint32(len(t.leaves)) }

func (t *tree) leaf(i uint32) cid.Cid { return t.leaves[i].cid(cid.Raw) }

// nodeCost is what an inner node counts against the size allowed: else a chain of
// them would be free.
const nodeCost = 1 << 10

// maxNodes bounds the inner nodes of a tree, and with it the memory that numbering
// them takes: a million files and their folders fit.
const maxNodes = 1 << 21

// bounds are how large a tree may be.
type bounds struct {
	bytes  int64 // of its leaves, and again of its inner nodes
	pieces int
}

// leastBlock is the least that the blocks of a large file have on average, in
// bytes: a tree of smaller ones is made to use up memory.
const leastBlock = 4 << 10

// boundsOf are the bounds of content of at most most bytes or, where size is not 0,
// of a file of so many.
func boundsOf(most, size int64) bounds {
	if size <= 0 {
		return bounds{most, maxPieces}
	}
	return bounds{min(most, size+size/8+1<<20), int(min(maxPieces, size/leastBlock+64))}
}

// numbering builds a tree. Its level holds the inner nodes to be added next.
type numbering struct {
	t     *tree
	level []digest
	next  []digest
	most  bounds
}

func newNumbering(root cid.Cid, most bounds) *numbering {
	b := &numbering{t: &tree{}, most: most}
	if root.Type() == cid.Raw {
		b.t.leaves, b.t.sizes = []digest{digestOf(root)}, []uint32{0}
		return b
	}
	b.t.inner = map[digest]struct{}{digestOf(root): {}}
	b.level = []digest{digestOf(root)}
	return b
}

// add takes the children of the next node of the level.
func (b *numbering) add(links []blobs.Link) error {
	for _, l := range links {
		d := digestOf(l.CID)
		if l.CID.Type() == cid.Raw {
			if l.Size < 0 || l.Size > blobs.MaxBlockSize {
				return fmt.Errorf("%w: a leaf of %d bytes", blobs.ErrTooLarge, l.Size)
			}
			b.t.leaves = append(b.t.leaves, d)
			b.t.sizes = append(b.t.sizes, uint32(l.Size))
			b.t.total += l.Size
			continue
		}
		if _, dup := b.t.inner[d]; !dup {
			b.t.inner[d] = struct{}{}
			b.next = append(b.next, d)
		}
	}
	switch {
	case max(b.t.total, int64(len(b.t.inner))*nodeCost) > b.most.bytes:
		return fmt.Errorf("%w: more than %d MiB", blobs.ErrTooLarge, b.most.bytes>>20)
	case len(b.t.leaves) > b.most.pieces:
		return fmt.Errorf("%w: more than %d blocks", blobs.ErrTooLarge, b.most.pieces)
	case len(b.t.inner) > maxNodes:
		return fmt.Errorf("%w: more than %d inner nodes", blobs.ErrTooLarge, maxNodes)
	}
	return nil
}

// descend goes on to the level below.
func (b *numbering) descend() { b.level, b.next = b.next, nil }

// claim tells which leaves are held.
func (t *tree) claim(in *blobs.Intake) (bitset, error) {
	const batch = 1024
	held := newBitset(t.n())
	cs := make([]cid.Cid, 0, min(batch, len(t.leaves)))
	for first := uint32(0); first < t.n(); first += batch {
		cs = cs[:0]
		for i := first; i < min(first+batch, t.n()); i++ {
			cs = append(cs, t.leaf(i))
		}
		have, err := in.Claim(cs...)
		if err != nil {
			return nil, err
		}
		for i, h := range have {
			if h {
				held.set(first + uint32(i))
			}
		}
	}
	return held, nil
}
