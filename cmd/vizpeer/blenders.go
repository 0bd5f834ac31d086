package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vizpeer/lease"
	"vizpeer/peer/probe"
)

// hardware is what this machine can do, with the Blenders at the paths in extra and those
// that came from the farm, beside those found by themselves. What they offer is
// remembered in dir.
func hardware(ctx context.Context, extra, fetched []string, dir string) (lease.Capability, error) {
	can, err := probe.Probe(ctx, probe.Config{Blender: extra, Fetched: fetched, DataDir: dir})
	if err != nil {
		return can, fmt.Errorf("look for Blender on this machine: %w", err)
	}
	return can, nil
}

// blenders are the Blenders of this machine's own.
func blenders(ctx context.Context, extra []string, dir string) ([]lease.Build, error) {
	can, err := hardware(ctx, extra, nil, dir)
	return can.Builds, err
}

// announceProbe tells a person why the first seconds of a command are silent:
// nothing is remembered in dir yet.
func (c *cli) announceProbe(dir string) {
	if !c.live() || c.json {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "probe.json")); errors.Is(err, fs.ErrNotExist) {
		c.say("Asking Blender what it can do (once)")
	}
}
