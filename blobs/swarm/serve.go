package swarm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/blobs"
)

const (
	// helloTime is how long an opened stream may take to say what it wants, and
	// allowTime how long it may take to find out whether it may have it.
	helloTime = 10 * time.Second
	allowTime = 15 * time.Second
	// writeTime is how long a peer may leave a slice that is written to it unread:
	// one with a low limit reads what it has, half a window, before it takes more.
	writeTime = 2 * time.Minute
	// newsTime is how long news of pieces may wait for each other, or for pieces to
	// ride with.
	newsTime = 25 * time.Millisecond
	// maxQueue bounds what one stream may have asked for and not got, in blocks.
	maxQueue = 2 * maxOwed
	// gather is how many bytes are written at once.
	gather = 256 << 10
	// maxComplaints is how often one stream has blocks verified for being rotten.
	maxComplaints = 16
)

// serving is one stream on which this peer gives.
type serving struct {
	e      *Exchange
	stream network.Stream
	peer   peer.ID
	hello  hello
	share  *share
	cancel context.CancelFunc
	wakeup chan struct{}

	mu     sync.Mutex
	nodes  []digest // asked for
	pieces []uint32 // asked for
	gone   []uint32 // asked for, not here

	// Of the writer alone.
	mapped     bool
	seenGained int
	seenLent   int
}

func (s *serving) signal() {
	select {
	case s.wakeup <- struct{}{}:
	default:
	}
}

// serve answers a stream until its other side has enough.
func (e *Exchange) serve(stream network.Stream) {
	s := &serving{e: e, stream: stream, peer: stream.Conn().RemotePeer(), wakeup: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	s.cancel = cancel
	if !e.enter(s) {
		_ = stream.Reset()
		return
	}
	defer e.exit(s)
	defer context.AfterFunc(ctx, func() { _ = stream.Reset() })()
	err := s.run(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		e.log.Debug("a peer is served no more", "peer", s.peer, "root", s.hello.root, "err", err)
		_ = stream.Reset()
		return
	}
	_ = stream.Close()
}

func (s *serving) run(ctx context.Context) error {
	r := newFrameReader(s.stream, 4<<10, maxAsk)
	_ = s.stream.SetReadDeadline(time.Now().Add(helloTime))
	k, n, err := r.next()
	if err != nil {
		return err
	}
	body, err := r.body(nil, n)
	if err != nil {
		return err
	}
	if k != kindHello {
		return fmt.Errorf("%w: it began with message %d", errProtocol, k)
	}
	h, err := parseHello(body)
	if err != nil {
		return err
	}
	_ = s.stream.SetReadDeadline(time.Time{})
	s.e.mu.Lock()
	s.hello = h
	s.e.mu.Unlock()
	// A right is looked for before the content is, so that the time it takes tells
	// a stranger nothing.
	if !s.allowed(ctx) {
		return s.none()
	}
	s.share = s.e.share(h.root)
	defer s.e.release(s.share)
	if ok, err := s.share.look(s.e.store, s.e.cfg.MaxBytes); !ok {
		if err != nil && !errors.Is(err, blobs.ErrNotFound) {
			s.e.log.Debug("a root cannot be given", "root", h.root, "err", err)
		}
		return s.none()
	}
	s.share.mu.Lock()
	if s.share.streams == nil {
		s.share.streams = make(map[*serving]struct{})
	}
	s.share.streams[s] = struct{}{}
	f := s.share.fetch
	s.share.mu.Unlock()
	defer func() {
		s.share.mu.Lock()
		delete(s.share.streams, s)
		s.share.mu.Unlock()
	}()
	if f != nil {
		// Who fetches the same will soon have some of it.
		f.offer(true, peer.AddrInfo{ID: s.peer})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	written := make(chan error, 1)
	go func() {
		err := s.write(ctx)
		if err != nil {
			_ = s.stream.Reset() // ends the reader
		}
		written <- err
	}()
	err = s.read(r)
	cancel()
	if werr := <-written; errors.Is(err, network.ErrReset) {
		err = errors.Join(err, werr) // perhaps it was the writer that ended the reader
	}
	return err
}

// allowed asks whether the peer may have the root. Not to know is no.
func (s *serving) allowed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, allowTime)
	defer cancel()
	ok, err := s.e.cfg.Allow(ctx, s.peer, s.hello.root, s.hello.scope)
	if err != nil {
		s.e.log.Debug("nobody says whether a peer may have a root", "peer", s.peer, "root", s.hello.root, "err", err)
	}
	return err == nil && ok
}

// none is the one answer to whoever may not have what is asked for, and to whoever
// asks for what is not here.
func (s *serving) none() error {
	_ = s.stream.SetDeadline(time.Now().Add(helloTime))
	if _, err := s.stream.Write(end(begin(nil, kindNone), 0)); err != nil {
		return err
	}
	// Closed before the other side has read it, it might be lost.
	_ = s.stream.CloseWrite()
	_, err := io.CopyN(io.Discard, s.stream, maxAsk)
	return err
}

// read takes requests until the stream ends; the error, never nil, says how.
func (s *serving) read(r *frameReader) error {
	var body []byte
	complaints := 0
	for {
		k, n, err := r.next()
		if err != nil {
			return err
		}
		if body, err = r.body(body, n); err != nil {
			return err
		}
		s.share.mu.Lock()
		t := s.share.tree
		s.share.mu.Unlock()
		switch k {
		case kindNodes:
			err = s.wantNodes(body)
		case kindPieces, kindCancel:
			var pieces []uint32
			known := uint32(1) // a lone leaf may be asked for before there is a map
			if t != nil {
				known = t.n()
			}
			err = eachSpan(body, known, maxQueue, func(sp span) {
				for i := range sp.count {
					pieces = append(pieces, sp.first+i)
				}
			})
			switch {
			case err != nil:
			case k == kindCancel:
				s.drop(pieces)
			default:
				err = s.wantPieces(pieces)
			}
		case kindRotten, kindRottenNode:
			if complaints++; complaints <= maxComplaints && t != nil {
				s.verify(t, k, body)
			}
		default:
			err = fmt.Errorf("%w: message %d", errProtocol, k)
		}
		if err != nil {
			return err
		}
	}
}

func (s *serving) wantNodes(body []byte) error {
	if len(body) == 0 || len(body)%digestSize != 0 {
		return fmt.Errorf("%w: %d bytes of digests", errProtocol, len(body))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.nodes)+len(body)/digestSize > maxQueue {
		return fmt.Errorf("%w: more than %d nodes wanted at once", errProtocol, maxQueue)
	}
	for ; len(body) > 0; body = body[digestSize:] {
		s.nodes = append(s.nodes, digest(body[:digestSize]))
	}
	s.signal()
	return nil
}

func (s *serving) wantPieces(pieces []uint32) error {
	var here, gone []uint32
	s.share.mu.Lock()
	for _, i := range pieces {
		if s.share.tree != nil && s.share.held.has(i) {
			here = append(here, i)
		} else {
			gone = append(gone, i)
		}
	}
	s.share.mu.Unlock()
	s.share.lend(here, s)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pieces)+len(s.gone)+len(pieces) > maxQueue {
		return fmt.Errorf("%w: more than %d pieces wanted at once", errProtocol, maxQueue)
	}
	s.pieces = append(s.pieces, here...)
	s.gone = append(s.gone, gone...)
	s.signal()
	return nil
}

func (s *serving) drop(pieces []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unwanted := make(map[uint32]struct{}, len(pieces))
	for _, i := range pieces {
		unwanted[i] = struct{}{}
	}
	kept := s.pieces[:0]
	for _, i := range s.pieces {
		if _, ok := unwanted[i]; !ok {
			kept = append(kept, i)
		}
	}
	s.pieces = kept
}

// verify looks whether a block that arrived rotten is rotten here. If so, the
// store drops it, and so does the share.
func (s *serving) verify(t *tree, k kind, body []byte) {
	if k == kindRottenNode {
		if len(body) != digestSize {
			return
		}
		d := digest(body)
		if _, ours := t.inner[d]; ours {
			_ = s.e.store.VerifyBlock(d.cid(cid.DagProtobuf))
		}
		return
	}
	i, l := binary.Uvarint(body)
	if l <= 0 || i >= uint64(t.n()) {
		return
	}
	if err := s.e.store.VerifyBlock(t.leaf(uint32(i))); err != nil {
		s.e.log.Warn("a block was rotten and has been dropped; the next fetch repairs it", "root", s.hello.root, "err", err)
		s.share.mu.Lock()
		s.share.held.clear(uint32(i))
		s.share.mu.Unlock()
	}
}

// write sends what was asked for and what is new, until ctx ends.
func (s *serving) write(ctx context.Context) error {
	buf := end(begin(nil, kindWelcome), 0)
	room := 2 * gather
	var last time.Time
	for {
		// News waits for more of it, or for blocks to ride with.
		var later <-chan time.Time
		wait := newsTime - time.Since(last)
		switch asked := s.asked(); {
		case asked, s.hasNews() && wait <= 0:
			if cap(buf) == 0 {
				buf = buffer(room)[:0]
			}
			var err error
			if buf, err = s.fill(buf); err != nil {
				return err
			}
			room = max(room, min(len(buf), 1<<largest))
		case s.hasNews():
			later = time.After(wait)
		}
		if len(buf) > 0 {
			last = time.Now()
			if err := s.e.send(ctx, s.stream, buf); err != nil {
				return err
			}
			buf = buf[:0]
			continue
		}
		recycle(buf) // an idle stream keeps no memory
		buf = nil
		select {
		case <-s.wakeup:
		case <-later:
		case <-ctx.Done():
			return nil
		}
	}
}

// hasNews tells whether there is something that the other side does not know.
func (s *serving) hasNews() bool {
	s.share.mu.Lock()
	defer s.share.mu.Unlock()
	return s.share.tree != nil && (!s.mapped || s.seenGained < len(s.share.gained) || s.seenLent < len(s.share.lent))
}

func (s *serving) asked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pieces)+len(s.nodes)+len(s.gone) > 0
}

// fill appends frames to buf: news, then nodes, then pieces up to gather bytes.
func (s *serving) fill(buf []byte) (_ []byte, err error) {
	buf = s.news(buf)
	s.mu.Lock()
	if len(s.gone) > 0 {
		buf = spansFrame(buf, kindNoPiece, s.gone)
		s.gone = nil
	}
	s.mu.Unlock()
	for len(buf) < gather {
		s.mu.Lock()
		var node digest
		var piece uint32
		isNode := len(s.nodes) > 0
		switch {
		case isNode:
			node, s.nodes = s.nodes[0], s.nodes[1:]
		case len(s.pieces) > 0:
			piece, s.pieces = s.pieces[0], s.pieces[1:]
		default:
			s.nodes, s.pieces = nil, nil
			s.mu.Unlock()
			return buf, nil
		}
		s.mu.Unlock()
		if isNode {
			buf, err = s.node(buf, node)
		} else {
			buf, err = s.piece(buf, piece)
		}
		if err != nil {
			return buf, err
		}
	}
	return buf, nil
}

// news appends what the other side does not know yet of what is here.
func (s *serving) news(buf []byte) []byte {
	sh := s.share
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.tree == nil {
		return buf
	}
	if !s.mapped {
		s.mapped = true
		s.seenGained = len(sh.gained)
		buf = mapFrame(buf, sh.tree.n(), sh.held)
	}
	const most = 4096 // in one frame
	for s.seenGained < len(sh.gained) {
		next := min(len(sh.gained), s.seenGained+most)
		buf = spansFrame(buf, kindHave, sh.gained[s.seenGained:next])
		s.seenGained = next
	}
	for s.seenLent < len(sh.lent) {
		next := min(len(sh.lent), s.seenLent+most)
		pieces := make([]uint32, 0, next-s.seenLent)
		for _, l := range sh.lent[s.seenLent:next] {
			if l.to != s {
				pieces = append(pieces, l.piece)
			}
		}
		if len(pieces) > 0 {
			buf = spansFrame(buf, kindLent, pieces)
		}
		s.seenLent = next
	}
	return buf
}

// node appends an inner node of the root, and nothing else that may be here.
func (s *serving) node(buf []byte, d digest) ([]byte, error) {
	s.share.mu.Lock()
	t, data := s.share.tree, s.share.nodes[d]
	s.share.mu.Unlock()
	if t != nil {
		if _, ours := t.inner[d]; ours {
			start := len(buf)
			if data != nil {
				return end(append(append(begin(buf, kindNode), d[:]...), data...), start), nil
			}
			out, err := s.e.store.ReadBlock(d.cid(cid.DagProtobuf), append(begin(buf, kindNode), d[:]...))
			if err == nil {
				return end(out, start), nil
			}
			if buf = out[:start]; !errors.Is(err, blobs.ErrNotFound) {
				return buf, err
			}
		}
	}
	return digestFrame(buf, kindNoNode, d), nil
}

// piece appends a piece.
func (s *serving) piece(buf []byte, i uint32) ([]byte, error) {
	start := len(buf)
	out, err := s.share.read(s.e.store, i, binary.AppendUvarint(begin(buf, kindPiece), uint64(i)))
	if err == nil {
		s.e.stats.sent.Add(int64(len(out) - start))
		return end(out, start), nil
	}
	if buf = out[:start]; !errors.Is(err, blobs.ErrNotFound) {
		return buf, err
	}
	s.share.mu.Lock()
	s.share.held.clear(i)
	s.share.mu.Unlock()
	return spansFrame(buf, kindNoPiece, []uint32{i}), nil
}
