package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/image/draw"

	"vizpeer/lease"
)

// The values of a frame's ?size.
const (
	sizeFull    = "full"
	sizePreview = "preview"
)

// Bounds of one picture of a part: it comes from the machine that renders it.
const (
	maxPreviewBytes = 1 << 20
	maxPreviewSide  = 2048
)

// preview answers one picture of all that there is to see of a frame. It is made for who
// asks: nobody pays for pictures that nobody looks at.
func (s *Server) preview(ctx context.Context, x *exchange, job lease.JobID, f Frame) (*huma.StreamResponse, error) {
	parts := make([]part, 0, len(f.Previews))
	for _, p := range f.Previews {
		img, err := s.readPreview(ctx, p.CID, lease.FrameOf(job, f.Frame))
		if err != nil {
			// One machine's must not keep the others' from being seen; it may have gone.
			s.log.Debug("a preview cannot be shown", "job", job, "frame", f.Frame, "err", err)
			continue
		}
		parts = append(parts, part{p.Span, img})
	}
	whole := assemble(f.Split, parts)
	if whole == nil {
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("there is nothing to see of frame %d now: ask again in a moment", f.Frame))
	}
	var text bytes.Buffer
	if err := jpeg.Encode(&text, whole, &jpeg.Options{Quality: 85}); err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		x.w.Header().Set("Content-Type", "image/jpeg")
		x.w.Header().Set("Cache-Control", "no-store") // the next one shows more
		_, _ = x.w.Write(text.Bytes())
	}}, nil
}

func (s *Server) readPreview(ctx context.Context, cid string, by lease.Scope) (image.Image, error) {
	r, size, err := s.local.Open(ctx, cid, by, maxPreviewBytes)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxPreviewBytes {
		return nil, fmt.Errorf("it has %d bytes", size)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxPreviewBytes))
	if err != nil {
		return nil, err
	}
	c, err := jpeg.DecodeConfig(bytes.NewReader(text))
	switch {
	case err != nil:
		return nil, err
	case c.Width > maxPreviewSide || c.Height > maxPreviewSide:
		return nil, errors.New("it is too large")
	}
	return jpeg.Decode(bytes.NewReader(text))
}

// part is a picture of units of a frame.
type part struct {
	lease.Span
	image.Image
}

// assemble puts the pictures of a frame's parts together: those of samples are weighted
// by their number, and tiles have their places. It is nil where there are none.
func assemble(split lease.Split, parts []part) image.Image {
	if len(parts) == 0 {
		return nil
	}
	if split.By == lease.ByTiles {
		return tiled(split, parts)
	}
	return mean(parts)
}

// mean weighs pictures by their samples. It is a mean of what people see and not of
// light, which is near enough for noise that gets less.
func mean(parts []part) image.Image {
	size := image.Rectangle{Max: parts[0].Bounds().Size()}
	sum := make([]float64, 3*size.Dx()*size.Dy())
	samples := 0.0
	for _, p := range parts {
		if p.Bounds().Size() != size.Max {
			continue // it is of another frame, or its machine lies
		}
		n := float64(p.Len())
		samples += n
		img := asRGBA(p.Image)
		for i := range size.Dx() * size.Dy() {
			for c := range 3 {
				sum[3*i+c] += n * float64(img.Pix[4*i+c])
			}
		}
	}
	out := image.NewRGBA(size)
	for i := range size.Dx() * size.Dy() {
		for c := range 3 {
			out.Pix[4*i+c] = uint8(sum[3*i+c]/samples + 0.5)
		}
		out.Pix[4*i+3] = 255
	}
	return out
}

// asRGBA is a picture with its pixels in rows, beginning at zero.
func asRGBA(img image.Image) *image.RGBA {
	out := image.NewRGBA(image.Rectangle{Max: img.Bounds().Size()})
	draw.Draw(out, out.Bounds(), img, img.Bounds().Min, draw.Src)
	return out
}

// tiled puts tiles where they belong, on grey.
func tiled(split lease.Split, parts []part) image.Image {
	first := parts[0].Bounds().Size()
	width, height := int64(first.X)*int64(split.Columns), int64(first.Y)*int64(split.Rows)
	if most := max(width, height); most > maxPreviewSide {
		width, height = max(1, width*maxPreviewSide/most), max(1, height*maxPreviewSide/most)
	}
	out := image.NewRGBA(image.Rect(0, 0, int(width), int(height)))
	draw.Draw(out, out.Bounds(), image.NewUniform(color.Gray{64}), image.Point{}, draw.Src)
	columns, rows := int64(split.Columns), int64(split.Rows)
	for _, p := range parts {
		c, r := int64(p.From)%columns, int64(p.From)/columns
		// Rows of tiles count from the bottom, those of pictures from the top.
		at := image.Rect(int(c*width/columns), int(height-(r+1)*height/rows), int((c+1)*width/columns), int(height-r*height/rows))
		draw.ApproxBiLinear.Scale(out, at, p.Image, p.Bounds(), draw.Src, nil)
	}
	return out
}
