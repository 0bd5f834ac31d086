package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// follower is a job as a display needs it: the last answer of the API with the
// events since folded in. It is read and changed by one goroutine.
type follower struct {
	job    httpapi.Job
	frames map[int32]*httpapi.Frame
	tasks  map[int32]*httpapi.Task
	peers  map[authz.PeerID]*workerView
	order  []authz.PeerID // in the order they were first seen

	rendered, delivered int     // frames but not the movie, counted along: a job may have a million
	seconds             float64 // spent on those in results, for the mean
	results             int

	// late tells that the job was done for a while and frames are still to be
	// written.
	late  bool
	clock func() time.Time // nil: time.Now
}

func (f *follower) now() time.Time {
	if f.clock != nil {
		return f.clock()
	}
	return time.Now()
}

// workerView is what one machine does for the job.
type workerView struct {
	name     string
	frames   int              // rendered by it
	task     int32            // that it renders now; -1 for none
	list     string           // that task's frames
	progress *render.Progress // nil until the first report
	began    time.Time        // when it began the frame that it renders now

	// Of a job that splits its frames:
	by    lease.SplitBy
	part  *lease.Span     // which units of a frame it renders; nil for none
	given map[int32]int32 // how many of them it gave, by where its pieces begin
	first float64         // units of the part that were there when this was first read
	speed float64         // units in a second, as last measured; 0 where that is not known
	past  float64         // speed as it was when this part began
}

// reset takes a fresh answer of the API.
func (f *follower) reset(job httpapi.Job, tasks []httpapi.Task) {
	f.job = job
	f.frames = make(map[int32]*httpapi.Frame, len(job.Frames))
	f.tasks = make(map[int32]*httpapi.Task, len(tasks))
	if f.peers == nil {
		f.peers = make(map[authz.PeerID]*workerView)
	}
	for _, w := range f.peers {
		w.frames, w.by = 0, job.Split.By
		w.free()
	}
	f.rendered, f.delivered, f.seconds, f.results = 0, 0, 0, 0
	for i := range job.Frames {
		fr := &job.Frames[i]
		f.frames[fr.Frame] = fr
		if finished(fr.State) {
			f.rendered++
		}
		if fr.Delivered {
			f.delivered++
		}
		if fr.Peer != "" {
			f.worker(fr.Peer, "").frames++
			f.seconds += fr.Seconds
			f.results++
		}
	}
	for i := range tasks {
		t := &tasks[i]
		f.tasks[t.Index] = t
		if t.State == lease.TaskLeased && t.Peer != "" {
			w := f.worker(t.Peer, "")
			w.take(t, time.Time{})
			w.report(t.Progress, f.now())
			w.first = w.reached()
		}
	}
}

// apply folds one event of the job in. Events that are older than the last
// answer only touch the display: how the job ended is always read afresh.
func (f *follower) apply(ev httpapi.Event) {
	// Whoever keeps frames or submitted the job is no worker of it.
	var w *workerView
	switch ev.Type {
	case lease.TaskGranted, lease.TaskProgress, lease.FrameResult, lease.PieceRendered:
		if ev.Peer != "" {
			w = f.worker(ev.Peer, ev.PeerName)
		}
		if !f.job.State.Ended() {
			f.job.Reason = "" // it waits no longer
		}
	}
	if ev.UnitsTotal > 0 {
		f.job.UnitsDone, f.job.UnitsTotal = ev.UnitsDone, ev.UnitsTotal
	}
	switch ev.Type {
	case lease.JobStarted:
		f.job.State = lease.JobRunning
		if f.job.StartedAt == nil {
			f.job.StartedAt = &ev.Time
		}
	case lease.TaskGranted:
		if t := f.task(ev); t != nil && w != nil {
			t.State, t.Peer = lease.TaskLeased, ev.Peer
			w.take(t, f.now())
		}
	case lease.TaskProgress:
		if w != nil && ev.Task != nil {
			if t := f.task(ev); t != nil && w.task != t.Index {
				w.take(t, time.Time{})
				w.report(ev.Progress, f.now())
				w.first = w.reached()
				return
			}
			w.report(ev.Progress, f.now())
		}
	case lease.TaskRequeued, lease.TaskEnded, lease.LeaseRevoked:
		if t := f.task(ev); t != nil {
			t.State = lease.TaskState(ev.State)
			if holder := f.peers[t.Peer]; holder != nil && holder.task == t.Index {
				holder.free()
			}
		}
	case lease.PieceRendered:
		if w != nil && ev.Units != nil && ev.Task != nil && w.task == *ev.Task && w.part != nil {
			w.given[ev.Units.From] = max(w.given[ev.Units.From], ev.Units.Len())
		}
	case lease.FrameResult:
		if fr := f.frame(ev); fr != nil && !finished(fr.State) {
			f.move(fr, lease.TaskRendered)
			fr.Peer, fr.Seconds = ev.Peer, ev.Seconds
			if fr == f.job.Movie {
				return
			}
			f.seconds += ev.Seconds
			f.results++
			if w != nil {
				w.frames++
				w.began = f.now()
				if w.progress != nil && w.progress.Frame == fr.Frame {
					w.progress = nil // or its samples would count beside the frame
				}
			}
		}
	case lease.FrameKept:
		if fr := f.frame(ev); fr != nil {
			f.move(fr, lease.TaskDone)
		}
	case lease.FrameWritten:
		if fr := f.frame(ev); fr != nil && !fr.Delivered {
			fr.Delivered = true
			if fr != f.job.Movie {
				f.delivered++
			}
			f.job.OutputError = "" // there is room again
		}
	case lease.FrameLost:
		if fr := f.frame(ev); fr != nil {
			f.move(fr, lease.TaskQueued)
		}
	}
}

// take makes a task the machine's present one; began is when, where that is known.
func (w *workerView) take(t *httpapi.Task, began time.Time) {
	w.task, w.list, w.part, w.progress, w.began = t.Index, t.Frames, t.Units, nil, began
	w.given, w.first, w.past = map[int32]int32{}, 0, w.speed
}

// free tells that the machine renders nothing of the job now.
func (w *workerView) free() {
	w.task, w.list, w.part, w.progress, w.began, w.given, w.first = -1, "", nil, nil, time.Time{}, nil, 0
}

// merges tells whether the machine puts the parts of a frame together.
func (w *workerView) merges() bool {
	return w.task >= 0 && w.by != "" && w.part == nil && w.list != movieWord
}

// reached is how many units of its part the machine has rendered, as far as it says.
func (w *workerView) reached() float64 {
	p := w.progress
	switch {
	case w.part == nil || p == nil || p.Samples <= 0:
		return 0
	case w.by == lease.ByTiles:
		return float64(w.part.Len()) * float64(p.Sample) / float64(p.Samples)
	}
	return float64(p.Sample)
}

// under is how many units the machine has rendered that no piece holds yet.
func (w *workerView) under() float64 {
	given := 0.0
	for _, n := range w.given {
		given += float64(n)
	}
	return max(0, w.reached()-max(given, w.first))
}

func (w *workerView) report(text json.RawMessage, now time.Time) {
	var p render.Progress
	if len(text) == 0 || json.Unmarshal(text, &p) != nil {
		return
	}
	switch old := w.progress; {
	case old != nil && (old.Frame != p.Frame || !rendering(old.Phase) && rendering(p.Phase)):
		w.began = now
	case w.began.IsZero(): // it was under way when this was first read
		w.began = now.Add(-seconds(p.Elapsed / float64(max(0, p.Done)+1)))
	}
	w.progress = &p
	if spent := now.Sub(w.began).Seconds(); spent > 1 && w.reached() > 0 {
		// A part begins slowly: until it has gone on for a while, the one before says more.
		trust := min(1, spent/settleSeconds)
		if w.past == 0 {
			trust = 1
		}
		w.speed = trust*w.reached()/spent + (1-trust)*w.past
	}
}

// settleSeconds is how long a machine renders a part before its speed is that of the part.
const settleSeconds = 20

// rendering tells whether a phase is part of a frame's own time: what comes
// before, the fetching of the project and Blender's loading of it, is not.
func rendering(phase string) bool { return phase == "rendering" || phase == "saving" }

// share is how much of its present frame a machine has done, from 0 to 1; ok is
// false while nothing tells. mean is the seconds that a frame takes, 0 where that
// is not known yet.
func (w *workerView) share(now time.Time, mean float64) (part float64, ok bool) {
	p := w.progress
	switch {
	case w.task < 0:
		return 0, false
	case p != nil && p.Samples > 0 && p.Sample > 0:
		return min(1, float64(p.Sample)/float64(p.Samples)), true
	case mean > 0 && !w.began.IsZero() && (p == nil || rendering(p.Phase)):
		return min(0.9, max(0, now.Sub(w.began).Seconds())/mean), true
	}
	return 0, false
}

func (f *follower) worker(id authz.PeerID, name string) *workerView {
	w := f.peers[id]
	if w == nil {
		w = &workerView{name: id.Short(), task: -1, by: f.job.Split.By}
		f.peers[id] = w
		f.order = append(f.order, id)
	}
	if name != "" {
		w.name = name
	}
	return w
}

func (f *follower) task(ev httpapi.Event) *httpapi.Task {
	if ev.Task == nil {
		return nil
	}
	t := f.tasks[*ev.Task]
	if ev.Frames == "" {
		return t
	}
	if t == nil { // it was cut off another since all was read
		t = &httpapi.Task{Index: *ev.Task}
		f.tasks[t.Index] = t
	}
	t.Frames, t.Units = ev.Frames, ev.Units
	return t
}

func (f *follower) frame(ev httpapi.Event) *httpapi.Frame {
	switch {
	case ev.Frame == nil:
		return nil
	case *ev.Frame == lease.MovieFrame:
		return f.job.Movie
	}
	return f.frames[*ev.Frame]
}

func finished(s lease.TaskState) bool { return s == lease.TaskRendered || s == lease.TaskDone }

func (f *follower) move(fr *httpapi.Frame, to lease.TaskState) {
	if fr == f.job.Movie {
		fr.State = to
		return
	}
	if finished(fr.State) {
		f.rendered--
	}
	if fr.State = to; finished(to) {
		f.rendered++
	}
}

// left estimates the time until all frames are rendered; ok is false while
// there is nothing to measure by.
//
// The pace of the whole job so far says it best, but not at its beginning: then
// Blenders have been loading, and most frames are half done. Until each machine
// has given two frames, the time that one frame takes, spread over the machines
// that render, weighs the more.
func (f *follower) left(now time.Time) (d time.Duration, ok bool) {
	if f.job.UnitsTotal > 0 {
		return f.unitsLeft(now)
	}
	var mean, parts, spentOnParts float64
	if f.results > 0 {
		mean = f.seconds / float64(f.results)
	}
	busy := 0
	for _, w := range f.peers {
		if w.task < 0 {
			continue
		}
		busy++
		if part, ok := w.share(now, mean); ok {
			parts += part
			spentOnParts += max(0, now.Sub(w.began).Seconds())
		}
	}
	done := float64(f.rendered) + parts
	open := float64(len(f.frames)) - done
	if f.job.StartedAt == nil || done <= 0 || open <= 0 || f.rendered == len(f.frames) {
		return 0, false
	}
	byPace := now.Sub(*f.job.StartedAt).Seconds() / done * open
	if mean == 0 && parts > 0 {
		mean = spentOnParts / parts
	}
	if busy == 0 || mean == 0 {
		return seconds(byPace), true
	}
	byFrame := mean * open / min(float64(busy), max(1, open))
	trust := min(1, float64(f.rendered)/float64(2*busy))
	return seconds(trust*byPace + (1-trust)*byFrame), true
}

// units is how many units of all frames are rendered, with those of which the farm does
// not hold a piece yet.
func (f *follower) units() float64 {
	n := float64(f.job.UnitsDone)
	for _, w := range f.peers {
		n += w.under()
	}
	return min(n, float64(f.job.UnitsTotal))
}

// unitsLeft is left of a job that splits its frames. Its machines render until nothing
// is left, so that how fast they are together says it best, from the beginning.
func (f *follower) unitsLeft(now time.Time) (d time.Duration, ok bool) {
	done := f.units()
	open := float64(f.job.UnitsTotal) - done
	if f.job.StartedAt == nil || done <= 0 || open <= 0 {
		return 0, false
	}
	speed := 0.0
	for _, w := range f.peers {
		if w.part != nil {
			speed += w.speed
		}
	}
	if speed > 0 {
		return seconds(open / speed), true
	}
	return seconds(now.Sub(*f.job.StartedAt).Seconds() / done * open), true
}

// busy counts the machines that render the job now.
func (f *follower) busy() (n int) {
	for _, w := range f.peers {
		if w.task >= 0 {
			n++
		}
	}
	return n
}

func seconds(s float64) time.Duration { return time.Duration(max(0, s) * float64(time.Second)) }

// elapsed is how long the job has been going; ok is false before it started.
func (f *follower) elapsed(now time.Time) (d time.Duration, ok bool) {
	if f.job.StartedAt == nil {
		return 0, false
	}
	return max(0, now.Sub(*f.job.StartedAt)), true
}

// idle tells whether no machine renders the job now.
func (f *follower) idle() bool { return f.busy() == 0 }

// written tells whether all that the job gives is in its folder.
func (f *follower) written() bool {
	return f.delivered == len(f.frames) && (f.job.Movie == nil || f.job.Movie.Delivered)
}

// settled tells whether nothing more is to come: the job has ended, and if it
// is done, its frames are where they were asked for.
func (f *follower) settled() bool {
	if !f.job.State.Ended() {
		return false
	}
	if f.job.State != lease.JobDone || f.job.Output == "" {
		return true
	}
	return f.written()
}

// lookAgain is how often a job is read anew whose trouble makes no event: it
// waits for a machine, or its frames for room in their folder.
const lookAgain = 10 * time.Second

// follow waits until the job is settled and returns it as it then is. show, if
// not nil, is called with every change; ev is nil where the whole was read anew.
func (cl *client) follow(ctx context.Context, id lease.JobID, show func(f *follower, ev *httpapi.Event)) (httpapi.Job, error) {
	var f follower
	read := func() error {
		job, err := cl.job(ctx, id)
		if err != nil {
			return err
		}
		tasks, err := cl.tasks(ctx, id)
		if err != nil {
			return err
		}
		f.reset(job, tasks)
		if show != nil {
			show(&f, nil)
		}
		if f.settled() {
			return errStop
		}
		return nil
	}
	// look reads what no event tells.
	looked := f.now()
	look := func() error {
		looked = f.now()
		if f.job.State.Ended() {
			f.late = true
			return read()
		}
		if !f.idle() && (f.job.Output == "" || f.delivered == f.rendered) {
			return nil
		}
		job, err := cl.job(ctx, id)
		if err != nil || job.State.Ended() {
			return err // its end comes as an event
		}
		f.job.Reason, f.job.OutputError = job.Reason, job.OutputError
		if show != nil {
			show(&f, nil)
		}
		return nil
	}
	err := cl.events(ctx, jobQuery(id), listener{
		opened: read,
		event: func(ev httpapi.Event) error {
			if ev.Job != id {
				return nil
			}
			f.apply(ev)
			if show != nil {
				show(&f, &ev)
			}
			if ev.Type == lease.JobEnded || f.job.State.Ended() && f.written() {
				return read()
			}
			if f.now().Sub(looked) > lookAgain {
				return look()
			}
			return nil
		},
		idle: look,
	})
	return f.job, err
}

// verdict turns how a job ended into the error for it, nil for done.
func verdict(job httpapi.Job) error {
	if job.State != lease.JobDone {
		return &jobError{id: job.ID, state: job.State, reason: job.Reason, kinds: job.Failures, log: job.Log}
	}
	return nil
}

// stuck says why an open job does not go on, where that needs a person: a
// machine that is only busy comes free by itself.
func stuck(job httpapi.Job) string {
	if job.State.Ended() || job.Reason == "it waits for a machine to be free" {
		return ""
	}
	return strings.Replace(job.Reason, "it waits", "job "+string(job.ID)+" waits", 1)
}

// undelivered says why frames are not in their folder, "" where nothing hinders.
func undelivered(job httpapi.Job) string {
	if job.OutputError == "" {
		return ""
	}
	return "frames cannot be written: " + job.OutputError + "; the farm keeps them: make room and they come by themselves"
}

// teller shows a job on a board, and tells once what keeps it from going on.
type teller struct {
	board  board
	reason string
	told   map[string]bool
}

func (t *teller) show(f *follower, ev *httpapi.Event) {
	t.board.show(f, ev)
	if reason := stuck(f.job); reason != t.reason {
		if t.reason = reason; reason != "" {
			t.board.warn(reason)
		}
	}
	t.once(undelivered(f.job))
	if f.late && f.job.State == lease.JobDone && !f.written() && f.job.OutputError == "" {
		what := "the movie"
		if n := len(f.frames) - f.delivered; n > 0 {
			what = count(n, "frame")
		}
		t.once(fmt.Sprintf("job %s is done; still waiting for %s to be written to %s", f.job.ID, what, f.job.Output))
	}
}

func (t *teller) once(text string) {
	if text == "" || t.told[text] {
		return
	}
	if t.told == nil {
		t.told = make(map[string]bool)
	}
	t.told[text] = true
	t.board.warn(text)
}
