package blobs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/ipfs/go-cid"
)

// keepElsewhere is how many bytes stay free of a disk that is not the store's: what
// the file system itself needs for a new file. Config.MinFree is for the store.
const keepElsewhere = 4 << 20

// Export writes the tree below root into dir, which it creates if need be. Every
// byte is verified and nothing is ever written outside dir: names from nodes are
// checked as CheckPath does, and the operating system is asked through os.Root,
// so symlinks already in dir do not help an attacker either. Files get mode 0644
// and appear whole or not at all; files of the same name are replaced, others
// left alone. Not synced: a working copy can be made again. After an error part
// of the tree may be there. A root that is a single file is refused: ExportFile.
func (s *Store) Export(ctx context.Context, root cid.Cid, dir string) error {
	if err := s.export(ctx, root, dir, false); err != nil {
		return failed(fmt.Sprintf("export %s to %s", root, dir), dir, err)
	}
	return nil
}

// ExportDurably is Export into a folder of a user's: what it wrote is durable on return,
// and what a killed process leaves of a file is replaced by the next call, as with
// ExportFile.
func (s *Store) ExportDurably(ctx context.Context, root cid.Cid, dir string) error {
	if err := s.export(ctx, root, dir, true); err != nil {
		return failed(fmt.Sprintf("export %s to %s", root, dir), dir, err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, root cid.Cid, dir string, durable bool) error {
	if _, err := digestOf(root); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sum, err := s.Size(ctx, root)
	if err != nil {
		return err
	}
	// A few small nodes can describe a file of any size: better no than a full disk.
	if err := s.checkFree(dir, sum.Bytes); err != nil {
		return err
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	folders := map[string]bool{}
	err = s.eachEntry(ctx, root, func(e Entry, isDir bool) error {
		folders[path.Dir(e.Path)] = true
		switch {
		case isDir && e.Path == "":
			return nil
		case e.Path == "":
			return fmt.Errorf("%w: it is a file, not a folder", ErrBadNode)
		case isDir:
			err := r.Mkdir(e.Path, 0o755)
			if errors.Is(err, fs.ErrExist) {
				fi, serr := r.Lstat(e.Path)
				if serr != nil || !fi.IsDir() {
					return fmt.Errorf("%s is in the way and not a folder", e.Path)
				}
				return nil
			}
			return err
		}
		tmp := path.Join(path.Dir(e.Path), tempName())
		if durable {
			tmp = path.Join(path.Dir(e.Path), partName(path.Base(e.Path)))
			if err := ignoreGone(r.Remove(tmp)); err != nil {
				return err
			}
		}
		f, err := r.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		err = s.copyTo(ctx, f, e.CID)
		if err == nil && durable {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = r.Rename(tmp, e.Path)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("file %q: %w", e.Path, err), ignoreGone(r.Remove(tmp)))
		}
		return nil
	})
	if err != nil || !durable {
		return err
	}
	for folder := range folders {
		if err := syncDir(filepath.Join(dir, filepath.FromSlash(folder))); err != nil {
			return err
		}
	}
	return nil
}

// ExportFile writes one file to dst, an operating-system path whose folder must
// exist. It appears whole or not at all, replaces what was there, and is durable
// on return. A process that is killed meanwhile leaves a hidden ".NAME.vizpeer-part"
// beside it, which the next call for dst replaces: two processes must not write
// one dst at once. Errors: ErrDiskFull, of dst's
// disk, before anything is written where the file's size says so; ErrNotFound,
// ErrCorrupt, ErrBadNode, ctx's, the system's.
func (s *Store) ExportFile(ctx context.Context, c cid.Cid, dst string) error {
	if err := s.exportFile(ctx, c, dst); err != nil {
		return failed("write "+dst, filepath.Dir(dst), err)
	}
	return nil
}

func (s *Store) exportFile(ctx context.Context, c cid.Cid, dst string) error {
	dir := filepath.Dir(dst)
	r, size, err := s.OpenFile(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	// A few small nodes can describe a file of any size.
	if err := s.checkFree(dir, size); err != nil {
		return err
	}
	tmp := filepath.Join(dir, partName(filepath.Base(dst)))
	done, err := s.alone(ctx, tmp)
	if err != nil {
		return err
	}
	defer done()
	// What a killed process left goes first; O_EXCL follows no symlink.
	if err := ignoreGone(os.Remove(tmp)); err != nil {
		return systemCause(err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return systemCause(err)
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, dst)
	}
	if err != nil {
		os.Remove(tmp) // where this fails too, the next call tries again
		return systemCause(err)
	}
	return syncDir(dir)
}

// alone waits until no other ExportFile of this store writes tmp; call done after.
func (s *Store) alone(ctx context.Context, tmp string) (done func(), err error) {
	mine := make(chan struct{})
	for {
		other, taken := s.exporting.LoadOrStore(tmp, mine)
		if !taken {
			return func() { s.exporting.Delete(tmp); close(mine) }, nil
		}
		select {
		case <-other.(chan struct{}):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// partName is the temporary name beside a file called name. It is the same every
// time, so that what a killed process left is found again.
func partName(name string) string {
	const suffix = ".vizpeer-part"
	if len(name)+len(suffix)+1 > maxName {
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:])
	}
	return "." + name + suffix
}

// systemCause takes the temporary name out of the system's error: nobody asked
// for that file.
func systemCause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

// copyTo copies leaf by leaf: io.Copy prefers the WriteTo of the reader.
func (s *Store) copyTo(ctx context.Context, f *os.File, c cid.Cid) error {
	r, _, err := s.OpenFile(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(f, r)
	return err
}

// tempName is hidden, ours at a glance, and not a name a tree can guess.
func tempName() string { return ".vizpeer-" + rand.Text() + ".part" }
