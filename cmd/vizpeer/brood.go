package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// brood is the demo's farm: peers that are processes of this very program.
// Unless they are to be kept, each ends when its standard input is closed, so
// that none outlives the demo even if that is killed.
type brood struct {
	cli   *cli
	data  string // one folder below it for each peer
	keep  bool
	peers []*child
	self  func() (string, error) // where this program lies
}

// child is one running peer.
type child struct {
	name, dir string
	api       string
	cmd       *exec.Cmd
	stdin     io.Closer // nil for one that is kept
	ended     chan struct{}
}

// stopGrace is how long a peer may take to stop by itself.
const stopGrace = 15 * time.Second

// farm founds a farm, lets the others join it and waits until all can render.
// It answers a client of the first peer.
func (b *brood) farm(ctx context.Context, blender []string) (*client, error) {
	first := demoMachines[0]
	if _, err := b.command(ctx, first, nil, "init", "--json", "--name", "demo", "--machine", first); err != nil {
		return nil, err
	}
	if err := b.up(ctx, first, blender); err != nil {
		return nil, err
	}
	cl, err := (&cli{dataDir: b.peers[0].dir}).client()
	if err != nil {
		return nil, err
	}
	for _, name := range demoMachines[1:] {
		ticket, err := cl.invite(ctx, httpapi.Invitation{Role: authz.Node, Uses: 1, ExpiresIn: time.Hour.Seconds()})
		if err != nil {
			return nil, fmt.Errorf("no ticket for %s: %w", name, err)
		}
		// By standard input: a ticket has no place in a process list.
		if _, err := b.command(ctx, name, strings.NewReader(ticket.Ticket), "join", "--json", "--name", name, "-"); err != nil {
			return nil, err
		}
		if err := b.up(ctx, name, blender); err != nil {
			return nil, err
		}
	}
	return cl, awaitWorkers(ctx, cl, len(demoMachines))
}

// command runs one command of this program to its end, for one peer.
func (b *brood) command(ctx context.Context, name string, in io.Reader, args ...string) ([]byte, error) {
	cmd, err := b.program(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: vizpeer %s: %w: %s", name, args[0], err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

func (b *brood) program(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	self, err := b.self()
	if err != nil {
		return nil, fmt.Errorf("this program's own file is not known: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, append(args, "--data-dir", filepath.Join(b.data, name))...)
	// The caller's own farm must not leak into the demo's.
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "VIZPEER_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd, nil
}

// up starts a peer and returns when it serves.
func (b *brood) up(ctx context.Context, name string, blender []string) (err error) {
	args := []string{"up", "--json", "--no-mdns", "--slots", "1", "--api-listen", "127.0.0.1:0",
		"--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--p2p-listen", "/ip4/127.0.0.1/udp/0/quic-v1"}
	for _, path := range blender {
		args = append(args, "--blender", path)
	}
	if !b.keep {
		args = append(args, "--stop-with-stdin")
	}
	// stop ends it, not ctx: a peer must have the time to close its stores.
	cmd, err := b.program(context.WithoutCancel(ctx), name, args...)
	if err != nil {
		return err
	}
	ownGroup(cmd)
	p := &child{name: name, dir: filepath.Join(b.data, name), cmd: cmd, ended: make(chan struct{})}
	logFile, err := os.Create(p.logPath())
	if err != nil {
		return fmt.Errorf("the log of %s cannot be made: %w", name, err)
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	if !b.keep {
		if p.stdin, err = cmd.StdinPipe(); err != nil {
			return err
		}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s could not be started: %w", name, err)
	}
	b.peers = append(b.peers, p)
	type answer struct {
		API string `json:"api"`
	}
	ready := make(chan answer, 1)
	go func() {
		var a answer
		if line, err := bufio.NewReader(out).ReadBytes('\n'); err == nil && json.Unmarshal(line, &a) == nil {
			ready <- a
		}
		_ = cmd.Wait() // its log says why it ended
		close(p.ended)
	}()
	timeout := time.NewTimer(demoStart)
	defer timeout.Stop()
	select {
	case a := <-ready:
		p.api = a.API
		return nil
	case <-p.ended:
		return fmt.Errorf("%s ended at once:\n%s", name, p.lastWords())
	case <-timeout.C:
		return fmt.Errorf("%s was not ready within %s:\n%s", name, demoStart, p.lastWords())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *child) logPath() string { return filepath.Join(p.dir, "up.log") }

// lastWords are the last lines of a peer's log.
func (p *child) lastWords() string {
	text, err := os.ReadFile(p.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// stop ends every peer, and returns when they are gone.
func (b *brood) stop() {
	for _, p := range b.peers {
		if p.stdin != nil {
			p.stdin.Close()
		} else if err := terminate(p.cmd.Process); err != nil && !errors.Is(err, os.ErrProcessDone) {
			b.cli.warn("%s could not be asked to stop: %v", p.name, err)
		}
	}
	patience := time.NewTimer(stopGrace)
	defer patience.Stop()
	for _, p := range b.peers {
		select {
		case <-p.ended:
			continue
		case <-patience.C:
			patience.Reset(0) // the others have had as long
		}
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}
