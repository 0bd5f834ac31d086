package blobs

import (
	"math"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/stretchr/testify/require"
)

// A node comes from whoever sent the block: its hash is right, and its contents may be
// anything.
func FuzzParseNode(f *testing.F) {
	f.Add(merkledag.NodeWithData(unixfs.FilePBData([]byte("words"), 5)).RawData())
	f.Add(unixfs.EmptyDirNode().RawData())
	f.Add(merkledag.NodeWithData(unixfs.FilePBData(nil, math.MaxUint64)).RawData())
	f.Fuzz(func(t *testing.T, block []byte) {
		nd, err := merkledag.DecodeProtobuf(block)
		if err != nil {
			return
		}
		n, err := parseNode(nd)
		if err != nil {
			return
		}
		sum := int64(len(n.data))
		for _, size := range n.sizes {
			require.GreaterOrEqual(t, size, int64(0))
			sum += size
		}
		require.Equal(t, n.size, sum)
	})
}
