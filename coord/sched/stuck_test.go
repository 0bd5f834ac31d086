package sched_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// paced is a job of eight frames of which a quick machine "a" and a slow one "b"
// rendered three each, and have one more each since now.
func paced(t *testing.T) (s *lease.State, j *lease.Job, a, b sched.Running, now time.Time) {
	t.Helper()
	s, now = lease.NewState(), time.Unix(10, 0)
	submit(t, s, "paced", 8, func(s *lease.Spec) { s.Order, s.Tier = lease.Linear, lease.Low })
	j, _ = s.Job("paced")
	do := func(c lease.Command) {
		c.At = now
		_, err := s.Apply(c)
		require.NoError(t, err)
	}
	grant := func(i int32, p authz.PeerID) lease.Report {
		r := lease.Report{Lease: lease.ID(fmt.Sprint("l", i)), Task: lease.TaskID{Job: "paced", Index: i}, Peer: p}
		do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer}})
		return r
	}
	for i := range int32(6) {
		p, took := authz.PeerID("a"), 1.0
		if i >= 3 {
			p, took = "b", 100
		}
		r := grant(i, p)
		now = now.Add(seconds(took))
		do(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: []lease.Result{frame(i+1, took)}}})
	}
	return s, j, sched.Running{Report: grant(6, "a"), Since: now}, sched.Running{Report: grant(7, "b"), Since: now}, now
}

func frame(n int32, took float64) lease.Result {
	return lease.Result{Frame: n, CID: fmt.Sprint("c", n), Name: fmt.Sprintf("%04d.png", n), Size: 1, Seconds: took}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// A quick machine is not given the time of a slow one.
func TestStuckByItsOwnPace(t *testing.T) {
	s, j, a, b, now := paced(t)
	due, known := sched.Stuck(j, a)
	require.True(t, known)
	require.WithinRange(t, due, now.Add(15*time.Second), now.Add(30*time.Second))
	due, known = sched.Stuck(j, b)
	require.True(t, known)
	require.WithinRange(t, due, now.Add(300*time.Second), now.Add(330*time.Second))

	_, err := s.Apply(lease.Command{At: now, Record: &lease.Record{Report: a.Report, Machines: 1, Frames: []lease.Result{frame(7, 1)}}})
	require.NoError(t, err)
	_, known = sched.Stuck(j, a)
	require.False(t, known, "nothing is left to try")
}

// What is stuck goes before all that waits, however urgent: its job has the slot of the
// first attempt for nothing.
func TestStuckGoesFirst(t *testing.T) {
	s, j, a, _, now := paced(t)
	submit(t, s, "urgent", 4, func(s *lease.Spec) { s.Tier = lease.Urgent })
	stuck := map[lease.JobID][]int32{j.ID: {a.Task.Index}}
	jobs := s.Waiting(now, func(o *lease.Job) bool { return o == j })
	placed := sched.Place(jobs, []sched.Machine{machine("a", 1, 16), machine("b", 1, 16), machine("c", 1, 32)}, stuck)
	require.Len(t, placed, 3)
	require.Equal(t, sched.Placement{Task: a.Task, Peer: "b", Device: lease.CPUDevice, Second: true}, placed[0])
	for _, p := range placed[1:] {
		require.EqualValues(t, "urgent", p.Task.Job)
	}
}
