// Package render runs Blender for one attempt at a task: it builds the sandbox,
// drives Blender with a script of its own, reads its progress, and checks every
// image before it calls it a frame.
//
// It promises that whatever the .blend holds, nothing outside its Blender's folder is
// written (where the machine has a sandbox; elsewhere the guards are Blender's own and
// [SandboxKind] says so), that a frame it reports is a whole image, and that an attempt
// takes no more memory, disk and processes than [Config] allows, but for what it takes
// between two looks. A Blender may outlive its attempt for a moment, to render the next
// one of the same person at the same project with the same settings: starting and
// loading take longer than many a frame. None outlives this process.
//
// Without a sandbox, -Y and guard.py stop all that a .blend can ask for by what it
// holds: its Python never runs, outputs and caches go to its Blender's folder, and
// pictures outside of the project are not shown. What they cannot stop is a file that
// takes over Blender itself through a mistake in how it reads files: that may then do
// all that the daemon's user may, the network included. Nor do they stop what Blender
// does as it opens a file: it reads the libraries the file names, wherever they lie,
// and waits where one is a FIFO, until the attempt's time is over. A cache on disk
// that is not baked is written to the cache folder of the project.
//
// It does not fetch projects, store frames or talk to the farm: package peer
// does.
package render

import (
	"context"
	"errors"
	"time"

	"vizpeer/lease"
)

// Attempt is one task to try: whole frames, or where Part, Merge or Movie is set, that.
type Attempt struct {
	ID      lease.ID
	Owner   string // whose job it is
	Project string // folder that holds the project's tree, read only
	// Content names the project's content, and is the same for no other. "" keeps any
	// Blender from waiting for another attempt.
	Content string
	Blend   string // path of the .blend inside Project
	Build   lease.Build
	Frames  []int32 // one, where Part, Merge or Movie is set
	Part    *Part
	Merge   *Merge
	Movie   *Movie
	Needs   lease.Requirements
	// Device is what Cycles renders on, alone; "" is the best that Needs allow. Other
	// engines draw with what the system gives them.
	Device lease.Device
	Set    lease.Settings
	// Timeout bounds the whole attempt; 0 is a day for each frame.
	Timeout time.Duration
	// Finish, when it is closed, asks the attempt to end with the frame that it renders
	// now, with [ErrFinished]. May be nil.
	Finish <-chan struct{}
	// Hold keeps Project as it is until release is called: a Blender that waits for
	// another attempt has it open. It is called before Run returns, if at all. May be
	// nil: then Project stays longer than the Runner.
	Hold func() (release func())
}

// Part is a part of the attempt's one frame: ranges of its units. It gives pieces and
// no frame.
type Part struct {
	Split lease.Split
	Spans []lease.Span
}

// Merge makes the attempt's one frame of its pieces, which cover all its units, each
// once.
type Merge struct {
	Split  lease.Split
	Pieces []Input
}

// Input is a piece to merge: a file of this machine, whose content was made elsewhere.
type Input struct {
	lease.Span
	Path string
}

// Movie makes the attempt's one frame, [lease.MovieFrame], of the frames of a job.
type Movie struct {
	Kind   string // one of [lease.Movies]
	Frames []Picture
}

// Picture is a finished frame that a movie is made of: a file of this machine, whose
// content was made elsewhere.
type Picture struct {
	Frame int32
	Path  string
}

// Piece is a part of a frame that is rendered so far, as an OpenEXR file in the
// attempt's folder: samples From to To, or one tile. A piece of samples takes the
// place of the one before that begins with the same unit.
type Piece struct {
	lease.Span
	Frame   int32
	Path    string
	Seconds float64 // in which it was rendered, those of the piece before included
}

// Preview is a small JPEG of what is there of a frame.
type Preview struct {
	Frame      int32
	lease.Span // the units that it shows
	Path       string
}

// Progress is what an attempt is doing now. It is for people: it never decides
// anything.
type Progress struct {
	Frame   int32   `json:"frame"`
	Done    int     `json:"done"`            // frames of this attempt that are finished
	Total   int     `json:"total"`           // frames of this attempt
	Phase   string  `json:"phase,omitempty"` // "loading", "rendering", "saving"
	Sample  int     `json:"sample,omitempty"`
	Samples int     `json:"samples,omitempty"`
	Memory  int64   `json:"memory,omitempty"`  // bytes Blender says it uses
	Elapsed float64 `json:"elapsed,omitempty"` // seconds since the attempt began
}

// Frame is one finished image in the attempt's folder. The file is the caller's
// to move or read until Run returns.
type Frame struct {
	Frame   int32
	Path    string
	Name    string // as Blender names it in the job's output folder
	Seconds float64
	// Extra is a folder of what Blender wrote beside it, as it belongs below the job's
	// output folder: the other views, what File Output nodes write. "" where there is
	// nothing. It is the caller's as the file is.
	Extra string
	// Thumb is a small JPEG of it, "" where none could be made.
	Thumb string
}

// Sink takes what an attempt gives while it runs. Its methods are called from
// one goroutine, in order, and must not block for long.
type Sink interface {
	Progress(Progress)
	// Frame reports a finished and verified image. An error ends the attempt.
	Frame(context.Context, Frame) error
	// Piece reports a finished and verified piece. An error ends the attempt.
	Piece(context.Context, Piece) error
	// Preview shows the attempt's frame as it is. The file is there until the method
	// returns.
	Preview(Preview)
}

// Error is why an attempt failed.
type Error struct {
	Kind   lease.FailKind
	Reason string // one sentence for people
	Tail   string // Blender's last lines
}

func (e *Error) Error() string { return e.Reason }

// ErrStopped is returned by Run when its context ended first.
var ErrStopped = errors.New("render: the attempt was stopped")

// ErrFinished is wrapped by the error of an attempt that was told to finish, and did so
// before everything was rendered. The sink has what was.
var ErrFinished = errors.New("render: the attempt was told to finish early")

// Runner renders. The real one is [Blender]; package farmtest has a simulated
// one.
type Runner interface {
	// Run renders the attempt's frames and returns when Blender is done with it. It
	// gives each finished frame to sink as it comes. log is the path of all
	// that Blender printed meanwhile, in a folder that the caller removes with the returned
	// cleanup, which is never nil. The error is nil, an [*Error], or wraps
	// [ErrStopped] or [ErrFinished]. Safe for concurrent use.
	Run(ctx context.Context, a Attempt, sink Sink) (log string, cleanup func(), err error)
	// Rest ends what waits for another attempt, and returns when it is gone.
	Rest()
	// Close is Rest, and nothing waits from now on. Attempts end by their context.
	Close() error
}
