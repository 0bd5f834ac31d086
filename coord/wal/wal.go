// Package wal keeps records in a row of append-only files, for a log that is written
// in batches, read seldom, and cut at its beginning.
//
// A batch of records is written at once and is one sync: the coordinator's answers
// wait for little else, so that each sync counts.
//
// What it promises:
//   - What Append returned nil for survives kill -9 and a power cut. Of a batch that
//     was cut off nothing is there.
//   - Open finds out. A batch cut off at the very end is dropped; any other damage
//     is ErrDamaged, and never a record less.
//   - After a failed write the log is as it was. After a failed sync nobody knows what
//     is on the disk: nothing more is written until it is opened again.
//   - Two processes never have one folder open.
//
// What it does not do: know what is in a record, or which are still needed.
//
// A Log may be used from any goroutine.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// ErrDamaged: the files do not hold what was written.
var ErrDamaged = errors.New("the log is damaged")

// ErrLocked: another process has the folder open.
var ErrLocked = errors.New("another process uses it")

// MaxBatch bounds the records of one Append together, in bytes.
const MaxBatch = 1 << 30

// Config tunes a Log. The zero value works.
type Config struct {
	// FileSize is how large a file grows, in bytes, before the next one is begun; one
	// batch may be larger. 0: 16 MiB.
	FileSize int64
	// Head, if not nil, gives the records that the first batch of every file begins
	// with: what would be missed once the files before are dropped. It is called inside
	// Append.
	Head func() [][]byte
	// NoSync leaves it to the system when what was written reaches the disk. For tests.
	NoSync bool
}

// Log is a row of files, of which the last one is written to. Open makes it; Close
// ends it.
type Log struct {
	dir  string
	cfg  Config
	lock *os.File

	mu     sync.Mutex
	files  []*file // in the order of their numbers; at least one
	failed error   // why nothing more may be written
	buf    []byte
}

// file is one of the row. Log.mu guards size.
type file struct {
	number uint64
	f      *os.File
	size   int64
}

// Place is where a record lies.
type Place struct {
	File   uint64 // its number; they grow
	Offset int64
	Length int
}

// A file begins with fileHead. Then come batches: a head of headSize bytes, which
// names the length and the checksum of what follows and has a checksum of its own,
// and records, each behind its length.
const (
	fileHead = "vizpeer log 1\n"
	headSize = 12
	suffix   = ".log"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Open opens the log in dir, which it creates if need be, and calls each with every
// record, in the order in which they were written. The record is each's to keep.
func Open(dir string, cfg Config, each func(Place, []byte) error) (_ *Log, err error) {
	if cfg.FileSize == 0 {
		cfg.FileSize = 16 << 20
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, cfg: cfg}
	if l.lock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		if n, ok := parseName(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		if err := l.load(n, i == len(numbers)-1, each); err != nil {
			return nil, err
		}
	}
	if len(l.files) == 0 {
		if err := l.begin(1); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func name(number uint64) string { return fmt.Sprintf("%016x%s", number, suffix) }

func parseName(s string) (uint64, bool) {
	digits, ok := strings.CutSuffix(s, suffix)
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, ok && err == nil && name(n) == s
}

// load reads a file to its end.
func (l *Log) load(number uint64, last bool, each func(Place, []byte) error) error {
	path := filepath.Join(l.dir, name(number))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := &file{number: number, f: f}
	l.files = append(l.files, p)
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	rest, ok := data, false
	if rest, ok = strip(rest, fileHead); !ok {
		// It was begun and not finished: nothing was in it.
		if !last || len(data) > len(fileHead) {
			return damaged(path, 0)
		}
		return l.cut(p, 0)
	}
	for len(rest) > 0 {
		at := int64(len(data) - len(rest))
		batch, ok := next(rest)
		if !ok {
			if !last || whole(rest[1:]) {
				return damaged(path, at)
			}
			return l.cut(p, at)
		}
		if err := eachRecord(batch, func(offset int, record []byte) error {
			return each(Place{number, at + headSize + int64(offset), len(record)}, record)
		}); err != nil {
			return fmt.Errorf("%s at %d: %w", path, at, err)
		}
		rest = rest[headSize+len(batch):]
	}
	p.size = int64(len(data))
	return nil
}

func strip(data []byte, head string) ([]byte, bool) {
	if len(data) < len(head) || string(data[:len(head)]) != head {
		return data, false
	}
	return data[len(head):], true
}

func damaged(path string, at int64) error {
	return fmt.Errorf("%w: %s at %d", ErrDamaged, path, at)
}

// next is the body of the batch that data begins with.
func next(data []byte) ([]byte, bool) {
	if len(data) < headSize || crc32.Checksum(data[:8], castagnoli) != binary.BigEndian.Uint32(data[8:]) {
		return nil, false
	}
	n := uint64(binary.BigEndian.Uint32(data))
	if body := data[headSize:]; n <= uint64(len(body)) && crc32.Checksum(body[:n], castagnoli) == binary.BigEndian.Uint32(data[4:]) {
		return body[:n], true
	}
	return nil, false
}

// whole tells whether a whole batch begins anywhere in data. Behind one that was cut
// off there is none: the next one is written when it is durable.
func whole(data []byte) bool {
	for ; len(data) > headSize; data = data[1:] {
		if body, ok := next(data); ok && len(body) > 0 {
			return true
		}
	}
	return false
}

func eachRecord(batch []byte, do func(offset int, record []byte) error) error {
	for at := 0; at < len(batch); {
		n, used := binary.Uvarint(batch[at:])
		if used <= 0 || n > uint64(len(batch)-at-used) {
			return fmt.Errorf("%w: a record of %d bytes in a batch of %d", ErrDamaged, n, len(batch))
		}
		at += used
		if err := do(at, batch[at:at+int(n):at+int(n)]); err != nil {
			return err
		}
		at += int(n)
	}
	return nil
}

// cut drops what lies from at on in the last file, and begins it anew where that is
// all. l.mu is held, or l is not shared yet.
func (l *Log) cut(p *file, at int64) error {
	if err := p.f.Truncate(at); err != nil {
		return err
	}
	p.size = at
	if at > 0 {
		return l.sync(p)
	}
	if _, err := p.f.WriteAt([]byte(fileHead), 0); err != nil {
		return err
	}
	p.size = int64(len(fileHead))
	return l.sync(p)
}

// begin makes the next file. l.mu is held, or l is not shared yet.
func (l *Log) begin(number uint64) error {
	path := filepath.Join(l.dir, name(number))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	p := &file{number: number, f: f}
	if err = l.cut(p, 0); err == nil {
		err = l.syncDir()
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	l.files = append(l.files, p)
	return nil
}

func (l *Log) sync(p *file) error {
	if l.cfg.NoSync {
		return nil
	}
	return dataSync(p.f)
}

func (l *Log) syncDir() error {
	if l.cfg.NoSync {
		return nil
	}
	return syncDir(l.dir)
}

// Append writes the records as one batch, durably, and returns where they are.
func (l *Log) Append(records ...[]byte) ([]Place, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return nil, l.failed
	}
	p := l.files[len(l.files)-1]
	if p.size >= l.cfg.FileSize {
		if err := l.begin(p.number + 1); err != nil {
			return nil, fmt.Errorf("begin the log's next file: %w", err)
		}
		p = l.files[len(l.files)-1]
	}
	var head [][]byte
	if p.size == int64(len(fileHead)) && l.cfg.Head != nil {
		head = l.cfg.Head()
	}
	places, err := l.write(p, append(head, records...))
	if err != nil {
		return nil, err
	}
	return places[len(head):], nil
}

// write writes one batch. l.mu is held.
func (l *Log) write(p *file, records [][]byte) ([]Place, error) {
	buf := append(l.buf[:0], make([]byte, headSize)...)
	places := make([]Place, len(records))
	for i, r := range records {
		buf = binary.AppendUvarint(buf, uint64(len(r)))
		places[i] = Place{p.number, p.size + int64(len(buf)), len(r)}
		buf = append(buf, r...)
	}
	if l.buf = buf; cap(buf) > 1<<20 {
		l.buf = nil // a large one is seldom
	}
	body := buf[headSize:]
	if len(body) > MaxBatch {
		return nil, fmt.Errorf("%d bytes are more than the %d that the log takes at once", len(body), MaxBatch)
	}
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	binary.BigEndian.PutUint32(buf[4:], crc32.Checksum(body, castagnoli))
	binary.BigEndian.PutUint32(buf[8:], crc32.Checksum(buf[:8], castagnoli))
	if _, err := p.f.WriteAt(buf, p.size); err != nil {
		if terr := p.f.Truncate(p.size); terr != nil {
			l.failed = fmt.Errorf("write the log: %w; start vizpeer again", errors.Join(err, terr))
			return nil, l.failed
		}
		return nil, err
	}
	if err := l.sync(p); err != nil {
		l.failed = fmt.Errorf("what was written to the log may not be on the disk: %w; start vizpeer again", err)
		return nil, l.failed
	}
	p.size += int64(len(buf))
	return places, nil
}

// Read returns a record, as Open found it or Append wrote it.
func (l *Log) Read(at Place) ([]byte, error) {
	l.mu.Lock()
	i, ok := slices.BinarySearchFunc(l.files, at.File, func(p *file, n uint64) int {
		switch {
		case p.number < n:
			return -1
		case p.number > n:
			return 1
		}
		return 0
	})
	if !ok {
		l.mu.Unlock()
		return nil, fmt.Errorf("the log's file %d is gone", at.File)
	}
	f := l.files[i].f
	l.mu.Unlock()
	data := make([]byte, at.Length)
	_, err := f.ReadAt(data, at.Offset)
	return data, err
}

// Drop removes the files before the one of that number, of which nothing is needed
// any more. The last one stays.
func (l *Log) Drop(before uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.files) > 1 && l.files[0].number < before {
		p := l.files[0]
		if err := errors.Join(p.f.Close(), os.Remove(p.f.Name())); err != nil {
			return err
		}
		l.files = l.files[1:]
	}
	return nil
}

// Close lets the folder go.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, p := range l.files {
		errs = append(errs, p.f.Close())
	}
	l.files, l.failed = nil, os.ErrClosed
	return errors.Join(append(errs, l.lock.Close())...)
}
