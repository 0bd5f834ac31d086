package swarm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/blobs"
)

const (
	dialTime = 10 * time.Second
	// answerTime is how long a source may take to say whether it gives anything: it
	// may have to ask.
	answerTime = allowTime + 5*time.Second
	// maxStray is how many bytes that nobody asked for, or no longer, a source may
	// send beside an eighth of all it sends.
	maxStray = 16 << 20
	// maxLent is how much news of promises to others is kept until it can be used:
	// it only makes a good order better.
	maxLent = 64 << 10

	leastOwed     = 256 << 10 // bytes that a source may owe, or two blocks
	mostOwed      = 8 << 20
	mostOwedQuiet = 512 << 10
	initialRate   = 1 << 20 // what a source is taken for until it is measured
)

// errNone is a source's answer that it gives nothing.
var errNone = errors.New("it does not have it, or may not give it to this peer")

// source is one stream on which this peer fetches.
type source struct {
	f      *fetch
	c      *candidate
	id     peer.ID
	addrs  peer.AddrInfo
	cancel context.CancelCauseFunc
	wakeup chan struct{}
	came   atomic.Int64 // when its reader last began to wait for bytes, nanoseconds of the clock
	held   atomic.Bool  // the reader has bytes and waits for this peer's limit or store

	// Of the reader alone.
	news  uint64 // pieces it has told of
	moved int64
	stray int64

	// Guarded by the fetch's mu.
	supply     *supply // in the round under way, nil while it cannot take part
	opened     bool
	welcome    bool
	mapped     bool // it has all inner nodes, and has said which leaves
	pieces     uint32
	has        bitset // nil for all, or once the supply has it
	lent       []uint32
	cancels    []uint32 // to be told that they are not wanted
	complaints []byte   // frames
	strikes    int
	struck     int64 // what came was when it last lost what it owed for being silent
	given      bool
	asked      time.Time // when it last began to owe something
	rate       float64   // bytes a second
	rateSince  time.Time
	rateBytes  int64
	roundTrip  time.Duration
	probe      time.Time // when the first of what it owes was asked for
}

func (s *source) signal() {
	select {
	case s.wakeup <- struct{}{}:
	default:
	}
}

// end makes the source end for a reason.
func (s *source) end(err error) { s.cancel(err) }

// busy says that bytes have come and this peer is at work on them, until the
// function returned is called: that long nobody can say that the source is silent.
func (s *source) busy() (free func()) {
	s.held.Store(true)
	return func() {
		s.came.Store(time.Now().UnixNano())
		s.held.Store(false)
	}
}

// heard is when the source last sent something, or was first asked; now, while
// this peer is at work on what it sent.
func (s *source) heard(now time.Time) time.Time {
	if s.held.Load() {
		return now
	}
	came := time.Unix(0, s.came.Load())
	if came.Before(s.asked) {
		return s.asked
	}
	return came
}

// open begins to use a candidate; the caller holds mu.
func (f *fetch) open(c *candidate) {
	s := &source{f: f, c: c, id: c.info.ID, addrs: c.info, wakeup: make(chan struct{}, 1), rate: initialRate}
	c.source, c.fresh = s, false
	f.sources[s] = struct{}{}
	var ctx context.Context
	ctx, s.cancel = context.WithCancelCause(f.ctx)
	f.wg.Go(func() {
		err := s.run(ctx)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		s.cancel(err)
		f.lose(s, err)
	})
}

// lose takes a source that has ended out of the fetch.
func (f *fetch) lose(s *source, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sources, s)
	c := s.c
	c.source, c.err = nil, err
	c.granted = c.granted || s.welcome
	if s.given {
		c.tries = 0
	}
	switch {
	case errors.Is(err, errProtocol), errors.Is(err, errRotten), errors.Is(err, blobs.ErrBadNode):
		c.banned = true
		f.e.log.Warn("a peer is no source any more", "peer", s.id, "root", f.root, "err", err)
	case errors.Is(err, errNone), !c.granted, c.tries >= maxRetries:
	default:
		c.retry = time.Now().Add(min(firstRetry<<c.tries, maxRetry))
		c.tries++
	}
	f.e.log.Debug("a source has ended", "peer", s.id, "root", f.root, "err", err)
	if s.supply != nil && f.round != nil {
		f.round.picker.leave(s.supply)
		s.supply = nil
	}
	f.wakeAll()
	f.signal()
}

func (s *source) run(ctx context.Context) error {
	f := s.f
	dial, done := context.WithTimeout(ctx, dialTime)
	defer done()
	if err := f.e.host.Connect(dial, s.addrs); err != nil {
		return fmt.Errorf("it cannot be reached: %w", err)
	}
	stream, err := f.e.host.NewStream(dial, s.id, Protocol)
	if err != nil {
		return fmt.Errorf("it cannot be asked: %w", err)
	}
	s.came.Store(time.Now().UnixNano())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The writer closes the stream: a last complaint must get through.
	written := make(chan struct{})
	go func() {
		defer close(written)
		if err := s.write(ctx, stream); err != nil {
			_ = stream.Reset()
			return
		}
		_ = stream.Close()
	}()
	_ = stream.SetReadDeadline(time.Now().Add(answerTime))
	err = s.read(ctx, stream)
	cancel()
	<-written
	return err
}

// write sends the hello, then requests, until ctx ends.
func (s *source) write(ctx context.Context, stream network.Stream) error {
	s.f.mu.Lock()
	s.opened = true
	s.f.attach(s)
	buf := hello{s.f.root, s.f.scope}.append(nil)
	s.f.mu.Unlock()
	for {
		buf = s.requests(ctx, buf)
		if len(buf) > 0 {
			_ = stream.SetWriteDeadline(time.Now().Add(writeTime))
			if _, err := stream.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-s.wakeup:
		case <-ctx.Done():
		}
	}
}

// requests appends what the source is to be told.
func (s *source) requests(ctx context.Context, buf []byte) []byte {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	buf = append(buf, s.complaints...)
	s.complaints = nil
	r := f.round
	leaves := r != nil && r.nodes == nil
	if len(s.cancels) > 0 {
		if leaves {
			buf = spansFrame(buf, kindCancel, s.cancels)
		}
		s.cancels = nil
	}
	if r == nil || s.supply == nil || ctx.Err() != nil {
		return buf
	}
	most := int64(mostOwed)
	select {
	case <-f.hurry:
	default:
		most = mostOwedQuiet
	}
	p := r.picker
	s.supply.rate = s.rate
	s.supply.window = window(s.rate, s.roundTrip.Seconds(), r.least, most)
	idle := len(s.supply.owed) == 0
	if s.supply.room() < s.supply.window/4 && len(s.supply.owed) < maxOwed {
		return buf // asking for every block by itself would cost more than they do
	}
	picked := p.pick(s.supply)
	for len(picked) < 16 && s.mapped {
		i, victim := p.steal(s.supply)
		if victim == nil {
			break
		}
		picked = append(picked, i)
		f.retract(victim, i)
	}
	if len(picked) == 0 {
		return buf
	}
	if idle {
		now := time.Now()
		s.asked, s.probe, s.rateSince, s.rateBytes = now, now, now, 0
	}
	if leaves {
		for batch := range slices.Chunk(picked, 1024) {
			buf = spansFrame(buf, kindPieces, batch)
		}
		return buf
	}
	for batch := range slices.Chunk(picked, 512) {
		ds := make([]digest, len(batch))
		for k, i := range batch {
			ds[k] = r.nodes[i]
		}
		buf = digestFrame(buf, kindNodes, ds...)
	}
	return buf
}

// retract tells the source behind a supply that it no longer owes an item.
func (f *fetch) retract(v *supply, i uint32) {
	for o := range f.sources {
		if o.supply == v {
			o.cancels = append(o.cancels, i)
			o.signal()
		}
	}
}

// attach lets a source take part in the round under way, as far as it is known what
// it has; the caller holds mu.
func (f *fetch) attach(s *source) {
	r := f.round
	if r == nil || s.supply != nil || !s.opened {
		return
	}
	p := r.picker
	w := window(s.rate, s.roundTrip.Seconds(), r.least, mostOwed)
	switch {
	case !s.mapped:
		// The first block can be asked for with the hello: whoever is reached first is.
		if len(p.owner) != 1 {
			return
		}
		s.supply = p.join(true, nil, w, s.rate)
	case r.nodes != nil:
		s.supply = p.join(true, nil, w, s.rate)
	case s.pieces != f.tree.n():
		s.end(fmt.Errorf("%w: it counts %d pieces where there are %d", errProtocol, s.pieces, f.tree.n()))
		return
	default:
		s.supply = p.join(s.has == nil, s.has, w, s.rate)
		s.has = nil
		f.lend(s.lent)
		s.lent = nil
	}
	s.signal()
}

// complain tells the source that a block was not what it should be.
func (s *source) complain(a arrival) {
	if a.r.nodes != nil {
		s.complaints = digestFrame(s.complaints, kindRottenNode, a.r.nodes[a.item])
	} else {
		start := len(s.complaints)
		s.complaints = end(binary.AppendUvarint(begin(s.complaints, kindRotten), uint64(a.item)), start)
	}
	s.signal()
}

// read takes what the source sends.
func (s *source) read(ctx context.Context, stream network.Stream) error {
	in := &throttled{s: s, ctx: ctx, r: stream}
	defer context.AfterFunc(ctx, func() { _ = stream.CloseRead(); _ = stream.SetReadDeadline(time.Unix(1, 0)) })()
	r := newFrameReader(in, 32<<10, maxFrame)
	var scratch []byte
	for {
		k, n, err := r.next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, network.ErrReset):
			return fmt.Errorf("it hung up: %w", err)
		case err != nil:
			return err
		}
		if k != kindNone && k != kindWelcome && !s.welcome {
			return fmt.Errorf("%w: message %d before a welcome", errProtocol, k)
		}
		switch k {
		case kindNone:
			return errNone
		case kindWelcome:
			_ = stream.SetReadDeadline(time.Time{})
			s.f.mu.Lock()
			s.welcome = true
			s.f.mu.Unlock()
			s.f.signal()
			if n != 0 {
				err = fmt.Errorf("%w: a welcome of %d bytes", errProtocol, n)
			}
		case kindNode:
			err = s.node(ctx, r, n)
		case kindPiece:
			err = s.piece(ctx, r, n)
		case kindMap, kindHave, kindLent, kindNoNode, kindNoPiece:
			if scratch, err = r.body(scratch, n); err == nil {
				err = s.told(k, scratch)
			}
		default:
			err = fmt.Errorf("%w: message %d", errProtocol, k)
		}
		if err != nil {
			return err
		}
	}
}

// told takes news of what the source has.
func (s *source) told(k kind, body []byte) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.round
	switch k {
	case kindMap:
		if s.mapped {
			return fmt.Errorf("%w: a second map", errProtocol)
		}
		n, has, err := parseMap(body)
		if err != nil {
			return err
		}
		s.mapped, s.pieces, s.has = true, n, has
		if s.supply != nil && r != nil {
			if s.supply.whole && (has == nil || r.nodes != nil) {
				return nil // as was supposed when the first block was asked for
			}
			r.picker.leave(s.supply)
			s.supply = nil
		}
		f.attach(s)
		f.wakeAll()
		return nil
	case kindNoNode:
		if len(body) != digestSize {
			return fmt.Errorf("%w: %d bytes of a digest", errProtocol, len(body))
		}
		if r != nil && r.nodes != nil && s.supply != nil {
			if i, ok := r.index[digest(body)]; ok {
				r.picker.lacks(s.supply, i)
				f.wakeAll()
			}
		}
		return nil
	}
	n := s.pieces
	if !s.mapped {
		if n = 1; k != kindNoPiece {
			return fmt.Errorf("%w: news before the map", errProtocol)
		}
	}
	live := r != nil && r.nodes == nil && s.supply != nil
	limit := 2*uint64(n) + 4*maxQueue
	err := eachSpan(body, n, maxPieces, func(sp span) {
		if s.news += uint64(sp.count); s.news > 2*limit {
			return
		}
		for i := sp.first; i < sp.first+sp.count; i++ {
			switch {
			case k == kindNoPiece && live:
				r.picker.lacks(s.supply, i)
			case k == kindHave && live:
				r.picker.gained(s.supply, i)
			case k == kindHave && s.has != nil:
				s.has.set(i)
			case k == kindLent && len(s.lent) < min(int(n), maxLent):
				s.lent = append(s.lent, i)
			}
		}
	})
	if live {
		f.lend(s.lent)
		s.lent = nil
	}
	if err == nil && s.news > 2*limit {
		err = fmt.Errorf("%w: more news than there are pieces", errProtocol)
	}
	if k == kindNoPiece {
		f.wakeAll()
	} else {
		s.signal()
	}
	return err
}

// node takes an inner node.
func (s *source) node(ctx context.Context, fr *frameReader, n int) error {
	var d digest
	if n < len(d) {
		return fmt.Errorf("%w: a short node", errProtocol)
	}
	if _, err := io.ReadFull(fr.r, d[:]); err != nil {
		return err
	}
	data, err := fr.body(nil, n-len(d))
	if err != nil {
		return err
	}
	f := s.f
	f.mu.Lock()
	r := f.round
	var item uint32
	wanted := false
	if r != nil && r.nodes != nil {
		if i, ok := r.index[d]; ok {
			item, wanted = i, s.takes(r, i, len(data))
		}
	}
	f.mu.Unlock()
	return s.hand(ctx, wanted, arrival{from: s, r: r, item: item, cid: d.cid(cid.DagProtobuf), data: data})
}

// piece takes a leaf.
func (s *source) piece(ctx context.Context, fr *frameReader, n int) error {
	i, l, err := fr.number(n)
	if err != nil {
		return err
	}
	if n-l > blobs.MaxBlockSize {
		return fmt.Errorf("%w: a block of %d bytes", errProtocol, n-l)
	}
	data := buffer(n - l)
	_, err = io.ReadFull(fr.r, data)
	if err != nil {
		return err
	}
	f := s.f
	f.mu.Lock()
	r, t := f.round, f.tree
	if t == nil || i >= t.n() {
		f.mu.Unlock()
		return fmt.Errorf("%w: piece %d, which nobody can have asked for", errProtocol, i)
	}
	wanted := r != nil && r.nodes == nil && s.takes(r, i, len(data))
	f.mu.Unlock()
	return s.hand(ctx, wanted, arrival{from: s, r: r, item: i, cid: t.leaf(i), data: data})
}

// takes notes that an item has arrived and tells whether it is wanted; the caller
// holds mu.
func (s *source) takes(r *round, i uint32, size int) bool {
	if s.supply == nil {
		return false
	}
	wanted, other := r.picker.arrived(s.supply, i)
	if other != nil {
		s.f.retract(other, i)
	}
	now := time.Now()
	if !s.probe.IsZero() {
		if rt := now.Sub(s.probe); s.roundTrip == 0 || rt < s.roundTrip {
			s.roundTrip = rt
		}
		s.probe = time.Time{}
	}
	s.rateBytes += int64(size)
	if d := now.Sub(s.rateSince); d >= 50*time.Millisecond {
		rate := float64(s.rateBytes) / d.Seconds()
		s.rate = (s.rate + rate) / 2
		s.rateSince, s.rateBytes = now, 0
	}
	s.signal()
	return wanted
}

// hand gives a block to those who verify.
func (s *source) hand(ctx context.Context, wanted bool, a arrival) error {
	size := int64(len(a.data))
	s.f.e.stats.received.Add(size)
	if s.f.e.cfg.Came != nil {
		s.f.e.cfg.Came(s.id, size)
	}
	s.moved += size
	if !wanted {
		s.f.e.stats.wasted.Add(size)
		recycle(a.data)
		if s.stray += max(size, 1<<10); s.stray > maxStray+s.moved/8 {
			return fmt.Errorf("%w: it sent %d MiB that nobody asked for", errProtocol, s.stray>>20)
		}
		return nil
	}
	defer s.busy()()
	select {
	case s.f.work <- a:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
