package blobs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
)

// The index is a small Badger database beside the pack files:
//
//	b digest → where the block lies
//	f file   → how many blocks of a pack file it knows, and their bytes
//
// and the keys of id.go, pins.go, roots.go and verify.go. A block's key is written when
// its bytes are durable, and no file's count ever differs from its keys.
const (
	blockPrefix = 'b'
	filePrefix  = 'f'
)

// place is where a block lies.
type place struct {
	file   uint32
	offset int64 // below 4 GiB
	length int   // at most MaxBlockSize
}

const placeBytes = 12

func (p place) bytes() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, placeBytes), p.file)
	b = binary.BigEndian.AppendUint32(b, uint32(p.offset))
	return binary.BigEndian.AppendUint32(b, uint32(p.length))
}

func parsePlace(b []byte) (place, error) {
	if len(b) != placeBytes {
		return place{}, fmt.Errorf("index entry of %d bytes; the index is damaged", len(b))
	}
	p := place{binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint32(b[4:])), int(binary.BigEndian.Uint32(b[8:]))}
	if p.length > MaxBlockSize {
		return place{}, fmt.Errorf("index entry for %d bytes; the index is damaged", p.length)
	}
	return p, nil
}

// count is a number of blocks and their bytes.
type count struct {
	blocks int64
	bytes  int64
}

func (c *count) add(blocks int64, bytes int) {
	c.blocks += blocks
	c.bytes += int64(bytes)
}

// Whatever is written to it asks its ballast first.
type index struct {
	dir     string
	db      *badger.DB
	ballast *ballast

	mu sync.Mutex // held while blocks are entered, moved or deleted

	counted sync.Mutex // guards what follows
	files   map[uint32]count
	all     count
}

// openBadger opens a database, also one whose process was killed just when it had made a
// file and had not sized it yet: Badger fails at each such file, having made it good, as
// if that were an error. The queue's log does the same.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	for range 8 {
		if db, err = badger.Open(o); err == nil || !strings.Contains(err.Error(), z.NewFile.Error()) {
			return db, err
		}
	}
	return db, err
}

// openIndex fails if another process has it open.
func openIndex(dir string, ballast *ballast) (*index, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := ballast.ask(freeing); err != nil { // what the log holds becomes a table
		return nil, err
	}
	db, err := openBadger(indexOptions(dir))
	if err != nil {
		return nil, err
	}
	x := &index{dir: dir, db: db, ballast: ballast, files: map[uint32]count{}}
	err = eachKey(context.Background(), db, []byte{filePrefix}, nil, func(it *badger.Item) error {
		k := it.Key()
		if len(k) != 5 {
			return fmt.Errorf("file key of %d bytes; the index is damaged", len(k))
		}
		return it.Value(func(v []byte) error {
			if len(v) != 16 {
				return fmt.Errorf("file count of %d bytes; the index is damaged", len(v))
			}
			c := count{int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:]))}
			x.files[binary.BigEndian.Uint32(k[1:])] = c
			x.all.blocks += c.blocks
			x.all.bytes += c.bytes
			return nil
		})
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return x, nil
}

func indexOptions(dir string) badger.Options {
	o := badger.DefaultOptions(dir)
	o.Logger = nil
	o.Compression = options.None // digests do not compress
	o.DetectConflicts = false    // index.mu does it
	o.NumVersionsToKeep = 1
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.MetricsEnabled = false
	o.MemTableSize = 4 << 20 // some 30,000 blocks
	o.NumMemtables = 2
	o.NumCompactors = 2
	o.ValueThreshold = 64 << 10 // nothing is large enough for the value log
	o.ValueLogFileSize = 16 << 20
	o.SyncWrites = true
	return o
}

// close leaves the database as it is where the disk is full, as a kill would:
// closing it takes room, and nothing is lost without.
func (x *index) close() error {
	if err := x.ballast.ask(freeing); err != nil {
		return err
	}
	return x.db.Close()
}

// write runs f in a transaction, not on blocks, and commits it, durably. Errors:
// f's, ErrDiskFull.
func (x *index) write(why purpose, f func(*badger.Txn) error) error {
	if err := x.ballast.ask(why); err != nil {
		return err
	}
	return x.db.Update(f)
}

// find calls f with the place of each of ds that is known, and its number.
func (x *index) find(ds []digest, f func(i int, p place)) error {
	return x.db.View(func(t *badger.Txn) error {
		for i, d := range ds {
			p, err := get(t, d)
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			f(i, p)
		}
		return nil
	})
}

func get(t *badger.Txn, d digest) (p place, err error) {
	it, err := t.Get(d.key())
	if err != nil {
		return place{}, err
	}
	err = it.Value(func(v []byte) error { p, err = parsePlace(v); return err })
	return p, err
}

// where is find for one block; ErrNotFound if it is not known.
func (x *index) where(d digest) (place, error) {
	p, ok := place{}, false
	err := x.find([]digest{d}, func(_ int, at place) { p, ok = at, true })
	if err == nil && !ok {
		err = ErrNotFound
	}
	return p, err
}

// each calls f for every block whose digest is not below from, in order.
func (x *index) each(ctx context.Context, from digest, f func(digest, place) error) error {
	return eachKey(ctx, x.db, []byte{blockPrefix}, from.key(), func(it *badger.Item) error {
		return it.Value(func(v []byte) error {
			p, err := parsePlace(v)
			if err != nil {
				return err
			}
			return f(digest(it.Key()[1:]), p)
		})
	})
}

func eachKey(ctx context.Context, db *badger.DB, prefix, from []byte, f func(*badger.Item) error) error {
	return db.View(func(t *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		o.Prefix = prefix
		it := t.NewIterator(o)
		defer it.Close()
		if from == nil {
			from = prefix
		}
		for it.Seek(from); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(it.Item()); err != nil {
				return err
			}
		}
		return nil
	})
}

// change is one transaction on the blocks, or several if it is large.
type change struct {
	x     *index
	why   purpose
	t     *badger.Txn
	files map[uint32]count
	all   count
	ops   int // in t
}

// update runs f alone and commits what it changed, durably. After an error some
// of it may have been, though never without the counts. Errors: f's, ErrDiskFull.
func (x *index) update(why purpose, f func(*change) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := &change{x: x, why: why, t: x.db.NewTransaction(true), files: map[uint32]count{}, all: x.counts()}
	defer func() { c.t.Discard() }()
	if err := f(c); err != nil {
		return err
	}
	return c.commit()
}

func (c *change) file(id uint32) count {
	if n, ok := c.files[id]; ok {
		return n
	}
	return c.x.fileCount(id)
}

func (c *change) commit() error {
	if c.ops == 0 {
		return nil
	}
	if err := c.x.ballast.ask(c.why); err != nil {
		return err
	}
	for id, n := range c.files {
		key := binary.BigEndian.AppendUint32([]byte{filePrefix}, id)
		var err error
		if n.blocks == 0 {
			err = c.t.Delete(key)
		} else {
			v := binary.BigEndian.AppendUint64(nil, uint64(n.blocks))
			err = c.t.Set(key, binary.BigEndian.AppendUint64(v, uint64(n.bytes)))
		}
		if err != nil {
			return err
		}
	}
	if err := c.t.Commit(); err != nil {
		return err
	}
	c.x.counted.Lock()
	for id, n := range c.files {
		if c.x.files[id] = n; n.blocks == 0 {
			delete(c.x.files, id)
		}
	}
	c.x.all = c.all
	c.x.counted.Unlock()
	c.t, c.files, c.ops = c.x.db.NewTransaction(true), map[uint32]count{}, 0
	return nil
}

// changeBlocks is how many blocks go into one transaction. Badger bounds them, by
// the size of its memtable.
const changeBlocks = 4096

// step makes sure that there is space for one more block.
func (c *change) step() error {
	if c.ops == changeBlocks {
		if err := c.commit(); err != nil {
			return err
		}
	}
	c.ops++
	return nil
}

func (c *change) set(d digest, p place) error {
	if err := c.t.Set(d.key(), p.bytes()); err != nil {
		return err
	}
	n := c.file(p.file)
	n.add(1, p.length)
	c.files[p.file] = n
	c.all.add(1, p.length)
	return nil
}

func (c *change) unset(p place) {
	n := c.file(p.file)
	n.add(-1, -p.length)
	c.files[p.file] = n
	c.all.add(-1, -p.length)
}

// enter records a block, unless it is known: of two writers the second wrote garbage.
func (c *change) enter(d digest, p place) error {
	if err := c.step(); err != nil {
		return err
	}
	if _, err := get(c.t, d); err == nil {
		return nil
	} else if !errors.Is(err, badger.ErrKeyNotFound) {
		return err
	}
	return c.set(d, p)
}

// move records that a block has been copied, if it still is where it was.
func (c *change) move(d digest, from, to place) error {
	if err := c.step(); err != nil {
		return err
	}
	if at, err := get(c.t, d); errors.Is(err, badger.ErrKeyNotFound) || err == nil && at != from {
		return nil
	} else if err != nil {
		return err
	}
	c.unset(from)
	return c.set(d, to)
}

// remove forgets a block and returns where it was, or a place of length -1.
func (c *change) remove(d digest) (place, error) {
	if err := c.step(); err != nil {
		return place{}, err
	}
	at, err := get(c.t, d)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return place{length: -1}, nil
	}
	if err != nil {
		return at, err
	}
	if err := c.t.Delete(d.key()); err != nil {
		return at, err
	}
	c.unset(at)
	return at, nil
}

// counts are the blocks of all files.
func (x *index) counts() count {
	x.counted.Lock()
	defer x.counted.Unlock()
	return x.all
}

func (x *index) fileCount(id uint32) count {
	x.counted.Lock()
	defer x.counted.Unlock()
	return x.files[id]
}
