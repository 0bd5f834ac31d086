package coord

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
	"github.com/hashicorp/raft"
	"github.com/shirou/gopsutil/v4/disk"
)

// store keeps raft's log and its few stable values in a Badger of its own, and
// answers a write only when it is on disk.
//
// Keys: 'l' and the index, big-endian, so that key order is log order; 's' and
// raft's own key.
type store struct {
	db    *badger.DB
	least uint64 // see minRoom

	// The bounds are kept here because a scan for the first entry would step
	// over every entry ever deleted. 0 means that the log is empty.
	mu          sync.RWMutex
	first, last uint64
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
)

// errNoKey answers a missing stable value: raft compares this very text.
var errNoKey = errors.New("not found")

const (
	entryPrefix  = 'l'
	stablePrefix = 's'
)

// openStore opens the store in dir, which no other process may have open. sync
// is false in tests alone: without it a power cut loses acknowledged commands.
func openStore(dir string, sync bool, log *slog.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the queue's log: %w", err)
	}
	o := badger.DefaultOptions(dir)
	o.Logger = badgerLogger{log}
	o.SyncWrites = sync
	o.MetricsEnabled = false
	// The log is written once, read seldom and small: no caches, no compression,
	// small tables. Only entries above the threshold go to the value log.
	o.MemTableSize = 16 << 20
	o.ValueThreshold = 64 << 10
	o.ValueLogFileSize = 64 << 20
	o.NumCompactors = 2
	o.Compression = options.None
	o.BlockCacheSize = 0
	o.DetectConflicts = false
	db, err := openBadger(o)
	if err != nil {
		return nil, fmt.Errorf("opening the queue's log in %s (is another vizpeer using it?): %w", dir, err)
	}
	s := &store{db: db, least: minRoom}
	if s.first, err = s.seek(0, false); err == nil {
		s.last, err = s.seek(^uint64(0), true)
	}
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("reading the queue's log in %s: %w", dir, err)
	}
	return s, nil
}

// openBadger opens a database, also one whose process was killed just when it had made a
// file and had not sized it yet: Badger fails at each such file, having made it good, as
// if that were an error.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	for range 8 {
		if db, err = badger.Open(o); err == nil || !strings.Contains(err.Error(), z.NewFile.Error()) {
			return db, err
		}
	}
	return db, err
}

// Close writes out what is buffered and lets the folder go.
func (s *store) Close() error { return s.db.Close() }

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
	err := s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(entryKey(index))
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error { return decodeLog(v, index, l) })
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return raft.ErrLogNotFound
	}
	if err != nil {
		return fmt.Errorf("reading entry %d of the queue's log: %w", index, err)
	}
	return nil
}

// StoreLog writes one entry: see StoreLogs.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// minRoom is the free disk, in bytes, below which the log takes no more. Badger
// writes through a memory map, where a full disk is no error but the end of the
// process.
const minRoom = 64 << 20

// room reports a disk that is too full for the log. Where the system does not say
// how full it is, it is taken to have room.
func (s *store) room() error {
	usage, err := disk.Usage(s.db.Opts().Dir)
	if err == nil && usage.Free < s.least {
		return fmt.Errorf("the disk of the queue's log, %s, is full: %d MiB are free; make room there", s.db.Opts().Dir, usage.Free>>20)
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
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	low, high := logs[0].Index, logs[0].Index
	for _, l := range logs {
		if err := batch.Set(entryKey(l.Index), encodeLog(l)); err != nil {
			return fmt.Errorf("writing entry %d of the queue's log: %w", l.Index, err)
		}
		low, high = min(low, l.Index), max(high, l.Index)
	}
	if err := batch.Flush(); err != nil {
		return fmt.Errorf("writing entries %d to %d of the queue's log: %w", low, high, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == 0 || low < s.first {
		s.first = low
	}
	s.last = max(s.last, high)
	return nil
}

// DeleteRange removes the entries from low to high, both included.
//
// Raft cuts the log at its head after a snapshot and at its tail after a
// conflict. A power cut half-way must leave no hole: a tail is therefore
// removed from its end, and a head from its beginning.
func (s *store) DeleteRange(low, high uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	low, high = max(low, s.first), min(high, s.last)
	if s.last == 0 || low > high {
		return nil
	}
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	tail := high == s.last
	for n := uint64(0); n <= high-low; n++ {
		index := low + n
		if tail {
			index = high - n
		}
		if err := batch.Delete(entryKey(index)); err != nil {
			return fmt.Errorf("deleting entry %d of the queue's log: %w", index, err)
		}
	}
	if err := batch.Flush(); err != nil {
		return fmt.Errorf("deleting entries %d to %d of the queue's log: %w", low, high, err)
	}
	var err error
	if low == s.first {
		if s.first, err = s.seek(high, false); err != nil {
			return err
		}
	}
	if tail {
		if s.last, err = s.seek(low, true); err != nil {
			return err
		}
	}
	return nil
}

// seek finds the first entry from index on, or the last one up to index; 0 if
// there is none.
func (s *store) seek(index uint64, backwards bool) (found uint64, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		o.Reverse = backwards
		o.Prefix = []byte{entryPrefix}
		it := txn.NewIterator(o)
		defer it.Close()
		if it.Seek(entryKey(index)); it.Valid() {
			found = binary.BigEndian.Uint64(it.Item().Key()[1:])
		}
		return nil
	})
	return found, err
}

// Set writes a stable value and returns when it is on disk.
func (s *store) Set(key, value []byte) error {
	return s.db.Update(func(txn *badger.Txn) error { return txn.Set(stableKey(key), value) })
}

// Get reads a stable value; a missing one is an error of the text "not found".
func (s *store) Get(key []byte) (value []byte, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(stableKey(key))
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, errNoKey
	}
	return value, err
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

func entryKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{entryPrefix}, index)
}

func stableKey(key []byte) []byte { return append([]byte{stablePrefix}, key...) }

// logHeader is the size of an entry before its data: term, type, time it was
// appended, length of the data. The extensions follow the data.
const logHeader = 8 + 1 + 8 + 4

func encodeLog(l *raft.Log) []byte {
	v := make([]byte, 0, logHeader+len(l.Data)+len(l.Extensions))
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
	// v is Badger's own memory: copy what outlives the transaction.
	if size > 0 {
		l.Data = append([]byte(nil), body[:size]...)
	}
	if len(body) > int(size) {
		l.Extensions = append([]byte(nil), body[size:]...)
	}
	return nil
}

// badgerLogger passes on what Badger says of trouble; the rest is noise.
type badgerLogger struct{ log *slog.Logger }

func (b badgerLogger) Errorf(f string, args ...any) {
	b.log.Error("badger: " + fmt.Sprintf(f, args...))
}
func (b badgerLogger) Warningf(f string, args ...any) {
	b.log.Warn("badger: " + fmt.Sprintf(f, args...))
}
func (badgerLogger) Infof(string, ...any)  {}
func (badgerLogger) Debugf(string, ...any) {}
