package swarm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// understated puts a file of one leaf into a store whose root claims that the leaf
// has one byte.
func understated(t *testing.T, s *blobs.Store, data []byte) cid.Cid {
	h, err := multihash.Sum(data, multihash.SHA2_256, -1)
	require.NoError(t, err)
	leaf := cid.NewCidV1(cid.Raw, h)
	file := unixfs.NewFSNode(unixfs.TFile)
	file.AddBlockSize(1)
	text, err := file.GetBytes()
	require.NoError(t, err)
	root := merkledag.NodeWithData(text)
	require.NoError(t, root.SetCidBuilder(merkledag.V1CidPrefix()))
	require.NoError(t, root.AddRawLink("", &ipld.Link{Cid: leaf, Size: 1}))
	in := s.NewIntake(nil)
	defer in.Close()
	wrong, err := in.Add(blobs.Block{CID: leaf, Data: data}, blobs.Block{CID: root.Cid(), Data: root.RawData()})
	require.NoError(t, err)
	require.Empty(t, wrong)
	require.NoError(t, in.Flush())
	require.NoError(t, in.Hold(root.Cid()))
	return root.Cid()
}

// Content cannot take more room or memory than it says, nor than whoever asks
// for it expects.
func TestContentIsAsLargeAsItSays(t *testing.T) {
	a, b := newPeer(t, Config{}), newPeer(t, Config{})
	fetch := func(root cid.Cid, size int64) error {
		return b.e.Fetch(t.Context(), Request{Root: root, From: info(a.h), Size: size})
	}
	require.ErrorIs(t, fetch(understated(t, a.s, noise(1, 1<<20)), 0), blobs.ErrBadNode)

	frame, size, err := a.s.ImportFile(t.Context(), bytes.NewReader(noise(2, 5<<20)))
	require.NoError(t, err)
	require.ErrorIs(t, fetch(frame, 1000), blobs.ErrTooLarge)
	require.NoError(t, fetch(frame, size))

	crumbs := make(map[string][]byte)
	for i := range 100 {
		crumbs[fmt.Sprint(i)] = fmt.Append(nil, "crumb ", i)
	}
	root, sum := importFiles(t, a.s, crumbs)
	require.ErrorIs(t, fetch(root, sum.Bytes), blobs.ErrTooLarge, "that is no file of that size")
	require.NoError(t, fetch(root, 0))
}

// The largest content that is taken, in a million files, has no more pieces than
// there may be, and the map of so many can be sent.
func TestLargestContent(t *testing.T) {
	p := newPeer(t, Config{})
	const size, files = 32 << 20, 1_000_000
	root, _ := importFiles(t, p.s, map[string][]byte{"scene.blend": noise(1, size)})
	sh := &share{root: root}
	ok, err := sh.look(p.s, p.e.cfg.MaxBytes)
	require.NoError(t, err)
	require.True(t, ok)
	pieces := float64(sh.tree.n())/size*float64(p.e.cfg.MaxBytes) + files/2 // the last of a file is cut short
	t.Logf("%.0f pieces of %d", pieces, maxPieces)
	require.Less(t, pieces, float64(maxPieces))

	held := newBitset(maxPieces)
	held.set(maxPieces - 1)
	r := newFrameReader(bytes.NewReader(mapFrame(nil, maxPieces, held)), 4096, maxFrame)
	_, n, err := r.next()
	require.NoError(t, err)
	body, err := r.body(nil, n)
	require.NoError(t, err)
	number, has, err := parseMap(body)
	require.NoError(t, err)
	require.EqualValues(t, maxPieces, number)
	require.Equal(t, held, has)

	// Nodes take nothing away from what leaves may be.
	b := newNumbering(root, bounds{size, maxPieces})
	require.NoError(t, b.add([]blobs.Link{{CID: digest{1}.cid(cid.DagProtobuf)}}))
	for range 32 {
		require.NoError(t, b.add([]blobs.Link{{CID: digest{2}.cid(cid.Raw), Size: blobs.MaxBlockSize}}))
	}
	require.ErrorIs(t, b.add([]blobs.Link{{CID: digest{2}.cid(cid.Raw), Size: 1}}), blobs.ErrTooLarge)
}
