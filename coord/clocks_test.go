package coord

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// The farm's time is that of most coordinators, and of two the one that goes on from what
// was.
func TestClocks(t *testing.T) {
	const day = 24 * time.Hour
	began := noon // of the monotonic clock: any
	for _, c := range []struct {
		name   string
		logged time.Duration // how far the log's time is from the right one
		none   bool          // the log is new
		alone  bool
		own    time.Duration   // how far the leader's clock is ahead
		others []time.Duration // likewise
		after  time.Duration   // of the term
		want   time.Duration
		agreed bool
	}{
		{name: "a new farm", none: true, alone: true, own: day, want: day},
		{name: "alone, it has nobody to ask", alone: true, own: day, want: day},
		{name: "a farm that was off for a month", alone: true, logged: -30 * day},
		{name: "others are still to be heard", own: day, after: 30 * time.Second},
		{name: "a farm of several that was off, before others are heard", logged: -30 * day, want: -30 * day, after: 30 * time.Second},
		{name: "and after", logged: -30 * day, others: []time.Duration{0, time.Second}, agreed: true},
		{name: "others are not heard for a while", own: day, after: 2 * time.Minute, want: day},
		{name: "a little off is nothing", own: 40 * time.Second, others: []time.Duration{0, 0}, want: 40 * time.Second, agreed: true},
		{name: "ahead of two", own: 20 * day, others: []time.Duration{0, time.Second}, want: time.Second, agreed: true},
		{name: "behind two", own: -3 * time.Hour, others: []time.Duration{0, time.Second}, agreed: true},
		{name: "ahead of one, and of what was", own: 5 * time.Hour, others: []time.Duration{0}, agreed: true},
		{name: "the other is ahead", own: 0, others: []time.Duration{5 * time.Hour}},
		{name: "one of two others is wrong", own: 0, others: []time.Duration{-20 * day, 0}},
		{name: "all differ", own: 5 * day, others: []time.Duration{-5 * day, 0}},
		{name: "four, of which two are wrong alike, are in doubt and go by their own", own: 0, others: []time.Duration{day, day, 0}},
		{name: "five, of which two are wrong", own: day, others: []time.Duration{day, 0, 0, 0}, agreed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
			logged := now.Add(c.logged)
			if c.none {
				logged = time.Time{}
			}
			clocks := newClocks(began, logged, c.alone)
			for i, ahead := range c.others {
				clocks.heard(authz.PeerID(fmt.Sprint(i)), now.Add(c.after+ahead), began.Add(c.after), true)
			}
			got := clocks.now(now.Add(c.after+c.own), began.Add(c.after))
			require.Equal(t, c.want, got.Sub(now.Add(c.after)))
			require.Equal(t, c.agreed, clocks.agreed())
		})
	}
}

// A clock that is set while its machine leads counts for nothing where others say
// otherwise, and where there are none not at once for what is for good.
func TestClockIsSet(t *testing.T) {
	const day = 24 * time.Hour
	at, now := noon, time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
	pass := func(d time.Duration) { at, now = at.Add(d), now.Add(d) }
	c := newClocks(at, now, true)
	require.Equal(t, now, c.now(now, at))
	require.False(t, c.agreed(), "nobody is heard")
	require.False(t, c.steady(at))
	pass(2 * time.Hour)
	require.True(t, c.steady(at))
	require.Equal(t, now.Add(20*day), c.now(now.Add(20*day), at))
	require.False(t, c.steady(at))
	pass(2 * time.Hour)
	require.True(t, c.steady(at), "it is what it is")
	require.Equal(t, now.Add(20*day), c.now(now.Add(20*day), at))
	// Machines that render have no say in which time it is.
	for _, p := range []authz.PeerID{"a", "b", "c"} {
		c.heard(p, now, at, false)
	}
	require.Equal(t, now.Add(20*day), c.now(now.Add(20*day), at))
	require.False(t, c.agreed())
	require.False(t, c.steady(at))
	c.heard("d", now, at, true)
	c.heard("e", now, at, true)
	pass(day)
	require.Equal(t, now, c.now(now.Add(20*day), at))
	require.True(t, c.agreed())
	for _, p := range []authz.PeerID{"a", "b", "c", "d", "e"} {
		c.gone(p)
	}
	c.heard("liar", time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC), at, true)
	c.heard("old", time.Time{}, at, true)
	require.Equal(t, now, c.now(now, at))
}

// setClock sets a machine's clock to so far from the right time.
func (m *simMachine) setClock(skew time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew = skew
}

// Whatever a leader's clock is set to, no lease ends by it, nor does anybody lose its
// membership, nor is a key forgotten under which a job was submitted; and a new leader whose
// clock is another goes on with the farm's time.
func TestLeadersClockIsSet(t *testing.T) {
	for _, skew := range []time.Duration{-5 * time.Hour, -400 * 24 * time.Hour, 25 * time.Hour, 14 * 24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newSimFarm(t, 1, 3, 2)
				for _, m := range f.machines {
					m.perFrame = time.Minute
				}
				first := f.machines[0]
				time.Sleep(2 * time.Minute) // all others are noted
				require.Equal(t, first, f.leader())
				once := &lease.Once{User: "ann", Key: "key", Request: "request"}
				submit := func() (lease.JobID, error) {
					spec := lease.Spec{
						Name: "shot", Owner: "ann", Project: simCID("project"), Blend: "shot.blend", Frames: lease.Frames{{First: 1, Last: 4, Step: 1}},
						Chunk: 1, Tier: lease.Normal, Replicas: 2, Submitter: f.machines[4].id,
					}
					require.NoError(t, f.machines[4].put(spec.Project))
					id, _, err := f.leader().coord.Submit(t.Context(), lease.Submit{Spec: spec, Once: once})
					return id, err
				}
				id, err := submit()
				require.NoError(t, err)
				f.within(10*time.Second, "it is rendered", func() bool { return f.check.count(&f.check.grants) > 1 })
				first.setClock(skew)
				time.Sleep(20 * time.Second)
				again := new(lease.Repeated)
				_, err = submit()
				require.ErrorAs(t, err, &again)
				require.Equal(t, id, again.Job)

				first.setClock(0)
				f.machines[1].setClock(skew)
				f.machines[2].setClock(skew)
				first.kill(true)
				f.within(20*time.Second, "another one leads", func() bool { return f.leader() != nil })
				next := f.leader()
				next.setClock(skew)
				for _, m := range f.coordinators() {
					if m != next {
						m.setClock(0)
					}
				}
				first.start()
				f.within(10*time.Minute, "the job has ended", func() bool { return next.coord.Numbers().OpenJobs == 0 })
				_, err = submit()
				require.ErrorAs(t, err, &again)
				time.Sleep(2 * time.Minute) // the roll is called
				require.Equal(t, next, f.leader())
				require.Zero(t, f.check.count(&f.check.expired))
				next.coord.Read(func(q *lease.State, r *authz.Roster) {
					_, member := r.Member(simAway())
					require.True(t, member)
					j, _ := q.Job(id)
					require.Equal(t, lease.JobDone, j.State)
					require.Less(t, apart(j.Ended, time.Now()), 4*time.Hour)
				})
				require.Empty(t, f.check.faults)
			})
		})
	}
}

// A worker's clock is its own affair.
func TestWorkersClockIsWrong(t *testing.T) {
	for _, skew := range []time.Duration{-20 * time.Hour, 20 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f := newSimFarm(t, 1, 3, 2)
			for _, m := range f.machines[3:] {
				m.setClock(skew)
			}
			_, err := f.submitAt(f.machines[0], "shot")
			require.NoError(t, err)
			f.within(2*time.Minute, "the job has ended", func() bool { return f.machines[0].coord.Numbers().OpenJobs == 0 })
			require.Zero(t, f.check.count(&f.check.expired))
			require.Less(t, apart(f.machines[0].coord.now(), time.Now()), time.Second)
			require.Empty(t, f.check.faults)
		})
	}
}
