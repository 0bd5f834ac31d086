package render

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"vizpeer/lease"
)

// ErrNotBlend is wrapped by the error of [Header] for anything that is not a
// .blend file.
var ErrNotBlend = errors.New("not a .blend file")

// headerWindow bounds the memory that a compressed header may ask for.
const headerWindow = 64 << 20

// Header reads the version of the Blender that saved a .blend from its first
// bytes, plain or compressed with gzip or zstd. It needs no Blender. The error
// wraps [ErrNotBlend] unless r itself fails.
func Header(r io.Reader) (lease.Version, error) {
	br := bufio.NewReader(r)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return lease.Version{}, fmt.Errorf("read the file's header: %w", err)
	}
	var plain io.Reader = br
	switch {
	case len(magic) == 0:
		return lease.Version{}, fmt.Errorf("the file is empty: %w", ErrNotBlend)
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return lease.Version{}, fmt.Errorf("%w: its gzip header is damaged", ErrNotBlend)
		}
		defer zr.Close()
		plain = zr
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(headerWindow))
		if err != nil {
			return lease.Version{}, fmt.Errorf("%w: its zstd header is damaged", ErrNotBlend)
		}
		defer zr.Close()
		plain = zr
	}
	// "BLENDER" and then, up to Blender 4, the pointer size, the byte order and
	// three digits ("-v304"); from Blender 5 the header's own size, its format
	// and four digits ("17-01v0500").
	head := make([]byte, 17)
	n, _ := io.ReadFull(plain, head)
	head, ok := bytes.CutPrefix(head[:n], []byte("BLENDER"))
	if !ok {
		return lease.Version{}, fmt.Errorf("%w: it does not begin with BLENDER", ErrNotBlend)
	}
	var digits []byte
	switch {
	case len(head) >= 5 && (head[0] == '-' || head[0] == '_') && (head[1] == 'v' || head[1] == 'V'):
		digits = head[2:5]
	case len(head) >= 10 && isDigits(head[:2]) && head[2] == '-' && isDigits(head[3:5]) && head[5] == 'v':
		digits = head[6:10]
	}
	if !isDigits(digits) {
		return lease.Version{}, fmt.Errorf("%w: its header is cut short or damaged", ErrNotBlend)
	}
	v, _ := strconv.Atoi(string(digits))
	return lease.Version{Major: v / 100, Minor: v % 100}, nil
}

func isDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}
