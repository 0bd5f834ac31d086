package blobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

// links are the children of a block: none for a leaf.
func (s *Store) links(c cid.Cid) ([]*ipld.Link, error) {
	if c.Type() == cid.Raw {
		return nil, nil
	}
	nd, err := s.protoNode(c)
	if err != nil {
		return nil, err
	}
	return nd.Links(), nil
}

func (s *Store) protoNode(c cid.Cid) (*merkledag.ProtoNode, error) {
	raw, err := s.get(c)
	if err != nil {
		return nil, err
	}
	nd, err := merkledag.DecodeProtobuf(raw)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w: %w", c, ErrBadNode, err)
	}
	return nd, nil
}

// walk calls f for the blocks below root that are named by the nodes held here:
// every inner node not in seen, once, and every leaf as often as those nodes name
// it, with the size the naming link claims. Children of nodes that are missing or
// malformed are not visited, and neither is said: it serves GC, which has to go
// on whatever peers have sent.
func (s *Store) walk(ctx context.Context, root cid.Cid, seen map[digest]struct{}, f func(d digest, tsize int64) error) error {
	todo := []cid.Cid{root}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := digestOf(c)
		if err != nil {
			continue
		}
		if c.Type() == cid.Raw {
			if err := f(d, 0); err != nil {
				return err
			}
			continue
		}
		if _, dup := seen[d]; dup {
			continue
		}
		seen[d] = struct{}{}
		if err := f(d, 0); err != nil {
			return err
		}
		ls, err := s.links(c)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrBadNode) {
			s.log.Debug("cannot look below a node", "cid", c, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		for _, l := range ls {
			if l.Cid.Type() != cid.Raw { // leaves at once: they would only swell the list
				todo = append(todo, l.Cid)
				continue
			}
			if ld, err := digestOf(l.Cid); err == nil {
				if err := f(ld, int64(l.Size)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// node is one UnixFS node, checked: the sizes of a file add up, so that a small
// block cannot pose as endless content.
type node struct {
	kind  nodeKind
	size  int64 // of a file
	data  []byte
	links []*ipld.Link
	sizes []int64 // of the part of the file below each link
	pad   int     // of a shard: length of the prefix of its link names
}

type nodeKind int

const (
	fileKind nodeKind = iota
	dirKind
	shardKind
)

func (s *Store) node(c cid.Cid) (*node, error) {
	if c.Type() == cid.Raw {
		data, err := s.get(c)
		return &node{size: int64(len(data)), data: data}, err
	}
	nd, err := s.protoNode(c)
	if err != nil {
		return nil, err
	}
	n, err := parseNode(nd)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w: %w", c, ErrBadNode, err)
	}
	return n, nil
}

func parseNode(nd *merkledag.ProtoNode) (*node, error) {
	fs, err := unixfs.FSNodeFromBytes(nd.Data())
	if err != nil {
		return nil, err
	}
	n := &node{links: nd.Links()}
	switch fs.Type() {
	case unixfs.TFile, unixfs.TRaw:
		n.data = fs.Data()
		if len(n.data) > 0 && len(n.links) > 0 || len(n.links) != fs.NumChildren() {
			return nil, fmt.Errorf("file node with %d links, %d sizes and %d bytes", len(n.links), fs.NumChildren(), len(n.data))
		}
		n.size = int64(len(n.data))
		for _, size := range fs.BlockSizes() {
			if size > math.MaxInt64 || n.size > math.MaxInt64-int64(size) {
				return nil, errors.New("file size overflows")
			}
			n.size += int64(size)
			n.sizes = append(n.sizes, int64(size))
		}
		if fs.FileSize() != uint64(n.size) {
			return nil, fmt.Errorf("file of %d bytes claims %d", n.size, fs.FileSize())
		}
	case unixfs.TDirectory:
		n.kind = dirKind
	case unixfs.THAMTShard:
		n.kind = shardKind
		fanout := fs.Fanout()
		if fanout < 8 || fanout > 1024 || bits.OnesCount64(fanout) != 1 {
			return nil, fmt.Errorf("shard with a fanout of %d", fanout)
		}
		n.pad = len(fmt.Sprintf("%X", fanout-1))
	case unixfs.TSymlink:
		return nil, errors.New("symlinks are not allowed")
	default:
		return nil, fmt.Errorf("UnixFS type %d is not allowed", fs.Type())
	}
	return n, nil
}

// child is one name in a folder.
type child struct {
	name  string
	cid   cid.Cid
	tsize int64 // claimed
}

// budget bounds the work that hostile content can cause: a few nodes naming one
// another twice describe a tree of any size.
type budget int

func (b *budget) spend(n int) error {
	if *b -= budget(n); *b < 0 {
		return fmt.Errorf("%w: more files and folders than Config.MaxFiles", ErrTooLarge)
	}
	return nil
}

const maxShardDepth = 32 // the hash of a name is 64 bits, at least 3 a level

// children lists a folder sorted by name. Names are checked: none leads out of
// the folder, and no two clash on a system that ignores case.
func (s *Store) children(ctx context.Context, n *node, b *budget) ([]child, error) {
	cs, err := s.rawChildren(ctx, n, b, nil, 0)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(cs, func(a, b child) int { return strings.Compare(a.name, b.name) })
	folded := make(map[string]string, len(cs))
	for _, c := range cs {
		if err := checkName(c.name); err != nil {
			return nil, err
		}
		f := foldName(c.name)
		if other, dup := folded[f]; dup {
			return nil, clash(other, c.name)
		}
		folded[f] = c.name
	}
	return cs, nil
}

func clash(a, b string) error {
	if a == b {
		return fmt.Errorf("%w: %q stands twice in one folder", ErrBadPath, a)
	}
	return fmt.Errorf("%w: %q and %q are the same file on Windows and macOS; rename one", ErrBadPath, a, b)
}

func (s *Store) rawChildren(ctx context.Context, n *node, b *budget, cs []child, depth int) ([]child, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if depth > maxShardDepth {
		return nil, fmt.Errorf("%w: shards nested too deep", ErrBadNode)
	}
	if err := b.spend(len(n.links)); err != nil {
		return nil, err
	}
	for _, l := range n.links {
		switch {
		case n.kind == dirKind:
			cs = append(cs, child{l.Name, l.Cid, int64(l.Size)})
		case len(l.Name) > n.pad:
			cs = append(cs, child{l.Name[n.pad:], l.Cid, int64(l.Size)})
		case len(l.Name) < n.pad:
			return nil, fmt.Errorf("%w: shard link %q", ErrBadNode, l.Name)
		default:
			sub, err := s.node(l.Cid)
			if err != nil {
				return nil, err
			}
			if sub.kind != shardKind {
				return nil, fmt.Errorf("%w: shard with a child that is none", ErrBadNode)
			}
			if cs, err = s.rawChildren(ctx, sub, b, cs, depth+1); err != nil {
				return nil, err
			}
		}
	}
	return cs, nil
}
