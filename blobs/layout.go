package blobs

import (
	"crypto/sha256"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

// The number of children of an inner node of a file.
const (
	minFan  = 32
	maxFan  = 512
	fanMask = 127 // so about minFan+128 on average
)

// span is a subtree: its root, the bytes of the file below it, and the bytes of
// its blocks.
type span struct {
	digest digest
	codec  uint64
	size   int64 // of the file
	tsize  int64 // of the blocks
}

// layout builds the tree of one file from its leaves, from left to right, in
// memory of one unfinished node a level. All leaves are at the same depth. Nodes
// end where the hash of a child says so, not every n children: else one more
// chunk at the front of a file would make every inner node new.
type layout struct {
	levels [][]span
}

// leaf appends a leaf and returns the inner nodes it completes.
func (l *layout) leaf(d digest, size int64) ([]block, error) {
	return l.push(0, span{d, cid.Raw, size, size})
}

func (l *layout) push(level int, sp span) ([]block, error) {
	if level == len(l.levels) {
		l.levels = append(l.levels, nil)
	}
	l.levels[level] = append(l.levels[level], sp)
	n := len(l.levels[level])
	if n < minFan || n < maxFan && sp.digest[0]&fanMask != 0 {
		return nil, nil
	}
	return l.fold(level)
}

// fold makes a node of the pending children of a level.
func (l *layout) fold(level int) ([]block, error) {
	b, sp, err := fileNode(l.levels[level])
	if err != nil {
		return nil, err
	}
	l.levels[level] = l.levels[level][:0]
	above, err := l.push(level+1, sp)
	return append(above, b), err
}

// root completes the tree; at least one leaf must have been appended.
func (l *layout) root() (cid.Cid, []block, error) {
	var bs []block
	for level := 0; ; level++ {
		pending := l.levels[level]
		if level == len(l.levels)-1 && len(pending) == 1 {
			return pending[0].digest.cid(pending[0].codec), bs, nil
		}
		if len(pending) == 0 {
			continue
		}
		more, err := l.fold(level)
		if err != nil {
			return cid.Undef, nil, err
		}
		bs = append(bs, more...)
	}
}

// fileNode is the UnixFS node above the given children.
func fileNode(children []span) (block, span, error) {
	fs := unixfs.NewFSNode(unixfs.TFile)
	nd := new(merkledag.ProtoNode)
	sum := span{codec: cid.DagProtobuf}
	for _, c := range children {
		fs.AddBlockSize(uint64(c.size))
		sum.size += c.size
		sum.tsize += c.tsize
		if err := nd.AddRawLink("", &ipld.Link{Cid: c.digest.cid(c.codec), Size: uint64(c.tsize)}); err != nil {
			return block{}, span{}, err
		}
	}
	data, err := fs.GetBytes()
	if err != nil {
		return block{}, span{}, err
	}
	nd.SetData(data)
	raw, err := nd.Marshal()
	if err != nil {
		return block{}, span{}, err
	}
	sum.digest = sha256.Sum256(raw)
	sum.tsize += int64(len(raw))
	return block{digest: sum.digest, codec: cid.DagProtobuf, data: raw}, sum, nil
}
