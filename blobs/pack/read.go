package pack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ReadAt fills p with the bytes of a file from off on. Errors: ErrGone, an
// unexpected end (the index is wrong, or the file was cut), the disk's.
func (f *Files) ReadAt(p []byte, id uint32, off int64) error {
	r, done, err := f.reader(id)
	if err != nil {
		return err
	}
	defer done()
	if err = f.before(Op{Kind: "read", File: id, Offset: off, Length: int64(len(p))}); err == nil {
		_, err = r.ReadAt(p, off)
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("pack file %d at %d: %w", id, off, err)
	}
	return nil
}

// reader opens a file for reading until done is called.
func (f *Files) reader(id uint32) (r io.ReaderAt, done func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.files[id]
	if p == nil || p.gone {
		return nil, nil, fmt.Errorf("pack file %d: %w", id, ErrGone)
	}
	if p.r == nil {
		h, err := os.Open(p.path)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("pack file %d: %w", id, ErrGone)
		}
		if err != nil {
			return nil, nil, err
		}
		p.r = h
	} else if p.readers == 0 {
		f.wake(p)
	}
	p.readers++
	return p.r, func() { f.leave(p) }, nil
}

// wake takes p out of the idle ones. f.mu is held.
func (f *Files) wake(p *file) {
	for i, q := range f.idle {
		if q == p {
			f.idle = append(f.idle[:i], f.idle[i+1:]...)
			return
		}
	}
}

func (f *Files) leave(p *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.readers--; p.readers > 0 {
		return
	}
	if p.gone {
		_ = f.unlink(p) // what stays is found at the next Open, and is garbage then
		return
	}
	if f.idle = append(f.idle, p); len(f.idle) > f.cfg.OpenFiles {
		_ = f.idle[0].closeRead()
		f.idle = f.idle[1:]
	}
}
