package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"

	"vizpeer/peer/httpapi"
)

// writeBlob writes what this machine's peer holds to output, a file or a folder.
// Each file appears whole or not at all, and replaces another only with force.
func (c *cli) writeBlob(ctx context.Context, cl *client, root httpapi.Root, output string, force bool) error {
	if !force {
		if _, err := os.Lstat(output); err == nil {
			return fmt.Errorf("%s is there already: give another --output, or --force to overwrite it", plain(output))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the output: %w", err)
		}
	}
	folder := output
	if !root.Folder {
		folder = filepath.Dir(output)
	}
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return fmt.Errorf("the output folder cannot be made: %w: choose another with --output", err)
	}
	dir, err := os.OpenRoot(folder) // nothing is written outside of it, whatever the names say
	if err != nil {
		return fmt.Errorf("the output folder cannot be opened: %w: choose another with --output", err)
	}
	defer dir.Close()
	resp, err := cl.exchange(ctx, http.MethodGet, blobPath(root.CID, ""), "", nil)
	if err != nil {
		return unknownBlob(root.CID, err)
	}
	defer resp.Body.Close()
	body, done := c.transferBar("Writing", resp.Body, root.Size)
	defer done()
	if root.Folder {
		err = unpack(dir, body, force)
	} else {
		err = place(dir, filepath.Base(output), body, root.Size, force)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// unpack writes the files of a tar below dir.
func unpack(dir *os.Root, body io.Reader, force bool) error {
	t := tar.NewReader(bufio.NewReaderSize(body, 256<<10))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return unreachablef("the peer broke off: %w: try again, what is written already needs --force", err)
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(filepath.FromSlash(h.Name)) {
			return fmt.Errorf("the peer sent %q, which has no place in a folder: nothing more was written", h.Name)
		}
		if parent := path.Dir(h.Name); parent != "." {
			if err := dir.MkdirAll(filepath.FromSlash(parent), 0o777); err != nil {
				return fmt.Errorf("the output cannot be written: %w", err)
			}
		}
		if err := place(dir, filepath.FromSlash(h.Name), t, h.Size, force); err != nil {
			return err
		}
	}
}

// place writes one file below dir.
func place(dir *os.Root, name string, body io.Reader, size int64, force bool) (err error) {
	failed := func(err error) error {
		return fmt.Errorf("%s cannot be written: %w", plain(filepath.Join(dir.Name(), name)), pathless(err))
	}
	part := filepath.Join(filepath.Dir(name), partName(filepath.Base(name)))
	if err := ignoreMissing(dir.Remove(part)); err != nil {
		return failed(err)
	}
	f, err := dir.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return failed(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(dir.Remove(part)))
		}
	}()
	got, err := io.Copy(f, body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	_, here := errors.AsType[*os.PathError](err) // and not in the peer's answer
	switch {
	case here:
		return failed(err)
	case err != nil, got != size:
		return unreachablef("the peer broke off after %d of %d bytes of %s: try again", got, size, plain(name))
	}
	if force {
		if err := dir.Rename(part, name); err != nil {
			return failed(err)
		}
		return nil
	}
	// A link, other than a renaming, does not replace what came there meanwhile.
	if err := dir.Link(part, name); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: give another --output, or --force to overwrite it", plain(filepath.Join(dir.Name(), name)))
	} else if err != nil { // a disk without links
		if err := dir.Rename(part, name); err != nil {
			return failed(err)
		}
		return nil
	}
	return ignoreMissing(dir.Remove(part))
}

// partName is the hidden name beside a file under which it is written. It is the
// same every time, so that what a killed command left is found again.
func partName(name string) string {
	if len(name) > 200 { // with more, a system might not take it
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:])
	}
	return "." + name + ".vizpeer-part"
}
