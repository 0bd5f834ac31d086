package render

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vizpeer/lease"
)

// scripts is what runs inside Blender.
//
//go:embed driver.py early.py parts.py pictures.py movie.py guard.py history.py remap.py devices.py collect.py samplescene.py
var scripts embed.FS

// The values of [Config.Sandbox].
const (
	SandboxAuto = "auto" // bubblewrap where the machine has it
	SandboxOff  = "off"
)

// Config is how [Blender] runs. Dir is required.
type Config struct {
	// Dir is the folder below which every attempt and every Blender gets a private
	// folder. It belongs to one [Blender] alone, which removes what an earlier process
	// left.
	Dir string
	// Sandbox is SandboxAuto, the default, or SandboxOff.
	Sandbox string
	// MaxDisk is how many bytes of disk an attempt may take; 0 is half of what is free
	// when the attempt begins, and 64 GiB at most.
	MaxDisk int64
	// Linger is how long a Blender waits for another attempt that it can render; 0 is
	// 10 s, and below that none waits.
	Linger time.Duration
	// MaxIdle is how many Blenders wait at a time; 0 is one.
	MaxIdle int
	// MaxFrames is after how many frames a Blender makes place for a new one; 0 is 250.
	MaxFrames int
	// MaxIdleMemory is how many bytes of memory a Blender that waits may take; 0 is half
	// of the machine's.
	MaxIdleMemory int64
	// MaxMemory is how many bytes of memory an attempt's processes may take; 0 is nine
	// tenths of the machine's. What they take of a GPU's is not counted.
	MaxMemory int64
	// MaxThreads is how many processes and threads an attempt may have; 0 is 1,024 and
	// 16 for each core.
	MaxThreads int
	Logger     *slog.Logger
}

// Blender is the [Runner] that renders. A Blender process loads its file once and
// renders all of the attempt's frames; then it waits for another attempt at the same
// file with the same settings: see [sessionKey].
type Blender struct {
	cfg      Config
	sweep    sync.Once
	sessions sessions
}

// NewBlender makes a Runner of this machine's Blenders. It starts nothing.
func NewBlender(cfg Config) *Blender {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Sandbox == "" {
		cfg.Sandbox = SandboxAuto
	}
	b := &Blender{cfg: cfg, sessions: sessions{
		linger: cmp.Or(cfg.Linger, linger), maxIdle: cmp.Or(cfg.MaxIdle, 1), maxFrames: cmp.Or(cfg.MaxFrames, maxFrames),
		maxMemory: cfg.MaxIdleMemory, memory: machineMemory,
	}}
	if cfg.MaxIdleMemory == 0 {
		total, _ := machineMemory()
		b.sessions.maxMemory = total / 2
	}
	return b
}

// Rest implements [Runner].
func (b *Blender) Rest() { b.sessions.rest() }

// Close implements [Runner].
func (b *Blender) Close() error {
	b.sessions.close()
	return nil
}

// Sandbox tells how attempts are confined: "bubblewrap", or "" and the reason why
// they are not.
func (b *Blender) Sandbox() (kind, reason string) {
	if b.cfg.Sandbox == SandboxOff {
		return "", "the sandbox is switched off in the configuration"
	}
	return SandboxKind()
}

const dayPerFrame = 24 * time.Hour

var errTimeout = errors.New("the attempt ran past its time")

// Run implements [Runner].
func (b *Blender) Run(ctx context.Context, a Attempt, sink Sink) (logPath string, cleanup func(), err error) {
	cleanup = func() {}
	b.sweep.Do(b.removeLeftovers)
	if len(a.Frames) == 0 {
		return "", cleanup, &Error{Kind: lease.FailError, Reason: "the attempt has no frames"}
	}
	if a.finishes() {
		return "", cleanup, ErrFinished
	}
	dir, err := b.newAttemptDir()
	if err != nil {
		return "", cleanup, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot make a folder for the attempt: %v", err)}
	}
	cleanup = func() {
		if err := os.RemoveAll(dir.root); err != nil {
			b.cfg.Logger.Warn("an attempt's folder could not be removed", "dir", dir.root, "err", err)
		}
	}
	return dir.log(), cleanup, b.run(ctx, a, dir, sink)
}

func (b *Blender) run(ctx context.Context, a Attempt, dir attemptDir, sink Sink) error {
	place, err := findProject(a)
	if err != nil {
		return err
	}
	if err := a.checkSplit(); err != nil {
		return err
	}
	if err := a.checkMovie(ctx); err != nil {
		return err
	}
	merged := ""
	if a.Merge != nil {
		if merged, err = a.assemble(ctx, dir, sink); err != nil {
			return err
		}
	}
	timeout := a.Timeout
	if timeout <= 0 {
		timeout = dayPerFrame * time.Duration(len(a.Frames))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()

	log, err := newBoundedLog(dir.log())
	if err != nil {
		return &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot keep Blender's log: %v", err)}
	}
	limit := b.diskLimit()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	w := &watch{attempt: a, dir: dir, sink: sink, began: time.Now(), done: map[int32]bool{}}
	w.watchSpans()
	ooms := oomKills()

	render := func(s *session) (waits bool, exit int, err error) {
		watched, done := context.WithCancel(ctx)
		defer done()
		// What Blender is shown in its third folder is the caller's.
		go watchDisk(watched, limit, stop, s.dir.out(), s.dir.tmp(), dir.root)
		go b.bounds(limit).watchProcesses(watched, s.cmd.Process.Pid, s.tmp, stop)
		r, err := newRequest(a, s, merged)
		if err != nil {
			s.end() // nobody else has it
			return false, 0, err
		}
		return s.serve(ctx, r, w, log)
	}
	key := a.sessionKey(place)
	s := b.sessions.take(key)
	var waits bool
	var exit int
	if s != nil {
		io.WriteString(log, "note: this Blender has the file open since an earlier attempt\n")
		waits, exit, err = render(s)
		if !w.heard && !waits && err == nil && ctx.Err() == nil {
			s = nil // it had ended by itself: that is no fault of the attempt's
		}
	}
	if s == nil {
		b.sessions.makeRoom(key, a.Needs.MinRAM)
		if s, err = b.open(a, key, place); err == nil {
			waits, exit, err = render(s)
		}
	}
	if terr := w.tellRest(context.WithoutCancel(ctx)); err == nil {
		err = terr
	}
	if cerr := log.Close(); cerr != nil && err == nil {
		b.cfg.Logger.Warn("Blender's log is incomplete", "attempt", a.ID, "err", cerr)
	}
	b.cfg.Logger.Debug("Blender has answered", "attempt", a.ID, "waits", waits, "exit", exit, "seconds", time.Since(w.began).Seconds(), "err", err)

	err = b.verdict(context.Cause(ctx), w, exit, oomKills() > ooms, err)
	if e, ok := errors.AsType[*Error](err); ok && e.Kind == lease.FailMemory {
		b.sessions.ranOut(key)
	}
	switch {
	case !waits:
	case (err == nil || errors.Is(err, ErrFinished)) && a.Content != "" && w.again && !w.odd && w.spoilt == "" && s.clean():
		b.sessions.keep(s, w.memory)
	default:
		s.end()
	}
	return err
}

// verdict says how an attempt ended that was stopped for the given cause, nil where it
// was not.
func (b *Blender) verdict(cause error, w *watch, exit int, oom bool, err error) error {
	a := w.attempt
	var over *overrun
	switch {
	case err != nil && cause == nil:
		return w.judgeRead(err)
	case w.finished():
		return nil // every image is here and whole: how Blender goes on is its own affair
	case errors.Is(cause, errTimeout):
		return w.fail(lease.FailTimeout, fmt.Sprintf("Blender was stopped %s because the attempt ran past %s", w.where(), a.allowed()))
	case errors.As(cause, &over):
		return w.fail(over.kind, "Blender was stopped because "+over.reason)
	case cause != nil:
		return fmt.Errorf("%w: %w", ErrStopped, cause)
	case w.ended && a.finishes():
		return ErrFinished
	}
	return w.judge(exit, oom)
}

// finishes tells whether the attempt was told to finish.
func (a Attempt) finishes() bool {
	select {
	case <-a.Finish: // never, where it is nil
		return true
	default:
		return false
	}
}

// allowed says how long Blender may take for the attempt, and who said so.
func (a Attempt) allowed() string {
	if a.Timeout <= 0 {
		return fmt.Sprintf("a day for each of its %d frames, which is the most without a task time-out of the job's own", len(a.Frames))
	}
	return fmt.Sprintf("the %s that the job's task time-out allows", a.Timeout)
}

// attemptDir is the private folder of one attempt, out of Blender's reach: an image is
// moved there before anyone looks at it.
type attemptDir struct{ root string }

func (d attemptDir) frames() string { return filepath.Join(d.root, "frames") }
func (d attemptDir) log() string    { return filepath.Join(d.root, "blender.log") }

const attemptPrefix = "attempt-"

// newDir makes a folder of its own in b's.
func (b *Blender) newDir(prefix string) (string, error) {
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return "", err
	}
	base, err := filepath.Abs(b.cfg.Dir)
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(base, prefix)
}

func (b *Blender) newAttemptDir() (attemptDir, error) {
	root, err := b.newDir(attemptPrefix)
	if err != nil {
		return attemptDir{}, err
	}
	d := attemptDir{root}
	if err := os.Mkdir(d.frames(), 0o700); err != nil {
		os.RemoveAll(root)
		return attemptDir{}, err
	}
	return d, nil
}

// removeLeftovers clears what a process that was killed left behind.
func (b *Blender) removeLeftovers() {
	for _, prefix := range []string{attemptPrefix, sessionPrefix} {
		old, _ := filepath.Glob(filepath.Join(b.cfg.Dir, prefix+"*"))
		for _, dir := range old {
			killStrays(0, sessionDir{dir}.tmp())
			if err := os.RemoveAll(dir); err != nil {
				b.cfg.Logger.Warn("an old attempt's folder could not be removed", "dir", dir, "err", err)
			}
		}
	}
}
