//go:build unix

package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stampOf reads the stamp of an open file.
func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstat(int(f.Fd()), &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return stamp{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
		}
		return stamp{
			Size: st.Size, Modified: time.Unix(st.Mtim.Unix()).UnixNano(), Changed: time.Unix(st.Ctim.Unix()).UnixNano(),
			Device: uint64(st.Dev), Inode: uint64(st.Ino),
		}, nil
	}
}
