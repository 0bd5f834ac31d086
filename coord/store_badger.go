package coord

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"
)

// Earlier versions kept the log in a Badger database: entries under 'l' and the
// index, big-endian, stable values under 's' and raft's own key.

// badgerManifest tells a folder of Badger's; it goes before the others.
const badgerManifest = "MANIFEST"

func hasBadger(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, badgerManifest))
	return err == nil
}

// moveBatch is how many entries are written at once.
const moveBatch = 256

// moveFromBadger takes over what an earlier version wrote into the same folder, and
// removes that once it is all here.
func (s *store) moveFromBadger(log *slog.Logger) error {
	o := badger.DefaultOptions(s.dir)
	o.Logger = badgerLogger{log}
	o.ValueLogFileSize = 64 << 20
	o.MemTableSize = 16 << 20
	db, err := badger.Open(o)
	if err != nil {
		return err
	}
	err = db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		var logs []*raft.Log
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().KeyCopy(nil)
			value, err := it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			switch {
			case key[0] == stableRecord:
				err = s.Set(key[1:], value)
			case key[0] == entryRecord && len(key) == 9:
				l := new(raft.Log)
				if err = decodeLog(value, binary.BigEndian.Uint64(key[1:]), l); err != nil {
					break
				}
				if logs = append(logs, l); len(logs) == moveBatch {
					err = s.StoreLogs(logs)
					logs = nil
				}
			default:
				err = fmt.Errorf("the key %q is not known", key)
			}
			if err != nil {
				return err
			}
		}
		return s.StoreLogs(logs)
	})
	if err != nil {
		_ = db.Close()
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	log.Info("the queue's log was moved into files of its own", "dir", s.dir, "entries", len(s.at))
	if err := removeAll(s.dir, badgerManifest); err != nil {
		return err
	}
	if d, err := os.Open(s.dir); err == nil { // what tells of the others must not outlive them
		_ = d.Sync() // not on Windows
		_ = d.Close()
	}
	return removeAll(s.dir, "KEYREGISTRY", "DISCARD", "LOCK", "*.vlog", "*.mem", "*.sst")
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
