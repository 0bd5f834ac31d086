package probe

import (
	"os"
	"path/filepath"
	"slices"
)

// confined is the command line that asks a Blender which came from the farm: where
// bubblewrap works, without network, without the right to write anywhere but in tmp, and
// out of sight of what this machine keeps for itself and its people. It sees the
// machine's devices, as it is to tell what it can do with them.
func (p prober) confined(path, tmp string, args []string) (string, []string) {
	line := []string{"--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"}
	hidden := []string{"/tmp", "/run", "/home", "/root"}
	if home, err := os.UserHomeDir(); err == nil {
		hidden = append(hidden, home)
	}
	data := p.cfg.DataDir
	if real, err := filepath.EvalSymlinks(data); err == nil {
		data = real
	}
	for _, dir := range append(hidden, data) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && dir != "/" {
			line = append(line, "--tmpfs", dir)
		}
	}
	line = append(line, "--ro-bind-try", "/run/opengl-driver", "/run/opengl-driver")
	for _, dir := range []string{filepath.Join(data, "blenders"), filepath.Dir(path)} {
		if _, err := os.Stat(dir); err == nil && dir != "/" {
			line = append(line, "--ro-bind", dir, dir)
		}
	}
	line = append(line, "--bind", tmp, tmp, "--setenv", "TMPDIR", tmp, "--setenv", "HOME", tmp, "--chdir", tmp,
		"--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--new-session", "--", path)
	return "bwrap", append(line, args...)
}

// foreign tells whether a program came from the farm.
func (p prober) foreign(path string) bool {
	return slices.ContainsFunc(p.cfg.Fetched, func(f string) bool {
		real, err := filepath.EvalSymlinks(f)
		return err == nil && real == path
	})
}
