package blobs

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"vizpeer/blobs/pack"
)

// journal remembers blocks that are written and not yet in the index, so that Open
// finds them again after kill -9: what a fetch brought in its last moments is not
// fetched twice. It is a hint and nothing rests on it. It is never synced, what it
// says is believed only where the bytes have the hash it names, and what does not
// fit into it is left out.
//
// Two files take turns: while one is written to, the other waits until all that it
// names is in the index, and is emptied.
type journal struct {
	log *slog.Logger

	mu    sync.Mutex
	turn  int // of files, the one written to
	files [2]journalFile
}

type journalFile struct {
	f       *os.File // nil where it could not be opened
	size    int64
	pending int // batches named in it and not settled
}

const (
	// journalTurn is how large a file grows before the other takes over, and
	// journalMost how large it may grow while that is not empty: it then names
	// some 400 MiB of blocks, which Open reads in a second or two.
	journalTurn = 64 << 10
	journalMost = 512 << 10

	journalRecord = sha256.Size + placeBytes
)

func journalPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("journal.%d", i)) }

// openJournal opens the journal in dir, emptied. Where that fails there is none.
func openJournal(dir string, log *slog.Logger) *journal {
	j := &journal{log: log}
	for i := range j.files {
		f, err := os.OpenFile(journalPath(dir, i), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
		if err != nil {
			log.Debug("no journal of blocks under way", "err", err)
			continue
		}
		j.files[i].f = f
	}
	return j
}

func (j *journal) close() {
	for i := range j.files {
		if f := j.files[i].f; f != nil {
			_ = f.Close()
		}
	}
}

// bytes is what the journal takes of the disk.
func (j *journal) bytes() (sum int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.files {
		sum += (j.files[i].size + pack.Align - 1) &^ (pack.Align - 1)
	}
	return sum
}

// note names the blocks of a batch that has been written at e. settle, with what
// note returned, must follow.
func (j *journal) note(e *pack.Extent, b *batch) (file int) {
	records := make([]byte, 0, len(b.blocks)*journalRecord)
	at := e.Offset + int64(b.skip)
	for _, x := range b.blocks {
		records = append(append(records, x.digest[:]...), place{e.File, at, x.size}.bytes()...)
		at += int64(x.size)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if other := 1 - j.turn; j.files[j.turn].size >= journalTurn && j.files[other].size == 0 {
		j.turn = other
	}
	t := &j.files[j.turn]
	t.pending++
	if t.f != nil && t.size+int64(len(records)) <= journalMost {
		n, err := t.f.Write(records)
		t.size += int64(n)
		if err != nil {
			j.log.Debug("blocks under way could not be noted", "err", err)
		}
	}
	return j.turn
}

// settle says that the index knows a batch, or never will.
func (j *journal) settle(file int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := &j.files[file]
	if t.pending--; t.pending == 0 && t.size > 0 && t.f.Truncate(0) == nil {
		t.size = 0
	}
}

// adopt enters the blocks into the index that an earlier process wrote and had no
// time to enter. Where that fails they are garbage, as without a journal.
func (s *Store) adopt() {
	found := s.noted()
	if len(found) == 0 {
		return
	}
	// As with any other block: first durable, then in the index.
	err := s.packs.SyncFiles(filesOf(found)...)
	if err == nil {
		err = s.index.update(adding, func(c *change) error {
			for _, a := range found {
				if err := c.enter(a.digest, a.place); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		s.log.Warn("blocks that an earlier process had written are not used", "blocks", len(found), "err", err)
		return
	}
	s.log.Info("found blocks again that an earlier process had written", "blocks", len(found))
}

// noted lists the blocks that the journal names, are where it says, and are new to
// the index.
func (s *Store) noted() (found []adopted) {
	for i := range 2 {
		records, err := os.ReadFile(journalPath(s.dir, i))
		if err != nil {
			continue // mostly there is none
		}
		for len(records) >= journalRecord {
			a := adopted{digest: digest(records[:sha256.Size])}
			a.place, err = parsePlace(records[sha256.Size:journalRecord])
			if records = records[journalRecord:]; err == nil && s.isThere(a) {
				found = append(found, a)
			}
		}
	}
	return found
}

// adopted is a block found in a pack file.
type adopted struct {
	digest digest
	place  place
}

// isThere tells whether a block that the index does not know lies where it says.
func (s *Store) isThere(a adopted) bool {
	held, err := s.has(a.digest)
	if err != nil || held[0] || a.place.length == 0 {
		return false
	}
	buf := readPool.Get().(*[]byte)
	defer readPool.Put(buf)
	*buf = slices.Grow((*buf)[:0], a.place.length)[:a.place.length]
	err = s.packs.ReadAt(*buf, a.place.file, a.place.offset)
	return err == nil && sha256.Sum256(*buf) == a.digest
}

func filesOf(found []adopted) []uint32 {
	ids := make([]uint32, len(found))
	for i, a := range found {
		ids[i] = a.place.file
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
