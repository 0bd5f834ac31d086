// Package portable takes the folder of a portable Blender apart and puts it together
// again on another machine. The content store keeps files and their names; a program
// also needs to know which of them are programs, and the links between its libraries.
// Both stand in a manifest beside the files.
//
// It promises that nothing is written, linked or made executable outside the folder,
// whatever the manifest says.
//
// It does not decide which Blender may be trusted: that is an admin's word in the
// farm's roster.
package portable

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"vizpeer/blobs"
)

// ManifestName is the manifest's file, at the root of the folder.
const ManifestName = "vizpeer-build.json"

// format is the version of the manifest that this package writes and reads.
const format = 1

// Limits of a manifest.
const (
	maxManifest = 8 << 20 // bytes
	maxEntries  = 100_000
)

// Manifest is what the store does not keep of a folder.
type Manifest struct {
	Version int `json:"version"`
	// Program is the path of the Blender itself. Paths are as in the store:
	// slash-separated, below the folder.
	Program string `json:"program"`
	// Executable are the files that may be run, in order.
	Executable []string `json:"executable"`
	// Links are the symlinks by path, with where they lead from their own folder.
	Links map[string]string `json:"links,omitempty"`
}

// File is a file of a folder: where it is, and its path in the content.
type File struct{ Source, Path string }

// Scan lists what of dir is to be stored, without the manifest that it also makes.
// program is the Blender's path below dir. A link that leads out of the folder, or
// nowhere, is an error; empty folders are left out.
func Scan(ctx context.Context, dir, program string) ([]File, Manifest, error) {
	m := Manifest{Version: format, Program: filepath.ToSlash(program), Links: map[string]string{}}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, m, err
	}
	defer root.Close()
	var files []File
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case p == "." || p == ManifestName: // an earlier one says nothing of this folder
			return nil
		}
		full := filepath.Join(dir, filepath.FromSlash(p))
		if err := blobs.CheckPath(p); err != nil {
			return fmt.Errorf("%s cannot be stored: %w", full, err)
		}
		switch {
		case e.IsDir():
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(full)
			if err != nil {
				return err
			}
			m.Links[p] = filepath.ToSlash(to)
			if _, err := root.Stat(filepath.FromSlash(p)); err != nil {
				return fmt.Errorf("%s is a link to %q, which leads out of the folder or nowhere: put the file itself there, or remove the link", full, to)
			}
		case e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return err
			}
			if info.Mode()&0o111 != 0 || p == m.Program {
				m.Executable = append(m.Executable, p)
			}
			files = append(files, File{Source: full, Path: p})
		default:
			return fmt.Errorf("%s is neither a file nor a folder: remove it", full)
		}
		return nil
	})
	if err != nil {
		return nil, m, err
	}
	return files, m, m.check()
}

// check refuses a manifest that could do harm, or that no [Scan] has made.
func (m Manifest) check() error {
	switch {
	case m.Version != format:
		return fmt.Errorf("its manifest is of version %d and this vizpeer reads %d: update vizpeer", m.Version, format)
	case len(m.Executable) > maxEntries || len(m.Links) > maxEntries:
		return fmt.Errorf("its manifest has more than %d entries", maxEntries)
	case !slices.Contains(m.Executable, m.Program):
		return fmt.Errorf("its program %.80q is not one that may be run", m.Program)
	}
	for _, p := range m.Executable {
		if err := blobs.CheckPath(p); err != nil {
			return err
		}
	}
	for p, to := range m.Links {
		if err := blobs.CheckPath(p); err != nil {
			return err
		}
		// No link lies behind another, so that where one leads can be seen from its
		// text alone.
		for above := path.Dir(p); above != "."; above = path.Dir(above) {
			if _, link := m.Links[above]; link {
				return fmt.Errorf("the link %.80q lies behind the link %.80q", p, above)
			}
		}
		inside := path.Join(path.Dir(p), to)
		if to == "" || path.IsAbs(to) || path.Clean(to) != to || inside == "." || inside == ".." || strings.HasPrefix(inside, "../") {
			return fmt.Errorf("the link %.80q leads to %.80q, which is not in the folder", p, to)
		}
		if err := blobs.CheckPath(inside); err != nil {
			return fmt.Errorf("the link %.80q leads to %.80q: %w", p, to, err)
		}
	}
	return nil
}

// Read reads the manifest of a folder.
func Read(dir string) (m Manifest, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return m, err
	}
	defer root.Close()
	return read(root)
}

func read(root *os.Root) (m Manifest, err error) {
	// What is no plain file could take for ever to read.
	if info, err := root.Lstat(ManifestName); err != nil || !info.Mode().IsRegular() {
		return m, errors.Join(errors.New("it is no folder of a Blender: it has no manifest"), err)
	}
	f, err := root.Open(ManifestName)
	if err != nil {
		return m, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return m, err
	}
	if len(text) > maxManifest {
		return m, fmt.Errorf("its manifest has more than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("its manifest is damaged: %w", err)
	}
	return m, m.check()
}

// Restore makes of a folder that the store has written, and that nobody else writes
// to, what it was: its links and programs. Then all of it is read only. It returns the
// path of the Blender.
func Restore(dir string) (program string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	m, err := read(root)
	if err != nil {
		return "", err
	}
	for _, p := range m.Executable {
		if info, err := root.Lstat(p); err != nil || !info.Mode().IsRegular() {
			return "", errors.Join(fmt.Errorf("its program %.80q is no file", p), err)
		}
	}
	for p, to := range m.Links {
		if err := root.MkdirAll(path.Dir(p), 0o755); err != nil {
			return "", err
		}
		if err := root.Symlink(filepath.FromSlash(to), p); err != nil {
			return "", err
		}
	}
	for p, to := range m.Links {
		// The system says the same as check: root follows no link out of the folder.
		if _, err := root.Stat(p); err != nil {
			return "", fmt.Errorf("the link %.80q leads to %.80q: %w", p, to, err)
		}
	}
	if err := freeze(root, m); err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.FromSlash(m.Program)), nil
}

// freeze lets programs be run, and takes the right to write from all.
func freeze(root *os.Root, m Manifest) error {
	runs := make(map[string]bool, len(m.Executable))
	for _, p := range m.Executable {
		runs[p] = true
	}
	var folders []string
	err := fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			folders = append(folders, p)
			return nil
		case !e.Type().IsRegular():
			return nil
		case runs[p]:
			return root.Chmod(p, 0o555)
		}
		return root.Chmod(p, 0o444)
	})
	if err != nil || runtime.GOOS == "windows" { // which knows no such folders
		return err
	}
	for _, p := range slices.Backward(folders) {
		if p == "." { // it is still to be moved to its place
			continue
		}
		if err := root.Chmod(p, 0o555); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes a folder although it is read only.
func Remove(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = os.Chmod(p, 0o700) // RemoveAll says what is wrong, if it matters
		}
		return nil
	})
	return os.RemoveAll(dir)
}
