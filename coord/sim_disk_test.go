package coord

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// simDisk is what a coordinator's machine has of the log. It survives the process: what
// was written is there after a kill, and of what was being written a part may be.
type simDisk struct {
	mu        sync.Mutex
	dice      *rand.Rand
	life      int // of the process that may use it
	full      bool
	frozen    chan struct{} // closed when the machine goes on; nil while it does
	logs      map[uint64]*raft.Log
	first     uint64
	last      uint64
	values    map[string][]byte
	snapshots []*simSnapshot // the latest first
	writing   [][]*raft.Log
}

type simSnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

var errSimFull = errors.New("no space left on device")

func newSimDisk(dice *rand.Rand) *simDisk {
	return &simDisk{dice: dice, logs: make(map[uint64]*raft.Log), values: make(map[string][]byte)}
}

// begin gives the disk to a new process.
func (d *simDisk) begin() *storage {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.life++
	s := &simStore{d, d.life}
	return &storage{log: s, snapshots: simSnapshots{s}}
}

// kill takes it from the process. Of what is being written some may be there, as far as
// the disk had got.
func (d *simDisk) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, logs := range d.writing {
		d.write(logs[:d.dice.IntN(len(logs)+1)])
	}
	d.writing = nil
	d.life++
	d.thaw() // it is the process that was stopped
}

func (d *simDisk) write(logs []*raft.Log) {
	for _, l := range logs {
		c := *l
		d.logs[l.Index] = &c
		if d.first == 0 || l.Index < d.first {
			d.first = l.Index
		}
		d.last = max(d.last, l.Index)
	}
}

func (d *simDisk) setFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// freeze stops all writing until the answer is called.
func (d *simDisk) freeze() (thaw func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := make(chan struct{})
	d.frozen = c
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.frozen == c {
			d.thaw()
		}
	}
}

// thaw lets those go on who wait. d.mu is held.
func (d *simDisk) thaw() {
	if d.frozen != nil {
		close(d.frozen)
		d.frozen = nil
	}
}

// simStore is a process's view of the disk.
type simStore struct {
	*simDisk
	mine int
}

// wait takes the time that a sync takes and leaves mu held. It tells whether the process
// lives: one that does not may believe what it likes, nobody hears of it.
func (s *simStore) wait() (lives bool) {
	s.mu.Lock()
	took := 500*time.Microsecond + time.Duration(s.dice.IntN(4000))*time.Microsecond
	for {
		frozen := s.frozen
		s.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		time.Sleep(took)
		s.mu.Lock()
		if s.frozen == nil {
			break
		}
	}
	return s.life == s.mine
}

func (s *simStore) Close() error { return nil }

func (s *simStore) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, nil
}

func (s *simStore) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

func (s *simStore) GetLog(i uint64, to *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[i]
	if l == nil {
		return raft.ErrLogNotFound
	}
	*to = *l
	return nil
}

func (s *simStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *simStore) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	if s.full {
		s.mu.Unlock()
		return errSimFull
	}
	s.writing = append(s.writing, logs)
	s.mu.Unlock()
	lives := s.wait()
	defer s.mu.Unlock()
	if !lives {
		return nil
	}
	s.writing = slices.DeleteFunc(s.writing, func(w []*raft.Log) bool { return &w[0] == &logs[0] })
	s.write(logs)
	return nil
}

func (s *simStore) DeleteRange(low, high uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != s.mine {
		return nil
	}
	for i := low; i <= high; i++ {
		delete(s.logs, i)
	}
	s.first, s.last = 0, 0
	for i := range s.logs {
		if s.first == 0 || i < s.first {
			s.first = i
		}
		s.last = max(s.last, i)
	}
	return nil
}

func (s *simStore) Set(key, value []byte) error {
	lives := s.wait()
	defer s.mu.Unlock()
	if lives {
		s.values[string(key)] = slices.Clone(value)
	}
	return nil
}

func (s *simStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.values[string(key)]; ok {
		return v, nil
	}
	return nil, errNoKey
}

func (s *simStore) SetUint64(key []byte, v uint64) error { return s.Set(key, fmt.Append(nil, v)) }

func (s *simStore) GetUint64(key []byte) (v uint64, err error) {
	text, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(text), &v)
	return v, err
}

// simSnapshots are the snapshots on a simDisk.
type simSnapshots struct{ *simStore }

func (s simSnapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &simSink{to: s, of: &simSnapshot{meta: raft.SnapshotMeta{
		Version: v, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano()), Index: index, Term: term, Configuration: c, ConfigurationIndex: at,
	}}}, nil
}

func (s simSnapshots) List() (list []*raft.SnapshotMeta, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snapshot := range s.snapshots {
		m := snapshot.meta
		list = append(list, &m)
	}
	return list, nil
}

func (s simSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snapshot := range s.snapshots {
		if m := snapshot.meta; m.ID == id {
			return &m, io.NopCloser(bytes.NewReader(snapshot.data)), nil
		}
	}
	return nil, nil, errors.New("there is no such snapshot")
}

type simSink struct {
	bytes.Buffer
	to simSnapshots
	of *simSnapshot
}

func (s *simSink) ID() string    { return s.of.meta.ID }
func (s *simSink) Cancel() error { return nil }

func (s *simSink) Close() error {
	lives := s.to.wait()
	defer s.to.mu.Unlock()
	switch {
	case !lives:
		return nil
	case s.to.full:
		return errSimFull
	}
	s.of.data, s.of.meta.Size = s.Bytes(), int64(s.Len())
	s.to.snapshots = append([]*simSnapshot{s.of}, s.to.snapshots[:min(len(s.to.snapshots), 1)]...)
	return nil
}
