//go:build unix

package render

import (
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// exitCode is the exit code as a shell gives it: 128 and the signal's number for
// a process that a signal ended.
func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// killGroup kills cmd and what it started, as far as it stayed in its group.
func killGroup(cmd *exec.Cmd) {
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}

// allocated is the space a file really takes: one with holes takes less than its
// size.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}

func signalName(n int) string { return syscall.Signal(n).String() }
