package swarm

import (
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// However far the disk is behind, a bounded part of what came is given out from
// memory; of the rest others are told when the store gives it out.
func TestMemoryAheadOfTheDisk(t *testing.T) {
	const n, most = 80, maxAhead / blobs.MaxBlockSize
	tr := &tree{sizes: make([]uint32, n)}
	for i := range n {
		tr.leaves = append(tr.leaves, digest{byte(i), 1})
	}
	f := &fetch{share: &share{}, tree: tr, waiting: make(map[digest]*landing)}
	f.share.publish(tr, newBitset(n))
	r := &round{picker: newTestPicker(n), done: make(chan struct{})}
	arrive := func(i uint32) {
		f.waiting[tr.leaves[i]] = &landing{pieces: []uint32{i}}
		f.verified(arrival{from: &source{}, r: r, item: i, cid: tr.leaf(i), data: buffer(blobs.MaxBlockSize)}, true)
	}
	look := func(fresh, held int) {
		t.Helper()
		require.Equal(t, fresh, len(f.share.fresh))
		require.EqualValues(t, held, f.share.held.count())
		require.Equal(t, held, len(f.share.gained))
	}
	for i := range uint32(n / 2) {
		arrive(i)
	}
	look(most, most)
	f.readable([]cid.Cid{tr.leaf(0), tr.leaf(n/2 - 1)})
	look(most-1, most+1)
	for i := uint32(n / 2); i < n; i++ {
		arrive(i)
	}
	look(most, most+2)
	<-r.done
	for i := range uint32(n) {
		f.readable([]cid.Cid{tr.leaf(i)})
	}
	look(0, n)
	require.Zero(t, f.ahead)
}
