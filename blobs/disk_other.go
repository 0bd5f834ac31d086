//go:build !unix

package blobs

import (
	"io/fs"
	"path/filepath"
	"strings"
)

// allocated: Windows allocates a truncated file in full, so its size is true.
func allocated(fi fs.FileInfo) int64 { return fi.Size() }

// syncDir: Windows has no such call; NTFS journals renames.
func syncDir(string) error { return nil }

// otherDisk tells whether two folders are known to be on different file systems:
// on Windows, by their drives.
func otherDisk(a, b string) bool {
	x, errA := filepath.Abs(a)
	y, errB := filepath.Abs(b)
	return errA == nil && errB == nil && !strings.EqualFold(filepath.VolumeName(x), filepath.VolumeName(y))
}
