package lease

import (
	"cmp"
	"container/heap"
	"errors"
	"math"
	"slices"
	"time"

	"vizpeer/authz"
)

// Reasons for which Apply refuses a command. A refused command changes nothing.
var (
	ErrUnknownJob  = errors.New("no such job")
	ErrUnknownTask = errors.New("no such task")
	ErrEnded       = errors.New("the job has ended")
	ErrStale       = errors.New("the lease has ended: somebody else may have the task now")
	ErrNotQueued   = errors.New("the task is not waiting for a machine")
	ErrExists      = errors.New("the ID is in use")
	ErrLimit       = errors.New("a limit is reached")
	ErrInvalid     = errors.New("invalid")
)

// State is the whole queue. The zero value is not ready: use [NewState]. It is
// not safe for concurrent use; whoever owns it (coord's log) guards it.
type State struct {
	jobs map[JobID]*Job
	list []*Job // in log order
	open []*Job // not ended, by tier, then in log order; see Waiting
	seq  uint64
	// finished counts, by machine, the tasks it rendered.
	finished map[authz.PeerID]int
	// stores tells, by machine, which content store it had when it last said so.
	stores map[authz.PeerID]string
}

// NewState returns an empty queue.
func NewState() *State {
	return &State{jobs: make(map[JobID]*Job), finished: make(map[authz.PeerID]int), stores: make(map[authz.PeerID]string)}
}

// Finished is the number of tasks that p has rendered in the farm's life.
func (s *State) Finished(p authz.PeerID) int { return s.finished[p] }

// Store is the ID of the content store that p holds what it holds in; "" where it
// never said.
func (s *State) Store(p authz.PeerID) string { return s.stores[p] }

// Job is one job with its tasks and frames. What State hands out is for reading
// only, and only while the state is not changed.
type Job struct {
	ID      JobID     `json:"id"`
	Seq     uint64    `json:"seq"` // place in the log: first come, first served
	Spec    Spec      `json:"spec"`
	State   JobState  `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	Tail    string    `json:"tail,omitempty"` // Blender's last words, of the failure that ended it
	Tier    Tier      `json:"tier"`           // the spec's, unless it was changed
	Created time.Time `json:"created"`
	// Served is when the job last had a task granted or, before the first, since a pause
	// and where it came after another, when it began to wait for that.
	Served  time.Time `json:"served"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Tasks   []Task    `json:"tasks"`
	// Frames has one entry for each frame, in order; nil until it is rendered.
	Frames []*Frame `json:"frames"`
	// Holders lists who holds all of the project, its submitter first unless that
	// has lost it.
	Holders []authz.PeerID `json:"holders"`
	// Faults counts, by machine, the tries at the job that failed.
	Faults map[authz.PeerID]int `json:"faults,omitempty"`

	numbers []int32           // the frame numbers, in order; derived from Spec
	queued  turnHeap          // candidates for Next; may hold tasks that are no longer queued
	count   map[TaskState]int // derived from Tasks
	// leased counts, by machine, the tasks under a live lease; derived from Tasks.
	leased map[authz.PeerID]int
	// derived from Frames: how many there are, and how many were delivered
	rendered, delivered int
}

// Task is a chunk of a job's frames.
type Task struct {
	State TaskState `json:"state"`
	// Lo and Hi bound its places in the job's list of frames, Hi excluded.
	Lo       int32     `json:"lo"`
	Hi       int32     `json:"hi"`
	Fails    int       `json:"fails,omitempty"`
	Attempts []Attempt `json:"attempts,omitempty"` // the last one lives while the task is leased

	inHeap bool
}

// maxAttempts bounds how many attempts a task remembers: losses of machines are
// not failures, so a task may see many.
const maxAttempts = 16

// Frame is a rendered frame and who holds it.
type Frame struct {
	Result
	Peer      authz.PeerID   `json:"peer"`    // who rendered it
	Holders   []authz.PeerID `json:"holders"` // who holds all of it, in order of their reports
	Done      bool           `json:"done,omitempty"`
	Delivered bool           `json:"delivered,omitempty"`
}

// live returns the attempt that runs now, or nil.
func (t *Task) live() *Attempt {
	if t.State != TaskLeased || len(t.Attempts) == 0 {
		return nil
	}
	return &t.Attempts[len(t.Attempts)-1]
}

// Live returns the attempt that runs now.
func (t *Task) Live() (Attempt, bool) {
	if a := t.live(); a != nil {
		return *a, true
	}
	return Attempt{}, false
}

// Job returns the job of that ID.
func (s *State) Job(id JobID) (*Job, bool) {
	j, ok := s.jobs[id]
	return j, ok
}

// Jobs lists all jobs in log order.
func (s *State) Jobs() []*Job { return s.list }

// Open lists the jobs that have not ended, the higher tier first, then the older.
// [State.Waiting] has the order in which they are served.
func (s *State) Open() []*Job { return s.open }

// Task returns the task of that ID.
func (s *State) Task(id TaskID) (*Job, *Task, error) {
	j, ok := s.jobs[id.Job]
	if !ok {
		return nil, nil, ErrUnknownJob
	}
	if id.Index < 0 || int(id.Index) >= len(j.Tasks) {
		return nil, nil, ErrUnknownTask
	}
	return j, &j.Tasks[id.Index], nil
}

// Numbers lists the job's frame numbers in order.
func (j *Job) Numbers() []int32 { return j.numbers }

// Count is the number of the job's tasks in that state.
func (j *Job) Count(s TaskState) int { return j.count[s] }

// Undelivered tells whether a rendered frame still has to be written to the
// job's output folder.
func (j *Job) Undelivered() bool {
	return j.Spec.Output.Dir != "" && j.delivered < j.rendered
}

// TaskFrames lists the frame numbers of a task.
func (j *Job) TaskFrames(t *Task) []int32 { return j.numbers[t.Lo:t.Hi] }

// Remaining lists the frames of a task that nobody has rendered.
func (j *Job) Remaining(t *Task) []int32 {
	var out []int32
	for i := t.Lo; i < t.Hi; i++ {
		if j.Frames[i] == nil {
			out = append(out, j.numbers[i])
		}
	}
	return out
}

// Place is where a frame number stands in the job's list.
func (j *Job) Place(frame int32) (int, bool) { return slices.BinarySearch(j.numbers, frame) }

// Next lists up to n queued tasks in the order in which they should be granted.
// Its cost grows with n and not with the number of tasks.
func (j *Job) Next(n int) []int32 {
	var next []int32
	for len(next) < n && len(j.queued) > 0 {
		i := heap.Pop(&j.queued).(turn).task()
		if j.Tasks[i].State == TaskQueued {
			next = append(next, i)
		} else {
			j.Tasks[i].inHeap = false
		}
	}
	for _, i := range next {
		heap.Push(&j.queued, j.turn(i))
	}
	return next
}

// turn is a task and when its turn comes, the lower first.
type turn uint64

func (t turn) task() int32 { return int32(t & math.MaxUint32) }

// turn is by the task's frames or, unless the order is linear, first those with the
// first, the middle and the last frame, which show what the whole shot will be.
func (j *Job) turn(i int32) turn {
	last := int32(len(j.Tasks) - 1)
	at := uint64(i) + 3
	if j.Spec.Order != Linear {
		switch i {
		case 0:
			at = 0
		case last:
			at = 2
		case last / 2:
			at = 1
		}
	}
	return turn(at<<32 | uint64(i))
}

// HasQueued tells whether a task of the job waits for a machine.
func (j *Job) HasQueued() bool { return j.count[TaskQueued] > 0 }

// Renders tells whether p holds a live lease on a task of the job.
func (j *Job) Renders(p authz.PeerID) bool { return j.leased[p] > 0 }

// KeptOff tells whether p failed the job so often that it gets no more of it.
func (j *Job) KeptOff(p authz.PeerID) bool { return j.Faults[p] >= MaxTries }

// setTask moves a task to a state and keeps what is derived from it.
func (j *Job) setTask(i int32, to TaskState) {
	t := &j.Tasks[i]
	if a := t.live(); a != nil {
		if j.leased[a.Peer]--; j.leased[a.Peer] == 0 {
			delete(j.leased, a.Peer)
		}
	}
	j.count[t.State]--
	j.count[to]++
	t.State = to
	if a := t.live(); a != nil {
		j.leased[a.Peer]++
	}
	if to == TaskQueued && !t.inHeap {
		t.inHeap = true
		heap.Push(&j.queued, j.turn(i))
	}
}

// derive rebuilds what is not stored.
func (j *Job) derive() {
	j.numbers = j.Spec.Frames.Expand()
	j.count, j.leased = make(map[TaskState]int, 6), make(map[authz.PeerID]int)
	j.queued = make(turnHeap, 0, len(j.Tasks))
	j.rendered, j.delivered = 0, 0
	for i := range j.Tasks {
		t := &j.Tasks[i]
		j.count[t.State]++
		if a := t.live(); a != nil {
			j.leased[a.Peer]++
		}
		if t.inHeap = t.State == TaskQueued; t.inHeap {
			j.queued = append(j.queued, j.turn(int32(i)))
		}
	}
	heap.Init(&j.queued)
	for _, f := range j.Frames {
		if f != nil {
			j.rendered++
		}
		if f != nil && f.Delivered {
			j.delivered++
		}
	}
}

// enlist adds an open job at its place in the order of service.
func (s *State) enlist(j *Job) {
	at, _ := slices.BinarySearchFunc(s.open, j, func(a, b *Job) int {
		if d := b.Tier.Rank() - a.Tier.Rank(); d != 0 {
			return d
		}
		return bySeq(a, b)
	})
	s.open = slices.Insert(s.open, at, j)
}

// delist takes a job out of the open ones.
func (s *State) delist(j *Job) {
	s.open = slices.DeleteFunc(s.open, func(o *Job) bool { return o == j })
}

func bySeq(a, b *Job) int { return cmp.Compare(a.Seq, b.Seq) }

// turnHeap is a heap of tasks, the one whose turn comes first on top.
type turnHeap []turn

func (h turnHeap) Len() int           { return len(h) }
func (h turnHeap) Less(i, k int) bool { return h[i] < h[k] }
func (h turnHeap) Swap(i, k int)      { h[i], h[k] = h[k], h[i] }
func (h *turnHeap) Push(x any)        { *h = append(*h, x.(turn)) }
func (h *turnHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
