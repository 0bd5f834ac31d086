//go:build !linux

package blobs

import "os"

// preallocate makes a new file take n bytes of the disk.
func preallocate(f *os.File, n int64) error { return fill(f, n) }
