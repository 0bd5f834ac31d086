package render

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// bubblewrap is the kind of sandbox there is.
const bubblewrap = "bubblewrap"

// inner is where a session's folder appears inside the sandbox.
const inner = "/vizpeer"

// maxBinds bounds the mounts of one project; a tree that needs more is mounted
// whole and its paths are remapped instead.
const maxBinds = 256

var sandboxKind = sync.OnceValues(trySandbox)

// SandboxKind tells how this machine can confine Blender: "bubblewrap", or "" and
// the reason in words. It knows from having run a program in the sandbox, once in
// the life of the process.
func SandboxKind() (kind, reason string) { return sandboxKind() }

func trySandbox() (kind, reason string) {
	if runtime.GOOS != "linux" {
		return "", "bubblewrap runs on Linux only"
	}
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return "", "bubblewrap is not installed: install the package bubblewrap"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s := sandbox{bwrap: bwrap}
	s.system()
	cmd := exec.CommandContext(ctx, bwrap, append(s.args, "--remount-ro", "/", "true")...)
	cmd.Env = s.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Sprintf("bubblewrap does not work here: %v: %s (are unprivileged user namespaces allowed?)", err, clip(string(bytes.TrimSpace(out)), 200))
	}
	return bubblewrap, ""
}

// sandbox is a bubblewrap command line. Inside there is no network, no other
// process, nothing of the machine but what programs need to run, read only, and of
// the session the folders out and tmp, the latter as /tmp.
type sandbox struct {
	bwrap    string
	args     []string
	reserved []string // paths that the machine's own files take
	view     view
}

// newSandbox confines the Blender exe to a session. The project appears at its
// original absolute paths where they are free, so that nothing in it needs to be
// rewritten.
func newSandbox(exe string, dir sessionDir, p project) (*sandbox, error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		bwrap = "bwrap" // it was there a moment ago: starting it will say why not
	}
	s := &sandbox{bwrap: bwrap, view: view{
		driver: inner + "/driver",
		out:    inner + "/out",
		tmp:    "/tmp",
	}}
	s.system()
	s.add("--bind", dir.tmp(), "/tmp", "--bind", dir.out(), s.view.out, "--ro-bind", dir.driver(), s.view.driver)
	if err := s.program(exe, dir); err != nil {
		return nil, err
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
	s.add("--symlink", "/proc/self/mounts", "/etc/mtab", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev")
	s.devices()
}

// program shows the folder that a program lies in, unless that holds the sessions
// too: then it would show this machine's secrets, which lie beside them.
func (s *sandbox) program(exe string, session sessionDir) error {
	dirs := []string{filepath.Dir(exe)}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, dir := range dirs {
		if within(session.tmp(), []string{dir}) {
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

// prefix is the command that runs what follows it in the sandbox.
func (s *sandbox) prefix() []string {
	line := append([]string{s.bwrap}, s.args...)
	return append(line, "--remount-ro", "/", "--chdir", "/tmp", "--")
}

// env is the whole environment inside.
func (s *sandbox) env() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "XDG_CACHE_HOME=/tmp/.cache", "LANG=C.UTF-8"}
}
