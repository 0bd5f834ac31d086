//go:build linux || darwin

package coord

import (
	"os/exec"
	"runtime"
	"syscall"
)

// peakRSS is the most memory, in bytes, that a process which has ended held.
func peakRSS(cmd *exec.Cmd) float64 {
	most := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	if runtime.GOOS == "linux" {
		most <<= 10 // there in KiB
	}
	return float64(most)
}
