// Package sched decides which task goes to which machine. It is pure: it reads
// the queue and a list of machines and answers with placements; the leader turns
// those into grants.
//
// It promises that what is stuck is tried elsewhere before all else; that jobs are
// served in the order given, which is the queue's; that a
// task is placed only on a machine that meets all of its job's
// requirements, and whose vizpeer knows all that the job asks for; that of the
// machines that do, the smallest is taken, so that
// large GPUs stay free for who needs them; that among machines that are as small,
// the one that holds most of the job's project is taken, then the one that is
// expected to be the fastest; and that no machine stays free while a task that it
// could do waits.
//
// It keeps nothing from one call to the next.
package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Machine is one machine that can be given work now.
type Machine struct {
	Peer authz.PeerID
	Can  lease.Capability
	Free []lease.Device // for each slot without a lease, what it renders on
	// Holds tells how many eighths of a project are there already, by
	// [lease.ShortCID].
	Holds map[string]int
	// NoRoom lists the jobs whose projects its store could not take when it tried.
	NoRoom map[lease.JobID]bool
	// Resting lists the jobs that it handed back a moment ago.
	Resting []lease.JobID
	// Speeds tells, by device, how many times as fast as the others it rendered what
	// they all did; nothing where nobody knows.
	Speeds map[lease.Device]float64
}

// Lacks lists what m lacks of what j needs. A project that it holds needs no room
// a second time.
func (m Machine) Lacks(j *lease.Job) []lease.Lack { return m.lacks(j, lease.ShortCID(j.Spec.Project)) }

// couldDo tells whether m meets what jobs of j's kind need, if their projects took no
// room.
func (m Machine) couldDo(j *lease.Job) bool { return len(m.meets(j, j.Spec.Needs.Anywhere())) == 0 }

func (m Machine) lacks(j *lease.Job, project string) []lease.Lack {
	needs := j.Spec.Needs
	if m.Holds[project] == lease.Whole {
		needs = needs.Holding()
	}
	lacks := m.meets(j, needs)
	if len(lacks) == 0 && m.NoRoom[j.ID] {
		lacks = append(lacks, lease.Lack{Need: "room for the project", Has: "less than that, as it found when it tried"})
	}
	return lacks
}

// meets lists what m lacks of needs, and of what the job was found to need.
func (m Machine) meets(j *lease.Job, needs lease.Requirements) []lease.Lack {
	lacks := needs.Match(m.Can)
	if knows := m.Can.Knows(); knows < j.Level() {
		lacks = append(lacks, lease.Lack{
			Need: fmt.Sprintf("a vizpeer of level %d", j.Level()), Has: fmt.Sprintf("one of level %d (%s)", knows, cmp.Or(m.Can.Version, "of no version")), Next: "update it",
		})
	}
	if len(lacks) == 0 && !j.Spec.Needs.ServedBy(m.Can, j.Above) {
		var need, has []string
		if ram := j.Above.RAM; ram > 0 {
			need, has = append(need, "more RAM than "+lease.Gigabytes(ram)), append(has, lease.Gigabytes(m.Can.RAM)+" RAM")
		}
		if ram := j.Above.VRAM; ram > 0 {
			need, has = append(need, "a GPU with more than "+lease.Gigabytes(ram)), append(has, lease.Gigabytes(m.Can.VRAM())+" VRAM")
		}
		lacks = append(lacks, lease.Lack{Need: strings.Join(need, ", or ") + " (with that it ran out of memory)", Has: strings.Join(has, " and ")})
	}
	return lacks
}

// Placement is a task and the machine that should try it.
type Placement struct {
	Task   lease.TaskID
	Peer   authz.PeerID
	Device lease.Device // what of the machine it is for
	// Frames is how many of the frames that are left of the task; 0 for all.
	Frames int32
	// Units does the same of a part of a frame.
	Units int32
	// Second tells that another machine has the task already, and is stuck.
	Second bool
}

// Place fills the machines' free slots. jobs must be in the order of service, as
// [lease.State.Waiting] lists them; stuck are tasks of theirs that [Stuck] found. It
// changes no argument. Its cost grows with the number of jobs and machines, not with
// the number of tasks.
func Place(jobs []*lease.Job, machines []Machine, stuck map[lease.JobID][]int32) []Placement {
	free := slices.DeleteFunc(slices.Clone(machines), func(m Machine) bool { return len(m.Free) == 0 || m.Can.Draining })
	for i := range free {
		free[i].Free = slices.Clone(free[i].Free)
	}
	slices.SortFunc(free, smallestFirst)
	var placed []Placement
	// What is stuck has a slot and makes nothing of it: to give it another one takes
	// none away from those who are served first.
	for _, j := range jobs {
		if len(stuck[j.ID]) > 0 && len(free) > 0 {
			r := newRound(j, free)
			for _, i := range stuck[j.ID] {
				r.second(i)
			}
			placed = append(placed, r.placed...)
			free = slices.DeleteFunc(free, func(m Machine) bool { return len(m.Free) == 0 })
		}
	}
	hopeless := make(map[string]bool) // kinds of jobs that no free machine can do
	for _, j := range jobs {
		if len(free) == 0 {
			break
		}
		if hopeless[j.Kind()] {
			continue
		}
		r := newRound(j, free)
		if len(r.fit) == 0 {
			hopeless[j.Kind()] = !slices.ContainsFunc(free, func(m Machine) bool { return m.couldDo(j) })
		}
		if r.slots > 0 {
			for _, i := range j.Next(r.slots) {
				r.task(i)
			}
		}
		placed = append(placed, r.placed...)
		free = slices.DeleteFunc(free, func(m Machine) bool { return len(m.Free) == 0 })
	}
	return placed
}

// round is the placing of one job.
type round struct {
	j      *lease.Job
	fit    []*Machine // those with a free slot that may have it, the best first
	slots  int        // how many free slots of theirs are of use
	rate   float64    // frames a second of all slots that render the job or may do so
	placed []Placement
}

func newRound(j *lease.Job, free []Machine) *round {
	r := &round{j: j}
	project, local := lease.ShortCID(j.Spec.Project), false
	for i := range free {
		m := &free[i]
		if j.KeptOff(m.Peer) || slices.Contains(m.Resting, j.ID) || len(m.lacks(j, project)) > 0 {
			continue
		}
		slots := r.slots
		for _, d := range m.Free {
			if j.Spec.Needs.Serves(m.Can, d, j.Above) {
				r.slots++
				r.rate += 1 / m.seconds(j, d)
			}
		}
		if r.slots > slots {
			r.fit = append(r.fit, m)
			local = local || m.Holds[project] > 0
		}
	}
	if len(r.fit) == 0 {
		return r
	}
	if measured := j.MeanPace().Frames() > 0; local || measured {
		slices.SortStableFunc(r.fit, func(a, b *Machine) int {
			c := cmp.Or(bySize(*a, *b), cmp.Compare(b.Holds[project], a.Holds[project]))
			if c == 0 && measured {
				c = cmp.Compare(a.seconds(j, a.best(j)), b.seconds(j, b.best(j)))
			}
			return c
		})
	}
	if j.Spec.Adaptive() {
		var taken int64 // frames in a million seconds: fractions give another sum in another order
		for h, n := range j.Hands() {
			taken += int64(1e6 * float64(n) / (Machine{Peer: h.Peer}).seconds(j, h.Device))
		}
		r.rate += float64(taken) / 1e6
	}
	return r
}

// task places a task that waits, on several machines where the farm chooses how many
// frames each gets.
func (r *round) task(i int32) {
	t := &r.j.Tasks[i]
	for left := r.j.Left(t); left > 0 && len(r.fit) > 0; {
		m := choose(r.fit, t)
		p := Placement{Task: lease.TaskID{Job: r.j.ID, Index: i}, Peer: m.Peer, Device: m.best(r.j)}
		if t.Part() {
			p.Units = min(left, chunk(r.j, m, p.Device, r.rate, left))
			left -= p.Units
		} else if r.j.Spec.Adaptive() && !r.j.Splits() {
			p.Frames = min(left, chunk(r.j, m, p.Device, r.rate, left))
			left -= p.Frames
		} else {
			left = 0
		}
		r.take(m, p)
	}
}

// second places a task that is stuck on a machine that does not have it.
func (r *round) second(i int32) {
	t := &r.j.Tasks[i]
	others := slices.DeleteFunc(slices.Clone(r.fit), func(m *Machine) bool {
		return slices.ContainsFunc(t.Lives(), func(a lease.Attempt) bool { return a.Peer == m.Peer })
	})
	if len(others) > 0 {
		m := choose(others, t)
		r.take(m, Placement{Task: lease.TaskID{Job: r.j.ID, Index: i}, Peer: m.Peer, Device: m.best(r.j), Second: true})
	}
}

func (r *round) take(m *Machine, p Placement) {
	r.placed = append(r.placed, p)
	r.slots--
	at := slices.Index(m.Free, p.Device)
	m.Free = slices.Delete(m.Free, at, at+1)
	if m.best(r.j) == "" {
		r.fit = slices.DeleteFunc(r.fit, func(o *Machine) bool { return o == m })
	}
}

// best is the free device of m that is expected to be the fastest for j, a GPU where
// nothing was measured; "" where none serves it.
func (m Machine) best(j *lease.Job) (best lease.Device) {
	for _, d := range m.Free {
		if !j.Spec.Needs.Serves(m.Can, d, j.Above) {
			continue
		}
		if c := cmp.Compare(m.seconds(j, d), m.seconds(j, best)); best == "" || c < 0 || c == 0 && best == lease.CPUDevice {
			best = d
		}
	}
	return best
}

// choose takes the smallest machine that has not failed the task yet, or the
// smallest of all where each has.
func choose(fit []*Machine, t *lease.Task) *Machine {
	for _, m := range fit {
		if !slices.ContainsFunc(t.Attempts, func(a lease.Attempt) bool {
			return a.Peer == m.Peer && a.Outcome == lease.OutcomeFailed
		}) {
			return m
		}
	}
	return fit[0]
}

// smallestFirst orders machines by size. One with more slots free goes first
// among equals, so that work spreads.
func smallestFirst(a, b Machine) int {
	return cmp.Or(bySize(a, b), cmp.Compare(len(b.Free), len(a.Free)), cmp.Compare(a.Peer, b.Peer))
}

// bySize compares machines by what would be wasted on a job that does not need
// it: GPUs and their memory first, then RAM, then cores.
func bySize(a, b Machine) int {
	return cmp.Or(
		cmp.Compare(len(a.Can.GPUs), len(b.Can.GPUs)),
		cmp.Compare(a.Can.VRAM(), b.Can.VRAM()),
		cmp.Compare(a.Can.RAM, b.Can.RAM),
		cmp.Compare(a.Can.Cores, b.Can.Cores),
	)
}

// Barred tells whether nobody may try j, and somebody might if it were forgotten what
// went wrong with it.
func Barred(j *lease.Job, machines []Machine) bool {
	if len(j.Faults) == 0 && j.Above == (lease.Memory{}) {
		return false
	}
	forgiven := *j
	forgiven.Above = lease.Memory{}
	might := false
	for _, m := range machines {
		if m.Can.Draining || len(m.Lacks(&forgiven)) > 0 {
			continue
		}
		if !j.KeptOff(m.Peer) && len(m.Lacks(j)) == 0 {
			return false
		}
		might = true
	}
	return might
}

// aheadFree is what a project that is fetched ahead leaves free of a machine's disk
// and store, in bytes: the frames and the project of what it renders now come first.
const aheadFree = 1 << 30

// Ahead is the job that m is likely to need next while it renders others: the
// first in the order of service that has work waiting, is m's to do and has none
// of the projects that m renders now. It is nil where there is none, where m holds
// that one's project already, or where that would leave m too little room.
func Ahead(jobs []*lease.Job, m Machine, renders map[string]bool) *lease.Job {
	if m.Can.Draining {
		return nil
	}
	hopeless := make(map[string]bool) // kinds of jobs that m cannot do
	for _, j := range jobs {
		if renders[j.Spec.Project] || j.KeptOff(m.Peer) || hopeless[j.Kind()] {
			continue
		}
		if len(m.Lacks(j)) > 0 {
			hopeless[j.Kind()] = !m.couldDo(j)
			continue
		}
		needs := j.Spec.Needs
		if m.Holds[lease.ShortCID(j.Spec.Project)] == lease.Whole || m.Can.FreeDisk < needs.Disk+aheadFree || m.Can.Room != nil && *m.Can.Room < needs.Store+aheadFree {
			return nil
		}
		return j
	}
	return nil
}

// Nearest finds the machine that lacks the least of what j needs, and what that
// is. It answers a zero Machine where there are none.
func Nearest(j *lease.Job, machines []Machine) (Machine, []lease.Lack) {
	var best Machine
	var lacks []lease.Lack
	for i, m := range machines {
		l := m.Lacks(j)
		if i == 0 || len(l) < len(lacks) || len(l) == len(lacks) && smallestFirst(m, best) < 0 {
			best, lacks = m, l
		}
	}
	return best, lacks
}
