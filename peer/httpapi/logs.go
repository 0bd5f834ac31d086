package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/lease"
	"vizpeer/peer/render"
)

const (
	textType = "text/plain; charset=utf-8"
	// maxLog bounds what is read of one log to find the lines about a frame: it is what an
	// honest machine keeps of Blender's words, and comes from another machine.
	maxLog = 8 << 20
)

type logInput struct {
	exchange
	ID    lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Task  int32       `query:"task" minimum:"-1" default:"-1" doc:"the task's index; -1: whatever the frame says"`
	Frame string      `query:"frame" pattern:"^-?[0-9]{1,7}$" doc:"a frame's number: what all attempts said about it"`
}

// taskLog answers what Blender said in the latest attempt at a task that left a log, or
// in all attempts about a frame.
func (s *Server) taskLog(ctx context.Context, in *logInput) (*huma.StreamResponse, error) {
	if in.Frame == "" && in.Task < 0 {
		return nil, newProblem(http.StatusUnprocessableEntity, CodeInvalid, "query.task: say which task's log, or which query.frame's")
	}
	c := callerOf(ctx)
	q, err := s.part(ctx, c)
	if err != nil {
		return nil, err
	}
	if in.Frame != "" {
		return s.frameLog(ctx, c, q, in)
	}
	task, err := q.Task(ctx, c.Principal, in.ID, in.Task)
	if err != nil {
		return nil, err
	}
	for _, a := range slices.Backward(task.Attempts) {
		if a.Log != "" {
			return serveContent(&in.exchange, content{a.Log, -1, textType, fmt.Sprintf("%s-%d.log", in.ID, in.Task)}, s.opener(ctx, a.Log, lease.LogOf(lease.TaskID{Job: in.ID, Index: in.Task}), 0))
		}
	}
	return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("task %d has no log yet: it comes when an attempt has ended", in.Task))
}

// frameLog answers what the attempts at a frame said about it, each with a line above it
// that tells which it is.
func (s *Server) frameLog(ctx context.Context, c caller, q queuePart, in *logInput) (*huma.StreamResponse, error) {
	n, err := strconv.ParseInt(in.Frame, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: query.frame: %w", ErrInvalid, err)
	}
	frame, of := int32(n), "no log"
	tasks, err := q.TasksOf(ctx, c.Principal, in.ID, frame)
	if err != nil {
		return nil, err
	}
	if in.Task >= 0 {
		of = fmt.Sprintf("no log of task %d", in.Task)
		tasks = slices.DeleteFunc(tasks, func(t Task) bool { return t.Index != in.Task })
	}
	var text bytes.Buffer
	seen := map[string]bool{} // by CID: a task that was cut in two has its attempts twice
	for _, t := range tasks {
		for i, a := range t.Attempts {
			if a.Log == "" || seen[a.Log] {
				continue
			}
			seen[a.Log] = true
			lines, err := s.readLog(ctx, a.Log, lease.LogOf(lease.TaskID{Job: in.ID, Index: t.Index}), frame)
			if err != nil {
				s.log.Debug("a log cannot be read", "job", in.ID, "task", t.Index, "err", err)
				lines = []byte("its log cannot be had now: the machines that hold it are away")
			}
			if len(lines) == 0 {
				continue
			}
			fmt.Fprintf(&text, "--- frame %d, task %d, attempt %d of %d%s\n%s\n", frame, t.Index, i+1, len(t.Attempts), howEnded(a), bytes.TrimRight(lines, "\r\n"))
		}
	}
	if text.Len() == 0 {
		return nil, newProblem(http.StatusNotFound, CodeNotFound, fmt.Sprintf("%s tells of frame %d yet: it comes when an attempt has ended", of, frame))
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		in.w.Header().Set("Content-Type", textType)
		in.w.Header().Set("Cache-Control", "no-store") // the next attempt says more
		_, _ = in.w.Write(text.Bytes())
	}}, nil
}

// howEnded is how an attempt failed, in words; "" where it did not.
func howEnded(a lease.Attempt) string {
	if a.Outcome != lease.OutcomeFailed {
		return ""
	}
	return fmt.Sprintf(", failed (%s): %s", cmp.Or(a.Kind, lease.FailError), a.Reason)
}

func (s *Server) readLog(ctx context.Context, cid string, by lease.Scope, frame int32) ([]byte, error) {
	r, _, err := s.local.Open(ctx, cid, by, maxLog)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	log, err := io.ReadAll(io.LimitReader(r, maxLog))
	if err != nil {
		return nil, err
	}
	return render.FrameLog(log, frame), nil
}
