package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

type jobInput struct {
	ID lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
}

func (s *Server) jobs(ctx context.Context, in *struct {
	State lease.JobState `query:"state" enum:"queued,running,paused,done,failed,cancelled" doc:"in this state only"`
	Owner string         `query:"owner" maxLength:"128" doc:"of this user only; others than admins see no jobs but their own anyway"`
	Name  string         `query:"name" maxLength:"200" doc:"with this in their name, in upper or lower case"`
	Since time.Time      `query:"since" doc:"submitted then or later"`
	After string         `query:"after" maxLength:"20" pattern:"^[0-9]*$" doc:"older ones: the next of the answer before"`
	Limit int            `query:"limit" minimum:"1" maximum:"10000" default:"1000"`
}) (*answer[JobList], error) {
	jobs, err := s.queue.Jobs(ctx, callerOf(ctx).Principal, JobQuery{State: in.State, Owner: in.Owner, Name: in.Name, Since: in.Since, After: in.After, Limit: in.Limit})
	jobs.Jobs = list(jobs.Jobs)
	return answerWith(jobs, err)
}

func (s *Server) job(ctx context.Context, in *jobInput) (*answer[Job], error) {
	c := callerOf(ctx)
	if job, _, ok := s.waiting(c, in.ID); ok {
		return answerWith(job, nil)
	}
	job, err := s.queue.Job(ctx, c.Principal, in.ID, authz.PeerID(c.peer.String()))
	job.Frames = list(job.Frames)
	return answerWith(job, err)
}

func (s *Server) tasks(ctx context.Context, in *jobInput) (*answer[TaskList], error) {
	if _, _, ok := s.waiting(callerOf(ctx), in.ID); ok {
		return answerWith(TaskList{[]Task{}}, nil) // it is not cut into them yet
	}
	tasks, err := s.queue.Tasks(ctx, callerOf(ctx).Principal, in.ID)
	return answerWith(TaskList{list(tasks)}, err)
}

// control makes a handler of a verb without further words.
func control(do Verb) func(*Server, context.Context, *jobInput) (*answer[JobSummary], error) {
	return func(s *Server, ctx context.Context, in *jobInput) (*answer[JobSummary], error) {
		return answerWith(s.control(ctx, in.ID, Control{Do: do}))
	}
}

func (s *Server) prioritise(ctx context.Context, in *struct {
	ID   lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Body Priority
}) (*answer[JobSummary], error) {
	return answerWith(s.control(ctx, in.ID, Control{Do: Prioritise, Tier: in.Body.Priority}))
}

func (s *Server) retry(ctx context.Context, in *struct {
	ID   lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Body *Again
}) (*answer[JobSummary], error) {
	c := Control{Do: Retry}
	if in.Body != nil && in.Body.Frames != "" {
		var err error
		if c.Frames, err = lease.ParseFrames(in.Body.Frames); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return answerWith(s.control(ctx, in.ID, c))
}

func (s *Server) more(ctx context.Context, in *struct {
	Repeatable
	ID   lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Body More
}) (*onceAnswer[JobSummary], error) {
	c := callerOf(ctx)
	once, err := in.once(c, struct {
		Job lease.JobID
		More
	}{in.ID, in.Body})
	if err != nil {
		return nil, err
	}
	job, err := s.control(ctx, in.ID, Control{Do: AddMore, Samples: in.Body.Samples, Once: once})
	return answerOnce(http.StatusOK, job, job.Replayed, err)
}

func (s *Server) why(ctx context.Context, in *struct {
	ID   lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Task int32       `query:"task" minimum:"-1" default:"-1" doc:"one task of it; -1: the job as a whole"`
}) (*answer[Why], error) {
	if job, _, ok := s.waiting(callerOf(ctx), in.ID); ok {
		return answerWith(Why{Job: job.ID, State: string(job.State), Text: job.Reason}, nil)
	}
	return answerWith(s.queue.Why(ctx, callerOf(ctx).Principal, in.ID, in.Task))
}

// submit takes a job from a program, on this machine or elsewhere: what is about the machine
// is checked here, and the rest by the leader.
func (s *Server) submit(ctx context.Context, in *struct {
	Repeatable
	Body Submission
}) (*onceAnswer[Submitted], error) {
	c := callerOf(ctx)
	if c.from == remote && in.Body.Output != "" {
		return nil, fmt.Errorf("%w: an output folder is on the machine that takes the job, so only programs there may name one: leave it out, and fetch the frames when they are done, as `vizpeer job frames ID --output DIR` does", ErrDenied)
	}
	once, err := in.once(c, in.Body)
	if err != nil {
		return nil, err
	}
	spec, found, err := s.local.Prepare(ctx, c.Principal, in.Body)
	if err != nil {
		return nil, err
	}
	if spec, err = c.prove(spec); err != nil {
		return nil, err
	}
	out, err := s.submitOrKeep(ctx, c, lease.Submit{Job: s.local.NewJob(), Spec: spec, Once: once})
	found.Missing = list(found.Missing)
	out.Findings = found
	status := http.StatusCreated
	if out.Waiting {
		status = http.StatusAccepted
	}
	return answerOnce(status, out, out.Replayed, err)
}

// enqueued is what one peer answers another that asked it to enqueue.
type enqueued struct {
	Submitted
	Again bool `json:"again,omitempty"` // Submitted.Replayed
}

// enqueue takes a job that another peer has prepared, and for which it may have drawn the
// ID. Key and Request are of a [lease.Once].
func (s *Server) enqueue(ctx context.Context, in *struct {
	Job     lease.JobID `header:"Vizpeer-Job" pattern:"^(j[a-z2-7]{15})?$"`
	Key     string      `query:"key" maxLength:"64"`
	Request string      `query:"request" maxLength:"64"`
	Body    lease.Spec
}) (*answer[enqueued], error) {
	c := callerOf(ctx)
	spec, err := c.prove(in.Body)
	if err != nil {
		return nil, err
	}
	var once *lease.Once
	if in.Key != "" {
		once = &lease.Once{User: c.User, Key: in.Key, Request: in.Request}
	}
	out, err := s.queue.Submit(ctx, c.Principal, lease.Submit{Job: in.Job, Spec: spec, Once: once})
	out.Missing = list(out.Missing)
	return answerWith(enqueued{out, out.Replayed}, err)
}

// prove puts into a spec what the credential and the connection say, whatever
// it said itself: nobody submits in another's name, and nobody has frames
// written on a machine that did not take the submission.
func (c caller) prove(spec lease.Spec) (lease.Spec, error) {
	spec.Owner = c.User
	spec.Submitter = authz.PeerID(c.peer.String())
	if spec.Output.Dir == "" {
		spec.Output = lease.Output{}
	} else {
		spec.Output.Peer = spec.Submitter
	}
	if err := spec.Validate(); err != nil {
		return spec, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return spec, nil
}

type frameInput struct {
	ID    lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Frame int32       `path:"frame"`
}

type taskInput struct {
	ID   lease.JobID `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Task int32       `path:"task" minimum:"0"`
}

// frameInfo tells another peer about one frame.
func (s *Server) frameInfo(ctx context.Context, in *frameInput) (*answer[Frame], error) {
	return answerWith(s.queue.Frame(ctx, callerOf(ctx).Principal, in.ID, in.Frame))
}

// frameTasks tells another peer which tasks are about one frame.
func (s *Server) frameTasks(ctx context.Context, in *frameInput) (*answer[TaskList], error) {
	tasks, err := s.queue.TasksOf(ctx, callerOf(ctx).Principal, in.ID, in.Frame)
	return answerWith(TaskList{list(tasks)}, err)
}

// taskInfo tells another peer about one task.
func (s *Server) taskInfo(ctx context.Context, in *taskInput) (*answer[Task], error) {
	return answerWith(s.queue.Task(ctx, callerOf(ctx).Principal, in.ID, in.Task))
}
