package lease

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// head is the first document of a stored State; its jobs follow, a document each, in
// log order. What can be derived is not stored.
type head struct {
	Version int    `json:"version"`
	Seq     uint64 `json:"seq"`
	Jobs    int    `json:"jobs"`
	Once    []done `json:"once,omitempty"`
	machinesJSON
}

// Version 2 knew no frames that are split, and reads the same otherwise.
const (
	snapshotVersion = 3
	snapshotOldest  = 2
)

// Frozen is a State at one moment. It stays as it was while the State goes on.
type Frozen struct {
	head head
	jobs []Job
}

// Freeze takes the state at this moment. It costs as much as there are jobs; each
// job's lists are copied when the job is changed next. Like Apply, it must not be
// called while others use the State.
func (s *State) Freeze() *Frozen {
	f := &Frozen{
		head: head{Version: snapshotVersion, Seq: s.seq, Jobs: len(s.list), Once: s.once, machinesJSON: s.machinesDocument()},
		jobs: make([]Job, len(s.list)),
	}
	for i, j := range s.list {
		j.shared = true
		f.jobs[i] = *j
	}
	return f
}

// Write writes the whole state, from any goroutine. Equal states give equal bytes.
func (f *Frozen) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	if err := e.Encode(f.head); err != nil {
		return err
	}
	for i := range f.jobs {
		if err := e.Encode(&f.jobs[i]); err != nil {
			return err
		}
	}
	return nil
}

// Restore reads what [Frozen.Write] wrote, and nothing behind it.
func Restore(r io.Reader) (*State, error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields() // what is not read is lost: see package level
	var h head
	if err := d.Decode(&h); err != nil {
		return nil, fmt.Errorf("read the queue's snapshot: %w", err)
	}
	if h.Version < snapshotOldest || h.Version > snapshotVersion {
		return nil, fmt.Errorf("the queue's snapshot has version %d, this program reads %d to %d: start a newer vizpeer", h.Version, snapshotOldest, snapshotVersion)
	}
	s := NewState()
	s.seq = h.Seq
	s.loadMachines(h.machinesJSON)
	if err := checkOnce(h.Once); err != nil {
		return nil, fmt.Errorf("the queue's snapshot is damaged: %w", err)
	}
	s.once = h.Once
	for range h.Jobs {
		var j *Job
		if err := d.Decode(&j); err != nil {
			return nil, fmt.Errorf("read the queue's snapshot: %w", err)
		}
		if err := j.check(); err != nil {
			return nil, fmt.Errorf("the queue's snapshot is damaged: %w", err)
		}
		if s.jobs[j.ID] != nil {
			return nil, fmt.Errorf("the queue's snapshot is damaged: job %s stands in it twice", j.ID)
		}
		j.totals = s.totals
		j.derive()
		s.jobs[j.ID] = j
		s.list = append(s.list, j)
		if !j.State.Ended() {
			s.enlist(j)
		} else {
			j.queued = nil
		}
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("the queue's snapshot goes on after its end")
	}
	return s, nil
}

// check refuses what Apply could not have made: a snapshot may come from another
// machine.
func (j *Job) check() error {
	if j == nil || j.ID == "" {
		return errors.New("a job is missing")
	}
	if err := j.Spec.Validate(); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	if j.Tier.Rank() < 0 {
		return fmt.Errorf("job %s: unknown tier %q", j.ID, j.Tier)
	}
	if s := j.State; s != JobQueued && s != JobRunning && s != JobPaused && !s.Ended() {
		return fmt.Errorf("job %s: unknown state %q", j.ID, s)
	}
	frames, chunk := len(j.Spec.places()), j.Spec.Chunk
	if len(j.Frames) != frames || len(j.Tasks) < 1 || len(j.Tasks) > max(MaxTasks, frames) {
		return fmt.Errorf("job %s: %d frames in %d tasks do not fit its frame list", j.ID, len(j.Frames), len(j.Tasks))
	}
	if err := j.checkParts(); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	cuts := make([][2]int32, 0, len(j.Tasks))
	for i, t := range j.Tasks {
		if t.Part() {
			continue
		}
		cuts = append(cuts, [2]int32{t.Lo, t.Hi})
		if !j.Spec.Adaptive() && !j.Makes(&t) && (int(t.Lo) != i*chunk || int(t.Hi) != min((i+1)*chunk, j.Pictures())) {
			return fmt.Errorf("job %s: task %d has other frames than its own", j.ID, i)
		}
	}
	slices.SortFunc(cuts, func(a, b [2]int32) int { return cmp.Compare(a[0], b[0]) })
	var end int32
	for _, c := range cuts {
		if c[0] != end || c[1] <= end {
			return fmt.Errorf("job %s: its tasks do not have each frame once", j.ID)
		}
		end = c[1]
	}
	if int(end) != frames {
		return fmt.Errorf("job %s: its tasks do not have all frames", j.ID)
	}
	for i := range j.Tasks {
		t := &j.Tasks[i]
		live := 0
		for _, a := range t.Attempts {
			if a.Outcome == "" {
				live++
			}
		}
		if lives := len(t.Lives()); lives != live || lives > 2 || (lives > 0) != (t.State == TaskLeased) {
			return fmt.Errorf("job %s: task %d is %s with %d attempts under way", j.ID, i, t.State, live)
		}
		if len(t.Attempts) == 0 && !t.Part() && slices.ContainsFunc(j.Frames[t.Lo:t.Hi], func(f *Frame) bool { return f != nil }) {
			return fmt.Errorf("job %s: task %d has frames without an attempt", j.ID, i)
		}
		switch t.State {
		case TaskQueued, TaskFailed, TaskCancelled:
		case TaskLeased, TaskRendered, TaskDone:
			if len(t.Attempts) == 0 {
				return fmt.Errorf("job %s: task %d is %s without an attempt", j.ID, i, t.State)
			}
		default:
			return fmt.Errorf("job %s: task %d has the state %q", j.ID, i, t.State)
		}
	}
	return nil
}

// checkParts does the same for the parts of frames and their pieces.
func (j *Job) checkParts() error {
	if !j.Splits() {
		if j.Units != 0 || j.Pieces != nil || slices.ContainsFunc(j.Tasks, func(t Task) bool { return t.Part() }) {
			return errors.New("it has parts of frames that it does not split")
		}
		return nil
	}
	if j.Units < j.Spec.Split.Units || j.Units > MaxSamples || len(j.Pieces) != len(j.Frames) {
		return fmt.Errorf("pieces of %d frames of %d units do not fit it", len(j.Pieces), j.Units)
	}
	whole := Span{0, j.Units}
	spans := make([][]Span, len(j.Frames))
	for i, t := range j.Tasks {
		switch {
		case !t.Part() && (t.Hi != t.Lo+1 || int(t.Lo) != i):
			return fmt.Errorf("task %d is not for one frame", i)
		case !t.Part():
		case t.Lo < 0 || int(t.Lo) >= len(j.Frames) || t.Hi != t.Lo+1 || t.Span.From < 0 || t.Span.Len() == 0 || !whole.Holds(t.Span):
			return fmt.Errorf("task %d is for no part of a frame", i)
		default:
			spans[t.Lo] = append(spans[t.Lo], t.Span)
		}
	}
	for at := range j.Pictures() {
		if err := once(spans[at], whole); err != nil {
			return fmt.Errorf("the parts of the frame at %d %w", at, err)
		}
		for _, p := range j.Pieces[at] {
			for _, o := range append([]Piece{p}, p.Under...) {
				if o.CID == "" || len(o.Holders) == 0 || o.From < 0 || o.Len() == 0 || !whole.Holds(o.Span) || !p.Holds(o.Span) {
					return fmt.Errorf("a piece of the frame at %d is damaged", at)
				}
			}
		}
		pieces := spansOf(j.Pieces[at])
		if covered := whole.Len() - total(whole.Gaps(pieces)); covered != total(pieces) {
			return fmt.Errorf("pieces of the frame at %d have a unit in common", at)
		}
	}
	return nil
}

// once tells whether spans have every unit of the whole, once.
func once(spans []Span, whole Span) error {
	if len(whole.Gaps(spans)) > 0 || total(spans) != whole.Len() {
		return errors.New("do not have each unit once")
	}
	return nil
}
