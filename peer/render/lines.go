package render

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
)

// maxLine bounds a line of Blender's output: what is longer says nothing.
const maxLine = 64 << 10

// lines calls line with each line of r, cut to maxLine bytes, until r ends.
func lines(r io.Reader, line func([]byte) error) error {
	return pieces(r, func(piece []byte, first bool) error {
		if !first {
			return nil
		}
		return line(bytes.TrimRight(piece, "\r\n"))
	})
}

// pieces gives all of r to piece until r ends: lines with their ends, and those
// longer than maxLine in several pieces, of which one is the first.
func pieces(r io.Reader, piece func(b []byte, first bool) error) error {
	br := bufio.NewReaderSize(r, maxLine)
	rest := false // of a line whose beginning was given already
	for {
		b, err := br.ReadSlice('\n')
		if len(b) > 0 {
			if err := piece(b, !rest); err != nil {
				return err
			}
		}
		rest = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case err == nil, rest:
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return err
		}
	}
}
