package pack

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	directFlag = unix.O_DIRECT
	canPunch   = true
)

// dataSync leaves out what is not needed to read the data again.
func dataSync(w *os.File) error {
	for {
		err := unix.Fdatasync(int(w.Fd()))
		if err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func punch(w *os.File, off, n int64) error {
	return os.NewSyscallError("fallocate", unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
}
