package render

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"vizpeer/lease"
)

// movieArgs is the driver's side of a movie: see movie.py.
type movieArgs struct {
	Kind    string  `json:"kind"`
	Folder  string  `json:"folder"` // of the frames 000000, 000001, …
	Ending  string  `json:"ending"` // of their names
	Numbers []int32 `json:"numbers"`
}

// picturesName is the folder in which Blender finds the frames of a movie.
const picturesName = "pictures"

// safeEnding is what a frame's name may end with: it becomes a part of others.
var safeEnding = regexp.MustCompile(`^\.[A-Za-z0-9]{1,8}$`)

// ending is that of the names of all frames.
func (m *Movie) ending() string { return filepath.Ext(m.Frames[0].Path) }

// middle is the frame that stands for the movie.
func (m *Movie) middle() Picture { return m.Frames[len(m.Frames)/2] }

// checkMovie tells what is wrong with the movie that the attempt is to make, its frames
// included.
func (a Attempt) checkMovie(ctx context.Context) error {
	m := a.Movie
	if m == nil {
		return nil
	}
	bad := func(kind lease.FailKind, format string, args ...any) error {
		return &Error{Kind: kind, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case len(a.Frames) != 1 || a.Part != nil || a.Merge != nil:
		return bad(lease.FailError, "an attempt at a movie is about the movie alone")
	case !slices.Contains(lease.Movies, m.Kind):
		return bad(lease.FailError, "unknown kind of movie %.20q: use one of %s", m.Kind, strings.Join(lease.Movies, ", "))
	case len(m.Frames) == 0 || len(m.Frames) > lease.MaxMovieFrames:
		return bad(lease.FailError, "a movie is made of up to %d frames, and these are %d", lease.MaxMovieFrames, len(m.Frames))
	case !safeEnding.MatchString(m.ending()):
		return bad(lease.FailError, "frame %d has no name by which Blender knows its format", m.Frames[0].Frame)
	}
	for i, p := range m.Frames {
		switch err := checkImage(p.Path); {
		case err != nil:
			return bad(lease.FailImage, "the movie cannot be made of frame %d: %v", p.Frame, err)
		case filepath.Ext(p.Path) != m.ending():
			return bad(lease.FailError, "a movie is made of frames of one format, and frame %d is not of that of frame %d", p.Frame, m.Frames[0].Frame)
		case i > 0 && p.Frame <= m.Frames[i-1].Frame:
			return bad(lease.FailError, "the movie's frames are out of order at frame %d", p.Frame)
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", ErrStopped, context.Cause(ctx))
		}
	}
	return nil
}

// showPictures puts the frames of a movie where Blender can read them and not change
// them, in the place of those before.
func (m *Movie) showPictures(folder string) error {
	dir := filepath.Join(folder, picturesName)
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	for i, p := range m.Frames {
		if err == nil {
			err = linkOrCopy(p.Path, filepath.Join(dir, fmt.Sprintf("%06d%s", i, m.ending())))
		}
	}
	if err != nil {
		return &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot show Blender the frames of the movie: %v", err)}
	}
	return nil
}

// args is what the driver of s is told.
func (m *Movie) args(s *session) *movieArgs {
	args := &movieArgs{Kind: m.Kind, Folder: filepath.Join(s.view.driver, picturesName), Ending: m.ending()}
	for _, p := range m.Frames {
		args.Numbers = append(args.Numbers, p.Frame)
	}
	return args
}

// name is that of the movie's file, if it is one that every system takes, and as
// Blender would name it without a name of the scene's own.
func (m *Movie) name(ev event) string {
	n := frameName(ev)
	if n == ev.Name && filepath.Ext(n) == "."+m.Kind && !strings.HasPrefix(n, ".") {
		return n
	}
	return fmt.Sprintf("%04d-%04d.%s", m.Frames[0].Frame, m.Frames[len(m.Frames)-1].Frame, m.Kind)
}

// check tells what is wrong with the movie at path: that it is missing, is no regular
// file, is empty, is of another kind, or was cut short. What is in it, nobody looks at.
func (m *Movie) check(path string) error {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return errors.New("Blender wrote no movie")
	case !st.Mode().IsRegular():
		return errors.New("the movie is not a regular file")
	case st.Size() == 0:
		return errors.New("the movie is empty")
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the movie cannot be read: %w", err)
	}
	defer f.Close()
	if m.Kind == "mkv" || m.Kind == "webm" {
		err = checkMatroska(f, map[string]string{"mkv": "matroska", "webm": "webm"}[m.Kind])
	} else {
		err = checkBoxes(f, st.Size())
	}
	if err != nil {
		return fmt.Errorf("the file is no whole movie of the kind %s: %w", m.Kind, err)
	}
	return nil
}

// maxBoxes bounds the boxes of a movie that are looked at.
const maxBoxes = 1 << 16

// checkBoxes walks the boxes of an MP4 or QuickTime file, in one of which must be what
// is written when all frames are there.
func checkBoxes(r io.ReaderAt, size int64) error {
	var head [16]byte
	whole := false
	for at, n := int64(0), 0; at < size; n++ {
		if _, err := r.ReadAt(head[:8], at); err != nil {
			return errors.New("it ends within a box")
		}
		length, kind := int64(binary.BigEndian.Uint32(head[:])), string(head[4:8])
		least := int64(8)
		if length == 1 {
			if _, err := r.ReadAt(head[8:], at+8); err != nil {
				return errors.New("it ends within a box")
			}
			length, least = int64(binary.BigEndian.Uint64(head[8:])), 16
		}
		switch {
		case n == 0 && kind != "ftyp":
			return errors.New("it does not begin as one")
		case n == maxBoxes:
			return errors.New("it has too many boxes")
		case length < least || length > size-at:
			return errors.New("it is cut short or damaged")
		}
		whole = whole || kind == "moov"
		at += length
	}
	if !whole {
		return errors.New("it was not written to its end")
	}
	return nil
}

// checkMatroska looks for the type of document in the header.
func checkMatroska(r io.ReaderAt, want string) error {
	head := make([]byte, 64)
	n, _ := r.ReadAt(head, 0)
	head = head[:n]
	// Of the element DocType: its ID, its length, a text.
	doc := append([]byte{0x42, 0x82, 0x80 | byte(len(want))}, want...)
	if !bytes.HasPrefix(head, []byte{0x1a, 0x45, 0xdf, 0xa3}) || !bytes.Contains(head, doc) {
		return errors.New("it does not begin as one")
	}
	return nil
}
