package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// The demo's farm and job: small enough for two cores and two minutes, and in
// enough tasks that each machine gets several.
const (
	demoFrames = "1-24"
	demoChunk  = 2
	demoStart  = time.Minute // for three peers to start and to know each other
)

var demoMachines = []string{"attic", "cellar", "loft"}

// demonstration is what `demo` did, and its --json.
type demonstration struct {
	Job          lease.JobID    `json:"job"`
	Frames       int            `json:"frames"`
	ByPeer       map[string]int `json:"by_peer"`
	Seconds      float64        `json:"seconds"`
	FramesDir    string         `json:"frames_dir"`
	ContactSheet string         `json:"contact_sheet"`
	// The farm that --keep leaves behind.
	API      string   `json:"api,omitempty"`
	DataDirs []string `json:"data_dirs,omitempty"`
	PIDs     []int    `json:"pids,omitempty"`
}

func (c *cli) demoCommand() *cobra.Command {
	var (
		dir  string
		keep bool
		s    settings
	)
	flags := s.flags()
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a farm of three peers on this machine and render a job with it",
		Long: `Run a farm of three peers on this machine, with their own data folders and ports, render
a job of 24 frames with it, and leave the frames and a contact sheet in ./vizpeer-demo.
The farm is stopped and removed at the end, unless --keep is given.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := filepath.Abs(dir)
			if err != nil {
				return fmt.Errorf("the demo's folder: %w", err)
			}
			return c.demo(cmd.Context(), out, s.blender, keep)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "vizpeer-demo", "folder for the frames and the contact sheet")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the farm running")
	cmd.Flags().AddFlag(flags.Lookup("blender"))
	return cmd
}

func (c *cli) demo(ctx context.Context, dir string, extra []string, keep bool) (err error) {
	frames := filepath.Join(dir, "frames")
	if err := makeOutput(frames, "--dir"); err != nil {
		return err
	}
	data, err := os.MkdirTemp("", "vizpeer-demo-")
	if err != nil {
		return fmt.Errorf("the demo needs a temporary folder: %w", err)
	}
	children := &brood{cli: c, data: data, keep: keep, self: os.Executable}
	defer func() {
		if keep && err == nil {
			return
		}
		children.stop()
		if removed := os.RemoveAll(data); err == nil && removed != nil {
			err = fmt.Errorf("the demo's farm could not be removed: %w", removed)
		}
	}()

	c.announceProbe(data)
	builds, err := blenders(ctx, extra, data)
	if err != nil {
		return err
	}
	if len(builds) == 0 {
		return fmt.Errorf("the demo renders with Blender, and none was found on this machine: %s", installBlender)
	}
	c.say("Making a scene with Blender %s: a texture, a linked library, 24 frames", builds[0].Version)
	blend, err := render.SampleScene(ctx, builds[0].Path, filepath.Join(data, "scene"))
	if err != nil {
		return fmt.Errorf("the sample scene could not be made: %w", err)
	}
	c.say("Starting a farm of three peers: %s", strings.Join(demoMachines, ", "))
	cl, err := children.farm(ctx, extra)
	if err != nil {
		return err
	}
	began := time.Now()
	job, names, err := c.demoJob(ctx, cl, &order{blend: blend, name: "demo", frames: demoFrames, chunk: demoChunk,
		priority: string(lease.Normal), output: frames, strict: true, blenders: extra, dataDir: data})
	if err != nil {
		return err
	}
	d := demonstration{Job: job.ID, Frames: len(job.Frames), ByPeer: make(map[string]int),
		Seconds: time.Since(began).Seconds(), FramesDir: frames, ContactSheet: filepath.Join(dir, "contact-sheet.png")}
	for _, f := range job.Frames {
		d.ByPeer[names[f.Peer]]++
	}
	if err := contactSheet(d.ContactSheet, frames, job.Frames); err != nil {
		return err
	}
	if keep {
		d.API = children.peers[0].api
		for _, p := range children.peers {
			d.DataDirs, d.PIDs = append(d.DataDirs, p.dir), append(d.PIDs, p.cmd.Process.Pid)
		}
	}
	return c.print(d, func() { c.showDemo(d) })
}

// say tells a person what the demo does now.
func (c *cli) say(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintf(c.errOut, format+"\n", args...)
	}
}

// demoJob renders the scene and answers the finished job and the machines'
// names.
func (c *cli) demoJob(ctx context.Context, cl *client, o *order) (httpapi.Job, map[authz.PeerID]string, error) {
	submitted, err := c.submit(ctx, cl, o)
	if err != nil {
		return httpapi.Job{}, nil, fmt.Errorf("the demo's job was not accepted: %w", err)
	}
	c.say("Rendering job %s: frames %s in %s", submitted.Job, demoFrames, count(submitted.Tasks, "task"))
	b := c.board(true)
	t := teller{board: b}
	job, err := cl.follow(ctx, submitted.Job, t.show)
	b.close()
	if err == nil {
		err = verdict(job)
	}
	if err != nil {
		return job, nil, err
	}
	return job, cl.names(ctx), nil
}

func (c *cli) showDemo(d demonstration) {
	fmt.Fprintf(c.out, "\n%d frames rendered by three peers in %s:\n", d.Frames, duration(time.Duration(d.Seconds*float64(time.Second))))
	var counts []any
	for _, name := range demoMachines {
		counts = append(counts, "  "+name, count(d.ByPeer[name], "frame"))
	}
	c.facts(counts...)
	if len(d.PIDs) > 0 {
		pids := strings.Trim(fmt.Sprint(d.PIDs), "[]")
		fmt.Fprintf(c.out, `
The farm goes on at %[1]s. Use it with

  export VIZPEER_DATA_DIR=%[2]s
  %[3]s status
  %[3]s peer ls
  %[3]s render YOUR.blend --output ./out --wait

and stop it with

  kill %[4]s && rm -r %[5]s

`, d.API, d.DataDirs[0], os.Args[0], pids, filepath.Dir(d.DataDirs[0]))
	}
	fmt.Fprintf(c.out, "The frames are in %s, the contact sheet is %s\n", d.FramesDir, d.ContactSheet)
}

// awaitWorkers returns when n machines that can render are there.
func awaitWorkers(ctx context.Context, cl *client, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoStart, errTooFewWorkers)
	defer cancel()
	ready := 0
	look := func() error {
		peers, err := cl.peers(ctx)
		if err != nil {
			return err
		}
		ready = 0
		for _, p := range peers {
			if p.State == "idle" && p.Slots > 0 && p.Capability != nil && len(p.Capability.Builds) > 0 {
				ready++
			}
		}
		if ready >= n {
			return errStop
		}
		return nil
	}
	err := cl.events(ctx, "", listener{
		opened: look,
		idle:   look,
		event: func(ev httpapi.Event) error {
			if ev.Type != lease.PeerChanged {
				return nil
			}
			return look()
		},
	})
	if errors.Is(err, errTooFewWorkers) {
		return fmt.Errorf("%d of %d machines were ready within %s: %w", ready, n, demoStart, err)
	}
	return err
}

var errTooFewWorkers = errors.New("the farm did not come together")
