package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"vizpeer/coord"
	"vizpeer/lease"
)

// results remembers, on disk, what this machine has rendered and may be the only
// one to hold: one file for each lease. A machine that was cut off or killed
// offers it when it is back.
type results struct {
	dir string
	mu  sync.Mutex
	all map[lease.ID]*pending
}

// pending is what is to be said about one attempt.
type pending struct {
	Report lease.Report   `json:"report"`
	Frames []lease.Result `json:"frames"` // rendered and in the store
}

func openResults(dir string) (*results, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of unreported results: %w", err)
	}
	r := &results{dir: dir, all: make(map[lease.ID]*pending)}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		var p pending
		b, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		// The folder is this peer's own and its files are replaced whole: one that
		// cannot be read is of no use to anyone.
		if err != nil || p.Report.Lease == "" {
			_ = os.Remove(name)
			continue
		}
		r.all[p.Report.Lease] = &p
	}
	return r, nil
}

// add notes finished frames before they are reported.
func (r *results) add(report lease.Report, frames ...lease.Result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.all[report.Lease]
	if p == nil {
		p = &pending{Report: report}
		r.all[report.Lease] = p
	}
	p.Frames = append(p.Frames, frames...)
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return dataDir(r.dir).write(string(report.Lease)+".json", b, 0o600)
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

// forget drops an attempt: others hold its frames, or nobody wants them.
func (r *results) forget(id lease.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[id] == nil {
		return
	}
	delete(r.all, id)
	if err := os.Remove(filepath.Join(r.dir, string(id)+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // it is offered once more after the next start, and refused
	}
}

// orphans lists what was rendered by attempts that do not run here any more.
func (r *results) orphans(running func(lease.ID) bool) []coord.Up {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []coord.Up
	for id, p := range r.all {
		if !running(id) {
			out = append(out, coord.Up{Record: &lease.Record{Report: p.Report, Frames: p.Frames}})
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
