package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// check is one thing that can be wrong with this machine.
type check interface {
	Name() string
	// Run says in a sentence what it found. An error says what is wrong and what
	// to do; a [concern] is one that vizpeer can live with.
	Run(context.Context) (string, error)
}

// concern is a finding that is no failure.
type concern struct{ err error }

func (c concern) Error() string { return c.err.Error() }

func concernf(format string, args ...any) error { return concern{fmt.Errorf(format, args...)} }

// finding is a check's result, and a line of `doctor --json`.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // ok, warning, failed
	Detail string `json:"detail"`
}

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine: Blender, GPUs, sandbox, disk, ports, peer, store, leader, versions, other networks, certificate, clock",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := c.folder()
			if err != nil {
				return err
			}
			var s settings
			if err := s.load(s.flags(), dir, os.Getenv); err != nil {
				return err
			}
			visit, found := &peerVisit{cli: c}, &blenderCheck{extra: s.blender, dir: dir}
			findings, failed := diagnose(cmd.Context(), []check{
				found, gpuCheck{found}, sandboxCheck{}, folderCheck{dir}, recoveryCheck{dir}, diskCheck{dir},
				visit, storeCheck{visit}, portCheck{s, visit}, leaderCheck{visit}, versionsCheck{visit}, reachCheck{visit}, certificateCheck{visit}, clockCheck{visit},
			})
			if err := c.print(findings, func() {
				rows := make([][]any, len(findings))
				for i, f := range findings {
					rows[i] = []any{f.State, f.Check, f.Detail}
				}
				c.table([]string{"STATE", "CHECK", "FOUND"}, rows)
			}); err != nil {
				return err
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d checks failed", failed, len(findings))
			}
			return nil
		},
	}
}

func diagnose(ctx context.Context, checks []check) (findings []finding, failed int) {
	for _, ch := range checks {
		f := finding{Check: ch.Name(), State: "ok"}
		detail, err := ch.Run(ctx)
		f.Detail = detail
		var mild concern
		switch {
		case errors.As(err, &mild):
			f.State, f.Detail = "warning", err.Error()
		case err != nil:
			f.State, f.Detail = "failed", err.Error()
			failed++
		}
		findings = append(findings, f)
	}
	return findings, failed
}

// blenderCheck asks the machine's Blenders; the check of its GPUs uses what it learnt.
type blenderCheck struct {
	extra []string
	dir   string
	can   lease.Capability
}

func (*blenderCheck) Name() string { return "blender" }

func (b *blenderCheck) Run(ctx context.Context) (string, error) {
	can, err := hardware(ctx, b.extra, peer.Fetched(b.dir), b.dir)
	if err != nil {
		return "", err
	}
	b.can = can
	if len(can.Builds) == 0 {
		return "", concernf("none found, so this machine cannot render: %s", installBlender)
	}
	found := make([]string, len(can.Builds))
	for i, build := range can.Builds {
		found[i] = fmt.Sprintf("%s at %s", buildText(build), build.Path)
	}
	return strings.Join(found, "; "), nil
}

type gpuCheck struct{ blenders *blenderCheck }

func (gpuCheck) Name() string { return "gpus" }

func (g gpuCheck) Run(context.Context) (string, error) {
	can := g.blenders.can
	if len(can.GPUs) == 0 {
		return "none found: this machine renders on its CPU", nil
	}
	text := gpusText(can.GPUs)
	for _, gpu := range can.GPUs {
		if len(gpu.Backends) == 0 && len(can.Builds) > 0 {
			return "", concernf("%s: no Blender here can use %s with Cycles: see that its maker's driver is installed and works, and that a Blender from blender.org is there", text, gpu.Model)
		}
	}
	return text, nil
}

type sandboxCheck struct{}

func (sandboxCheck) Name() string { return "sandbox" }

func (sandboxCheck) Run(context.Context) (string, error) {
	kind, reason := render.SandboxKind()
	holds, open := confinementText(render.Confinements(kind))
	switch {
	case kind == "":
		return "", concernf("Blender would run unconfined: %s. A hostile file is kept from %s. It is not kept from %s", reason, holds, open)
	case open != "":
		return fmt.Sprintf("Blender runs under %s. A hostile file is not kept from %s", kind, open), nil
	}
	return "Blender runs under " + kind, nil
}

// confinementText names what a hostile file is kept from, and by what, and what it is
// not kept from.
func confinementText(list []render.Confinement) (holds, open string) {
	var held, free []string
	for _, c := range list {
		if c.By == "" {
			free = append(free, c.Against)
		} else {
			held = append(held, fmt.Sprintf("%s (%s)", c.Against, c.By))
		}
	}
	return strings.Join(held, ", "), strings.Join(free, ", ")
}

type folderCheck struct{ dir string }

func (folderCheck) Name() string { return "data folder" }

func (f folderCheck) Run(context.Context) (string, error) {
	dir := nearestFolder(f.dir)
	probe, err := os.CreateTemp(dir, ".vizpeer-doctor-*")
	if err != nil {
		return "", fmt.Errorf("%s cannot be written: %w: mend its permissions or choose another with --data-dir", dir, err)
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	return f.dir, nil
}

// nearestFolder is dir or, before `init` made it, the nearest folder above that
// exists.
func nearestFolder(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// recoveryCheck looks for the farm's key, which is of use on no machine of the farm until
// the day when all others are lost.
type recoveryCheck struct{ dir string }

func (recoveryCheck) Name() string { return "recovery file" }

func (r recoveryCheck) Run(context.Context) (string, error) {
	path := filepath.Join(r.dir, peer.RecoveryFile)
	if _, err := os.Stat(path); err == nil {
		return "", concernf("%s is still here: move it to a safe place outside of this machine, for whoever steals it has the farm", path)
	}
	return "not here, as it should be", nil
}

// The free disk below which doctor warns and fails, in bytes.
const (
	lowDisk  = 10 << 30
	fullDisk = 1 << 30
)

type diskCheck struct{ dir string }

func (diskCheck) Name() string { return "free disk" }

func (d diskCheck) Run(ctx context.Context) (string, error) {
	u, err := disk.UsageWithContext(ctx, nearestFolder(d.dir))
	if err != nil {
		return "", concernf("the free space of %s could not be read: %w", d.dir, err)
	}
	free := bytesText(int64(u.Free))
	switch {
	case u.Free < fullDisk:
		return "", fmt.Errorf("only %s free for projects and frames: make room, or move the data with --data-dir", free)
	case u.Free < lowDisk:
		return "", concernf("%s free: large projects may not fit", free)
	}
	return free, nil
}

// peerVisit asks the running peer; the checks after it use what it learnt.
type peerVisit struct {
	cli    *cli
	client *client
	status *httpapi.Status // nil where no peer answers
}

func (*peerVisit) Name() string { return "peer" }

func (v *peerVisit) Run(ctx context.Context) (string, error) {
	cl, err := v.cli.client()
	if err == nil {
		var s httpapi.Status
		if s, err = cl.status(ctx); err == nil {
			v.client, v.status = cl, &s
			if s.Drained != "" {
				return "", concernf("%s is drained and takes no work: %s: an admin ends that with `vizpeer peer drain %s --off`", s.Name, s.Drained, s.Name)
			}
			return fmt.Sprintf("%s answers at %s, connected to %s", s.Name, cl.base, count(s.Connected, "other machine")), nil
		}
	}
	if exitCode(err) == exitUnreachable {
		return "", concern{err}
	}
	return "", err
}

type storeCheck struct{ visit *peerVisit }

func (storeCheck) Name() string { return "store" }

func (s storeCheck) Run(context.Context) (string, error) {
	switch st := s.visit.status; {
	case st == nil:
		return "", concernf("not asked, as no peer answers")
	case st.Full != "":
		return "", fmt.Errorf("this machine takes no work: %s", st.Full)
	default:
		return fmt.Sprintf("%s of %s", bytesText(st.Store.Bytes), bytesText(st.Store.Quota)), nil
	}
}

type portCheck struct {
	s     settings
	visit *peerVisit
}

func (portCheck) Name() string { return "ports" }

func (p portCheck) Run(ctx context.Context) (string, error) {
	if p.visit.status != nil {
		return "in use by the running peer: " + strings.Join(p.visit.status.Addrs, ", "), nil
	}
	addresses := slices.Clone(p.s.apiListen)
	if len(p.s.p2pListen) == 0 {
		addresses = append(addresses, fmt.Sprintf(":%d", peer.DefaultPort))
	}
	var l net.ListenConfig
	for _, a := range addresses {
		ln, err := l.Listen(ctx, "tcp", a)
		if err != nil {
			return "", fmt.Errorf("%s cannot be used: %w: stop what uses it, or choose others with --api-listen and --p2p-listen", a, err)
		}
		ln.Close()
	}
	return "free: " + strings.Join(addresses, ", "), nil
}

type leaderCheck struct{ visit *peerVisit }

func (leaderCheck) Name() string { return "leader" }

func (l leaderCheck) Run(ctx context.Context) (string, error) {
	if l.visit.status == nil {
		return "", concernf("not asked, as no peer answers")
	}
	farm, err := l.visit.client.farm(ctx)
	if err != nil {
		return "", fmt.Errorf("the queue cannot be reached: %w; where the machines that hold it are gone for good: vizpeer coord recover --help", err)
	}
	names := l.visit.client.names(ctx)
	names[l.visit.status.Peer] = l.visit.status.Name // known without being allowed the list
	return fmt.Sprintf("%s leads, term %d", machineText(names, farm.Coord.Leader), farm.Coord.Term), nil
}

// reachCheck tells whether machines of other networks reach this one.
type reachCheck struct{ visit *peerVisit }

func (reachCheck) Name() string { return "other networks" }

func (r reachCheck) Run(ctx context.Context) (string, error) {
	if r.visit.status == nil {
		return "", concernf("not asked, as no peer answers")
	}
	reach, text := r.visit.status.Reach, reachText(r.visit.status.Reach, func() map[authz.PeerID]string { return r.visit.client.names(ctx) })
	switch {
	case reach.From == lease.ReachNAT && len(reach.Through) == 0:
		return "", concernf("%s", text)
	case text == "":
		return "no member of another network is connected: nothing is needed", nil
	}
	return text, nil
}

// certificateCheck looks at what other machines' programs are shown.
type certificateCheck struct{ visit *peerVisit }

func (certificateCheck) Name() string { return "certificate" }

func (c certificateCheck) Run(context.Context) (string, error) {
	st := c.visit.status
	switch {
	case st == nil:
		return "", concernf("not asked, as no peer answers")
	case len(st.HTTPS) == 0:
		return "none needed: nothing listens for other machines' programs", nil
	case time.Until(st.CertificateUntil) < 0:
		return "", fmt.Errorf("it ended at %s and could not be renewed: a coordinator must be up and in reach", st.CertificateUntil.Format(time.DateTime))
	case time.Until(st.CertificateUntil) < 24*time.Hour:
		return "", concernf("it ends at %s and could not be renewed yet: a coordinator must be up and in reach", st.CertificateUntil.Format(time.DateTime))
	}
	return "good until " + st.CertificateUntil.Format(time.DateTime), nil
}

// clockCheck finds a clock that was never set, or differs from the leader's: tickets,
// sessions and certificates depend on it.
type clockCheck struct{ visit *peerVisit }

func (clockCheck) Name() string { return "clock" }

func (c clockCheck) Run(context.Context) (string, error) {
	now := time.Now()
	if st := c.visit.status; st != nil && math.Abs(st.ClockSkew) > 60 {
		return "", fmt.Errorf("the clock is %s off the leader's: have both set by the network", time.Duration(st.ClockSkew*float64(time.Second)).Round(time.Second).Abs())
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if built, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil && now.Before(built) {
				return "", fmt.Errorf("the clock says %s, before this program was made: set it", now.Format(time.DateTime))
			}
		}
	}
	return now.Format(time.RFC3339), nil
}

// installBlender is the advice for a machine without one.
var installBlender = func() string {
	switch runtime.GOOS {
	case "linux":
		return "install it with `sudo apt-get install blender bubblewrap`, or from https://www.blender.org/download/, and name it with --blender"
	case "darwin":
		return "install it with `brew install --cask blender`, or from https://www.blender.org/download/"
	}
	return "install it from https://www.blender.org/download/, or name it with --blender"
}()
