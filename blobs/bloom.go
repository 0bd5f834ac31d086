package blobs

import (
	"encoding/binary"
	"sync/atomic"
)

// bloom is a set of digests that may claim too much, never too little: just
// right for "do not remove these" in bounded memory. A digest is already random,
// so its words serve as the hash functions.
type bloom struct {
	bits []atomic.Uint64
	mask uint32
}

// newBloom makes room for n digests with about one false claim in a thousand.
func newBloom(n int) *bloom {
	words := uint32(1 << 10)
	for int64(words)*64 < int64(n)*16 && words < 1<<26 {
		words <<= 1
	}
	return &bloom{bits: make([]atomic.Uint64, words), mask: words*64 - 1}
}

const bloomHashes = 6

func (b *bloom) add(d digest) {
	for i := range bloomHashes {
		h := binary.LittleEndian.Uint32(d[i*4:]) & b.mask
		b.bits[h/64].Or(1 << (h % 64))
	}
}

func (b *bloom) has(d digest) bool {
	for i := range bloomHashes {
		h := binary.LittleEndian.Uint32(d[i*4:]) & b.mask
		if b.bits[h/64].Load()&(1<<(h%64)) == 0 {
			return false
		}
	}
	return true
}

// merge adds all of other, which must be of the same size, and empties it.
func (b *bloom) merge(other *bloom) {
	for i := range b.bits {
		b.bits[i].Or(other.bits[i].Swap(0))
	}
}
