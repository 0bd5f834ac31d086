package render

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"vizpeer/lease"
)

// scripts is what runs inside Blender.
//
//go:embed driver.py early.py guard.py remap.py devices.py collect.py samplescene.py
var scripts embed.FS

// The values of [Config.Sandbox].
const (
	SandboxAuto = "auto" // bubblewrap where the machine has it
	SandboxOff  = "off"
)

// Config is how [Blender] runs. Dir is required.
type Config struct {
	// Dir is the folder below which every attempt gets a private folder. It
	// belongs to one [Blender] alone, which removes what an earlier process left.
	Dir string
	// Sandbox is SandboxAuto, the default, or SandboxOff.
	Sandbox string
	// MaxDisk is how many bytes of disk an attempt's folder may take; 0 is half of
	// what is free when the attempt begins, and 64 GiB at most.
	MaxDisk int64
	// MaxMemory is how many bytes of memory an attempt's processes may take; 0 is nine
	// tenths of the machine's. What they take of a GPU's is not counted.
	MaxMemory int64
	// MaxThreads is how many processes and threads an attempt may have; 0 is 1,024 and
	// 16 for each core.
	MaxThreads int
	Logger     *slog.Logger
}

// Blender is the [Runner] that renders: one Blender process for an attempt,
// which loads the file once and renders all of the attempt's frames.
type Blender struct {
	cfg   Config
	sweep sync.Once
}

// NewBlender makes a Runner of this machine's Blenders. It starts nothing.
func NewBlender(cfg Config) *Blender {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Sandbox == "" {
		cfg.Sandbox = SandboxAuto
	}
	return &Blender{cfg: cfg}
}

// Sandbox tells how attempts are confined: "bubblewrap", or "" and the reason why
// they are not.
func (b *Blender) Sandbox() (kind, reason string) {
	if b.cfg.Sandbox == SandboxOff {
		return "", "the sandbox is switched off in the configuration"
	}
	return SandboxKind()
}

// Once Blender has ended its output does too, unless a process holds it that Blender
// started and that left its group: after strayGrace it is looked for, and after
// killGrace whatever still holds the output is left to itself.
const (
	strayGrace = 200 * time.Millisecond
	killGrace  = 5 * time.Second
)

const dayPerFrame = 24 * time.Hour

var errTimeout = errors.New("the attempt ran past its time")

// Run implements [Runner].
func (b *Blender) Run(ctx context.Context, a Attempt, sink Sink) (logPath string, cleanup func(), err error) {
	cleanup = func() {}
	b.sweep.Do(b.removeLeftovers)
	if len(a.Frames) == 0 {
		return "", cleanup, &Error{Kind: lease.FailError, Reason: "the attempt has no frames"}
	}
	dir, err := b.newDir(a)
	if err != nil {
		return "", cleanup, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot make a folder for the attempt: %v", err)}
	}
	cleanup = func() {
		if err := os.RemoveAll(dir.root); err != nil {
			b.cfg.Logger.Warn("an attempt's folder could not be removed", "dir", dir.root, "err", err)
		}
	}
	// What Blender keeps for itself is nobody's after it has ended.
	defer os.RemoveAll(dir.tmp())
	return dir.log(), cleanup, b.run(ctx, a, dir, sink)
}

func (b *Blender) run(ctx context.Context, a Attempt, dir attemptDir, sink Sink) error {
	place, err := findProject(a)
	if err != nil {
		return err
	}
	kind, _ := b.Sandbox()
	confined := kind != ""
	cmd, err := b.command(a, dir, place, confined)
	if err != nil {
		return err
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
	go watchDisk(ctx, dir.root, limit, stop)
	began := time.Now()
	w := &watch{attempt: a, dir: dir, sink: sink, began: began, done: map[int32]bool{}}
	ooms := oomKills()
	tmp := dir.tmp()
	if confined {
		tmp = "" // the sandbox takes all of its processes along
	}
	most := b.bounds(limit)
	exit, err := supervise(ctx, cmd, tmp, func(r io.Reader) error {
		go most.watchProcesses(ctx, cmd.Process.Pid, tmp, stop)
		return w.read(ctx, r, log)
	})
	if cerr := log.Close(); cerr != nil && err == nil {
		b.cfg.Logger.Warn("Blender's log is incomplete", "attempt", a.ID, "err", cerr)
	}
	b.cfg.Logger.Debug("Blender has ended", "attempt", a.ID, "exit", exit, "seconds", time.Since(began).Seconds(), "err", err)

	var over *overrun
	switch cause := context.Cause(ctx); {
	case err != nil && ctx.Err() == nil:
		return w.judgeRead(err)
	case len(w.done) == len(a.Frames):
		return nil // every image is here and whole: how Blender quits is its own affair
	case errors.Is(cause, errTimeout):
		return w.fail(lease.FailTimeout, fmt.Sprintf("Blender was stopped %s because the attempt ran past %s", w.where(), a.allowed()))
	case errors.As(cause, &over):
		return w.fail(over.kind, "Blender was stopped because "+over.reason)
	case cause != nil:
		return fmt.Errorf("%w: %w", ErrStopped, cause)
	}
	return w.judge(exit, oomKills() > ooms)
}

// allowed says how long Blender may take for the attempt, and who said so.
func (a Attempt) allowed() string {
	if a.Timeout <= 0 {
		return fmt.Sprintf("a day for each of its %d frames, which is the most without a task time-out of the job's own", len(a.Frames))
	}
	return fmt.Sprintf("the %s that the job's task time-out allows", a.Timeout)
}

// driverArgs is the driver's side of an attempt: see driver.py.
type driverArgs struct {
	Out     string `json:"out"`
	Scratch string `json:"scratch"`
	// Root is the project's folder where nothing but guard.py keeps Blender in it.
	Root    string          `json:"root,omitempty"`
	Frames  []int32         `json:"frames"`
	Remap   *remapArgs      `json:"remap,omitempty"`
	Backend []lease.Backend `json:"backends,omitempty"`
	GPU     bool            `json:"gpu,omitempty"`
	// IDs are Blender's names of the one GPU to render on, by backend.
	IDs map[lease.Backend]string `json:"ids,omitempty"`
	lease.Settings
}

// on makes d the one device to render on.
func (a *driverArgs) on(d lease.Device, b lease.Build) error {
	i, isGPU := d.GPU()
	switch {
	case d == "":
	case d == lease.CPUDevice:
		a.Backend = []lease.Backend{lease.CPU}
	case isGPU && i < len(b.GPUs) && len(b.GPUs[i]) > 0:
		a.IDs = b.GPUs[i]
	default:
		return &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine's Blender %s cannot use its device %q", b.Version, string(d))}
	}
	return nil
}

type remapArgs struct {
	Root   string `json:"root"`
	Origin string `json:"origin"`
}

// backends lists the backends that may serve r, best first; nil is all of them.
func backends(r lease.Requirements) []lease.Backend {
	switch {
	case r.Backend != "":
		return []lease.Backend{r.Backend}
	case r.GPUVendor == lease.NVIDIA:
		return []lease.Backend{lease.OptiX, lease.CUDA}
	case r.GPUVendor == lease.AMD:
		return []lease.Backend{lease.HIP}
	case r.GPUVendor == lease.Intel:
		return []lease.Backend{lease.OneAPI}
	case r.GPUVendor == lease.Apple:
		return []lease.Backend{lease.Metal}
	}
	return nil
}

// command builds the process of an attempt and writes what it reads.
func (b *Blender) command(a Attempt, dir attemptDir, place project, confined bool) (*exec.Cmd, error) {
	exe, err := exec.LookPath(a.Build.Path)
	if err != nil {
		return nil, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine's Blender %s is gone or cannot be run", a.Build.Version)}
	}
	view := outside(dir, place)
	var box *sandbox
	if confined {
		if box, err = newSandbox(exe, dir, place, b.maxThreads()); err != nil {
			return nil, &Error{Kind: lease.FailMachine, Reason: err.Error()}
		}
		view = box.view
	}
	args := driverArgs{
		Out: view.out, Scratch: filepath.Join(view.tmp, "unkept"), Frames: a.Frames,
		Backend: backends(a.Needs), Settings: a.Set, GPU: a.Needs.WantsGPU(),
	}
	if err := args.on(a.Device, a.Build); err != nil {
		return nil, err
	}
	if box == nil {
		args.Root = place.root
	}
	if view.remap {
		args.Remap = &remapArgs{Root: view.files, Origin: place.manifest.Origin}
	}
	if err := dir.writeDriver(args); err != nil {
		return nil, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("this machine cannot prepare the attempt: %v", err)}
	}
	// The exit code of a Python error must stand before -P, or it is 0.
	line := []string{exe, "-b", "--factory-startup", "-noaudio", "-Y", "--python-exit-code", "3",
		view.blend, "-P", filepath.Join(view.driver, "driver.py"), "--", filepath.Join(view.driver, "args.json")}
	if box == nil { // before the file is opened
		line = slices.Insert(line, slices.Index(line, view.blend), "-P", filepath.Join(view.driver, "early.py"))
	}
	env := environment(view.tmp)
	if box != nil {
		line = append(box.prefix(), line...)
		env = box.env()
	}
	line = append(limits(b.diskLimit()), line...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir, cmd.Env = dir.root, env
	if box != nil {
		cmd.ExtraFiles = box.files
	}
	return cmd, nil
}

// attemptDir is the private folder of one attempt. Blender may write into out and
// tmp alone; an image is moved out of its reach before anyone looks at it.
type attemptDir struct{ root string }

func (d attemptDir) out() string    { return filepath.Join(d.root, "out") }
func (d attemptDir) tmp() string    { return filepath.Join(d.root, "tmp") }
func (d attemptDir) driver() string { return filepath.Join(d.root, "driver") }
func (d attemptDir) frames() string { return filepath.Join(d.root, "frames") }
func (d attemptDir) log() string    { return filepath.Join(d.root, "blender.log") }

const attemptPrefix = "attempt-"

func (b *Blender) newDir(a Attempt) (attemptDir, error) {
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return attemptDir{}, err
	}
	base, err := filepath.Abs(b.cfg.Dir)
	if err != nil {
		return attemptDir{}, err
	}
	root, err := os.MkdirTemp(base, attemptPrefix)
	if err != nil {
		return attemptDir{}, err
	}
	d := attemptDir{root: root}
	for _, sub := range []string{d.out(), d.tmp(), d.driver(), d.frames()} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			os.RemoveAll(root)
			return attemptDir{}, err
		}
	}
	return d, nil
}

func (d attemptDir) writeDriver(args driverArgs) error {
	names, err := scripts.ReadDir(".")
	if err != nil {
		return err
	}
	for _, n := range names {
		text, err := scripts.ReadFile(n.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.driver(), n.Name()), text, 0o600); err != nil {
			return err
		}
	}
	text, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.driver(), "args.json"), text, 0o600)
}

// removeLeftovers clears what a process that was killed left behind.
func (b *Blender) removeLeftovers() {
	old, _ := filepath.Glob(filepath.Join(b.cfg.Dir, attemptPrefix+"*"))
	for _, dir := range old {
		killStrays(0, attemptDir{dir}.tmp())
		if err := os.RemoveAll(dir); err != nil {
			b.cfg.Logger.Warn("an old attempt's folder could not be removed", "dir", dir, "err", err)
		}
	}
}

// supervise runs cmd to its end, giving its output to read, and kills it with
// everything it started when ctx ends or read fails. tmp is the folder for temporary
// files that cmd alone was given, "" where nothing that it starts outlives it anyway.
// exit is the exit code, or 128 and the signal's number.
func supervise(ctx context.Context, cmd *exec.Cmd, tmp string, read func(io.Reader) error) (exit int, err error) {
	// The kernel kills the child when the thread that started it goes away: keep
	// the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	ownGroup(cmd)
	err = cmd.Start()
	w.Close()
	for _, f := range cmd.ExtraFiles { // the sandbox has them now
		f.Close()
	}
	if err != nil {
		return 0, startError{err}
	}
	g := &group{cmd: cmd, tmp: tmp}
	stop := context.AfterFunc(ctx, g.kill)
	defer stop()

	exited, drained := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(exited)
		g.wait()
		r.SetReadDeadline(time.Now().Add(killGrace))
		select {
		case <-drained:
		case <-time.After(strayGrace):
			killStrays(0, tmp)
		}
	}()
	err = read(r)
	close(drained)
	if err != nil {
		g.kill()
	}
	<-exited
	return exitCode(cmd.ProcessState), err
}

// group is a process and what it started. It remembers when the process is gone,
// because its number may be another's then.
type group struct {
	cmd  *exec.Cmd
	tmp  string // see supervise
	mu   sync.Mutex
	gone bool
}

func (g *group) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		killStrays(0, g.tmp)
		return
	}
	if g.tmp != "" { // while it lives, those that hide are known as its children
		killStrays(g.cmd.Process.Pid, g.tmp)
	}
	killGroup(g.cmd)
	killStrays(0, g.tmp)
}

// wait returns when the process has ended, and takes along what it left in its
// group.
func (g *group) wait() {
	if awaitExit(g.cmd) {
		g.mu.Lock()
		defer g.mu.Unlock()
		killGroup(g.cmd)
	}
	g.cmd.Wait() // the state says how it ended
	g.gone = true
}

type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

// maxLine bounds a line of Blender's output: what is longer says nothing.
const maxLine = 64 << 10

// lines calls line with each line of r, cut to maxLine bytes, until r ends.
func lines(r io.Reader, line func([]byte) error) error {
	return pieces(r, func(piece []byte, first bool) error {
		if !first {
			return nil
		}
		return line(bytes.TrimRight(piece, "\r\n"))
	})
}

// pieces gives all of r to piece until r ends: lines with their ends, and those
// longer than maxLine in several pieces, of which one is the first.
func pieces(r io.Reader, piece func(b []byte, first bool) error) error {
	br := bufio.NewReaderSize(r, maxLine)
	rest := false // of a line whose beginning was given already
	for {
		b, err := br.ReadSlice('\n')
		if len(b) > 0 {
			if err := piece(b, !rest); err != nil {
				return err
			}
		}
		rest = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case err == nil, rest:
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return err
		}
	}
}
