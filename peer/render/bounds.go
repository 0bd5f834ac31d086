package render

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/shirou/gopsutil/v4/mem"

	"vizpeer/lease"
)

// bounds are what the processes of one attempt may take together.
//
// A look at them, not a limit of the kernel's, is what keeps them: a limit of the
// address space would stop the drivers of GPUs, which reserve terabytes that they
// never use, and control groups belong to root or to systemd, which may be absent.
// There is no limit of the processor's time: an attempt's own time ends all of its
// processes, so they take at most that on every core.
type bounds struct {
	memory  int64 // bytes
	threads int   // of all processes
	disk    int64 // bytes of files without a name, which nothing finds in a folder
}

// The times between two looks at the processes: what they take in between can exceed
// a bound. In the sandbox they are few and found at once; outside, all of the
// machine's must be searched.
const (
	lookEvery   = 250 * time.Millisecond
	searchEvery = time.Second
)

// overrun is why an attempt was stopped that took more than its bounds.
type overrun struct {
	kind   lease.FailKind
	reason string // what follows "Blender was stopped because"
}

func (e *overrun) Error() string { return e.reason }

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func overMemory(limit int64) error {
	return &overrun{lease.FailMemory, fmt.Sprintf("it used more than the %s of memory that an attempt may take on this machine", gib(limit))}
}

func overThreads(limit int) error {
	return &overrun{lease.FailError, fmt.Sprintf("it had more than the %d processes and threads that an attempt may have on this machine", limit)}
}

func overDisk(limit int64) error {
	return &overrun{lease.FailMachine, fmt.Sprintf("the attempt wrote more than the %s it may take on this machine", gib(limit))}
}

// bounds are those of an attempt that begins now and may write so much.
func (b *Blender) bounds(disk int64) bounds {
	return bounds{memory: b.maxMemory(), threads: b.maxThreads(), disk: disk}
}

// unknownMemory is taken for the memory of a machine that does not say it.
const unknownMemory = 1 << 40

func (b *Blender) maxMemory() int64 {
	if b.cfg.MaxMemory > 0 {
		return b.cfg.MaxMemory
	}
	m, err := mem.VirtualMemory()
	if err != nil {
		return unknownMemory
	}
	return int64(m.Total / 10 * 9)
}

// maxThreads leaves Blender, its libraries and a GPU's driver several pools of a
// thread for each core.
func (b *Blender) maxThreads() int {
	return cmp.Or(b.cfg.MaxThreads, 1024+16*runtime.NumCPU())
}

// taken is what processes take at one moment.
type taken struct {
	memory  int64
	threads int
	disk    int64 // bytes of files without a name
}

// over is nil or says which bound is exceeded.
func (m bounds) over(t taken) error {
	switch {
	case t.threads > m.threads:
		return overThreads(m.threads)
	case t.memory > m.memory:
		return overMemory(m.memory)
	case t.disk > m.disk:
		return overDisk(m.disk)
	}
	return nil
}

// keep looks at what look measures until ctx ends, and stops the attempt when that
// exceeds the bounds.
func (m bounds) keep(ctx context.Context, every time.Duration, look func() taken, stop context.CancelCauseFunc) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := m.over(look()); err != nil {
			stop(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
