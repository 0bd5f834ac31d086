package swarm

import (
	"sync"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// share is what this peer holds of one root, as those see it who fetch from here.
// It lives while a stream or a Fetch uses it.
type share struct {
	root  cid.Cid
	users int // guarded by the exchange's mu

	load sync.Mutex // held while the store is asked what it has

	mu    sync.Mutex
	tree  *tree // nil while inner nodes are missing
	held  bitset
	fresh map[uint32][]byte // pieces that the store cannot give out yet
	nodes map[digest][]byte // inner nodes that it cannot
	// gained and lent list pieces in the order in which they came here, or were
	// first promised; each stream has read them up to somewhere.
	gained   []uint32
	lent     []loan
	lentOnce bitset
	streams  map[*serving]struct{}
	fetch    *fetch // nil while nothing is fetched
}

// loan is a piece promised to a stream.
type loan struct {
	piece uint32
	to    *serving
}

// look asks the store what it holds of the root, unless that is known or a fetch
// is about to tell. It tells whether there is anything to give, now or soon.
func (sh *share) look(s *blobs.Store, maxBytes int64) (bool, error) {
	sh.load.Lock()
	defer sh.load.Unlock()
	sh.mu.Lock()
	known := sh.tree != nil || sh.fetch != nil
	sh.mu.Unlock()
	if known {
		return true, nil
	}
	in := s.NewIntake(nil)
	defer in.Close()
	b := newNumbering(sh.root, boundsOf(maxBytes, 0))
	for ; len(b.level) > 0; b.descend() {
		for _, d := range b.level {
			links, err := s.Links(d.cid(cid.DagProtobuf))
			if err != nil {
				return false, err
			}
			if err := b.add(links); err != nil {
				return false, err
			}
		}
	}
	held, err := b.t.claim(in)
	if err != nil {
		return false, err
	}
	if b.t.n() > 0 && held.count() == 0 {
		return false, nil
	}
	sh.publish(b.t, held)
	return true, nil
}

// publish makes it known that all inner nodes are here, and these leaves.
func (sh *share) publish(t *tree, held bitset) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.tree != nil {
		// Known already: what has been dropped since is found out when it is asked for.
		held.each(func(i uint32) { sh.gain(i) })
		return
	}
	sh.tree, sh.held, sh.lentOnce = t, append(bitset(nil), held...), newBitset(t.n())
	sh.wake()
}

// served tells whether anybody is.
func (sh *share) served() bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return len(sh.streams) > 0
}

// take adds pieces that have been verified, all of the same bytes. Until forget,
// they are given out from data; nil where the store gives them out already.
func (sh *share) take(pieces []uint32, data []byte) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, i := range pieces {
		if data != nil {
			if sh.fresh == nil {
				sh.fresh = make(map[uint32][]byte)
			}
			sh.fresh[i] = data
		}
		sh.gain(i)
	}
	sh.wake()
}

func (sh *share) gain(i uint32) {
	if !sh.held.has(i) {
		sh.held.set(i)
		sh.gained = append(sh.gained, i)
	}
}

// forget lets go of pieces that the store gives out now.
func (sh *share) forget(pieces []uint32) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, i := range pieces {
		delete(sh.fresh, i)
	}
}

// keep gives out an inner node from data until lose.
func (sh *share) keep(d digest, data []byte) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.nodes == nil {
		sh.nodes = make(map[digest][]byte)
	}
	sh.nodes[d] = data
}

func (sh *share) lose(d digest) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.nodes, d)
}

// lend notes that pieces are promised to a stream, so that others ask for
// something else first.
func (sh *share) lend(pieces []uint32, to *serving) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.streams) < 2 {
		return
	}
	for _, i := range pieces {
		if !sh.lentOnce.has(i) {
			sh.lentOnce.set(i)
			sh.lent = append(sh.lent, loan{i, to})
		}
	}
	sh.wake()
}

func (sh *share) wake() {
	for s := range sh.streams {
		s.signal()
	}
}

// read appends a piece to buf.
func (sh *share) read(s *blobs.Store, i uint32, buf []byte) ([]byte, error) {
	sh.mu.Lock()
	if data, fresh := sh.fresh[i]; fresh {
		defer sh.mu.Unlock() // forget lets data be used for something else
		return append(buf, data...), nil
	}
	c := sh.tree.leaf(i)
	sh.mu.Unlock()
	return s.ReadBlock(c, buf)
}
