package lease

import (
	"slices"
	"time"

	"vizpeer/authz"
)

// Task is a chunk of a job's frames, or a part of one of them.
type Task struct {
	State TaskState `json:"state"`
	// Lo and Hi bound its places in the job's list of frames, Hi excluded.
	Lo int32 `json:"lo"`
	Hi int32 `json:"hi"`
	// Span has the units of the one frame that a part is for; zero for whole frames.
	Span  Span `json:"span,omitzero"`
	Fails int  `json:"fails,omitempty"`
	// Attempts has the last tries, and those of the task that this one was cut off
	// from. One that lives has no outcome. A snapshot may hold the same list: it is
	// replaced, never changed.
	Attempts []Attempt `json:"attempts,omitempty"`

	inHeap bool
}

// maxAttempts bounds how many attempts a task remembers: losses of machines are
// not failures, so a task may see many.
const maxAttempts = 16

// Frame is a rendered frame and who holds it. A snapshot may hold the same: it is
// replaced, never changed.
type Frame struct {
	Result
	Peer      authz.PeerID   `json:"peer"`             // who rendered it
	Device    Device         `json:"device,omitempty"` // on what of it
	Holders   []authz.PeerID `json:"holders"`          // who holds all of it, in order of their reports
	Done      bool           `json:"done,omitempty"`
	Delivered bool           `json:"delivered,omitempty"`
	// Again is since when it is to be rendered again, by an attempt that is granted
	// after that; zero where it is not. This one is kept until there is another.
	Again time.Time `json:"again,omitzero"`
}

func (f *Frame) again() bool { return !f.Again.IsZero() }

// with is a copy of f that is free to be changed.
func (f *Frame) with() *Frame {
	c := *f
	c.Holders = slices.Clone(f.Holders)
	return &c
}

// Lives lists the attempts that run now: one, two where another machine tries what
// is stuck on the first, or none. They are the last ones.
func (t *Task) Lives() []Attempt {
	if t.State != TaskLeased {
		return nil
	}
	first := len(t.Attempts)
	for first > 0 && t.Attempts[first-1].Outcome == "" {
		first--
	}
	return t.Attempts[first:]
}

// Live tells whether a lease of the task lives, and returns its attempt.
func (t *Task) Live(id ID) (Attempt, bool) {
	for _, a := range t.Lives() {
		if a.Lease == id {
			return a, true
		}
	}
	return Attempt{}, false
}

// Device is what the attempt of a lease renders on; "" where that is not known.
func (t *Task) Device(id ID) Device {
	if k := t.attempt(id); k >= 0 {
		return t.Attempts[k].Device
	}
	return ""
}

// mayHaveSecond tells whether p may try the task beside the one machine that does.
func (t *Task) mayHaveSecond(p authz.PeerID) bool {
	lives := t.Lives()
	return len(lives) == 1 && lives[0].Peer != p
}

// renderer is the attempt that rendered a task: the one that gave all of it, or who
// gave its last frame or, of a part, tried it last.
func (j *Job) renderer(t *Task) Attempt {
	for _, a := range slices.Backward(t.Attempts) {
		if a.Outcome == OutcomeRendered {
			return a
		}
	}
	if t.Part() {
		if len(t.Attempts) == 0 {
			return Attempt{}
		}
		return t.Attempts[len(t.Attempts)-1]
	}
	f := j.Frames[t.Hi-1]
	for _, a := range slices.Backward(t.Attempts) {
		if a.Peer == f.Peer && a.Device == f.Device {
			return a
		}
	}
	return Attempt{Peer: f.Peer, Device: f.Device}
}

// attempt finds the attempt of a lease, or answers -1.
func (t *Task) attempt(id ID) int {
	return slices.IndexFunc(t.Attempts, func(a Attempt) bool { return a.Lease == id })
}

// amend ends an attempt, or changes what is known of one that has ended.
func (t *Task) amend(k int, how func(*Attempt)) {
	t.Attempts = slices.Clone(t.Attempts)
	how(&t.Attempts[k])
	for ; k > 0 && t.Attempts[k].Outcome != "" && t.Attempts[k-1].Outcome == ""; k-- {
		t.Attempts[k], t.Attempts[k-1] = t.Attempts[k-1], t.Attempts[k]
	}
}

// add begins an attempt; the oldest one that has ended is forgotten where there are
// too many.
func (t *Task) add(a Attempt) {
	t.Attempts = slices.Clone(t.Attempts)
	if len(t.Attempts) >= maxAttempts {
		k := slices.IndexFunc(t.Attempts, func(a Attempt) bool { return a.Outcome != "" })
		t.Attempts = slices.Delete(t.Attempts, k, k+1)
	}
	t.Attempts = append(t.Attempts, a)
}
