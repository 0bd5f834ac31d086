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

// blenders are the Blenders of this machine: those found by themselves, and
// those at the paths in extra. What they offer is remembered in dir.
func blenders(ctx context.Context, extra []string, dir string) ([]lease.Build, error) {
	can, err := probe.Probe(ctx, probe.Config{Blender: extra, DataDir: dir})
	if err != nil {
		return nil, fmt.Errorf("look for Blender on this machine: %w", err)
	}
	return can.Builds, nil
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
