package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func (c *cli) jobLogs() *cobra.Command {
	var (
		task, frame int32
		grep        string
	)
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what Blender said, in the latest attempt at each task, or about a frame",
		Long: "Print what Blender said in the latest attempt at each task.\n" +
			"With --frame, print what it said about that frame in all attempts: the lines from where the frame begins to where the next\n" +
			"one does, and all of a log that tells no frames apart. With --grep, print only lines that hold a text.",
		Example: "  vizpeer job logs ID --frame 7\n  vizpeer job logs ID --grep error",
		Args:    takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			id := lease.JobID(args[0])
			if cmd.Flags().Changed("frame") {
				query := fmt.Sprintf("?frame=%d", frame)
				if cmd.Flags().Changed("task") {
					query += fmt.Sprintf("&task=%d", task)
				}
				return c.printFrameLog(cmd.Context(), cl, id, frame, query, grep)
			}
			tasks, err := cl.tasks(cmd.Context(), id)
			if err != nil {
				return err
			}
			wanted := logged(tasks)
			if cmd.Flags().Changed("task") {
				at := slices.IndexFunc(wanted, func(l taskLog) bool { return l.Task == task })
				if at < 0 { // the peer says why there is none
					wanted, at = []taskLog{{Task: task}}, 0
				}
				wanted = wanted[at : at+1]
			}
			return c.printLogs(cmd.Context(), cl, id, wanted, grep)
		},
	}
	cmd.Flags().Int32Var(&task, "task", 0, "only this task's log")
	cmd.Flags().Int32Var(&frame, "frame", 0, "only what was said about this frame")
	cmd.Flags().StringVar(&grep, "grep", "", "only lines that hold this text, in small or capital letters")
	return cmd
}

// taskLog is a line of `job logs --json`: a log and how the attempt ended that left
// it.
type taskLog struct {
	Task    int32          `json:"task"`
	Outcome lease.Outcome  `json:"outcome,omitempty"`
	Kind    lease.FailKind `json:"kind,omitempty"` // where it failed
	Reason  string         `json:"reason,omitempty"`
	Log     string         `json:"log"`
}

// logged lists the tasks that have a log, which is the latest attempt's that left one.
func logged(tasks []httpapi.Task) (logs []taskLog) {
	for _, t := range tasks {
		for _, a := range slices.Backward(t.Attempts) {
			if a.Log != "" {
				logs = append(logs, taskLog{Task: t.Index, Outcome: a.Outcome, Kind: a.Kind, Reason: a.Reason})
				break
			}
		}
	}
	return logs
}

// printLogs fetches the text of logs and prints them, or the lines that hold a text.
func (c *cli) printLogs(ctx context.Context, cl *client, id lease.JobID, wanted []taskLog, grep string) error {
	var logs []taskLog
	for _, l := range wanted {
		text, err := cl.read(ctx, jobPath(id, fmt.Sprintf("/logs?task=%d", l.Task)))
		if err != nil {
			return err
		}
		if l.Log = grepped(string(text), grep); l.Log != "" || grep == "" {
			logs = append(logs, l)
		}
	}
	return c.print(orEmpty(logs), func() {
		for _, l := range logs {
			if len(wanted) > 1 || l.Outcome == lease.OutcomeFailed {
				fmt.Fprintln(c.out, plain(l.head()))
			}
			fmt.Fprintln(c.out, plainLines(strings.TrimRight(l.Log, "\n")))
		}
	})
}

// printFrameLog prints what all attempts said about a frame, each below a line that tells
// which it is.
func (c *cli) printFrameLog(ctx context.Context, cl *client, id lease.JobID, frame int32, query, grep string) error {
	text, err := cl.read(ctx, jobPath(id, "/logs"+query))
	if err != nil {
		return err
	}
	log := grepped(string(text), grep)
	return c.print(map[string]any{"job": id, "frame": frame, "log": log}, func() {
		if log != "" {
			fmt.Fprintln(c.out, plainLines(strings.TrimRight(log, "\n")))
		}
	})
}

// headMark begins the line above what one attempt said about a frame.
const headMark = "--- frame "

// grepped is the lines of a text that hold another, in small or capital letters, with the
// heads of those attempts that have any.
func grepped(text, grep string) string {
	if grep == "" {
		return text
	}
	grep = strings.ToLower(grep)
	var out strings.Builder
	head := ""
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, headMark):
			head = line
		case strings.Contains(strings.ToLower(line), grep):
			out.WriteString(head + line)
			head = ""
		}
	}
	return out.String()
}

// head is the line above a log.
func (l taskLog) head() string {
	head := fmt.Sprintf("--- task %d", l.Task)
	if l.Outcome != lease.OutcomeFailed {
		return head
	}
	return fmt.Sprintf("%s, failed (%s): %s", head, cmp.Or(l.Kind, lease.FailError), l.Reason)
}
