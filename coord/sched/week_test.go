package sched_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/lease/leasetest"
)

// shot is a job as it really is.
type shot struct {
	dice
	project string
	bytes   float64      // of the project
	load    float64      // seconds until Blender has the file open
	frames  []float64    // the time of each, in seconds, at speed 1
	fates   []fate       // of each
	crash   int32        // a frame at which Blender always crashes; 0 where there is none
	needs   lease.Memory // with which it runs out
	plain   bool         // every machine can do it
	again   bool         // its artist wanted frames to be rendered again
}

// fetching is how long a machine takes for the project.
func (sh *shot) fetching() time.Duration { return seconds(sh.bytes / network) }

// fate is what befalls the first who renders a frame.
type fate uint8

const (
	well fate = iota
	crashes
	hangs
	isSlow
)

// arrive submits jobs at random, most of them by day. work is how many seconds of
// rendering come in a second, on average.
func (f *simulated) arrive(work float64, people dice) {
	const mean = 587 * 220 // seconds of rendering in a job
	rate := work / mean * 0.5
	if h := f.now.Hour(); 8 <= h && h < 20 {
		rate *= 3
	}
	f.in(people.after(seconds(1/rate)), func() {
		if f.now.Before(f.end) {
			f.submit(false)
			f.arrive(work, people)
		}
	})
}

// submit has somebody submit a job, which anything may be; or one that every machine
// can do, and of no great hurry.
func (f *simulated) submit(plain bool) {
	n := len(f.shots)
	id, d := lease.JobID(fmt.Sprint("j", n)), f.dice("job", n)
	frames := int32(d.within(1, 5000))
	sh := shoot(d, frames)
	sh.project = "project-" + string(id)
	spec := lease.Spec{
		Name: "shot", Owner: fmt.Sprint("artist", d.IntN(12)), Project: sh.project, Blend: "a.blend", Replicas: 2,
		Frames: lease.Frames{{First: 1, Last: frames, Step: 1}}, Needs: needs(d), Tier: tier(d),
	}
	spec.Submitter = f.boxes[d.IntN(len(f.boxes)*4/10)].Peer
	spec.Output = lease.Output{Peer: spec.Submitter, Dir: "/out"}
	if d.chance(0.15) {
		spec.Chunk = max(1, int(d.within(20, 600)/sh.frames[0]))
	}
	if d.chance(0.2) {
		spec.Order = lease.Linear
	}
	if open := f.s.Open(); d.chance(0.05) && len(open) > 0 {
		spec.After = []lease.JobID{open[d.IntN(len(open))].ID}
	}
	if plain {
		spec.Needs, spec.Tier, spec.After = lease.Requirements{}, lease.Low, nil
	}
	sh.plain = !slices.ContainsFunc(f.boxes, func(b *box) bool { return len(spec.Needs.Match(b.Can)) > 0 })
	f.shots[id] = sh
	f.at[spec.Submitter].fetches[spec.Project] = f.now
	f.at[spec.Submitter].Holds[lease.ShortCID(spec.Project)] = lease.Whole
	f.must(lease.Command{Submit: &lease.Submit{Job: id, Spec: spec}})
	f.note("jobs submitted")
	f.in(sh.fetching(), func() { f.stock(id) })
	f.interfere(id)
}

// fill sees to it that there is always something to do for every machine: work is
// how many seconds of rendering must wait.
func (f *simulated) fill(work float64) {
	waits := 0.0
	for _, j := range f.s.Open() {
		if j.State != lease.JobPaused && f.shots[j.ID].plain && f.s.Awaits(j) == "" {
			waits += float64(j.Unrendered()) * f.shots[j.ID].frames[0]
		}
	}
	if f.now.Before(f.end) {
		if waits < work {
			f.submit(true)
		}
		f.in(10*time.Minute, func() { f.fill(work) })
	}
}

// stock has another machine hold a project, so that the job does not depend on its
// submitter's.
func (f *simulated) stock(id lease.JobID) {
	j, ok := f.s.Job(id)
	if !ok || j.State.Ended() {
		return
	}
	b, from := f.boxes[f.shots[id].IntN(len(f.boxes))], f.at[j.Spec.Submitter]
	if b.here && from.here && b != from {
		f.must(lease.Command{Stock: &lease.Stock{Job: id, Peer: b.Peer}})
	}
	f.in(20*time.Minute, func() { f.stock(id) })
}

func tier(d dice) lease.Tier {
	switch x := d.Float64(); {
	case x < 0.2:
		return lease.Low
	case x < 0.75:
		return lease.Normal
	case x < 0.95:
		return lease.High
	}
	return lease.Urgent
}

func needs(d dice) (r lease.Requirements) {
	r.FileVersion = lease.Version{Major: 4, Minor: 2}
	switch x := d.Float64(); {
	case x < 0.12:
		r.MinRAM = 32 << 30
	case x < 0.18:
		r.MinRAM = 96 << 30
	case x < 0.28:
		r.MinVRAM = 8 << 30
	case x < 0.34:
		r.RequireGPU, r.MinVRAM = true, 20<<30
	case x < 0.36:
		r.Labels = []string{"hair"}
	case x < 0.38:
		r.OS = "windows"
	case x < 0.41:
		r.FileVersion = lease.Version{Major: 3, Minor: 6}
	}
	return r
}

const hour = 3600. // seconds

// shoot draws how long a job's frames take, and what else only shows when it is
// rendered.
func shoot(d dice, frames int32) *shot {
	mean := d.within(0.5, 1800)
	sh := &shot{dice: d, load: 1.5 + min(mean*d.within(0.01, 0.1), 45), bytes: d.within(50e6, 5e9)}
	wave, heavy := d.Float64()*2*math.Pi, 1.0
	for i := range frames {
		if d.chance(1. / 200) { // another part of the shot begins
			heavy = d.within(0.5, 2)
		}
		took := mean * heavy * (1 + 0.3*math.Sin(wave+float64(i)/50))
		fate := well
		switch x := d.Float64(); {
		case x < took/hour/500:
			fate = hangs
		case x < took/hour/100:
			fate = crashes
		case x > 0.998:
			fate = isSlow
		}
		sh.frames, sh.fates = append(sh.frames, took), append(sh.fates, fate)
	}
	if d.chance(0.03) {
		sh.needs = lease.Memory{RAM: 48 << 30, VRAM: 10 << 30}
	}
	if d.chance(0.02) {
		sh.crash = 1 + d.Int32N(frames)
	}
	return sh
}

// interfere draws what people do about a job later.
func (f *simulated) interfere(id lease.JobID) {
	d := f.shots[id].dice
	control := func(p float64, after time.Duration, c lease.Command) {
		if d.chance(p) {
			f.in(d.after(after), func() {
				if j, ok := f.s.Job(id); ok && !j.State.Ended() {
					f.must(c)
				}
			})
		}
	}
	control(0.03, 6*time.Hour, lease.Command{Cancel: &lease.Cancel{Job: id, Reason: "by its artist"}})
	control(0.05, 4*time.Hour, lease.Command{Prioritise: &lease.Prioritise{Job: id, Tier: tier(d)}})
	if d.chance(0.03) {
		wait := d.after(2 * time.Hour)
		control(1, 0, lease.Command{Pause: &lease.Pause{Job: id}})
		f.in(wait, func() {
			if j, ok := f.s.Job(id); ok && !j.State.Ended() {
				f.must(lease.Command{Resume: &lease.Resume{Job: id}})
			}
		})
	}
}

// finished is what follows the end of a job: its attempts stop, what was kept of it
// may go, and its artist may want more.
func (f *simulated) finished(e lease.Event) {
	f.note("jobs " + e.State)
	for _, b := range f.boxes {
		for _, a := range slices.Clone(b.tries) {
			if b.here && a.Task.Job == e.Job {
				f.stop(a, "attempts that were ended")
			}
		}
		maps.DeleteFunc(b.unkept, func(_ lease.ID, r *lease.Record) bool { return r.Task.Job == e.Job })
	}
	again, sh := lease.Retry{Job: e.Job}, f.shots[e.Job]
	switch state := lease.JobState(e.State); {
	case state == lease.JobFailed && sh.chance(0.6):
	case state == lease.JobDone && sh.chance(0.03):
		again.Frames = lease.Frames{{First: 1, Last: 1 + sh.Int32N(int32(len(sh.frames))), Step: 1}}
	default:
		return
	}
	f.in(sh.after(time.Hour), func() {
		if j, ok := f.s.Job(e.Job); ok && j.State.Ended() {
			sh.crash, sh.needs = 0, lease.Memory{}
			if f.do(lease.Command{Retry: &again}) == nil { // or what it came after has failed
				sh.again = len(again.Frames) > 0
				f.note("jobs tried again")
			}
		}
	})
}

// watch looks at the whole state now and then.
func (f *simulated) watch() {
	f.in(3*time.Hour, func() {
		f.saw.Check(f.t, f.s, f.now)
		f.watch()
	})
}

// sample notes for how long jobs wait that a machine which is there could do.
func (f *simulated) sample() {
	f.in(5*time.Minute, func() {
		waits := map[lease.JobID]time.Time{}
		for _, j := range f.s.Waiting(f.now, nil) {
			if !slices.ContainsFunc(f.boxes, func(b *box) bool { return f.may(b, j) }) {
				continue
			}
			waits[j.ID] = f.now
			if since, already := f.waits[j.ID]; already {
				waits[j.ID] = since
				if d := f.now.Sub(since); d > f.longest {
					f.longest = d
				}
			}
		}
		f.waits = waits
		f.sample()
	})
}

// simulate lets a farm of so many machines live for a while, with more to do than it
// can, and then finish what it has.
func simulate(t testing.TB, seed uint64, machines int, span time.Duration) *simulated {
	f := newSimulated(t, seed)
	f.end = f.now.Add(span)
	f.furnish(machines)
	for range machines {
		f.submit(false)
	}
	f.arrive(2.2*float64(machines), f.dice("people", 0))
	f.fill(30 * time.Hour.Seconds() * float64(machines))
	for _, begin := range []func(){f.watch, f.sample, f.tick, f.forgive, f.forget, f.changeLeader} {
		begin()
	}
	f.run(f.end)
	for _, b := range f.boxes {
		f.account(b)
	}
	for day := 0; len(f.s.Open()) > 0; day++ {
		require.Less(t, day, 100, "jobs do not end")
		f.run(f.now.Add(24 * time.Hour))
	}
	for _, j := range f.s.Jobs() {
		if j.State == lease.JobDone {
			require.Equal(t, len(j.Frames), f.saw.Accepted(j.ID))
		}
	}
	require.Zero(t, f.saw.Live())
	return f
}

// artistsLoading is what loading is called where an artist chose the chunks: nobody
// could do with less.
const artistsLoading = "loading for chunks that artists chose"

// utilisation is what part of the best possible the farm made of its time. The best
// possible is that every second in which a slot was there and had something to do,
// which is that it was at work or a task waited that it could do, goes into frames that
// count, and into loading the scene once for each chunk that an artist chose. That is
// none for what the farm chooses itself: to load a scene, to fetch a project, to render
// what is lost with a machine, hangs, crashes, is cancelled or was rendered elsewhere
// first all count against it.
func (f *simulated) utilisation() float64 { return (f.useful + f.spent[artistsLoading]) / f.busy }

// report tells what became of the farm's time.
func (f *simulated) report() {
	f.t.Logf("%.0f hours of slots at work, and %.2f %% as many in which nothing waited that they could do", f.busy/3600, 100*f.idle/f.busy)
	f.t.Logf("%6.2f %%  rendering of frames that count", 100*f.useful/f.busy)
	for _, on := range slices.Sorted(maps.Keys(f.spent)) {
		f.t.Logf("%6.2f %%  %s", 100*f.spent[on]/f.busy, on)
	}
	for _, what := range slices.Sorted(maps.Keys(f.events)) {
		f.t.Logf("%7d  %s", f.events[what], what)
	}
	f.t.Logf("%7d  grants, for which a job waited %v at most", f.grants, f.longest)
}

// TestWeek is a week of a farm of a hundred machines that come and go, break down and
// hang, with jobs of all kinds and people who change their minds.
func TestWeek(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine")
	}
	machines, span := 100, 7*24*time.Hour
	f := simulate(t, 1, machines, span)
	f.report()
	t.Attr("utilisation", fmt.Sprintf("%.2f %% of the best possible", 100*f.utilisation()))
	if !testing.Short() { // a day of few machines hangs on single jobs
		require.GreaterOrEqual(t, f.utilisation(), 0.95)
	}
}

// A seed gives the same week each time.
func TestWeekFollowsFromItsSeed(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine")
	}
	for seed := range uint64(2) {
		a, b := simulate(t, seed, 8, 12*time.Hour), simulate(t, seed, 8, 12*time.Hour)
		require.Equal(t, a.tally, b.tally)
		leasetest.Same(t, leasetest.Bytes(t, a.s.Freeze()), leasetest.Bytes(t, b.s.Freeze()), "another week")
	}
}

var benched uint64

// BenchmarkWeek is a week of its own each time.
func BenchmarkWeek(b *testing.B) {
	for b.Loop() {
		benched++
		f := simulate(b, benched, 100, 7*24*time.Hour)
		f.report()
		b.ReportMetric((f.useful+f.spent[artistsLoading])/3600, "useful-h")
		b.ReportMetric(f.busy/3600, "possible-h")
		b.ReportMetric(f.longest.Hours(), "longest-wait-h")
	}
}
