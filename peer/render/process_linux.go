package render

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit returns true when cmd has ended but its number is still its own.
func awaitExit(cmd *exec.Cmd) bool {
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// limits is the command that bounds what a process may do to the machine: no
// core dumps, and no file larger than any image.
func limits() []string {
	path, err := exec.LookPath("prlimit")
	if err != nil {
		return nil
	}
	line := []string{path, "--core=0"}
	var now unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &now) == nil && now.Max > maxFile { // a limit may only sink
		line = append(line, "--fsize="+strconv.FormatInt(maxFile, 10))
	}
	return append(line, "--")
}

const maxFile = 64 << 30

// oomKills counts the processes that this machine has killed for memory since it
// started.
func oomKills() int {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if count, ok := strings.CutPrefix(string(line), "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(count))
			return n
		}
	}
	return 0
}
