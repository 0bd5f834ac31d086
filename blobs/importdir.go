package blobs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"sync/atomic"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
)

// ImportDir imports a folder of this machine as a tree, durably. Symlinks are
// followed if they stay inside the folder; one that leads outside, a loop and
// anything that is neither file nor folder is refused with ErrBadPath. progress,
// if not nil, is called with bytes read and bytes in all (files may still grow),
// from several goroutines at once.
func (s *Store) ImportDir(ctx context.Context, dir string, progress func(done, total int64)) (cid.Cid, Summary, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return cid.Undef, Summary{}, fmt.Errorf("import folder: %w", err)
	}
	defer root.Close()
	t := s.NewTree()
	defer t.Abort()
	scan := scanner{root: root, tree: t}
	if err := scan.folder(ctx, "", nil); err != nil {
		return cid.Undef, Summary{}, fmt.Errorf("import %s: %w", dir, err)
	}
	var done atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0))) // each file has its own pipeline; more only cost memory
	for _, p := range scan.files {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			f, err := root.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			var r io.Reader = f
			if progress != nil {
				r = &countingReader{f, func(n int) { progress(done.Add(int64(n)), scan.bytes) }}
			}
			_, err = t.AddFile(gctx, p, r)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return cid.Undef, Summary{}, failed("import "+dir, s.dir, err)
	}
	if err := ctx.Err(); err != nil {
		return cid.Undef, Summary{}, err
	}
	return t.Commit(ctx)
}

// scanner finds the files below a folder, so that progress knows the total and a
// bad name is reported before gigabytes have been read.
type scanner struct {
	root  *os.Root
	tree  *Tree
	files []string
	bytes int64
}

func (s *scanner) folder(ctx context.Context, dir string, above []os.FileInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := dir
	if name == "" {
		name = "."
	}
	f, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	self, err := f.Stat()
	if err != nil {
		return err
	}
	for _, a := range above {
		if os.SameFile(a, self) {
			return fmt.Errorf("%w: %q is a symlink to a folder it lies in", ErrBadPath, dir)
		}
	}
	above = append(above, self)
	entries, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	if len(entries) == 0 && dir != "" {
		return s.tree.AddDir(dir)
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if err := CheckPath(p); err != nil {
			return err
		}
		fi, err := s.root.Stat(p) // follows symlinks, never out of root
		if err != nil {
			if e.Type()&os.ModeSymlink != 0 {
				return fmt.Errorf("%w: symlink %q is broken or leads outside the folder: %w", ErrBadPath, p, err)
			}
			return err
		}
		switch {
		case fi.IsDir():
			err = s.folder(ctx, p, above)
		case fi.Mode().IsRegular():
			s.files = append(s.files, p)
			s.bytes += fi.Size()
			if len(s.files) > s.tree.s.cfg.MaxFiles {
				err = fmt.Errorf("%w: more than %d files", ErrTooLarge, s.tree.s.cfg.MaxFiles)
			}
		default:
			err = fmt.Errorf("%w: %q is neither a file nor a folder", ErrBadPath, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// countingReader reports what is read.
type countingReader struct {
	r    io.Reader
	read func(n int)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.read(n)
	}
	return n, err
}
