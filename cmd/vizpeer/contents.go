package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vizpeer/peer/render"
)

// contents lists the files of what `blob add` was given: a file alone, or a
// folder's.
func contents(ctx context.Context, name string) (files []render.File, alone bool, err error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	}
	info, err := os.Stat(abs)
	switch {
	case err != nil:
		return nil, false, notFoundf("there is nothing to be read at %s: %w", plain(abs), pathless(err))
	case !info.IsDir():
		return []render.File{{Source: abs, Path: filepath.Base(abs)}}, true, nil
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, false, unreadable(err)
	}
	defer root.Close()
	files, err = folderFiles(ctx, root, "", nil)
	return files, false, err
}

// folderFiles lists the plain files below dir. Links are followed as long as they
// stay inside the root: what they lead to elsewhere was not given.
func folderFiles(ctx context.Context, root *os.Root, dir string, above []os.FileInfo) (files []render.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	f, err := root.Open(filepath.Join(".", dir))
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close()
	self, err := f.Stat()
	if err != nil {
		return nil, unreadable(err)
	}
	here := filepath.Join(root.Name(), dir)
	if slices.ContainsFunc(above, func(a os.FileInfo) bool { return os.SameFile(a, self) }) {
		return nil, usagef("%s is a link to a folder that it lies in: remove it", plain(here))
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, unreadable(err)
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	above = append(slices.Clip(above), self)
	for _, e := range entries {
		rel := filepath.Join(dir, e.Name())
		full := filepath.Join(root.Name(), rel)
		info, err := root.Stat(rel)
		switch {
		case err != nil && e.Type()&os.ModeSymlink != 0:
			return nil, usagef("%s is a link that is broken or leads out of the folder: remove it, or put there what it leads to", plain(full))
		case err != nil:
			return nil, unreadable(err)
		case info.IsDir():
			below, err := folderFiles(ctx, root, rel, above)
			if err != nil {
				return nil, err
			}
			files = append(files, below...)
		case info.Mode().IsRegular():
			files = append(files, render.File{Source: full, Path: filepath.ToSlash(rel)})
		default:
			return nil, usagef("%s is neither a file nor a folder: remove it", plain(full))
		}
	}
	return files, nil
}

// pathless is the system's own words of an error that names its path.
func pathless(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
