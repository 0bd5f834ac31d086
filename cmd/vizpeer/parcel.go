package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// parcel is what an upload sends: files of this machine under their paths in the
// content. They must stay as they are until it has been sent: content that mixes
// two states of a scene would render wrong frames without a word.
type parcel struct {
	manifest []byte // the first file, as render.ManifestName; nil: none
	items    []item
	sent     *sentFiles
	now      func() time.Time
}

type item struct {
	source  string // absolute
	path    string // in the content
	stamp   stamp
	receipt string // sent instead of the bytes, if not ""
	read    time.Time
}

// pack plans a parcel. With rehash, every file is read whatever is remembered.
func pack(files []render.File, manifest []byte, sent *sentFiles, rehash bool) (*parcel, error) {
	files, err := distinct(files, runtime.GOOS)
	if err != nil {
		return nil, err
	}
	p := &parcel{manifest: manifest, sent: sent, now: time.Now, items: make([]item, len(files))}
	for i, f := range files {
		is, err := stampAt(f.Source)
		if err != nil {
			return nil, unreadable(err)
		}
		p.items[i] = item{source: f.Source, path: f.Path, stamp: is}
		if !rehash {
			p.items[i].receipt = sent.receipt(f.Source, is)
		}
	}
	p.order()
	return p, nil
}

func unreadable(err error) error {
	return fmt.Errorf("a file that is to be sent cannot be read: %w", err)
}

func stampAt(path string) (stamp, error) {
	// To open a pipe could take for ever.
	if info, err := os.Stat(path); err != nil {
		return stamp{}, err
	} else if !info.Mode().IsRegular() {
		return stamp{}, fmt.Errorf("%s is not a plain file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return stamp{}, err
	}
	defer f.Close()
	return stampOf(f)
}

// order puts receipts before bytes, so that a peer that lacks something says so
// before anything was sent for nothing.
func (p *parcel) order() {
	slices.SortStableFunc(p.items, func(a, b item) int {
		switch {
		case (a.receipt == "") == (b.receipt == ""):
			return 0
		case a.receipt != "":
			return -1
		}
		return 1
	})
}

// left is what is to be sent, in files and bytes.
func (p *parcel) left() (files int, bytes int64) {
	for _, it := range p.items {
		if it.receipt == "" {
			files++
			bytes += it.stamp.Size
		}
	}
	return files, bytes
}

// distinct makes sure that no two files become one on a machine that takes a and A
// for the same, as the farm's machines with Windows and macOS do. Where this
// machine does so itself, such paths mean the same file, and the first spelling
// stands for all.
func distinct(files []render.File, system string) ([]render.File, error) {
	type spelling struct{ name, source string }
	seen := make(map[string]spelling) // by folded path, folders too
	taken := make(map[string]bool)
	out := files[:0:0]
	for _, f := range files {
		name, folded := "", ""
		for part := range strings.SplitSeq(f.Path, "/") {
			name, folded = path.Join(name, part), path.Join(folded, foldName(part))
			first, known := seen[folded]
			switch {
			case !known:
				seen[folded] = spelling{name, f.Source}
			case first.name == name:
			case system == "windows" || system == "darwin":
				name = first.name
			default:
				return nil, fmt.Errorf("%s and %s differ only in capital letters or in how their accents are written, here: %q and %q. Machines of the farm that run Windows or macOS would take them for one: rename one of the two",
					first.source, f.Source, path.Base(first.name), part)
			}
		}
		if f.Path = name; !taken[name] {
			taken[name] = true
			out = append(out, f)
		}
	}
	return out, nil
}

// foldName maps names that macOS or Windows take for the same file to one text.
func foldName(name string) string {
	return norm.NFC.String(strings.ToLower(strings.ToUpper(norm.NFC.String(name))))
}

// A peer that held a file when it was asked may have let it go when asked again;
// after so many tries everything is sent.
const maxReceiptTries = 3

// deliver sends the parcel to the route and decodes the answer; receipts are those
// in the answer.
func (c *cli) deliver(ctx context.Context, cl *client, route string, p *parcel, answer any, receipts *[]string) error {
	for try := 1; ; try++ {
		err := c.sendOnce(ctx, cl, route, p, answer)
		problem, ok := errors.AsType[*httpapi.Problem](err)
		if !ok || problem.Code != httpapi.CodeLacking || try > maxReceiptTries+1 {
			if err != nil {
				return err
			}
			break
		}
		lacks := make(map[string]bool, len(problem.Lacks))
		for _, name := range problem.Lacks {
			lacks[name] = true
		}
		for i := range p.items {
			if lacks[p.items[i].path] || try >= maxReceiptTries {
				p.items[i].receipt = ""
			}
		}
		p.order()
	}
	given := *receipts
	if p.manifest != nil && len(given) > 0 {
		given = given[1:]
	}
	if len(given) == len(p.items) {
		for i, it := range p.items {
			if it.receipt == "" {
				p.sent.add(it.source, it.stamp, it.read, given[i])
			}
		}
	}
	// Without it, files are only read again.
	if err := p.sent.save(); err != nil {
		c.hint("What was sent could not be noted, so it will be read again next time: %s", plain(err.Error()))
	}
	return nil
}

func (c *cli) sendOnce(ctx context.Context, cl *client, route string, p *parcel, answer any) error {
	files, total := p.left()
	if same := len(p.items) - files; same > 0 && c.live() {
		c.say("%s unchanged since this peer was sent it last", count(same, "file"))
	}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := p.write(w)
		w.CloseWithError(err)
		written <- err
	}()
	body, done := c.transferBar("Sending", r, total)
	err := cl.upload(ctx, route, body, answer)
	done()
	r.CloseWithError(errUploadOver)
	// The cause on this side says more than the broken exchange that it led to. A
	// pipe that the exchange closed is no cause but its effect.
	if cause := <-written; cause != nil && !errors.Is(cause, errUploadOver) && !errors.Is(cause, io.ErrClosedPipe) {
		return cause
	}
	return err
}

var errUploadOver = errors.New("the upload is over")

// upload sends a tar. It takes as long as it takes.
func (cl *client) upload(ctx context.Context, route string, tar io.Reader, answer any) error {
	resp, err := cl.exchange(ctx, http.MethodPost, route, "application/x-tar", tar)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return cl.decode(ctx, resp, "the upload", answer)
}

// write writes the parcel as a tar.
func (p *parcel) write(w io.Writer) error {
	t := tar.NewWriter(w)
	if p.manifest != nil {
		if err := t.WriteHeader(&tar.Header{Name: render.ManifestName, Mode: 0o644, Size: int64(len(p.manifest))}); err != nil {
			return err
		}
		if _, err := t.Write(p.manifest); err != nil {
			return err
		}
	}
	for i := range p.items {
		p.items[i].read = p.now()
		if err := p.items[i].write(t); err != nil {
			return err
		}
	}
	return t.Close()
}

func (it *item) write(t *tar.Writer) error {
	header := &tar.Header{Name: it.path, Mode: 0o644, Size: it.stamp.Size}
	if it.receipt != "" {
		header.Size, header.PAXRecords = 0, map[string]string{httpapi.ReceiptRecord: it.receipt}
	}
	if it.receipt != "" {
		return t.WriteHeader(header)
	}
	f, err := os.Open(it.source)
	if err != nil {
		return unreadable(err)
	}
	defer f.Close()
	if err := it.unchanged(f); err != nil {
		return err
	}
	if err := t.WriteHeader(header); err != nil {
		return fmt.Errorf("%s cannot be sent: %w", it.source, err)
	}
	if _, err := io.CopyN(t, f, it.stamp.Size); err == io.EOF {
		return it.changed()
	} else if err != nil {
		return err
	}
	return it.unchanged(f)
}

// unchanged makes sure that a file is what it was when the parcel was planned.
func (it *item) unchanged(f *os.File) error {
	switch now, err := stampOf(f); {
	case err != nil:
		return unreadable(err)
	case now != it.stamp:
		return it.changed()
	}
	return nil
}

func (it *item) changed() error {
	return fmt.Errorf("%s was changed while it was being sent: try again when nothing writes to it", it.source)
}
