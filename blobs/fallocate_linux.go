package blobs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// preallocate makes a new file take n bytes of the disk.
func preallocate(f *os.File, n int64) error {
	var err error = unix.EINTR
	for err == unix.EINTR {
		err = unix.Fallocate(int(f.Fd()), 0, 0, n)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return fill(f, n)
	}
	return os.NewSyscallError("fallocate", err)
}
