package coord

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSchedules runs a thousand farms, each by a schedule of faults that its seed draws:
// machines are killed and stopped, links cut one way and both, slow and lossy, disks full,
// clocks wrong, the farm parted or dark, the leadership handed over, while people submit,
// cancel, give other priorities and read. Afterwards everything is mended, and what must
// hold whatever happened is looked at; see simCheck.
//
// SIM_SEED repeats one farm and SIM_LOG says what happens in it; SIM_SEEDS changes how
// many there are. A seed decides all that is drawn, but not in which order goroutines run
// at one moment: repeat a failure more than once.
func TestSchedules(t *testing.T) {
	first, n := uint64(1), uint64(1000)
	if testing.Short() {
		n = 30
	}
	number := func(name string, to *uint64) bool {
		v, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err == nil {
			*to = v
		}
		return err == nil
	}
	number("SIM_SEEDS", &n)
	if number("SIM_SEED", &first) {
		n = 1
	}
	seeds := make(chan uint64)
	go func() {
		defer close(seeds)
		for seed := first; seed < first+n; seed++ {
			seeds <- seed
		}
	}()
	var all simTally
	for i := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for seed := range seeds {
				t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { all.add(simSchedule(t, seed)) })
					if t.Failed() {
						t.Logf("repeat it with SIM_SEED=%d SIM_LOG=1 go test ./coord -run TestSchedules", seed)
					}
				})
			}
		})
	}
	t.Cleanup(func() { t.Log(all.String()) })
}

// simSchedule runs one farm.
func simSchedule(t *testing.T, seed uint64) *simFarm {
	f := newSimFarm(t, seed, 3+2*int(min(seed%4, 3)/3), 2+int(seed%2))
	ctx, end := context.WithCancel(t.Context())
	for i := range 3 {
		c := &simClient{f: f, n: i, dice: newSimDice(seed, uint64(100+i)), done: make(chan struct{})}
		f.clients = append(f.clients, c)
		go c.run(ctx)
	}
	for range 5 + f.dice.IntN(8) {
		f.pause(f.lasting(8 * time.Second))
		f.fault()
	}
	f.pause(f.lasting(10 * time.Second))
	f.healAll()
	f.logf("all is whole again")
	end()
	f.settle()
	f.check.verify()
	require.Empty(t, strings.Join(f.check.faults, "\n"))
	return f
}

// settle waits until a farm that is whole has nothing left to do.
func (f *simFarm) settle() {
	f.within(30*time.Second, "somebody leads", func() bool { return f.leader() != nil })
	for _, c := range f.clients {
		<-c.done
	}
	f.within(time.Minute, "all machines are there", func() bool { m := f.leader(); return m != nil && f.connected(m) == len(f.machines) })
	f.within(20*time.Minute, "all jobs have ended, and nobody has anything left to do", func() bool {
		m := f.leader()
		if m == nil || m.coord.Numbers().OpenJobs > 0 {
			return false
		}
		return !slices.ContainsFunc(f.machines, func(m *simMachine) bool { return !m.worker.idle() })
	})
	time.Sleep(LeaseTTL + Renewal) // whatever is still under way would end a lease or start one
	f.within(time.Minute, "all coordinators know the same", f.level)
}

// simTally is what all schedules came to.
type simTally struct {
	mu                               sync.Mutex
	farms, jobs, done, grants, again int
	expired, requests, terms         int
	faults                           map[string]int
}

func (s *simTally) add(f *simFarm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults == nil {
		s.faults = make(map[string]int)
	}
	c := f.check
	s.farms++
	s.jobs += c.jobs
	s.done += len(c.tasks)
	s.grants += c.grants
	s.again += c.late
	s.expired += c.expired
	s.requests += len(c.history.ops)
	s.terms += len(c.terms)
	for kind, n := range f.tally {
		s.faults[kind] += n
	}
}

func (s *simTally) String() string {
	var faults []string
	for _, kind := range slices.Sorted(maps.Keys(s.faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", kind, s.faults[kind]))
	}
	return fmt.Sprintf("%d farms: %d jobs, %d tasks done of %d granted, %d leases expired, %d leaderships, %d requests of clients; faults: %s",
		s.farms, s.jobs, s.done, s.grants, s.expired, s.terms, s.requests, strings.Join(faults, ", "))
}
