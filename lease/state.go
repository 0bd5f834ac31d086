package lease

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"vizpeer/authz"
	"vizpeer/authz/level"
)

// Reasons for which Apply refuses a command. A refused command changes nothing.
var (
	ErrUnknownJob  = errors.New("no such job")
	ErrUnknownTask = errors.New("no such task")
	ErrEnded       = errors.New("the job has ended")
	ErrStale       = errors.New("the lease has ended: somebody else may have the task now")
	ErrNotQueued   = errors.New("the task is not waiting for a machine")
	ErrNotStuck    = errors.New("the task is not one machine's, or is this one's already")
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
	// machines is what is remembered of machines; an empty record is as good as none.
	machines map[authz.PeerID]*Machine
	once     []done // in log order
	// totals counts the tasks of all jobs; each job keeps its own part of it.
	totals Totals
}

// Totals counts tasks by their job's tier and their own state.
type Totals map[Tier]map[TaskState]int

func (t Totals) add(tier Tier, s TaskState, n int) {
	if t == nil || n == 0 {
		return
	}
	if t[tier] == nil {
		t[tier] = make(map[TaskState]int)
	}
	t[tier][s] += n
}

// NewState returns an empty queue.
func NewState() *State {
	return &State{jobs: make(map[JobID]*Job), machines: make(map[authz.PeerID]*Machine), totals: make(Totals)}
}

// Totals counts the tasks of all jobs, at no cost that grows with them. It is for
// reading only, and only while the state is not changed.
func (s *State) Totals() Totals { return s.totals }

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
	// Units is how many units each frame has, and Pieces what is there of them, by the
	// frame's place, where the job splits its frames.
	Units  int32     `json:"units,omitempty"`
	Pieces [][]Piece `json:"pieces,omitempty"`
	// Holders lists who holds all of the project, its submitter first unless that
	// has lost it.
	Holders []authz.PeerID `json:"holders"`
	// Most is how many tasks it may have; 0 is [MaxTasks].
	Most int `json:"most,omitempty"`
	// Faults counts, by machine, the tries at the job that failed.
	Faults map[authz.PeerID]int `json:"faults,omitempty"`
	// Above is the memory with which a machine ran out: only one with more is tried.
	Above Memory `json:"above,omitzero"`

	// What follows is derived from the above.

	kind    string            // see Kind
	level   int               // see Level
	numbers []int32           // the frame numbers, in order
	tasks   []int32           // which task each frame is of
	queued  turnHeap          // candidates for Next; may hold tasks that are no longer queued
	count   map[TaskState]int // of Tasks
	totals  Totals            // of the state, of which count is a part
	// leased counts, by machine, the live leases, and hands by what renders them.
	leased map[authz.PeerID]int
	hands  map[Hand]int
	// of Frames: how many there are, and of those how many are to be rendered again,
	// are not done, and were delivered
	rendered, again, undone, delivered int
	parts                              [][]int32     // by a frame's place: the tasks of its parts
	gaps                               []int32       // by a frame's place: how many units are to be rendered
	uncovered, blocked                 int           // the sum of gaps; how many queued tasks wait for pieces or frames
	early                              bool          // frames of its movie are missing
	pace                               Pace          // of all machines together
	paces                              map[Hand]Pace // of each
	onCPU, onGPU                       bool          // on what frames were measured
	shared                             bool          // a snapshot has its lists: see own
}

// own makes the job's lists its own, where a snapshot that is still being written
// has them too. Whatever changes a job calls it first; what lies in the lists, a
// task's attempts and the frames, is replaced and never changed.
func (j *Job) own() {
	if !j.shared {
		return
	}
	j.Tasks, j.Frames, j.Holders, j.Faults = slices.Clone(j.Tasks), slices.Clone(j.Frames), slices.Clone(j.Holders), maps.Clone(j.Faults)
	j.Pieces = slices.Clone(j.Pieces)
	j.shared = false
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

// edit finds a job in order to change it.
func (s *State) edit(id JobID) (*Job, error) {
	j, ok := s.jobs[id]
	if !ok {
		return nil, ErrUnknownJob
	}
	j.own()
	return j, nil
}

// editTask finds a task in order to change it.
func (s *State) editTask(id TaskID) (*Job, *Task, error) {
	if _, err := s.edit(id.Job); err != nil {
		return nil, nil, err
	}
	return s.Task(id)
}

// Kind is equal for jobs that ask for the same of a machine, however large their
// projects are.
func (j *Job) Kind() string {
	if j.Above == (Memory{}) {
		return j.kind
	}
	return fmt.Sprint(j.kind, j.Above)
}

// Level is the lowest level that knows all that the job asks for: a machine of a lower one
// would render something else.
func (j *Job) Level() int { return j.level }

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

// Remaining lists the frames of a task that nobody has rendered; [Job.Gaps] tells of a
// part which units are.
func (j *Job) Remaining(t *Task) []int32 {
	var out []int32
	for i := t.Lo; i < t.Hi; i++ {
		if j.open(i) {
			out = append(out, j.numbers[i])
		}
	}
	return out
}

// open tells whether a frame, by its place, is to be rendered.
func (j *Job) open(place int32) bool { return j.Frames[place] == nil || j.Frames[place].again() }

// wants tells whether an attempt's result counts for a frame, by its place: not that
// of one that began before the frame was wanted again.
func (j *Job) wants(place int, by Attempt) bool {
	f := j.Frames[place]
	if by.Units != 0 && by.Units != j.Units {
		return false // it was merged of fewer units than there are now
	}
	if place == j.movie() && j.early {
		return false // some of what it was made of is to be rendered again
	}
	return f == nil || f.again() && !by.Granted.Before(f.Again)
}

// Left is the number of frames of a task that are to be rendered, or of a part's units.
func (j *Job) Left(t *Task) (n int32) {
	if t.Part() {
		return total(j.Gaps(t))
	}
	for i := t.Lo; i < t.Hi; i++ {
		if j.open(i) {
			n++
		}
	}
	return n
}

// complete tells whether nothing of a task is to be rendered.
func (j *Job) complete(t *Task) bool {
	if t.Part() {
		return len(j.Gaps(t)) == 0
	}
	return j.with(t, 0) == t.Hi-t.Lo
}

// TaskOf is the index of the task that a place in the job's list of frames
// belongs to.
func (j *Job) TaskOf(place int) int32 { return j.tasks[place] }

// Place is where a frame number stands in the job's list.
func (j *Job) Place(frame int32) (int, bool) { return slices.BinarySearch(j.numbers, frame) }

// Next lists up to n queued tasks in the order in which they should be granted.
// Its cost grows with n and not with the number of tasks.
func (j *Job) Next(n int) []int32 {
	var next []int32
	for len(next) < n && len(j.queued) > 0 {
		due := heap.Pop(&j.queued).(turn)
		switch i := due.task(); {
		case j.Tasks[i].State != TaskQueued || j.blocks(&j.Tasks[i]):
			j.Tasks[i].inHeap = false
		case due != j.turn(i): // its first frames were cut off
			heap.Push(&j.queued, j.turn(i))
		default:
			next = append(next, i)
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
	t := &j.Tasks[i]
	last := int32(j.Pictures() - 1)
	at := uint64(t.Lo) + 3
	if j.Spec.Order != Linear {
		switch {
		case t.Lo == 0:
			at = 0
		case t.Lo <= last/2 && last/2 < t.Hi:
			at = 1
		case t.Hi == last+1:
			at = 2
		}
	}
	return turn(at<<32 | uint64(i))
}

// HasQueued tells whether a task of the job waits for a machine.
func (j *Job) HasQueued() bool { return j.Waits() > 0 }

// Renders tells whether p holds a live lease on a task of the job.
func (j *Job) Renders(p authz.PeerID) bool { return j.leased[p] > 0 }

// KeptOff tells whether p failed the job so often that it gets no more of it.
func (j *Job) KeptOff(p authz.PeerID) bool { return j.Faults[p] >= MaxTries }

// setTask moves a task to a state and keeps what is derived from it.
func (j *Job) setTask(i int32, to TaskState) {
	t := &j.Tasks[i]
	j.tally(t, -1)
	t.State = to
	j.tally(t, 1)
	j.offer(i)
}

// offer makes a task that waits one of those that may be granted.
func (j *Job) offer(i int32) {
	if t := &j.Tasks[i]; t.State == TaskQueued && !t.inHeap && !j.blocks(t) {
		t.inHeap = true
		heap.Push(&j.queued, j.turn(i))
	}
}

// begin starts an attempt at a task.
func (j *Job) begin(i int32, a Attempt) {
	t := &j.Tasks[i]
	j.tally(t, -1)
	t.add(a)
	t.State = TaskLeased
	j.tally(t, 1)
}

// amend changes an attempt at a task.
func (j *Job) amend(i int32, k int, how func(*Attempt)) {
	t := &j.Tasks[i]
	j.tally(t, -1)
	t.amend(k, how)
	j.tally(t, 1)
}

// tally adds a task to what is counted, or takes it out.
func (j *Job) tally(t *Task, by int) {
	j.count[t.State] += by
	j.totals.add(j.Tier, t.State, by)
	if t.State == TaskQueued && j.blocks(t) {
		j.blocked += by
	}
	for _, a := range t.Lives() {
		if j.leased[a.Peer] += by; j.leased[a.Peer] == 0 {
			delete(j.leased, a.Peer)
		}
		h := Hand{a.Peer, a.Device}
		if j.hands[h] += by; j.hands[h] == 0 {
			delete(j.hands, h)
		}
	}
}

// setFrame replaces what is known of the frame at a place, which may be nothing,
// and keeps what is derived from it.
func (j *Job) setFrame(place int, f *Frame) {
	j.tallyFrame(j.Frames[place], -1)
	j.Frames[place] = f
	j.tallyFrame(f, 1)
	j.regap(int32(place))
	j.releaseMovie()
}

func (j *Job) tallyFrame(f *Frame, by int) {
	if f == nil {
		return
	}
	j.rendered += by
	if f.again() {
		j.again += by
	}
	if !f.Done {
		j.undone += by
	}
	if f.Delivered {
		j.delivered += by
	}
}

// derive rebuilds what is not stored.
func (j *Job) derive() {
	needs, _ := json.Marshal(j.Spec.Needs.Anywhere())
	j.level = level.Needed(&j.Spec)
	j.kind, j.numbers = fmt.Sprint(string(needs), j.level), j.Spec.places()
	j.tasks = make([]int32, len(j.Frames))
	for s, n := range j.count {
		j.totals.add(j.Tier, s, -n)
	}
	j.count, j.leased, j.hands = make(map[TaskState]int, 6), make(map[authz.PeerID]int), make(map[Hand]int)
	j.queued = make(turnHeap, 0, len(j.Tasks))
	j.rendered, j.again, j.undone, j.delivered = 0, 0, 0, 0
	j.pace, j.paces = Pace{}, make(map[Hand]Pace)
	j.deriveParts()
	for _, f := range j.Frames {
		j.tallyFrame(f, 1)
	}
	j.early = j.unfinished() > 0
	for i := range j.Tasks {
		t := &j.Tasks[i]
		j.tally(t, 1)
		if t.inHeap = t.State == TaskQueued && !j.blocks(t); t.inHeap {
			j.queued = append(j.queued, j.turn(int32(i)))
		}
	}
	heap.Init(&j.queued)
	for _, f := range j.Frames {
		if f != nil && !j.Splits() && f.Result.Frame != MovieFrame {
			j.measured(Hand{f.Peer, f.Device}, f.Seconds, 1)
		}
	}
	for _, pieces := range j.Pieces {
		for _, p := range pieces {
			j.measured(Hand{p.Peer, p.Device}, p.Seconds, int(p.Len()))
		}
	}
	for i := range j.Tasks {
		if t := &j.Tasks[i]; (t.State == TaskRendered || t.State == TaskDone) && t.Part() == j.Splits() {
			j.overheads(t, j.renderer(t).Lease)
		}
	}
}

// deriveParts finds which tasks are of which frame, and what there is of it.
func (j *Job) deriveParts() {
	for i := range j.Tasks {
		if !j.Tasks[i].Part() {
			j.assign(int32(i))
		}
	}
	j.parts, j.gaps, j.uncovered, j.blocked = nil, nil, 0, 0
	if !j.Splits() {
		return
	}
	j.parts, j.gaps = make([][]int32, len(j.Frames)), make([]int32, len(j.Frames))
	for i := range j.Tasks {
		if t := &j.Tasks[i]; t.Part() {
			j.parts[t.Lo] = append(j.parts[t.Lo], int32(i))
		}
	}
	for at := range j.Frames {
		if at != j.movie() && j.open(int32(at)) {
			j.gaps[at] = total(Span{0, j.Units}.Gaps(spansOf(j.Pieces[at])))
			j.uncovered += int(j.gaps[at])
		}
	}
}

// assign notes which task the frames of task i belong to.
func (j *Job) assign(i int32) {
	for k := j.Tasks[i].Lo; k < j.Tasks[i].Hi; k++ {
		j.tasks[k] = i
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
