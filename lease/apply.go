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
	if _, taken := a.jobs[c.Job]; taken {
		return fmt.Errorf("%w: job %s", ErrExists, c.Job)
	}
	if err := c.Spec.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := a.mayOpen(c.Spec.Owner); err != nil {
		return err
	}
	if err := a.mayFollow(c.Spec.After, false); err != nil {
		return err
	}
	if c.Spec.Chunk == 0 {
		c.Spec.Chunk = DefaultChunk
	}
	j := &Job{ID: c.Job, Seq: a.seq + 1, Spec: c.Spec, State: JobQueued, Tier: c.Spec.Tier, Created: a.at, Served: a.at, Holders: []authz.PeerID{c.Spec.Submitter}}
	frames, chunk := len(c.Spec.Frames.Expand()), c.Spec.Chunk
	tasks := (frames-1)/chunk + 1
	if tasks > MaxTasks {
		return fmt.Errorf("%w: the job would have %d tasks, more than the %d allowed; use larger chunks or fewer frames", ErrLimit, tasks, MaxTasks)
	}
	j.Tasks = make([]Task, tasks)
	for i := range j.Tasks {
		lo := i * chunk
		j.Tasks[i] = Task{State: TaskQueued, Lo: int32(lo), Hi: int32(min(lo+chunk, frames))}
	}
	j.Frames = make([]*Frame, frames)
	j.derive()
	a.seq++
	a.jobs[j.ID] = j
	a.list = append(a.list, j)
	a.enlist(j)
	a.tell(Event{Type: JobSubmitted, Job: j.ID, Task: -1, State: string(JobQueued)})
	return nil
}

func (a *applying) grant(c Grant) error {
	j, t, err := a.Task(c.Task)
	switch {
	case err != nil:
		return err
	case c.Lease == "" || c.Peer == "":
		return fmt.Errorf("%w: a grant names a lease and a machine", ErrInvalid)
	case c.Device.Validate() != nil:
		return fmt.Errorf("%w: %w", ErrInvalid, c.Device.Validate())
	case j.State.Ended():
		return ErrEnded
	case j.State == JobPaused:
		return ErrPaused
	case a.Awaits(j) != "":
		return fmt.Errorf("%w: it comes after job %s", ErrNotQueued, a.Awaits(j))
	case t.State != TaskQueued:
		return ErrNotQueued
	}
	for _, old := range t.Attempts {
		if old.Lease == c.Lease {
			return fmt.Errorf("%w: lease %s", ErrExists, c.Lease)
		}
	}
	if len(t.Attempts) >= maxAttempts {
		t.Attempts = slices.Delete(t.Attempts, 0, 1)
	}
	t.Attempts = append(t.Attempts, Attempt{Lease: c.Lease, Peer: c.Peer, Device: c.Device, Granted: a.at})
	j.setTask(c.Task.Index, TaskLeased)
	j.Served = a.at
	if j.State == JobQueued {
		j.State, j.Started = JobRunning, a.at
		a.tell(Event{Type: JobStarted, Job: j.ID, Task: -1, State: string(JobRunning)})
	}
	a.tell(Event{Type: TaskGranted, Job: j.ID, Task: c.Task.Index, Lease: c.Lease, Peer: c.Peer, State: string(TaskLeased)})
	return nil
}

// attempt finds what r reports about. live tells whether its lease still is.
func (a *applying) attempt(r Report) (j *Job, t *Task, at *Attempt, live bool, err error) {
	if j, t, err = a.Task(r.Task); err != nil {
		return
	}
	for i := range t.Attempts {
		if t.Attempts[i].Lease == r.Lease && t.Attempts[i].Peer == r.Peer {
			at = &t.Attempts[i]
		}
	}
	if at == nil {
		err = ErrStale
		return
	}
	if j.State.Ended() {
		err = ErrEnded
		return
	}
	return j, t, at, t.live() == at, nil
}

// maxFrameSize is the largest picture, in bytes: whoever keeps it makes room for as
// much as the machine says that rendered it.
const maxFrameSize = 16 << 30

// take checks results of a task and, unless one is malformed, stores those that
// are still open.
func (a *applying) take(j *Job, r Report, results []Result, machines int) error {
	t := &j.Tasks[r.Task.Index]
	for _, f := range results {
		at, ok := j.Place(f.Frame)
		switch {
		case !ok || at < int(t.Lo) || at >= int(t.Hi):
			return fmt.Errorf("%w: frame %d is not in task %s", ErrInvalid, f.Frame, r.Task)
		case f.CID == "" || len(f.CID) > maxCID || f.Size <= 0:
			return fmt.Errorf("%w: frame %d has no content", ErrInvalid, f.Frame)
		case f.Size > maxFrameSize:
			return fmt.Errorf("%w: frame %d has %d GiB, more than the %d allowed", ErrInvalid, f.Frame, f.Size>>30, maxFrameSize>>30)
		case !pictureName(f.Name, f.Frame):
			return fmt.Errorf("%w: frame %d has the file name %q", ErrInvalid, f.Frame, f.Name)
		}
	}
	for _, f := range results {
		at, _ := j.Place(f.Frame)
		have := j.Frames[at]
		if have == nil {
			j.Frames[at] = &Frame{Result: f, Peer: r.Peer}
			j.rendered++
			a.tell(Event{Type: FrameResult, Job: j.ID, Task: r.Task.Index, Frame: &f.Frame, Peer: r.Peer, Lease: r.Lease, Result: &f})
			a.holder(j, at, r.Peer, machines)
		} else if have.CID == f.CID {
			a.holder(j, at, r.Peer, machines)
		}
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
	j, t, at, _, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if err := a.take(j, c.Report, c.Frames, c.Machines); err != nil {
		return err
	}
	if t.State == TaskQueued && len(j.Remaining(t)) == 0 {
		a.rendered(j, c.Task.Index, at, "")
	}
	a.settle(j, c.Task.Index)
	return nil
}

func (a *applying) complete(c Complete) error {
	j, t, at, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live && t.State != TaskQueued {
		return ErrStale
	}
	missing := map[int32]bool{}
	for _, f := range j.Remaining(t) {
		missing[f] = true
	}
	for _, f := range c.Frames {
		delete(missing, f.Frame)
	}
	if len(missing) > 0 && !live {
		return ErrStale
	}
	if err := a.take(j, c.Report, c.Frames, c.Machines); err != nil {
		return err
	}
	if len(missing) > 0 {
		// Frames that were there when the lease was granted were lost meanwhile: the
		// machine did its part, and the rest is for the next attempt.
		at.Ended, at.Outcome, at.Log = a.at, OutcomeReleased, cut(c.Log, maxCID)
		at.Reason = fmt.Sprintf("%d frames of the task are still to be rendered", len(missing))
		a.requeue(j, c.Task.Index, c.Report, at.Reason)
		return nil
	}
	a.rendered(j, c.Task.Index, at, c.Log)
	a.settle(j, c.Task.Index)
	return nil
}

func (a *applying) rendered(j *Job, i int32, at *Attempt, log string) {
	at.Ended, at.Outcome, at.Log, at.Reason, at.Kind = a.at, OutcomeRendered, cut(log, maxCID), "", ""
	j.setTask(i, TaskRendered)
	a.finished[at.Peer]++
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: i, Lease: at.Lease, Peer: at.Peer, State: string(TaskRendered)})
}

func (a *applying) fail(c Fail) error {
	j, t, at, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live {
		return ErrStale
	}
	reason := cut(cmp.Or(c.Reason, "the attempt failed"), maxReason)
	at.Ended, at.Outcome, at.Reason, at.Log, at.Kind = a.at, OutcomeFailed, reason, cut(c.Log, maxCID), c.Kind.known()
	if j.Faults == nil {
		j.Faults = map[authz.PeerID]int{}
	}
	j.Faults[c.Peer]++
	if c.blamesMachine() {
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	alone := !slices.ContainsFunc(t.Attempts, func(other Attempt) bool { return other.Outcome == OutcomeFailed && other.Peer != c.Peer })
	if t.Fails++; t.Fails < MaxTries || alone && c.Others > 0 {
		a.requeue(j, c.Task.Index, c.Report, reason)
		return nil
	}
	j.setTask(c.Task.Index, TaskFailed)
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: c.Task.Index, Lease: c.Lease, Peer: c.Peer, State: string(TaskFailed), Reason: reason})
	j.Tail = cut(c.Tail, maxLogTail)
	a.end(j, JobFailed, fmt.Sprintf("task %d failed %d times, the last time because: %s", c.Task.Index, t.Fails, reason))
	return nil
}

func (a *applying) requeue(j *Job, i int32, r Report, reason string) {
	j.setTask(i, TaskQueued)
	a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, Lease: r.Lease, Peer: r.Peer, State: string(TaskQueued), Reason: reason})
	if t := &j.Tasks[i]; len(j.Remaining(t)) == 0 {
		// Every frame was recorded before the attempt ended without saying so.
		a.rendered(j, i, &t.Attempts[len(t.Attempts)-1], "")
		a.settle(j, i)
	}
}

func (a *applying) release(c Release) error {
	j, _, at, live, err := a.attempt(c.Report)
	if err != nil {
		return err
	}
	if !live {
		return ErrStale
	}
	at.Ended, at.Outcome, at.Reason = a.at, OutcomeReleased, cut(c.Reason, maxReason)
	a.requeue(j, c.Task.Index, c.Report, at.Reason)
	return nil
}

// silent is why leases expire.
const silent = "the machine was not heard from"

func (a *applying) expire(c Expire) error {
	j, t, err := a.Task(c.Task)
	if err != nil {
		return err
	}
	at := t.live()
	if at == nil || at.Lease != c.Lease {
		return ErrStale
	}
	at.Ended, at.Outcome, at.Reason = a.at, OutcomeExpired, silent
	a.requeue(j, c.Task.Index, Report{Lease: at.Lease, Peer: at.Peer}, at.Reason)
	return nil
}

func (a *applying) hold(c Hold) error {
	j, ok := a.jobs[c.Job]
	if !ok {
		return ErrUnknownJob
	}
	at, ok := j.Place(c.Frame)
	if !ok || j.Frames[at] == nil || j.Frames[at].CID != c.CID || c.Peer == "" {
		return fmt.Errorf("%w: frame %d of job %s has no such content", ErrInvalid, c.Frame, c.Job)
	}
	f := j.Frames[at]
	if c.Delivered && !f.Delivered && c.Peer == j.Spec.Output.Peer {
		f.Delivered = true
		j.delivered++
		a.tell(Event{Type: FrameWritten, Job: j.ID, Task: j.TaskOf(at), Frame: &f.Frame, Peer: c.Peer})
	}
	a.holder(j, at, c.Peer, c.Machines)
	a.settle(j, j.TaskOf(at))
	return nil
}

func (a *applying) stock(c Stock) error {
	j, ok := a.jobs[c.Job]
	switch {
	case !ok:
		return ErrUnknownJob
	case j.State.Ended():
		return ErrEnded
	case c.Peer == "":
		return fmt.Errorf("%w: the holder has no name", ErrInvalid)
	}
	if !slices.Contains(j.Holders, c.Peer) {
		j.Holders = append(j.Holders, c.Peer)
	}
	return nil
}

// TaskOf is the index of the task that a place in the job's list of frames
// belongs to.
func (j *Job) TaskOf(place int) int32 { return int32(place / j.Spec.Chunk) }

// holder notes that p holds a frame, which may make the frame done.
func (a *applying) holder(j *Job, at int, p authz.PeerID, machines int) {
	f := j.Frames[at]
	if p != "" && !slices.Contains(f.Holders, p) {
		f.Holders = append(f.Holders, p)
	}
	if !f.Done && len(f.Holders) >= min(j.Spec.Replicas, max(machines, 1)) {
		f.Done = true
		r := f.Result
		a.tell(Event{Type: FrameKept, Job: j.ID, Task: j.TaskOf(at), Frame: &r.Frame, Peer: f.Peer, State: string(TaskDone), Result: &r})
	}
}

// settle ends a rendered task whose frames are all done, and its job with the
// last of them.
func (a *applying) settle(j *Job, i int32) {
	t := &j.Tasks[i]
	if t.State != TaskRendered {
		return
	}
	for k := t.Lo; k < t.Hi; k++ {
		if f := j.Frames[k]; f == nil || !f.Done {
			return
		}
	}
	j.setTask(i, TaskDone)
	last := t.Attempts[len(t.Attempts)-1]
	a.tell(Event{Type: TaskEnded, Job: j.ID, Task: i, Lease: last.Lease, Peer: last.Peer, State: string(TaskDone)})
	if j.count[TaskDone] == len(j.Tasks) && !j.State.Ended() {
		a.end(j, JobDone, "")
	}
}

// unhold takes p's copies of a content back. It answers without an error where
// there are none: the report may have been made twice.
func (a *applying) unhold(c Unhold) error {
	j, ok := a.jobs[c.Job]
	switch {
	case !ok:
		return ErrUnknownJob
	case c.Peer == "" || c.CID == "":
		return fmt.Errorf("%w: a copy that is gone is some machine's, of some content", ErrInvalid)
	}
	if c.CID == j.Spec.Project && slices.Contains(j.Holders, c.Peer) {
		// Somebody must stay the one to ask; see lose.
		if c.Peer != j.Spec.Submitter {
			j.Holders = without(j.Holders, c.Peer)
		}
		a.tell(Event{Type: ProjectShort, Job: j.ID, Task: -1, Peer: c.Peer, Reason: unheld})
	}
	for at, f := range j.Frames {
		if f == nil || f.CID != c.CID || !slices.Contains(f.Holders, c.Peer) {
			continue
		}
		f.Holders = without(f.Holders, c.Peer)
		if len(f.Holders) == 0 && !j.State.Ended() {
			a.lost(j, at, c.Peer, unheld)
			continue
		}
		r := f.Result
		a.tell(Event{Type: FrameShort, Job: j.ID, Task: j.TaskOf(at), Frame: &r.Frame, Peer: c.Peer, Result: &r, Reason: unheld})
	}
	return nil
}

// store takes back all that p held where its store is another than before. Of what
// others hold still there is no event: there may be a great many. Not even a
// submitter's stays the one to ask for a project: it is known to have none of it.
func (a *applying) store(c Store) error {
	if c.Peer == "" || c.ID == "" || len(c.ID) > MaxStoreID {
		return fmt.Errorf("%w: a store is some machine's, and has an ID of at most %d bytes", ErrInvalid, MaxStoreID)
	}
	was := a.stores[c.Peer]
	a.stores[c.Peer] = c.ID
	if was == "" || was == c.ID {
		return nil
	}
	for _, j := range a.list {
		j.Holders = without(j.Holders, c.Peer)
		for at, f := range j.Frames {
			if f == nil || !slices.Contains(f.Holders, c.Peer) {
				continue
			}
			if f.Holders = without(f.Holders, c.Peer); len(f.Holders) == 0 && !j.State.Ended() {
				a.lost(j, at, c.Peer, unheld)
			}
		}
	}
	return nil
}

// MaxStoreID bounds the ID of a machine's store, in bytes.
const MaxStoreID = 64

// unheld is why copies are taken back.
const unheld = "its copy is gone or damaged"

// without is the list without p, in the same memory.
func without(list []authz.PeerID, p authz.PeerID) []authz.PeerID {
	return slices.DeleteFunc(list, func(q authz.PeerID) bool { return q == p })
}

// lost takes back a frame of an open job that nobody holds any more: it will be
// rendered again.
func (a *applying) lost(j *Job, at int, p authz.PeerID, why string) {
	f, i := j.Frames[at], j.TaskOf(at)
	j.Frames[at] = nil
	j.rendered--
	if f.Delivered {
		j.delivered--
	}
	a.tell(Event{Type: FrameLost, Job: j.ID, Task: i, Frame: &f.Frame, Peer: p, Result: &f.Result, Reason: why})
	if s := j.Tasks[i].State; s == TaskRendered || s == TaskDone {
		j.setTask(i, TaskQueued)
		a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, Peer: p, State: string(TaskQueued), Reason: "the only machine that held its frames is gone"})
	}
}

func (a *applying) lose(c Lose) {
	if c.Removed {
		delete(a.stores, c.Peer)
		for _, j := range a.list {
			if j.State.Ended() {
				for _, f := range j.Frames {
					if f != nil {
						f.Holders = without(f.Holders, c.Peer)
					}
				}
				j.Holders = without(j.Holders, c.Peer)
			}
		}
	}
	// settle may end a job and so remove it from the list that is walked here.
	for _, j := range slices.Clone(a.open) {
		if j.State.Ended() {
			continue
		}
		// The submitter's stays the place to ask: nobody else may have it yet.
		if c.Peer != j.Spec.Submitter || c.Removed {
			j.Holders = without(j.Holders, c.Peer)
		}
		for at, f := range j.Frames {
			if f == nil || f.Done && !c.Removed {
				continue
			}
			f.Holders = without(f.Holders, c.Peer)
			if len(f.Holders) > 0 {
				a.holder(j, at, "", c.Machines)
				continue
			}
			a.lost(j, at, c.Peer, "its only holder is gone")
		}
		// Only now are its leases taken back, so that whoever gets a task next is
		// asked for the frames that went with the machine.
		for i := range j.Tasks {
			if at := j.Tasks[i].live(); at != nil && at.Peer == c.Peer {
				at.Ended, at.Outcome, at.Reason = a.at, OutcomeExpired, silent
				a.requeue(j, int32(i), Report{Lease: at.Lease, Peer: at.Peer}, silent)
			}
			if a.settle(j, int32(i)); j.State.Ended() {
				break
			}
		}
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
		}
		return old
	})
}

// end gives a job its final state, takes back its leases and its place in the
// queue.
func (a *applying) end(j *Job, to JobState, reason string) {
	j.State, j.Reason, j.Ended = to, reason, a.at
	for i := range j.Tasks {
		t := &j.Tasks[i]
		if at := t.live(); at != nil {
			at.Ended, at.Outcome, at.Reason = a.at, OutcomeRevoked, reason
			a.tell(Event{Type: LeaseRevoked, Job: j.ID, Task: int32(i), Lease: at.Lease, Peer: at.Peer, Reason: "the job is " + string(to)})
		}
		if t.State == TaskQueued || t.State == TaskLeased {
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
