package portable

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

func write(t testing.TB, dir, name, text string, mode fs.FileMode) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(text), mode))
}

func unix(t testing.TB) {
	if runtime.GOOS == "windows" {
		t.Skip("needs symlinks and modes")
	}
}

// A folder is the same after its way through a store.
func TestThroughTheStore(t *testing.T) {
	unix(t)
	dir := t.TempDir()
	write(t, dir, "blender", "#!/bin/sh\ncat \"$(dirname \"$0\")/lib/libx.so\"\n", 0o755)
	write(t, dir, "lib/libx.so.1.2", "a library", 0o644)
	write(t, dir, "4.2/python/bin/python3.11", "#!/bin/sh\n", 0o755)
	write(t, dir, ManifestName, "of another time", 0o644)
	require.NoError(t, os.Symlink("libx.so.1.2", filepath.Join(dir, "lib/libx.so.1")))
	require.NoError(t, os.Symlink("libx.so.1", filepath.Join(dir, "lib/libx.so")))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "links"), 0o755))
	require.NoError(t, os.Symlink("../lib", filepath.Join(dir, "links/lib")))

	files, m, err := Scan(t.Context(), dir, "blender")
	require.NoError(t, err)
	require.Equal(t, []string{"4.2/python/bin/python3.11", "blender"}, m.Executable)
	require.Equal(t, map[string]string{"lib/libx.so.1": "libx.so.1.2", "lib/libx.so": "libx.so.1", "links/lib": "../lib"}, m.Links)
	require.Len(t, files, 3)

	store, err := blobs.Open(t.TempDir(), blobs.Config{})
	require.NoError(t, err)
	defer store.Close()
	tree := store.NewTree()
	defer tree.Abort()
	text, err := json.Marshal(m)
	require.NoError(t, err)
	_, err = tree.AddFile(t.Context(), ManifestName, strings.NewReader(string(text)))
	require.NoError(t, err)
	for _, f := range files {
		in, err := os.Open(f.Source)
		require.NoError(t, err)
		_, err = tree.AddFile(t.Context(), f.Path, in)
		require.NoError(t, err)
		in.Close()
	}
	root, _, err := tree.Commit(t.Context())
	require.NoError(t, err)
	to := filepath.Join(t.TempDir(), "build")
	require.NoError(t, store.Export(t.Context(), root, to))

	program, err := Restore(to)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(to, "blender"), program)
	out, err := exec.Command(program).Output()
	require.NoError(t, err)
	require.Equal(t, "a library", string(out))
	for name, mode := range map[string]fs.FileMode{"blender": 0o555, "lib/libx.so.1.2": 0o444, "4.2/python/bin/python3.11": 0o555, "lib": 0o555, "4.2/python": 0o555, ManifestName: 0o444} {
		info, err := os.Lstat(filepath.Join(to, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
	again, err := Read(to)
	require.NoError(t, err)
	require.Equal(t, m, again)
	require.NoError(t, Remove(to))
	require.NoDirExists(t, to)
}

func TestScanRefuses(t *testing.T) {
	unix(t)
	for name, make := range map[string]func(dir string) error{
		"a link out of the folder":  func(dir string) error { return os.Symlink("../../etc/passwd", filepath.Join(dir, "lib")) },
		"an absolute link":          func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "lib")) },
		"a link to nothing":         func(dir string) error { return os.Symlink("nothing", filepath.Join(dir, "lib")) },
		"a link to itself":          func(dir string) error { return os.Symlink("lib", filepath.Join(dir, "lib")) },
		"a name that Windows lacks": func(dir string) error { return os.WriteFile(filepath.Join(dir, "a:b"), nil, 0o644) },
		"a missing program":         func(dir string) error { return os.Remove(filepath.Join(dir, "blender")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "blender", "", 0o755)
			require.NoError(t, make(dir))
			_, _, err := Scan(t.Context(), dir, "blender")
			require.Error(t, err)
		})
	}
}

// Whatever a manifest says, nothing outside of the folder is touched.
func TestHostileManifests(t *testing.T) {
	unix(t)
	const good = `"version": 1, "program": "blender", "executable": ["blender"]`
	many := func() string {
		var b strings.Builder
		for i := range maxEntries + 1 {
			fmt.Fprintf(&b, `"l%d": "blender",`, i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	for name, manifest := range map[string]string{
		"nothing":                             "",
		"damaged":                             "{",
		"another version":                     `{"version": 2, "program": "blender", "executable": ["blender"]}`,
		"no program":                          `{"version": 1}`,
		"a program outside":                   `{"version": 1, "program": "../victim", "executable": ["../victim"]}`,
		"an absolute program":                 `{"version": 1, "program": "/bin/sh", "executable": ["/bin/sh"]}`,
		"a program that is not there":         `{"version": 1, "program": "other", "executable": ["other"]}`,
		"a folder for a program":              `{"version": 1, "program": "lib", "executable": ["lib"]}`,
		"a program that may not be run":       `{"version": 1, "program": "blender", "executable": ["lib/a"]}`,
		"another program outside":             `{"version": 1, "program": "blender", "executable": ["blender", "../victim"]}`,
		"a link to the outside":               `{` + good + `, "links": {"x": "../victim"}}`,
		"a deep link to the outside":          `{` + good + `, "links": {"lib/x": "../../victim"}}`,
		"an absolute link":                    `{` + good + `, "links": {"x": "/etc/passwd"}}`,
		"a link to the folder itself":         `{` + good + `, "links": {"x": "."}}`,
		"a link to nowhere":                   `{` + good + `, "links": {"x": ""}}`,
		"a link to what is not there":         `{` + good + `, "links": {"x": "nothing"}}`,
		"a link outside":                      `{` + good + `, "links": {"../x": "blender"}}`,
		"a link in place of a file":           `{` + good + `, "links": {"lib/a": "../blender"}}`,
		"a link in place of a folder":         `{` + good + `, "links": {"lib": "blender"}}`,
		"a link in place of the manifest":     `{` + good + `, "links": {"vizpeer-build.json": "blender"}}`,
		"a link behind a link":                `{` + good + `, "links": {"x": "lib", "x/y": "../../victim"}}`,
		"a link by a way round":               `{` + good + `, "links": {"x": "lib/../../victim"}}`,
		"a link through a link":               `{` + good + `, "links": {"lib/up": "..", "x": "lib/up/../victim"}}`,
		"links in a ring":                     `{` + good + `, "links": {"x": "y", "y": "x"}}`,
		"a link behind a file":                `{` + good + `, "links": {"blender/x": "../lib"}}`,
		"a link with a device's name":         `{` + good + `, "links": {"NUL": "blender"}}`,
		"more links than any Blender has":     `{` + good + `, "links": {` + many() + `}}`,
		"more than anybody would ever read":   `{` + good + strings.Repeat(" ", maxManifest) + `}`,
		"a backslash, which Windows believes": `{` + good + `, "links": {"x": "..\\victim"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			write(t, above, "victim", "untouched", 0o644)
			dir := filepath.Join(above, "build")
			write(t, dir, "blender", "", 0o644)
			write(t, dir, "lib/a", "a", 0o644)
			if name != "nothing" {
				write(t, dir, ManifestName, manifest, 0o644)
			}
			_, err := Restore(dir)
			require.Error(t, err)
			entries, err := os.ReadDir(above)
			require.NoError(t, err)
			require.Len(t, entries, 2)
			info, err := os.Lstat(filepath.Join(above, "victim"))
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o644), info.Mode())
			text, err := os.ReadFile(filepath.Join(dir, "lib/a"))
			require.NoError(t, err)
			require.Equal(t, "a", string(text))
			require.NoError(t, Remove(dir))
		})
	}
	t.Run("a link for the manifest", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "blender", "", 0o644)
		write(t, dir, "m", `{`+good+`}`, 0o644)
		require.NoError(t, os.Symlink("m", filepath.Join(dir, ManifestName)))
		_, err := Restore(dir)
		require.ErrorContains(t, err, "no manifest")
	})
}

func FuzzManifest(f *testing.F) {
	f.Add(`{"version": 1, "program": "blender", "executable": ["blender"], "links": {"lib/x": "../blender", "y": "lib/x"}}`)
	f.Add(`{"version": 1, "program": "blender", "executable": ["blender"], "links": {"x": "lib", "lib/up": ".."}}`)
	f.Fuzz(func(t *testing.T, manifest string) {
		unix(t)
		above := t.TempDir()
		dir := filepath.Join(above, "build")
		write(t, dir, "blender", "", 0o644)
		write(t, dir, "lib/a", "a", 0o644)
		write(t, dir, ManifestName, manifest, 0o644)
		_, err := Restore(dir)
		if err == nil {
			inside, rerr := filepath.EvalSymlinks(dir)
			require.NoError(t, rerr)
			require.NoError(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
				if err != nil || e.Type() != fs.ModeSymlink {
					return err
				}
				to, err := filepath.EvalSymlinks(p)
				require.NoError(t, err)
				require.True(t, strings.HasPrefix(to, inside+"/"), "%s leads to %s", p, to)
				return nil
			}))
		}
		entries, rerr := os.ReadDir(above)
		require.NoError(t, rerr)
		require.Len(t, entries, 1)
		require.NoError(t, Remove(dir))
	})
}
