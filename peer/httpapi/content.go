package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/ipfs/go-cid"

	"vizpeer/lease"
)

// content is something that is named by its CID, to be answered as bytes.
type content struct {
	cid  string
	size int64 // bytes, as the leader knows it
	kind string
	name string // of the file it is saved as
}

// frame answers a picture. The leader says whether the caller may see the job
// and which CID the frame has; the bytes come from this machine's store.
func (s *Server) frame(ctx context.Context, in *struct {
	exchange
	ID    lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Frame int32       `path:"frame"`
	Size  string      `query:"size" enum:"full,thumb,preview" doc:"full, the default; thumb: a small JPEG of it; preview: that, or while it is not finished a JPEG of what is there of it"`
}) (*huma.StreamResponse, error) {
	c := callerOf(ctx)
	q, err := s.part(ctx, c)
	if err != nil {
		return nil, err
	}
	f, err := q.Frame(ctx, c.Principal, in.ID, in.Frame)
	if err != nil {
		return nil, err
	}
	by := lease.FrameOf(in.ID, f.Frame)
	switch {
	case in.Size == sizePreview && len(f.Previews) > 0:
		return s.preview(ctx, &in.exchange, in.ID, f)
	case in.Size == sizePreview && f.CID == "":
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("frame %d is %s: there is nothing to see of it yet", f.Frame, f.State))
	case in.Size != "" && in.Size != sizeFull && f.CID != "" && f.Thumb == "":
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("frame %d has no small picture: its machine could make none; ask for it without ?size", f.Frame))
	case in.Size != "" && in.Size != sizeFull && f.CID != "":
		return serveContent(&in.exchange, content{f.Thumb, -1, "image/jpeg", strings.TrimSuffix(path.Base(f.Name), path.Ext(f.Name)) + ".jpg"}, s.opener(ctx, f.Thumb, by, maxPreviewBytes))
	}
	if f.CID == "" {
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("frame %d is %s: it has no picture yet", f.Frame, f.State))
	}
	return serveContent(&in.exchange, content{f.CID, f.Size, imageType(f.Name), path.Base(f.Name)}, s.opener(ctx, f.CID, by, f.Size))
}

// frameExtra answers what is beside a frame.
func (s *Server) frameExtra(ctx context.Context, in *struct {
	exchange
	ID    lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Frame int32       `path:"frame"`
}) (*huma.StreamResponse, error) {
	c := callerOf(ctx)
	q, err := s.part(ctx, c)
	if err != nil {
		return nil, err
	}
	f, err := q.Frame(ctx, c.Principal, in.ID, in.Frame)
	if err != nil {
		return nil, err
	}
	if f.Extra == "" {
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("frame %d is %s: there is nothing beside its picture", f.Frame, f.State))
	}
	files, err := s.local.OpenFolder(ctx, f.Extra, lease.FrameOf(in.ID, f.Frame))
	if err != nil {
		return nil, err
	}
	return s.sendTar(ctx, &in.exchange, f.Extra, files), nil
}

// opener opens content of the queue's, from wherever in the farm it is.
// size is how many bytes it has, as far as is known: what has many more is not fetched.
func (s *Server) opener(ctx context.Context, cid string, by lease.Scope, size int64) func() (io.ReadSeekCloser, int64, error) {
	return func() (io.ReadSeekCloser, int64, error) { return s.local.Open(ctx, cid, by, size) }
}

// serveContent answers c with ranges and an ETag, and opens it only where its
// bytes are wanted.
func serveContent(x *exchange, c content, open func() (io.ReadSeekCloser, int64, error)) (*huma.StreamResponse, error) {
	if _, err := cid.Decode(c.cid); err != nil {
		return nil, fmt.Errorf("the queue names content by %q: %w", c.cid, err)
	}
	etag := `"` + c.cid + `"`
	var body io.ReadSeekCloser
	if c.size >= 0 && (x.r.Method == http.MethodHead || strings.TrimPrefix(x.r.Header.Get("If-None-Match"), "W/") == etag) {
		body = unread{io.NewSectionReader(nil, 0, c.size)}
	} else {
		var err error
		if body, _, err = open(); err != nil {
			return nil, err
		}
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer body.Close()
		h := x.w.Header()
		h.Set("Content-Type", c.kind)
		h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": c.name}))
		h.Set("ETag", etag)
		h.Set("Cache-Control", "private, no-cache") // whoever loses the right to it shall not find it there
		http.ServeContent(x.w, x.r, "", time.Time{}, body)
	}}, nil
}

// unread has a size, which is all that a header needs.
type unread struct{ *io.SectionReader }

func (unread) Read([]byte) (int, error) {
	return 0, errors.New("httpapi: content that was not to be read")
}
func (unread) Close() error { return nil }

// imageType is the content type of a picture by its name's ending. A name comes
// from the machine that rendered it: what is not a known picture is only bytes.
func imageType(name string) string {
	switch strings.ToLower(path.Ext(name)) {
	case ".png":
		return "image/png"
	case ".jpg", ".jpeg":
		return "image/jpeg"
	case ".webp":
		return "image/webp"
	case ".tif", ".tiff":
		return "image/tiff"
	case ".bmp":
		return "image/bmp"
	case ".exr":
		return "image/x-exr"
	case ".hdr":
		return "image/vnd.radiance"
	case ".jp2":
		return "image/jp2"
	}
	return "application/octet-stream"
}

// exchange gives a handler the request and the response themselves.
type exchange struct {
	r *http.Request
	w http.ResponseWriter
}

// Resolve is how huma hands them over.
func (x *exchange) Resolve(hc huma.Context) []error {
	x.r, x.w = humago.Unwrap(hc)
	return nil
}
