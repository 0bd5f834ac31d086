package coord

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"vizpeer/authz"
	"vizpeer/lease"
)

// fsm applies committed entries to the queue and the roster. Raft calls Apply,
// Snapshot and Restore from one goroutine; readers come from any.
type fsm struct {
	mu     sync.RWMutex
	index  uint64 // of the last entry applied
	queue  *lease.State
	roster *authz.Roster

	feed struct {
		mu   sync.Mutex
		subs []*subscriber // copied on change, so that delivery needs no lock
	}

	// broken is why this machine cannot go on with the log. Once it is set
	// nothing more is applied or snapshotted: the log keeps what a newer vizpeer
	// will read. onBreak is told once.
	broken  error
	onBreak func(error)
}

// subscriber is a pointer so that equal functions are told apart.
type subscriber struct{ told func(Applied) }

// outcome is what Apply answers through raft to the one who asked.
type outcome struct {
	applied Applied
	err     error
}

var _ raft.FSM = (*fsm)(nil)

func newFSM(onBreak func(error)) *fsm {
	return &fsm{queue: lease.NewState(), roster: authz.NewRoster(), onBreak: onBreak}
}

// Apply carries out one committed entry.
func (f *fsm) Apply(l *raft.Log) any {
	o := f.apply(l)
	if o.err == nil {
		f.tell(o.applied)
	}
	return o
}

func (f *fsm) apply(l *raft.Log) outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return outcome{err: f.broken}
	}
	e, err := decodeEntry(l.Data)
	if err != nil {
		f.broken = fmt.Errorf("this machine cannot go on with the queue at entry %d: %w", l.Index, err)
		f.onBreak(f.broken)
		return outcome{err: f.broken}
	}
	f.index = l.Index
	o := outcome{applied: Applied{Index: l.Index}}
	if e.Queue != nil {
		o.applied.At = e.Queue.At
		o.applied.Queue, o.err = f.queue.Apply(*e.Queue)
	} else {
		o.applied.At = e.Roster.At
		o.applied.Roster, o.err = f.roster.Apply(*e.Roster)
	}
	return o
}

// tell feeds the subscribers, outside the state's lock so that they may read it.
func (f *fsm) tell(a Applied) {
	f.feed.mu.Lock()
	subs := f.feed.subs
	f.feed.mu.Unlock()
	for _, s := range subs {
		s.told(a)
	}
}

func (f *fsm) subscribe(told func(Applied)) (stop func()) {
	s := &subscriber{told}
	f.feed.mu.Lock()
	defer f.feed.mu.Unlock()
	f.feed.subs = append(slices.Clone(f.feed.subs), s)
	return func() {
		f.feed.mu.Lock()
		defer f.feed.mu.Unlock()
		f.feed.subs = slices.DeleteFunc(slices.Clone(f.feed.subs), func(o *subscriber) bool { return o == s })
	}
}

func (f *fsm) read(see func(*lease.State, *authz.Roster)) uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	see(f.queue, f.roster)
	return f.index
}

// snapshot is the whole state at one moment.
type snapshot struct {
	index  uint64
	queue  *lease.Frozen
	roster []byte
}

// snapshotHeader precedes the roster and, after that, the queue: format, index of the
// last entry applied, size of the roster in bytes.
const snapshotHeader = "vizpeer queue 2 %d %d\n"

// maxRoster bounds what Restore takes into memory for the roster, in bytes.
const maxRoster = 1 << 30

// Snapshot takes the state as it is. Applying waits only for that: the queue is
// written out while it goes on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil, f.broken
	}
	var roster bytes.Buffer
	if err := f.roster.Snapshot(&roster); err != nil {
		return nil, fmt.Errorf("writing the roster's snapshot: %w", err)
	}
	return &snapshot{index: f.index, queue: f.queue.Freeze(), roster: roster.Bytes()}, nil
}

// Persist writes the snapshot to sink.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 1<<20)
	if _, err := fmt.Fprintf(w, snapshotHeader, s.index, len(s.roster)); err != nil {
		return err
	}
	if _, err := w.Write(s.roster); err != nil {
		return err
	}
	if err := s.queue.Write(w); err != nil {
		return err
	}
	return w.Flush()
}

// Release has nothing to let go.
func (*snapshot) Release() {}

// Restore replaces the whole state, or fails and leaves it as it was.
func (f *fsm) Restore(in io.ReadCloser) error {
	index, queue, roster, err := readSnapshot(in)
	if err != nil {
		return fmt.Errorf("restoring the queue from a snapshot: %w", err)
	}
	f.mu.Lock()
	f.index, f.queue, f.roster = index, queue, roster
	f.mu.Unlock()
	f.tell(Applied{Index: index, Restored: true})
	return nil
}

func readSnapshot(in io.Reader) (index uint64, queue *lease.State, roster *authz.Roster, err error) {
	r := bufio.NewReader(in)
	header, err := r.ReadSlice('\n') // at most the reader's buffer
	if err != nil {
		return 0, nil, nil, fmt.Errorf("reading its header: %w", err)
	}
	var size int64
	if _, err := fmt.Sscanf(string(header), snapshotHeader, &index, &size); err != nil {
		return 0, nil, nil, fmt.Errorf("its header %.64q is not one that this vizpeer writes: update vizpeer", header)
	}
	if size < 0 || size > maxRoster {
		return 0, nil, nil, fmt.Errorf("a roster of %d bytes is not possible", size)
	}
	// The buffer grows with what really comes, not with what the header says.
	var part bytes.Buffer
	if _, err := io.CopyN(&part, r, size); err != nil {
		return 0, nil, nil, fmt.Errorf("it is cut short: %w", err)
	}
	if roster, err = authz.Restore(&part); err != nil {
		return 0, nil, nil, err
	}
	if queue, err = lease.Restore(r); err != nil {
		return 0, nil, nil, err
	}
	return index, queue, roster, nil
}
