package peer

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// courier submits jobs, and cancels them, in the name of who posted them.
type courier interface {
	Deliver(context.Context, httpapi.Posted) (httpapi.Submitted, error)
	Recall(context.Context, httpapi.Posted) error
}

// Run submits the jobs whenever somebody leads, until ctx ends.
func (o *outbox) Run(ctx context.Context, to courier) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, time.Minute
	for {
		leader, changed := o.link.Watch()
		var again <-chan time.Time
		if leader != "" {
			o.Shown(o.token())
			if o.deliverAll(ctx, to) {
				pause.Reset()
			} else {
				again = time.After(pause.NextBackOff())
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-o.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// deliverAll tries each job that waits, in the order in which they were posted, and tells
// whether there is no need to try again soon.
func (o *outbox) deliverAll(ctx context.Context, to courier) bool {
	o.mu.Lock()
	o.expire(time.Now())
	all := slices.Clone(o.all)
	o.mu.Unlock()
	done := true
	for _, p := range all {
		if ctx.Err() != nil {
			return true
		}
		in, ok := o.begin(p)
		if !ok {
			continue
		}
		trying, cancel := context.WithTimeout(ctx, deliverTime)
		out, err := to.Deliver(trying, in)
		recalled := err == nil && in.Cancelled
		if recalled {
			err = to.Recall(trying, in)
			if status := httpapi.MapError(err).Status; status == http.StatusConflict || status == http.StatusNotFound {
				err = nil // it has ended by itself
			}
		}
		cancel()
		if !o.settle(ctx, p, out, recalled, err) {
			done = false
		}
	}
	return done
}

// begin is what to deliver of a job; false where it is not to be delivered now. That it
// was tried is on disk before it is.
func (o *outbox) begin(p *posting) (httpapi.Posted, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p.State.Ended() {
		return httpapi.Posted{}, false
	}
	refuse := ""
	if time.Since(p.Posted) > keepWaiting {
		refuse = fmt.Sprintf("it waited on this machine for more than %d days: submit it again", int(keepWaiting.Hours()/24))
	} else if p.token == "" {
		refuse = p.hopeless(o.view())
	}
	switch {
	case refuse != "":
		if err := o.end(p, lease.JobFailed, refuse); err != nil {
			o.slog.Warn("a job that cannot be submitted stays on the list", "job", p.Job, "err", err)
			return httpapi.Posted{}, false
		}
		o.tell()
		return httpapi.Posted{}, false
	case p.token == "":
		return httpapi.Posted{}, false
	case !p.Tried:
		if err := o.write(p, func(p *posting) { p.Tried = true }); err != nil {
			p.why = err.Error()
			return httpapi.Posted{}, false
		}
	}
	return httpapi.Posted{
		Submit: lease.Submit{Job: p.Job, Spec: p.Spec, Once: p.Once}, By: authz.Principal{User: p.Spec.Owner, Key: p.Key, Session: p.Session},
		Address: p.Address, Token: p.token, Tried: true, Cancelled: p.Cancel != "",
	}, true
}

// settle notes what became of a try, and tells whether there is no need of another soon.
func (o *outbox) settle(ctx context.Context, p *posting, out httpapi.Submitted, recalled bool, err error) (done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.tell()
	if err == nil {
		if p.Cancel != "" && !recalled {
			return false // meanwhile; it is delivered again, to no effect, and then recalled
		}
		// It is its uploader's as if it had just been uploaded, until the farm holds it.
		if root, err := cid.Decode(p.Spec.Project); err == nil {
			_ = o.store.Pin(context.WithoutCancel(ctx), root, uploadPin(p.Spec.Owner))
		}
		if out.Job != p.Job { // the same request was taken before, or an earlier version leads, which draws IDs itself
			return o.end(p, lease.JobCancelled, fmt.Sprintf("it was submitted under another ID: see job %s", out.Job)) == nil
		}
		o.drop(p)
		o.slog.Info("a job that waited here was submitted", "job", p.Job, "user", p.Spec.Owner, "waited", time.Since(p.Posted).Round(time.Second), "cancelled", recalled)
		return true
	}
	if ctx.Err() != nil {
		return true
	}
	said := httpapi.MapError(err)
	switch {
	case said.Status == http.StatusUnauthorized && p.Session != "":
		// It is over; another will do.
		p.token, p.spent = "", p.token
		return true
	case said.Status >= 500 || said.Status == http.StatusTooManyRequests:
		o.slog.Debug("a job that waits here could not be submitted yet", "job", p.Job, "err", err)
		p.why = said.Detail
		return false
	case p.Cancel != "":
		return o.end(p, lease.JobCancelled, p.Cancel) == nil
	}
	o.slog.Warn("a job that waited here was refused", "job", p.Job, "user", p.Spec.Owner, "err", err)
	return o.end(p, lease.JobFailed, "it was refused: "+said.Detail) == nil
}
