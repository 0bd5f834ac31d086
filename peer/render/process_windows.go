package render

import (
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func exitCode(s *os.ProcessState) int { return s.ExitCode() }

func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP, HideWindow: true}
}

// killGroup kills Blender, which starts no processes of its own on Windows.
func killGroup(cmd *exec.Cmd) { cmd.Process.Kill() }

func allocated(info fs.FileInfo) int64 { return info.Size() }

func signalName(n int) string { return "signal " + strconv.Itoa(n) }
