package lease

import (
	"fmt"
	"slices"
	"time"

	"vizpeer/authz"
)

// The sizes of chunks that the farm chooses, in rendering.
const (
	ChunkTarget = time.Minute      // aimed at
	MaxChunkFor = 30 * time.Minute // the most, where a frame takes less
)

// Adaptive tells whether the farm chooses how many frames a task has: it cuts them
// off as it grants them.
func (s Spec) Adaptive() bool { return s.Chunk == 0 }

// CountTasks is how many tasks a job of s begins with, of the most that it may have; 0 is
// [MaxTasks].
func (s Spec) CountTasks(most int) (int, error) {
	tasks, err := s.layout(Limits{Tasks: most}.OrDefault().Tasks)
	return len(tasks), err
}

// layout cuts a job's frames into its first tasks. Where the farm chooses, the
// first, the middle and the last frame are tasks of their own: they show what the
// shot will be, and how long a frame takes before many are granted at once; they
// count beside the most tasks that the job may have.
func (s Spec) layout(most int) ([]Task, error) {
	frames := len(s.Frames.Expand())
	chunk := s.Chunk
	var cuts []int // where tasks end
	if s.Split.On() {
		chunk = 1
	} else if s.Adaptive() {
		chunk = MaxChunk
		if s.Order != Linear {
			last := frames - 1
			cuts = []int{1, last / 2, last/2 + 1, last}
		}
	}
	if n := (frames-1)/chunk + 1 + len(cuts); n > most+len(cuts) {
		return nil, fmt.Errorf("%w: the job would have %d tasks, more than the %d allowed; use larger chunks or fewer frames", ErrLimit, n, most)
	}
	for at := chunk; at < frames; at += chunk {
		cuts = append(cuts, at)
	}
	cuts = append(cuts, frames)
	slices.Sort(cuts)
	tasks := make([]Task, 0, len(cuts))
	lo := 0
	for _, hi := range cuts {
		if lo < hi && hi <= frames {
			tasks = append(tasks, Task{State: TaskQueued, Lo: int32(lo), Hi: int32(hi)})
			lo = hi
		}
	}
	if s.Movie != "" {
		tasks = append(tasks, Task{State: TaskQueued, Lo: int32(frames), Hi: int32(frames) + 1})
	}
	if s.Split.On() {
		return s.layoutParts(tasks, most)
	}
	return tasks, nil
}

// with is how many of a task's frames, from its beginning, there are before one more
// than n is to be rendered.
func (j *Job) with(t *Task, n int32) int32 {
	for k := t.Lo; k < t.Hi; k++ {
		if j.open(k) {
			if n--; n < 0 {
				return k - t.Lo
			}
		}
	}
	return t.Hi - t.Lo
}

// cut makes a task of the first n frames of another that is queued, and returns its
// index. Both were tried by whoever tried the whole.
func (j *Job) cut(i int32, n int32) int32 {
	t := j.Tasks[i]
	first := Task{State: TaskQueued, Lo: t.Lo, Hi: t.Lo + n, Fails: t.Fails, Attempts: t.Attempts}
	j.tally(&t, -1)
	t.Lo += n
	j.tally(&t, 1)
	j.tally(&first, 1)
	j.Tasks[i] = t
	j.Tasks = append(j.Tasks, first)
	at := int32(len(j.Tasks) - 1)
	j.assign(at)
	return at
}

// Pace is how fast frames of a job are rendered or, where it splits them, units.
type Pace struct {
	frames   int
	seconds  float64 // of all of them
	slowest  float64 // of one frame, or of what was given of units at once
	tries    int
	loaded   bool
	overhead float64 // the least that a try took beside rendering, where loaded
}

// Frames is the number of frames, or units, that were measured.
func (p Pace) Frames() int { return p.frames }

// Seconds is the mean time of a frame or unit; 0 where none was measured.
func (p Pace) Seconds() float64 {
	if p.frames == 0 {
		return 0
	}
	return p.seconds / float64(p.frames)
}

// Slowest is the longest time of a frame, or of units that were given at once, in
// seconds.
func (p Pace) Slowest() float64 { return p.slowest }

// Overhead is the least that a try took beside rendering, which is to load the
// project; in seconds. It is false, and 0, where none was measured.
func (p Pace) Overhead() (float64, bool) { return p.overhead, p.loaded }

// Hand is a device of a machine: what renders one frame at a time.
type Hand struct {
	Peer   authz.PeerID
	Device Device
}

// Pace is how fast a machine renders the job on one of its devices.
func (j *Job) Pace(h Hand) Pace { return j.paces[h] }

// Tried tells whether a frame of the job was measured on a device like d: on a CPU, or
// on a GPU.
func (j *Job) Tried(d Device) bool {
	if _, gpu := d.GPU(); gpu {
		return j.onGPU
	}
	return j.onCPU
}

// MeanPace is how fast all machines together do.
func (j *Job) MeanPace() Pace { return j.pace }

// measured adds the time of n frames, or units. Nothing in the state rests on it:
// machines might add in another order, and get another last digit.
func (j *Job) measured(h Hand, seconds float64, n int) {
	add := func(to *Pace) {
		to.frames += n
		to.seconds += seconds
		to.slowest = max(to.slowest, seconds)
	}
	one := j.paces[h]
	add(&one)
	add(&j.pace)
	j.paces[h] = one
	_, gpu := h.Device.GPU()
	j.onGPU, j.onCPU = j.onGPU || gpu, j.onCPU || !gpu
}

// overheads adds what an attempt took beside rendering, where it rendered all of its
// task, and its machine had tried one before: the first try fetches the project.
func (j *Job) overheads(t *Task, id ID) {
	k := t.attempt(id)
	if k < 0 || t.Attempts[k].Outcome != OutcomeRendered {
		return
	}
	a := t.Attempts[k]
	took := a.Ended.Sub(a.Granted).Seconds()
	if t.Part() {
		for _, p := range j.PiecesOf(t.Lo) {
			switch {
			case !t.Span.Meets(p.Span):
			case p.Peer != a.Peer || !t.Span.Holds(p.Span):
				return
			default:
				took -= p.Seconds
			}
		}
	}
	for i := t.Lo; i < t.Hi && !t.Part(); i++ {
		f := j.Frames[i]
		if f == nil || f.Peer != a.Peer {
			return
		}
		took -= f.Seconds
	}
	h := Hand{a.Peer, a.Device}
	one := j.paces[h]
	if one.tries++; one.tries > 1 {
		one.load(took)
		j.pace.load(took)
	}
	j.paces[h] = one
}

// load notes a time that a try took beside rendering, in seconds.
func (p *Pace) load(seconds float64) {
	seconds = max(seconds, 0)
	if !p.loaded || seconds < p.overhead {
		p.overhead, p.loaded = seconds, true
	}
}

// Unrendered is the number of frames that are to be rendered, by whoever has them now
// included.
func (j *Job) Unrendered() int { return len(j.Frames) - j.rendered + j.again }

// Uncovered is the same of units, where the job splits its frames.
func (j *Job) Uncovered() int { return j.uncovered }

// Covered is the number of units of the frame at a place that are rendered, where the job
// splits its frames.
func (j *Job) Covered(place int) int32 {
	if !j.Splits() || place == j.movie() {
		return 0
	}
	return j.Units - j.gaps[place]
}

// Done is the number of frames that are rendered and held by enough machines.
func (j *Job) Done() int { return j.rendered - j.undone }

// Hands counts the live leases by what renders them. It is for reading only.
func (j *Job) Hands() map[Hand]int { return j.hands }
