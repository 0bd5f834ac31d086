package swarm

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// landing is a leaf that the store does not give out yet.
type landing struct {
	pieces []uint32
	data   []byte // nil while the leaf is not given out from memory
}

// arrival is a block to be verified.
type arrival struct {
	from *source
	r    *round
	item uint32
	cid  cid.Cid
	data []byte
}

// maxAhead bounds the bytes of leaves that are given out from memory. Of others,
// those who are served are told once the store gives them out.
const maxAhead = 32 << 20

// atOnce is how many blocks are handed to the store together where they wait.
const atOnce = 8

// staff starts those who verify, once.
func (f *fetch) staff() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || cap(f.work) > 0 {
		return
	}
	workers := min(max(runtime.GOMAXPROCS(0), 2), 4)
	f.work = make(chan arrival, 2*atOnce)
	for range workers {
		f.wg.Go(func() {
			as := make([]arrival, 0, atOnce)
			for {
				select {
				case a := <-f.work:
					as = append(as[:0], a)
				case <-f.ctx.Done():
					return
				}
				for more := true; more && len(as) < atOnce; {
					select {
					case a := <-f.work:
						as = append(as, a)
					default:
						more = false
					}
				}
				f.verify(as)
			}
		})
	}
}

// verify stores blocks that are what they should be.
func (f *fetch) verify(as []arrival) {
	bs := make([]blobs.Block, len(as))
	f.mu.Lock()
	for i, a := range as {
		bs[i] = blobs.Block{CID: a.cid, Data: a.data}
		if a.r.nodes == nil {
			f.waiting[digestOf(a.cid)] = &landing{pieces: append([]uint32{a.item}, f.twins[a.item]...)}
		}
	}
	f.storing++
	f.mu.Unlock()
	wrong, err := f.in.Add(bs...)
	f.mu.Lock()
	f.storing--
	f.mu.Unlock()
	if err != nil {
		select {
		case f.failed <- err:
		default:
		}
		return
	}
	served := f.share.served()
	for i, a := range as {
		if len(wrong) > 0 && wrong[0] == i {
			wrong = wrong[1:]
			f.rotten(a)
			continue
		}
		f.verified(a, served)
	}
}

// verified takes note of a block that is stored, or about to be.
func (f *fetch) verified(a arrival, served bool) {
	leaf := a.r.nodes == nil
	if leaf {
		f.count(a.item, len(a.data))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.overrun(a, leaf); err != nil {
		select {
		case f.failed <- err:
		default:
		}
	}
	d := digestOf(a.cid)
	switch l := f.waiting[d]; {
	case leaf && l != nil && served && f.ahead+cap(a.data) <= maxAhead:
		l.data = a.data
		f.ahead += cap(a.data)
		f.share.take(l.pieces, l.data)
	case !leaf && a.r.bytes+len(a.data) <= maxKept:
		a.r.kept[d] = a.data
		a.r.bytes += len(a.data)
		f.share.keep(d, a.data)
	default:
		recycle(a.data)
	}
	a.from.given = true
	f.advanced = time.Now()
	a.r.picker.verified(a.item)
	if a.r.picker.missing == 0 {
		close(a.r.done)
	}
}

// overrun reports content that is larger than it said: no source is to blame, and
// none has another. The caller holds mu.
func (f *fetch) overrun(a arrival, leaf bool) error {
	if !leaf {
		f.nodes += int64(len(a.data))
		if most := boundsOf(f.e.cfg.MaxBytes, f.size).bytes; f.nodes > most {
			return fmt.Errorf("%w: more than %d MiB of inner nodes", blobs.ErrTooLarge, most>>20)
		}
		return nil
	}
	if claimed := int(f.tree.sizes[a.item]); f.tree.inner != nil && len(a.data) > max(claimed, leastSize) {
		return fmt.Errorf("%w: block %s has %d bytes where its node says %d", blobs.ErrBadNode, a.cid, len(a.data), claimed)
	}
	return nil
}

// count tells how much more is held.
func (f *fetch) count(piece uint32, size int) {
	bytes := int64(f.tree.sizes[piece])
	for _, i := range f.twins[piece] {
		bytes += int64(f.tree.sizes[i])
	}
	if f.root.Type() == cid.Raw { // nobody said before how large it is
		bytes = int64(size)
		f.told.Lock()
		f.total = bytes
		f.told.Unlock()
	}
	f.tell(bytes)
}

// readable is told by the store what it gives out now.
func (f *fetch) readable(cs []cid.Cid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range cs {
		d := digestOf(c)
		if c.Type() != cid.Raw {
			f.share.lose(d)
		} else if f.waiting[d] != nil {
			f.land(d)
		}
	}
}

// land gives a leaf out from the store from now on; the caller holds mu.
func (f *fetch) land(d digest) {
	l := f.waiting[d]
	delete(f.waiting, d)
	if l.data == nil {
		f.share.take(l.pieces, nil)
		return
	}
	f.ahead -= cap(l.data)
	f.share.forget(l.pieces)
	recycle(l.data)
}

// rotten deals with a source that sent a block with another hash.
func (f *fetch) rotten(a arrival) {
	f.e.stats.wasted.Add(int64(len(a.data)))
	s := a.from
	f.e.log.Warn("a peer sent a block with another hash", "peer", s.id, "root", f.root, "block", a.cid)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiting, digestOf(a.cid))
	a.r.picker.refused(a.item)
	s.complain(a)
	s.strikes++
	others := false
	for o := range f.sources {
		others = others || o != s && o.mapped && o.strikes == 0
	}
	if others || s.strikes >= 2 {
		s.end(fmt.Errorf("%w: %d blocks from it had another hash than they should; its copy may be damaged", errRotten, s.strikes))
	}
	f.wakeAll()
}

var errRotten = errors.New("sent wrong data")
