package render

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"vizpeer/lease"
)

// maxManifest bounds the manifest that is read: a long list of missing files is
// still far below it.
const maxManifest = 16 << 20

// project is a project's tree on this machine.
type project struct {
	root     string // absolute
	blend    string // slash-separated, below root
	manifest Manifest
}

// findProject looks at what the attempt is about to render.
func findProject(a Attempt) (project, error) {
	bad := func(format string, args ...any) (project, error) {
		return project{}, &Error{Kind: lease.FailError, Reason: fmt.Sprintf(format, args...)}
	}
	root, err := filepath.Abs(a.Project)
	if err != nil {
		return bad("the project's folder has no absolute path: %v", err)
	}
	p := project{root: root, blend: path.Clean(filepath.ToSlash(a.Blend))}
	if !filepath.IsLocal(filepath.FromSlash(p.blend)) {
		return bad("the .blend %q is not inside the project", a.Blend)
	}
	if st, err := os.Stat(p.path()); err != nil || !st.Mode().IsRegular() {
		return bad("the project holds no file %q", a.Blend)
	}
	// The store knows no symlinks: whoever made this folder did not take it from there.
	if !p.holds(p.path()) || !p.holds(filepath.Join(root, filesDir)) {
		return bad("a symlink leads the .blend %q out of the project", a.Blend)
	}
	if st, err := os.Lstat(filepath.Join(root, ManifestName)); err == nil && !st.Mode().IsRegular() {
		return bad("the project's %s is not a regular file", ManifestName)
	}
	f, err := os.Open(filepath.Join(root, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		// A bare folder: its paths are taken for this system's.
		p.manifest = Manifest{Blend: p.blend, Origin: runtime.GOOS, Absolute: p.placed()}
		return p, nil
	}
	if err != nil {
		return bad("the project's %s cannot be read: %v", ManifestName, err)
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxManifest)).Decode(&p.manifest); err != nil {
		return bad("the project's %s is damaged: %v", ManifestName, err)
	}
	return p, nil
}

// holds tells whether path, which is below the project's folder, is there too after
// all symlinks, or nowhere.
func (p project) holds(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	root, err := filepath.EvalSymlinks(p.root)
	return err == nil && strings.HasPrefix(real, root+string(filepath.Separator))
}

// path is the .blend on this machine.
func (p project) path() string { return filepath.Join(p.root, filepath.FromSlash(p.blend)) }

// placed tells whether the .blend stands at its original absolute path below
// "files/".
func (p project) placed() bool { return strings.HasPrefix(p.blend, filesDir+"/") }

// original is the absolute path that the .blend had where it comes from, if that
// is a path that a Unix can have too.
func (p project) original() (string, bool) {
	return strings.TrimPrefix(p.blend, filesDir), p.placed() && p.manifest.Origin != "windows"
}

// view is where Blender finds things: paths as they are for its process.
type view struct {
	blend  string
	driver string
	out    string
	tmp    string
	files  string // the project's "files"
	remap  bool   // absolute paths in the .blend must be pointed at files
}

// outside is the view of a Blender that runs unconfined.
func outside(dir sessionDir, p project) view {
	return view{
		blend:  p.path(),
		driver: dir.driver(),
		out:    dir.out(),
		tmp:    dir.tmp(),
		files:  filepath.Join(p.root, filesDir),
		remap:  p.placed() && p.manifest.Absolute,
	}
}

// environment is what an unconfined Blender gets of this process's environment:
// what its libraries and drivers need, and nothing else.
func environment(tmp string) []string {
	env := []string{"TMPDIR=" + tmp, "TEMP=" + tmp, "TMP=" + tmp, "HOME=" + tmp}
	if runtime.GOOS != "windows" {
		env = append(env, "LANG=C.UTF-8")
	}
	for _, name := range []string{
		"PATH", "LD_LIBRARY_PATH", "DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
		"SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "PROGRAMDATA", "PROGRAMFILES", "LOCALAPPDATA", "APPDATA", "USERPROFILE", "NUMBER_OF_PROCESSORS",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
