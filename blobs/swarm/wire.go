package swarm

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"vizpeer/blobs"
)

// A stream carries frames: four bytes of length, big-endian, one of kind, and a
// body. The length counts kind and body.
type kind byte

const (
	// From the fetcher.
	kindHello      kind = 1 // root and scope; the first frame, and only that
	kindNodes      kind = 2 // digests of the inner nodes wanted
	kindPieces     kind = 3 // spans of the pieces wanted
	kindCancel     kind = 4 // spans of the pieces no longer wanted
	kindRotten     kind = 5 // number of a piece that had another hash
	kindRottenNode kind = 6 // digest of a node that had another hash

	// From the source.
	kindNone    kind = 16 // it gives nothing of this root
	kindWelcome kind = 17
	kindMap     kind = 18 // how many pieces there are and which are here
	kindHave    kind = 19 // spans of pieces that are here now
	kindLent    kind = 20 // spans of pieces that others have been promised
	kindNode    kind = 21 // digest and bytes
	kindNoNode  kind = 22 // digest of a node that is not here
	kindPiece   kind = 23 // number and bytes
	kindNoPiece kind = 24 // spans of pieces that are not here after all
)

const (
	frameHeader = 5
	// maxFrame bounds what a source sends: a block and its number, or a map.
	maxFrame = blobs.MaxBlockSize + 64
	// maxAsk bounds what a fetcher sends.
	maxAsk   = 32 << 10
	maxScope = 512
	// maxPieces bounds a tree: Config.MaxBytes are fewer blocks. Its map just fits
	// into a frame.
	maxPieces = 1 << 23
)

// errProtocol is a message that no peer which follows the protocol sends.
var errProtocol = errors.New("broke the protocol")

const digestSize = sha256.Size

// digest is the SHA-256 that names a block.
type digest [digestSize]byte

func digestOf(c cid.Cid) digest {
	h := c.Hash()
	return digest(h[len(h)-sha256.Size:])
}

func (d digest) cid(codec uint64) cid.Cid {
	h, err := mh.Encode(d[:], mh.SHA2_256)
	if err != nil {
		panic(err) // a known code cannot fail
	}
	return cid.NewCidV1(codec, h)
}

// begin starts a frame at the end of buf; end completes it.
func begin(buf []byte, k kind) []byte { return append(buf, 0, 0, 0, 0, byte(k)) }

func end(buf []byte, start int) []byte {
	binary.BigEndian.PutUint32(buf[start:], uint32(len(buf)-start-4))
	return buf
}

// frameReader reads frames of at most max bytes.
type frameReader struct {
	r   *bufio.Reader
	max int
}

func newFrameReader(r io.Reader, buffer, max int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, buffer), max: max}
}

// next reads the head of a frame; the caller reads its body before the next.
func (f *frameReader) next() (kind, int, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, 0, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n < 1 || int64(n) > int64(f.max) {
		return 0, 0, fmt.Errorf("%w: a frame of %d bytes, of at most %d", errProtocol, n, f.max)
	}
	return kind(head[4]), int(n) - 1, nil
}

// body reads n bytes of a body into buf, which may be nil.
func (f *frameReader) body(buf []byte, n int) ([]byte, error) {
	buf = slices.Grow(buf[:0], n)[:n]
	_, err := io.ReadFull(f.r, buf)
	return buf, err
}

// hello opens a stream.
type hello struct {
	root  cid.Cid
	scope string
}

func (h hello) append(buf []byte) []byte {
	start := len(buf)
	buf = begin(buf, kindHello)
	c := h.root.Bytes()
	buf = append(buf, byte(len(c)))
	buf = append(buf, c...)
	buf = append(buf, h.scope...)
	return end(buf, start)
}

func parseHello(body []byte) (hello, error) {
	if len(body) < 1 || len(body) < 1+int(body[0]) {
		return hello{}, fmt.Errorf("%w: a short hello", errProtocol)
	}
	n := 1 + int(body[0])
	if len(body)-n > maxScope {
		return hello{}, fmt.Errorf("%w: a scope of %d bytes", errProtocol, len(body)-n)
	}
	c, err := cid.Cast(slices.Clone(body[1:n]))
	if err != nil {
		return hello{}, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if c, err = blobs.ParseCID(c.String()); err != nil {
		return hello{}, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return hello{root: c, scope: string(body[n:])}, nil
}

// span is a run of pieces.
type span struct{ first, count uint32 }

// appendSpans writes numbers as spans, in the order given.
func appendSpans(buf []byte, numbers []uint32) []byte {
	at := uint32(0)
	for i := 0; i < len(numbers); {
		first, n := numbers[i], uint32(1)
		for i++; i < len(numbers) && numbers[i] == first+n; i++ {
			n++
		}
		buf = binary.AppendVarint(buf, int64(first)-int64(at))
		buf = binary.AppendUvarint(buf, uint64(n))
		at = first + n
	}
	return buf
}

func spansFrame(buf []byte, k kind, numbers []uint32) []byte {
	start := len(buf)
	return end(appendSpans(begin(buf, k), numbers), start)
}

// eachSpan reads spans of a tree of n pieces, of no more than limit altogether.
func eachSpan(body []byte, n uint32, limit int, f func(span)) error {
	at, total := int64(0), uint64(0)
	for len(body) > 0 {
		step, k := binary.Varint(body)
		if k <= 0 {
			return fmt.Errorf("%w: a span that ends early", errProtocol)
		}
		count, l := binary.Uvarint(body[k:])
		if l <= 0 {
			return fmt.Errorf("%w: a span that ends early", errProtocol)
		}
		body = body[k+l:]
		if step > maxPieces || step < -maxPieces || count == 0 || count > maxPieces {
			return fmt.Errorf("%w: a span out of range", errProtocol)
		}
		first := at + step
		if first < 0 || first+int64(count) > int64(n) {
			return fmt.Errorf("%w: pieces %d to %d of %d", errProtocol, first, first+int64(count), n)
		}
		if total += count; total > uint64(limit) {
			return fmt.Errorf("%w: more than %d pieces in one message", errProtocol, limit)
		}
		f(span{uint32(first), uint32(count)})
		at = first + int64(count)
	}
	return nil
}

func mapFrame(buf []byte, n uint32, held bitset) []byte {
	start := len(buf)
	buf = begin(buf, kindMap)
	buf = binary.AppendUvarint(buf, uint64(n))
	if held.count() < n {
		for i := range (n + 7) / 8 {
			buf = append(buf, byte(held[i/8]>>(i%8*8)))
		}
	}
	return end(buf, start)
}

// parseMap reads how many pieces a tree has and which of them the sender holds,
// nil for all.
func parseMap(body []byte) (n uint32, held bitset, err error) {
	v, k := binary.Uvarint(body)
	if k <= 0 || v > maxPieces {
		return 0, nil, fmt.Errorf("%w: a map without a size, or of more than %d pieces", errProtocol, maxPieces)
	}
	n, body = uint32(v), body[k:]
	if len(body) == 0 {
		return n, nil, nil
	}
	if len(body) != int(n+7)/8 {
		return 0, nil, fmt.Errorf("%w: a map of %d pieces in %d bytes", errProtocol, n, len(body))
	}
	held = newBitset(n)
	for i, b := range body {
		held[i/8] |= uint64(b) << (i % 8 * 8)
	}
	if n%8 != 0 && body[len(body)-1]>>(n%8) != 0 {
		return 0, nil, fmt.Errorf("%w: a map with more bits than pieces", errProtocol)
	}
	return n, held, nil
}

// number reads the piece that a body begins with, and how many bytes it took.
func (f *frameReader) number(size int) (uint32, int, error) {
	var v uint64
	for k := 0; k < size && k < 5; k++ {
		b, err := f.r.ReadByte()
		if err != nil {
			return 0, 0, err
		}
		v |= uint64(b&0x7f) << (7 * k)
		if b < 0x80 {
			if v >= maxPieces {
				break
			}
			return uint32(v), k + 1, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: a piece without a number", errProtocol)
}

func digestFrame(buf []byte, k kind, ds ...digest) []byte {
	start := len(buf)
	buf = begin(buf, k)
	for _, d := range ds {
		buf = append(buf, d[:]...)
	}
	return end(buf, start)
}
