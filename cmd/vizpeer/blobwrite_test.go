package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tarOf packs name, text pairs.
func tarOf(t *testing.T, kind byte, list ...string) *bytes.Buffer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(list); i += 2 {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: kind, Name: list[i], Linkname: "/etc/passwd", Size: int64(len(list[i+1])), Mode: 0o644}))
		_, err := w.Write([]byte(list[i+1]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return &b
}

func TestNothingIsWrittenOutside(t *testing.T) {
	outside := t.TempDir()
	folder := filepath.Join(outside, "in")
	require.NoError(t, os.Mkdir(folder, 0o755))
	require.NoError(t, os.Symlink(outside, filepath.Join(folder, "link")))
	dir, err := os.OpenRoot(folder)
	require.NoError(t, err)
	defer dir.Close()
	for _, name := range []string{"../a", "/a", "b/../../a", "link/a", ""} {
		require.Error(t, unpack(dir, tarOf(t, tar.TypeReg, name, "x"), true), name)
	}
	require.Error(t, unpack(dir, tarOf(t, tar.TypeSymlink, "s", ""), true))
	require.NoFileExists(t, filepath.Join(outside, "a"))
	require.NoFileExists(t, filepath.Join(folder, "s"))
}

func TestFilesAppearWholeOrNot(t *testing.T) {
	folder := t.TempDir()
	dir, err := os.OpenRoot(folder)
	require.NoError(t, err)
	defer dir.Close()
	long := strings.Repeat("n", 250) + ".png"
	require.NoError(t, unpack(dir, tarOf(t, tar.TypeReg, "a/b.txt", "one", long, "two"), false))
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(folder, name))
		require.NoError(t, err)
		return string(data)
	}
	require.Equal(t, "one", read("a/b.txt"))
	require.Equal(t, "two", read(long))

	require.ErrorContains(t, unpack(dir, tarOf(t, tar.TypeReg, "a/b.txt", "new"), false), "b.txt is there already")
	require.Equal(t, "one", read("a/b.txt"))
	require.NoError(t, unpack(dir, tarOf(t, tar.TypeReg, "a/b.txt", "new"), true))
	require.Equal(t, "new", read("a/b.txt"))

	whole := tarOf(t, tar.TypeReg, "a/b.txt", strings.Repeat("x", 5000)).Bytes()
	require.Equal(t, exitUnreachable, exitCode(unpack(dir, bytes.NewReader(whole[:1000]), true)))
	require.ErrorContains(t, place(dir, "c", strings.NewReader("short"), 100, false), "broke off after 5 of 100 bytes")
	require.Equal(t, "new", read("a/b.txt"))
	entries, err := os.ReadDir(filepath.Join(folder, "a"))
	require.NoError(t, err)
	require.Len(t, entries, 1, "what was begun is gone")
	require.NoFileExists(t, filepath.Join(folder, "c"))
}
