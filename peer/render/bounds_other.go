//go:build !linux && !windows

package render

import (
	"context"

	ps "github.com/shirou/gopsutil/v4/process"
)

// watchProcesses keeps the process pid and those that it starts within the bounds; it
// ends with ctx. One whose parent has ended is not found. Its authors have built and
// vetted it, and not run it.
func (m bounds) watchProcesses(ctx context.Context, pid int, _ string, stop context.CancelCauseFunc) {
	m.keep(ctx, searchEvery, func() (t taken) {
		first, err := ps.NewProcess(int32(pid))
		if err != nil {
			return t
		}
		for todo := []*ps.Process{first}; len(todo) > 0; {
			p := todo[0]
			below, _ := p.Children()
			todo = append(todo[1:], below...)
			if info, err := p.MemoryInfo(); err == nil {
				t.memory += int64(info.RSS)
			}
			threads, err := p.NumThreads()
			if err != nil {
				threads = 1
			}
			t.threads += int(threads)
		}
		return t
	}, stop)
}
