// Package exr puts parts of one frame together: the mean of pieces that have some of
// its samples each, or the picture that tiles are laid out to.
//
// A piece is an OpenEXR file of one part with uncompressed scan lines of 32-bit floats,
// as Blender writes it when asked for "multilayer, float (full), none". Anything else is
// refused. Of a tile it has the tile's pixels and no others: a margin that was rendered
// with it is cut away where it was rendered, see [Cut]. Pieces come from other machines: no header, however made, makes this
// package use more memory than a line of each piece takes, nor read outside of them.
//
// It knows what Cycles' passes mean as far as the mean of parts must: see [Mean].
package exr

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// ErrFormat is wrapped by the errors about files that are damaged, or no piece.
var ErrFormat = errors.New("not a whole piece of a frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// PieceError says which of the pieces is at fault, by its place among those given.
type PieceError struct {
	Piece int
	Err   error
}

func (e *PieceError) Error() string { return fmt.Sprintf("piece %d: %v", e.Piece, e.Err) }
func (e *PieceError) Unwrap() error { return e.Err }

// Check tells what is wrong with the piece at path.
func Check(path string) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// Bounds of what is read.
const (
	maxSide     = 1 << 16
	maxHeader   = 1 << 20
	maxChannels = 1024
	maxLine     = 16 << 20 // bytes, 4 million values
)

const (
	magic   = 0x01312f76
	version = 2
	// Names longer than 31 bytes are announced by a bit of the version.
	longNames = 0x400

	typeFloat     = 2
	noCompression = 0
)

// attribute is an entry of the header that is carried along as it is.
type attribute struct {
	name, kind string
	value      []byte
}

// header is what a file says of itself.
type header struct {
	version       uint32
	channels      []string // as they follow each other in a line, which is by name
	width, height int
	minY          int
	others        []attribute
}

// like tells whether both have the same channels.
func (h *header) like(o *header) bool { return slices.Equal(h.channels, o.channels) }

// line is the number of bytes of a scan line.
func (h *header) line() int { return 4 * h.width * len(h.channels) }

// file is an open piece.
type file struct {
	header
	f       *os.File
	offsets []int64
}

// open reads the header and looks whether all lines are there.
func open(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p := &file{f: f}
	if err := p.read(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *file) read() error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return malformed("it is no regular file")
	}
	in := &counter{r: bufio.NewReader(io.LimitReader(p.f, maxHeader))}
	if err := p.header.read(in); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = malformed("it ends in its header")
		}
		return err
	}
	table := make([]byte, 8*p.height)
	if _, err := p.f.ReadAt(table, in.n); err != nil {
		return malformed("its table of offsets is cut short")
	}
	p.offsets = make([]int64, p.height)
	for y := range p.offsets {
		at := binary.LittleEndian.Uint64(table[8*y:])
		if at < uint64(in.n) || at > uint64(st.Size()) || int64(at)+8+int64(p.line()) > st.Size() {
			return malformed("line %d of %d is missing", y+1, p.height)
		}
		p.offsets[y] = int64(at)
	}
	return nil
}

// readLine reads line y, counted from the top, into b, which has room for the line and
// the 8 bytes before it, and answers the line.
func (p *file) readLine(y int, b []byte) ([]byte, error) {
	b = b[:8+p.line()]
	if _, err := p.f.ReadAt(b, p.offsets[y]); err != nil {
		return nil, err
	}
	if got := int64(int32(binary.LittleEndian.Uint32(b))); got != int64(p.minY)+int64(y) || int(binary.LittleEndian.Uint32(b[4:])) != p.line() {
		return nil, malformed("line %d is not where its table of offsets says", y+1)
	}
	return b[8:], nil
}

func (p *file) Close() error { return p.f.Close() }

func (h *header) read(in *counter) error {
	var fixed struct{ Magic, Version uint32 }
	if err := binary.Read(in, binary.LittleEndian, &fixed); err != nil {
		return err
	}
	if fixed.Magic != magic {
		return malformed("it is no OpenEXR file")
	}
	if h.version = fixed.Version; fixed.Version&^longNames != version {
		return malformed("it has tiles, several parts or deep data (version %#x)", fixed.Version)
	}
	var window []int32
	compression := -1
	for {
		a, err := readAttribute(in)
		if err != nil {
			return err
		}
		if a.name == "" {
			break
		}
		switch a.name {
		case "channels":
			if h.channels, err = parseChannels(a.value); err != nil {
				return err
			}
		case "compression":
			if len(a.value) == 1 {
				compression = int(a.value[0])
			}
		case "dataWindow":
			window = numbers(a.value)
		case "displayWindow", "lineOrder":
		default:
			h.others = append(h.others, a)
		}
	}
	switch {
	case len(window) != 4:
		return malformed("it has no data window")
	case compression != noCompression:
		return malformed("it is compressed")
	case len(h.channels) == 0:
		return malformed("it has no channels")
	}
	w, t := int64(window[2])-int64(window[0])+1, int64(window[3])-int64(window[1])+1
	if w < 1 || t < 1 || w > maxSide || t > maxSide || 4*w*int64(len(h.channels)) > maxLine {
		return malformed("it has %d × %d pixels in %d channels", w, t, len(h.channels))
	}
	h.width, h.height, h.minY = int(w), int(t), int(window[1])
	return nil
}

func numbers(b []byte) (n []int32) {
	for ; len(b) >= 4; b = b[4:] {
		n = append(n, int32(binary.LittleEndian.Uint32(b)))
	}
	return n
}

func readAttribute(in *counter) (a attribute, err error) {
	if a.name, err = in.text(); err != nil || a.name == "" {
		return a, err
	}
	if a.kind, err = in.text(); err != nil {
		return a, err
	}
	var length uint32
	if err = binary.Read(in, binary.LittleEndian, &length); err != nil {
		return a, err
	}
	if length > maxHeader {
		return a, malformed("its header is too long")
	}
	a.value = make([]byte, length)
	_, err = io.ReadFull(in, a.value)
	return a, err
}

// parseChannels reads a list of channels, each a name, its type, a byte for "linear",
// three of nothing and how far its pixels are apart in both directions.
func parseChannels(b []byte) (names []string, err error) {
	for len(b) > 0 && b[0] != 0 {
		end := bytes.IndexByte(b, 0)
		if end < 0 || len(b) < end+1+16 || len(names) == maxChannels {
			return nil, malformed("its list of channels is damaged")
		}
		name, n := string(b[:end]), numbers(b[end+1:end+17])
		if n[0] != typeFloat || n[2] != 1 || n[3] != 1 {
			return nil, malformed("its channel %q does not have a 32-bit float for each pixel", name)
		}
		if len(names) > 0 && names[len(names)-1] >= name {
			return nil, malformed("its channels are out of order")
		}
		names, b = append(names, name), b[end+17:]
	}
	return names, nil
}

// writer writes a piece from the top to the bottom.
type writer struct {
	header
	f *os.File
	w *bufio.Writer
	y int
}

// create begins a new file at path. One that is there already is left to its other
// names.
func create(path string, h header) (*writer, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w := &writer{header: h, f: f, w: bufio.NewWriterSize(f, 1<<20)}
	w.w.Write(w.head())
	return w, nil
}

// head is the header and the table of offsets.
func (w *writer) head() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, magic), w.version)
	put := func(name, kind string, value []byte) {
		b = append(append(append(append(b, name...), 0), kind...), 0)
		b = append(le.AppendUint32(b, uint32(len(value))), value...)
	}
	var channels []byte
	for _, name := range w.channels {
		channels = append(append(channels, name...), 0)
		for _, n := range []uint32{typeFloat, 0, 1, 1} {
			channels = le.AppendUint32(channels, n)
		}
	}
	window := make([]byte, 8, 16)
	window = le.AppendUint32(le.AppendUint32(window, uint32(w.width-1)), uint32(w.height-1))
	put("channels", "chlist", append(channels, 0))
	put("compression", "compression", []byte{noCompression})
	put("dataWindow", "box2i", window)
	put("displayWindow", "box2i", window)
	put("lineOrder", "lineOrder", []byte{0})
	for _, a := range w.others {
		put(a.name, a.kind, a.value)
	}
	b = append(b, 0)
	at := len(b) + 8*w.height
	for range w.height {
		b = le.AppendUint64(b, uint64(at))
		at += 8 + w.line()
	}
	return b
}

// writeLine writes the next line.
func (w *writer) writeLine(line []byte) {
	var lead [8]byte
	binary.LittleEndian.PutUint32(lead[:], uint32(w.y))
	binary.LittleEndian.PutUint32(lead[4:], uint32(len(line)))
	w.w.Write(lead[:]) // the writer keeps its first error
	w.w.Write(line)
	w.y++
}

// close ends the file, and removes it if err or an error of its own says that it is
// not whole.
func (w *writer) close(err error) error {
	if err == nil {
		err = w.w.Flush()
	}
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(w.f.Name())
	}
	return err
}

// counter counts the bytes that were read through it.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// text reads up to a zero byte.
func (c *counter) text() (string, error) {
	var b []byte
	for len(b) < 256 {
		x, err := c.r.ReadByte()
		if err != nil {
			return "", err
		}
		c.n++
		if x == 0 {
			return string(b), nil
		}
		b = append(b, x)
	}
	return "", malformed("a name in its header is too long")
}
