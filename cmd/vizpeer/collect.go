package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// collect lists what a .blend needs to render elsewhere. It runs this machine's
// Blender as the artist, who may read what the peer may not; the oldest that can
// open the file, as a worker would. Where no Blender can look, blind says why.
func (c *cli) collect(ctx context.Context, o *order) (col render.Collected, blind string, err error) {
	c.announceProbe(o.dataDir)
	builds, err := blenders(ctx, o.blenders, o.dataDir)
	if err != nil {
		return col, "", err
	}
	build, ok := lease.Requirements{FileVersion: o.fileVersion, Blender: lease.AnyBlender}.Build(lease.Capability{Builds: builds})
	if !ok {
		blind = blindness(filepath.Base(o.blend), o.fileVersion, builds)
	} else if c.live() {
		c.say("Looking for what %s needs", filepath.Base(o.blend))
	}
	col, err = render.Collect(ctx, build.Path, o.blend)
	return col, blind, err
}

// blindness says why none of the builds can look into a file of version saved.
func blindness(name string, saved lease.Version, builds []lease.Build) string {
	if len(builds) == 0 {
		return fmt.Sprintf("no Blender was found on this machine to look for the textures and libraries of %s: install it, or name it in %s (blender = [\"…\"])", name, configName)
	}
	newest := slices.MaxFunc(builds, func(a, b lease.Build) int {
		if a.Version.Less(b.Version) {
			return -1
		}
		return 1
	})
	return fmt.Sprintf("%s was saved by Blender %s, newer than any on this machine (%s): its textures and libraries are not looked for. Install that Blender, or name it in %s (blender = [\"…\"])",
		name, saved.Series(), newest.Version, configName)
}

// upload streams a collected project to the peer; what has not changed since it
// was sent there last is not sent again, unless rehash.
func (c *cli) upload(ctx context.Context, cl *client, col render.Collected, sent *sentFiles, rehash bool) (project httpapi.Project, err error) {
	manifest, err := json.MarshalIndent(col.Manifest, "", "\t")
	if err != nil {
		return project, err
	}
	p, err := pack(col.Files, manifest, sent, rehash)
	if err != nil {
		return project, err
	}
	err = c.deliver(ctx, cl, "/v1/projects?receipts=true", p, &project, &project.Receipts)
	return project, err
}
