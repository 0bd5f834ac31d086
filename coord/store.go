package coord

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shirou/gopsutil/v4/disk"

	"vizpeer/coord/wal"
)

// store keeps raft's log and its few stable values in files that are only appended
// to, and answers a write only when it is on disk: with one sync for all entries that
// raft gives it at once. What lies where is in memory.
//
// A record of the files is a letter and what belongs to it, numbers big-endian:
//
//	l index entry           an entry of the log, in place of an older one of that index
//	d low high              the entries from low to high are gone
//	s length key value      a stable value, in place of an older one
type store struct {
	dir string
	log *wal.Log

	writing sync.Mutex // one writer at a time; taken before mu

	mu          sync.RWMutex
	at          map[uint64]wal.Place // of each entry
	first, last uint64               // 0 means that the log is empty
	stable      map[string][]byte    // also read by who holds writing alone
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
)

// errNoKey answers a missing stable value: raft compares this very text.
var errNoKey = errors.New("not found")

const (
	entryRecord  = 'l'
	deleteRecord = 'd'
	stableRecord = 's'

	entryHead = 1 + 8 // before an entry in its record
)

// openStore opens the store in dir, which no other process may have open. sync
// is false in tests alone: without it a power cut loses acknowledged commands.
func openStore(dir string, sync bool, log *slog.Logger) (*store, error) {
	s := &store{dir: dir, at: make(map[uint64]wal.Place), stable: make(map[string][]byte)}
	old := hasBadger(dir)
	if old { // what an interrupted move has written is written again
		if err := removeAll(dir, "*.log"); err != nil {
			return nil, fmt.Errorf("opening the queue's log in %s: %w", dir, err)
		}
	}
	var err error
	s.log, err = wal.Open(dir, wal.Config{NoSync: !sync, Head: s.head}, s.replay)
	if errors.Is(err, wal.ErrLocked) {
		return nil, fmt.Errorf("opening the queue's log in %s (is another vizpeer using it?): %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the queue's log in %s: %w", dir, err)
	}
	if old {
		err = s.moveFromBadger(log)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading the queue's log of an earlier version in %s: %w", dir, err), s.log.Close())
	}
	return s, nil
}

// replay takes one record of the files.
func (s *store) replay(at wal.Place, record []byte) error {
	short := fmt.Errorf("%w: a record of %d bytes", wal.ErrDamaged, len(record))
	if len(record) == 0 {
		return short
	}
	switch body := record[1:]; record[0] {
	case entryRecord:
		if len(body) < 8 {
			return short
		}
		s.place(binary.BigEndian.Uint64(body), at)
	case deleteRecord:
		if len(body) != 16 {
			return short
		}
		s.remove(binary.BigEndian.Uint64(body), binary.BigEndian.Uint64(body[8:]))
	case stableRecord:
		n, used := binary.Uvarint(body)
		if used <= 0 || n > uint64(len(body)-used) {
			return short
		}
		key, value := body[used:used+int(n)], body[used+int(n):]
		s.stable[string(key)] = slices.Clone(value)
	default:
		return fmt.Errorf("a record of the kind %q: update vizpeer on this machine", record[:1])
	}
	return nil
}

// head is what every file of the log begins with.
func (s *store) head() (records [][]byte) {
	for _, key := range slices.Sorted(maps.Keys(s.stable)) {
		records = append(records, stableValue(key, s.stable[key]))
	}
	return records
}

// Close lets the folder go.
func (s *store) Close() error { return s.log.Close() }

// FirstIndex is the index of the oldest entry, 0 for an empty log.
func (s *store) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.first, nil
}

// LastIndex is the index of the newest entry, 0 for an empty log.
func (s *store) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last, nil
}

// GetLog reads the entry of that index, or fails with [raft.ErrLogNotFound].
func (s *store) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock() // its file stays meanwhile
	at, ok := s.at[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	record, err := s.log.Read(at)
	if err == nil && len(record) < entryHead {
		err = wal.ErrDamaged
	}
	if err == nil {
		err = decodeLog(record[entryHead:], index, l)
	}
	if err != nil {
		return fmt.Errorf("reading entry %d of the queue's log: %w", index, err)
	}
	return nil
}

// StoreLog writes one entry: see StoreLogs.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// minRoom is the free disk, in bytes, below which the log takes no more: what is
// needed to make room, and to write a snapshot, stays.
const minRoom = 64 << 20

// room reports a disk that is too full for the log. Where the system does not say
// how full it is, it is taken to have room.
func (s *store) room() error {
	usage, err := disk.Usage(s.dir)
	if err == nil && usage.Free < minRoom {
		return fmt.Errorf("the disk of the queue's log, %s, is full: %d MiB are free; make room there", s.dir, usage.Free>>20)
	}
	return nil
}

// StoreLogs writes the entries, in order, and returns when they are on disk.
func (s *store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if err := s.room(); err != nil {
		return err
	}
	size := 0
	for _, l := range logs {
		size += entryHead + logHeader + len(l.Data) + len(l.Extensions)
	}
	text := make([]byte, 0, size)
	records := make([][]byte, len(logs))
	for i, l := range logs {
		from := len(text)
		text = append(text, entryRecord)
		text = binary.BigEndian.AppendUint64(text, l.Index)
		text = appendLog(text, l)
		records[i] = text[from:]
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	places, err := s.log.Append(records...)
	if err != nil {
		return fmt.Errorf("writing entries %d to %d of the queue's log: %w", logs[0].Index, logs[len(logs)-1].Index, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range logs {
		s.place(l.Index, places[i])
	}
	return nil
}

// place notes where an entry is. s.mu is held, or s is not shared yet.
func (s *store) place(index uint64, at wal.Place) {
	if len(s.at) == 0 {
		s.first, s.last = index, index
	}
	s.at[index] = at
	s.first, s.last = min(s.first, index), max(s.last, index)
}

// DeleteRange removes the entries from low to high, both included: at the head of the
// log after a snapshot, at its tail after a conflict. A power cut leaves all of them
// or none.
func (s *store) DeleteRange(low, high uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.RLock()
	low, high = max(low, s.first), min(high, s.last)
	s.mu.RUnlock()
	if high == 0 || low > high {
		return nil
	}
	record := binary.BigEndian.AppendUint64([]byte{deleteRecord}, low)
	if _, err := s.log.Append(binary.BigEndian.AppendUint64(record, high)); err != nil {
		return fmt.Errorf("deleting entries %d to %d of the queue's log: %w", low, high, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(low, high)
	oldest := ^uint64(0)
	for _, at := range s.at {
		oldest = min(oldest, at.File)
	}
	// What a dropped file said of others was about files before it.
	if err := s.log.Drop(oldest); err != nil {
		return fmt.Errorf("deleting entries %d to %d of the queue's log: %w", low, high, err)
	}
	return nil
}

// remove forgets entries. s.mu is held, or s is not shared yet.
func (s *store) remove(low, high uint64) {
	maps.DeleteFunc(s.at, func(index uint64, _ wal.Place) bool { return low <= index && index <= high })
	s.first, s.last = 0, 0
	for index := range s.at {
		if s.first == 0 || index < s.first {
			s.first = index
		}
		s.last = max(s.last, index)
	}
}

// Set writes a stable value and returns when it is on disk.
func (s *store) Set(key, value []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if _, err := s.log.Append(stableValue(string(key), value)); err != nil {
		return fmt.Errorf("writing the queue's log: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stable[string(key)] = slices.Clone(value)
	return nil
}

func stableValue(key string, value []byte) []byte {
	record := binary.AppendUvarint([]byte{stableRecord}, uint64(len(key)))
	return append(append(record, key...), value...)
}

// Get reads a stable value; a missing one is an error of the text "not found".
func (s *store) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, ok := s.stable[string(key)]
	if !ok {
		return nil, errNoKey
	}
	return slices.Clone(value), nil
}

// SetUint64 is Set for a number.
func (s *store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 is Get for a number.
func (s *store) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("the stable value %q has %d bytes, not 8: the queue's log is damaged", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// logHeader is the size of an entry before its data: term, type, time it was
// appended, length of the data. The extensions follow the data.
const logHeader = 8 + 1 + 8 + 4

// appendLog appends an entry, without its index, to v.
func appendLog(v []byte, l *raft.Log) []byte {
	v = binary.BigEndian.AppendUint64(v, l.Term)
	v = append(v, byte(l.Type))
	var at int64 // the zero time has no Unix time in nanoseconds
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	v = binary.BigEndian.AppendUint64(v, uint64(at))
	v = binary.BigEndian.AppendUint32(v, uint32(len(l.Data)))
	v = append(v, l.Data...)
	return append(v, l.Extensions...)
}

// decodeLog reads what appendLog wrote; v is l's from then on.
func decodeLog(v []byte, index uint64, l *raft.Log) error {
	if len(v) < logHeader {
		return fmt.Errorf("it has %d bytes: the queue's log is damaged", len(v))
	}
	size := uint64(binary.BigEndian.Uint32(v[17:]))
	body := v[logHeader:]
	if size > uint64(len(body)) {
		return errors.New("it is cut short: the queue's log is damaged")
	}
	*l = raft.Log{Index: index, Term: binary.BigEndian.Uint64(v), Type: raft.LogType(v[8])}
	if at := int64(binary.BigEndian.Uint64(v[9:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if size > 0 {
		l.Data = body[:size:size]
	}
	if len(body) > int(size) {
		l.Extensions = body[size:]
	}
	return nil
}

// removeAll removes the files of a folder that match any of the patterns.
func removeAll(dir string, patterns ...string) error {
	for _, pattern := range patterns {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}
