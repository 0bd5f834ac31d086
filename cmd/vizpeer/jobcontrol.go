package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// jobVerb is a command that needs no more than the job's ID.
func (c *cli) jobVerb(do httpapi.Verb, short string) *cobra.Command {
	return &cobra.Command{
		Use:   string(do) + " ID",
		Short: short,
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.control(cmd.Context(), lease.JobID(args[0]), do, nil)
			if err != nil {
				return err
			}
			return c.print(job, func() { fmt.Fprintf(c.out, "job %s is %s\n", job.ID, job.State) })
		},
	}
}

func (c *cli) jobRetry() *cobra.Command {
	var frames string
	cmd := &cobra.Command{
		Use:   "retry ID",
		Short: "Open a job again that failed or was cancelled, or render frames of a job again",
		Long: "Without --frames, a job that failed or was cancelled is opened again: what it finished stays, the rest is rendered.\n" +
			"With --frames, those frames of a job in any state are rendered again; each stays as it is until the new one is there.",
		Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var body any
			if frames != "" {
				if _, err := lease.ParseFrames(frames); err != nil {
					return usagef("--frames: %v", err)
				}
				body = httpapi.Again{Frames: frames}
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.control(cmd.Context(), lease.JobID(args[0]), httpapi.Retry, body)
			if err != nil {
				return err
			}
			return c.print(job, func() { fmt.Fprintf(c.out, "job %s is %s\n", job.ID, job.State) })
		},
	}
	cmd.Flags().StringVar(&frames, "frames", "", "finished frames to render again, such as 3,7-9")
	return cmd
}

func (c *cli) jobMore() *cobra.Command {
	var samples int32
	cmd := &cobra.Command{
		Use:   "more ID --samples N",
		Short: "Add samples to the frames of a job that is split by samples, also where they are finished",
		Long: "Add samples to those that each pixel has, or will have, of every frame of a job that is split by samples.\n" +
			"Of a job that is done only the new samples are rendered; each frame stays as it is until they are merged into it.",
		Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !cmd.Flags().Changed("samples"):
				return usagef("--samples is missing: say how many to add, such as --samples 256")
			case samples < 1 || samples > lease.MaxSamples:
				return usagef("--samples %d is not possible: use 1 to %d", samples, lease.MaxSamples)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.control(cmd.Context(), lease.JobID(args[0]), httpapi.AddMore, httpapi.More{Samples: samples})
			if err != nil {
				return err
			}
			return c.print(job, func() {
				fmt.Fprintf(c.out, "job %s is %s, with %s more\n", job.ID, job.State, count(int(samples), "sample"))
			})
		},
	}
	cmd.Flags().Int32Var(&samples, "samples", 0, "samples to add to each pixel's")
	return cmd
}

func (c *cli) jobPriority() *cobra.Command {
	return &cobra.Command{
		Use:   "priority ID low|normal|high|urgent",
		Short: "Move a job that has not ended to another tier",
		Args:  takes("ID", "TIER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			tier := lease.Tier(strings.ToLower(args[1]))
			if tier.Rank() < 0 {
				return usagef("unknown priority %q: use low, normal, high or urgent", args[1])
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := cl.control(cmd.Context(), lease.JobID(args[0]), httpapi.Prioritise, httpapi.Priority{Priority: tier})
			if err != nil {
				return err
			}
			return c.print(job, func() { fmt.Fprintf(c.out, "job %s has the priority %s\n", job.ID, job.Tier) })
		},
	}
}

func (c *cli) jobWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why ID [TASK]",
		Short: "Say why a job, or one of its tasks, is where it is",
		Args:  takes("ID", "[TASK]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			task := int32(-1)
			if len(args) == 2 {
				n, err := strconv.ParseInt(args[1], 10, 32)
				if err != nil || n < 0 {
					return usagef("%q is no task: use its number, as `vizpeer job watch` shows it", args[1])
				}
				task = int32(n)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			why, err := cl.why(cmd.Context(), lease.JobID(args[0]), task)
			if err != nil {
				return err
			}
			return c.print(why, func() {
				what := "job " + string(why.Job)
				if why.Task != nil {
					what = fmt.Sprintf("task %d of %s", *why.Task, what)
				}
				fmt.Fprintf(c.out, "%s is %s: %s\n", what, why.State, plain(why.Text))
			})
		},
	}
}
