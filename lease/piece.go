package lease

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"vizpeer/authz"
)

// A job that splits its frames has for each of them one task, as any job with chunks of
// one frame has, and beside it tasks for ranges of the frame's units: its parts. An
// attempt at a part gives pieces; the frame's own task, which nobody is granted before
// the pieces cover all units, merges them.

// Piece is a rendered range of a frame's units and who holds it. Pieces of one frame
// have no unit in common. A snapshot may hold the same: it is replaced, never changed.
type Piece struct {
	Span
	CID     string         `json:"cid"`
	Size    int64          `json:"size"`             // bytes
	Seconds float64        `json:"seconds"`          // in which it was rendered
	Peer    authz.PeerID   `json:"peer"`             // who rendered it
	Device  Device         `json:"device,omitempty"` // on what of it
	Holders []authz.PeerID `json:"holders"`          // who holds all of it, in order of their reports
	// Kept tells that enough machines hold it. Until then Under has the pieces whose place
	// it took and of which that was true: they count again should it be lost.
	Kept  bool    `json:"kept,omitempty"`
	Under []Piece `json:"under,omitempty"`
}

// PieceResult is a piece as the machine that rendered it reports it.
type PieceResult struct {
	Frame int32 `json:"frame"`
	Span
	CID     string  `json:"cid"`
	Size    int64   `json:"size"`
	Seconds float64 `json:"seconds"`
}

// More adds samples to every frame of a job that is split by them: to those that it
// was to have, whether they are rendered or not. Of a job that is done it opens the
// frames again; each stays as it is until the new samples are merged into it.
type More struct {
	Job     JobID `json:"job"`
	Samples int32 `json:"samples"`
	// Limits are set by the leader, from its settings.
	Limits Limits `json:"limits,omitzero"`
	// Once, unless nil, adds them once however often it is asked for.
	Once *Once `json:"once,omitempty"`
}

// Part tells whether the task is for a part of a frame.
func (t *Task) Part() bool { return t.Span != Span{} }

// Splits tells whether the job's frames are divided.
func (j *Job) Splits() bool { return j.Spec.Split.On() }

// Split is how the job's frames are divided now: more samples may have been asked for
// than at first.
func (j *Job) Split() Split {
	s := j.Spec.Split
	if s.On() {
		s.Units = j.Units
	}
	return s
}

// PiecesOf lists the pieces of the frame at a place, in order of their units. It is for
// reading only.
func (j *Job) PiecesOf(place int32) []Piece {
	if j.Pieces == nil {
		return nil
	}
	return j.Pieces[place]
}

// Gaps lists the units of a part that are to be rendered; none where its frame is there.
func (j *Job) Gaps(t *Task) []Span {
	if !j.open(t.Lo) {
		return nil
	}
	// Of a frame in thousands of tiles each part has few: they are in order.
	pieces := j.PiecesOf(t.Lo)
	first := sort.Search(len(pieces), func(i int) bool { return pieces[i].To > t.Span.From })
	last := sort.Search(len(pieces), func(i int) bool { return pieces[i].From >= t.Span.To })
	return t.Span.Gaps(spansOf(pieces[first:max(first, last)]))
}

func spansOf(pieces []Piece) []Span {
	spans := make([]Span, len(pieces))
	for i, p := range pieces {
		spans[i] = p.Span
	}
	return spans
}

func total(spans []Span) (n int32) {
	for _, s := range spans {
		n += s.Len()
	}
	return n
}

// Waits is the number of tasks that may be granted now.
func (j *Job) Waits() int { return j.count[TaskQueued] - j.blocked }

// blocks tells whether nobody can be granted a task because units of its frame, or
// frames of its movie, are still to be rendered.
func (j *Job) blocks(t *Task) bool {
	if j.Makes(t) {
		return j.early
	}
	return j.Splits() && !t.Part() && j.gaps[t.Lo] > 0
}

// regap brings what is derived from the pieces of a frame up to date.
func (j *Job) regap(place int32) {
	if !j.Splits() || int(place) == j.movie() {
		return
	}
	var gap int32
	if j.open(place) {
		gap = total(Span{0, j.Units}.Gaps(spansOf(j.Pieces[place])))
	}
	i := j.tasks[place]
	t := &j.Tasks[i]
	j.tally(t, -1)
	j.uncovered += int(gap) - int(j.gaps[place])
	j.gaps[place] = gap
	j.tally(t, 1)
	j.offer(i)
}

// setPieces replaces the pieces of a frame.
func (j *Job) setPieces(place int32, pieces []Piece) {
	j.Pieces[place] = pieces
	j.regap(place)
}

// checkPieces reports the first piece that the attempt of r cannot have made.
func (j *Job) checkPieces(r Report, pieces []PieceResult) error {
	t := &j.Tasks[r.Task.Index]
	whole := Span{0, j.Units}
	if len(pieces) > maxPieces {
		return fmt.Errorf("%w: %d pieces in one report", ErrInvalid, len(pieces))
	}
	for _, p := range pieces {
		at, ok := j.Place(p.Frame)
		switch {
		case !j.Splits() || !ok || int32(at) != t.Lo || j.Makes(t):
			return fmt.Errorf("%w: no piece of frame %d is wanted of task %s", ErrInvalid, p.Frame, r.Task)
		case p.From < 0 || p.Len() == 0 || !whole.Holds(p.Span):
			return fmt.Errorf("%w: a piece of frame %d is of its units %d to %d", ErrInvalid, p.Frame, p.From, p.To)
		case p.CID == "" || len(p.CID) > maxCID || p.Size <= 0 || p.Size > MaxFrameSize:
			return fmt.Errorf("%w: a piece of frame %d has %d bytes", ErrInvalid, p.Frame, p.Size)
		case !(p.Seconds >= 0 && p.Seconds <= maxSeconds):
			return fmt.Errorf("%w: a piece of frame %d took %g s", ErrInvalid, p.Frame, p.Seconds)
		case !t.Part() && p.Span != whole:
			return fmt.Errorf("%w: frame %d was merged of all its units", ErrInvalid, p.Frame)
		case t.Part() && len(p.Span.Gaps(j.claims(t.Lo, r.Lease))) > 0:
			return fmt.Errorf("%w: units %d to %d of frame %d are not in task %s", ErrInvalid, p.From, p.To, p.Frame, r.Task)
		case j.Spec.Split.By == ByTiles && t.Part() && p.Len() != 1:
			return fmt.Errorf("%w: %d tiles in one piece", ErrInvalid, p.Len())
		}
	}
	return nil
}

// maxPieces bounds the pieces of one report.
const maxPieces = MaxTiles

// claims lists the parts of a frame that the attempt of a lease was for: what was cut
// off it since then remembers the attempt.
func (j *Job) claims(place int32, id ID) (spans []Span) {
	for _, i := range j.parts[place] {
		if t := &j.Tasks[i]; t.attempt(id) >= 0 {
			spans = append(spans, t.Span)
		}
	}
	return spans
}

// takePieces stores the pieces that are wanted: those that have no unit in common with
// what is there, or hold all of what they meet, as the next piece of a sequence does, or
// that of an attempt that was begun anew. The others are ignored.
func (a *applying) takePieces(j *Job, r Report, results []PieceResult, machines int) {
	t := &j.Tasks[r.Task.Index]
	by := t.Attempts[t.attempt(r.Lease)]
	place := t.Lo
	wanted := t.Part() && j.open(place) && j.wants(int(place), by)
	if !t.Part() { // it comes with its frame, which is there by now
		wanted = !j.open(place) && j.Frames[place].Peer == r.Peer && by.Units == j.Units
	}
	if !wanted {
		return
	}
	for _, p := range results {
		have := j.Pieces[place]
		if at := slices.IndexFunc(have, func(o Piece) bool { return o.CID == p.CID }); at >= 0 {
			a.holdsPiece(j, place, at, r.Peer, machines)
			continue
		}
		if slices.ContainsFunc(have, func(o Piece) bool { return o.Meets(p.Span) && !p.Holds(o.Span) }) {
			continue
		}
		grown := PieceResult{Span: p.Span, Seconds: p.Seconds}
		pieces := make([]Piece, 0, len(have)+1)
		made := Piece{Span: p.Span, CID: p.CID, Size: p.Size, Seconds: p.Seconds, Peer: r.Peer, Device: by.Device}
		for _, o := range have {
			if !o.Meets(p.Span) {
				pieces = append(pieces, o)
				continue
			}
			if o.Peer == r.Peer && o.Device == by.Device && o.From == grown.From {
				grown.From, grown.Seconds = o.To, p.Seconds-o.Seconds
			}
			if o.Kept {
				made.Under = append(made.Under, o)
			} else {
				made.Under = append(made.Under, o.Under...)
				a.gone(j, place, o, replaced)
			}
		}
		pieces = append(pieces, made)
		slices.SortFunc(pieces, func(a, b Piece) int { return int(a.From) - int(b.From) })
		j.setPieces(place, pieces)
		if t.Part() {
			// It cannot have taken longer than the attempt, whatever the machine says.
			if took := a.at.Sub(by.Granted).Seconds(); took > 0 {
				j.measured(Hand{r.Peer, by.Device}, min(max(grown.Seconds, 0), took), int(grown.Len()))
			}
		}
		a.tell(Event{Type: PieceRendered, Job: j.ID, Task: r.Task.Index, Frame: &p.Frame, Peer: r.Peer, Lease: r.Lease,
			Result: &Result{Frame: p.Frame, CID: p.CID, Size: p.Size, Seconds: p.Seconds}, Span: p.Span})
		a.holdsPiece(j, place, slices.IndexFunc(pieces, func(o Piece) bool { return o.CID == p.CID }), r.Peer, machines)
	}
}

// replaced is why a piece counts no more where nothing of it is lost.
const replaced = "a larger piece holds it"

// NobodyHolds is the Reason of a [PieceGone] whose units have to be rendered again.
const NobodyHolds = "nobody holds it any more"

// gone tells that a piece counts no more.
func (a *applying) gone(j *Job, place int32, p Piece, why string) {
	frame := j.numbers[place]
	a.tell(Event{Type: PieceGone, Job: j.ID, Task: j.tasks[place], Frame: &frame, Peer: p.Peer, Result: &Result{Frame: frame, CID: p.CID, Size: p.Size}, Span: p.Span, Reason: why})
}

// covered ends the parts of a frame that were taken meanwhile and that nobody has, and
// makes those wait again of which units are gone.
func (a *applying) covered(j *Job, place int32) {
	if !j.Splits() || j.State.Ended() {
		return
	}
	for _, i := range j.parts[place] {
		t := &j.Tasks[i]
		switch left := len(j.Gaps(t)) > 0; {
		case t.State == TaskQueued && !left && len(t.Attempts) > 0:
			a.finished(j, i)
		case (t.State == TaskRendered || t.State == TaskDone) && left:
			t.Fails = 0
			j.setTask(i, TaskQueued)
			a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, State: string(TaskQueued), Reason: "pieces of it are gone, or wanted again"})
		case t.State == TaskDone && j.Tasks[j.tasks[place]].State != TaskDone:
			j.setTask(i, TaskRendered)
		}
	}
}

// partsDone ends the parts of a frame that is done.
func (a *applying) partsDone(j *Job, place int32) {
	if !j.Splits() {
		return
	}
	for _, i := range j.parts[place] {
		a.revoke(j, i, "its frame is done", "its frame is done")
		if t := &j.Tasks[i]; t.State != TaskDone {
			j.setTask(i, TaskDone)
			last := j.renderer(t)
			a.tell(Event{Type: TaskEnded, Job: j.ID, Task: i, Lease: last.Lease, Peer: last.Peer, State: string(TaskDone)})
		}
	}
	if j.Spec.Split.By == ByTiles { // nothing can be added to them
		a.dropPieces(j, place, "its frame is done")
	}
}

func (a *applying) dropPieces(j *Job, place int32, why string) {
	for _, p := range j.PiecesOf(place) {
		for _, o := range append(slices.Clone(p.Under), p) {
			a.gone(j, place, o, why)
		}
	}
	if len(j.PiecesOf(place)) > 0 {
		j.setPieces(place, nil)
	}
}

// holdsPiece notes that p, unless it is "", holds a piece, which may make it one that is
// kept.
func (a *applying) holdsPiece(j *Job, place int32, at int, p authz.PeerID, machines int) {
	piece := j.Pieces[place][at]
	more := p != "" && !slices.Contains(piece.Holders, p)
	if more {
		piece.Holders = append(slices.Clone(piece.Holders), p)
	}
	kept := !piece.Kept && len(piece.Holders) >= min(j.Spec.Replicas, max(machines, 1))
	if !more && !kept {
		return
	}
	if kept {
		for _, o := range piece.Under {
			a.gone(j, place, o, replaced)
		}
		piece.Kept, piece.Under = true, nil
		frame := j.numbers[place]
		a.tell(Event{Type: PieceKept, Job: j.ID, Task: j.tasks[place], Frame: &frame, Peer: piece.Peer, Result: &Result{Frame: frame, CID: piece.CID, Size: piece.Size}, Span: piece.Span})
	}
	pieces := slices.Clone(j.Pieces[place])
	pieces[at] = piece
	j.Pieces[place] = pieces
}

// piecesUnheld takes p off the holders of the pieces of a frame, of all or of those with
// a CID. Those that nobody holds any more are gone.
func (a *applying) piecesUnheld(j *Job, place int32, p authz.PeerID, cid string) {
	loses := func(o Piece) bool { return (cid == "" || o.CID == cid) && slices.Contains(o.Holders, p) }
	if !slices.ContainsFunc(j.PiecesOf(place), func(o Piece) bool { return loses(o) || slices.ContainsFunc(o.Under, loses) }) {
		return
	}
	var held func(pieces []Piece) []Piece
	held = func(pieces []Piece) (left []Piece) {
		for _, o := range pieces {
			o.Under = held(o.Under)
			if loses(o) {
				if o.Holders = without(slices.Clone(o.Holders), p); len(o.Holders) == 0 {
					a.gone(j, place, o, NobodyHolds)
					left = append(left, o.Under...)
					continue
				}
			}
			left = append(left, o)
		}
		return left
	}
	j.setPieces(place, held(j.Pieces[place]))
	a.covered(j, place)
}

// Piece finds the piece of a frame, by its place, with a CID.
func (j *Job) Piece(place int, cid string) (Piece, bool) {
	pieces := j.PiecesOf(int32(place))
	at := slices.IndexFunc(pieces, func(p Piece) bool { return p.CID == cid })
	if at < 0 {
		return Piece{}, false
	}
	return pieces[at], true
}

// cutPart makes a task of the first units of a part that is queued, of which n are to be
// rendered, and returns its index. Both were tried by whoever tried the whole.
func (j *Job) cutPart(i int32, n int32) int32 {
	t := &j.Tasks[i]
	end := t.Span.From
	for _, gap := range j.Gaps(t) {
		take := min(n, gap.Len())
		end = gap.From + take
		if n -= take; n == 0 {
			break
		}
	}
	first := Task{State: TaskQueued, Lo: t.Lo, Hi: t.Hi, Span: Span{t.Span.From, end}, Fails: t.Fails, Attempts: t.Attempts}
	j.tally(t, -1)
	t.Span.From = end
	j.tally(t, 1)
	j.tally(&first, 1)
	j.Tasks = append(j.Tasks, first)
	at := int32(len(j.Tasks) - 1)
	j.parts[first.Lo] = append(j.parts[first.Lo], at)
	return at
}

// layoutParts adds to the tasks of frames those of their parts.
func (s Spec) layoutParts(tasks []Task, most int) ([]Task, error) {
	frames := len(tasks)
	if s.Movie != "" {
		frames--
	}
	if 2*frames > most {
		return nil, fmt.Errorf("%w: %d frames that are split would have more than the %d tasks allowed; use fewer frames, or do not split them", ErrLimit, frames, most)
	}
	for i := range frames {
		tasks = append(tasks, Task{State: TaskQueued, Lo: int32(i), Hi: int32(i) + 1, Span: Span{0, s.Split.Units}})
	}
	return tasks, nil
}

// errWhole refuses samples for frames of which no samples are kept.
var errWhole = errors.New("its frames were not split by samples, so that none can be added: submit it again with --split samples")

func (a *applying) more(c More) error {
	j, err := a.edit(c.Job)
	if err == nil {
		err = a.repeats(c.Once)
	}
	if err != nil {
		return err
	}
	switch {
	case j.Spec.Split.By != BySamples:
		return fmt.Errorf("%w: %w", ErrState, errWhole)
	case c.Samples < 1 || c.Samples > MaxSamples-j.Units:
		return fmt.Errorf("%w: %d samples cannot be added to %d: use 1 to %d", ErrInvalid, c.Samples, j.Units, MaxSamples-j.Units)
	case j.State == JobFailed || j.State == JobCancelled:
		return fmt.Errorf("%w: it is %s; retry it first", ErrState, j.State)
	case len(j.Tasks)+len(j.Frames) > j.MostTasks():
		return fmt.Errorf("%w: the job would have more than the %d tasks allowed", ErrLimit, j.MostTasks())
	}
	ended := j.State.Ended()
	if ended {
		if err := a.mayOpen(j.Spec.Owner, len(j.Tasks)+len(j.Frames), c.Limits); err != nil {
			return err
		}
		if err := a.mayFollow(j.Spec.After, true); err != nil {
			return err
		}
	}
	a.remember(c.Once, j)
	was := j.Units
	j.Units += c.Samples
	for at := range j.Pictures() {
		j.Tasks = append(j.Tasks, Task{State: TaskQueued, Lo: int32(at), Hi: int32(at) + 1, Span: Span{was, j.Units}})
	}
	if ended {
		a.reopen(j)
		a.tell(Event{Type: JobSubmitted, Job: j.ID, Task: -1, State: string(j.State)})
	} else {
		j.derive()
	}
	for at, f := range j.Frames {
		if f != nil && !f.again() && at != j.movie() {
			a.again(j, at, fmt.Sprintf("%d samples were added", c.Samples))
		}
		a.covered(j, int32(at))
	}
	return nil
}
