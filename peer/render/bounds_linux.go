package render

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// watchProcesses keeps the process pid and those that it starts within the bounds; it
// ends with ctx. tmp is the folder for temporary files by which those are known that
// hide, "" in a sandbox, where none can.
func (m bounds) watchProcesses(ctx context.Context, pid int, tmp string, stop context.CancelCauseFunc) {
	h := &herd{first: pid, tmp: tmp, most: m.memory, known: map[string]bool{}}
	every := lookEvery
	if tmp != "" {
		every = searchEvery
	}
	m.keep(ctx, every, h.look, stop)
}

// herd is the processes of an attempt.
type herd struct {
	first int
	tmp   string
	most  int64           // bytes of memory, above which a closer look is worth its time
	proc  string          // a /proc that shows these processes and no other, "" if none is known
	known map[string]bool // those that are the first to go
}

func (h *herd) look() (t taken) {
	seen := map[[2]uint64]bool{}
	var private, shared, nameless int64
	dirs := h.list()
	for _, dir := range dirs {
		if !h.known[dir] {
			h.known[dir] = true
			goesFirst(dir)
		}
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		t.threads += int(statusValue(status, "Threads"))
		private += statusValue(status, "RssAnon") << 10
		shared += statusValue(status, "RssShmem") << 10
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			path := dir + "/fd/" + fd.Name()
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || st.Nlink > 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || seen[[2]uint64{uint64(st.Dev), st.Ino}] {
				continue
			}
			seen[[2]uint64{uint64(st.Dev), st.Ino}] = true
			var fs unix.Statfs_t
			if unix.Statfs(path, &fs) == nil && fs.Type == unix.TMPFS_MAGIC { // memfd_create's too
				nameless += st.Blocks * 512
			} else {
				t.disk += st.Blocks * 512
			}
		}
	}
	t.memory = private + max(shared, nameless) // which is mapped, or open, or both
	if t.memory > h.most && len(dirs) > 1 {
		t.memory = proportional(dirs, "Pss_Anon") + max(proportional(dirs, "Pss_Shmem"), nameless)
	}
	return t
}

// proportional sums the memory of processes so that what several of them share counts
// once: after a fork that is all of it.
func proportional(dirs []string, kind string) (sum int64) {
	for _, dir := range dirs {
		if text, err := os.ReadFile(dir + "/smaps_rollup"); err == nil {
			sum += statusValue(text, kind) << 10
		}
	}
	return sum
}

// list is the folders of these processes in a /proc.
func (h *herd) list() (dirs []string) {
	if h.tmp == "" && h.proc == "" {
		h.proc = procInside(h.first)
	}
	if h.proc != "" {
		entries, err := os.ReadDir(h.proc)
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				dirs = append(dirs, filepath.Join(h.proc, e.Name()))
			}
		}
		if err == nil {
			return dirs
		}
		h.proc = "" // what showed it has ended
	}
	pids := append(strays(h.first, h.tmp), h.first) // by mark and by parent: some twice
	slices.Sort(pids)
	for _, pid := range slices.Compact(pids) {
		dirs = append(dirs, procDir(pid))
	}
	return dirs
}

func procDir(pid int) string { return "/proc/" + strconv.Itoa(pid) }

// procInside is the /proc of the sandbox that the process outer has set up, or "".
// bubblewrap's own process in there has all of the sandbox's below it, and no other.
func procInside(outer int) string {
	here, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	for _, pid := range strays(outer, "") {
		space, err := os.Readlink(procDir(pid) + "/ns/pid")
		if err != nil || space == here {
			continue
		}
		// While the sandbox is set up this is still the machine's own.
		proc := procDir(pid) + "/root/proc"
		if shown, err := os.Readlink(proc + "/1/ns/pid"); err == nil && shown == space {
			return proc
		}
	}
	return ""
}

// goesFirst makes the kernel end the process before others where the machine runs out
// of memory, between two looks or through what no look can see. Its children inherit
// that, and none can undo it.
func goesFirst(dir string) {
	_ = os.WriteFile(dir+"/oom_score_adj", []byte("900"), 0)
}

// statusValue is the number of a line of a process's status.
func statusValue(status []byte, name string) int64 {
	_, rest, ok := bytes.Cut(status, []byte("\n"+name+":"))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
	return n
}
