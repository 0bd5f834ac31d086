package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/render"
)

// errPieces: a frame cannot be merged, or a movie made, because a part of it is not to
// be had.
var errPieces = errors.New("a part of it is not to be had now")

// fetchesAtOnce is how many pieces of a frame are fetched at once.
const fetchesAtOnce = 4

// inputs brings the pieces of a frame here, as files for Blender. remove removes these
// and is never nil.
func (w *worker) inputs(ctx context.Context, o coord.Order) (inputs []render.Input, remove func(), err error) {
	dir, remove, err := w.inputDir()
	if err != nil {
		return nil, remove, err
	}
	inputs = make([]render.Input, len(o.Pieces))
	var g errgroup.Group
	g.SetLimit(fetchesAtOnce)
	for i, p := range o.Pieces {
		inputs[i] = render.Input{Span: p.Span, Path: filepath.Join(dir, strconv.Itoa(i)+".exr")}
		g.Go(func() error {
			return w.input(ctx, p.CID, p.Size, lease.FrameOf(o.Task.Job, o.Frames[0]), p.Sources, inputs[i].Path)
		})
	}
	return inputs, remove, g.Wait()
}

// pictures does the same with the frames of a movie.
func (w *worker) pictures(ctx context.Context, o coord.Order) (frames []render.Picture, remove func(), err error) {
	dir, remove, err := w.inputDir()
	if err != nil {
		return nil, remove, err
	}
	frames = make([]render.Picture, len(o.Movie))
	var g errgroup.Group
	g.SetLimit(fetchesAtOnce)
	for i, f := range o.Movie {
		// Their names are another machine's: of them only the ending says something.
		frames[i] = render.Picture{Frame: f.Frame, Path: filepath.Join(dir, fmt.Sprintf("%06d%s", i, filepath.Ext(filepath.Base(f.Name))))}
		g.Go(func() error {
			return w.input(ctx, f.CID, f.Size, lease.FrameOf(o.Task.Job, f.Frame), nil, frames[i].Path)
		})
	}
	return frames, remove, g.Wait()
}

// inputDir is a folder for what an attempt reads beside the project. remove removes it
// and is never nil.
func (w *worker) inputDir() (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp(w.projects.dir, "inputs-"); err != nil {
		return "", func() {}, err
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			w.slog.Warn("what an attempt read could not be removed; the next start does", "err", err)
		}
	}, nil
}

// input brings content of a frame here, as a file.
func (w *worker) input(ctx context.Context, content string, size int64, by lease.Scope, from []coord.Addr, path string) error {
	root, err := cid.Decode(content)
	if err != nil {
		return fmt.Errorf("%w: its CID: %w", errPieces, err)
	}
	s := &sources{link: w.link, root: root, by: by, from: from}
	if err := w.bring(ctx, swarm.Request{Root: root, Scope: by.String(), Size: size}, s); err != nil {
		if isFull(err) {
			return err
		}
		return fmt.Errorf("%w: %w", errPieces, err)
	}
	if err := w.store.ExportFile(ctx, root, path); err != nil {
		if isFull(err) {
			return err
		}
		return fmt.Errorf("%w: %w", errPieces, err)
	}
	return nil
}

// discard lets a piece go that is of no use any more.
func (w *worker) discard(job lease.JobID, content string) {
	w.alone.drop(func(cid string, _ lease.JobID) bool { return cid == content })
	root, err := cid.Decode(content)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	if err := w.store.Unpin(ctx, root, framePin(job)); err != nil {
		w.slog.Debug("a piece is not pinned any more", "err", err)
		return
	}
	w.letGo()
}
