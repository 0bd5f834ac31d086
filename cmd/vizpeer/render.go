package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// order is what the flags of `render` ask for.
type order struct {
	frames      string
	chunk       int
	order       string
	split       string
	tiles       string
	movie       string
	after       []string
	name        string
	priority    string
	output      string
	replicas    int
	taskTimeout time.Duration
	strict      bool
	wait        bool
	rehash      bool

	set lease.Settings

	backend, vendor string
	minVRAM, minRAM float64 // GiB
	needs           lease.Requirements

	blend         string // absolute path, once checked
	fileVersion   lease.Version
	framesInScene bool         // no --frames: the scene's own range
	list          lease.Frames // of --frames
	wish          lease.Wish   // of --split and --tiles
	maxTasks      int          // that the farm allows in one job; 0 where it is not known
	blenders      []string     // where to look for one, beside the usual places
	dataDir       string       // where what they offer is remembered
	sent          *sentFiles
}

func (c *cli) renderCommand() *cobra.Command {
	var o order
	cmd := &cobra.Command{
		Use:     "render FILE.blend",
		Aliases: []string{"submit"},
		Short:   "Render a .blend on the farm",
		Long: `Render a .blend on the farm: collect the file and what it needs, hand it to this
machine's peer, and submit a job. Without --wait it returns as soon as the job is accepted,
and the frames come to --output by themselves.`,
		Example: `  vizpeer render shot.blend --frames 1-40 --output ./out --wait
  vizpeer render shot.blend --frames 1-40,50,60-80x2 --samples 256 --priority high
  vizpeer render shot.blend --require-gpu --min-vram 12 --backend OPTIX
  vizpeer render still.blend --frames 7 --split samples --samples 1024`,
		Args: takes("FILE.blend"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd, args[0]); err != nil {
				return err
			}
			return c.render(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.frames, "frames", "", "frames such as 1-40,50,60-80x2 (default: the scene's own range)")
	f.IntVar(&o.chunk, "chunk", 0, "frames in one task; 0: the farm chooses")
	f.StringVar(&o.split, "split", string(lease.WishAuto), "how machines share one frame: none, samples, tiles or auto (a still that is worth it)")
	f.StringVar(&o.tiles, "tiles", "", "columns and rows of tiles, such as 3x2 (default: as suits the frame)")
	f.IntVar(&o.set.Samples, "samples", 0, "samples for each pixel (default: the file's)")
	f.StringVar(&o.set.Engine, "engine", "", "render engine such as CYCLES, BLENDER_EEVEE (default: the file's)")
	f.IntVar(&o.set.ResolutionPercent, "resolution-percent", 0, "percent of the file's resolution (default: the file's)")
	f.StringVar(&o.set.Format, "format", "", "image format such as PNG, OPEN_EXR, JPEG (default: the file's)")
	f.StringVar(&o.movie, "movie", "", "also make a movie of the frames: mp4 (without a value), "+strings.Join(lease.Movies[1:], ", "))
	f.Lookup("movie").NoOptDefVal = lease.Movies[0]
	f.StringVar(&o.output, "output", "", "folder of this machine for the frames (default: the farm keeps them)")
	f.StringVar(&o.priority, "priority", string(lease.Normal), "low, normal, high or urgent")
	f.StringVar(&o.order, "order", string(lease.Preview), "preview (the first, the middle and the last frames first) or linear")
	f.StringSliceVar(&o.after, "after", nil, "job that must be done before this one begins, repeatable")
	f.StringVar(&o.backend, "backend", "", "OPTIX, CUDA, HIP, ONEAPI, METAL or CPU")
	f.BoolVar(&o.needs.RequireGPU, "require-gpu", false, "only machines with a GPU")
	f.StringVar(&o.vendor, "gpu-vendor", "", "NVIDIA, AMD, INTEL or APPLE")
	f.Float64Var(&o.minVRAM, "min-vram", 0, "GiB of memory that one GPU must have")
	f.Float64Var(&o.minRAM, "min-ram", 0, "GiB of memory that the machine must have")
	f.StringVar(&o.needs.OS, "os", "", "linux, windows or macos")
	f.StringSliceVar(&o.needs.Labels, "label", nil, "label that the machine must carry, repeatable")
	f.StringVar(&o.needs.Blender, "blender-version", "", "Blender to render with: 3.4 is every 3.4.x, any is every one that is not older than the file (default: the release that saved the file)")
	f.IntVar(&o.replicas, "replicas", 0, "machines that must hold a frame before it is done (default: 2, or all there are)")
	f.StringVar(&o.name, "name", "", "the job's name (default: the file's)")
	f.BoolVar(&o.wait, "wait", false, "wait for the frames; exit 5 if the job fails or is cancelled")
	f.BoolVar(&o.strict, "strict", false, "refuse to submit while files are missing")
	f.BoolVar(&o.rehash, "rehash", false, "read and send every file, also what has not changed since the last time")
	f.DurationVar(&o.taskTimeout, "task-timeout", 0, "longest time for one attempt at a task, such as 30m (default: a day for each frame)")
	return cmd
}

// check finds everything that can be found wrong before anything is sent.
func (o *order) check(cmd *cobra.Command, file string) error {
	o.framesInScene = !cmd.Flags().Changed("frames")
	if !o.framesInScene {
		var err error
		if o.list, err = lease.ParseFrames(o.frames); err != nil {
			return &usageError{err}
		}
	}
	tier := lease.Tier(strings.ToLower(o.priority))
	switch {
	case tier.Rank() < 0:
		return usagef("unknown priority %q: use low, normal, high or urgent", o.priority)
	case o.order != string(lease.Preview) && o.order != string(lease.Linear):
		return usagef("unknown --order %q: use preview or linear", o.order)
	case o.chunk < 0:
		return usagef("--chunk %d is not possible: use 1 or more, or 0 for the farm to choose", o.chunk)
	case o.replicas < 0 || o.replicas > 16:
		return usagef("--replicas %d is not possible: use 1 to 16", o.replicas)
	case cmd.Flags().Changed("samples") && o.set.Samples < 1:
		return usagef("--samples %d is not possible: use 1 or more", o.set.Samples)
	case cmd.Flags().Changed("resolution-percent") && o.set.ResolutionPercent < 1:
		return usagef("--resolution-percent %d is not possible: use 1 or more", o.set.ResolutionPercent)
	case o.taskTimeout < 0:
		return usagef("--task-timeout %s is not possible: use a time such as 30m", o.taskTimeout)
	case len(o.name) > 200 || strings.ContainsAny(o.name, "\x00\n\r"):
		return usagef("--name must be one line of at most 200 bytes")
	}
	o.priority = string(tier)
	o.set.Engine, o.set.Format = strings.ToUpper(o.set.Engine), strings.ToUpper(o.set.Format)
	o.needs.Backend, o.needs.GPUVendor = lease.Backend(strings.ToUpper(o.backend)), lease.Vendor(strings.ToUpper(o.vendor))
	if o.needs.OS = strings.ToLower(o.needs.OS); o.needs.OS == "macos" {
		o.needs.OS = "darwin"
	}
	if strings.EqualFold(o.needs.Blender, lease.AnyBlender) {
		o.needs.Blender = lease.AnyBlender
	}
	var err error
	if o.needs.MinVRAM, err = gibibytes("--min-vram", o.minVRAM); err != nil {
		return err
	}
	if o.needs.MinRAM, err = gibibytes("--min-ram", o.minRAM); err != nil {
		return err
	}
	o.needs.Engine = o.set.Engine
	if o.set.Engine != "" && !looksLikeEngine(o.set.Engine) {
		return usagef("--engine %q is not the name of an engine: write it as Blender does, such as CYCLES or BLENDER_EEVEE", o.set.Engine)
	}
	if err := checkFormat(o.set.Format); err != nil {
		return err
	}
	if o.movie != "" && !slices.Contains(lease.Movies, o.movie) {
		return usagef("--movie %s is not possible: use one of %s, as in --movie=%s", o.movie, strings.Join(lease.Movies, ", "), lease.Movies[0])
	}
	if o.wish, err = lease.ParseWish(strings.ToLower(o.split), o.tiles); err != nil {
		return &usageError{err}
	}
	if err := checkLabels(o.needs.Labels); err != nil {
		return err
	}
	if err := o.needs.Validate(); err != nil {
		return &usageError{err}
	}
	if err := o.checkBlend(file); err != nil {
		return err
	}
	if o.name == "" {
		o.name = strings.TrimSuffix(filepath.Base(o.blend), filepath.Ext(o.blend))
	}
	if o.output != "" {
		if o.output, err = filepath.Abs(o.output); err != nil {
			return fmt.Errorf("the output folder: %w", err)
		}
	}
	return nil
}

func (o *order) countTasks(frames lease.Frames) error {
	chunk := o.chunk
	if chunk < 1 { // the farm chooses, and sees to the limit
		return nil
	}
	n := len(frames.Expand())
	if tasks := (n + chunk - 1) / chunk; o.maxTasks > 0 && tasks > o.maxTasks {
		return usagef("%d frames in chunks of %d are %d tasks, more than the %d that one job may have: give a larger --chunk or fewer frames", n, chunk, tasks, o.maxTasks)
	}
	return nil
}

func gibibytes(flag string, n float64) (int64, error) {
	if n < 0 || n > 1<<20 || math.IsNaN(n) {
		return 0, usagef("%s %v is not possible: give GiB, such as 12", flag, n)
	}
	return int64(n * (1 << 30)), nil
}

func (o *order) checkBlend(file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	o.fileVersion, err = render.HeaderOf(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notFoundf("there is no file %s: check the name", path)
	case errors.Is(err, fs.ErrPermission):
		return notFoundf("you may not read %s: check its permissions", path)
	case errors.Is(err, render.ErrNotBlend):
		return usagef("%w: give a file that Blender saved", err)
	case err != nil:
		return err
	}
	o.blend = path
	return nil
}

// makeOutput makes the folder that flag names and proves that files can be
// written there.
func makeOutput(dir, flag string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("the output folder cannot be made: %w: choose another with %s", err, flag)
	}
	probe, err := os.CreateTemp(dir, ".vizpeer-*")
	if err != nil {
		return fmt.Errorf("the output folder cannot be written: %w: choose another with %s", err, flag)
	}
	probe.Close()
	return os.Remove(probe.Name())
}

// render is the command, once its flags are known to make sense.
func (c *cli) render(ctx context.Context, o *order) error {
	dir, err := c.folder()
	if err != nil {
		return err
	}
	var s settings
	if err := s.load(s.flags(), dir, os.Getenv); err != nil {
		return err
	}
	o.blenders, o.dataDir = s.blender, dir
	cl, err := c.client()
	if err != nil {
		return err
	}
	status, err := cl.status(ctx) // before Blender is started for nothing
	if err != nil {
		return err
	}
	o.sent = openSent(status.Peer)
	if o.chunk > 0 {
		// Where no leader answers now, one may once all is sent, and counts itself.
		if farm, err := cl.farm(ctx); err == nil {
			o.maxTasks = farm.Limits.Tasks
		}
		if err := o.countTasks(o.list); err != nil {
			return err
		}
	}
	if o.output != "" && cl.local {
		if err := makeOutput(o.output, "--output"); err != nil {
			return err
		}
	}
	submitted, err := c.submit(ctx, cl, o)
	if err != nil {
		return err
	}
	if err := c.print(submitted, func() {
		fmt.Fprintf(c.out, "job %s: %s in %s\n", submitted.Job, plain(o.name), count(submitted.Tasks, "task"))
	}); err != nil {
		return err
	}
	if submitted.Waiting {
		c.warn("No coordinator can be reached: %s. Leave this machine on until then", plain(submitted.Reason))
	}
	for _, w := range submitted.Warnings {
		c.warn("%s", w)
	}
	if submitted.Whole != "" {
		c.hint("One machine renders the frame as a whole: %s.", plain(submitted.Whole))
	}
	if !o.wait {
		// The job is accepted: that its state cannot be read is no failure.
		if job, err := cl.job(ctx, submitted.Job); err == nil && !job.Waiting {
			if reason := stuck(job); reason != "" {
				c.warn("%s", reason)
			}
		}
		c.hint("You may close this terminal. Follow the job with `vizpeer job watch %s`.", submitted.Job)
		return nil
	}
	job, err := c.await(ctx, cl, submitted.Job)
	if err != nil {
		return err
	}
	if !c.json {
		c.summary(job)
	}
	return verdict(job)
}

// submission is what became of a `render`, and its --json.
type submission struct {
	httpapi.Submitted
	// Complete is false where no Blender could look for what the file needs.
	Complete bool `json:"complete"`
}

// submit collects the project, uploads it and submits the job.
func (c *cli) submit(ctx context.Context, cl *client, o *order) (submission, error) {
	var none submission
	collected, blind, err := c.collect(ctx, o)
	if err != nil {
		return none, err
	}
	m := collected.Manifest
	if !m.Complete {
		switch {
		case o.strict:
			return none, fmt.Errorf("cannot tell what is missing: %s. Nothing was submitted, because of --strict", blind)
		case o.framesInScene:
			return none, usagef("the scene's frame range is not known: %s; or give --frames", blind)
		}
		c.warn("%s. Only the file itself is sent", blind)
	}
	if o.set.Format == "" && isMovie(m.Scene.Format) {
		c.warn("%s writes a movie (%s), and the farm renders frames: they come as PNG; choose another image format with --format", filepath.Base(o.blend), m.Scene.Format)
	}
	if len(m.Missing) > 0 {
		list := fmt.Sprintf("%s refers to files that are missing (%d):\n  %s", filepath.Base(o.blend), len(m.Missing), strings.Join(m.Missing, "\n  "))
		if o.strict {
			return none, fmt.Errorf("%s\nNothing was submitted, because of --strict", list)
		}
		c.warn("%s\nWhat uses them will render without", list)
	}
	frames := o.list
	if o.framesInScene && m.Complete {
		frames = lease.Frames{{First: m.Scene.FrameStart, Last: m.Scene.FrameEnd, Step: max(1, m.Scene.FrameStep)}}
		if err := o.countTasks(frames); err != nil {
			return none, err
		}
	}
	// The peer decides by the same rule; but a wish that cannot be met is known before
	// gigabytes are sent.
	needs := o.needs
	needs.FileVersion = o.fileVersion
	if _, err := lease.Choose(o.wish, lease.Spec{Frames: frames, Settings: o.set, Needs: needs}, m.Scene.PictureFor(o.set)); err != nil {
		return none, &usageError{err}
	}
	project, err := c.upload(ctx, cl, collected, o.sent, o.rehash)
	if err != nil {
		return none, err
	}
	o.needs.FileVersion = project.FileVersion
	after := make([]lease.JobID, len(o.after))
	for i, id := range o.after {
		after[i] = lease.JobID(id)
	}
	submitted, err := cl.submit(ctx, httpapi.Submission{
		Name: o.name, Project: project.Project, Frames: o.frames, Chunk: o.chunk,
		Priority: lease.Tier(o.priority), Order: lease.Order(o.order), After: after, Needs: o.needs, Settings: o.set, Replicas: o.replicas,
		Output: o.output, TaskTimeout: o.taskTimeout.Seconds(), Strict: o.strict, Split: lease.WishBy(strings.ToLower(o.split)), Tiles: o.tiles, Movie: o.movie,
	}, func(err error) { c.hint("%v: trying again, without submitting it twice.", err) })
	submitted.Missing = orEmpty(submitted.Missing)
	return submission{submitted, m.Complete}, err
}
