package render

import (
	"context"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
)

// maxDisk bounds what an attempt may take of a disk that has room for more.
const maxDisk = 64 << 30

// diskEvery is how often an attempt's folder is measured that is far below its limit,
// and diskSoon the least time between two measurements; what no disk writes faster than
// decides in between. A file system has no signal for "larger than", and a file may
// write for hours without a word from Blender, so this is a watchdog of a clock: what
// is written between two looks can exceed the limit.
//
// A file system of the attempt's own with a size would be a hard bound, but not a cheap
// one: one in memory takes from the scenes what their temporary files need, one in a
// file must be made and mounted by root. One file alone is bounded by [limits].
const (
	diskEvery = 3 * time.Second
	diskSoon  = 100 * time.Millisecond
	diskSpeed = 4 << 30 // bytes a second
)

// inodeSize is what a file is counted for besides its content: the disk space for
// which a file system makes room for one file. A million empty files exhaust it too.
const inodeSize = 16 << 10

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

// watchDisk stops the attempt when its folders take more than limit bytes. It ends
// with ctx. What is written to a file that was removed already, [bounds] see.
func watchDisk(ctx context.Context, limit int64, stop context.CancelCauseFunc, dirs ...string) {
	for {
		began := time.Now()
		use := int64(0)
		for _, dir := range dirs {
			use += diskUse(dir)
		}
		if use > limit {
			stop(overDisk(limit))
			return
		}
		wait := time.Duration(float64(limit-use) / diskSpeed * float64(time.Second))
		// A folder of very many files takes long to look at: most of the time is Blender's.
		wait = min(max(wait, diskSoon, 10*time.Since(began)), diskEvery)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
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
			sum += allocated(info) + inodeSize
		}
		return nil
	})
	return sum
}
