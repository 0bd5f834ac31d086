package blobs

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
)

// Link is one child of an inner node, as that node names it. What another peer
// has sent may claim anything, so check Size against MaxBlockSize before
// believing it of a leaf.
type Link struct {
	CID  cid.Cid
	Size int64 // bytes of all blocks below CID and of CID itself; negative where the claim overflows
}

// Links lists the children of a block held here, verified, in their order. A leaf
// has none. Children whose CID this package could not have made are an error,
// ErrBadNode, as is a malformed node; a block that is not here is ErrNotFound, a
// rotten one ErrCorrupt.
func (s *Store) Links(c cid.Cid) ([]Link, error) {
	ls, err := s.links(c)
	if err != nil {
		return nil, err
	}
	links := make([]Link, len(ls))
	for i, l := range ls {
		if _, err := digestOf(l.Cid); err != nil {
			return nil, fmt.Errorf("block %s, link %d: %w", c, i, err)
		}
		links[i] = Link{l.Cid, int64(l.Size)}
	}
	return links, nil
}

// ReadBlock appends the bytes of a block to buf and returns it, without hashing
// them: whoever receives them has to. Where a receiver complains, VerifyBlock
// finds out who is right. Errors: ErrNotFound, the disk's.
func (s *Store) ReadBlock(c cid.Cid, buf []byte) ([]byte, error) {
	d, err := digestOf(c)
	if err != nil || d == emptyDigest {
		return buf, err
	}
	n := len(buf)
	if buf, err = s.read(d, buf); errors.Is(err, ErrCorrupt) {
		buf, err = s.drop(c, d, buf[:n])
	}
	if err != nil {
		err = fmt.Errorf("block %s: %w", c, err)
	}
	return buf, err
}

// VerifyBlock reads a block and compares it with its hash. A rotten one is dropped,
// so that the next fetch repairs it, and reported as ErrCorrupt.
func (s *Store) VerifyBlock(c cid.Cid) error {
	return s.view(c, func([]byte) error { return nil })
}
