// Package pack keeps bytes in a row of append-only files, past the page cache
// where the system allows it.
//
// A caller appends aligned buffers, makes them durable with Sync, and remembers
// in an index of its own where what lies: this package knows extents, not what is
// in them. A place once given out is never given out again, so a reader that holds
// an old one reads the old bytes, zeros, or ErrGone, never somebody else's.
//
// What it promises:
//   - What Sync returned nil for survives kill -9 and a power cut.
//   - Open reads no data: files end where the file system says, and what an index
//     does not know in them is garbage that Punch or Remove gives back.
//   - Allocated is what the file system really takes, holes left out.
//   - At most Config.OpenFiles files are open for reading, plus those in use.
//
// What it does not do: checksums, and deciding what is garbage.
//
// A Files may be used from any goroutine.
package pack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Align is what direct I/O wants of addresses, offsets and lengths, in bytes.
// Every extent starts at a multiple of it.
const Align = 4096

// ErrGone: the file has been removed. Whoever looked its number up looks again.
var ErrGone = errors.New("pack file is gone")

// Config tunes Files. The zero value works.
type Config struct {
	// FileSize is how large a file grows, in bytes, at most 4 GiB - Align and
	// at least the largest buffer appended. 0: 512 MiB.
	FileSize int64
	// Buffered keeps direct I/O off where the system has it.
	Buffered bool
	// NoHoles keeps Punch from making any, as where the system cannot.
	NoHoles bool
	// OpenFiles is how many files stay open for reading. 0: 128.
	OpenFiles int
	// Before, if not nil, is called before a file is changed or read, which then fails
	// with its error: for tests that pull the plug.
	Before func(Op) error
}

// Op is something about to be done to a file.
type Op struct {
	Kind   string // "create", "write", "sync", "punch", "remove" or "read"
	File   uint32
	Offset int64 // of "write", "punch" and "read"
	Length int64
}

// Files is a folder of pack files. Open makes it; Close ends it.
type Files struct {
	dir string
	cfg Config

	mu        sync.Mutex
	files     map[uint32]*file
	last      uint32 // the newest number given out, 0 for none
	current   *file  // that appends go to, or nil
	direct    bool   // not refused so far
	holes     bool   // not refused so far
	allocated int64
	idle      []*file // open for reading and not in use, longest idle first
}

// file is one pack file. Files.mu guards its fields.
type file struct {
	id        uint32
	path      string
	end       int64 // the next extent starts here
	allocated int64
	inflight  map[int64]struct{} // offsets of extents not settled
	w         *os.File           // while extents may be written or synced, else nil
	r         *os.File           // while open for reading
	readers   int
	gone      bool // to be removed when the last reader leaves
	measure   bool // was to be measured while extents were in flight
}

const suffix = ".pack"

// Open opens the files in dir, which it creates if need be. The caller makes sure
// that nobody else does.
func Open(dir string, cfg Config) (*Files, error) {
	if cfg.FileSize == 0 {
		cfg.FileSize = 512 << 20
	}
	if cfg.OpenFiles == 0 {
		cfg.OpenFiles = 128
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &Files{dir: dir, cfg: cfg, files: map[uint32]*file{}, direct: directFlag != 0 && !cfg.Buffered, holes: canPunch && !cfg.NoHoles}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, ok := parseName(e.Name())
		if !ok {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, err
		}
		p := &file{id: id, path: filepath.Join(dir, e.Name()), end: padded(fi.Size()), allocated: allocated(fi), inflight: map[int64]struct{}{}}
		f.files[id] = p
		f.allocated += p.allocated
		f.last = max(f.last, id)
	}
	f.current = f.files[f.last] // appended to as long as there is room
	return f, nil
}

func name(id uint32) string { return fmt.Sprintf("%08d%s", id, suffix) }

func parseName(s string) (uint32, bool) {
	digits, ok := strings.CutSuffix(s, suffix)
	id, err := strconv.ParseUint(digits, 10, 32)
	return uint32(id), ok && err == nil && id > 0 && name(uint32(id)) == s
}

// padded rounds up to Align.
func padded(n int64) int64 { return (n + Align - 1) &^ (Align - 1) }

// Close closes all files. Nothing may be running.
func (f *Files) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, p := range f.files {
		errs = append(errs, p.closeWrite(), p.closeRead())
	}
	f.files, f.idle, f.current = nil, nil, nil
	return errors.Join(errs...)
}

func (p *file) closeWrite() error {
	if p.w == nil {
		return nil
	}
	w := p.w
	p.w = nil
	return w.Close()
}

func (p *file) closeRead() error {
	if p.r == nil {
		return nil
	}
	r := p.r
	p.r = nil
	return r.Close()
}

// Allocated is how many bytes of the disk all files take.
func (f *Files) Allocated() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.allocated
}

// Info describes one file.
type Info struct {
	File      uint32
	End       int64 // its length; nothing of it lies behind
	Settled   int64 // every extent below this has been settled, so what the index does not know there is garbage
	Allocated int64 // bytes of the disk it takes
	Current   bool  // appends go to it
}

// List describes all files by number.
func (f *Files) List() []Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	infos := make([]Info, 0, len(f.files))
	for _, p := range f.files {
		if p.gone {
			continue
		}
		in := Info{File: p.id, End: p.end, Settled: p.end, Allocated: p.allocated, Current: p == f.current}
		for at := range p.inflight {
			in.Settled = min(in.Settled, at)
		}
		infos = append(infos, in)
	}
	slices.SortFunc(infos, func(a, b Info) int { return int(a.File) - int(b.File) })
	return infos
}

// Finish sees to it that nothing more is appended to a file. It reports whether
// nothing is under way in it and it still ends where List said.
func (f *Files) Finish(id uint32, end int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.files[id]
	if p == nil || p.gone || p.end != end || len(p.inflight) > 0 {
		return false
	}
	if p == f.current {
		f.current = nil
	}
	f.finish(p)
	return true
}

// Remove gives back a file in which nothing is needed. It vanishes when the last
// read under way has ended. A file that does not end any more where List said, or
// has extents not settled, is left alone.
func (f *Files) Remove(id uint32, end int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.files[id]
	if p == nil || p.gone || p.end != end || len(p.inflight) > 0 {
		return nil
	}
	if err := f.before(Op{Kind: "remove", File: id}); err != nil {
		return err
	}
	if p == f.current {
		f.current = nil
	}
	p.gone = true
	if err := p.closeWrite(); err != nil {
		return err
	}
	return f.unlink(p)
}

// unlink removes a file that is gone once nobody reads it. f.mu is held.
func (f *Files) unlink(p *file) error {
	if !p.gone || p.readers > 0 {
		return nil
	}
	f.idle = slices.DeleteFunc(f.idle, func(q *file) bool { return q == p })
	err := p.closeRead() // Windows removes no open file
	if rerr := os.Remove(p.path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return errors.Join(err, rerr)
	}
	f.allocated -= p.allocated
	delete(f.files, p.id)
	return err
}

// CanPunch reports whether Punch may give something back: not on every system, and
// where a file system turns out to have no holes, not after the first try.
func (f *Files) CanPunch() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.holes
}

// Punch gives back the bytes of a file from from to to, except where a page of
// the file system holds others. What was there reads as zeros.
func (f *Files) Punch(id uint32, from, to int64) error {
	if !f.CanPunch() {
		return nil
	}
	from, to = padded(from), to&^(Align-1)
	if from >= to {
		return nil
	}
	err := f.punch(id, from, to)
	if errors.Is(err, errors.ErrUnsupported) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.holes = false
		return nil // moving what is left gives the room back too
	}
	return err
}

func (f *Files) punch(id uint32, from, to int64) error {
	if err := f.before(Op{Kind: "punch", File: id, Offset: from, Length: to - from}); err != nil {
		return err
	}
	w, err := os.OpenFile(filepath.Join(f.dir, name(id)), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer w.Close()
	return punch(w, from, to-from)
}

// Measure asks the file system anew what a file takes: Punch does not. While
// extents are in flight in it, that is put off until they are settled: they count
// since they were appended, and are written when it pleases.
func (f *Files) Measure(id uint32) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.files[id]
	if p == nil {
		return 0, nil
	}
	err := f.remeasure(p)
	return p.allocated, err
}

// remeasure is Measure with f.mu held.
func (f *Files) remeasure(p *file) error {
	if p.measure = len(p.inflight) > 0; p.measure {
		return nil
	}
	fi, err := os.Stat(p.path)
	if err != nil {
		return err
	}
	f.allocated += allocated(fi) - p.allocated
	p.allocated = allocated(fi)
	return nil
}

func (f *Files) before(op Op) error {
	if f.cfg.Before == nil {
		return nil
	}
	return f.cfg.Before(op)
}
