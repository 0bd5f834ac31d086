package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Posted is a job that was posted at this machine and that nobody who leads has taken
// yet, as far as is known.
type Posted struct {
	lease.Submit
	By      authz.Principal // who posted it, as this machine proved it
	Address netip.Addr      // where that was, as in [authz.Deed]
	// Token is what proved it. It is never written down.
	Token string
	// Tried tells that somebody who leads may have it all the same, and Cancelled that it
	// is to be cancelled then.
	Tried, Cancelled bool
}

// Outbox keeps the jobs that were posted at this machine while nobody led the queue,
// until somebody does: then it submits each, once, in the name of who posted it. A job
// that is refused then is kept for a while, as failed, with the reason.
type Outbox interface {
	// NewJob draws an ID that cannot be guessed.
	NewJob() lease.JobID
	// Keep takes a job; when it returns, that is on disk. Where there is no room the
	// error says so, and wraps [ErrNoLeader].
	Keep(context.Context, Posted) (Submitted, error)
	// Kept is what Keep answered an earlier request with the same key, if there was one.
	Kept(*lease.Once) (Submitted, bool, error)
	// Holds tells whether a job is here, whosever it is.
	Holds(lease.JobID) bool
	// Waiting lists the jobs that the principal may see, the newest first.
	Waiting(authz.Principal) []JobSummary
	// WaitingJob is one of them, and what is closed when it changes.
	WaitingJob(authz.Principal, lease.JobID) (job Job, changed <-chan struct{}, ok bool)
	// Withdraw cancels one of them, whether or not somebody has taken it meanwhile.
	Withdraw(context.Context, authz.Principal, lease.JobID) (JobSummary, error)
	// Shown takes note of a token that somebody shows: jobs may wait for it. It must not
	// block, and costs nothing where none does.
	Shown(token string)
}

// submitOrKeep submits a job, or keeps it for later where nobody leads.
func (s *Server) submitOrKeep(ctx context.Context, c caller, in lease.Submit) (Submitted, error) {
	if out, ok, err := s.local.Kept(in.Once); ok || err != nil {
		return out, err
	}
	q, err := s.part(ctx, c)
	tried := err == nil
	var out Submitted
	if err == nil {
		out, err = q.Submit(ctx, c.Principal, in)
	}
	if !mayPass(err) || ctx.Err() != nil {
		return out, err
	}
	var dial *dialError
	tried = tried && !errors.As(err, new(*NotLeaderError)) && !errors.As(err, &dial)
	return s.local.Keep(ctx, Posted{Submit: in, By: c.Principal, Address: c.addr, Token: c.token, Tried: tried})
}

// mayPass tells of the error of a submission that it may pass: that nobody leads now, or
// that nobody knows what became of it.
func mayPass(err error) bool {
	return err != nil && MapError(err).Status == http.StatusServiceUnavailable
}

// Deliver submits a job that was kept. It is as if whoever posted it did so now, at this
// machine: the leader asks for no less.
func (s *Server) Deliver(ctx context.Context, p Posted) (out Submitted, err error) {
	err = s.inNameOf(ctx, p, "submit-job", func(ctx context.Context, q queuePart, who authz.Principal) error {
		out, err = q.Submit(ctx, who, p.Submit)
		return err
	})
	return out, err
}

// Recall cancels a job that was delivered.
func (s *Server) Recall(ctx context.Context, p Posted) error {
	return s.inNameOf(ctx, p, "cancel-job", func(ctx context.Context, q queuePart, who authz.Principal) error {
		_, err := q.Control(ctx, who, p.Job, Control{Do: Cancel})
		return err
	})
}

// inNameOf does something at the leader in the name of who posted a job, with the
// credential that was shown then. Where this machine leads, it asks itself for the same.
func (s *Server) inNameOf(ctx context.Context, p Posted, action string, do func(context.Context, queuePart, authz.Principal) error) error {
	c := caller{token: p.Token, peer: s.host.ID(), from: loopback, addr: p.Address}
	leader, here, err := s.findLeader(ctx)
	if err != nil {
		return err
	}
	if !here {
		return do(ctx, &remoteQueue{s, leader, c}, authz.Principal{})
	}
	c.Principal, err = verified(s.local.Authenticate(ctx, c.token))
	doing := &authz.Doing{Deed: c.deed(action)}
	doing.Object = string(p.Job)
	if err == nil {
		err = cmp.Or(c.atHome(), submitters.refuses(c.Principal))
	}
	if err == nil {
		err = do(authz.WithDoing(ctx, doing), s.queue, c.Principal)
	}
	if err != nil && !doing.Noted {
		s.refused(doing.Deed, MapError(err).Status)
	}
	return err
}

// waiting is a job that waits on this machine, for a caller who asked this machine.
func (s *Server) waiting(c caller, id lease.JobID) (Job, <-chan struct{}, bool) {
	if c.from == stream || id == "" {
		return Job{}, nil, false
	}
	return s.local.WaitingJob(c.Principal, id)
}

// jobOf is the job that a request is about.
func jobOf(r *http.Request) lease.JobID {
	return lease.JobID(cmp.Or(r.PathValue("id"), r.URL.Query().Get("job")))
}

func (s *Server) outbox(ctx context.Context, _ *nothing) (*answer[JobList], error) {
	return answerWith(JobList{Jobs: list(s.local.Waiting(callerOf(ctx).Principal))}, nil)
}

// control does to a job what the caller wants, wherever the job is.
func (s *Server) control(ctx context.Context, id lease.JobID, do Control) (JobSummary, error) {
	c := callerOf(ctx)
	job, _, ok := s.waiting(c, id)
	switch {
	case !ok:
		return s.queue.Control(ctx, c.Principal, id, do)
	case do.Do != Cancel:
		return job.JobSummary, fmt.Errorf("%w: the job waits on this machine to be submitted: it can be cancelled, and nothing else until then", ErrConflict)
	}
	if doing := authz.DoingOf(ctx); doing != nil {
		doing.Noted = true // nothing of the farm is changed here
	}
	return s.local.Withdraw(ctx, c.Principal, id)
}

// awaiting tells of a job that waits on this machine how it ends there. Once it is
// submitted, the stream ends, for the reader to connect again: to who leads.
func (s *Server) awaiting(ctx context.Context, id lease.JobID) *Subscription {
	p, events := callerOf(ctx).Principal, make(chan Event)
	var end error
	go func() {
		defer close(events)
		for {
			job, changed, ok := s.local.WaitingJob(p, id)
			switch {
			case !ok:
				end = errors.New("the job is not here any more: connect again to follow it where it is")
				return
			case job.State.Ended():
				e := Event{Type: lease.JobEnded, Time: time.Now().UTC(), Job: id, State: string(job.State), Reason: job.Reason}
				if job.EndedAt != nil {
					e.Time = *job.EndedAt
				}
				select {
				case events <- e:
				case <-ctx.Done():
				}
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return &Subscription{Events: events, Err: func() error { return end }}
}
