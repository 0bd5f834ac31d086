package lease_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/lease"
)

// refuse requires that a command is refused for a reason.
func (f *farm) refuse(why error, c lease.Command) {
	f.t.Helper()
	_, err := f.try(c)
	require.ErrorIs(f.t, err, why)
}

// small submits a job of so many tasks of one frame, which one copy makes done.
func (f *farm) small(id lease.JobID, tasks int32, change ...func(*lease.Spec)) *lease.Job {
	f.t.Helper()
	return f.submit(id, fmt.Sprintf("1-%d", tasks), append([]func(*lease.Spec){func(s *lease.Spec) { s.Chunk, s.Replicas = 1, 1 }}, change...)...)
}

// render has bob do a task of such a job.
func (f *farm) render(j *lease.Job, task int32) {
	f.t.Helper()
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant(j.ID, task, "bob"), Machines: 1, Frames: results(task + 1)}})
}

func (f *farm) waiting() (ids []lease.JobID) {
	for _, j := range f.Waiting(f.now(), nil) {
		ids = append(ids, j.ID)
	}
	return ids
}

func tier(t lease.Tier) func(*lease.Spec) { return func(s *lease.Spec) { s.Tier = t } }

func TestPause(t *testing.T) {
	f := newFarm(t)
	j := f.small("j", 2)
	r := f.grant("j", 0, "bob")
	f.do(lease.Command{Pause: &lease.Pause{Job: "j"}})
	f.do(lease.Command{Pause: &lease.Pause{Job: "j"}})
	require.Equal(t, lease.JobPaused, j.State)
	require.Empty(t, f.waiting())
	f.refuse(lease.ErrPaused, lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: "j", Index: 1}, Peer: "bob"}})
	f.do(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: results(1)}})
	require.Equal(t, 1, j.Count(lease.TaskDone), "what was under way counts")
	f.later += 3 * time.Hour
	f.do(lease.Command{Resume: &lease.Resume{Job: "j"}})
	require.Equal(t, lease.JobRunning, j.State)
	require.Equal(t, lease.Normal.Rank(), j.Rank(f.now()), "a pause is no waiting")
	f.render(j, 1)
	require.Equal(t, lease.JobDone, j.State)
	f.refuse(lease.ErrEnded, lease.Command{Pause: &lease.Pause{Job: "j"}})
	f.refuse(lease.ErrEnded, lease.Command{Resume: &lease.Resume{Job: "j"}})

	f.small("k", 1)
	f.do(lease.Command{Pause: &lease.Pause{Job: "k"}})
	f.do(lease.Command{Resume: &lease.Resume{Job: "k"}})
	require.Equal(t, []lease.JobID{"k"}, f.waiting())
}

func TestPrioritise(t *testing.T) {
	f := newFarm(t)
	f.small("a", 1)
	f.small("b", 1)
	j := f.small("c", 1, tier(lease.Low))
	require.Equal(t, []lease.JobID{"a", "b", "c"}, f.waiting())
	f.do(lease.Command{Prioritise: &lease.Prioritise{Job: "c", Tier: lease.High}})
	require.Equal(t, []lease.JobID{"c", "a", "b"}, f.waiting())
	require.Equal(t, lease.Low, j.Spec.Tier, "what was asked for stays")
	f.do(lease.Command{Prioritise: &lease.Prioritise{Job: "c", Tier: lease.Normal}})
	require.Equal(t, []lease.JobID{"a", "b", "c"}, f.waiting())
	f.refuse(lease.ErrInvalid, lease.Command{Prioritise: &lease.Prioritise{Job: "c", Tier: "very"}})
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "c"}})
	f.refuse(lease.ErrEnded, lease.Command{Prioritise: &lease.Prioritise{Job: "c", Tier: lease.Urgent}})
}

func TestRetry(t *testing.T) {
	f := newFarm(t)
	j := f.small("j", 3)
	f.render(j, 0)
	for range lease.MaxTries {
		r := f.grant("j", 1, "bob")
		f.do(lease.Command{Fail: &lease.Fail{Report: r, Reason: "crash"}})
	}
	require.Equal(t, lease.JobFailed, j.State)
	f.do(lease.Command{Retry: &lease.Retry{Job: "j"}})
	require.Equal(t, lease.JobRunning, j.State)
	require.Empty(t, j.Reason)
	require.False(t, j.KeptOff("peer-bob"))
	require.Equal(t, []int32{1, 2}, j.Next(9), "what was done stays")
	f.refuse(lease.ErrState, lease.Command{Retry: &lease.Retry{Job: "j"}})
	f.render(j, 1)
	f.render(j, 2)
	require.Equal(t, lease.JobDone, j.State)
	f.refuse(lease.ErrState, lease.Command{Retry: &lease.Retry{Job: "j"}})

	j = f.small("k", 2)
	f.render(j, 0)
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "k"}})
	f.do(lease.Command{Lose: &lease.Lose{Peer: "peer-bob", Machines: 1, Removed: true}})
	f.do(lease.Command{Retry: &lease.Retry{Job: "k"}})
	require.Equal(t, []int32{0, 1}, j.Next(9), "what nobody holds any more is rendered again")
}

func TestAfter(t *testing.T) {
	f := newFarm(t)
	first := f.small("first", 1)
	after := func(ids ...lease.JobID) func(*lease.Spec) { return func(s *lease.Spec) { s.After = ids } }
	then := f.small("then", 1, after("first"))
	last := f.small("last", 1, after("first", "then"))
	require.Equal(t, []lease.JobID{"first"}, f.waiting())
	require.EqualValues(t, "first", f.Awaits(last))
	f.refuse(lease.ErrNotQueued, lease.Command{Grant: &lease.Grant{Lease: "x", Task: lease.TaskID{Job: "then"}, Peer: "bob"}})
	f.later += 3 * time.Hour
	f.render(first, 0)
	require.Equal(t, []lease.JobID{"then"}, f.waiting())
	require.Equal(t, lease.Normal.Rank(), then.Rank(f.now()), "to come after another is no waiting")
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "then"}})
	require.Equal(t, lease.JobCancelled, last.State)
	require.Contains(t, last.Reason, "then, which is cancelled")
	require.Equal(t, lease.JobCancelled, then.State)

	refused := spec(lease.Frames{{First: 1, Last: 1, Step: 1}})
	for _, id := range []lease.JobID{"nothing", "then"} {
		refused.After = []lease.JobID{id}
		f.refuse(lease.ErrInvalid, lease.Command{Submit: &lease.Submit{Job: "no", Spec: refused}})
	}
	f.refuse(lease.ErrInvalid, lease.Command{Retry: &lease.Retry{Job: "last"}})
	f.do(lease.Command{Retry: &lease.Retry{Job: "then"}})
	f.do(lease.Command{Retry: &lease.Retry{Job: "last"}})
	require.Equal(t, []lease.JobID{"then"}, f.waiting())
}

func TestOrder(t *testing.T) {
	f := newFarm(t)
	require.Equal(t, []int32{0, 4, 9, 1, 2, 3, 5, 6, 7, 8}, f.small("j", 10).Next(99))
	require.Equal(t, []int32{0, 1, 2, 3}, f.small("k", 4, func(s *lease.Spec) { s.Order = lease.Linear }).Next(99))
	require.Equal(t, []int32{0}, f.small("one", 1).Next(99))
	require.Equal(t, []int32{0, 1}, f.small("two", 2).Next(99))
	cut := f.small("cut", 10, func(s *lease.Spec) { s.Order, s.Chunk = lease.Linear, 0 })
	require.Equal(t, []int32{0}, cut.Next(99))
	f.do(lease.Command{Grant: &lease.Grant{Lease: "first", Task: lease.TaskID{Job: "cut"}, Peer: "bob", Frames: 3}})
	f.do(lease.Command{Expire: &lease.Expire{Lease: "first", Task: lease.TaskID{Job: "cut", Index: 1}}})
	require.Equal(t, []int32{1}, cut.Next(1), "the first frames come back, before those that were left")
	require.Equal(t, []int32{1, 0}, cut.Next(99))
	bad := spec(lease.Frames{{First: 1, Last: 1, Step: 1}})
	bad.Order = "random"
	_, err := f.try(lease.Command{Submit: &lease.Submit{Job: "no", Spec: bad}})
	require.ErrorContains(t, err, "use preview or linear")
}

// Whatever is submitted when, one machine that always does what is first: a job that
// has waited for as long as can count is overtaken by no later one, so it is served
// when what came before it is; and only what is as urgent by its tier, or has waited
// for it since before, goes before urgent work.
func TestNothingStarves(t *testing.T) {
	tiers := []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFarm(rt)
		for step := range rapid.IntRange(1, 120).Draw(rt, "steps") {
			if rapid.IntRange(0, 2).Draw(rt, "arrives") == 0 {
				f.small(lease.JobID(fmt.Sprint("j", step)), rapid.Int32Range(1, 6).Draw(rt, "tasks"), tier(rapid.SampledFrom(tiers).Draw(rt, "tier")))
			}
			f.later += time.Duration(rapid.IntRange(0, 40).Draw(rt, "minutes")) * time.Minute
			jobs := f.Waiting(f.now(), nil)
			if len(jobs) == 0 {
				continue
			}
			first := jobs[0]
			for _, j := range jobs[1:] {
				if f.now().Sub(j.Served) >= 3*lease.AgeStep {
					require.Less(rt, first.Seq, j.Seq, "a later job overtook one that had waited")
				}
				if j.Tier == lease.Urgent && first.Tier != lease.Urgent {
					missing := time.Duration(lease.Urgent.Rank() - first.Tier.Rank())
					require.GreaterOrEqual(rt, f.now().Sub(first.Served), missing*lease.AgeStep, "it went before urgent work without waiting")
					require.Less(rt, first.Seq, j.Seq)
				}
			}
			f.render(first, first.Next(1)[0])
		}
		for len(f.Waiting(f.now(), nil)) > 0 {
			f.later += time.Minute
			first := f.Waiting(f.now(), nil)[0]
			f.render(first, first.Next(1)[0])
		}
		for _, j := range f.Jobs() {
			require.Equal(rt, lease.JobDone, j.State)
		}
	})
}

// Frames that are to be rendered again are, whatever time the next leader says that it is:
// by the attempt that is granted next, and not by one that was granted before.
func TestAgainByAnotherClock(t *testing.T) {
	for _, by := range []time.Duration{-5 * time.Hour, 5 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			f := newFarm(t)
			j := f.small("j", 2)
			f.later = 100 * time.Hour
			before := f.grant("j", 0, "bob")
			f.do(lease.Command{Record: &lease.Record{Report: before, Machines: 1, Frames: results(1)}})
			f.later += by
			f.do(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 1, Last: 1, Step: 1}}}})
			f.later -= by
			other := results(1)
			other[0].CID = "before"
			f.do(lease.Command{Record: &lease.Record{Report: before, Machines: 1, Frames: other}})
			require.Equal(t, "cid1", j.Frames[0].CID, "it was granted before")
			f.do(lease.Command{Release: &lease.Release{Report: before}})
			f.later += by
			other[0].CID = "after"
			f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 0, "cyd"), Machines: 1, Frames: other}})
			require.Equal(t, "after", j.Frames[0].CID)
			require.Equal(t, lease.TaskDone, j.Tasks[0].State)
		})
	}
}
