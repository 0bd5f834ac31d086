package lease

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pause keeps the tasks of a job from being granted. Attempts under way go on, and
// their results count.
type Pause struct {
	Job JobID `json:"job"`
}

// Resume ends a pause. The job has not waited meanwhile: it ages from now on.
type Resume struct {
	Job JobID `json:"job"`
}

// Prioritise moves a job that has not ended to another tier.
type Prioritise struct {
	Job  JobID `json:"job"`
	Tier Tier  `json:"tier"`
}

// Retry opens a job again that failed or was cancelled: what was not finished is
// queued, with no failure counted, and what was finished stays. Where it names frames,
// of a job in any state, those that are finished are rendered again; each stays until
// there is another.
type Retry struct {
	Job    JobID  `json:"job"`
	Frames Frames `json:"frames,omitempty"`
	// Limits are set by the leader, from its settings. Of them, that of tasks in one
	// job stays as it was.
	Limits Limits `json:"limits,omitzero"`
}

var (
	// ErrPaused: nothing of a job is granted while it is paused.
	ErrPaused = errors.New("the job is paused")
	// ErrState: what is wanted of a job is not possible in its state.
	ErrState = errors.New("the job is in another state")
)

// opened finds a job that has not ended.
func (a *applying) opened(id JobID) (*Job, error) {
	j, err := a.edit(id)
	if err != nil {
		return nil, err
	}
	if j.State.Ended() {
		return nil, fmt.Errorf("%w: it is %s", ErrEnded, j.State)
	}
	return j, nil
}

func (a *applying) pause(c Pause) error {
	j, err := a.opened(c.Job)
	if err != nil || j.State == JobPaused {
		return err
	}
	j.State = JobPaused
	a.tell(Event{Type: JobHeld, Job: j.ID, Task: -1, State: string(j.State)})
	return nil
}

func (a *applying) resume(c Resume) error {
	j, err := a.opened(c.Job)
	if err != nil || j.State != JobPaused {
		return err
	}
	j.State, j.Served = j.openState(), a.at
	a.tell(Event{Type: JobResumed, Job: j.ID, Task: -1, State: string(j.State)})
	return nil
}

// openState is the state of a job that is neither paused nor ended.
func (j *Job) openState() JobState {
	if j.Started.IsZero() {
		return JobQueued
	}
	return JobRunning
}

func (a *applying) prioritise(c Prioritise) error {
	j, err := a.opened(c.Job)
	switch {
	case err != nil:
		return err
	case c.Tier.Rank() < 0:
		return fmt.Errorf("%w: unknown priority %q: use low, normal, high or urgent", ErrInvalid, c.Tier)
	case j.Tier == c.Tier:
		return nil
	}
	a.delist(j)
	for s, n := range j.count {
		a.totals.add(j.Tier, s, -n)
		a.totals.add(c.Tier, s, n)
	}
	j.Tier = c.Tier
	a.enlist(j)
	a.tell(Event{Type: JobPrioritised, Job: j.ID, Task: -1, State: string(j.Tier)})
	return nil
}

func (a *applying) retry(c Retry) error {
	j, err := a.edit(c.Job)
	if err != nil {
		return err
	}
	again, err := j.chosen(c.Frames)
	ended := j.State.Ended()
	switch {
	case err != nil:
		return err
	case len(c.Frames) == 0 && j.State != JobFailed && j.State != JobCancelled:
		return fmt.Errorf("%w: it is %s, and only one that failed or was cancelled can be tried again as a whole; name the frames that should be", ErrState, j.State)
	case len(c.Frames) > 0 && len(again) == 0:
		return fmt.Errorf("%w: none of these frames is finished yet", ErrState)
	}
	if ended {
		if err := a.mayOpen(j.Spec.Owner, len(j.Tasks), c.Limits); err != nil {
			return err
		}
		if err := a.mayFollow(j.Spec.After, true); err != nil {
			return err
		}
		a.reopen(j)
	}
	for _, at := range again {
		a.dropPieces(j, int32(at), "its frame is to be rendered again")
		a.again(j, at, "its frames are to be rendered again")
		a.covered(j, int32(at))
	}
	if ended {
		a.tell(Event{Type: JobSubmitted, Job: j.ID, Task: -1, State: string(j.State)})
		for i := range j.Tasks {
			a.settle(j, int32(i))
		}
		if !j.State.Ended() && j.Count(TaskDone) == len(j.Tasks) { // the last one became so after the end
			a.end(j, JobDone, "")
		}
	}
	return nil
}

// again makes a frame one that is to be rendered again.
func (a *applying) again(j *Job, at int, why string) {
	i := j.TaskOf(at)
	f := j.Frames[at].with()
	f.Again, f.Done, f.Delivered = j.after(&j.Tasks[i], a.at), false, false
	j.setFrame(at, f)
	if t := &j.Tasks[i]; t.State == TaskRendered || t.State == TaskDone {
		t.Fails = 0
		j.setTask(i, TaskQueued)
		a.tell(Event{Type: TaskRequeued, Job: j.ID, Task: i, State: string(TaskQueued), Reason: why})
	}
	// A movie is made of what was rendered last.
	if m := j.movie(); m >= 0 && at != m && j.Frames[m] != nil && !j.Frames[m].again() {
		a.again(j, m, "its frames are rendered again")
	}
}

// since is when an attempt at a task was granted, for what it renders to count: not before
// its frames were wanted again, whatever the clocks of the leaders said.
func (j *Job) since(t *Task, at time.Time) time.Time {
	for i := t.Lo; i < t.Hi && !t.Part(); i++ {
		if f := j.Frames[i]; f != nil && f.Again.After(at) {
			at = f.Again
		}
	}
	return at
}

// after is when frames of a task are wanted again: not before an attempt at it was granted.
func (j *Job) after(t *Task, at time.Time) time.Time {
	for _, attempt := range t.Attempts {
		if !attempt.Granted.Before(at) {
			at = attempt.Granted.Add(1)
		}
	}
	return at
}

// chosen lists the places of frames that are finished among those named.
func (j *Job) chosen(frames Frames) (places []int, err error) {
	if len(frames) == 0 {
		return nil, nil
	}
	if err := frames.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, f := range frames.Expand() {
		at, ok := j.Place(f)
		if !ok {
			return nil, fmt.Errorf("%w: the job has no frame %d", ErrInvalid, f)
		}
		if j.Frames[at] != nil && len(j.Frames[at].Holders) > 0 && !j.Frames[at].again() {
			places = append(places, at)
		}
	}
	return places, nil
}

// reopen makes a job that has ended one that has not.
func (a *applying) reopen(j *Job) {
	j.State, j.Reason, j.Tail, j.Ended, j.Served, j.Faults, j.Above = j.openState(), "", "", time.Time{}, a.at, nil, Memory{}
	for at, f := range j.Frames {
		if f != nil && len(f.Holders) == 0 { // lost after the end
			a.tell(Event{Type: FrameLost, Job: j.ID, Task: j.TaskOf(at), Frame: &f.Result.Frame, Result: &f.Result, Reason: "nobody holds it any more"})
			j.Frames[at] = nil
		}
	}
	for i := range j.Tasks {
		t := &j.Tasks[i]
		switch {
		case !j.complete(t):
			t.State, t.Fails = TaskQueued, 0
		case t.Part() && j.Tasks[t.Lo].State == TaskDone: // the tasks of frames come first
			t.State = TaskDone
		case t.Part():
			t.State = TaskRendered
		case t.State != TaskDone:
			t.State = TaskRendered
		}
	}
	j.derive()
	a.enlist(j)
}

// mayFollow refuses jobs to come after that will never be done, or are not there:
// unless one may be forgotten by now, which had ended long before.
func (s *State) mayFollow(after []JobID, forgotten bool) error {
	for _, id := range after {
		j, ok := s.jobs[id]
		switch {
		case !ok && forgotten:
		case !ok:
			return fmt.Errorf("%w: the job %s, after which this one is to come, does not exist", ErrInvalid, id)
		case j.State == JobFailed, j.State == JobCancelled:
			return fmt.Errorf("%w: the job %s, after which this one is to come, is %s; try it again first", ErrInvalid, id, j.State)
		}
	}
	return nil
}

// Awaits is the first job that has to be done before j may begin; "" where there
// is none. A job that was forgotten had ended long before.
func (s *State) Awaits(j *Job) JobID {
	for _, id := range j.Spec.After {
		if first, ok := s.jobs[id]; ok && first.State != JobDone {
			return id
		}
	}
	return ""
}

// follow tells the jobs that were to come after one that has ended: they begin to
// wait for a machine now, or end with it where it will not be done.
func (a *applying) follow(first *Job) {
	for _, j := range slices.Clone(a.open) {
		switch {
		case j.State.Ended() || !slices.Contains(j.Spec.After, first.ID):
		case first.State == JobDone:
			j.Served = a.at
		default:
			a.end(j, JobCancelled, fmt.Sprintf("it was to come after job %s, which is %s", first.ID, first.State))
		}
	}
}
