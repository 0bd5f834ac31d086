package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// counter is a leader at the other end of a courier: it takes a job's ID once, and its
// answers may be lost.
type counter struct {
	taken, cancelled map[lease.JobID]int
	deliver, recall  []step // for each try, in order; then all is well
}

// step is what goes wrong with a try.
type step struct {
	before, after func() // called before the leader hears of it, and before its answer is there
	unheard       bool   // the leader never hears of it
	lost          bool   // the answer is lost
	refused       error
}

func (c *counter) do(steps *[]step, commit func()) error {
	var s step
	if len(*steps) > 0 {
		s, *steps = (*steps)[0], (*steps)[1:]
	}
	if s.before != nil {
		s.before()
	}
	if s.refused != nil {
		return s.refused
	}
	if !s.unheard {
		commit()
	}
	if s.after != nil {
		s.after()
	}
	if s.unheard || s.lost {
		return fmt.Errorf("%w: it went away before it answered", httpapi.ErrNoLeader)
	}
	return nil
}

func (c *counter) Deliver(_ context.Context, p httpapi.Posted) (httpapi.Submitted, error) {
	err := c.do(&c.deliver, func() {
		if c.taken[p.Job] == 0 {
			c.taken[p.Job] = 1
		}
	})
	return httpapi.Submitted{Job: p.Job}, err
}

func (c *counter) Recall(_ context.Context, p httpapi.Posted) error {
	if c.taken[p.Job] == 0 {
		return httpapi.ErrNotFound
	}
	return c.do(&c.recall, func() { c.cancelled[p.Job]++ })
}

// Whenever a job is cancelled, and whatever answers are lost, it ends as cancelled here or
// there; and without that it is submitted, once.
func TestCancelRacesWithDelivery(t *testing.T) {
	ann := authz.Principal{User: "ann", Role: authz.Operator}
	for name, c := range map[string]struct {
		deliver, recall []step // "cancel" among them: see below
		cancelAt        string
		submitted       bool
	}{
		"nobody cancels":                         {submitted: true},
		"nobody cancels, answers are lost":       {deliver: []step{{lost: true}, {unheard: true}, {lost: true}}, submitted: true},
		"before":                                 {cancelAt: "first"},
		"while it is under way":                  {cancelAt: "before", submitted: true},
		"when it is committed":                   {cancelAt: "after", submitted: true},
		"when it is committed, answer lost":      {deliver: []step{{lost: true}}, cancelAt: "after", submitted: true},
		"while under way, never heard":           {deliver: []step{{unheard: true}}, cancelAt: "before", submitted: true},
		"while under way, and refused":           {deliver: []step{{refused: fmt.Errorf("%w: too many", lease.ErrLimit)}}, cancelAt: "before"},
		"when committed, the recall lost twice":  {recall: []step{{lost: true}, {unheard: true}}, cancelAt: "after", submitted: true},
		"when committed, then the leader is new": {recall: []step{{unheard: true}}, deliver: []step{{}, {unheard: true}, {lost: true}}, cancelAt: "after", submitted: true},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := blobs.Open(filepath.Join(t.TempDir(), "store"), blobs.Config{})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, store.Close()) })
			dir := filepath.Join(t.TempDir(), "outbox")
			o, err := openOutbox(dir, store, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			o.view = func() *authz.View { return nil }
			p := aPosting()
			_, err = o.Keep(t.Context(), httpapi.Posted{Submit: lease.Submit{Job: p.Job, Spec: p.Spec}, By: authz.Principal{User: "ann", Role: authz.Operator, Key: "k"}, Token: "secret"})
			require.NoError(t, err)
			cancel := func() {
				j, err := o.Withdraw(ann, p.Job)
				require.NoError(t, err)
				require.Equal(t, lease.JobCancelled, j.State, "who cancelled it sees that it is")
			}
			if len(c.deliver) == 0 {
				c.deliver = []step{{}}
			}
			switch c.cancelAt {
			case "first":
				cancel()
			case "before":
				c.deliver[0].before = cancel
			case "after":
				c.deliver[0].after = cancel
			}
			leader := &counter{taken: map[lease.JobID]int{}, cancelled: map[lease.JobID]int{}, deliver: c.deliver, recall: c.recall}
			for range 8 {
				o.deliverAll(t.Context(), leader)
			}
			require.Zero(t, o.Count())
			job, _, here := o.WaitingJob(ann, p.Job)
			if !c.submitted {
				require.Empty(t, leader.taken)
				require.True(t, here)
				require.Equal(t, lease.JobCancelled, job.State)
				require.Contains(t, job.Reason, "cancelled by ann")
				return
			}
			require.False(t, here, "it is the farm's")
			require.Equal(t, 1, leader.taken[p.Job])
			require.Equal(t, c.cancelAt != "", leader.cancelled[p.Job] > 0)
			again, err := openOutbox(dir, store, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			require.Empty(t, again.all)
		})
	}
}

// What a leader says of a job that waited decides whether it is tried again.
func TestAnswersToDeliveries(t *testing.T) {
	ann := authz.Principal{User: "ann", Role: authz.Operator}
	for name, c := range map[string]struct {
		err    error
		state  lease.JobState
		reason string
		waits  bool
	}{
		"nobody leads":     {httpapi.ErrNoLeader, lease.JobQueued, "submits it by itself as soon as it can: no coordinator can be reached", true},
		"the disk is full": {fmt.Errorf("%w: make room there", blobs.ErrDiskFull), lease.JobQueued, "make room there", true},
		"too many":         {fmt.Errorf("%w: 1000 open jobs", lease.ErrLimit), lease.JobFailed, "it was refused: a limit is reached: 1000 open jobs", false},
		"not allowed":      {fmt.Errorf("%w: you are a viewer", httpapi.ErrDenied), lease.JobFailed, "it was refused: you are a viewer", false},
		"the key is gone":  {httpapi.ErrUnauthorised, lease.JobFailed, "it was refused: the token is not valid", false},
		"it is broken":     {errors.New("/secret broke"), lease.JobQueued, "something went wrong", true},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := blobs.Open(filepath.Join(t.TempDir(), "store"), blobs.Config{})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, store.Close()) })
			o, err := openOutbox(filepath.Join(t.TempDir(), "outbox"), store, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			o.view = func() *authz.View { return nil }
			p := aPosting()
			_, err = o.Keep(t.Context(), httpapi.Posted{Submit: lease.Submit{Job: p.Job, Spec: p.Spec}, By: authz.Principal{User: "ann", Role: authz.Operator, Key: "k"}, Token: "secret"})
			require.NoError(t, err)
			leader := &counter{taken: map[lease.JobID]int{}, deliver: []step{{refused: c.err}}}
			require.Equal(t, !c.waits, o.deliverAll(t.Context(), leader))
			job, _, ok := o.WaitingJob(ann, p.Job)
			require.True(t, ok)
			require.Equal(t, c.state, job.State)
			require.Contains(t, job.Reason, c.reason)
			require.Equal(t, c.waits, job.Waiting)
			if c.waits {
				require.True(t, o.deliverAll(t.Context(), leader))
				require.Equal(t, 1, leader.taken[p.Job])
			}

			// What waits for too long is given up.
			o.all = append(o.all, &posting{Job: "jbbbbbbbbbbbbbbb", Spec: p.Spec, Posted: time.Now().Add(-keepWaiting - time.Hour), Key: "k", State: lease.JobQueued, token: "secret"})
			require.True(t, o.deliverAll(t.Context(), leader))
			job, _, _ = o.WaitingJob(ann, "jbbbbbbbbbbbbbbb")
			require.Equal(t, lease.JobFailed, job.State)
			require.Contains(t, job.Reason, "more than 14 days")
		})
	}
}
