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
)

// The phases of [Progress].
const (
	phaseLoading   = "loading"
	phaseRendering = "rendering"
	phaseSaving    = "saving"
)

// progressEvery bounds how often an attempt reports while its phase stays.
const progressEvery = 500 * time.Millisecond

// watch follows one Blender through its output. What it reads may be the work of
// a hostile file: a line can make it report a wrong number of samples, never an
// image that is not one, nor a file outside the attempt's folder.
type watch struct {
	attempt Attempt
	dir     attemptDir
	sink    Sink
	began   time.Time

	now      Progress
	reported time.Time
	done     map[int32]bool
	loaded   bool
	failed   *event
	tail     tail
}

// event is one line of the driver's.
type event struct {
	Ev      string  `json:"ev"`
	Frame   int32   `json:"frame"`
	File    string  `json:"file"`
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Kind    Kind    `json:"kind"`
	Reason  string  `json:"reason"`
	Text    string  `json:"text"`
}

// read follows Blender's output to its end and keeps in log what is Blender's own
// of it, with the driver's words for people.
func (w *watch) read(ctx context.Context, r io.Reader, log io.Writer) error {
	kept := ownWords{w: log}
	defer kept.flush()
	w.now = Progress{Total: len(w.attempt.Frames), Phase: phaseLoading, Frame: w.attempt.Frames[0]}
	w.report(true)
	return pieces(r, func(piece []byte, first bool) error {
		line := bytes.TrimRight(piece, "\r\n")
		if text, ok := bytes.CutPrefix(line, []byte("VIZ ")); ok && first {
			var ev event
			if json.Unmarshal(text, &ev) == nil {
				kept.event(ev)
				return w.event(ctx, ev)
			}
		}
		kept.add(piece)
		if !first {
			return nil
		}
		w.tail.add(string(line))
		w.status(line)
		return nil
	})
}

func (w *watch) event(ctx context.Context, ev event) error {
	switch ev.Ev {
	case "loaded":
		w.loaded = true
	case "start":
		w.now.Frame, w.now.Sample, w.now.Samples = ev.Frame, 0, 0
		w.phase(phaseRendering)
	case "frame":
		return w.frame(ctx, ev)
	case "fail":
		w.failed = &ev
	case "note":
		w.tail.add("note: " + ev.Text)
	}
	return nil
}

// frame checks one image and hands it on.
func (w *watch) frame(ctx context.Context, ev event) error {
	if !slices.Contains(w.attempt.Frames, ev.Frame) || w.done[ev.Frame] {
		return w.fail(KindError, fmt.Sprintf("Blender reports frame %d, which this attempt does not wait for", ev.Frame))
	}
	if ev.File == "" || ev.File != filepath.Base(ev.File) || !filepath.IsLocal(ev.File) {
		return w.fail(KindError, fmt.Sprintf("Blender reports frame %d in a file outside its folder", ev.Frame))
	}
	// First out of Blender's reach, then looked at: it cannot change any more.
	path := filepath.Join(w.dir.frames(), strconv.Itoa(int(ev.Frame))+filepath.Ext(ev.File))
	if err := os.Rename(filepath.Join(w.dir.out(), ev.File), path); err != nil {
		return w.fail(KindImage, fmt.Sprintf("frame %d: Blender wrote no image", ev.Frame))
	}
	if err := checkImage(path); err != nil {
		return w.fail(KindImage, fmt.Sprintf("frame %d: %v", ev.Frame, err))
	}
	f := Frame{Frame: ev.Frame, Path: path, Name: frameName(ev), Seconds: max(0, ev.Seconds)}
	if err := w.sink.Frame(ctx, f); err != nil {
		return w.fail(KindMachine, fmt.Sprintf("frame %d was rendered but this machine could not keep it: %v", ev.Frame, err))
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
	if m := memoryText.FindSubmatch(line); m != nil {
		n, _ := strconv.ParseFloat(string(m[1]), 64)
		w.now.Memory = int64(n * map[string]float64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[string(m[2])])
	}
	if m := sampleText.FindSubmatch(line); m != nil {
		w.now.Sample, _ = strconv.Atoi(string(m[1]))
		w.now.Samples, _ = strconv.Atoi(string(m[2]))
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

func (w *watch) fail(k Kind, reason string) *Error {
	return &Error{Kind: k, Reason: strings.ToValidUTF8(clip(reason, 1000), "�"), Tail: w.tail.String()}
}

// judgeRead says what an error while starting or following Blender means.
func (w *watch) judgeRead(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[startError](err); ok {
		return w.fail(KindMachine, fmt.Sprintf("this machine could not start Blender: %v", err))
	}
	return w.fail(KindMachine, fmt.Sprintf("Blender's output could not be read: %v", err))
}

var (
	outOfMemory = regexp.MustCompile(`(?i)out of (?:GPU |device )?memory|alloc returns null|Calloc array aborted|MemoryError|bad_alloc|not enough memory`)
	outOfDisk   = regexp.MustCompile(`(?i)no space left on device|disk full|not enough space on the disk`)
	windowsTrap = regexp.MustCompile(`EXCEPTION_[A-Z_]+`)
)

// judge says what the end of a Blender that did not finish means.
func (w *watch) judge(exit int, oom bool) *Error {
	words := w.tail.String()
	if w.failed != nil {
		words += "\n" + w.failed.Reason
	}
	at := "while loading the file"
	if w.now.Phase != phaseLoading {
		at = fmt.Sprintf("at frame %d", w.now.Frame)
	}
	last := w.tail.last()
	switch {
	case exit == 0:
		return w.fail(KindImage, fmt.Sprintf("Blender ended without an error but wrote nothing for %s", w.lacking()))
	case exit == 128+9 && oom:
		return w.fail(KindMemory, fmt.Sprintf("the system killed Blender %s because the machine ran out of memory%s", at, w.usage()))
	case outOfMemory.MatchString(words):
		return w.fail(KindMemory, fmt.Sprintf("Blender ran out of memory %s%s", at, w.usage()))
	case outOfDisk.MatchString(words):
		return w.fail(KindMachine, fmt.Sprintf("this machine's disk is full: Blender could not write %s", at))
	case exit == 128+9:
		return w.fail(KindCrash, fmt.Sprintf("another program killed Blender %s", at))
	case exit > 128 && exit < 256:
		return w.fail(KindCrash, fmt.Sprintf("Blender crashed %s (%s)", at, signalName(exit-128)))
	case exit > 255 || exit < 0 || windowsTrap.MatchString(words): // an NTSTATUS
		return w.fail(KindCrash, fmt.Sprintf("Blender crashed %s (exit code %#x)", at, uint32(exit)))
	case strings.HasPrefix(last, "bwrap: "):
		return w.fail(KindMachine, "this machine's sandbox could not be set up: "+strings.TrimPrefix(last, "bwrap: "))
	case exit == 126 || exit == 127:
		return w.fail(KindMachine, fmt.Sprintf("this machine's Blender does not start: %s", last))
	case w.failed != nil:
		kind := KindError
		if w.failed.Kind == KindMachine || w.failed.Kind == KindImage || w.failed.Kind == KindMemory {
			kind = w.failed.Kind
		}
		return w.fail(kind, w.failed.Reason)
	case !w.loaded && exit == 1: // so Blender ends where it cannot open a file
		return w.fail(KindError, fmt.Sprintf("Blender could not open the file: %s", orSilent(last)))
	case !w.loaded:
		return w.fail(KindError, fmt.Sprintf("Blender ended before it had loaded the file (exit code %d): %s", exit, orSilent(last)))
	}
	return w.fail(KindError, fmt.Sprintf("Blender ended with exit code %d %s: %s", exit, at, orSilent(last)))
}

func orSilent(last string) string {
	if last == "" {
		return "it said nothing"
	}
	return last
}

func (w *watch) usage() string {
	if w.now.Memory == 0 {
		return ""
	}
	return fmt.Sprintf(" (it used %.1f GiB)", float64(w.now.Memory)/(1<<30))
}

// lacking names the frames that are not there.
func (w *watch) lacking() string {
	var names []string
	for _, f := range w.attempt.Frames {
		if !w.done[f] {
			names = append(names, strconv.Itoa(int(f)))
		}
	}
	if len(names) == 1 {
		return "frame " + names[0]
	}
	if len(names) > 8 {
		names = append(names[:8], "…")
	}
	return "frames " + strings.Join(names, ", ")
}
