package coord

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
)

// fsm applies committed entries to the queue and the roster. Raft calls Apply,
// Snapshot and Restore from one goroutine; readers come from any.
type fsm struct {
	mu     sync.RWMutex
	index  uint64    // of the last entry applied
	at     time.Time // its own time; zero after a restart
	queue  *lease.State
	roster *authz.Roster
	trail  *authz.Trail
	level  atomic.Int64 // the farm's; written under mu
	ledger *ledger      // where the trail's records go; nil in tests alone

	feed struct {
		mu   sync.Mutex
		subs []*subscriber // copied on change, so that delivery needs no lock
	}

	// broken is why this machine cannot go on with the log. Once it is set
	// nothing more is applied or snapshotted: the log keeps what a newer vizpeer
	// will read. onBreak is told once.
	broken  error
	onBreak func(error)
	members func() // called when who holds the log has changed; nil: nobody cares
}

// subscriber is a pointer so that equal functions are told apart.
type subscriber struct{ told func(Applied) }

// outcome is what Apply answers through raft to the one who asked.
type outcome struct {
	applied Applied
	err     error
}

var _ raft.ConfigurationStore = (*fsm)(nil)

func newFSM(onBreak func(error)) *fsm {
	f := &fsm{queue: lease.NewState(), roster: authz.NewRoster(), trail: new(authz.Trail), onBreak: onBreak}
	f.level.Store(level.Unsaid)
	return f
}

// Apply carries out one committed entry.
func (f *fsm) Apply(l *raft.Log) any {
	o := f.apply(l)
	if o.err == nil || o.applied.Audited {
		f.tell(o.applied)
	}
	return o
}

// StoreConfiguration hears who holds the log; raft itself keeps it.
func (f *fsm) StoreConfiguration(uint64, raft.Configuration) {
	if f.members != nil {
		f.members()
	}
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
	switch {
	case e.Queue != nil:
		o.applied.At = e.Queue.At
		o.applied.Queue, o.err = f.queue.Apply(*e.Queue)
	case e.Roster != nil:
		o.applied.At = e.Roster.At
		o.applied.Roster, o.err = f.roster.Apply(*e.Roster)
	case e.Seal != nil:
		o.err = f.seal(*e.Seal)
	case e.Raise != nil:
		o.applied.At = e.Raise.At
		if to := int64(e.Raise.Level); to > f.level.Load() { // else it was proposed twice
			f.level.Store(to)
			o.applied.Level = e.Raise.Level
		}
	default:
		o.applied.At = e.Audit.At
	}
	if !o.applied.At.IsZero() {
		f.at = o.applied.At
	}
	if e.Audit != nil {
		// With the change that it is about: there is never one without the other.
		became := outcomeOf(o.err)
		if e.Queue == nil && e.Roster == nil {
			became = e.Audit.Outcome
		}
		deed := e.Audit.Deed
		if again := new(lease.Repeated); errors.As(o.err, &again) {
			deed.Object = string(again.Job) // not the one that it would have become
		}
		f.trail.Add(o.applied.At, deed, became)
		o.applied.Audited = true
	}
	return o
}

// latest is the farm's time when the last entry was made, as far as is known: after a
// restart, when something of what is remembered happened last. It is zero in a new farm.
func (f *fsm) latest() (at time.Time) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.at.IsZero() {
		return f.at
	}
	later := func(t time.Time) {
		if t.After(at) {
			at = t
		}
	}
	for _, m := range f.roster.Members() {
		later(m.JoinedAt)
		later(f.roster.LastSeen(m.ID))
	}
	for _, j := range f.queue.Jobs() {
		later(j.Served)
		later(j.Ended)
	}
	return at
}

// seal puts a leader's signatures to records and moves those to the disk. Where that
// fails they stay in memory, and in the snapshots, until it succeeds.
func (f *fsm) seal(s authz.Seal) error {
	if !f.roster.IsCoordinator(s.Signer) {
		return fmt.Errorf("%w: %s is no coordinator", authz.ErrSeal, s.Signer.Short())
	}
	if err := f.trail.Seal(s); err != nil {
		return err
	}
	f.write()
	return nil
}

// write moves what is signed to the disk.
func (f *fsm) write() {
	if f.ledger != nil && f.ledger.append(f.trail.Signed()) {
		f.trail.Store()
	}
}

// audit shows the end of the audit as it is now.
func (f *fsm) audit(see func(*authz.Trail)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	see(f.trail)
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
	level  int
	index  uint64
	queue  *lease.Frozen
	roster []byte
	trail  []byte
	ledger *ledger
}

// snapshotHeader precedes the roster, the end of the audit and the queue: format, the
// farm's level, index of the last entry applied, sizes of the roster and of the audit in
// bytes. Format 3 has no level, which is [level.Unsaid], and is written as long as that
// is the farm's; format 2 knew no audit either. A level that is not known tells that there
// may be more in the snapshot than this program would see.
const (
	snapshotHeader  = "vizpeer queue 4 %d %d %d %d\n"
	snapshotHeader3 = "vizpeer queue 3 %d %d %d\n"
	snapshotHeader2 = "vizpeer queue 2 %d %d\n"
)

// maxRoster bounds what Restore takes into memory for the roster, and for the end of
// the audit, in bytes.
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
	trail, err := json.Marshal(f.trail.State())
	if err != nil {
		return nil, fmt.Errorf("writing the audit's snapshot: %w", err)
	}
	return &snapshot{level: int(f.level.Load()), index: f.index, queue: f.queue.Freeze(), roster: roster.Bytes(), trail: trail, ledger: f.ledger}, nil
}

// Persist writes the snapshot to sink. The log is cut behind it: records that came of
// it must be on disk for good before.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if s.ledger != nil {
		if err := s.ledger.flush(); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 1<<20)
	header := fmt.Sprintf(snapshotHeader, s.level, s.index, len(s.roster), len(s.trail))
	if s.level <= level.Unsaid {
		header = fmt.Sprintf(snapshotHeader3, s.index, len(s.roster), len(s.trail))
	}
	if _, err := w.WriteString(header); err != nil {
		return err
	}
	for _, part := range [][]byte{s.roster, s.trail} {
		if _, err := w.Write(part); err != nil {
			return err
		}
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
	s, err := readSnapshot(in)
	if err != nil {
		err = fmt.Errorf("restoring the queue from a snapshot: %w", err)
		f.mu.Lock()
		defer f.mu.Unlock()
		if errors.Is(err, errTooNew) && f.broken == nil && f.onBreak != nil {
			f.broken = err // the leader would send it again and again
			f.onBreak(err)
		}
		return err
	}
	f.mu.Lock()
	f.become(s)
	f.write()
	f.mu.Unlock()
	f.tell(Applied{Index: s.index, Restored: true})
	return nil
}

// become takes over what a snapshot holds.
func (f *fsm) become(s restored) {
	f.index, f.queue, f.roster, f.trail = s.index, s.queue, s.roster, s.trail
	f.level.Store(int64(s.level))
}

// restored is what a snapshot holds.
type restored struct {
	level  int
	index  uint64
	queue  *lease.State
	roster *authz.Roster
	trail  *authz.Trail
}

func readSnapshot(in io.Reader) (s restored, err error) {
	r := bufio.NewReader(in)
	s, end, err := readFront(r)
	if err != nil {
		return s, err
	}
	if s.trail, err = authz.RestoreTrail(end); err != nil {
		return s, err
	}
	s.queue, err = lease.Restore(r)
	return s, err
}

// readEnd reads of a snapshot where its audit ends.
func readEnd(r *bufio.Reader) (end authz.TrailState, err error) {
	_, end, err = readFront(r)
	return end, err
}

// readFront reads what of a snapshot stands before the queue.
func readFront(r *bufio.Reader) (s restored, end authz.TrailState, err error) {
	header, err := r.ReadSlice('\n') // at most the reader's buffer
	if err != nil {
		return s, end, fmt.Errorf("reading its header: %w", err)
	}
	size, trail, err := s.readHeader(string(header))
	if err != nil {
		return s, end, err
	}
	if size < 0 || size > maxRoster || trail < 0 || trail > maxRoster {
		return s, end, fmt.Errorf("a roster of %d bytes and an audit of %d are not possible", size, trail)
	}
	// The buffer grows with what really comes, not with what the header says.
	var part bytes.Buffer
	take := func(size int64) error {
		part.Reset()
		if _, err := io.CopyN(&part, r, size); err != nil {
			return fmt.Errorf("it is cut short: %w", err)
		}
		return nil
	}
	if err := take(size); err != nil {
		return s, end, err
	}
	if s.roster, err = authz.Restore(&part); err != nil {
		return s, end, err
	}
	if err := take(trail); err != nil {
		return s, end, err
	}
	if trail > 0 {
		d := json.NewDecoder(&part)
		d.DisallowUnknownFields()
		if err := d.Decode(&end); err != nil {
			return s, end, fmt.Errorf("reading the end of the audit: %w", err)
		}
	}
	return s, end, nil
}

// readHeader reads a header of any format, and returns the sizes of the roster and of the
// audit.
func (s *restored) readHeader(header string) (roster, trail int64, err error) {
	s.level = level.Unsaid
	if _, err := fmt.Sscanf(header, snapshotHeader, &s.level, &s.index, &roster, &trail); err == nil {
		if s.level <= level.Unsaid || s.level > level.Known {
			return 0, 0, tooNew("its level", s.level)
		}
		return roster, trail, nil
	}
	s.level = level.Unsaid
	if _, err := fmt.Sscanf(header, snapshotHeader3, &s.index, &roster, &trail); err == nil {
		return roster, trail, nil
	}
	if _, err := fmt.Sscanf(header, snapshotHeader2, &s.index, &roster); err == nil {
		return roster, 0, nil
	}
	return 0, 0, fmt.Errorf("its header %.64q is not one that this vizpeer reads: %w", header, errTooNew)
}
