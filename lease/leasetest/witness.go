// Package leasetest checks what must always hold of a queue, for the tests of
// whatever drives one.
package leasetest

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Witness follows a queue by the events that it tells. It knows from them alone who
// has which lease, which frames were accepted, and which jobs have ended, and holds
// that against the state. The zero value is not ready: use [NewWitness].
type Witness struct {
	// Applied and Refused count the commands.
	Applied, Refused int

	live map[lease.ID]lease.Report
	// accepted has the content of results that were taken and not lost.
	accepted map[lease.JobID]map[int32]string
	ended    map[lease.JobID]lease.JobState
	finished map[authz.PeerID]int // tasks that it rendered
	drained  map[authz.PeerID]bool
}

// NewWitness watches a queue from its beginning.
func NewWitness() *Witness {
	return &Witness{
		live: map[lease.ID]lease.Report{}, accepted: map[lease.JobID]map[int32]string{},
		ended: map[lease.JobID]lease.JobState{}, finished: map[authz.PeerID]int{}, drained: map[authz.PeerID]bool{},
	}
}

// Apply has s carry out c, and checks what that told.
func (w *Witness) Apply(t require.TestingT, s *lease.State, c lease.Command) ([]lease.Event, error) {
	events, err := s.Apply(c)
	if err != nil {
		w.Refused++
		require.Empty(t, events, "a refused command told something")
		return nil, err
	}
	w.Applied++
	if c.Submit != nil { // the ID may have been that of a job that was forgotten
		w.accepted[c.Submit.Job] = map[int32]string{}
	}
	for _, e := range events {
		w.heard(t, c, e)
	}
	if c.Lose != nil && c.Lose.Removed {
		delete(w.finished, c.Lose.Peer)
		delete(w.drained, c.Lose.Peer)
		require.Equal(t, lease.Machine{}, s.Machine(c.Lose.Peer))
	}
	return events, nil
}

func (w *Witness) heard(t require.TestingT, c lease.Command, e lease.Event) {
	switch e.Type {
	case lease.PeerDrained, lease.PeerUndrained:
		require.NotEqual(t, w.drained[e.Peer], e.Type == lease.PeerDrained, "it was so before")
		w.drained[e.Peer] = e.Type == lease.PeerDrained
	case lease.TaskGranted:
		require.False(t, w.drained[e.Peer], "a drained machine got a task")
		r := lease.Report{Lease: e.Lease, Task: lease.TaskID{Job: e.Job, Index: e.Task}, Peer: e.Peer}
		others := 0
		for _, o := range w.live {
			if o.Task == r.Task {
				require.NotEqual(t, o.Peer, r.Peer, "a machine has a task twice")
				others++
			}
		}
		require.True(t, others == 0 || others == 1 && c.Grant.Second, "%s is leased to too many", r.Task)
		require.Zero(t, w.live[r.Lease], "a lease was granted twice")
		w.live[r.Lease] = r
	case lease.TaskRequeued, lease.LeaseRevoked, lease.LeaseEnded:
		delete(w.live, e.Lease)
	case lease.TaskEnded:
		delete(w.live, e.Lease)
		if e.State == string(lease.TaskRendered) {
			w.finished[e.Peer]++
		}
	case lease.FrameResult:
		if was := w.accepted[e.Job][*e.Frame]; was != "" { // rendered again, it was the same
			require.Equal(t, was, e.Result.CID, "frame %d of %s was accepted twice", *e.Frame, e.Job)
		}
		w.accepted[e.Job][*e.Frame] = e.Result.CID
	case lease.FrameLost:
		require.NotEmpty(t, w.accepted[e.Job][*e.Frame], "a frame was lost that was not there")
		delete(w.accepted[e.Job], *e.Frame)
	case lease.JobEnded:
		require.NotContains(t, w.ended, e.Job, "a job ended twice")
		w.ended[e.Job] = lease.JobState(e.State)
	case lease.JobSubmitted: // for the first time, or again
		delete(w.ended, e.Job)
	}
}

// Check holds the whole state against what was told. now is the queue's time.
func (w *Witness) Check(t require.TestingT, s *lease.State, now time.Time) {
	lives := 0
	for _, j := range s.Jobs() {
		lives += w.job(t, j)
		require.Equal(t, !j.State.Ended(), slices.Contains(s.Open(), j))
	}
	require.Equal(t, len(w.live), lives, "leases that live")
	for _, p := range s.Machines() {
		m := s.Machine(p)
		require.Equal(t, w.finished[p], m.Finished, "tasks that %s rendered", p)
		require.Equal(t, w.drained[p], m.Drained != "", "the drain of %s", p)
		require.LessOrEqual(t, len(m.Failed), lease.MaxTries)
	}
	require.True(t, slices.IsSortedFunc(s.Jobs(), func(a, b *lease.Job) int { return cmp.Compare(a.Seq, b.Seq) }))
	require.True(t, slices.IsSortedFunc(s.Open(), func(a, b *lease.Job) int {
		return cmp.Or(cmp.Compare(b.Tier.Rank(), a.Tier.Rank()), cmp.Compare(a.Seq, b.Seq))
	}), "open jobs are out of order")
	w.waiting(t, s, now)
}

// waiting checks who is to be served in which order.
func (w *Witness) waiting(t require.TestingT, s *lease.State, now time.Time) {
	var want []lease.JobID
	for _, j := range s.Jobs() {
		if j.HasQueued() && !j.State.Ended() && j.State != lease.JobPaused && s.Awaits(j) == "" {
			want = append(want, j.ID)
		}
	}
	slices.SortStableFunc(want, func(a, b lease.JobID) int {
		x, _ := s.Job(a)
		y, _ := s.Job(b)
		return cmp.Compare(y.Rank(now), x.Rank(now))
	})
	var got []lease.JobID
	for _, j := range s.Waiting(now, nil) {
		got = append(got, j.ID)
	}
	require.Equal(t, want, got)
}

// job checks one job, what is derived of it against what is counted, and returns how
// many leases of it live.
func (w *Witness) job(t require.TestingT, j *lease.Job) (lives int) {
	state, ended := w.ended[j.ID]
	require.Equal(t, ended, j.State.Ended())
	if ended {
		require.Equal(t, state, j.State)
	}
	places := w.frames(t, j)
	counts, leased := map[lease.TaskState]int{}, map[lease.Hand]int{}
	for i := range j.Tasks {
		task := &j.Tasks[i]
		counts[task.State]++
		for _, a := range task.Lives() {
			lives++
			leased[lease.Hand{Peer: a.Peer, Device: a.Device}]++
			if want := (lease.Report{Lease: a.Lease, Task: lease.TaskID{Job: j.ID, Index: int32(i)}, Peer: a.Peer}); w.live[a.Lease] != want {
				require.Equal(t, w.live[a.Lease], want, "a lease lives of which nobody was told")
			}
		}
		if !task.Part() {
			places -= int(task.Hi - task.Lo)
		}
		w.task(t, j, int32(i))
	}
	require.Zero(t, places, "each frame is in one task")
	w.parts(t, j)
	for _, state := range []lease.TaskState{lease.TaskQueued, lease.TaskLeased, lease.TaskRendered, lease.TaskDone, lease.TaskFailed, lease.TaskCancelled} {
		require.Equal(t, counts[state], j.Count(state), state)
	}
	if ended {
		require.Zero(t, counts[lease.TaskQueued]+counts[lease.TaskLeased], "tasks of a job that has ended are under way")
	} else {
		require.Zero(t, counts[lease.TaskFailed]+counts[lease.TaskCancelled], "tasks of an open job are lost")
	}
	require.Equal(t, leased, j.Hands())
	return lives
}

// frames checks the frames of a job and returns how many there are.
func (w *Witness) frames(t require.TestingT, j *lease.Job) int {
	unrendered, undelivered, numbers := 0, false, j.Numbers()
	require.Len(t, numbers, len(j.Frames))
	for at, f := range j.Frames {
		have := w.accepted[j.ID][numbers[at]]
		if f == nil {
			unrendered++
			if have != "" {
				require.Fail(t, "a frame that was accepted is lost", "frame %d of %s", numbers[at], j.ID)
			}
			continue
		}
		if !f.Again.IsZero() {
			unrendered++
		}
		undelivered = undelivered || !f.Delivered
		if have != f.CID || f.Result.Frame != numbers[at] {
			require.Equal(t, have, f.CID, "frame %d of %s", numbers[at], j.ID)
		}
		if len(f.Holders) == 0 && !j.State.Ended() {
			require.NotEmpty(t, f.Holders, "a frame that nobody holds counts")
		}
		for i, p := range f.Holders {
			if slices.Contains(f.Holders[:i], p) {
				require.Fail(t, "a holder is counted twice")
			}
		}
	}
	require.Equal(t, unrendered, j.Unrendered())
	require.Equal(t, undelivered && j.Spec.Output.Dir != "", j.Undelivered())
	return len(numbers)
}

// parts checks the parts of a job's frames and their pieces.
func (w *Witness) parts(t require.TestingT, j *lease.Job) {
	if !j.Splits() {
		require.Empty(t, j.Pieces)
		return
	}
	uncovered := 0
	for at, f := range j.Frames[:j.Pictures()] {
		var spans []lease.Span
		for i := range j.Tasks {
			if task := &j.Tasks[i]; task.Part() && int(task.Lo) == at {
				spans = append(spans, task.Span)
			}
		}
		units, whole := int32(0), lease.Span{To: j.Units}
		for _, s := range spans {
			units += s.Len()
		}
		require.True(t, units == j.Units && len(whole.Gaps(spans)) == 0, "the parts of frame %d of %s do not have each unit once", at, j.ID)
		spans = nil
		for _, p := range j.PiecesOf(int32(at)) {
			require.NotEmpty(t, p.Holders, "a piece that nobody holds counts")
			for _, s := range spans {
				require.False(t, s.Meets(p.Span), "two pieces of frame %d of %s have a unit in common", at, j.ID)
			}
			spans = append(spans, p.Span)
		}
		if f == nil || !f.Again.IsZero() {
			for _, gap := range whole.Gaps(spans) {
				uncovered += int(gap.Len())
			}
		}
	}
	require.Equal(t, uncovered, j.Uncovered(), "units of %s that are to be rendered", j.ID)
}

// part checks one part of a frame.
func (w *Witness) part(t require.TestingT, j *lease.Job, i int32) {
	task := &j.Tasks[i]
	left := j.Left(task)
	switch f := j.Frames[task.Lo]; {
	case task.State == lease.TaskDone && (f == nil || !f.Done):
		require.Fail(t, "a part is done and its frame is not", "task %d of %s", i, j.ID)
	case task.State == lease.TaskRendered && left > 0 && !j.State.Ended():
		require.Fail(t, "units of a finished part are missing", "task %d of %s", i, j.ID)
	case task.State == lease.TaskQueued && left == 0:
		require.Fail(t, "a part with nothing left to do waits", "task %d of %s: %+v; frame %+v", i, j.ID, *task, f)
	}
}

// task checks one task's frames.
func (w *Witness) task(t require.TestingT, j *lease.Job, i int32) {
	task := &j.Tasks[i]
	if task.Part() {
		w.part(t, j, i)
		return
	}
	complete := true
	for k := task.Lo; k < task.Hi; k++ {
		f := j.Frames[k]
		if of := j.TaskOf(int(k)); of != i {
			require.Equal(t, i, of, "frame at %d of %s", k, j.ID)
		}
		there := f != nil && f.Again.IsZero()
		complete = complete && there
		if (task.State == lease.TaskRendered || task.State == lease.TaskDone) && !there || task.State == lease.TaskDone && !f.Done {
			require.Fail(t, "a frame of a finished task is missing", "task %d of %s is %s", i, j.ID, task.State)
		}
	}
	if complete && task.State == lease.TaskQueued {
		require.Fail(t, "a task with nothing left to do waits", "task %d of %s", i, j.ID)
	}
}

// Accepted is the number of frames of a job that were taken and not lost.
func (w *Witness) Accepted(j lease.JobID) int { return len(w.accepted[j]) }

// Live is the number of leases that live.
func (w *Witness) Live() int { return len(w.live) }

// Bytes is a state as it is stored.
func Bytes(t require.TestingT, f *lease.Frozen) []byte {
	var b bytes.Buffer
	require.NoError(t, f.Write(&b))
	return b.Bytes()
}

// Restored is a state made anew of what s stores, which must give the same bytes.
func Restored(t require.TestingT, s *lease.State) *lease.State {
	was := Bytes(t, s.Freeze())
	again, err := lease.Restore(bytes.NewReader(was))
	require.NoError(t, err)
	Same(t, was, Bytes(t, again.Freeze()), "a restored state is another")
	return again
}

// Same requires that two stored states are the same to the byte.
func Same(t require.TestingT, want, got []byte, why string) {
	if !bytes.Equal(want, got) {
		require.Equal(t, string(want), string(got), why)
	}
}
