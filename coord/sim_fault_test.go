package coord

import (
	"time"
)

// some draws a machine.
func (f *simFarm) some(of []*simMachine) *simMachine { return of[f.dice.IntN(len(of))] }

// lasting draws how long a fault lasts.
func (f *simFarm) lasting(most time.Duration) time.Duration {
	return 200*time.Millisecond + time.Duration(f.dice.Int64N(int64(most)))
}

// fault makes something happen to the farm, for a while that ends by itself or with
// healAll: what the network, the power and the users of a farm do to it.
func (f *simFarm) fault() {
	switch k := f.dice.IntN(100); {
	case k < 18:
		f.killed(f.some(f.machines))
	case k < 28:
		if m := f.leader(); m != nil {
			f.killed(m)
		}
	case k < 38:
		f.stopped(f.some(f.machines))
	case k < 44:
		if m := f.leader(); m != nil {
			f.stopped(m)
		}
	case k < 50:
		f.alone(f.some(f.machines))
	case k < 58:
		f.cut(f.some(f.machines), f.some(f.machines), f.dice.IntN(2) == 0)
	case k < 64:
		f.parted()
	case k < 70:
		f.slow(time.Duration(20+f.dice.IntN(400))*time.Millisecond, 0)
	case k < 76:
		f.slow(0, 5+f.dice.IntN(40))
	case k < 84:
		f.filled(f.some(f.machines))
	case k < 88:
		f.blackout()
	case k < 94:
		if m := f.leader(); m != nil {
			f.tally["hand over"]++
			c := m.coord
			go func() { _ = c.log().StepDown() }()
		}
	default:
		f.clock(f.some(f.machines))
	}
}

// later ends a fault after a while, unless all are ended before.
func (f *simFarm) later(d time.Duration) {
	n := f.faults
	f.ends = append(f.ends, simEnd{time.Now().Add(d), n})
}

// simEnd is when a fault ends.
type simEnd struct {
	at    time.Time
	fault int
}

// pause lets time pass, in which faults end.
func (f *simFarm) pause(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		next, which := end, -1
		for i, e := range f.ends {
			if e.at.Before(next) {
				next, which = e.at, i
			}
		}
		time.Sleep(time.Until(next))
		if which >= 0 {
			if heal := f.heal[f.ends[which].fault]; heal != nil {
				heal()
			}
			f.ends = append(f.ends[:which], f.ends[which+1:]...)
		}
	}
}

// killed kills a machine's process with -9; it is started again some time later.
func (f *simFarm) killed(m *simMachine) {
	if !m.runs() {
		return
	}
	m.kill(f.dice.IntN(2) == 0)
	f.trouble("kill", m.start, m)
	f.later(f.lasting(40 * time.Second))
}

// blackout kills all processes at once; each is started again by itself.
func (f *simFarm) blackout() {
	for _, m := range f.machines {
		if m.runs() {
			m.kill(true)
			f.trouble("blackout", m.start, m)
			f.later(f.lasting(20 * time.Second))
		}
	}
}

// stopped stops a machine as SIGSTOP does: it sends, answers and writes nothing. Its
// coordinator's own timers go on, which a stopped process's do not.
func (f *simFarm) stopped(m *simMachine) {
	if !m.runs() {
		return
	}
	m.mu.Lock()
	if m.stopped != nil {
		m.mu.Unlock()
		return
	}
	stopped := make(chan struct{})
	m.stopped = stopped
	m.mu.Unlock()
	heals := []func(){m.disk.freeze()}
	for _, o := range f.machines {
		if o != m {
			heals = append(heals, f.net.cut(m.peer, o.peer), f.net.cut(o.peer, m.peer))
		}
	}
	f.trouble("stop", func() {
		for _, heal := range heals {
			heal()
		}
		m.mu.Lock()
		if m.stopped == stopped {
			close(stopped)
			m.stopped = nil
		}
		m.mu.Unlock()
	}, m)
	f.later(f.lasting(40 * time.Second))
}

// cut cuts the link between two machines, one way or both.
func (f *simFarm) cut(a, b *simMachine, both bool) {
	if a == b {
		return
	}
	heals := []func(){f.net.cut(a.peer, b.peer)}
	kind := "cut one way"
	if both {
		kind = "cut"
		heals = append(heals, f.net.cut(b.peer, a.peer))
	}
	f.trouble(kind, func() {
		for _, heal := range heals {
			heal()
		}
	}, a, b)
	f.later(f.lasting(40 * time.Second))
}

// alone cuts a machine off from all others, for so long that its leases run out.
func (f *simFarm) alone(m *simMachine) {
	f.part(map[*simMachine]bool{m: true}, true)
	f.later(LeaseTTL + f.lasting(25*time.Second))
}

// parted cuts the farm in two, one way or both.
func (f *simFarm) parted() {
	side := make(map[*simMachine]bool)
	for _, m := range f.machines {
		side[m] = f.dice.IntN(3) == 0
	}
	f.part(side, f.dice.IntN(3) > 0)
	f.later(f.lasting(40 * time.Second))
}

// part cuts all links from those on one side to the others, and back where both is true.
func (f *simFarm) part(side map[*simMachine]bool, both bool) {
	var heals []func()
	var minor []*simMachine
	for _, a := range f.machines {
		if side[a] {
			minor = append(minor, a)
		}
		for _, b := range f.machines {
			if side[a] != side[b] && (both || side[a]) {
				heals = append(heals, f.net.cut(a.peer, b.peer))
			}
		}
	}
	kind := "partition"
	if !both {
		kind = "partition one way"
	}
	f.trouble(kind, func() {
		for _, heal := range heals {
			heal()
		}
	}, f.machines...)
	f.logf("%v are on one side", names(minor))
}

// slow makes all links of a machine slow or lossy.
func (f *simFarm) slow(delay time.Duration, loss int) {
	m := f.some(f.machines)
	var heals []func()
	for _, o := range f.machines {
		if o != m {
			heals = append(heals, f.net.worsen(m.peer, o.peer, delay, loss), f.net.worsen(o.peer, m.peer, delay, loss))
		}
	}
	kind := "delay"
	if loss > 0 {
		kind = "loss"
	}
	f.trouble(kind, func() {
		for _, heal := range heals {
			heal()
		}
	}, m)
	f.later(f.lasting(30 * time.Second))
}

// filled fills a machine's disk.
func (f *simFarm) filled(m *simMachine) {
	set := func(full bool) {
		m.disk.setFull(full)
		m.mu.Lock()
		m.full = full
		m.mu.Unlock()
	}
	set(true)
	f.trouble("full disk", func() { set(false) }, m)
	f.later(f.lasting(20 * time.Second))
}

// clock sets a machine's clock to another time, minutes to days away.
func (f *simFarm) clock(m *simMachine) {
	skew := []time.Duration{2 * time.Minute, 3 * time.Hour, 25 * time.Hour, 20 * 24 * time.Hour}[f.dice.IntN(4)]
	if f.dice.IntN(2) == 0 {
		skew = -skew
	}
	m.setClock(skew)
	f.tally["clock"]++
	f.logf("the clock of %d is off by %s", m.n, skew)
}
