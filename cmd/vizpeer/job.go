package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func (c *cli) jobCommand() *cobra.Command {
	return c.group(&cobra.Command{Use: "job", Short: "List, show, follow and control jobs"},
		c.jobLs(), c.jobShow(), c.jobWhy(), c.jobWatch(), c.jobWait(), c.jobTasks(), c.jobFrames(), c.jobPreview(), c.jobLogs(),
		c.jobVerb(httpapi.Cancel, "Cancel a job; its finished frames stay"),
		c.jobVerb(httpapi.Pause, "Grant nothing more of a job; what is being rendered goes on"),
		c.jobVerb(httpapi.Resume, "End a pause"),
		c.jobRetry(), c.jobMore(), c.jobPriority())
}

func (c *cli) jobLs() *cobra.Command {
	var state, owner, name, since string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the jobs you may see, newest first",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			for key, value := range map[string]string{"state": state, "owner": owner, "name": name} {
				if value != "" {
					q.Set(key, value)
				}
			}
			if since != "" {
				at, err := parseMoment(since, time.Now())
				if err != nil {
					return usagef("--since %w", err)
				}
				q.Set("since", at.UTC().Format(time.RFC3339Nano))
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			jobs, err := c.listJobs(cmd.Context(), cl, q)
			if err != nil {
				return err
			}
			return c.print(orEmpty(jobs), func() {
				rows := make([][]any, len(jobs))
				for i, j := range jobs {
					rows[i] = []any{j.ID, j.Name, j.State, j.Tier, framesCell(j), ago(j.CreatedAt, time.Now()), j.Reason}
				}
				c.table([]string{"ID", "NAME", "STATE", "TIER", "FRAMES", "CREATED", "REASON"}, rows)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "in this state only: queued, running, paused, done, failed or cancelled")
	f.StringVar(&owner, "owner", "", "of this user only, for admins")
	f.StringVar(&name, "name", "", "with this in their name")
	f.StringVar(&since, "since", "", "submitted then or later: 2026-03-01, 2026-03-01T12:00:00Z, or 24h for a day ago")
	return cmd
}

// listJobs lists the jobs that fit the filters. Those that wait on the peer's machine come
// first, unless there are filters; while nobody leads, they are all there is to list.
func (c *cli) listJobs(ctx context.Context, cl *client, q url.Values) ([]httpapi.JobSummary, error) {
	var waiting []httpapi.JobSummary
	if len(q) == 0 {
		var err error
		if waiting, err = cl.waiting(ctx); err != nil {
			return nil, err
		}
	}
	jobs, err := cl.jobs(ctx, q)
	if err != nil {
		if len(waiting) == 0 || exitCode(err) != exitUnreachable {
			return nil, err
		}
		c.warn("%v. Only what waits on this machine is listed", err)
	}
	explain(ctx, cl, jobs)
	here := make(map[lease.JobID]bool, len(waiting))
	for _, j := range waiting {
		here[j.ID] = true
	}
	// One may have been submitted between the two answers.
	jobs = slices.DeleteFunc(jobs, func(j httpapi.JobSummary) bool { return here[j.ID] })
	return append(waiting, jobs...), nil
}

// framesCell is how much of a job is there, in a column: of one frame that is split its
// parts tell more than it does.
func framesCell(j httpapi.JobSummary) string {
	if j.UnitsTotal > 0 && j.FramesTotal == 1 && j.FramesDone == 0 {
		return fmt.Sprintf("%d/%d %ss", j.UnitsDone, j.UnitsTotal, unitNoun(j.Split.By))
	}
	return fmt.Sprintf("%d/%d", j.FramesDone, j.FramesTotal)
}

// The list of jobs says in what state they are; why one waits, or its frames are
// not written, only the job itself says. So many are asked, the newest.
const (
	maxExplained      = 20
	maxExplainedTasks = 10_000 // a larger job is too much to read for a line
)

// explain fills in the reasons of jobs that are not plain from their state. A job
// that cannot be read stays without.
func explain(ctx context.Context, cl *client, jobs []httpapi.JobSummary) {
	asked := 0
	for i := range jobs {
		j := &jobs[i]
		recent := j.EndedAt == nil || time.Since(*j.EndedAt) < 24*time.Hour
		if j.Reason != "" || !recent || j.Tasks.Total > maxExplainedTasks {
			continue
		}
		if asked++; asked > maxExplained {
			return
		}
		job, err := cl.job(ctx, j.ID)
		if err != nil {
			continue
		}
		if j.Reason = job.Reason; job.OutputError != "" {
			j.Reason = undelivered(job)
		}
	}
}

// orEmpty makes sure that an empty list is [] in JSON.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (c *cli) jobShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one job: its state, why, its tasks and frames",
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
			return c.print(job, func() {
				// Who renders is an extra: without it the rest is still worth showing.
				tasks, _ := cl.tasks(cmd.Context(), job.ID)
				c.showJob(job, renderers(tasks, job.Split.By, cl.names(cmd.Context())))
			})
		},
	}
}

// renderers lists who renders now, a line's worth.
func renderers(tasks []httpapi.Task, by lease.SplitBy, names map[authz.PeerID]string) string {
	var words []string
	for _, t := range tasks {
		if t.State != lease.TaskLeased {
			continue
		}
		if len(words) == 8 {
			words = append(words, "…")
			break
		}
		who := nameOf(names, t.Peer)
		if n := len(t.Attempts); n > 0 && t.Attempts[n-1].Device != "" {
			who += " " + string(t.Attempts[n-1].Device)
		}
		words = append(words, fmt.Sprintf("%s (task %d: %s)", who, t.Index, workText(t.Frames, t.Units, by)))
	}
	return strings.Join(words, ", ")
}

func (c *cli) showJob(job httpapi.Job, now string) {
	t := job.Tasks
	tasks := fmt.Sprintf("%d of %d done", t.Done, t.Total)
	for _, part := range []struct {
		n    int
		word string
	}{{t.Queued, "queued"}, {t.Leased, "leased"}, {t.Rendered, "rendered, not yet kept by enough machines"}, {t.Failed, "failed"}, {t.Cancelled, "cancelled"}} {
		if part.n > 0 {
			tasks += fmt.Sprintf(", %d %s", part.n, part.word)
		}
	}
	rendered, delivered := 0, 0
	for _, fr := range job.Frames {
		if finished(fr.State) {
			rendered++
		}
		if fr.Delivered {
			delivered++
		}
	}
	split := splitText(job.Split)
	if job.UnitsTotal > 0 {
		split += fmt.Sprintf(" (%d of %s rendered)", job.UnitsDone, count(job.UnitsTotal, unitNoun(job.Split.By)))
	}
	movie := ""
	if m := job.Movie; m != nil {
		if movie = string(m.State); m.Name != "" {
			movie += fmt.Sprintf(", %s, %s", m.Name, bytesText(m.Size))
		}
	}
	off := ""
	if job.Parting != nil && (!job.State.Ended() || len(job.Parting.Reasons) > 0) {
		off = partingText(*job.Parting)
	}
	output := job.Output
	if output != "" {
		output += fmt.Sprintf(" (%s written)", count(delivered, "frame"))
	} else {
		output = fmt.Sprintf("none, the farm keeps them: vizpeer job frames %s --output DIR", job.ID)
	}
	c.facts("id", job.ID, "name", job.Name, "state", job.State, "reason", job.Reason, "tier", job.Tier,
		"owner", job.Owner, "frames", fmt.Sprintf("%s (%d of %d rendered)", job.FrameList, rendered, len(job.Frames)),
		"each split into", split, "movie", movie, "tasks", tasks, "failed tries", failuresText(job.Failures), "rendering now", now, "output", output, "output error", undelivered(job), "replicas", job.Replicas,
		"created", job.CreatedAt.Local().Format(time.DateTime), "took", took(job.JobSummary), "project", job.Project, "this machine may be switched off", off)
	if job.Log != "" {
		fmt.Fprintf(c.out, "\nBlender's last lines:\n%s\n", plainLines(strings.TrimSpace(job.Log)))
	}
}

// splitText is how a frame is divided, in words; "" where it is not.
func splitText(s lease.Split) string {
	switch s.By {
	case lease.BySamples:
		return count(int(s.Units), "sample")
	case lease.ByTiles:
		return fmt.Sprintf("%s, %d × %d", count(int(s.Units), "tile"), s.Columns, s.Rows)
	}
	return ""
}

// failuresText counts failed tries by kind: "2 crash, 1 memory".
func failuresText(count map[lease.FailKind]int) string {
	var words []string
	for _, kind := range lease.FailKinds() {
		if n := count[kind]; n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, kind))
		}
	}
	return strings.Join(words, ", ")
}

func took(job httpapi.JobSummary) string {
	if job.StartedAt == nil || job.EndedAt == nil {
		return ""
	}
	return duration(job.EndedAt.Sub(*job.StartedAt))
}

func (c *cli) jobWatch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Print what happens to a job until it has ended",
		Long:  "Print what happens to a job until it has ended: a line for each event, or with --json the event itself.",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			return c.watch(cmd.Context(), cl, lease.JobID(args[0]))
		},
	}
}

func (c *cli) watch(ctx context.Context, cl *client, id lease.JobID) error {
	first := true
	t := teller{board: noBoard{c}}
	var f follower // what the events add up to
	return cl.events(ctx, jobQuery(id), listener{
		opened: func() error {
			job, err := cl.job(ctx, id)
			if err != nil {
				return err
			}
			if first && !c.json {
				fmt.Fprintf(c.out, "%s  job %s is %s, %s done\n", time.Now().Format(time.TimeOnly), plain(job.Name), job.State, summaryText(job.JobSummary))
			}
			t.show(&follower{job: job}, nil)
			if job.State.Ended() {
				return c.ended(job, first)
			}
			tasks, err := cl.tasks(ctx, id)
			if err != nil {
				return err
			}
			f.reset(job, tasks)
			first = false
			return nil
		},
		idle: func() error {
			job, err := cl.job(ctx, id)
			if err == nil {
				t.show(&follower{job: job}, nil)
			}
			return err
		},
		event: func(ev httpapi.Event) error {
			if ev.Job != id {
				return nil
			}
			f.apply(ev)
			err := c.print(ev, func() {
				line := eventText(ev, f.job.Split.By)
				if ev.Type == lease.PieceRendered {
					line = pieceText(ev, &f)
				}
				if line != "" {
					fmt.Fprintf(c.out, "%s  %s\n", ev.Time.Local().Format(time.TimeOnly), plain(line))
				}
			})
			if err == nil && ev.Type == lease.JobEnded {
				err = errStop
			}
			return err
		},
	})
}

// ended ends a watch whose job's end was not seen as an event.
func (c *cli) ended(job httpapi.Job, shown bool) error {
	ev := httpapi.Event{Type: lease.JobEnded, Job: job.ID, State: string(job.State), Reason: job.Reason}
	if job.EndedAt != nil {
		ev.Time = *job.EndedAt
	}
	if err := c.print(ev, func() {
		if !shown {
			fmt.Fprintf(c.out, "%s  %s\n", ev.Time.Local().Format(time.TimeOnly), plain(eventText(ev, job.Split.By)))
		}
	}); err != nil {
		return err
	}
	return errStop
}

func jobQuery(id lease.JobID) string { return "?job=" + url.QueryEscape(string(id)) }

// eventText is an event in words; "" for what is too small for a line.
func eventText(ev httpapi.Event, by lease.SplitBy) string {
	who := ev.PeerName
	if who == "" {
		who = ev.Peer.Short()
	}
	because := ""
	if ev.Reason != "" {
		because = ": " + ev.Reason
	}
	task, frame := "", ""
	if ev.Task != nil {
		task = fmt.Sprintf("task %d", *ev.Task)
		if ev.Frames != "" {
			task += " (" + workText(ev.Frames, ev.Units, by) + ")"
		}
	}
	if ev.Frame != nil {
		frame = frameText(*ev.Frame)
	}
	switch ev.Type {
	case lease.JobSubmitted:
		return "submitted"
	case lease.JobStarted:
		return "started"
	case lease.JobEnded:
		return "job " + ended(ev.State, ev.Reason)
	case lease.JobHeld:
		return "paused"
	case lease.JobResumed:
		return "goes on"
	case lease.JobPrioritised:
		return "its priority is " + ev.State
	case lease.TaskGranted:
		return fmt.Sprintf("%s goes to %s", task, who)
	case lease.TaskRequeued:
		if ev.Peer != "" {
			task += " of " + who
		}
		return task + " goes back into the queue" + because
	case lease.TaskEnded:
		return fmt.Sprintf("%s %s%s", task, ev.State, because)
	case lease.FrameResult:
		verb := "rendered"
		switch {
		case ev.Frame != nil && *ev.Frame == lease.MovieFrame:
			verb = "made"
		case by != "":
			verb = "merged"
		}
		return fmt.Sprintf("%s %s by %s in %.1f s", frame, verb, who, ev.Seconds)
	case lease.PieceGone:
		if ev.Units == nil || ev.Reason != lease.NobodyHolds {
			return "" // nothing is lost
		}
		return fmt.Sprintf("%s of %s were lost%s", unitsText(*ev.Units, by), frame, because)
	case lease.FrameKept:
		return frame + " is kept"
	case lease.FrameWritten:
		return frame + " is written" + because
	case lease.FrameLost:
		return frame + " was lost with its only holder" + because
	}
	return ""
}

// pieceText tells of a piece, and how far the job is with it.
func pieceText(ev httpapi.Event, f *follower) string {
	if ev.Units == nil || ev.Frame == nil || f.job.UnitsTotal == 0 {
		return ""
	}
	line := fmt.Sprintf("%s of %s by %s: %s", unitsText(*ev.Units, f.job.Split.By), frameText(*ev.Frame), f.worker(ev.Peer, ev.PeerName).name,
		progressText(f.job.JobSummary, f.rendered, len(f.frames), f.units()))
	if n := f.busy(); n > 0 {
		line += ", " + count(n, "machine")
	}
	if times := timesText(f); times != "" {
		line += ", " + times
	}
	return line
}

func (c *cli) jobWait() *cobra.Command {
	return &cobra.Command{
		Use:   "wait ID",
		Short: "Wait until a job has ended and its frames are written; exit 5 if it failed or was cancelled",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			job, err := c.await(cmd.Context(), cl, lease.JobID(args[0]))
			if err != nil {
				return err
			}
			if err := c.print(job, func() { c.summary(job) }); err != nil {
				return err
			}
			return verdict(job)
		},
	}
}

// await follows a job with progress on a terminal.
func (c *cli) await(ctx context.Context, cl *client, id lease.JobID) (httpapi.Job, error) {
	b := c.board(false)
	t := teller{board: b}
	job, err := cl.follow(ctx, id, t.show)
	b.close()
	switch {
	case !stopped(err):
	case job.State.Ended():
		c.hint("The job is %s. Its frames go on being written to %s; or fetch them with `vizpeer job frames %s --output DIR`.", job.State, job.Output, id)
	default:
		c.hint("The job goes on. See it with `vizpeer job watch %s`, end it with `vizpeer job cancel %s`.", id, id)
	}
	return job, err
}

// summary is the last line about a job that is done.
func (c *cli) summary(job httpapi.Job) {
	if job.State != lease.JobDone {
		return
	}
	line := fmt.Sprintf("job %s is done: %s", job.ID, count(len(job.Frames), "frame"))
	if job.Movie != nil {
		line += " and a movie"
	}
	if t := took(job.JobSummary); t != "" {
		line += " in " + t
	}
	if job.Output != "" && job.OutputError == "" {
		line += ", written to " + job.Output
	}
	fmt.Fprintln(c.out, plain(line))
}
