package blobs

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/shirou/gopsutil/v4/disk"
)

// The index writes through memory maps, where a full disk is not an error but a
// SIGBUS, so that every write asks for room first. Removing something is a write
// as well: a part of the disk is held back for that.
const (
	// indexRoom is how many bytes of the disk stay free for the index: what it has
	// taken it writes again, as a table and wherever tables are merged, when it pleases.
	indexRoom    = 64 << 20
	leastBallast = 16 << 20
	mostBallast  = 32 << 20
)

// purpose is what a write to the index is for.
type purpose bool

const (
	adding  purpose = false
	freeing purpose = true // makes room, at once or when GC comes
)

// ballast is a file that holds a part of the disk. It is given up where the disk is
// full, so that there is room to make room, and made again when there is plenty.
type ballast struct {
	dir  string // of the index
	size int64  // 0: there is none, and no write is refused
	log  *slog.Logger
	free func() int64 // bytes of the disk

	mu   sync.Mutex
	held bool
	vain bool // it could not be made
}

func newBallast(dir string, size int64, log *slog.Logger) *ballast {
	b := &ballast{dir: dir, size: size, log: log}
	b.free = b.diskFree
	fi, err := os.Stat(b.path())
	b.held = err == nil && fi.Size() == size && allocated(fi) >= size
	if !b.held {
		_ = os.Remove(b.path()) // of another size, or half made
	}
	return b
}

func (b *ballast) path() string { return filepath.Join(b.dir, "ballast") }

// ask says ErrDiskFull where the disk has no room for a write to the index.
func (b *ballast) ask(why purpose) error {
	if b.size == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.free()
	switch {
	case free >= indexRoom:
		if !b.held && !b.vain && free >= indexRoom+b.size {
			b.make()
		}
		return nil
	case why == adding:
		return b.full(free, indexRoom)
	}
	if free < b.size && b.held {
		b.held = false
		if err := os.Remove(b.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		b.log.Info("the disk is full; what was held back on it is used to make room", "dir", b.dir, "bytes", b.size)
		free = b.free()
	}
	if free < b.size/3 { // some log, and a table made of it
		return b.full(free, b.size/3)
	}
	return nil
}

// diskFree is enough where nobody can tell.
func (b *ballast) diskFree() int64 {
	u, err := disk.Usage(b.dir)
	if err != nil {
		b.log.Debug("cannot tell the free space", "dir", b.dir, "err", err)
		return indexRoom
	}
	return int64(u.Free)
}

func (b *ballast) full(free, room int64) error {
	const need = 1 << 20 // about the most that is written at once
	return &diskFullError{dir: filepath.Dir(b.dir), free: uint64(free), need: need, keep: uint64(room - need)}
}

// lacking is how many bytes the folder will grow by when the ballast is made again.
func (b *ballast) lacking() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held || b.vain {
		return 0
	}
	return b.size
}

// make takes the room. Where that fails it is left at that: the rest works without.
func (b *ballast) make() {
	f, err := os.OpenFile(b.path(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(preallocate(f, b.size), f.Close())
	}
	if err != nil {
		b.vain = true
		b.log.Warn("no room can be held back on the disk, so that none may be left to make room where it is full", "dir", b.dir, "err", err)
		_ = os.Remove(b.path()) // it may not have been made at all
		return
	}
	b.held = true
}

// fill writes n bytes that no file system can leave out.
func fill(f *os.File, n int64) error {
	_, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), n)
	return err
}
