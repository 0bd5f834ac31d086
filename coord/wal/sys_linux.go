package wal

import (
	"os"

	"golang.org/x/sys/unix"
)

// dataSync leaves out what is not needed to read the data again.
func dataSync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
