package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"vizpeer/peer/httpapi"
	"vizpeer/peer/portable"
	"vizpeer/peer/probe"
	"vizpeer/peer/render"
)

func (c *cli) blenderCommand() *cobra.Command {
	return c.group(&cobra.Command{
		Use:   "blender",
		Short: "The Blenders of the farm, and those that its machines may fetch",
	}, c.blenderLs(), c.blenderAdd(), c.blenderRm())
}

func (cl *client) blenders(ctx context.Context) ([]httpapi.Blender, error) {
	var answer httpapi.BlenderList
	err := cl.call(ctx, http.MethodGet, "/v1/blenders", nil, &answer)
	return answer.Blenders, err
}

func (c *cli) blenderLs() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the Blenders that machines have, and those that they may fetch",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			all, err := cl.blenders(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(orEmpty(all), func() {
				rows := make([][]any, len(all))
				for i, b := range all {
					id, size := "", ""
					if b.Offer != nil {
						id, size = offerID(b.Offer.Root), bytesText(b.Offer.Size)
					}
					rows[i] = []any{b.Version, b.Name, b.Hash, b.OS + "/" + b.Arch, machinesOf(b), id, size}
				}
				c.table([]string{"VERSION", "NAME", "BUILD", "SYSTEM", "MACHINES", "OFFERED", "SIZE"}, rows)
			})
		},
	}
}

// offerID is the end of an offer's CID, for people.
func offerID(root string) string { return root[max(0, len(root)-8):] }

// machinesOf says which machines have a Blender, as far as the caller may know.
func machinesOf(b httpapi.Blender) string {
	if b.Count == 0 {
		return "none yet"
	}
	text := strings.Join(b.Machines, ", ")
	switch others := b.Count - len(b.Machines); {
	case text == "":
		return count(b.Count, "machine")
	case others > 0:
		return fmt.Sprintf("%s and %d more", text, others)
	}
	return text
}

func (c *cli) blenderAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add DIR",
		Short: "Offer a portable Blender to all machines, as an admin",
		Long: `Offer a portable Blender to all machines, as an admin: the folder of one from blender.org, such
as blender-4.2.3-linux-x64, or of a suite made of it. It must run on this machine. It is stored
here, and machines with the same system fetch it where a job waits for it and they have no
Blender that serves. It is a program that then runs on all of them: offer what you trust.`,
		Example: `  vizpeer blender add ~/blender-4.2.3-linux-x64`,
		Args:    takes("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cl, err := c.client()
			if err != nil {
				return err
			}
			// Before gigabytes are read and sent.
			var me httpapi.Whoami
			if err := cl.call(ctx, http.MethodGet, "/v1/auth/whoami", nil, &me); err != nil {
				return err
			}
			if !me.MayOffer() {
				return notFoundf("only an admin may offer a Blender to all machines: you are %s, %s", plain(me.User), me.Role)
			}
			b, err := c.offerBlender(ctx, cl, args[0])
			if err != nil {
				return err
			}
			return c.print(b, func() {
				fmt.Fprintf(c.out, "%s %s for %s/%s is offered as %s\n", plain(b.Name), b.Version, plain(b.OS), plain(b.Arch), offerID(b.Offer.Root))
				c.hint("%s, %s. Machines fetch it when a job needs it: leave this one on until some have. See them with `vizpeer blender ls`.",
					count(b.Offer.Files, "file"), bytesText(b.Offer.Size))
			})
		},
	}
}

// offerBlender stores the folder of a Blender and offers it.
func (c *cli) offerBlender(ctx context.Context, cl *client, name string) (b httpapi.Blender, err error) {
	dir, err := filepath.Abs(name)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return b, notFoundf("there is nothing to be read at %s: %w", plain(name), pathless(err))
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return b, usagef("%s is no folder: give that of a portable Blender, such as blender-4.2.3-linux-x64", plain(name))
	}
	if c.live() {
		c.say("Asking Blender what it can do")
	}
	build, err := probe.One(ctx, dir)
	if err != nil {
		return b, fmt.Errorf("%s is no Blender that works on this machine: %w", plain(name), err)
	}
	program, err := filepath.Rel(dir, build.Path)
	if err != nil || !filepath.IsLocal(program) {
		return b, usagef("the Blender of %s lies outside of it, at %s: give the folder that it lies in", plain(name), plain(build.Path))
	}
	files, manifest, err := portable.Scan(ctx, dir, program)
	if err != nil {
		return b, err
	}
	root, err := c.storeBlender(ctx, cl, files, manifest)
	if err != nil {
		return b, err
	}
	err = cl.call(ctx, http.MethodPost, "/v1/blenders", httpapi.NewOffer{
		Root: root.CID, Name: build.Name, Version: build.Version, Hash: build.Hash, OS: runtime.GOOS, Arch: runtime.GOARCH,
		Engines: build.Engines, OIDN: build.OIDN, Files: root.Files, Size: root.Size,
	}, &b)
	// What is offered is kept without a pin of the caller's, and what is not need not be.
	var unpinned httpapi.Root
	if err := cl.callSlowly(context.WithoutCancel(ctx), http.MethodPost, blobPath(root.CID, "/unpin"), &unpinned); err != nil {
		c.warn("its folder stays pinned for you: %v: take that back with `vizpeer blob unpin %s`", err, root.CID)
	}
	return b, err
}

// storeBlender stores a folder with its manifest on this machine.
func (c *cli) storeBlender(ctx context.Context, cl *client, files []portable.File, manifest portable.Manifest) (blob httpapi.Blob, err error) {
	status, err := cl.status(ctx)
	if err != nil {
		return blob, err
	}
	text, err := json.MarshalIndent(manifest, "", "\t")
	if err != nil {
		return blob, err
	}
	tmp, err := os.MkdirTemp("", "vizpeer-blender-")
	if err != nil {
		return blob, err
	}
	defer os.RemoveAll(tmp)
	note := filepath.Join(tmp, portable.ManifestName)
	if err := os.WriteFile(note, text, 0o600); err != nil {
		return blob, err
	}
	sends := []render.File{{Source: note, Path: portable.ManifestName}}
	for _, f := range files {
		sends = append(sends, render.File{Source: f.Source, Path: f.Path})
	}
	p, err := pack(sends, nil, openSent(status.Peer), false)
	if err != nil {
		return blob, err
	}
	err = c.deliver(ctx, cl, "/v1/blobs?receipts=true", p, &blob, &blob.Receipts)
	return blob, err
}

func (c *cli) blenderRm() *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "Offer a Blender no more, as an admin: machines remove what they fetched of it",
		Long: `Offer a Blender no more, as an admin: machines remove what they fetched of it, when no task
of theirs uses it. ID is its CID, the end of it that "vizpeer blender ls" shows, or its version
where no other of that version is offered.`,
		Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			all, err := cl.blenders(cmd.Context())
			if err != nil {
				return err
			}
			b, err := offerNamed(all, args[0])
			if err != nil {
				return err
			}
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/blenders/"+url.PathEscape(b.Offer.Root)+"/withdraw", nil, &b); err != nil {
				return err
			}
			return c.print(b, func() {
				fmt.Fprintf(c.out, "%s %s for %s/%s is not offered any more\n", plain(b.Name), b.Version, plain(b.OS), plain(b.Arch))
			})
		},
	}
}

// offerNamed finds the one offer of that CID, end of a CID, or version.
func offerNamed(all []httpapi.Blender, name string) (found httpapi.Blender, err error) {
	n := 0
	for _, b := range all {
		if b.Offer != nil && (b.Offer.Root == name || len(name) >= 8 && strings.HasSuffix(b.Offer.Root, name) || b.Version.String() == name) {
			found, n = b, n+1
		}
	}
	switch n {
	case 0:
		return found, notFoundf("no Blender %s is offered: vizpeer blender ls", plain(name))
	case 1:
		return found, nil
	}
	return found, usagef("%d offered Blenders are meant by %s: give the ID of one: vizpeer blender ls", n, plain(name))
}
