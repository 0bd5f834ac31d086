package render

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
)

// maxDisk bounds what an attempt may take of a disk that has room for more.
const maxDisk = 64 << 30

// diskEvery is how often an attempt's folders are measured. A file system has no
// signal for "larger than", and a file may write for hours without a word from
// Blender, so this is a watchdog of a clock: what is written between two looks can
// exceed the limit.
const diskEvery = 3 * time.Second

var errDisk = errors.New("the attempt takes too much of the disk")

// diskLimit is how many bytes an attempt that begins now may take.
func (b *Blender) diskLimit() int64 {
	if b.cfg.MaxDisk > 0 {
		return b.cfg.MaxDisk
	}
	if u, err := disk.Usage(b.cfg.Dir); err == nil {
		return min(maxDisk, int64(u.Free/2))
	}
	return maxDisk
}

// watchDisk stops the attempt with errDisk when its folders take more than limit
// bytes. It ends with ctx. What a process writes to a file that it has removed
// already is not seen.
func watchDisk(ctx context.Context, limit int64, stop context.CancelCauseFunc, dirs ...string) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			use := int64(0)
			for _, dir := range dirs {
				use += diskUse(dir)
			}
			if use > limit {
				stop(errDisk)
				return
			}
		}
	}
}

// diskUse sums the disk space below dir, as far as it can be seen: files come and
// go meanwhile.
func diskUse(dir string) (sum int64) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			sum += allocated(info)
		}
		return nil
	})
	return sum
}
