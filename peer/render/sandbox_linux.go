package render

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// inner is where an attempt's folder appears inside the sandbox.
const inner = "/vizpeer"

// maxBinds bounds the mounts of one project; a tree that needs more is mounted
// whole and its paths are remapped instead.
const maxBinds = 256

func trySandbox() (kind, reason string) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return "", "bubblewrap is not installed: install the package bubblewrap"
	}
	s := &sandbox{bwrap: bwrap}
	s.system()
	if out, err := s.try(); err != nil {
		return "", fmt.Sprintf("bubblewrap does not work here: %v: %s (are unprivileged user namespaces allowed?)", err, clip(string(bytes.TrimSpace(out)), 200))
	}
	return bubblewrap, ""
}

// try runs a program that does nothing in the sandbox.
func (s *sandbox) try() (said []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s.add("--tmpfs", "/tmp") // where an attempt has a folder
	line := append(s.prefix(), "true")
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env, cmd.ExtraFiles = s.env(), s.files
	defer s.release()
	return cmd.CombinedOutput()
}

// filters tells whether the sandbox can have a filter of system calls here.
var filters = sync.OnceValue(func() bool {
	if len(seccomp) == 0 {
		return false
	}
	s := &sandbox{bwrap: bwrapPath()}
	s.system()
	if s.filter() != nil {
		return false
	}
	_, err := s.try()
	return err == nil
})

// bwrapPath is where bubblewrap lies. If it is gone, starting it says so.
func bwrapPath() string {
	if path, err := exec.LookPath("bwrap"); err == nil {
		return path
	}
	return "bwrap"
}

// sandbox is a bubblewrap command line. Inside there is no network, no other
// process, nothing of the machine but what programs need to run, read only, and of
// the attempt the folders out and tmp, the latter as /tmp. System calls that no
// renderer needs, and through which kernels have been broken, are refused.
type sandbox struct {
	bwrap    string
	args     []string
	reserved []string   // paths that the machine's own files take
	files    []*os.File // what the command reads from file descriptors 3 and up
	threads  int        // that may run inside; 0 is any number
	view     view
}

// newSandbox confines the Blender exe to an attempt that may have so many processes
// and threads. The project appears at its
// original absolute paths where they are free, so that nothing in it needs to be
// rewritten.
func newSandbox(exe string, dir sessionDir, p project, threads int) (*sandbox, error) {
	s := &sandbox{bwrap: bwrapPath(), threads: threads, view: view{
		driver: inner + "/driver",
		out:    inner + "/out",
		tmp:    "/tmp",
	}}
	s.system()
	// Shared memory is files in the attempt's folder too: there it is measured, and on
	// a file system of memory's own it would be taken from the machine by nobody.
	shm := filepath.Join(dir.tmp(), "shm")
	if err := os.MkdirAll(shm, 0o700); err != nil {
		return nil, fmt.Errorf("this machine cannot prepare the attempt: %w", err)
	}
	s.add("--bind", shm, "/dev/shm", "--remount-ro", "/dev")
	s.add("--bind", dir.tmp(), "/tmp", "--bind", dir.out(), s.view.out, "--ro-bind", dir.driver(), s.view.driver)
	if err := s.program(exe, dir); err != nil {
		return nil, err
	}
	if filters() {
		if err := s.filter(); err != nil {
			return nil, fmt.Errorf("this machine cannot prepare the attempt: %w", err)
		}
	}
	if original, ok := p.original(); ok {
		if binds, ok := s.place(filepath.Join(p.root, filesDir)); ok {
			s.add(binds...)
			s.view.blend = original
			return s, nil
		}
	}
	s.add("--ro-bind", p.root, inner+"/project")
	s.view.blend = path.Join(inner, "project", p.blend)
	s.view.files = path.Join(inner, "project", filesDir)
	s.view.remap = p.placed() && p.manifest.Absolute
	return s, nil
}

func (s *sandbox) add(args ...string) { s.args = append(s.args, args...) }

// system shows the machine's programs and devices.
func (s *sandbox) system() {
	s.add("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
	s.add("--ro-bind", "/usr", "/usr")
	s.reserved = []string{"/usr", "/etc", "/proc", "/dev", "/sys", inner}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		s.reserved = append(s.reserved, dir)
		if to, err := os.Readlink(dir); err == nil {
			s.add("--symlink", to, dir)
		} else {
			s.add("--ro-bind-try", dir, dir)
		}
	}
	for _, path := range []string{
		"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts", "/etc/localtime",
		"/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/nix/store", "/run/opengl-driver",
	} {
		s.share(path)
	}
	// Run by root, bubblewrap leaves the kernel's settings writable: they are bound
	// again, read only.
	s.add("--symlink", "/proc/self/mounts", "/etc/mtab", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys",
		"--ro-bind-try", "/proc/pressure", "/proc/pressure", "--dev", "/dev")
	s.devices()
}

// program shows the folder that a program lies in, unless that holds the attempts
// too: then it would show this machine's secrets, which lie beside them.
func (s *sandbox) program(exe string, attempt sessionDir) error {
	dirs := []string{filepath.Dir(exe)}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, dir := range dirs {
		if within(attempt.tmp(), []string{dir}) {
			return fmt.Errorf("this machine's Blender lies in a folder above vizpeer's data: move it to a folder of its own")
		}
		if !within(dir, s.reserved) {
			s.share(dir)
		}
	}
	return nil
}

// share shows a path of the machine, if it is there, read only.
func (s *sandbox) share(path string) {
	if _, err := os.Stat(path); err != nil || path == "/" {
		return
	}
	s.add("--ro-bind-try", path, path)
	s.reserved = append(s.reserved, path)
}

// devices shows the GPUs, and what their drivers look up about them.
func (s *sandbox) devices() {
	found, _ := filepath.Glob("/dev/nvidia*")
	for _, dev := range append(found, "/dev/dri", "/dev/kfd", "/dev/dxg") {
		if _, err := os.Stat(dev); err == nil {
			s.add("--dev-bind-try", dev, dev)
		}
	}
	if !slices.Contains(s.args, "--dev-bind-try") {
		return
	}
	for _, dir := range []string{"/sys/dev/char", "/sys/devices", "/sys/class/drm", "/sys/class/kfd", "/sys/bus/pci", "/sys/module"} {
		s.add("--ro-bind-try", dir, dir)
	}
	drivers, _ := filepath.Glob("/opt/rocm*")
	for _, dir := range append(drivers, "/opt/intel") {
		s.share(dir)
	}
}

// within tells whether path is one of dirs or below one.
func within(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, dir+"/")
	})
}

// place finds the mounts that put a project's files at their original paths. It is
// false where the machine's own files stand there.
func (s *sandbox) place(files string) (binds []string, ok bool) {
	var walk func(dir string) bool
	walk = func(dir string) bool {
		entries, err := os.ReadDir(filepath.Join(files, dir))
		if err != nil {
			return false
		}
		for _, e := range entries {
			at := path.Join("/", dir, e.Name())
			if within(at, s.reserved) {
				return false
			}
			holdsOurs := slices.ContainsFunc(s.reserved, func(r string) bool { return strings.HasPrefix(r, at+"/") })
			switch {
			case e.IsDir() && (at == "/tmp" || holdsOurs): // stays ours: its entries go into it one by one
				if !walk(at) {
					return false
				}
			case e.IsDir() || e.Type().IsRegular():
				binds = append(binds, "--ro-bind", filepath.Join(files, at), at)
			default:
				return false
			}
		}
		return len(binds) <= 3*maxBinds
	}
	ok = walk("/")
	return binds, ok
}

// filter has bubblewrap load the filter of system calls, just before the program.
func (s *sandbox) filter() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	s.add("--seccomp", strconv.Itoa(3+len(s.files)))
	s.files = append(s.files, r)
	_, err = w.Write(seccomp) // far less than a pipe holds
	return errors.Join(err, w.Close())
}

// release lets go of what the command has taken over.
func (s *sandbox) release() {
	for _, f := range s.files {
		f.Close()
	}
}

// prefix is the command that runs what follows it in the sandbox.
func (s *sandbox) prefix() []string {
	line := append([]string{s.bwrap}, s.args...)
	line = append(line, "--remount-ro", "/", "--chdir", "/tmp", "--")
	// In a user namespace of its own the limit counts what runs there alone, from
	// Linux 5.14 on; before, it would count all that the user runs. The machine's root
	// has no such limit in any namespace: there the look at the processes is all.
	if prlimit, err := exec.LookPath("prlimit"); err == nil && s.threads > 0 && os.Getuid() != 0 && strings.HasPrefix(prlimit, "/usr/") && countsByNamespace() {
		line = append(line, prlimit, fmt.Sprintf("--nproc=%d", s.threads+s.threads/4), "--")
	}
	return line
}

// countsByNamespace tells whether the kernel counts processes by user namespace.
var countsByNamespace = sync.OnceValue(func() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 5 || major == 5 && minor >= 14)
})

// env is the whole environment inside.
func (s *sandbox) env() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "XDG_CACHE_HOME=/tmp/.cache", "LANG=C.UTF-8"}
}

func confinements(kind string) []Confinement {
	const look = "a look every quarter of a second"
	if kind == "" {
		return []Confinement{
			{"writing files elsewhere", guarded},
			{"reading this machine's files", ""},
			{"using the network", ""},
			{"reaching other programs", ""},
			{"taking the memory", "a look every second"},
			{"starting processes", "a look every second"},
			{"taking the disk", "a look every few seconds, a limit on each file"},
		}
	}
	calls := "a filter of system calls"
	if !filters() {
		calls = ""
	}
	return []Confinement{
		{"writing files elsewhere", "mounts: only the attempt's folder can be written"},
		{"reading this machine's files", "mounts: programs, fonts and drivers alone are there"},
		{"using the network", "a network namespace"},
		{"reaching other programs", "a process namespace, which also ends whatever hides"},
		{"attacking the kernel", calls},
		{"taking the memory", look + "; and the kernel, out of memory, ends Blender first"},
		{"starting processes", look + ", and for users other than root a limit"},
		{"taking the disk", "a look every few seconds, a limit on each file"},
	}
}
