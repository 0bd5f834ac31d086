package blobs

import (
	"context"
	"io"

	"github.com/ipfs/go-cid"
)

// ImportFile imports one frame or log, cut every MaxBlockSize bytes: up to that
// size it is a single block, which a peer gets in one round trip. It is durable
// on return, and GC spares it for Config.Grace or until it is pinned.
func (s *Store) ImportFile(ctx context.Context, r io.Reader) (cid.Cid, int64, error) {
	w := s.newWriter()
	defer w.close()
	e, err := importFile(ctx, w, r, fixed)
	if err == nil {
		err = w.hold(e.CID)
	}
	if err != nil {
		return cid.Undef, 0, failed("import file", s.dir, err)
	}
	return e.CID, e.Size, nil
}

// Import is a file on its way into the store: its name is known, and it is neither
// durable nor pinned before Wait or Settle.
type Import struct {
	CID  cid.Cid
	Size int64 // bytes

	s      *Store
	w      *writer
	holder string
	pinned bool // with the blocks
}

// BeginImport imports a file as ImportFile does and pins it as Pin does, both with
// one wait for the disk, and returns before that. Unless it fails the caller must
// call Wait or Settle, once.
func (s *Store) BeginImport(ctx context.Context, r io.Reader, holder string) (*Import, error) {
	w := s.newWriter()
	e, err := importFile(ctx, w, r, fixed)
	if err == nil {
		_, _, err = pinKeys(e.CID, holder)
	}
	if err != nil {
		w.close()
		return nil, failed("import file", s.dir, err)
	}
	i := &Import{CID: e.CID, Size: e.Size, s: s, w: w, holder: holder}
	i.pinned = w.flushWith(Pin{Root: e.CID, Holder: holder})
	return i, nil
}

// Wait returns when the file is durable and pinned. Its errors are those of
// ImportFile and Pin; after one it may be imported again.
func (i *Import) Wait(ctx context.Context) error {
	defer i.w.close()
	if err := i.w.flush(); err != nil {
		return failed("import file", i.s.dir, err)
	}
	if i.pinned {
		return nil
	}
	return i.s.Pin(ctx, i.CID, i.holder) // all of it was here already
}

// Settle is Wait without hurry: the file becomes durable together with what comes
// next, a quarter of a second later at most.
func (i *Import) Settle(ctx context.Context) error {
	i.w.idle()
	return i.Wait(ctx)
}
