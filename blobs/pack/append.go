package pack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

// NewBuffer makes a buffer that Append can write directly: aligned, of at least
// size bytes and a multiple of Align.
func NewBuffer(size int) []byte {
	n := int(padded(int64(size)))
	raw := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (Align - 1))
	return raw[skip : skip+n : skip+n]
}

// Extent is a run of bytes appended and not yet settled.
type Extent struct {
	File   uint32
	Offset int64 // in the file, of the first byte

	f *Files
	p *file
}

// Append is Place and Write in one.
func (f *Files) Append(p []byte) (*Extent, error) {
	e, err := f.Place(len(p))
	if err != nil {
		return nil, err
	}
	return e, e.Write(p)
}

// Write writes p, of as many bytes as the extent was placed for, durable only after
// Sync. p starts at an aligned address in a buffer of NewBuffer, and what follows it
// there up to the next multiple of Align is overwritten with zeros. Unless it fails,
// the caller settles the extent in the end, whatever happens to it.
func (e *Extent) Write(p []byte) error {
	whole := p[:padded(int64(len(p)))]
	clear(whole[len(p):])
	err := e.f.write(e, whole)
	if err != nil {
		e.Settle()
		_, _ = e.f.Measure(e.File)
	}
	return err
}

// Place finds a place for so many bytes behind everything else, which Allocated counts
// from now on. Write must follow. Several may be placed and written at once.
func (f *Files) Place(bytes int) (*Extent, error) {
	n := padded(int64(bytes))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files == nil {
		return nil, fs.ErrClosed
	}
	if f.current != nil && f.current.end > 0 && f.current.end+n > f.cfg.FileSize {
		f.finish(f.current)
		f.current = nil
	}
	if f.current == nil {
		p, err := f.create()
		if err != nil {
			return nil, err
		}
		f.current = p
	}
	p := f.current
	if p.w == nil {
		w, err := f.openWrite(p.path, 0)
		if err != nil {
			return nil, err
		}
		p.w = w
	}
	e := &Extent{File: p.id, Offset: p.end, f: f, p: p}
	p.inflight[p.end] = struct{}{}
	p.end += n
	p.allocated += n
	f.allocated += n
	return e, nil
}

// create makes the next file. f.mu is held.
func (f *Files) create() (*file, error) {
	id := f.last + 1
	if id == 0 {
		return nil, errors.New("no numbers are left for pack files")
	}
	if err := f.before(Op{Kind: "create", File: id}); err != nil {
		return nil, err
	}
	path := filepath.Join(f.dir, name(id))
	w, err := f.openWrite(path, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := syncDir(f.dir); err != nil { // else a power cut may forget the file, synced or not
		return nil, errors.Join(err, w.Close(), os.Remove(path))
	}
	p := &file{id: id, path: path, w: w, inflight: map[int64]struct{}{}}
	f.last = id
	f.files[id] = p
	return p, nil
}

func (f *Files) openWrite(path string, flags int) (*os.File, error) {
	flags |= os.O_WRONLY
	if f.direct {
		w, err := os.OpenFile(path, flags|directFlag, 0o600)
		if !errors.Is(err, syscall.EINVAL) {
			return w, err
		}
		f.direct = false
		flags &^= os.O_EXCL // some file systems create the file before they refuse
	}
	return os.OpenFile(path, flags, 0o600)
}

func (f *Files) write(e *Extent, p []byte) error {
	if err := f.before(Op{Kind: "write", File: e.File, Offset: e.Offset, Length: int64(len(p))}); err != nil {
		return err
	}
	f.mu.Lock()
	w, direct := e.p.w, f.direct
	f.mu.Unlock()
	_, err := w.WriteAt(p, e.Offset)
	if err == nil || !direct || !errors.Is(err, syscall.EINVAL) {
		return err
	}
	// Opened, but not writable this way.
	f.mu.Lock()
	defer f.mu.Unlock()
	f.direct = false
	plain, err := os.OpenFile(e.p.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	old := e.p.w
	e.p.w = plain
	if _, err := plain.WriteAt(p, e.Offset); err != nil {
		return err
	}
	if old != w { // somebody else was first
		return old.Close()
	}
	return nil // others may be writing to it; the finalizer closes it
}

// finish closes a file for writing when nothing is under way in it. f.mu is held.
func (f *Files) finish(p *file) {
	if len(p.inflight) == 0 {
		_ = p.closeWrite() // synced: nothing can be lost here
	}
}

// Settle says that the index knows the extent, or never will: from now on what it
// does not know there is garbage.
func (e *Extent) Settle() {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	delete(e.p.inflight, e.Offset)
	if e.p.measure {
		_ = e.f.remeasure(e.p) // what it cannot tell now, the next to ask hears
	}
	if e.p != e.f.current {
		e.f.finish(e.p)
	}
}

// Sync makes extents durable that have been appended and not been settled.
func (f *Files) Sync(es ...*Extent) error {
	done := map[*file]struct{}{}
	for _, e := range es {
		if _, dup := done[e.p]; dup {
			continue
		}
		done[e.p] = struct{}{}
		if err := f.before(Op{Kind: "sync", File: e.File}); err != nil {
			return err
		}
		f.mu.Lock()
		w := e.p.w
		f.mu.Unlock()
		if w == nil {
			return fmt.Errorf("sync of pack file %d: %w", e.File, fs.ErrClosed)
		}
		if err := dataSync(w); err != nil {
			return err
		}
	}
	return nil
}

// SyncFiles makes all that these files hold durable.
func (f *Files) SyncFiles(ids ...uint32) error {
	for _, id := range ids {
		if err := f.before(Op{Kind: "sync", File: id}); err != nil {
			return err
		}
		w, err := os.OpenFile(filepath.Join(f.dir, name(id)), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(dataSync(w), w.Close()); err != nil {
			return err
		}
	}
	return nil
}
