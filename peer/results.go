package peer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"vizpeer/coord"
	"vizpeer/lease"
)

// results remembers, on disk, what this machine has rendered and may be the only
// one to hold, by lease. A machine that was cut off or killed offers it when it is
// back.
//
// It is a journal: a line for each change, written before the frame that it tells of
// is reported, and a sync for all of a twentieth of a second. A power cut may take
// what was rendered in that time and not reported, as if it had come so much
// earlier. The journal is written anew when most of it is past.
type results struct {
	dir  dataDir
	slog *slog.Logger

	mu    sync.Mutex
	all   map[lease.ID]*pending
	file  *os.File
	size  int64       // of its whole lines
	lines int         // in the file
	timer *time.Timer // syncs; nil where nothing is to be synced

	syncing sync.Mutex // held while the file is synced or replaced; taken before mu
}

// resultsPause is how long what was rendered may wait to be synced.
const resultsPause = 50 * time.Millisecond

// pending is what is to be said about one attempt.
type pending struct {
	Report lease.Report        `json:"report"`
	Frames []lease.Result      `json:"frames,omitempty"` // rendered and in the store
	Pieces []lease.PieceResult `json:"pieces,omitempty"` // likewise; a later one may hold an earlier one
}

// resultsChange is a line of the journal: exactly one of the fields is set.
type resultsChange struct {
	Add    *pending `json:"add,omitempty"` // these frames, beside those of lines before
	Forget lease.ID `json:"forget,omitempty"`
}

const (
	resultsFile = "journal"
	// pastLines is how many lines may be of the past before the file is written anew.
	pastLines = 4096
)

// openResults reads what an earlier process left in dir. An earlier version wrote a
// file for each lease.
func openResults(dir string, log *slog.Logger) (*results, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of unreported results: %w", err)
	}
	r := &results{dir: dataDir(dir), slog: log, all: make(map[lease.ID]*pending)}
	old, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range old {
		var p pending
		// The folder is this peer's own: what cannot be read is of no use to anyone.
		if b, err := os.ReadFile(name); err == nil && json.Unmarshal(b, &p) == nil {
			r.take(resultsChange{Add: &p})
		}
	}
	if err := r.load(); err != nil {
		return nil, err
	}
	if err := r.rewrite(); err != nil {
		return nil, err
	}
	for _, name := range old {
		_ = os.Remove(name) // it is read again, to the same effect
	}
	return r, nil
}

// load reads the journal. Its last line may be cut short: what that told of was not
// reported yet.
func (r *results) load() error {
	f, err := os.Open(r.dir.path(resultsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the unreported results: %w", err)
	}
	defer f.Close()
	for in := bufio.NewReader(f); ; {
		line, err := in.ReadBytes('\n')
		var c resultsChange
		if json.Unmarshal(line, &c) == nil {
			r.take(c)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the unreported results: %w", err)
		}
	}
}

// take carries out a change in memory. r.mu is held, or r is not shared yet.
func (r *results) take(c resultsChange) {
	switch {
	case c.Add == nil:
		delete(r.all, c.Forget)
	case c.Add.Report.Lease == "":
	case r.all[c.Add.Report.Lease] == nil:
		r.all[c.Add.Report.Lease] = c.Add
	default:
		p := r.all[c.Add.Report.Lease]
		p.Frames = append(p.Frames, c.Add.Frames...)
		for _, more := range c.Add.Pieces {
			p.Pieces = append(slices.DeleteFunc(p.Pieces, func(o lease.PieceResult) bool { return more.Holds(o.Span) }), more)
		}
	}
}

// rewrite replaces the journal by one of what is pending. Both locks are held, or r
// is not shared yet.
func (r *results) rewrite() error {
	var text bytes.Buffer
	for _, p := range r.all {
		b, err := json.Marshal(resultsChange{Add: p})
		if err != nil {
			return err
		}
		text.Write(append(b, '\n'))
	}
	if r.file != nil {
		_ = r.file.Close() // Windows replaces no open file
	}
	werr := r.dir.write(resultsFile, text.Bytes(), 0o600)
	f, err := os.OpenFile(r.dir.path(resultsFile), os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(werr, fmt.Errorf("open the unreported results: %w", err))
	}
	r.file = f
	if werr != nil {
		return werr // it is as it was
	}
	r.size, r.lines = int64(text.Len()), len(r.all)
	return nil
}

// close makes what was added durable and lets the file go, with nothing of the past
// in it. Nothing may be added any more.
func (r *results) close() error {
	r.sync()
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.lines > len(r.all) {
		err = r.rewrite()
	}
	return errors.Join(err, r.file.Close())
}

// note writes a change, not durably, and carries it out. r.mu is held. What a
// failure leaves of the line is overwritten by the next.
func (r *results) note(c resultsChange) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if _, err := r.file.WriteAt(b, r.size); err != nil {
		_ = r.file.Truncate(r.size)
		return fmt.Errorf("write the unreported results: %w", err)
	}
	r.size += int64(len(b))
	r.lines++
	r.take(c)
	return nil
}

// add notes finished frames and pieces before they are reported.
func (r *results) add(p pending) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.note(resultsChange{Add: &p}); err != nil {
		return err
	}
	if r.timer == nil {
		r.timer = time.AfterFunc(resultsPause, r.sync)
	}
	return nil
}

// sync makes durable what was added.
func (r *results) sync() {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	if r.timer == nil {
		r.mu.Unlock()
		return // somebody did
	}
	r.timer.Stop()
	r.timer = nil
	if r.lines > len(r.all)+pastLines && r.rewrite() == nil {
		r.mu.Unlock()
		return
	}
	file := r.file
	r.mu.Unlock()
	if err := file.Sync(); err != nil {
		r.slog.Warn("what was rendered could not be noted on the disk: a power cut may lose it until it is reported", "err", err)
	}
}

// forgetJob forgets all attempts of a job that has ended.
func (r *results) forgetJob(j lease.JobID) {
	r.mu.Lock()
	var ids []lease.ID
	for id, p := range r.all {
		if p.Report.Task.Job == j {
			ids = append(ids, id)
		}
	}
	r.mu.Unlock()
	for _, id := range ids {
		r.forget(id)
	}
}

// forget drops an attempt: others hold its frames, or nobody wants them. It is not
// synced: what comes back is offered once more after the next start, and refused.
func (r *results) forget(id lease.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[id] == nil {
		return
	}
	if r.note(resultsChange{Forget: id}) != nil {
		delete(r.all, id)
	}
}

// orphans lists what was rendered by attempts that do not run here any more.
func (r *results) orphans(running func(lease.ID) bool) []coord.Up {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []coord.Up
	for id, p := range r.all {
		if !running(id) {
			out = append(out, coord.Up{Record: &lease.Record{Report: p.Report, Frames: slices.Clone(p.Frames), Pieces: slices.Clone(p.Pieces)}})
		}
	}
	return out
}

// frames counts the frames that only this machine is sure to hold.
func (r *results) frames() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, p := range r.all {
		n += len(p.Frames)
	}
	return n
}
