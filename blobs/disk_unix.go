//go:build unix

package blobs

import (
	"io/fs"
	"os"
	"syscall"
)

// allocated is the space a file really takes: logs are sparse.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return fi.Size()
}

// syncDir makes a rename in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// otherDisk tells whether two folders are known to be on different file systems.
func otherDisk(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	if errA != nil || errB != nil {
		return false
	}
	v, okA := x.Sys().(*syscall.Stat_t)
	w, okB := y.Sys().(*syscall.Stat_t)
	return okA && okB && v.Dev != w.Dev
}
