package httpapi

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"os"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/blobs"
)

const tarType = "application/x-tar"

// ReceiptRecord is the PAX record of a tar's entry that has no bytes: its content is
// what the receipt proves that this caller sent here before. Such entries come
// before those with bytes, so that a peer that lacks some of it can say so at once.
const ReceiptRecord = "VIZPEER.receipt"

// takesTar makes an endpoint whose body is not read by huma but streamed.
func takesTar(add endpoint) endpoint {
	return func(s *Server, from side, rt *route, api huma.API, op huma.Operation) {
		op.RequestBody = &huma.RequestBody{
			Required: true,
			Content:  map[string]*huma.MediaType{tarType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
		}
		op.Description += " An entry without bytes may instead carry the PAX record " + ReceiptRecord + " with a receipt from an earlier upload of the same caller; " +
			"such entries come first. Where this machine no longer holds all of them it answers the code lacking with their paths: send those as files."
		add(s, from, rt, api, op)
	}
}

func (s *Server) importProject(ctx context.Context, in *struct {
	exchange
	Receipts bool `query:"receipts" doc:"answer with receipts"`
}) (*answer[Project], error) {
	up, err := s.uploaded(&in.exchange)
	if err != nil {
		return nil, err
	}
	project, err := s.local.ImportProject(ctx, callerOf(ctx).Principal, up.files())
	if err != nil {
		return nil, err
	}
	up.drain()
	if !in.Receipts {
		project.Receipts = nil
	}
	project.Missing = list(project.Missing)
	return answerWith(project, s.fits(project.Size))
}

// upload is a tar that is coming in.
type upload struct {
	s    *Server
	body io.Reader
}

func (s *Server) uploaded(x *exchange) (*upload, error) {
	if kind, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || kind != tarType {
		return nil, newProblem(http.StatusUnsupportedMediaType, CodeInvalid, "files are uploaded as a tar: send it as Content-Type: "+tarType)
	}
	if x.r.ContentLength > s.cfg.MaxProject {
		return nil, tooLarge(s.cfg.MaxProject)
	}
	return &upload{s, http.MaxBytesReader(x.w, x.r.Body, s.cfg.MaxProject)}, nil
}

// drain reads what tar programs write after the end: a caller that still sends
// it must not find the connection closed.
func (u *upload) drain() { io.CopyN(io.Discard, u.body, 1<<20) }

// fits refuses what receipts made larger than an upload may be.
func (s *Server) fits(size int64) error {
	if size > s.cfg.MaxProject {
		return tooLarge(s.cfg.MaxProject)
	}
	return nil
}

func tooLarge(limit int64) error {
	return fmt.Errorf("%w: the project is larger than the %d bytes allowed", ErrTooLarge, limit)
}

// files yields the files of a tar, or an error at the first thing that has no
// place in a project: what is neither a file nor a folder, a path that could
// leave the project, more entries or bytes than allowed, an end too soon.
func (u *upload) files() iter.Seq2[ProjectFile, error] {
	s := u.s
	return func(yield func(ProjectFile, error) bool) {
		tr := tar.NewReader(bufio.NewReaderSize(u.body, 256<<10))
		entries, total := 0, int64(0)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return
			}
			var f ProjectFile
			if err != nil {
				err = s.tarError(err)
			} else {
				entries++
				f, err = projectFile(h)
				total += f.Size
			}
			switch {
			case err != nil:
			case entries > s.cfg.MaxEntries:
				err = fmt.Errorf("%w: the project has more than the %d files and folders allowed", ErrTooLarge, s.cfg.MaxEntries)
			case total > s.cfg.MaxProject:
				err = tooLarge(s.cfg.MaxProject)
			case f.Path == "":
				continue
			}
			if err != nil {
				yield(ProjectFile{}, err)
				return
			}
			f.Body = tarBody{s, tr}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// projectFile checks an entry. Folders have no Path in the answer: they come
// with their files.
func projectFile(h *tar.Header) (ProjectFile, error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return ProjectFile{}, nil
	case tar.TypeReg, tar.TypeDir:
	default:
		return ProjectFile{}, fmt.Errorf("%w: %q is neither a plain file nor a folder (tar type %q): send links as the files they point to", ErrInvalid, h.Name, h.Typeflag)
	}
	for key := range h.PAXRecords {
		// A few bytes of these make a file of any size.
		if strings.HasPrefix(key, "GNU.sparse.") {
			return ProjectFile{}, fmt.Errorf("%w: %q is packed as a sparse file: pack the tar without --sparse", ErrInvalid, h.Name)
		}
	}
	name := h.Name
	for strings.HasPrefix(name, "./") {
		name = name[2:]
	}
	name = strings.TrimSuffix(name, "/")
	if h.Typeflag == tar.TypeDir && (name == "" || name == ".") {
		return ProjectFile{}, nil
	}
	if err := blobs.CheckPath(name); err != nil {
		return ProjectFile{}, err
	}
	if h.Typeflag == tar.TypeDir {
		return ProjectFile{}, nil
	}
	f := ProjectFile{Path: name, Size: h.Size, Receipt: h.PAXRecords[ReceiptRecord]}
	if f.Receipt != "" && f.Size > 0 {
		return ProjectFile{}, fmt.Errorf("%w: %q has both bytes and a receipt: send one of the two", ErrInvalid, h.Name)
	}
	return f, nil
}

// tarBody is the bytes of the tar's current file.
type tarBody struct {
	s  *Server
	tr *tar.Reader
}

func (b tarBody) Read(p []byte) (int, error) {
	n, err := b.tr.Read(p)
	if err != nil && err != io.EOF {
		err = b.s.tarError(err)
	}
	return n, err
}

// tarError says why a tar could not be read on.
func (s *Server) tarError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return tooLarge(large.Limit)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: this is not a tar: %w", ErrInvalid, err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		return bodyError(err, s.cfg.Stall)
	}
	return fmt.Errorf("reading the upload: %w", err)
}
