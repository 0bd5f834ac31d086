package render

import (
	"bytes"
	"fmt"
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

// killStrays kills processes that are in no group any more through which they could
// be reached: those below the process parent, where that is not 0, but not it, and
// those whose folder for temporary files is tmp, where that is not "".
func killStrays(parent int, tmp string) {
	if parent == 0 && tmp == "" {
		return
	}
	// One that is killed may have started another meanwhile.
	for range 10 {
		found := strays(parent, tmp)
		for _, pid := range found {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(found) == 0 {
			return
		}
	}
}

func strays(parent int, tmp string) (found []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	mark := []byte("\x00TMPDIR=" + tmp + "\x00")
	children := make(map[int][]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// After the name, which may hold anything: the state and the parent.
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		above, _ := strconv.Atoi(fields[1])
		children[above] = append(children[above], pid)
		if tmp == "" {
			continue
		}
		if env, err := os.ReadFile("/proc/" + e.Name() + "/environ"); err == nil && bytes.Contains(append([]byte{0}, env...), mark) && pid != parent {
			found = append(found, pid)
		}
	}
	for below := children[parent]; parent != 0 && len(below) > 0; {
		found, below = append(found, below[0]), append(below[1:], children[below[0]]...)
	}
	return found
}

// limits is the command that bounds what each process may do to the machine: no core
// dumps, no file much larger than all that the attempt may write, nor than any image,
// and no more open files than a scene of many textures needs.
func limits(disk int64) []string {
	path, err := exec.LookPath("prlimit")
	if err != nil {
		return nil
	}
	line := []string{path, "--core=0"}
	for _, l := range []struct {
		name  string
		which int
		most  int64
	}{{"fsize", unix.RLIMIT_FSIZE, min(maxFile, disk+disk/4)}, {"nofile", unix.RLIMIT_NOFILE, maxOpen}} {
		var now unix.Rlimit
		if unix.Getrlimit(l.which, &now) == nil && now.Max > uint64(l.most) { // a limit may only sink
			line = append(line, fmt.Sprintf("--%s=%d", l.name, l.most))
		}
	}
	return append(line, "--")
}

const (
	maxFile = 64 << 30
	maxOpen = 8192
)

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
