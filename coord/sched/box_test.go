package sched_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// What machines do, as package peer does it.
const (
	order   = 20 * time.Millisecond // from a grant to the start of the attempt
	giveUp  = 24 * time.Hour        // a frame that hangs
	network = 80e6                  // bytes of a project that a machine fetches in a second
)

// box is a machine as it really is.
type box struct {
	sched.Machine
	dice
	speeds map[lease.Device]float64 // really
	here   bool                     // connected to the leader
	broken bool                     // every attempt fails
	tries  []*try
	// granted are the leases that the leader counts against its slots.
	granted map[lease.ID]lease.Device
	unkept  map[lease.ID]*lease.Record // what it rendered and others may not hold
	fetches map[string]time.Time       // when a project will be there
	slots   int
	since   time.Time // its slots were counted
	left    int       // tells the times that it left apart
}

// try is an attempt as it really goes.
type try struct {
	lease.Report
	b      *box
	device lease.Device
	shot   *shot
	fixed  bool    // the artist chose the chunk
	frames []int32 // not rendered yet
	silent bool    // the machine has forgotten it
	over   bool
	doing  string // what its time goes into
	began  time.Time
	heard  time.Time // the leader had its last frame, or granted it
	first  bool      // it had none
}

// furnish makes the machines: workstations, render nodes with and without GPUs, and
// what is old.
func (f *simulated) furnish(n int) {
	build := func(major, minor int) lease.Build {
		return lease.Build{Name: "Blender", Version: lease.Version{Major: major, Minor: minor}}
	}
	card := func(vram int64) lease.GPU {
		g := gpu(vram)
		g.Backends = []lease.Backend{lease.CUDA, lease.OptiX}
		return g
	}
	for i := range n {
		b := &box{dice: f.dice("machine", i), here: true, granted: map[lease.ID]lease.Device{}, unkept: map[lease.ID]*lease.Record{}, fetches: map[string]time.Time{}, since: f.now}
		can := lease.Capability{OS: "linux", Slots: 1, RAM: 32 << 30, Cores: 16, FreeDisk: 1 << 40, Backends: []lease.Backend{lease.CPU}, Builds: []lease.Build{build(4, 2)}}
		cpu, one := 0.5, 1.5
		switch kind := i * 10 / n; {
		case kind < 4:
			can.GPUs = []lease.GPU{card(8 + 4*b.Int64N(2))}
		case kind < 7:
			can.Slots, can.RAM, can.Cores, cpu = 2, 64<<30, 64, 0.8
		case kind < 9:
			can.Slots, can.RAM, can.Cores, cpu = 2, 128<<30, 64, 0.8
			can.GPUs, one = slices.Repeat([]lease.GPU{card(24)}, 1+b.IntN(3)), 2.5
		default:
			can.RAM, can.Cores, cpu = 8<<30, 4, 0.3
		}
		if i%2 == 0 {
			can.Builds = append(can.Builds, build(3, 6))
		}
		if i%10 == 3 {
			can.OS = "windows"
		}
		if i%12 == 5 {
			can.Labels = []string{"hair"}
		}
		b.Peer, b.Can, b.Holds, b.Speeds = authz.PeerID(fmt.Sprintf("m%02d", i)), can, map[string]int{}, map[lease.Device]float64{}
		b.slots, b.speeds = can.TotalSlots(), map[lease.Device]float64{lease.CPUDevice: cpu * b.within(0.8, 1.25)}
		for g := range can.GPUs {
			b.speeds[lease.GPUDevice(g)] = one * b.within(0.8, 1.25)
		}
		f.boxes, f.at[b.Peer] = append(f.boxes, b), b
		f.live(b)
		f.breakdown(b)
	}
}

// start begins an attempt on its machine.
func (f *simulated) start(a *try) {
	f.account(a.b)
	a.b.tries = append(a.b.tries, a)
	if a.silent = a.shot.chance(1. / 5000); a.silent {
		a.doing, a.began = "attempts that machines forgot", f.now
		f.in(leaseTTL, func() {
			if !a.over && a.b.granted[a.Lease] != "" {
				f.note("leases expired")
				f.must(lease.Command{Expire: &lease.Expire{Lease: a.Lease, Task: a.Task}})
			}
		})
		return
	}
	ready := f.fetch(a.b, a.shot)
	f.step(a, "orders and projects on their way", max(0, ready.Sub(f.now))+order, func() { f.load(a) })
}

// step has an attempt do something for a while, unless it is stopped meanwhile.
func (f *simulated) step(a *try, doing string, d time.Duration, then func()) {
	a.doing, a.began = doing, f.now
	f.in(d, func() {
		if !a.over {
			f.spend(doing, a.began)
			a.began = f.now
			then()
		}
	})
}

func (f *simulated) load(a *try) {
	doing := "loading"
	if a.fixed {
		doing = artistsLoading
	}
	f.step(a, doing, seconds(a.shot.load*a.shot.within(0.8, 1.25)), func() {
		switch {
		case a.b.broken:
			f.fail(a, lease.Fail{Reason: "Blender crashed", Kind: lease.FailCrash})
		case !lease.Requirements{}.Serves(a.b.Can, a.device, a.shot.needs):
			f.fail(a, lease.Fail{Reason: "out of memory", Kind: lease.FailMemory, Had: a.b.Can.Memory(a.device)})
		case a.shot.chance(1. / 3000):
			f.fail(a, lease.Fail{Reason: "the disk is full", Kind: lease.FailMachine})
		case a.shot.chance(1. / 2000):
			f.quit(a, lease.Command{Release: &lease.Release{Report: a.Report, Reason: "its artist needs it"}})
		default:
			f.render(a)
		}
	})
}

// render does an attempt's next frame.
func (f *simulated) render(a *try) {
	if len(a.frames) == 0 {
		f.complete(a)
		return
	}
	at := a.frames[0] - 1
	d := seconds(a.shot.frames[at] / a.b.speeds[a.device] * a.shot.within(0.9, 1/0.9))
	fate := a.shot.fates[at]
	a.shot.fates[at] = well
	switch {
	case a.frames[0] == a.shot.crash, fate == crashes:
		f.step(a, "frames that crashed", d/2, func() { f.fail(a, lease.Fail{Reason: "Blender crashed", Kind: lease.FailCrash}) })
		return
	case fate == hangs:
		f.note("frames that hung")
		f.step(a, "frames that hung", giveUp, func() { f.fail(a, lease.Fail{Reason: "Blender hangs", Kind: lease.FailTimeout}) })
		return
	case fate == isSlow:
		d = seconds(d.Seconds() * a.shot.within(2, 6))
	}
	f.step(a, "rendering", d, func() { f.rendered(a, d) })
}

// rendered reports a frame as soon as somebody hears.
func (f *simulated) rendered(a *try, took time.Duration) {
	f.count++
	r := lease.Result{Frame: a.frames[0], CID: fmt.Sprint("c", f.count), Name: fmt.Sprintf("%04d.png", a.frames[0]), Size: 1, Seconds: took.Seconds()}
	a.frames = a.frames[1:]
	if a.b.unkept[a.Lease] == nil {
		a.b.unkept[a.Lease] = &lease.Record{Report: a.Report}
	}
	kept := a.b.unkept[a.Lease]
	kept.Frames = append(kept.Frames, r)
	if a.b.here {
		f.late(lease.Command{Record: &lease.Record{Report: a.Report, Frames: []lease.Result{r}, Machines: f.present()}}, a.b.granted[a.Lease] != "")
	}
	if !a.over {
		f.render(a)
	}
}

// late does what may come too late, unless it is known to be in time.
func (f *simulated) late(c lease.Command, inTime bool) {
	if err := f.do(c); err != nil {
		require.False(f.t, inTime, err)
		require.True(f.t, errors.Is(err, lease.ErrStale) || errors.Is(err, lease.ErrEnded) || errors.Is(err, lease.ErrUnknownJob), err)
	}
}

func (f *simulated) complete(a *try) {
	if !a.b.here {
		f.stop(a, "")
		return
	}
	f.quit(a, lease.Command{Complete: &lease.Complete{Report: a.Report, Machines: f.present()}})
}

func (f *simulated) fail(a *try, how lease.Fail) {
	f.note("failures: " + how.Reason)
	if !a.b.here {
		f.stop(a, "")
		return
	}
	how.Report = a.Report
	if j, ok := f.s.Job(a.Task.Job); ok {
		above := j.Above.More(how.Had)
		for _, b := range f.boxes {
			if b != a.b && f.may(b, j) && j.Spec.Needs.ServedBy(b.Can, above) {
				how.Others++
			}
		}
	}
	f.quit(a, lease.Command{Fail: &how})
}

// quit ends an attempt by its machine's own word.
func (f *simulated) quit(a *try, c lease.Command) {
	f.late(c, a.b.granted[a.Lease] != "")
	f.stop(a, "")
}

// stop stops an attempt on its machine; what it did last was in vain, where why says
// why.
func (f *simulated) stop(a *try, why string) {
	if a.over {
		return
	}
	a.over = true
	if why != "" {
		if a.doing != "rendering" {
			why = a.doing
		}
		f.spend(why, a.began)
	}
	f.account(a.b)
	a.b.tries = slices.DeleteFunc(a.b.tries, func(o *try) bool { return o == a })
}

// account counts a machine's slots up to now.
func (f *simulated) account(b *box) {
	d := f.past(b.since)
	b.since = f.now
	f.busy += d * float64(len(b.tries))
	if b.here && !f.drained[b] {
		f.idle += d * float64(b.slots-len(b.tries))
	}
}

// leave cuts a machine off; off tells that it also lost its power.
func (f *simulated) leave(b *box, off bool, d time.Duration) {
	f.account(b)
	b.here = false
	if off {
		for _, a := range slices.Clone(b.tries) {
			f.stop(a, "machines that died")
		}
	}
	b.left++
	left := b.left
	f.in(leaseTTL, func() {
		if !b.here && b.left == left {
			f.note("machines lost")
			f.must(lease.Command{Lose: &lease.Lose{Peer: b.Peer, Machines: f.present()}})
		}
	})
	f.in(d, func() { f.join(b) })
}

// join has a machine come back and offer what it has.
func (f *simulated) join(b *box) {
	f.account(b)
	b.here, f.due = true, true
	for _, id := range slices.Sorted(maps.Keys(b.unkept)) {
		if r := b.unkept[id]; r != nil { // or it was kept meanwhile
			f.late(lease.Command{Record: &lease.Record{Report: r.Report, Frames: r.Frames, Machines: f.present()}}, false)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.granted)) {
		switch a := f.tries[id]; {
		case a == nil:
		case a.over && len(a.frames) == 0: // it ended meanwhile
			f.late(lease.Command{Complete: &lease.Complete{Report: a.Report, Machines: f.present()}}, true)
		case a.over || a.silent:
			f.must(lease.Command{Release: &lease.Release{Report: a.Report, Reason: "the machine was restarted"}})
		}
	}
	for _, a := range slices.Clone(b.tries) {
		j, task, err := f.s.Task(a.Task)
		if b.granted[a.Lease] == "" && (err != nil || j.State.Ended() || task.State != lease.TaskQueued) {
			f.stop(a, "attempts that were ended")
		}
	}
	f.live(b)
}

// fetch tells when a machine has a project.
func (f *simulated) fetch(b *box, sh *shot) time.Time {
	ready, under := b.fetches[sh.project]
	if !under {
		ready = f.now.Add(sh.fetching())
		b.fetches[sh.project] = ready
		f.in(ready.Sub(f.now), func() { b.Holds[lease.ShortCID(sh.project)] = lease.Whole })
	}
	return ready
}

// live draws what happens to a machine next.
func (f *simulated) live(b *box) {
	f.in(b.after(30*time.Hour), func() {
		switch x := b.Float64(); {
		case x < 0.5:
			f.leave(b, true, b.after(time.Hour))
		case x < 0.6:
			f.leave(b, true, seconds(b.within(1, 14))) // it is restarted
		default:
			f.leave(b, false, b.after(2*time.Minute))
		}
	})
}

// breakdown has a machine fail whatever it is given, until somebody repairs it.
func (f *simulated) breakdown(b *box) {
	f.in(b.after(1000*time.Hour), func() {
		b.broken = true
		f.in(b.after(6*time.Hour), func() {
			b.broken = false
			f.must(lease.Command{Drain: &lease.Drain{Peer: b.Peer}})
			f.breakdown(b)
		})
	})
}
