package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"

	"github.com/ipfs/go-cid"
)

// Has reports whether root and everything below it is here. It never fetches and
// does not verify leaves; a block found corrupt later is dropped and then missing.
func (s *Store) Has(ctx context.Context, root cid.Cid) (bool, error) {
	missing := errors.New("missing") // stays in here
	var leaves []digest
	check := func() error {
		held, err := s.has(leaves...)
		if err != nil {
			return err
		}
		for _, h := range held {
			if !h {
				return missing
			}
		}
		leaves = leaves[:0]
		return nil
	}
	if _, err := digestOf(root); err != nil {
		return false, err
	}
	err := s.walk(ctx, root, map[digest]struct{}{}, func(d digest, _ int64) error {
		if leaves = append(leaves, d); len(leaves) == 1024 {
			return check()
		}
		return nil
	})
	if err == nil {
		err = check()
	}
	if err == missing {
		return false, nil
	}
	return err == nil, err
}

// Lookup finds the file or folder at a slash path below root; "" is root itself.
// Errors: ErrNotFound if there is no such path or a folder on the way is not here.
func (s *Store) Lookup(ctx context.Context, root cid.Cid, path string) (cid.Cid, error) {
	if path == "" {
		return root, nil
	}
	if err := CheckPath(path); err != nil {
		return cid.Undef, err
	}
	b := budget(s.cfg.MaxFiles)
	at := root
	for name := range strings.SplitSeq(path, "/") {
		n, err := s.node(at)
		if err != nil {
			return cid.Undef, fmt.Errorf("look up %q: %w", path, err)
		}
		if n.kind == fileKind {
			return cid.Undef, fmt.Errorf("look up %q: %w", path, ErrNotFound)
		}
		cs, err := s.children(ctx, n, &b)
		if err != nil {
			return cid.Undef, fmt.Errorf("look up %q: %w", path, err)
		}
		found := false
		for _, c := range cs {
			if c.name == name {
				at, found = c.cid, true
			}
		}
		if !found {
			return cid.Undef, fmt.Errorf("look up %q: %w", path, ErrNotFound)
		}
	}
	return at, nil
}

// List iterates over the files below root, folder by folder, sorted by name. It
// needs the inner nodes, not the leaves. An error (ErrNotFound, ErrBadNode,
// ErrBadPath, ErrTooLarge) ends it.
func (s *Store) List(ctx context.Context, root cid.Cid) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		stop := errors.New("stop") // stays in here
		err := s.eachEntry(ctx, root, func(e Entry, dir bool) error {
			if !dir && !yield(e, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(Entry{}, fmt.Errorf("list %s: %w", root, err))
		}
	}
}

// Size counts the files below root and their bytes, duplicates each time.
func (s *Store) Size(ctx context.Context, root cid.Cid) (Summary, error) {
	var sum Summary
	for e, err := range s.List(ctx, root) {
		if err != nil {
			return Summary{}, err
		}
		if e.Size > math.MaxInt64-sum.Bytes {
			return Summary{}, fmt.Errorf("size of %s: %w", root, ErrTooLarge)
		}
		sum.Files++
		sum.Bytes += e.Size
	}
	return sum, nil
}

// eachEntry visits folders before what they hold. Every path has passed CheckPath.
func (s *Store) eachEntry(ctx context.Context, root cid.Cid, f func(e Entry, dir bool) error) error {
	b := budget(s.cfg.MaxFiles)
	return s.entry(ctx, child{"", root, -1}, "", &b, f)
}

func (s *Store) entry(ctx context.Context, c child, path string, b *budget, f func(e Entry, dir bool) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.cid.Type() == cid.Raw {
		size, err := s.leafSize(c.cid)
		if errors.Is(err, ErrNotFound) && c.tsize >= 0 {
			size, err = c.tsize, nil
		}
		if err != nil { // not here, nor named by a folder: nobody knows
			return err
		}
		return f(Entry{Path: path, CID: c.cid, Size: size}, false)
	}
	n, err := s.node(c.cid)
	if err != nil {
		return err
	}
	if n.kind == fileKind {
		return f(Entry{Path: path, CID: c.cid, Size: n.size}, false)
	}
	if err := f(Entry{Path: path, CID: c.cid}, true); err != nil {
		return err
	}
	cs, err := s.children(ctx, n, b)
	if err != nil {
		return fmt.Errorf("folder %q: %w", path, err)
	}
	for _, c := range cs {
		p := c.name
		if path != "" {
			p = path + "/" + c.name
		}
		if len(p) > maxPath {
			return fmt.Errorf("%w: %d bytes long, at most %d", ErrBadPath, len(p), maxPath)
		}
		if err := s.entry(ctx, c, p, b, f); err != nil {
			return err
		}
	}
	return nil
}

// leafSize is how long a leaf held here is, without reading it.
func (s *Store) leafSize(c cid.Cid) (int64, error) {
	d, err := digestOf(c)
	if err != nil || d == emptyDigest {
		return 0, err
	}
	p, err := s.index.where(d)
	if err != nil {
		return 0, fmt.Errorf("block %s: %w", c, err)
	}
	return int64(p.length), nil
}

// OpenFile opens a file by its CID and returns its size in bytes. Reads are
// verified; they fail with ErrNotFound where a block is missing, ErrCorrupt or
// ErrBadNode. The reader is for one goroutine at a time; ctx ends it.
func (s *Store) OpenFile(ctx context.Context, c cid.Cid) (io.ReadSeekCloser, int64, error) {
	if _, err := digestOf(c); err != nil {
		return nil, 0, err
	}
	n, err := s.node(c)
	if err != nil {
		return nil, 0, fmt.Errorf("open file: %w", err)
	}
	if n.kind != fileKind {
		return nil, 0, fmt.Errorf("open file: %w: %s is a folder", ErrBadNode, c)
	}
	return &fileReader{ctx: ctx, s: s, size: n.size, stack: []level{{n, 0}}}, n.size, nil
}

// level is a node on the way from the root of a file to the current leaf.
type level struct {
	n     *node
	start int64 // its offset in the file
}

type fileReader struct {
	ctx   context.Context
	s     *Store
	size  int64
	pos   int64
	stack []level // the root first
}

const maxFileDepth = 16 // ten times what any file of ours needs

// leaf returns the part of the current leaf from pos on.
func (r *fileReader) leaf() ([]byte, error) {
	for top := r.stack[len(r.stack)-1]; r.pos < top.start || r.pos >= top.start+top.n.size; top = r.stack[len(r.stack)-1] {
		r.stack = r.stack[:len(r.stack)-1]
	}
	for {
		top := r.stack[len(r.stack)-1]
		if len(top.n.links) == 0 {
			return top.n.data[r.pos-top.start:], nil
		}
		if len(r.stack) > maxFileDepth {
			return nil, fmt.Errorf("%w: file nested too deep", ErrBadNode)
		}
		start, i := top.start, 0
		for r.pos >= start+top.n.sizes[i] {
			start += top.n.sizes[i]
			i++
		}
		c := top.n.links[i].Cid
		if _, err := digestOf(c); err != nil {
			return nil, err
		}
		n, err := r.s.node(c)
		if err != nil {
			return nil, err
		}
		if n.kind != fileKind || n.size != top.n.sizes[i] {
			return nil, fmt.Errorf("block %s: %w: %d bytes where %d were claimed", c, ErrBadNode, n.size, top.n.sizes[i])
		}
		r.stack = append(r.stack, level{n, start})
	}
}

func (r *fileReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.s == nil {
		return 0, errors.New("read of a closed file")
	}
	if r.pos >= r.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	data, err := r.leaf()
	if err != nil {
		return 0, fmt.Errorf("read file at %d: %w", r.pos, err)
	}
	n := copy(p, data)
	r.pos += int64(n)
	return n, nil
}

// WriteTo spares io.Copy its buffer.
func (r *fileReader) WriteTo(w io.Writer) (int64, error) {
	var sum int64
	for r.pos < r.size {
		if err := r.ctx.Err(); err != nil {
			return sum, err
		}
		data, err := r.leaf()
		if err != nil {
			return sum, fmt.Errorf("read file at %d: %w", r.pos, err)
		}
		n, err := w.Write(data)
		sum += int64(n)
		r.pos += int64(n)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

func (r *fileReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the file")
	}
	r.pos = offset
	return offset, nil
}

func (r *fileReader) Close() error {
	r.s, r.stack = nil, nil
	return nil
}
