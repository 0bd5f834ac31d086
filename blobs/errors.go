package blobs

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"github.com/shirou/gopsutil/v4/disk"
)

// The errors a caller can tell apart with errors.Is. Every error this package
// returns wraps one of them or a context, disk or Badger error.
var (
	// ErrNotFound: a block, a path or a pin is not in this store.
	ErrNotFound = errors.New("not found in the local store")
	// ErrBadPath: a name that not every machine of a farm could hold, or that
	// tries to leave its folder.
	ErrBadPath = errors.New("path not allowed")
	// ErrBadNode: content that is well hashed but not shaped as this package
	// writes it: a symlink, an unknown codec, sizes that do not add up.
	ErrBadNode = errors.New("content is malformed")
	// ErrCorrupt: a stored block no longer matches its hash. The block has been
	// removed, so fetching the same root again repairs it.
	ErrCorrupt = errors.New("stored block is corrupt")
	// ErrStalled: a fetch (package swarm) got nothing for too long.
	ErrStalled = errors.New("fetch stalled")
	// ErrDiskFull: the disk is full, or writing would leave less than Config.MinFree.
	ErrDiskFull = errors.New("disk is full")
	// ErrNoRoom: the store's quota is used up by what may not be evicted.
	ErrNoRoom = errors.New("no room in the content store")
	// ErrTooLarge: a block, a tree or a fetch is over its limit.
	ErrTooLarge = errors.New("too large")
)

// errorDiskFullWindows is ERROR_DISK_FULL, which the syscall package does not
// map to ENOSPC.
const errorDiskFullWindows = syscall.Errno(112)

// diskFullError is the ErrDiskFull of one folder. People read it who know nothing
// of blocks and trees: it names the place, the lack and the next step.
type diskFullError struct {
	dir        string
	free       uint64 // bytes
	need, keep uint64 // bytes to be written and to stay free; 0 where the system refused
	cause      error  // the system's own, or nil
}

func (e *diskFullError) Error() string {
	switch {
	case errors.Is(e.cause, syscall.EDQUOT):
		return fmt.Sprintf("%v: the disk quota for %s is used up; make room there and try again", ErrDiskFull, e.dir)
	case e.cause != nil:
		return fmt.Sprintf("%v: nothing more can be written to %s, where %d MiB are free; make room there and try again", ErrDiskFull, e.dir, e.free>>20)
	}
	return fmt.Sprintf("%v: %s has %d MiB free and needs %d MiB (%d MiB to be written, the rest stays free); make room there and try again",
		ErrDiskFull, e.dir, e.free>>20, mib(e.need+e.keep), mib(e.need))
}

// mib rounds up: nobody has room for 0 MiB and is still refused.
func mib(bytes uint64) uint64 { return (bytes + 1<<20 - 1) >> 20 }

func (e *diskFullError) Unwrap() []error { return []error{ErrDiskFull, e.cause} }

// failed wraps err in what was being done in dir. Where the disk is full it
// answers that alone, as an ErrDiskFull: what was being done does not help then.
func failed(what, dir string, err error) error {
	if full, ok := errors.AsType[*diskFullError](err); ok {
		return full
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || runtime.GOOS == "windows" && errors.Is(err, errorDiskFullWindows) {
		full := &diskFullError{dir: dir, cause: err}
		if u, err := disk.Usage(dir); err == nil {
			full.free = u.Free
		}
		return full
	}
	return fmt.Errorf("%s: %w", what, err)
}

// noRoomError is the ErrNoRoom of one store.
type noRoomError struct {
	dir               string
	quota, used, need int64 // bytes; need is on top of used
}

func (e *noRoomError) Error() string {
	return fmt.Sprintf("%v: %s may take %d MiB, takes %d MiB and needs %d MiB more, and what is left in it is pinned by jobs or in use; raise the quota, or remove jobs that are done",
		ErrNoRoom, e.dir, e.quota>>20, e.used>>20, mib(uint64(e.need)))
}

func (e *noRoomError) Unwrap() error { return ErrNoRoom }
