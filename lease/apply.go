package lease

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"vizpeer/authz"
)

// Apply carries out c and returns what happened, or an error that changed
// nothing. It is deterministic.
func (s *State) Apply(c Command) ([]Event, error) {
	a := applying{State: s, at: c.At.UTC()}
	var err error
	switch {
	case a.at.Year() < 0 || a.at.Year() > 9999: // it could not be stored
		err = fmt.Errorf("%w: the command is of the year %d", ErrInvalid, a.at.Year())
	case c.Submit != nil:
		err = a.submit(*c.Submit)
	case c.Grant != nil:
		err = a.grant(*c.Grant)
	case c.Record != nil:
		err = a.record(*c.Record)
	case c.Complete != nil:
		err = a.complete(*c.Complete)
	case c.Fail != nil:
		err = a.fail(*c.Fail)
	case c.Release != nil:
		err = a.release(*c.Release)
	case c.Expire != nil:
		err = a.expire(*c.Expire)
	case c.Hold != nil:
		err = a.hold(*c.Hold)
	case c.Stock != nil:
		err = a.stock(*c.Stock)
	case c.Unhold != nil:
		err = a.unhold(*c.Unhold)
	case c.Store != nil:
		err = a.store(*c.Store)
	case c.Lose != nil:
		a.lose(*c.Lose)
	case c.Cancel != nil:
		err = a.cancel(*c.Cancel)
	case c.Forget != nil:
		a.forget(*c.Forget)
	case c.Pause != nil:
		err = a.pause(*c.Pause)
	case c.Resume != nil:
		err = a.resume(*c.Resume)
	case c.Prioritise != nil:
		err = a.prioritise(*c.Prioritise)
	case c.Retry != nil:
		err = a.retry(*c.Retry)
	case c.Drain != nil:
		err = a.drain(*c.Drain)
	case c.Forgive != nil:
		err = a.forgive(*c.Forgive)
	case c.More != nil:
		err = a.more(*c.More)
	default:
		err = fmt.Errorf("%w: the command is empty or unknown to this version", ErrInvalid)
	}
	return a.events, err
}

// applying is one Apply under way. Each verb checks everything before it
// changes anything.
type applying struct {
	*State
	at     time.Time
	events []Event
}

func (a *applying) tell(e Event) { a.events = append(a.events, e) }

func (a *applying) submit(c Submit) error {
	if c.Job == "" {
		return fmt.Errorf("%w: the job has no ID", ErrInvalid)
	}
	if err := a.repeats(c.Once); err != nil {
		return err
	}
	if j, taken := a.jobs[c.Job]; taken {
		if j.Spec.same(c.Spec) { // its answer was lost, however long ago
			tasks, _ := j.Spec.CountTasks(j.Most) // as it could be counted then
			return &Repeated{j.ID, tasks}
		}
		return fmt.Errorf("%w: job %s", ErrExists, c.Job)
	}
	if err := c.Spec.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := a.mayFollow(c.Spec.After, false); err != nil {
		return err
	}
	j := &Job{ID: c.Job, Seq: a.seq + 1, Spec: c.Spec, State: JobQueued, Tier: c.Spec.Tier, Created: a.at, Served: a.at, Holders: []authz.PeerID{c.Spec.Submitter}, Most: max(c.Limits.Tasks, 0)}
	frames := len(c.Spec.places())
	var err error
	if j.Tasks, err = c.Spec.layout(j.MostTasks()); err != nil {
		return err
	}
	if err := a.mayOpen(c.Spec.Owner, len(j.Tasks), c.Limits); err != nil {
		return err
	}
	j.Frames = make([]*Frame, frames)
	if j.Splits() {
		j.Units, j.Pieces = c.Spec.Split.Units, make([][]Piece, frames)
	}
	j.totals = a.totals
	j.derive()
	a.seq++
	a.jobs[j.ID] = j
	a.list = append(a.list, j)
	a.enlist(j)
	a.remember(c.Once, j)
	a.tell(Event{Type: JobSubmitted, Job: j.ID, Task: -1, State: string(JobQueued)})
	return nil
}

func (a *applying) grant(c Grant) error {
	j, t, err := a.editTask(c.Task)
	switch {
	case err != nil:
		return err
	case c.Lease == "" || c.Peer == "":
		return fmt.Errorf("%w: a grant names a lease and a machine", ErrInvalid)
	case c.Frames < 0 || c.Frames > 0 && (c.Second || !j.Spec.Adaptive() || j.Splits()) || c.Units < 0 || c.Units > 0 && (c.Second || !t.Part()):
		return fmt.Errorf("%w: a task can be cut only while it waits, and where the farm chooses the chunks", ErrInvalid)
	case c.Device.Validate() != nil:
		return fmt.Errorf("%w: %w", ErrInvalid, c.Device.Validate())
	case j.State.Ended():
		return ErrEnded
	case j.State == JobPaused:
		return ErrPaused
	case a.Awaits(j) != "":
		return fmt.Errorf("%w: it comes after job %s", ErrNotQueued, a.Awaits(j))
	case c.Second && !t.mayHaveSecond(c.Peer):
		return ErrNotStuck
	case !c.Second && (t.State != TaskQueued || j.blocks(t)):
		return ErrNotQueued
	case t.attempt(c.Lease) >= 0:
		return fmt.Errorf("%w: lease %s", ErrExists, c.Lease)
	case a.Machine(c.Peer).Drained != "":
		return fmt.Errorf("%w: %s", ErrDrained, a.Machine(c.Peer).Drained)
	}
	i := c.Task.Index
	if 0 < c.Units && c.Units < j.Left(t) && len(j.Tasks) < j.MostTasks() {
		i = j.cutPart(i, c.Units)
	} else if n := j.with(t, c.Frames); 0 < c.Frames && n < t.Hi-t.Lo && len(j.Tasks) < j.MostTasks() {
		i = j.cut(i, n)
	}
	at := Attempt{Lease: c.Lease, Peer: c.Peer, Device: c.Device, Granted: j.since(&j.Tasks[i], a.at)}
	if j.Splits() && !j.Tasks[i].Part() {
		at.Units = j.Units
	}
	j.begin(i, at)
	j.Served = a.at
	if j.State == JobQueued {
		j.State, j.Started = JobRunning, a.at
		a.tell(Event{Type: JobStarted, Job: j.ID, Task: -1, State: string(JobRunning)})
	}
	a.tell(Event{Type: TaskGranted, Job: j.ID, Task: i, Lease: c.Lease, Peer: c.Peer, State: string(TaskLeased)})
	return nil
}

// Check tells why a report would be refused whatever it says; nil where it would not.
func (s *State) Check(r Report) error {
	j, t, err := s.Task(r.Task)
	switch {
	case err != nil:
		return err
	case t.attempt(r.Lease) < 0 || t.Attempts[t.attempt(r.Lease)].Peer != r.Peer:
		return ErrStale
	case j.State.Ended():
		return ErrEnded
	}
	return nil
}

// attempt finds what r reports about. live tells whether its lease still is.
func (a *applying) attempt(r Report) (j *Job, t *Task, k int, live bool, err error) {
	if err = a.Check(r); err != nil {
		return
	}
	j, t, err = a.editTask(r.Task)
	k = t.attempt(r.Lease)
	_, live = t.Live(r.Lease)
	return
}

// maxSeconds is the longest time of a frame that makes sense, in seconds: a year.
const maxSeconds = 366 * 24 * 3600

// MaxFrameSize is the largest picture, and the most of all files beside one, in bytes:
// whoever keeps them makes room for as much as the machine says that rendered it.
const MaxFrameSize = 16 << 30

// take checks results of a task and, unless one is malformed, stores those that
// are still open. A task may have been cut after the lease ended: what was cut off
// remembers the attempt too.
func (a *applying) take(j *Job, r Report, results []Result, pieces []PieceResult, machines int) error {
	if err := j.checkPieces(r, pieces); err != nil {
		return err
	}
	if len(results) > len(j.Frames) {
		return fmt.Errorf("%w: %d results of a job of %d frames", ErrInvalid, len(results), len(j.Frames))
	}
	for _, f := range results {
		at, ok := j.Place(f.Frame)
		switch {
		case !ok || j.Tasks[j.TaskOf(at)].attempt(r.Lease) < 0 || j.Tasks[r.Task.Index].Part():
			return fmt.Errorf("%w: frame %d is not in task %s", ErrInvalid, f.Frame, r.Task)
		case f.CID == "" || len(f.CID) > maxCID || f.Size <= 0:
			return fmt.Errorf("%w: frame %d has no content", ErrInvalid, f.Frame)
		case f.Size > MaxFrameSize:
			return fmt.Errorf("%w: frame %d has %d GiB, more than the %d allowed", ErrInvalid, f.Frame, f.Size>>30, MaxFrameSize>>30)
		case !(f.Seconds >= 0 && f.Seconds <= maxSeconds):
			return fmt.Errorf("%w: frame %d took %g s", ErrInvalid, f.Frame, f.Seconds)
		case f.Frame == MovieFrame && !movieName(f.Name) || f.Frame != MovieFrame && !pictureName(f.Name, f.Frame):
			return fmt.Errorf("%w: frame %d has the file name %q", ErrInvalid, f.Frame, f.Name)
		case len(f.Extra) > maxCID || (f.Extra == "") != (f.ExtraSize == 0) || (f.Extra == "") != (f.ExtraFiles == 0) ||
			f.ExtraSize < 0 || f.ExtraSize > MaxFrameSize || f.ExtraFiles < 0 || f.ExtraFiles > MaxExtra || f.Extra != "" && f.Frame == MovieFrame:
			return fmt.Errorf("%w: %d files beside frame %d with %d bytes", ErrInvalid, f.ExtraFiles, f.Frame, f.ExtraSize)
		case len(f.Thumb) > maxCID:
			return fmt.Errorf("%w: the thumbnail of frame %d has a CID of %d bytes", ErrInvalid, f.Frame, len(f.Thumb))
		}
	}
	t := &j.Tasks[r.Task.Index]
	by := t.Attempts[t.attempt(r.Lease)]
	for _, f := range results {
		at, _ := j.Place(f.Frame)
		have := j.Frames[at]
		renewed := have != nil && j.wants(at, by)
		switch {
		case have == nil && !j.wants(at, by):
			continue
		case have == nil || renewed && !have.same(f):
			if have != nil {
				a.tell(Event{Type: FrameLost, Job: j.ID, Task: j.TaskOf(at), Frame: &f.Frame, Result: &have.Result, Reason: "it was rendered again"})
			}
			j.setFrame(at, &Frame{Result: f, Peer: r.Peer, Device: by.Device})
			if !j.Splits() && f.Frame != MovieFrame {
				// It cannot have taken longer than the attempt, whatever the machine says.
				if took := a.at.Sub(by.Granted).Seconds(); took > 0 { // else another clock has been at work
					j.measured(Hand{r.Peer, by.Device}, min(f.Seconds, took), 1)
				}
			}
		case renewed: // the same to the byte
			same := have.with()
			same.Again = time.Time{}
			j.setFrame(at, same)
		case !have.same(f):
			continue
		}
		if have == nil || renewed {
			e := Event{Type: FrameResult, Job: j.ID, Task: j.TaskOf(at), Frame: &f.Frame, Peer: r.Peer, Lease: r.Lease, Result: &f}
			if renewed && have.same(f) {
				e.State = SameAgain
			}
			a.tell(e)
		}
		a.holder(j, at, r.Peer, machines)
	}
	if len(pieces) > 0 {
		a.takePieces(j, r, pieces, machines)
	}
	return nil
}

// taken ends the tasks that an attempt's results complete while nobody has them, and
// settles them.
func (a *applying) taken(j *Job, r Report, results []Result) {
	if t := &j.Tasks[r.Task.Index]; t.Part() {
		a.covered(j, t.Lo)
		a.settle(j, r.Task.Index)
		return
	}
	tasks := []int32{r.Task.Index}
	for _, f := range results {
		at, _ := j.Place(f.Frame)
		tasks = append(tasks, j.TaskOf(at))
	}
	slices.Sort(tasks)
	for _, i := range slices.Compact(tasks) {
		if t := &j.Tasks[i]; t.State == TaskQueued && j.complete(t) {
			a.rendered(j, i, t.attempt(r.Lease), "")
		}
		a.covered(j, j.Tasks[i].Lo) // a part may have waited for what its frame needs no more
		a.settle(j, i)
	}
}

// maxDepth is how many folders deep a file beside a frame may lie.
const maxDepth = 12

// CheckExtra tells what is wrong with the place of a file beside a frame, a slash path
// below the job's output folder. As with the frame itself, a machine that renders
// chooses the name, and must not choose that of another file.
func CheckExtra(place string, frame int32) error {
	switch dir, name := path.Split(place); {
	case !inside(place) || strings.Count(place, "/") > maxDepth:
		return fmt.Errorf("it is not a path below the output folder")
	case strings.HasPrefix(place, ".") || strings.Contains(place, "/.") || strings.ContainsAny(dir, ":\n\r"):
		return fmt.Errorf("it is in a folder that is hidden, or that not every system can have")
	case !pictureName(name, frame):
		return fmt.Errorf("it is not a picture's name with the frame's number")
	}
	return nil
}

// pictureName tells whether a frame may be written into a folder of pictures
// under this name, on every system: a name that Blender gives, with the frame's
// number and a picture's extension. A machine that renders chooses the name, and
// must not choose that of another file.
func pictureName(n string, frame int32) bool {
	return len(n) <= 255 && !strings.HasPrefix(n, ".") && !strings.ContainsAny(n, "/\\:\x00\n\r") &&
		slices.Contains(pictureExtensions, strings.ToLower(path.Ext(n))) && strings.Contains(n, strconv.Itoa(max(int(frame), -int(frame))))
}

// pictureExtensions are those that Blender gives to images.
var pictureExtensions = []string{
	".png", ".jpg", ".jpeg", ".exr", ".tif", ".tiff", ".bmp", ".tga", ".webp", ".hdr", ".dpx", ".cin", ".jp2", ".j2c", ".rgb", ".iris",
}

func (a *applying) record(c Record) error {
	j, _, _, _, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if err := a.take(j, c.Report, c.Frames, c.Pieces, c.Machines); err != nil {
		return err
	}
	a.taken(j, c.Report, c.Frames)
	return nil
}

func (a *applying) complete(c Complete) error {
	j, t, k, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live && t.State != TaskQueued {
		return ErrStale
	}
	if !live && !j.wouldComplete(t, k, c) {
		return ErrStale
	}
	if err := a.take(j, c.Report, c.Frames, c.Pieces, c.Machines); err != nil {
		return err
	}
	if left := j.Left(t); left > 0 {
		// Frames that were there when the lease was granted were lost meanwhile, or the
		// machine was to stop: it did its part, and the rest is for the next attempt.
		reason := fmt.Sprintf("%d frames of the task are still to be rendered", left)
		if t.Part() {
			reason = fmt.Sprintf("%d %s are still to be rendered", left, j.Spec.Split.By)
		}
		a.finish(j, c.Report, Attempt{Outcome: OutcomeReleased, Reason: reason, Log: c.Log})
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	a.rendered(j, c.Task.Index, k, c.Log)
	a.taken(j, c.Report, c.Frames)
	return nil
}

// wouldComplete tells whether nothing of a task was left to be rendered with what its
// attempt k says that it made.
func (j *Job) wouldComplete(t *Task, k int, c Complete) bool {
	if t.Part() {
		gaps := j.Gaps(t)
		spans := spansOf(j.PiecesOf(t.Lo))
		for _, p := range c.Pieces {
			spans = append(spans, p.Span)
		}
		return len(gaps) == 0 || j.wants(int(t.Lo), t.Attempts[k]) && len(t.Span.Gaps(spans)) == 0
	}
	missing := map[int32]bool{}
	for _, f := range j.Remaining(t) {
		missing[f] = true
	}
	for _, f := range c.Frames {
		if at, ok := j.Place(f.Frame); ok && j.wants(at, t.Attempts[k]) {
			delete(missing, f.Frame)
		}
	}
	return len(missing) == 0
}

// rendered ends a task of which every frame is there, by its attempt k. Whoever else
// tries it is told to stop.
func (a *applying) rendered(j *Job, i int32, k int, log string) {
	t := &j.Tasks[i]
	first := t.Attempts[k]
	j.amend(i, k, func(at *Attempt) {
		at.Ended, at.Outcome, at.Log, at.Reason, at.Kind = a.at, OutcomeRendered, cut(log, maxCID), "", ""
	})
	a.revoke(j, i, "another machine was first", "another machine was first")
	j.overheads(t, first.Lease)
	a.finished(j, i)
}

// finished makes a task rendered of which every frame is there.
func (a *applying) finished(j *Job, i int32) {
	t := &j.Tasks[i]
	j.setTask(i, TaskRendered)
	by := j.renderer(t)
	a.performed(by.Peer)
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: i, Lease: by.Lease, Peer: by.Peer, State: string(TaskRendered)})
}

// revoke ends all leases of a task that live.
func (a *applying) revoke(j *Job, i int32, reason, told string) {
	for _, at := range j.Tasks[i].Lives() {
		a.finish(j, Report{Lease: at.Lease, Task: TaskID{Job: j.ID, Index: i}, Peer: at.Peer}, Attempt{Outcome: OutcomeRevoked, Reason: reason})
		a.tell(Event{Type: LeaseRevoked, Job: j.ID, Task: i, Lease: at.Lease, Peer: at.Peer, Reason: told})
	}
}

// finish ends an attempt that did not render its task; end says how.
func (a *applying) finish(j *Job, r Report, end Attempt) {
	j.amend(r.Task.Index, j.Tasks[r.Task.Index].attempt(r.Lease), func(at *Attempt) {
		at.Ended, at.Outcome, at.Kind = a.at, end.Outcome, end.Kind
		at.Reason, at.Log = cut(end.Reason, maxReason), cut(end.Log, maxCID)
	})
}

func (a *applying) fail(c Fail) error {
	j, t, _, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live {
		return ErrStale
	}
	reason := cut(cmp.Or(c.Reason, "the attempt failed"), maxReason)
	a.finish(j, c.Report, Attempt{Outcome: OutcomeFailed, Reason: reason, Log: c.Log, Kind: c.Kind.known()})
	if c.Kind == FailMemory && c.Others > 0 && c.Had != (Memory{}) {
		// A machine with more memory is there: neither the task nor this one is to blame.
		j.Above = j.Above.More(c.Had)
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	if j.Faults == nil {
		j.Faults = map[authz.PeerID]int{}
	}
	j.Faults[c.Peer]++
	a.faulted(j, c.Peer, reason)
	if c.Kind == FailMachine {
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	alone := !slices.ContainsFunc(t.Attempts, func(other Attempt) bool { return other.Outcome == OutcomeFailed && other.Peer != c.Peer })
	if t.Fails++; t.Fails < MaxTries || alone && c.Others > 0 || len(t.Lives()) > 0 {
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	j.setTask(c.Task.Index, TaskFailed)
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: c.Task.Index, Lease: c.Lease, Peer: c.Peer, State: string(TaskFailed), Reason: reason})
	j.Tail = cut(c.Tail, maxLogTail)
	a.end(j, JobFailed, fmt.Sprintf("task %d failed %d times, the last time because: %s", c.Task.Index, t.Fails, reason))
	return nil
}

// requeue makes a task wait for the next machine after an attempt at it has ended,
// unless another one still tries it.
func (a *applying) requeue(j *Job, i int32, r Report, reason string) {
	t := &j.Tasks[i]
	if len(t.Lives()) > 0 {
		a.tell(Event{Type: LeaseEnded, Job: j.ID, Task: i, Lease: r.Lease, Peer: r.Peer, State: string(t.State), Reason: reason})
		return
	}
	j.setTask(i, TaskQueued)
	a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, Lease: r.Lease, Peer: r.Peer, State: string(TaskQueued), Reason: reason})
	if j.complete(t) {
		// Every frame was recorded before the attempt ended without saying so.
		a.finished(j, i)
		a.settle(j, i)
	}
}

func (a *applying) release(c Release) error {
	j, _, _, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live {
		return ErrStale
	}
	a.finish(j, c.Report, Attempt{Outcome: OutcomeReleased, Reason: c.Reason})
	a.requeue(j, c.Task.Index, c.Report, cut(c.Reason, maxReason))
	return nil
}

// silent is why leases expire.
const silent = "the machine was not heard from"

func (a *applying) expire(c Expire) error {
	j, t, err := a.editTask(c.Task)
	if err != nil {
		return err
	}
	at, live := t.Live(c.Lease)
	if !live {
		return ErrStale
	}
	r := Report{Lease: at.Lease, Task: c.Task, Peer: at.Peer}
	a.finish(j, r, Attempt{Outcome: OutcomeExpired, Reason: silent})
	a.requeue(j, c.Task.Index, r, silent)
	return nil
}

// settle ends a rendered task whose frames are all done, and its job with the
// last of them.
func (a *applying) settle(j *Job, i int32) {
	t := &j.Tasks[i]
	if t.State != TaskRendered {
		return
	}
	if t.Part() { // it is done with its frame
		if j.Tasks[j.TaskOf(int(t.Lo))].State == TaskDone {
			a.partsDone(j, t.Lo)
		}
		return
	}
	for k := t.Lo; k < t.Hi; k++ {
		if f := j.Frames[k]; f == nil || !f.Done {
			return
		}
	}
	j.setTask(i, TaskDone)
	last := j.renderer(t)
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: i, Lease: last.Lease, Peer: last.Peer, State: string(TaskDone)})
	a.partsDone(j, t.Lo)
	if j.count[TaskDone] == len(j.Tasks) && !j.State.Ended() {
		a.end(j, JobDone, "")
	}
}

func (a *applying) cancel(c Cancel) error {
	j, err := a.opened(c.Job)
	if err != nil {
		return err
	}
	a.end(j, JobCancelled, cut(c.Reason, maxReason))
	return nil
}

// forget drops jobs that ended long ago.
func (a *applying) forget(c Forget) {
	a.list = slices.DeleteFunc(a.list, func(j *Job) bool {
		old := j.State.Ended() && j.Ended.Before(c.Before)
		if old {
			delete(a.jobs, j.ID)
			for s, n := range j.count {
				a.totals.add(j.Tier, s, -n)
			}
		}
		return old
	})
}

// end gives a job its final state, takes back its leases and its place in the
// queue.
func (a *applying) end(j *Job, to JobState, reason string) {
	j.own()
	j.State, j.Reason, j.Ended = to, reason, a.at
	for i := range j.Tasks {
		a.revoke(j, int32(i), reason, "the job is "+string(to))
		if t := &j.Tasks[i]; t.State == TaskQueued || t.State == TaskLeased {
			j.setTask(int32(i), TaskCancelled)
		}
	}
	j.queued = nil
	a.delist(j)
	a.tell(Event{Type: JobEnded, Job: j.ID, Task: -1, State: string(to), Reason: reason})
	a.follow(j)
}

// cut shortens s to n bytes at most without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "?")
	}
	return strings.ToValidUTF8(s[:n], "")
}
