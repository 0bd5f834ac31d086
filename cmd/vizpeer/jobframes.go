package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func (c *cli) jobTasks() *cobra.Command {
	return &cobra.Command{
		Use:   "tasks ID",
		Short: "List a job's tasks: what each is about, and who has it",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.job(cmd.Context(), lease.JobID(args[0]))
			if err != nil {
				return err
			}
			tasks, err := cl.tasks(cmd.Context(), job.ID)
			if err != nil {
				return err
			}
			return c.print(orEmpty(tasks), func() {
				names := cl.names(cmd.Context())
				rows := make([][]any, len(tasks))
				for i, t := range tasks {
					device, last := "", ""
					if n := len(t.Attempts); n > 0 {
						a := t.Attempts[n-1]
						device = string(a.Device)
						if last = string(a.Outcome); a.Reason != "" {
							last += ": " + a.Reason
						}
					}
					rows[i] = []any{t.Index, workText(t.Frames, t.Units, job.Split.By), t.State, nameOf(names, t.Peer), device, t.Tries, last}
				}
				c.table([]string{"TASK", "ABOUT", "STATE", "PEER", "DEVICE", "FAILED TRIES", "LAST ATTEMPT"}, rows)
			})
		},
	}
}

func (c *cli) jobPreview() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "preview ID [FRAME] -o FILE",
		Short: "Save a small JPEG of a frame, also of what is there of one that is being rendered",
		Long: "Save a small JPEG of a frame, also of what is there of one that is being rendered.\n" +
			"Without FRAME it is the one that is being rendered, or else the last that is there.",
		Example: "  vizpeer job preview ID -o still.jpg\n  vizpeer job preview ID 7 -o 7.jpg",
		Args:    takes("ID", "[FRAME]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usagef("-o is missing: say which file to write, such as -o preview.jpg")
			}
			frame, given := int32(0), len(args) == 2
			if given {
				n, err := strconv.ParseInt(args[1], 10, 32)
				if err != nil {
					return usagef("%q is no frame: use its number", args[1])
				}
				frame = int32(n)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			id := lease.JobID(args[0])
			if !given {
				job, err := cl.job(cmd.Context(), id)
				if err != nil {
					return err
				}
				if frame, err = toShow(job); err != nil {
					return err
				}
			}
			if err := fetchPreview(cmd.Context(), cl, id, frame, file); err != nil {
				return err
			}
			return c.print(map[string]any{"job": id, "frame": frame, "output": file}, func() {
				fmt.Fprintf(c.out, "%s is in %s\n", frameText(frame), plain(file))
			})
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write the JPEG to")
	return cmd
}

// toShow is the frame of a job that a person wants to see: the first that is being
// rendered, or the last that is there.
func toShow(job httpapi.Job) (int32, error) {
	at := slices.IndexFunc(job.Frames, func(f httpapi.Frame) bool {
		return !finished(f.State) && (f.State == lease.TaskLeased || f.UnitsDone > 0)
	})
	if len(job.Frames) == 1 {
		at = 0 // what there is to see of it, the machines say
	}
	for i := len(job.Frames) - 1; i >= 0 && at < 0; i-- {
		if job.Frames[i].CID != "" {
			at = i
		}
	}
	if at < 0 {
		return 0, notFoundf("there is nothing to see of job %s yet", job.ID)
	}
	return job.Frames[at].Frame, nil
}

// fetchPreview writes the picture to a file, which is whole or not there.
func fetchPreview(ctx context.Context, cl *client, id lease.JobID, frame int32, file string) error {
	picture, err := cl.read(ctx, jobPath(id, fmt.Sprintf("/frames/%d?size=preview", frame)))
	if err != nil {
		return err
	}
	part := file + ".part"
	err = os.WriteFile(part, picture, 0o666)
	if err == nil {
		err = os.Rename(part, file)
	}
	if err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("the picture cannot be written: %w", err)
	}
	return nil
}

func (c *cli) jobFrames() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "frames ID",
		Short: "List a job's frames and its movie, or fetch the finished ones with --output",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.job(cmd.Context(), lease.JobID(args[0]))
			if err != nil {
				return err
			}
			if dir != "" {
				return c.fetchFrames(cmd.Context(), cl, job, dir)
			}
			frames := listed(job)
			return c.print(orEmpty(frames), func() {
				names := cl.names(cmd.Context())
				rows := make([][]any, len(frames))
				for i, f := range frames {
					size, seconds, beside := "", "", ""
					if f.CID != "" {
						size, seconds = bytesText(f.Size), fmt.Sprintf("%.1f s", f.Seconds)
					}
					if f.ExtraFiles > 0 {
						beside = fmt.Sprintf("%s, %s", count(f.ExtraFiles, "file"), bytesText(f.ExtraSize))
					}
					rows[i] = []any{frameCell(f.Frame), stateCell(f, job.Split), f.Name, size, beside, seconds, nameOf(names, f.Peer), f.Holders}
				}
				c.table([]string{"FRAME", "STATE", "NAME", "SIZE", "BESIDE IT", "TIME", "PEER", "HOLDERS"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "output", "", "folder to write the finished frames to")
	return cmd
}

// listed lists the frames of a job, and its movie as the last of them.
func listed(job httpapi.Job) []httpapi.Frame {
	frames := job.Frames
	if job.Movie != nil {
		frames = append(slices.Clone(frames), *job.Movie)
	}
	return frames
}

// stateCell is the state of a frame, in a column; of one that is split, how far it is.
func stateCell(f httpapi.Frame, split lease.Split) string {
	if finished(f.State) || f.UnitsDone == 0 {
		return string(f.State)
	}
	word := string(f.State)
	if f.State == lease.TaskQueued { // so is the merge, and not what comes before
		word = "rendering"
	}
	return fmt.Sprintf("%s, %d/%d %ss", word, f.UnitsDone, split.Units, unitNoun(split.By))
}

// fetchFrames writes the finished frames of a job into dir. A frame's name
// comes from the farm: it is opened below dir and nowhere else.
func (c *cli) fetchFrames(ctx context.Context, cl *client, job httpapi.Job, dir string) error {
	if err := makeOutput(dir, "--output"); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the output folder cannot be opened: %w", err)
	}
	defer root.Close()
	written := []string{}
	frames := listed(job)
	for _, f := range frames {
		if f.CID == "" || f.Name == "" {
			continue
		}
		if err := fetchFrame(ctx, cl, root, job.ID, f); err != nil {
			return err
		}
		if f.Extra != "" {
			if err := fetchExtra(ctx, cl, root, job.ID, f); err != nil {
				return fmt.Errorf("what is beside %s: %w", frameText(f.Frame), err)
			}
		}
		written = append(written, filepath.Join(dir, f.Name))
	}
	return c.print(map[string]any{"job": job.ID, "written": written}, func() {
		what := "frame"
		if job.Movie != nil {
			what = "file"
		}
		fmt.Fprintf(c.out, "%d of %s written to %s\n", len(written), count(len(frames), what), dir)
	})
}

// fetchExtra writes what Blender wrote beside a frame, at its places below root.
func fetchExtra(ctx context.Context, cl *client, root *os.Root, id lease.JobID, f httpapi.Frame) error {
	body, err := cl.open(ctx, jobPath(id, "/frames/"+strconv.Itoa(int(f.Frame))+"/extra"))
	if err != nil {
		return err
	}
	defer body.Close()
	return unpack(root, body, true)
}

func fetchFrame(ctx context.Context, cl *client, root *os.Root, id lease.JobID, f httpapi.Frame) (err error) {
	body, err := cl.open(ctx, jobPath(id, "/frames/"+strconv.Itoa(int(f.Frame))))
	if err != nil {
		return fmt.Errorf("%s: %w", frameText(f.Frame), err)
	}
	defer body.Close()
	part := f.Name + ".part" // a broken transfer must not look like a frame
	file, err := root.Create(part)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", frameText(f.Frame), err)
	}
	defer func() {
		if err != nil {
			_ = root.Remove(part)
		}
	}()
	_, err = io.Copy(file, body)
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("%s could not be fetched whole: %w", frameText(f.Frame), err)
	}
	return root.Rename(part, f.Name)
}
