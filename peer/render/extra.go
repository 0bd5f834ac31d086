package render

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vizpeer/lease"
)

// beside notes a file that Blender wrote beside the frame under way. The driver tells
// of each before it tells of the frame.
func (w *watch) beside(ev event) error {
	if len(w.extra) == lease.MaxExtra {
		return w.fail(lease.FailError, fmt.Sprintf("frame %d has more than %d files beside its picture, which are all that are kept: give the scene fewer File Output slots, or write multilayer files", ev.Frame, lease.MaxExtra))
	}
	w.extra = append(w.extra, ev)
	return nil
}

// takeExtra moves what was written beside f out of Blender's reach, to a folder of its
// own in which each file has its place, and looks at it there. Files and places are
// Blender's word. It answers "" where there is nothing.
func (w *watch) takeExtra(f Frame) (dir string, err error) {
	extra := w.extra
	w.extra = nil
	dir = filepath.Join(w.dir.frames(), strconv.Itoa(int(f.Frame))+"_extra")
	size := int64(0)
	there := map[string]bool{strings.ToLower(f.Name): true}
	for i, ev := range extra {
		if err := lease.CheckExtra(ev.Name, f.Frame); err != nil || ev.Frame != f.Frame {
			return "", fmt.Errorf("a file beside it cannot be kept as %q: %w", ev.Name, err)
		}
		if strings.EqualFold(ev.Name, f.Name) {
			continue // Blender writes the frame over it
		}
		if there[strings.ToLower(ev.Name)] {
			return "", fmt.Errorf("two files beside it would be one on some systems: %q", ev.Name)
		}
		there[strings.ToLower(ev.Name)] = true
		path := filepath.Join(dir, filepath.FromSlash(ev.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", fmt.Errorf("the file %q beside it: %w", ev.Name, err)
		}
		if err := w.takeOut(ev.File, path); err != nil {
			return "", fmt.Errorf("the file %q beside it: %w", ev.Name, err)
		}
		if err := checkImage(path); err != nil {
			return "", fmt.Errorf("the file %q beside it: %w", ev.Name, err)
		}
		st, err := os.Lstat(path)
		if err != nil {
			return "", err
		}
		if size += st.Size(); size > lease.MaxFrameSize {
			return "", fmt.Errorf("the first %d files beside it have more than %d GiB", i+1, lease.MaxFrameSize>>30)
		}
	}
	if size == 0 {
		return "", nil
	}
	return dir, nil
}
