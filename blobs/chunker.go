package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs/pack"
)

// splitting says where the chunks of a file end.
type splitting int

const (
	// byContent moves only the cuts around an insertion: for projects.
	byContent splitting = iota
	// fixed cuts every MaxBlockSize bytes: frames share nothing, so the fewest
	// blocks are best.
	fixed
)

// slab is a run of chunks on its way from a file into the store. They are cut and
// hashed where they were read to and, if all of them are new, written from there.
// Working in slabs rather than chunks spares a wake-up each, which costs as much
// as the hashing.
type slab struct {
	mem      []byte // aligned for pack; the first slabHead bytes are for what the slab before leaves over
	from, to int    // the part of mem with bytes of the file
	first    bool   // the file begins here
	last     bool   // the file ends here
	left     <-chan []byte
	leave    chan<- []byte // what does not end here, for the next slab
	cuts     []candidate
	blocks   []block // end to end from from to to
	hashed   chan struct{}
}

const (
	slabBytes = 2 << 20
	slabHead  = maxChunk
	// slabsAhead are read and not yet laid out, besides those being hashed.
	slabsAhead = 3
	// slabsAtOnce are cut and hashed at the same time: more than a disk can take.
	slabsAtOnce = 4
)

var slabPool = sync.Pool{New: func() any { return &slab{mem: pack.NewBuffer(slabHead + slabBytes)} }}

// free gives the slab up for reuse. One that an error leaves behind is left to the
// garbage collector.
func (b *slab) free() {
	clear(b.blocks)
	*b = slab{mem: b.mem, cuts: b.cuts[:0], blocks: b.blocks[:0]}
	slabPool.Put(b)
}

// slabReader fills slabs from a file.
type slabReader struct {
	r    io.Reader
	seam [window]byte // the last bytes of the slab before, which the hash looks back at
	left chan []byte  // what the slab before leaves over; nil at first
}

// next reads one slab: at the end of a file, perhaps without bytes.
func (s *slabReader) next() (*slab, error) {
	b := slabPool.Get().(*slab)
	n, err := io.ReadFull(s.r, b.mem[slabHead:slabHead+slabBytes])
	if b.last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !b.last {
		b.free()
		return nil, err
	}
	b.from, b.to = slabHead, slabHead+n
	b.first, b.left = s.left == nil, s.left
	s.left = make(chan []byte, 1)
	b.leave, b.hashed = s.left, make(chan struct{})
	if !b.first {
		copy(b.mem[slabHead-window:], s.seam[:])
	}
	if !b.last {
		copy(s.seam[:], b.mem[b.to-window:b.to])
	}
	return b, nil
}

// process cuts and hashes a slab. Slabs of a file may be processed at the same
// time, if those before have been begun.
func (b *slab) process(how splitting) {
	if how == byContent {
		b.cuts = candidates(b.cuts, b.mem[:b.to], slabHead, b.first)
	}
	if !b.first {
		left := <-b.left
		b.from -= len(left)
		copy(b.mem[b.from:], left)
	}
	start, cs := b.from, b.cuts
	for start < b.to {
		end := 0
		if how == byContent {
			end, cs = cut(cs, start, b.to)
		} else if b.to-start >= MaxBlockSize {
			end = start + MaxBlockSize
		}
		if end == 0 {
			if !b.last {
				break
			}
			end = b.to
		}
		b.blocks = append(b.blocks, block{codec: cid.Raw, data: b.mem[start:end:end]})
		start = end
	}
	b.leave <- bytes.Clone(b.mem[start:b.to])
	b.to = start
	for i := range b.blocks {
		b.blocks[i].digest = sha256.Sum256(b.blocks[i].data)
	}
	close(b.hashed)
}

// importFile stores r and returns the file's root. Reading happens on the caller's
// goroutine, cutting and hashing on several cores, looking up and laying out on
// another, writing behind w: all of them overlap.
func importFile(ctx context.Context, w *writer, r io.Reader, how splitting) (Entry, error) {
	in := slabReader{r: r}
	first, err := in.next()
	if err != nil {
		return Entry{}, fmt.Errorf("read: %w", err)
	}
	if first.last { // as most textures: spare it the pipeline
		first.process(how)
		one := make(chan *slab, 1)
		one <- first
		close(one)
		return layOut(w, one)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work, ordered := make(chan *slab, slabsAhead), make(chan *slab, slabsAhead)
	for range min(runtime.GOMAXPROCS(0), slabsAtOnce) {
		go func() {
			for b := range work {
				b.process(how)
			}
		}()
	}
	var e Entry
	laid := make(chan error, 1)
	go func() {
		var err error
		if e, err = layOut(w, ordered); err != nil {
			cancel(err)
		}
		laid <- err
	}()
	for b := first; ; {
		last := b.last // it may be in use for something else as soon as it is handed on
		work <- b      // never blocks for long: processing waits for nobody
		select {
		case ordered <- b:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil || last {
			break
		}
		if b, err = in.next(); err != nil {
			break
		}
	}
	close(work)
	close(ordered)
	if layErr := <-laid; layErr != nil {
		return Entry{}, layErr
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read: %w", err)
	}
	return e, nil
}

// layOut takes slabs in order, adds their blocks to w and builds the tree above.
func layOut(w *writer, ordered <-chan *slab) (Entry, error) {
	var (
		l     layout
		e     Entry
		nodes []block
	)
	for b := range ordered {
		<-b.hashed
		nodes = nodes[:0]
		for _, leaf := range b.blocks {
			e.Size += int64(len(leaf.data))
			above, err := l.leaf(leaf.digest, int64(len(leaf.data)))
			if err != nil {
				return e, err
			}
			nodes = append(nodes, above...)
		}
		n, err := w.addSlab(b, nodes...)
		if err != nil {
			return e, err
		}
		e.NewBytes += n
	}
	if e.Size == 0 {
		return Entry{CID: emptyDigest.cid(cid.Raw)}, nil
	}
	root, above, err := l.root()
	if err != nil {
		return e, err
	}
	n, err := w.add(above...)
	e.CID, e.NewBytes = root, e.NewBytes+n
	return e, err
}
