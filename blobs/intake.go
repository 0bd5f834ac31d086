package blobs

import (
	"crypto/sha256"
	"fmt"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
)

// Intake takes blocks that come from elsewhere, such as other peers, into the
// store. Until Close, GC spares whatever it has claimed or added. Its methods may
// be called from several goroutines, which then hash side by side.
type Intake struct {
	s *Store
	w *writer
}

// NewIntake begins an intake; Close must end it. readable, if not nil, is told of
// blocks that were added once others can read them from the store; it is called
// from one goroutine at a time and must not call the Intake.
func (s *Store) NewIntake(readable func([]cid.Cid)) *Intake {
	w := s.newWriter()
	if readable != nil {
		w.stored = func(bs []block) {
			cs := make([]cid.Cid, len(bs))
			for i, b := range bs {
				cs[i] = b.digest.cid(b.codec)
			}
			readable(cs)
		}
	}
	return &Intake{s: s, w: w}
}

// Claim tells which of the blocks are held, or have been added. They stay until Close. Errors:
// ErrBadNode for a CID that this package could not have made.
func (in *Intake) Claim(cs ...cid.Cid) ([]bool, error) {
	ds := make([]digest, len(cs))
	for i, c := range cs {
		d, err := digestOf(c)
		if err != nil {
			return nil, err
		}
		ds[i] = d
	}
	return in.w.claim(ds...)
}

// Block is some content and its name.
type Block struct {
	CID  cid.Cid
	Data []byte
}

// Add stores blocks that Claim said are missing, several at a time for less. Those
// whose data has another hash are left out, and their numbers returned. All data
// may be used again when it returns; it may wait for the disk. Errors: ErrBadNode
// for a CID that this package could not have made, ErrTooLarge, ErrDiskFull; after
// the latter the intake is of no more use.
func (in *Intake) Add(blocks ...Block) (wrong []int, err error) {
	bs := make([]block, 0, len(blocks))
	for i, b := range blocks {
		d, err := digestOf(b.CID)
		if err != nil {
			return nil, err
		}
		if sha256.Sum256(b.Data) != d {
			wrong = append(wrong, i)
			continue
		}
		bs = append(bs, block{digest: d, codec: b.CID.Type(), data: b.Data})
	}
	return wrong, in.w.addClaimed(bs)
}

// addClaimed is add for blocks of which claim has said that they are not held. Should
// somebody else have stored one meanwhile, its second copy is garbage.
func (w *writer) addClaimed(bs []block) error {
	for _, b := range bs {
		if len(b.data) > MaxBlockSize {
			return fmt.Errorf("block %s of %d bytes: %w, at most %d", b.digest.cid(b.codec), len(b.data), ErrTooLarge, MaxBlockSize)
		}
		w.mu.Lock()
		_, ours := w.ours[b.digest]
		w.ours[b.digest] = struct{}{}
		w.mu.Unlock()
		if ours {
			continue
		}
		if err := w.copy(b); err != nil {
			return err
		}
	}
	return nil
}

// Flush makes everything added durable.
func (in *Intake) Flush() error { return in.w.flush() }

// Hold is Flush for a root that is whole now: it is cached, and spared from eviction
// for Config.Grace, so that there is time to pin it.
func (in *Intake) Hold(root cid.Cid) error { return in.w.hold(root) }

// Close ends the intake; what was not flushed may be lost.
func (in *Intake) Close() { in.w.close() }

// LinksOf lists the children of the inner node whose bytes are data, as Store.Links
// does for one that is held. Errors: ErrBadNode.
func LinksOf(data []byte) ([]Link, error) {
	nd, err := merkledag.DecodeProtobuf(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadNode, err)
	}
	links := make([]Link, len(nd.Links()))
	for i, l := range nd.Links() {
		if _, err := digestOf(l.Cid); err != nil {
			return nil, fmt.Errorf("link %d: %w", i, err)
		}
		links[i] = Link{l.Cid, int64(l.Size)}
	}
	return links, nil
}
