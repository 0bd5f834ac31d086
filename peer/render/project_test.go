package render

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func writeManifest(t *testing.T, root string, m Manifest) {
	t.Helper()
	b, err := json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, ManifestName), b, 0o644))
}

func TestProjectPath(t *testing.T) {
	for _, c := range []struct{ path, goos, want string }{
		{"/home/a/x.blend", "linux", "files/home/a/x.blend"},
		{"/home/a/../b//x.blend", "darwin", "files/home/b/x.blend"},
		{"/../../x", "linux", "files/x"},
		{"/", "linux", "files"},
		{`/odd\name`, "linux", `files/odd\name`},
		{`C:\a\x.blend`, "windows", "files/C/a/x.blend"},
		{`c:/a`, "windows", "files/C/a"},
		{`C:\a\..\..\..\x`, "windows", "files/x"},
		{`\\server\share\x`, "windows", "files/UNC/server/share/x"},
		{`\\?\UNC\server\share\x`, "windows", "files/UNC/server/share/x"},
		{`\\?\D:\x`, "windows", "files/D/x"},
	} {
		require.Equal(t, c.want, ProjectPath(c.path, c.goos), c.path)
	}
}

// The collector has the same rule in Python: the two must not part.
func TestProjectPathIsTheCollectorsToo(t *testing.T) {
	build := realBlender(t)
	text, err := scripts.ReadFile("collect.py")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "collect.py"), text, 0o600))
	t.Setenv("COLLECT_DIR", dir)
	paths := [][2]string{
		{"/home/a/x.blend", "linux"}, {"/home/a/../b//x.blend", "darwin"}, {"/../../x", "linux"}, {`/odd\name`, "linux"},
		{`C:\a\x.blend`, "windows"}, {`c:/a`, "windows"}, {`C:\a\..\..\..\x`, "windows"}, {`\\server\share\x`, "windows"},
		{`\\?\UNC\server\share\x`, "windows"}, {`\\?\unc\server\share\x`, "windows"}, {`\\?\D:\x`, "windows"},
	}
	in, err := json.Marshal(paths)
	require.NoError(t, err)
	t.Setenv("PATHS", string(in))
	t.Setenv("ANSWER", filepath.Join(dir, "answer.json"))
	script(t, build, `
import json, os, sys
sys.path.insert(0, os.environ["COLLECT_DIR"])
import collect
json.dump([collect.project_path(p, s) for p, s in json.loads(os.environ["PATHS"])], open(os.environ["ANSWER"], "w"))
`)
	out, err := os.ReadFile(filepath.Join(dir, "answer.json"))
	require.NoError(t, err)
	var got []string
	require.NoError(t, json.Unmarshal(out, &got))
	for i, p := range paths {
		require.Equal(t, ProjectPath(p[0], p[1]), got[i], p[0])
	}
}

func TestProjectUnderSymlinksIsRefused(t *testing.T) {
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "a.blend"), []byte("BLENDER-v304"), 0o600))
	inside := func(root string) error {
		return errors.Join(os.Mkdir(filepath.Join(root, "files"), 0o700), os.WriteFile(filepath.Join(root, "files", "a.blend"), nil, 0o600))
	}
	for name, c := range map[string]struct {
		link   func(root string) error
		reason string
	}{
		"the .blend": {func(root string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "files"), 0o700), os.Symlink(filepath.Join(outside, "a.blend"), filepath.Join(root, "files", "a.blend")))
		}, "a symlink leads the .blend"},
		"its folder": {func(root string) error { return os.Symlink(outside, filepath.Join(root, "files")) }, "a symlink leads the .blend"},
		"the manifest": {func(root string) error {
			return errors.Join(inside(root), os.Symlink("/dev/zero", filepath.Join(root, ManifestName)))
		}, "is not a regular file"},
		"nothing": {inside, ""},
		"inside": {func(root string) error {
			return errors.Join(inside(root), os.Rename(filepath.Join(root, "files"), filepath.Join(root, "b")), os.Symlink("b", filepath.Join(root, "files")))
		}, ""},
	} {
		root := t.TempDir()
		if err := c.link(root); err != nil {
			t.Skip("no symlinks here: ", err)
		}
		_, err := findProject(Attempt{Project: root, Blend: "files/a.blend"})
		if c.reason == "" {
			require.NoError(t, err, name)
			continue
		}
		require.ErrorContains(t, err, c.reason, name)
	}
}
