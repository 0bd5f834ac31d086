package coord

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"vizpeer/authz"
)

// ledger keeps the signed records of the farm's audit on this machine's disk: JSON
// lines in files of up to [pageRecords] records, each named after its first one. Files
// are only ever appended to.
//
// What is written last may be lost with the power: the log has it until the next
// snapshot, for which flush makes it last, and applying the log again writes it again.
// Records that came while this machine was away and are in no log any more are missing
// until they are inserted; see [Coordinator.completeAudit].
type ledger struct {
	dir  string
	sync bool
	most uint64 // records on a page
	slog *slog.Logger

	mu    sync.Mutex
	pages []page   // in order of their records
	last  *os.File // the last page, open for writing; nil where there is none yet
}

// page is one file of a ledger: records in a row.
type page struct {
	first, last uint64
	prev, hash  authz.Hash // before its first record, and of its last
	size        int64
}

const (
	pageRecords = 4096
	pageSuffix  = ".jsonl"
	unfinished  = "older-*.tmp"
	// maxRecord bounds a record's line, in bytes: all its texts, each byte escaped.
	maxRecord = 16 << 10
)

// openLedger opens the ledger in dir. What a power cut left of a last line is dropped.
func openLedger(dir string, sync bool, log *slog.Logger) (*ledger, error) {
	l := &ledger{dir: dir, sync: sync, most: pageRecords, slog: log}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the audit: %w", err)
	}
	// What insert was writing when it was cut off.
	old, err := filepath.Glob(filepath.Join(dir, unfinished))
	for _, name := range old {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		return nil, fmt.Errorf("opening the audit: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+pageSuffix))
	if err != nil {
		return nil, fmt.Errorf("opening the audit: %w", err)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) { // what is empty is no last page
		p, ok, err := openPage(name, len(l.pages) == 0)
		if err != nil {
			return nil, fmt.Errorf("opening the audit: %w", err)
		}
		if ok {
			l.pages = append(l.pages, p)
		}
	}
	slices.Reverse(l.pages)
	if n := len(l.pages); n > 0 {
		if l.last, err = os.OpenFile(l.name(l.pages[n-1]), os.O_WRONLY, 0o600); err != nil {
			return nil, fmt.Errorf("opening the audit: %w", err)
		}
	}
	return l, nil
}

// openPage reads a page's bounds. A last page is cut behind its last whole line; one
// without any is no page.
func openPage(name string, last bool) (p page, ok bool, err error) {
	if _, err := fmt.Sscanf(strings.TrimSuffix(filepath.Base(name), pageSuffix), "%d", &p.first); err != nil {
		return p, false, nil // it is not ours
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return p, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return p, false, err
	}
	p.size = info.Size()
	var begin, end authz.Record
	read := false // end is the last record
	for p.size > 0 && !read {
		from := max(0, p.size-maxRecord)
		text := make([]byte, p.size-from)
		if _, err := f.ReadAt(text, from); err != nil {
			return p, false, err
		}
		whole := bytes.TrimSuffix(text, []byte("\n"))
		line := whole[bytes.LastIndexByte(whole, '\n')+1:]
		if read = len(whole) < len(text) && json.Unmarshal(line, &end) == nil; read || !last {
			break
		}
		p.size -= int64(len(text) - len(whole) + len(line))
	}
	if p.size < info.Size() {
		if err := f.Truncate(p.size); err != nil {
			return p, false, err
		}
	}
	if p.size == 0 {
		return p, false, errors.Join(f.Close(), os.Remove(name))
	}
	// What somebody altered is for a [authz.Verifier] to find, when it reads all lines.
	if json.NewDecoder(io.NewSectionReader(f, 0, min(p.size, maxRecord))).Decode(&begin) == nil {
		p.prev = begin.Prev
	}
	if p.last = p.first; read && end.Seq >= p.first {
		p.last, p.hash = end.Seq, end.Hash
	}
	return p, true, nil
}

func (l *ledger) name(p page) string {
	return filepath.Join(l.dir, fmt.Sprintf("%016d%s", p.first, pageSuffix))
}

// append writes records, in order, that follow each other, but for those that are there
// already. It answers whether all are written.
func (l *ledger) append(records []authz.Record) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(records) > 0 {
		n, err := l.write(records)
		if err != nil {
			l.slog.Error("the audit could not be written; it is kept in memory meanwhile", "record", records[0].Seq, "err", err)
			return false
		}
		records = records[n:]
	}
	return true
}

// write writes as many of the records as fit on one page. l.mu is held.
func (l *ledger) write(records []authz.Record) (n int, err error) {
	var p *page
	if len(l.pages) > 0 {
		p = &l.pages[len(l.pages)-1]
		for n < len(records) && records[n].Seq <= p.last {
			n++
		}
		if n > 0 {
			return n, nil
		}
	}
	if p == nil || p.last+1 != records[0].Seq || p.last-p.first+1 >= l.most {
		if err := l.turn(records[0]); err != nil {
			return 0, err
		}
		p = &l.pages[len(l.pages)-1]
	}
	room := int(l.most - (p.last + 1 - p.first))
	records = records[:min(room, len(records))]
	lines, err := encodeLines(records)
	if err != nil {
		return 0, err
	}
	// What a write that failed has left is written over by the next one.
	if _, err := l.last.WriteAt(lines, p.size); err != nil {
		return 0, err
	}
	end := records[len(records)-1]
	p.last, p.hash, p.size = end.Seq, end.Hash, p.size+int64(len(lines))
	return len(records), nil
}

// turn begins a new page with r. The one before it is finished. l.mu is held.
func (l *ledger) turn(r authz.Record) error {
	if l.last != nil {
		if err := l.flushLast(); err != nil {
			return err
		}
	}
	p := page{first: r.Seq, last: r.Seq - 1, prev: r.Prev, hash: r.Prev}
	f, err := os.OpenFile(l.name(p), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := l.syncDir(); err != nil {
		return errors.Join(err, f.Close())
	}
	if l.last != nil {
		_ = l.last.Close() // it is on disk
	}
	l.last, l.pages = f, append(l.pages, p)
	return nil
}

// syncDir makes the names of the pages last, too. Windows has no such thing.
func (l *ledger) syncDir() error {
	if !l.sync || runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encodeLines(records []authz.Record) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for _, r := range records {
		if err := e.Encode(r); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

func (l *ledger) flushLast() error {
	if !l.sync {
		return nil
	}
	return l.last.Sync()
}

// flush returns when all that was written is on disk for good.
func (l *ledger) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		return nil
	}
	if err := l.flushLast(); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	return nil
}

func (l *ledger) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		return nil
	}
	return errors.Join(l.flushLast(), l.last.Close())
}

// gap is a row of records that a ledger lacks; hash is that of the last of them.
type gap struct {
	first, last uint64
	hash        authz.Hash
}

// gaps lists what is missing up to the record that was stored last, the oldest first.
func (l *ledger) gaps(stored authz.Mark) (out []gap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := uint64(1)
	for _, p := range l.pages {
		if p.first > next {
			out = append(out, gap{next, p.first - 1, p.prev})
		}
		next = max(next, p.last+1)
	}
	if stored.Seq >= next {
		out = append(out, gap{next, stored.Seq, stored.Hash})
	}
	return out
}

// insert adds records in a row, which the caller has verified, where they are missing.
func (l *ledger) insert(records []authz.Record) error {
	lines, err := encodeLines(records)
	if err != nil {
		return err
	}
	end := records[len(records)-1]
	p := page{first: records[0].Seq, last: end.Seq, prev: records[0].Prev, hash: end.Hash, size: int64(len(lines))}
	l.mu.Lock()
	defer l.mu.Unlock()
	at, _ := slices.BinarySearchFunc(l.pages, p.first, func(p page, first uint64) int { return cmp.Compare(p.first, first) })
	if at > 0 && l.pages[at-1].last >= p.first || at < len(l.pages) && l.pages[at].first <= p.last {
		return errors.New("writing older records of the audit: some are there already")
	}
	// A name that is not a page's until all is written.
	f, err := os.CreateTemp(l.dir, unfinished)
	if err != nil {
		return fmt.Errorf("writing older records of the audit: %w", err)
	}
	_, err = f.Write(lines)
	if err == nil && l.sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = errors.Join(os.Rename(f.Name(), l.name(p)), l.syncDir())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing older records of the audit: %w", err), os.Remove(f.Name()))
	}
	l.pages = slices.Insert(l.pages, at, p)
	if at == len(l.pages)-1 { // what comes next begins a page of its own
		if l.last != nil {
			_ = errors.Join(l.flushLast(), l.last.Close())
		}
		l.last, err = os.OpenFile(l.name(p), os.O_WRONLY, 0o600)
	}
	return err
}

// list is the pages as they are now.
func (l *ledger) list() []page {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pages)
}

// read reads a page's records as they stand in its file. Of one that was altered it
// answers those before the line that cannot be read, and a [authz.Fault].
func (l *ledger) read(p page) (records []authz.Record, err error) {
	f, err := os.Open(l.name(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &authz.Fault{Seq: p.first, Why: "it is missing: the file " + filepath.Base(l.name(p)) + " is gone"}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the audit: %w", err)
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, p.size))
	for {
		var r authz.Record
		switch err := d.Decode(&r); {
		case err == io.EOF:
			return records, nil
		case err != nil:
			return records, &authz.Fault{Seq: p.first + uint64(len(records)), Why: "it was altered: its line cannot be read"}
		}
		records = append(records, r)
	}
}
