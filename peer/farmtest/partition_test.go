package farmtest

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func notShort(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: farms of six machines for many minutes take their time under the race detector")
	}
}

// idleCoordinators keeps the first machines from rendering.
func idleCoordinators(n int) func(int, *lease.Capability) {
	return func(i int, can *lease.Capability) {
		if i < n {
			can.Slots = 0
		}
	}
}

// single has one frame in each task.
func single(s *httpapi.Submission) { s.Chunk, s.Order = 1, lease.Linear }

// attempts lists the attempts at all tasks of a job.
func (f *Farm) attempts(id lease.JobID) (out []lease.Attempt) {
	f.t.Helper()
	tasks, err := f.Led(10*time.Second).Queue().Tasks(f.t.Context(), Admin, id)
	require.NoError(f.t, err)
	for _, task := range tasks {
		out = append(out, task.Attempts...)
	}
	return out
}

// rendered counts how often each frame was rendered, on all machines.
func (f *Farm) rendered() map[int32]int {
	count := make(map[int32]int)
	for _, m := range f.Peers {
		for frame, n := range m.Blender.Rendered() {
			count[frame] += n
		}
	}
	return count
}

// busy waits until so many tasks of a job are leased.
func (f *Farm) busy(id lease.JobID, n int) {
	f.t.Helper()
	f.Within(time.Minute, "all are rendering", func() bool { return f.Job(id).Tasks.Leased == n })
}

// Whichever coordinator dies while frames that take longer than a lease's TTL are being
// rendered, no attempt is lost, none is made twice, and no lease expires.
func TestWorkersOutliveTheirLeader(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 3, idleCoordinators(3))
		f.Vote(3)
		for _, m := range f.Peers {
			m.Blender.PerFrame = 40 * time.Second
		}
		id := f.Submit(f.Peers[3], "1-9", single)
		for round := range 3 {
			f.busy(id, 3)
			time.Sleep(10 * time.Second)
			dead := f.Led(0)
			dead.Crash()
			f.Led(10 * time.Second)
			f.Within(2*time.Minute, "what was being rendered is there", func() bool { return f.Job(id).FramesDone == 3*(round+1) })
			dead.Start()
			f.Online(6)
		}
		f.Await(id, lease.JobDone, 5*time.Minute)
		all := f.attempts(id)
		require.Len(t, all, 9, "one for each task")
		for _, a := range all {
			require.Equal(t, lease.OutcomeRendered, a.Outcome)
		}
		for frame, n := range f.rendered() {
			require.Equal(t, 1, n, "frame %d", frame)
		}
	})
}

// Workers find whoever leads: those that were started while nobody did, and one that
// knows the address of a coordinator alone that is gone for good.
func TestWorkersFindTheNextLeader(t *testing.T) {
	notShort(t)
	synctest.Test(t, func(t *testing.T) {
		f := NewOf(t, 3, 2, idleCoordinators(3))
		f.Vote(3)
		early, stray := f.Peers[3], f.Peers[4]
		early.Stop()
		stray.Stop()
		remembers(t, stray, f.Peers[0])
		for _, m := range f.Peers[:3] {
			m.Crash()
		}
		early.Start()
		time.Sleep(10 * time.Minute)
		l := early.Local().Status(t.Context()).Leaderless
		require.NotNil(t, l)
		require.Contains(t, l.Text, "no coordinator can be reached for 10m0s: tried ")
		require.Len(t, l.Tried, 3)
		// The founder never comes back.
		f.Peers[1].Start()
		f.Peers[2].Start()
		stray.Start()
		f.Led(15 * time.Second)
		f.Online(4)
		require.Nil(t, early.Local().Status(t.Context()).Leaderless)
		f.Await(f.Submit(early, "1-4", single), lease.JobDone, time.Minute)
	})
}

// The smaller side of a farm that is cut in two finishes what it holds, takes nothing new,
// and says so; the larger goes on. What the smaller rendered counts once they are one
// again, and nothing is rendered twice but what expired.
func TestSmallerSideOfACut(t *testing.T) {
	notShort(t)
	for _, c := range []struct {
		name  string
		leads bool // the coordinator on the smaller side
		cut   time.Duration
	}{
		{"the leader, for a while", true, 2 * time.Minute},
		{"another coordinator, for less than a lease", false, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := NewOf(t, 3, 4, idleCoordinators(3), func(i int, can *lease.Capability) {
					if i == 3 {
						can.Labels = []string{"special"}
					}
				})
				f.Vote(3)
				for _, m := range f.Peers {
					m.Blender.PerFrame = 20 * time.Second
				}
				leader := f.Led(0)
				lone := leader
				if !c.leads {
					lone = f.Peers[(slices.Index(f.Peers, leader)+1)%3]
				}
				small := []*Member{lone, f.Peers[3], f.Peers[4]}
				var large []*Member
				for _, m := range f.Peers {
					if !slices.Contains(small, m) {
						large = append(large, m)
					}
				}
				// Only one machine, on the smaller side, can render the first.
				only := f.Submit(f.Peers[5], "101", single, func(s *httpapi.Submission) { s.Needs.Labels = []string{"special"} })
				f.busy(only, 1)
				id := f.Submit(f.Peers[5], "1-16", single)
				f.busy(id, 3)
				for _, m := range small {
					f.Sever(m, large...)
				}
				began := time.Now()
				if c.cut > time.Minute {
					f.Within(time.Minute, "the cut-off coordinator knows", func() bool {
						l := lone.Local().Status(t.Context()).Leaderless
						return l != nil && strings.Contains(l.Text, "this coordinator reaches 1 of 3 voters, itself included: it cannot lead")
					})
					require.False(t, lone.Leads())
					for _, m := range small[1:] {
						l := m.Local().Status(t.Context()).Leaderless
						require.NotNil(t, l)
						require.Contains(t, l.Meanwhile, "it takes nothing new")
						require.Contains(t, l.Meanwhile, "it keeps 1 finished frame until somebody wants them")
					}
				}
				time.Sleep(time.Until(began.Add(c.cut)))
				before := f.rendered()
				f.Heal()
				if c.cut > time.Minute {
					for _, m := range small[1:] {
						require.Len(t, m.Blender.Rendered(), 1, "nothing new was taken")
					}
					require.Greater(t, len(before), 6, "the larger side went on")
					// Sooner than anybody could render it again.
					f.Within(19*time.Second, "what was rendered meanwhile counts", func() bool { return f.Job(only).Frames[0].CID != "" })
				}
				f.Await(id, lease.JobDone, 10*time.Minute)
				f.Await(only, lease.JobDone, 10*time.Minute)
				expired := 0
				for _, a := range append(f.attempts(id), f.attempts(only)...) {
					require.Contains(t, []lease.Outcome{lease.OutcomeRendered, lease.OutcomeExpired}, a.Outcome)
					if a.Outcome == lease.OutcomeExpired {
						expired++
					}
				}
				twice := 0
				for frame, n := range f.rendered() {
					require.LessOrEqual(t, n, 2, "frame %d", frame)
					twice += n - 1
				}
				if c.cut < coord.LeaseTTL {
					require.Zero(t, expired)
				} else {
					require.LessOrEqual(t, expired, 2)
				}
				require.LessOrEqual(t, twice, expired)
				t.Logf("%d leases expired, %d frames were rendered twice", expired, twice)
			})
		})
	}
}
