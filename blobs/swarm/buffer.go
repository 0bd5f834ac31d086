package swarm

import (
	"math/bits"
	"sync"
)

// Blocks are received into, and written from, buffers that are used again: to
// allocate and clear them would cost as much as to hash them.
const (
	smallest = 12 // as a power of two
	largest  = 21 // holds what is gathered, and a block
)

var buffers [largest + 1]sync.Pool

// buffer returns n bytes, of at most 1<<largest, with anything in them.
func buffer(n int) []byte {
	class := max(bits.Len(uint(max(n, 1)-1)), smallest)
	if b, ok := buffers[class].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<class)
}

// recycle takes back what buffer gave.
func recycle(b []byte) {
	class := bits.Len(uint(cap(b))) - 1
	if class < smallest || class > largest || cap(b) != 1<<class {
		return
	}
	b = b[:0]
	buffers[class].Put(&b)
}
