package render

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"vizpeer/lease"
)

func (w *watch) fail(k lease.FailKind, reason string) *Error {
	return &Error{Kind: k, Reason: strings.ToValidUTF8(clip(reason, 1000), "�"), Tail: w.tail.String()}
}

// judgeRead says what an error while starting or following Blender means.
func (w *watch) judgeRead(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[startError](err); ok {
		return w.fail(lease.FailMachine, fmt.Sprintf("this machine could not start Blender: %v", err))
	}
	return w.fail(lease.FailMachine, fmt.Sprintf("Blender's output could not be read: %v", err))
}

// saysMemory finds in the words of Blender, Cycles, their libraries and the drivers
// that there was no memory: the machine's or the GPU's.
var saysMemory = regexp.MustCompile(strings.Join([]string{
	// Cycles: "System is out of GPU memory", "System is out of GPU and shared host memory",
	// "Error: run out of memory!"; Vulkan, OpenCL, CUDA: OUT_OF_DEVICE_MEMORY, OUT_OF_HOST_MEMORY;
	// Metal: kIOGPUCommandBufferCallbackErrorOutOfMemory.
	`(?i:out[ _]of[ _](?:\w+[ _]){0,4}?memory)`, `OutOfMemory`,
	// oneAPI: "Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)".
	`\b(?:UR|PI|ZE|CL)_[A-Z_]*OUT_OF_RESOURCES`,
	// Blender's allocator: "Calloc returns null: len=…", "Malloc array aborted due to integer overflow".
	`[Aa]lloc returns null`, `[Aa]lloc array aborted`,
	// The runtimes of C++ (that of Windows says "bad allocation") and Python.
	`bad_alloc|bad allocation|MemoryError`,
	// Blender, OpenImageIO, HIPRT, the system (ENOMEM): "Couldn't allocate memory for PNG image",
	// "Failed to allocate scratch buffer for BLAS", "Image save failed: not enough free memory".
	`(?i:(?:cannot|could not|couldn't) allocate)`, `(?i:failed to allocate .*(?:memory|[BT]LAS))`,
	`(?i:(?:not enough|insufficient) (?:free |video )?memory)`,
	// OpenGL: "GPUTexture: Texture allocation failed", "texture alloc failed".
	`(?i:texture alloc(?:ation)? failed)`,
}, "|"))

// saysGPU finds in such words that it was the GPU's memory.
var saysGPU = regexp.MustCompile(`GPU|device memory|[Dd]evice Memory|DEVICE_MEMORY|(?:UR|PI|ZE|CL)_[A-Z_]*OUT|\bGL_|[Tt]exture|shadow atlas|integrator state|[BT]LAS|\b(?:CUDA|HIP|OptiX|oneAPI|Metal)\b`)

// saysSpoilt finds the words after which Blender renders on and saves an image that
// lacks something, with no error: Eevee's, and those of the GPU's drivers.
var saysSpoilt = regexp.MustCompile(`System is out of GPU|Out of memory - couldn't allocate|Error: Could not allocate|(?i:texture alloc(?:ation)? failed)|\b(?:VK_ERROR|GL)_OUT_OF_[A-Z_]*MEMORY`)

// spoils tells that no image after this line of Blender's can be trusted.
func spoils(line []byte) bool {
	// Lines come by the thousand, and few have these letters.
	return (bytes.Contains(line, []byte("lloc")) || bytes.Contains(line, []byte("out of")) || bytes.Contains(line, []byte("MEMORY"))) && saysSpoilt.Match(line)
}

var (
	saysDisk    = regexp.MustCompile(`(?i)no space left on device|disk full|not enough space on the disk`)
	windowsTrap = regexp.MustCompile(`EXCEPTION_[A-Z_]+`)
)

// Exit codes of Windows for a process that got no memory.
const (
	statusNoMemory        = 0xC0000017
	statusCommitmentLimit = 0xC000012D
)

// judge says what the end of a Blender that did not finish means.
func (w *watch) judge(exit int, oom bool) *Error {
	words := w.tail.String()
	if w.failed != nil {
		words += "\n" + w.failed.Reason
	}
	at := w.where()
	last := w.tail.last()
	short := memoryLine(words)
	switch {
	case exit == 128+9 && oom:
		return w.fail(lease.FailMemory, fmt.Sprintf("the system killed Blender %s because the machine ran out of memory%s", at, w.usage()))
	case saysGPU.MatchString(short):
		return w.fail(lease.FailMemory, fmt.Sprintf("the GPU ran out of memory %s%s", at, w.usage()))
	case short != "", uint32(exit) == statusNoMemory, uint32(exit) == statusCommitmentLimit:
		return w.fail(lease.FailMemory, fmt.Sprintf("Blender ran out of memory %s%s", at, w.usage()))
	case exit == 0:
		return w.fail(lease.FailImage, fmt.Sprintf("Blender ended without an error but wrote nothing for %s", w.lacking()))
	case saysDisk.MatchString(words):
		return w.fail(lease.FailMachine, fmt.Sprintf("this machine's disk is full: Blender could not write %s", at))
	case exit == 128+9:
		return w.fail(lease.FailCrash, fmt.Sprintf("another program killed Blender %s", at))
	case exit == 128+15:
		return w.fail(lease.FailCrash, fmt.Sprintf("another program ended Blender %s", at))
	case exit > 128 && exit < 256:
		return w.fail(lease.FailCrash, fmt.Sprintf("Blender crashed %s (%s)", at, signalName(exit-128)))
	case exit > 255 || exit < 0 || windowsTrap.MatchString(words): // an NTSTATUS
		return w.fail(lease.FailCrash, fmt.Sprintf("Blender crashed %s (exit code %#x)", at, uint32(exit)))
	case strings.HasPrefix(last, "bwrap: "):
		return w.fail(lease.FailMachine, "this machine's sandbox could not be set up: "+strings.TrimPrefix(last, "bwrap: "))
	case exit == 126 || exit == 127:
		return w.fail(lease.FailMachine, fmt.Sprintf("this machine's Blender does not start: %s", last))
	case w.failed != nil:
		kind := lease.FailError
		if w.failed.Kind == lease.FailMachine || w.failed.Kind == lease.FailImage || w.failed.Kind == lease.FailMemory {
			kind = w.failed.Kind
		}
		return w.fail(kind, w.failed.Reason)
	case !w.loaded && exit == 1: // so Blender ends where it cannot open a file
		return w.fail(lease.FailError, fmt.Sprintf("Blender could not open the file: %s", orSilent(last)))
	case !w.loaded:
		return w.fail(lease.FailError, fmt.Sprintf("Blender ended before it had loaded the file (exit code %d): %s", exit, orSilent(last)))
	}
	return w.fail(lease.FailError, fmt.Sprintf("Blender ended with exit code %d %s: %s", exit, at, orSilent(last)))
}

// where says how far Blender came.
func (w *watch) where() string {
	if w.now.Phase == phaseLoading {
		return "while loading the file"
	}
	if w.attempt.Movie != nil {
		return "while it made the movie"
	}
	return fmt.Sprintf("at frame %d", w.now.Frame)
}

// memoryLine is the first of the lines that says that there was no memory, or "".
func memoryLine(words string) string {
	for line := range strings.Lines(words) {
		if saysMemory.MatchString(line) {
			return line
		}
	}
	return ""
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
	if w.attempt.Part != nil {
		for _, s := range w.spans {
			if s.told < s.To {
				return fmt.Sprintf("%s %d to %d of frame %d", w.attempt.Part.Split.By, s.told, s.To, w.attempt.Frames[0])
			}
		}
	}
	if w.attempt.Movie != nil {
		return "the movie"
	}
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
