package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"vizpeer/lease"
	"vizpeer/peer/render/exr"
)

// The phases of [Progress].
const (
	phaseLoading   = "loading"
	phaseRendering = "rendering"
	phaseSaving    = "saving"
)

// progressEvery bounds how often an attempt reports while its phase stays.
const progressEvery = 500 * time.Millisecond

// watch follows Blender through its output while it renders for an attempt. What it reads may be the work of
// a hostile file: a line can make it report a wrong number of samples, never an
// image that is not one, nor a file outside the attempt's folder.
type watch struct {
	attempt Attempt
	dir     attemptDir
	sink    Sink
	began   time.Time
	id      string // of the request that Blender answers
	out     string // where it writes

	now      Progress
	reported time.Time
	done     map[int32]bool
	spans    []*spanDone // of an attempt at a part of a frame; see piece
	// tileSamples is how many samples Blender counts for a tile, once it does.
	tileSamples int

	loaded bool
	heard  bool    // Blender answers
	ended  bool    // it has answered, and waits
	odd    bool    // something spoke as the driver does
	extra  []event // what was written beside the frame under way
	failed *event
	spoilt string // a line of Blender's after which its images are wrong; see spoils
	tail   tail

	// As Blender says at the end: whether it can serve another attempt, and the bytes of
	// memory that it takes.
	again  bool
	memory int64
}

// errEnd ends the reading of an answer.
var errEnd = errors.New("Blender has answered")

// event is one line of the driver's.
type event struct {
	Ev      string         `json:"ev"`
	ID      string         `json:"id"`
	Frame   int32          `json:"frame"`
	File    string         `json:"file"`
	Name    string         `json:"name"`
	Seconds float64        `json:"seconds"`
	Kind    lease.FailKind `json:"kind"`
	Reason  string         `json:"reason"`
	Text    string         `json:"text"`
	Again   bool           `json:"again"`
	Memory  int64          `json:"memory"`
	Thumb   string         `json:"thumb"`
	Cut     exr.Margin     `json:"cut"` // what a piece has around its tile
	lease.Span
}

// read follows Blender's output until it has answered, or ends, and keeps in log what
// is Blender's own of it, with the driver's words for people. A Blender that is not new
// has loaded the file.
func (w *watch) read(ctx context.Context, r io.Reader, log io.Writer, isNew bool) error {
	kept := ownWords{w: log}
	defer kept.flush()
	w.now = Progress{Total: len(w.attempt.Frames), Phase: phaseRendering, Frame: w.attempt.Frames[0]}
	if isNew {
		w.now.Phase = phaseLoading
	}
	w.loaded = !isNew
	w.report(true)
	err := pieces(r, func(piece []byte, first bool) error {
		line := bytes.TrimRight(piece, "\r\n")
		if text, ok := bytes.CutPrefix(line, []byte("VIZ ")); ok && first {
			var ev event
			if json.Unmarshal(text, &ev) == nil && ev.ID == w.id {
				w.heard = true
				kept.event(ev)
				return w.event(ctx, ev)
			}
			w.odd = true // it is nobody's event: words, as any other
		}
		kept.add(piece)
		if !first {
			return nil
		}
		w.tail.add(string(line))
		w.status(line)
		return nil
	})
	if errors.Is(err, errEnd) {
		w.ended = true
		return nil
	}
	return err
}

func (w *watch) event(ctx context.Context, ev event) error {
	switch ev.Ev {
	case "loaded":
		w.loaded = true
	case "start":
		w.now.Frame, w.now.Sample, w.now.Samples = ev.Frame, 0, 0
		w.phase(phaseRendering)
	case "extra":
		return w.beside(ev)
	case "frame":
		return w.frame(ctx, ev)
	case "piece":
		return w.piece(ctx, ev)
	case "preview":
		w.preview(ev)
	case "fail":
		w.failed = &ev
	case "note":
		w.tail.add("note: " + ev.Text)
	case "end":
		w.again, w.memory = ev.Again, ev.Memory
		return errEnd
	}
	return nil
}

// frame checks one image and hands it on.
func (w *watch) frame(ctx context.Context, ev event) error {
	if !slices.Contains(w.attempt.Frames, ev.Frame) || w.done[ev.Frame] || w.attempt.Part != nil {
		return w.fail(lease.FailError, fmt.Sprintf("Blender reports frame %d, which this attempt does not wait for", ev.Frame))
	}
	if ev.File == "" || ev.File != filepath.Base(ev.File) || !filepath.IsLocal(ev.File) {
		return w.fail(lease.FailError, fmt.Sprintf("Blender reports frame %d in a file outside its folder", ev.Frame))
	}
	if w.spoilt != "" {
		return w.fail(lease.FailMemory, fmt.Sprintf("the GPU ran out of memory at frame %d, and Blender went on without what found no room: %s", ev.Frame, w.spoilt))
	}
	// First out of Blender's reach, then looked at: it cannot change any more. Of a movie
	// that is not there the look says so.
	path := filepath.Join(w.dir.frames(), strconv.Itoa(int(ev.Frame))+filepath.Ext(ev.File))
	if err := os.Rename(filepath.Join(w.out, ev.File), path); err != nil && w.attempt.Movie == nil {
		return w.fail(lease.FailImage, fmt.Sprintf("frame %d: Blender wrote no image", ev.Frame))
	}
	f := Frame{Frame: ev.Frame, Path: path, Name: frameName(ev), Seconds: max(0, ev.Seconds)}
	shown := path
	if m := w.attempt.Movie; m != nil {
		if err := m.check(path); err != nil {
			return w.fail(lease.FailImage, err.Error())
		}
		f.Name, shown = m.name(ev), m.middle().Path
	} else if err := checkImage(path); err != nil {
		return w.fail(lease.FailImage, fmt.Sprintf("frame %d: %v", ev.Frame, err))
	}
	if w.attempt.Movie == nil {
		var err error
		if f.Extra, err = w.takeExtra(f); err != nil {
			return w.fail(lease.FailImage, fmt.Sprintf("frame %d: %v", ev.Frame, err))
		}
	}
	f.Thumb = w.thumb(ev, shown)
	if err := w.sink.Frame(ctx, f); err != nil {
		return w.fail(lease.FailMachine, fmt.Sprintf("frame %d was rendered but this machine could not keep it: %v", ev.Frame, err))
	}
	w.done[ev.Frame] = true
	w.now.Done = len(w.done)
	w.report(true)
	return nil
}

// frameName is the name Blender gives the file, if it is one that every system
// takes; otherwise it is the frame's number.
func frameName(ev event) string {
	bad := func(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(`/\:*?"<>|`, r) }
	if n := ev.Name; n != "" && len(n) <= 200 && filepath.IsLocal(n) && n != "." && !strings.ContainsFunc(n, bad) {
		return n
	}
	return fmt.Sprintf("%04d%s", ev.Frame, filepath.Ext(ev.File))
}

var (
	sampleText = regexp.MustCompile(`(?:\bSample |\bRendering )(\d{1,9}) ?/ ?(\d{1,9})`)
	memoryText = regexp.MustCompile(`\bMem: ?(\d{1,9}(?:\.\d{1,3})?)([KMG])`)
)

// status reads progress from a line of Blender's own.
func (w *watch) status(line []byte) {
	if bytes.HasPrefix(line, []byte("Saved:")) {
		w.phase(phaseSaving)
		return
	}
	if spoils(line) {
		w.spoilt = clip(strings.ToValidUTF8(string(bytes.TrimSpace(line)), "�"), 300)
	}
	if m := memoryText.FindSubmatch(line); m != nil {
		n, _ := strconv.ParseFloat(string(m[1]), 64)
		w.now.Memory = int64(n * map[string]float64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[string(m[2])])
	}
	if m := sampleText.FindSubmatch(line); m != nil {
		w.now.Sample, _ = strconv.Atoi(string(m[1]))
		w.now.Samples, _ = strconv.Atoi(string(m[2]))
		w.countParts()
		w.report(false)
	} else if isStatus(string(line)) {
		w.report(false)
	}
}

func (w *watch) phase(p string) {
	changed := w.now.Phase != p
	w.now.Phase = p
	w.report(changed)
}

func (w *watch) report(now bool) {
	t := time.Now()
	if !now && t.Sub(w.reported) < progressEvery {
		return
	}
	w.reported = t
	w.now.Elapsed = t.Sub(w.began).Seconds()
	w.sink.Progress(w.now)
}
