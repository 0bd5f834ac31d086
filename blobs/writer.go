package blobs

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs/pack"
)

// A batch is written at once: large enough that direct I/O is fast.
const (
	batchBytes  = slabBytes
	batchBlocks = changeBlocks // of a few bytes each, in a folder of small files
	// writesAhead of one writer are under way while the next batch fills, and
	// commitsAhead are written and not yet durable.
	writesAhead  = 4
	commitsAhead = 128
)

// block is content on its way into the store.
type block struct {
	digest digest
	codec  uint64
	data   []byte
	size   int // where data is no more
}

// batch is a run of blocks to be written as one extent.
type batch struct {
	buf    []byte  // aligned
	bytes  int     // used of buf
	skip   int     // of those, before the first block
	blocks []block // their data lies in buf end to end
	free   func()  // buf is no longer needed, nor the blocks' data
	pin    *Pin    // to be noted together with it, or nil; without a holder only the root is
	urgent atomic.Bool
	done   chan struct{} // closed when it is durable, or has failed
}

var batchPool = sync.Pool{New: func() any {
	buf := pack.NewBuffer(batchBytes)
	return &buf
}}

func newBatch() *batch {
	buf := batchPool.Get().(*[]byte)
	return &batch{buf: *buf, free: func() { batchPool.Put(buf) }, done: make(chan struct{})}
}

// writer gathers new blocks and stores them in large batches, the next filling
// while others are written. Blocks already held are not written again. GC spares
// all that it has touched until close. Its methods may be called from several
// goroutines, close when no other runs.
type writer struct {
	s       *Store
	touched *touched
	stored  func([]block) // if set before the first add: told what has become readable, one batch at a time; without data
	tell    sync.Mutex
	room    reservation

	mu      sync.Mutex
	changed sync.Cond           // of writing
	filling *batch              // or nil
	ours    map[digest]struct{} // not yet to be seen by has
	running map[*batch]struct{} // full and not yet durable
	writing int                 // of running, those whose buffer is in use
	err     error               // the first failure; everything after it fails too
}

func (s *Store) newWriter() *writer {
	w := &writer{s: s, touched: s.grace.begin(), ours: map[digest]struct{}{}, running: map[*batch]struct{}{}}
	w.changed.L = &w.mu
	return w
}

// claim reports which blocks are held, stored or about to be, and protects all of
// them from GC until close.
func (w *writer) claim(ds ...digest) ([]bool, error) {
	held := make([]bool, len(ds))
	// Ours first: a block leaves there only when it has become stored.
	w.mu.Lock()
	for i, d := range ds {
		_, held[i] = w.ours[d]
	}
	w.mu.Unlock()
	stored, err := w.s.claim(w.touched, ds...)
	if err != nil {
		return nil, err
	}
	for i := range held {
		held[i] = held[i] || stored[i]
	}
	return held, nil
}

// fresh takes the blocks that are new here for w and returns their numbers.
func (w *writer) fresh(bs []block) ([]int, error) {
	ds := make([]digest, len(bs))
	for i, b := range bs {
		if len(b.data) > MaxBlockSize {
			return nil, fmt.Errorf("block %s of %d bytes: %w, at most %d", b.digest.cid(b.codec), len(b.data), ErrTooLarge, MaxBlockSize)
		}
		ds[i] = b.digest
	}
	held, err := w.claim(ds...)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	var is []int
	for i, d := range ds {
		if _, ours := w.ours[d]; !ours && !held[i] {
			w.ours[d] = struct{}{}
			is = append(is, i)
		}
	}
	return is, nil
}

// add takes over the blocks and returns how many bytes of them are new here. Their
// data may be used again when it returns.
func (w *writer) add(bs ...block) (newBytes int64, err error) {
	is, err := w.fresh(bs)
	if err != nil || len(is) == 0 {
		return 0, err
	}
	for _, i := range is {
		if err := w.copy(bs[i]); err != nil {
			return newBytes, err
		}
		newBytes += int64(len(bs[i].data))
	}
	return newBytes, nil
}

// copy puts a block into the batch being filled.
func (w *writer) copy(b block) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := w.filling; f != nil && (f.bytes+len(b.data) > len(f.buf) || len(f.blocks) == batchBlocks); f = w.filling {
		w.filling = nil
		w.launch(f)
	}
	if w.err != nil {
		return w.err
	}
	if w.filling == nil {
		w.filling = newBatch()
	}
	f := w.filling
	at := f.bytes
	f.bytes += copy(f.buf[at:], b.data)
	b.data = f.buf[at:f.bytes:f.bytes]
	f.blocks = append(f.blocks, b)
	return nil
}

// addSlab is add for the blocks of a slab, which it takes over, and for some more.
func (w *writer) addSlab(b *slab, more ...block) (newBytes int64, err error) {
	is, err := w.fresh(b.blocks)
	if err != nil {
		return 0, err
	}
	if len(is) == len(b.blocks) && b.to-b.from > slabBytes/2 {
		newBytes = int64(b.to - b.from)
		start := b.from &^ (pack.Align - 1)
		clear(b.mem[start:b.from])
		w.mu.Lock()
		w.launch(&batch{buf: b.mem[start:], bytes: b.to - start, skip: b.from - start, blocks: b.blocks, free: b.free, done: make(chan struct{})})
		w.mu.Unlock()
	} else {
		for _, i := range is {
			if err := w.copy(b.blocks[i]); err != nil {
				return newBytes, err
			}
			newBytes += int64(len(b.blocks[i].data))
		}
		b.free()
	}
	n, err := w.add(more...)
	return newBytes + n, err
}

// launch starts writing a batch, when few enough are being written. w.mu is held,
// though not while waiting.
func (w *writer) launch(b *batch) {
	w.running[b] = struct{}{}
	for w.writing == writesAhead || len(w.running) > commitsAhead {
		w.changed.Wait()
	}
	w.writing++
	go func() {
		e, err := w.s.append(b, &w.room)
		w.mu.Lock()
		b.release()
		w.writing--
		w.changed.Broadcast()
		w.mu.Unlock()
		if err == nil {
			err = w.s.commit(e, b)
		}
		if err == nil && w.stored != nil {
			w.tell.Lock()
			w.stored(b.blocks)
			w.tell.Unlock()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			w.err = err
		}
		for _, x := range b.blocks {
			delete(w.ours, x.digest)
		}
		delete(w.running, b)
		w.changed.Broadcast()
		close(b.done)
	}()
}

// release gives up the buffer and keeps what there is to know about the blocks.
func (b *batch) release() {
	kept := make([]block, len(b.blocks))
	for i, x := range b.blocks {
		kept[i] = block{digest: x.digest, codec: x.codec, size: len(x.data)}
	}
	b.blocks, b.buf = kept, nil
	b.free()
}

// flushWith begins to make what is not being written yet durable, together with a pin
// or, where that has no holder, with the root alone. It tells whether there was any;
// where there was not, it does nothing.
func (w *writer) flushWith(p Pin) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.filling
	if f == nil {
		return false
	}
	w.filling = nil
	f.pin = &p
	w.launch(f)
	return true
}

// idle waits until nothing is being written, without hurry.
func (w *writer) idle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.running) > 0 {
		w.changed.Wait()
	}
}

// flush makes everything added before durable.
func (w *writer) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.filling; f != nil {
		w.filling = nil
		w.launch(f)
	}
	for b := range w.running {
		b.urgent.Store(true)
	}
	w.s.commits.rush()
	for b := range w.running {
		w.mu.Unlock()
		<-b.done
		w.mu.Lock()
	}
	return w.err
}

// hold is flush and keep, mostly with one wait for the disk.
func (w *writer) hold(root cid.Cid) error {
	w.s.spare(root)
	noted := w.flushWith(Pin{Root: root})
	if err := w.flush(); err != nil || noted {
		return err
	}
	return w.s.noteUse(root)
}

// close ends the writer; what was not flushed is forgotten. Call it once.
func (w *writer) close() {
	w.mu.Lock()
	w.filling = nil
	w.mu.Unlock()
	_ = w.flush() // who wanted to know has called it
	w.s.unreserve(&w.room)
	w.s.grace.end(w.touched)
}
