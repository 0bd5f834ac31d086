// Package probe finds out what this machine can do: its processor, memory and
// GPUs, the Blenders installed on it and what each of them offers. The answer is
// the content of the machine's ad.
//
// It promises that nothing it asks can hang or spoil a start: every program has a
// time-out, what does not answer is left out and logged, and what was learnt of a
// Blender is kept in a file for as long as the Blender stays the same.
//
// It does not decide anything: who may render what is package lease's matching.
package probe

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/mem"

	"vizpeer/lease"
	"vizpeer/peer/render"
)

// Config says where to look and what the owner wants. The zero value works.
type Config struct {
	// Blender lists Blenders beside those that are found: programs, or folders or
	// macOS applications that hold one.
	Blender []string
	// Fetched are programs of Blenders that the farm gave this machine. They come after
	// its own.
	Fetched []string
	// Labels are the machine's labels.
	Labels []string
	// Slots is how many attempts run at once on the CPU; 0 is one.
	Slots int
	// NoWork keeps the machine from rendering: it gets no slots.
	NoWork bool
	// DataDir is the folder whose disk counts, and where probe.json keeps what was
	// learnt. Without it nothing is kept.
	DataDir string
	Logger  *slog.Logger
}

// Probe answers what this machine can do. It starts programs: a second or two for
// each Blender it has not seen before, and nearly nothing after that. The error is
// ctx's; whatever else fails is logged and left out of the answer.
func Probe(ctx context.Context, cfg Config) (lease.Capability, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := prober{cfg: cfg, sys: thisMachine{}, places: usualPlaces(runtime.GOOS, os.Getenv)}
	c := p.probe(ctx)
	return c, ctx.Err()
}

// FreeDisk is the number of bytes that may still be written to dir's disk.
func FreeDisk(dir string) (int64, error) {
	u, err := disk.Usage(dir)
	if err != nil {
		return 0, err
	}
	return int64(u.Free), nil
}

// system is what a probe asks of the machine, so that tests can answer instead.
type system interface {
	// run answers what a program prints to its standard output.
	run(ctx context.Context, name string, args ...string) ([]byte, error)
	// files is the machine's file system from its root.
	files() fs.FS
}

type thisMachine struct{}

func (thisMachine) files() fs.FS { return os.DirFS("/") }

func (thisMachine) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = killGrace
	return cmd.Output()
}

type prober struct {
	cfg    Config
	sys    system
	places []string // patterns of where Blenders are
	// confine tells that Blenders from the farm are asked in a sandbox.
	confine bool
}

func (p prober) probe(ctx context.Context) lease.Capability {
	c := lease.Capability{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.NumCPU(),
		Labels: slices.Compact(slices.Sorted(slices.Values(p.cfg.Labels))),
	}
	if info, err := cpu.InfoWithContext(ctx); err == nil && len(info) > 0 {
		c.CPU = strings.TrimSpace(info[0].ModelName)
	} else {
		p.cfg.Logger.Warn("the processor does not say what it is", "err", err)
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		c.RAM = int64(m.Total)
	} else {
		p.cfg.Logger.Warn("the size of the memory is unknown", "err", err)
	}
	if p.cfg.DataDir != "" {
		free, err := FreeDisk(p.cfg.DataDir)
		if err != nil {
			p.cfg.Logger.Warn("the free space of the disk is unknown", "dir", p.cfg.DataDir, "err", err)
		}
		c.FreeDisk = free
	}
	c.Sandbox, _ = render.SandboxKind()
	p.confine = c.Sandbox != ""

	gpus := p.gpus(ctx, c)
	describe(&c, gpus.list, p.blenders(ctx, gpus))
	if len(c.Builds) > 0 && !p.cfg.NoWork {
		c.Slots = max(1, p.cfg.Slots)
	}
	return c
}
