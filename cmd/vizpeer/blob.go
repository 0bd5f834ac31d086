package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/peer/httpapi"
)

func (c *cli) blobCommand() *cobra.Command {
	return c.group(&cobra.Command{
		Use:   "blob",
		Short: "Store, fetch and look after content on this machine",
		Long: `Store, fetch and look after content on this machine. Everything is named by its content:
the same files have the same CID everywhere. An admin may handle all of it, others what they
pinned here themselves, as "blob add" does.`,
	}, c.blobAdd(), c.blobGet(), c.blobLs(), c.blobStat(), c.blobPin(), c.blobUnpin(), c.blobVerify(), c.blobGC())
}

func blobPath(cid, rest string) string { return "/v1/blobs/" + url.PathEscape(cid) + rest }

// unknownBlob says which content it is that is not there.
func unknownBlob(cid string, err error) error {
	if p, ok := errors.AsType[*httpapi.Problem](err); ok && p.Code == httpapi.CodeNotFound {
		return notFoundf("there is no content %s here, or it is not yours: vizpeer blob ls", plain(cid))
	}
	return err
}

func (c *cli) blobAdd() *cobra.Command {
	var rehash bool
	cmd := &cobra.Command{
		Use:   "add PATH",
		Short: "Store a file or folder and pin it; prints its CID",
		Long: `Store a file or folder and pin it for you; prints its CID. Links are followed as long as
they stay inside the folder; empty folders are left out. What has not changed since the last
time is not read again.`,
		Args: takes("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			cl, err := c.client()
			if err != nil {
				return err
			}
			status, err := cl.status(ctx)
			if err != nil {
				return err
			}
			files, alone, err := contents(ctx, args[0])
			if err != nil {
				return err
			}
			p, err := pack(files, nil, openSent(status.Peer), rehash)
			if err != nil {
				return err
			}
			route := "/v1/blobs?receipts=true"
			if alone {
				route += "&file=true"
			}
			var blob httpapi.Blob
			if err := c.deliver(ctx, cl, route, p, &blob, &blob.Receipts); err != nil {
				return err
			}
			blob.Receipts = nil
			return c.print(blob, func() {
				fmt.Fprintln(c.out, blob.CID)
				c.hint("%s, %s, %s of it new here. Get it anywhere in the farm: vizpeer blob get %s", count(blob.Files, "file"), bytesText(blob.Size), bytesText(min(blob.NewBytes, blob.Size)), blob.CID)
			})
		},
	}
	cmd.Flags().BoolVar(&rehash, "rehash", false, "read and send every file, also what has not changed since the last time")
	return cmd
}

func (c *cli) blobGet() *cobra.Command {
	var (
		output string
		force  bool
	)
	cmd := &cobra.Command{
		Use:   "get CID",
		Short: "Fetch content from the farm and write it here",
		Long: `Fetch content from the farm, from all machines that hold it, and write it to --output. What
is there already is not overwritten, unless --force. An interrupted fetch goes on from what has
come already.`,
		Args: takes("CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if output == "" {
				output = args[0]
			}
			if output, err = filepath.Abs(output); err != nil {
				return fmt.Errorf("the output: %w", err)
			}
			root, err := c.fetchBlob(cmd.Context(), cl, args[0])
			if err != nil {
				return err
			}
			if err := c.writeBlob(cmd.Context(), cl, root, output, force); err != nil {
				return err
			}
			return c.print(struct {
				CID    string `json:"cid"`
				Output string `json:"output"`
				Files  int    `json:"files"`
				Size   int64  `json:"size"`
			}{root.CID, output, root.Files, root.Size}, func() {
				fmt.Fprintf(c.out, "%s, %s, written to %s\n", count(root.Files, "file"), bytesText(root.Size), plain(output))
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file or folder to write (default: the CID, in this folder)")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite what is there; other files in a folder are left alone")
	return cmd
}

func (c *cli) fetchBlob(ctx context.Context, cl *client, cid string) (httpapi.Root, error) {
	root, err := follow[httpapi.Root](ctx, c, cl, c.stepBar("Fetching"), http.MethodPost, blobPath(cid, "/fetch"))
	return root, unknownBlob(cid, err)
}

// follow makes a request that is answered in steps, shows them on the bar, which it
// closes, and returns the result.
func follow[T any](ctx context.Context, c *cli, cl *client, bar *stepBar, method, path string) (result T, err error) {
	defer bar.close()
	resp, err := cl.exchange(ctx, method, path, "", nil)
	if err != nil {
		return result, err
	}
	defer resp.Body.Close()
	for in := json.NewDecoder(bufio.NewReader(resp.Body)); ; {
		var step httpapi.Step[T]
		switch err := in.Decode(&step); {
		case ctx.Err() != nil:
			return result, context.Cause(ctx)
		case err != nil:
			return result, unreachablef("the peer at %s broke off: see whether it still runs with `vizpeer status`", cl.base)
		case step.Problem != nil:
			return result, step.Problem
		case step.Result != nil:
			return *step.Result, nil
		}
		bar.show(step.Done, step.Total)
	}
}

func (c *cli) blobLs() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the content that this machine holds, and who keeps it",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			body, err := cl.open(cmd.Context(), "/v1/blobs")
			if err != nil {
				return err
			}
			defer body.Close()
			var rows [][]any
			for in := json.NewDecoder(bufio.NewReader(body)); ; {
				var root httpapi.Root
				if err := in.Decode(&root); err == io.EOF {
					break
				} else if err != nil {
					return cl.explain(cmd.Context(), err)
				}
				if err := c.print(root, func() { rows = append(rows, rootRow(root, time.Now())) }); err != nil {
					return err
				}
			}
			if !c.json {
				c.table([]string{"CID", "KIND", "FILES", "SIZE", "PINNED BY", "LAST USED"}, rows)
			}
			return nil
		},
	}
}

func rootRow(r httpapi.Root, now time.Time) []any {
	kind := "file"
	if r.Folder {
		kind = "folder"
	}
	files, size := fmt.Sprint(r.Files), bytesText(r.Size)
	if !r.Whole {
		kind, files, size = "incomplete", "", ""
	}
	used := ""
	if r.LastUsed != nil {
		used = ago(*r.LastUsed, now)
	}
	return []any{r.CID, kind, files, size, pinsText(r.Pins), used}
}

// pinsText says who keeps a root, in words.
func pinsText(pins []httpapi.Pin) string {
	var words []string
	for _, pin := range pins {
		kind, name, _ := strings.Cut(pin.Holder, ":")
		switch kind {
		case "user":
			words = append(words, name)
		case "job":
			words = append(words, "job "+name)
		case "frames":
			words = append(words, "job "+name+" (frames)")
		case "upload":
			words = append(words, "upload by "+name+" (for a day)")
		case "blender":
			words = append(words, "the farm (a Blender)")
		default:
			words = append(words, pin.Holder)
		}
	}
	if len(words) == 0 {
		return "nobody: only cached"
	}
	if more := len(words) - 3; more > 0 {
		words = append(words[:3], fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

func (c *cli) blobStat() *cobra.Command {
	return &cobra.Command{
		Use:   "stat",
		Short: "Show how full this machine's store is, and of what",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var st httpapi.StoreStat
			if err := cl.callSlowly(cmd.Context(), http.MethodGet, "/v1/blobs/stat", &st); err != nil {
				return err
			}
			return c.print(st, func() {
				c.facts("on disk", fmt.Sprintf("%s of a quota of %s", bytesText(st.Disk), bytesText(st.Quota)),
					"kept", fmt.Sprintf("%s (%s)", bytesText(st.Pinned), count(st.Roots, "root")),
					"cached", fmt.Sprintf("%s, let go when there is need of room", bytesText(st.Cached)),
					"garbage", fmt.Sprintf("%s, removed by vizpeer blob gc", bytesText(st.Garbage)),
					"blocks", st.Blocks,
					"disk", fmt.Sprintf("%s free, of which %s are left alone", bytesText(st.Free), bytesText(st.MinFree)),
					"full", st.Full, "caps", capsText(st.Caps))
			})
		},
	}
}

// capsText says what this machine may send and take.
func capsText(caps httpapi.Caps) string {
	if caps.Upload == 0 && caps.Download == 0 {
		return "none"
	}
	one := func(n int64, name string) string {
		if n == 0 {
			return name + " not capped"
		}
		return fmt.Sprintf("%s %s/s", name, bytesText(n))
	}
	text := one(caps.Upload, "sending") + ", " + one(caps.Download, "taking")
	if len(caps.Hours) > 0 {
		text += ", " + strings.Join(caps.Hours, " and ")
		if !caps.Active {
			text += " (not now)"
		}
	}
	return text
}

func (c *cli) blobPin() *cobra.Command {
	return &cobra.Command{
		Use:   "pin CID",
		Short: "Fetch content if need be, and keep it on this machine",
		Args:  takes("CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if _, err := c.fetchBlob(cmd.Context(), cl, args[0]); err != nil {
				return err
			}
			var root httpapi.Root
			if err := cl.callSlowly(cmd.Context(), http.MethodPost, blobPath(args[0], "/pin"), &root); err != nil {
				return unknownBlob(args[0], err)
			}
			return c.print(root, func() { fmt.Fprintf(c.out, "%s stays on this machine\n", root.CID) })
		},
	}
}

func (c *cli) blobUnpin() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "unpin CID",
		Short: "No longer keep content: it is cached until there is need of room",
		Args:  takes("CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			query := ""
			if user != "" {
				query = "?user=" + url.QueryEscape(user)
			}
			var root httpapi.Root
			if err := cl.callSlowly(cmd.Context(), http.MethodPost, blobPath(args[0], "/unpin")+query, &root); err != nil {
				return unknownBlob(args[0], err)
			}
			return c.print(root, func() {
				fmt.Fprintf(c.out, "%s is kept by: %s\n", root.CID, pinsText(root.Pins))
			})
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "whose pin, for an admin (default: yours)")
	return cmd
}

func (c *cli) blobVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [CID]",
		Short: "Read content and compare it with its hashes; what is damaged is fetched again",
		Long: `Read one root, or without a CID everything that this machine holds, and compare it with its
hashes. What is damaged is dropped and fetched again from another machine that has it. Exits 1
where something stays lacking.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q is one argument too many: %s", args[1], cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			path := "/v1/blobs/verify"
			if len(args) == 1 {
				path += "?cid=" + url.QueryEscape(args[0])
			}
			v, err := follow[httpapi.Verified](cmd.Context(), c, cl, c.stepBar("Verifying"), http.MethodPost, path)
			if err != nil {
				if len(args) == 1 {
					err = unknownBlob(args[0], err)
				}
				return err
			}
			if err := c.print(v, func() {
				fmt.Fprintf(c.out, "%s read, %s: %s\n", count(v.Blocks, "block"), bytesText(v.Bytes), verdictText(v))
				for _, cid := range v.Lacking {
					fmt.Fprintf(c.out, "  lacking: %s\n", plain(cid))
				}
			}); err != nil {
				return err
			}
			if len(v.Lacking) > 0 {
				return fmt.Errorf("%s not whole, and nobody who answers gave what is lacking: of what jobs need, the farm has been told and brings it back; for the rest try again when more machines are up", count(len(v.Lacking), "root"))
			}
			return nil
		},
	}
}

func verdictText(v httpapi.Verified) string {
	if v.Dropped == 0 && len(v.Repaired) == 0 && len(v.Lacking) == 0 {
		return "all is well"
	}
	return fmt.Sprintf("%s damaged and dropped, %s repaired", count(v.Dropped, "block"), count(len(v.Repaired), "root"))
}

func (c *cli) blobGC() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Give back the room of what nothing needs",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			path := "/v1/blobs/gc"
			if all {
				path += "?all=true"
			}
			var freed httpapi.Collected
			if err := cl.callSlowly(cmd.Context(), http.MethodPost, path, &freed); err != nil {
				return err
			}
			return c.print(freed, func() {
				fmt.Fprintf(c.out, "%s removed, %s\n", count(freed.Blocks, "block"), bytesText(freed.Bytes))
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "let go also of what is only cached")
	return cmd
}
