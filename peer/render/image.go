package render

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"os"
)

// checkImage tells what is wrong with the image file at path: that it is missing,
// is no regular file, is empty, or was cut short. Formats whose end cannot be told
// from their content must only not be empty.
func checkImage(path string) error {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return errors.New("Blender wrote no image")
	case !st.Mode().IsRegular():
		return errors.New("the image is not a regular file")
	case st.Size() == 0:
		return errors.New("the image is empty")
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the image cannot be read: %w", err)
	}
	defer f.Close()
	if err := checkContent(f, st.Size()); err != nil {
		return fmt.Errorf("the image is cut short or damaged: %w", err)
	}
	return nil
}

var (
	pngMagic  = []byte("\x89PNG\r\n\x1a\n")
	exrMagic  = []byte("\x76\x2f\x31\x01")
	jpegMagic = []byte("\xff\xd8\xff")
)

func checkContent(r io.ReaderAt, size int64) error {
	head := make([]byte, 16)
	n, _ := r.ReadAt(head, 0)
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, pngMagic):
		return checkPNG(r, size)
	case bytes.HasPrefix(head, exrMagic):
		return checkEXR(r, size)
	case bytes.HasPrefix(head, jpegMagic):
		return checkJPEG(r, size)
	case bytes.HasPrefix(head, []byte("II*\x00")):
		return checkTIFF(r, head, binary.LittleEndian, size)
	case bytes.HasPrefix(head, []byte("MM\x00*")):
		return checkTIFF(r, head, binary.BigEndian, size)
	case bytes.HasPrefix(head, []byte("RIFF")): // WebP
		if len(head) < 16 {
			return errors.New("it ends in its header")
		}
		return atLeast(size, int64(binary.LittleEndian.Uint32(head[4:]))+8)
	case bytes.HasPrefix(head, []byte("BM")) && len(head) >= 6:
		return atLeast(size, int64(binary.LittleEndian.Uint32(head[2:])))
	}
	if !bytes.ContainsFunc(head, func(r rune) bool { return r != 0 }) {
		return errors.New("it begins with zeros") // a disk that filled up, a file never written
	}
	return nil
}

func atLeast(size, want int64) error {
	if size < want {
		return fmt.Errorf("it has %d bytes of %d", size, want)
	}
	return nil
}

// checkPNG walks the chunks from IHDR to IEND.
func checkPNG(r io.ReaderAt, size int64) error {
	var head [16]byte
	for at := int64(len(pngMagic)); ; {
		if _, err := r.ReadAt(head[:8], at); err != nil {
			return errors.New("it ends before its IEND chunk")
		}
		kind, length := string(head[4:8]), int64(binary.BigEndian.Uint32(head[:]))
		if first := at == int64(len(pngMagic)); first != (kind == "IHDR") {
			return fmt.Errorf("it has a chunk %q out of place", kind)
		}
		if kind == "IHDR" {
			if _, err := r.ReadAt(head[8:16], at+8); err != nil || binary.BigEndian.Uint32(head[8:]) == 0 || binary.BigEndian.Uint32(head[12:]) == 0 {
				return errors.New("its IHDR chunk gives no size")
			}
		}
		at += 8 + length + 4
		if kind == "IEND" {
			return atLeast(size, at)
		}
	}
}

func checkJPEG(r io.ReaderAt, size int64) error {
	if _, err := jpeg.DecodeConfig(io.NewSectionReader(r, 0, size)); err != nil {
		return err
	}
	var end [2]byte
	if _, err := r.ReadAt(end[:], size-2); err != nil || end != [2]byte{0xff, 0xd9} {
		return errors.New("it has no end mark")
	}
	return nil
}

// tiffSizes is the size of a value, by its type.
var tiffSizes = []int64{0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8}

// The tags that say where the strips or tiles of a TIFF are, and how long.
const (
	tiffStripOffsets = 273
	tiffStripSizes   = 279
	tiffTileOffsets  = 324
	tiffTileSizes    = 325
)

// maxStrips bounds the table of strips that is read: an image of 32-bit height
// and one line in a strip stays below it.
const maxStrips = 1 << 20

// checkTIFF reads the first directory and looks for the end of all that it points
// at.
func checkTIFF(r io.ReaderAt, head []byte, order binary.ByteOrder, size int64) error {
	if len(head) < 8 {
		return errors.New("it ends in its header")
	}
	at := int64(order.Uint32(head[4:]))
	var entry [12]byte
	if _, err := r.ReadAt(entry[:2], at); at < 8 || err != nil {
		return errors.New("its directory is missing")
	}
	entries := int64(order.Uint16(entry[:]))
	if err := atLeast(size, at+2+12*entries+4); err != nil {
		return err
	}
	var starts, sizes []int64
	for i := range entries {
		place := at + 2 + 12*i
		if _, err := r.ReadAt(entry[:], place); err != nil {
			return err
		}
		tag, kind, count := order.Uint16(entry[:]), order.Uint16(entry[2:]), int64(order.Uint32(entry[4:]))
		if int(kind) >= len(tiffSizes) {
			continue
		}
		place += 8
		if count*tiffSizes[kind] > 4 {
			place = int64(order.Uint32(entry[8:]))
		}
		if err := atLeast(size, place+count*tiffSizes[kind]); err != nil {
			return err
		}
		if count > maxStrips {
			continue
		}
		switch tag {
		case tiffStripOffsets, tiffTileOffsets:
			starts = tiffNumbers(r, order, place, count, tiffSizes[kind])
		case tiffStripSizes, tiffTileSizes:
			sizes = tiffNumbers(r, order, place, count, tiffSizes[kind])
		}
	}
	if len(starts) == 0 || len(starts) != len(sizes) {
		return errors.New("its directory names no pixels")
	}
	for i := range starts {
		if err := atLeast(size, starts[i]+sizes[i]); err != nil || starts[i] == 0 {
			return fmt.Errorf("strip %d of %d was not written", i+1, len(starts))
		}
	}
	return nil
}

func tiffNumbers(r io.ReaderAt, order binary.ByteOrder, at, count, width int64) []int64 {
	b := make([]byte, count*width)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil
	}
	numbers := make([]int64, count)
	for i := range numbers {
		switch v := b[int64(i)*width:]; width {
		case 2:
			numbers[i] = int64(order.Uint16(v))
		case 4:
			numbers[i] = int64(order.Uint32(v))
		}
	}
	return numbers
}

// What an OpenEXR version field says beyond the number.
const (
	exrTiled     = 0x200
	exrNonImage  = 0x800
	exrMultipart = 0x1000
)

// exrLines is how many scan lines a chunk holds, by compression.
var exrLines = []int64{1, 1, 1, 16, 32, 16, 32, 32, 32, 256}

const (
	maxEXRHeader = 16 << 20
	maxEXRChunks = 16 << 20
)

// checkEXR reads the headers and walks the table of offsets: each must lead to a
// chunk that lies wholly in the file. The table is written last, so that it is
// full of zeros in a file that was never finished.
func checkEXR(r io.ReaderAt, size int64) error {
	in := &counter{r: bufio.NewReader(io.NewSectionReader(r, 0, min(size, maxEXRHeader)))}
	var fixed struct{ Magic, Version uint32 }
	if err := binary.Read(in, binary.LittleEndian, &fixed); err != nil {
		return errors.New("it ends in its header")
	}
	multipart := fixed.Version&exrMultipart != 0
	var parts []exrPart
	for {
		p, err := readEXRPart(in)
		if err != nil {
			return err
		}
		if p.empty {
			break // the end of a multi-part file's headers
		}
		parts = append(parts, p)
		if !multipart {
			break
		}
	}
	at := in.n
	for i, p := range parts {
		chunks := p.chunks
		if chunks == 0 && fixed.Version&(exrTiled|exrNonImage) == 0 {
			chunks = p.scanChunks()
		}
		if chunks == 0 {
			return nil // a tiled part that does not count its chunks: nothing of Blender's
		}
		if chunks < 0 || chunks > maxEXRChunks || at+8*chunks > size {
			return errors.New("its table of offsets is cut short")
		}
		if err := checkEXRChunks(r, size, at, chunks, p, multipart); err != nil {
			return fmt.Errorf("part %d: %w", i, err)
		}
		at += 8 * chunks
	}
	return nil
}

func checkEXRChunks(r io.ReaderAt, size, table, chunks int64, p exrPart, multipart bool) error {
	offsets := bufio.NewReader(io.NewSectionReader(r, table, 8*chunks))
	// Before its data a chunk has the part's number, its coordinates and its size.
	coordinates, lead := 4, 0
	if p.tiled {
		coordinates = 16
	}
	if multipart {
		lead = 4
	}
	head := make([]byte, lead+coordinates+4)
	for n := range chunks {
		var offset [8]byte
		if _, err := io.ReadFull(offsets, offset[:]); err != nil {
			return errors.New("its table of offsets is cut short")
		}
		at := int64(binary.LittleEndian.Uint64(offset[:]))
		if at <= 0 || at >= size {
			return fmt.Errorf("chunk %d of %d was not written", n+1, chunks)
		}
		if _, err := r.ReadAt(head, at); err != nil {
			return fmt.Errorf("chunk %d of %d is cut short", n+1, chunks)
		}
		length := int64(binary.LittleEndian.Uint32(head[len(head)-4:]))
		if p.deep {
			continue // has two sizes more; Blender writes none
		}
		if at+int64(len(head))+length > size {
			return fmt.Errorf("chunk %d of %d is cut short", n+1, chunks)
		}
	}
	return nil
}

// exrPart is what a header says about its chunks.
type exrPart struct {
	empty       bool
	chunks      int64 // 0 where the header does not count them
	compression byte
	minY, maxY  int32
	tiled, deep bool
}

func (p exrPart) scanChunks() int64 {
	per := int64(1)
	if int(p.compression) < len(exrLines) {
		per = exrLines[p.compression]
	} else {
		return 0 // newer than this table
	}
	height := int64(p.maxY) - int64(p.minY) + 1
	return max(0, (height+per-1)/per)
}

func readEXRPart(in *counter) (exrPart, error) {
	p := exrPart{empty: true, maxY: -1}
	cut := errors.New("it ends in its header")
	for {
		name, err := in.text()
		if err != nil {
			return p, cut
		}
		if name == "" {
			return p, nil
		}
		p.empty = false
		kind, err := in.text()
		var length uint32
		if err == nil {
			err = binary.Read(in, binary.LittleEndian, &length)
		}
		if err != nil || length > maxEXRHeader {
			return p, cut
		}
		value := make([]byte, min(length, 64))
		if _, err := io.ReadFull(in, value); err != nil {
			return p, cut
		}
		if _, err := io.CopyN(io.Discard, in, int64(length)-int64(len(value))); err != nil {
			return p, cut
		}
		switch {
		case name == "chunkCount" && len(value) == 4:
			p.chunks = int64(int32(binary.LittleEndian.Uint32(value)))
		case name == "compression" && len(value) == 1:
			p.compression = value[0]
		case name == "dataWindow" && len(value) == 16:
			p.minY = int32(binary.LittleEndian.Uint32(value[4:]))
			p.maxY = int32(binary.LittleEndian.Uint32(value[12:]))
		case name == "tiles":
			p.tiled = true
		case name == "type" && kind == "string":
			p.deep = bytes.HasPrefix(value, []byte("deep"))
		}
	}
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

// text reads up to a zero byte: the names in an OpenEXR header.
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
	return "", errors.New("a name is too long")
}
