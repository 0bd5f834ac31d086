package peer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/render"
)

// worker renders what this machine holds leases for.
type worker struct {
	store    *blobs.Store
	fetch    fetcher
	runner   render.Runner
	link     *link
	results  *results
	projects *projects
	holdings *holdings
	letGo    func() // pins were taken back; must not block
	ahead    ahead
	can      func() lease.Capability
	slog     *slog.Logger

	ctx  context.Context // the peer's
	crew crew

	alone alone

	mu       sync.Mutex
	leaving  string // why nothing more is begun; "" where it is
	attempts map[lease.ID]*attempt
	pinned   map[lease.JobID]cid.Cid // projects of open jobs that are pinned, or about to be
}

// attempt is one try under way.
type attempt struct {
	order    coord.Order
	cancel   context.CancelCauseFunc
	progress json.RawMessage
	previews []coord.Preview // the latest
	finish   chan struct{}   // closed when it should end with what it has
	ended    chan struct{}   // closed when it has ended and said so
	// over tells that Blender has ended and only the report is under way: the
	// slot is free, and the leader may know it before the report is answered.
	over bool
	// blender is the program that it runs; "" before that is chosen.
	blender string
}

var (
	errRevoked  = errors.New("the lease was taken back")
	errExpired  = fmt.Errorf("%w, and what was rendered may be wanted", errRevoked)
	errShutdown = errors.New("this peer is stopping")
)

// running lists the attempts under way, for the renewal of their leases.
func (w *worker) running() []coord.Running {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]coord.Running, 0, len(w.attempts))
	for id, a := range w.attempts {
		out = append(out, coord.Running{Lease: id, Progress: a.progress, Over: a.over, Previews: a.previews})
	}
	return out
}

// reports lists the same attempts with the tasks that they try.
func (w *worker) reports() []lease.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]lease.Report, 0, len(w.attempts))
	for _, a := range w.attempts {
		out = append(out, a.order.Report)
	}
	return out
}

// runsFrom tells whether an attempt runs a Blender from a folder.
func (w *worker) runsFrom(folder string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.attempts {
		if inFolder(a.blender, folder) {
			return true
		}
	}
	return false
}

func (w *worker) runs(id lease.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts[id] != nil
}

// start begins an attempt. It does not block.
func (w *worker) start(o coord.Order) {
	ctx, cancel := context.WithCancelCause(w.ctx)
	a := &attempt{order: o, cancel: cancel, finish: make(chan struct{}), ended: make(chan struct{})}
	w.mu.Lock()
	busy := cmp.Or(w.leaving, w.busy(o.Device))
	if busy == "" {
		w.attempts[o.Lease] = a
	}
	w.mu.Unlock()
	w.crew.Go(func() {
		defer cancel(nil)
		if busy != "" {
			w.report(w.ctx, coord.Up{Release: &lease.Release{Report: o.Report, Reason: busy}})
			return
		}
		log := w.try(ctx, a)
		close(a.ended)
		w.mu.Lock()
		delete(w.attempts, o.Lease)
		w.mu.Unlock()
		w.link.Nudge()
		if errors.Is(context.Cause(ctx), errExpired) {
			w.offer()
		}
		w.settle(o, log)
	})
}

// busy says why no more can be rendered on a device now, "" where it can. w.mu is held.
func (w *worker) busy(d lease.Device) string {
	can, all, there := w.can(), 0, 0
	for _, a := range w.attempts {
		if !a.over {
			all++
			if a.order.Device == d {
				there++
			}
		}
	}
	slots := can.SlotsOn(d)
	switch {
	case all >= can.TotalSlots():
		return "no free slot"
	case d == "":
		return ""
	case slots == 0:
		return fmt.Sprintf("the machine does not render on a device %.20q", string(d))
	case there >= slots:
		return fmt.Sprintf("no free slot on %s", d)
	}
	return ""
}

// leaves is why nothing more is begun here; "" where it is.
func (w *worker) leaves() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leaving
}

// leave begins nothing more from now on.
func (w *worker) leave(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving = why
}

// conclude has attempts end with what they have: all of them, or those alone that can
// give a part of what they render. It returns when those have ended, or ctx has, and
// tells whether there were any. Nothing may be begun any more: see leave.
func (w *worker) conclude(ctx context.Context, all bool) bool {
	w.mu.Lock()
	var ending []*attempt
	for _, a := range w.attempts {
		if (all || len(a.order.Spans) > 0) && !a.over {
			ending = append(ending, a)
		}
	}
	for _, a := range ending {
		select {
		case <-a.finish:
		default:
			close(a.finish)
		}
	}
	w.mu.Unlock()
	for _, a := range ending {
		select {
		case <-a.ended:
		case <-ctx.Done():
		}
	}
	return len(ending) > 0
}

// handBack stops what is still under way, for others to begin anew.
func (w *worker) handBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.attempts {
		a.cancel(errShutdown)
	}
}

// revoke stops an attempt whose lease was taken back.
func (w *worker) revoke(r coord.Revoke) {
	w.mu.Lock()
	a := w.attempts[r.Lease]
	w.mu.Unlock()
	if a != nil {
		why := errRevoked
		if r.Offer {
			why = errExpired
		}
		a.cancel(fmt.Errorf("%w: %s", why, r.Reason))
	}
}

// try makes the attempt and reports how it ended. It returns Blender's log, which may
// not be on disk yet; nil where there is none.
func (w *worker) try(ctx context.Context, a *attempt) *blobs.Import {
	o := a.order
	log := w.slog.With("task", o.Task.String(), "lease", o.Lease)
	log.Info("rendering", "frames", len(o.Frames), "device", o.Device)
	made, err := w.render(ctx, a)
	w.mu.Lock()
	a.over = true
	w.mu.Unlock()
	// What Blender left is removed beside the report: the slot waits for neither.
	tidied := make(chan struct{})
	go func() {
		defer close(tidied)
		made.tidy()
	}()
	defer func() { <-tidied }()
	var up coord.Up
	var failed *render.Error
	switch cause := context.Cause(ctx); {
	case err == nil:
		log.Info("rendered")
		up.Complete = &lease.Complete{Report: o.Report, Frames: made.frames, Pieces: made.pieces, Log: made.logCID()}
	case errors.Is(err, render.ErrFinished) && ctx.Err() == nil:
		// What it has is reported already, or with this; the rest is for another attempt.
		log.Info("ended early, with what there is", "why", w.leaves())
		up.Complete = &lease.Complete{Report: o.Report, Frames: made.frames, Pieces: made.pieces, Log: made.logCID()}
	case errors.Is(cause, errRevoked):
		log.Info("stopped", "why", cause)
		if !errors.Is(cause, errExpired) {
			w.results.forget(o.Lease)
		}
		return made.log
	case ctx.Err() != nil:
		// The peer is stopping. It hands the task back if it still can, and offers
		// the frames it has when it is back; otherwise the lease runs out.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		w.report(ctx, coord.Up{Release: &lease.Release{Report: o.Report, Reason: "the machine's vizpeer was stopped"}})
		return made.log
	case isFull(err):
		// It is the machine's lack and not the task's fault: another one may try.
		log.Warn("there is no room for the attempt", "err", err)
		up.Release = &lease.Release{Report: o.Report, Reason: err.Error()}
		up.NoRoom = true
	case errors.Is(err, errPieces):
		// Its pieces are made again elsewhere, if need be, before it is granted again.
		log.Info("not everything is here that it is made of", "err", err)
		up.Release = &lease.Release{Report: o.Report, Reason: err.Error()}
	case errors.As(err, &failed):
		log.Warn("the attempt failed", "err", err)
		up.Fail = &lease.Fail{Report: o.Report, Reason: failed.Reason, Tail: failed.Tail, Log: made.logCID(), Kind: failed.Kind}
	default:
		log.Warn("the attempt could not be made", "err", err)
		up.Fail = &lease.Fail{Report: o.Report, Reason: err.Error(), Log: made.logCID(), Kind: lease.FailMachine}
	}
	became := w.report(ctx, up)
	if became == refused && len(made.frames)+len(made.pieces) > 0 {
		// The lease had run out, but the frame may be wanted still.
		became = w.report(ctx, coord.Up{Record: &lease.Record{Report: o.Report, Frames: made.frames, Pieces: made.pieces}})
	}
	if became == refused {
		w.results.forget(o.Lease)
	}
	return made.log
}

// verdict is what became of a report.
type verdict int

const (
	unanswered verdict = iota // ctx ended first
	taken
	refused // there is no more to say about it
)

// report sends a report until somebody answers, over as many leaders as it
// takes.
func (w *worker) report(ctx context.Context, up coord.Up) verdict {
	ack, err := w.link.Report(ctx, up)
	switch {
	case err != nil:
		return unanswered
	case ack.Code != "":
		w.slog.Debug("a report was refused", "code", ack.Code, "reason", ack.Reason)
		return refused
	}
	return taken
}

// offer reports what attempts that have ended rendered, and of which it is not
// known that others hold it: this machine may have been cut off. What it returns is to be
// waited for until all of that is answered.
func (w *worker) offer() *sync.WaitGroup {
	var offered sync.WaitGroup
	for _, up := range w.results.orphans(w.runs) {
		offered.Add(1)
		w.crew.Go(func() {
			defer offered.Done()
			up.Record.Frames = held(w, up.Record.Frames, func(f lease.Result) []string { return []string{f.CID, f.Extra} })
			up.Record.Pieces = held(w, up.Record.Pieces, func(p lease.PieceResult) []string { return []string{p.CID} })
			if len(up.Record.Frames)+len(up.Record.Pieces) == 0 || w.report(w.ctx, up) == refused {
				w.results.forget(up.Record.Lease)
			}
		})
	}
	return &offered
}

// held are those of the results that the store has: it may have lost others since
// they were rendered.
func held[T any](w *worker, results []T, content func(T) []string) []T {
	return slices.DeleteFunc(results, func(r T) bool { return slices.ContainsFunc(content(r), w.lacks) })
}

// lacks tells whether content is known not to be here; "" is nothing that could be.
func (w *worker) lacks(content string) bool {
	if content == "" {
		return false
	}
	c, err := cid.Decode(content)
	if err != nil {
		return true
	}
	whole, err := w.store.Has(w.ctx, c)
	return !whole && err == nil
}

// made is what an attempt leaves beside the frames that are reported already.
type made struct {
	log     *blobs.Import       // nil where there is none
	frames  []lease.Result      // the last one, to be reported with the attempt's end
	pieces  []lease.PieceResult // likewise
	cleanup func()              // removes the attempt's folder; nil where there is none
}

func (m made) tidy() {
	if m.cleanup != nil {
		m.cleanup()
	}
}

func (m made) logCID() string {
	if m.log == nil {
		return ""
	}
	return m.log.CID.String()
}

// settle waits until Blender's log is on disk. Nothing else does: a log is worth less
// than the frames, and not a wait of its own for the disk.
func (w *worker) settle(o coord.Order, log *blobs.Import) {
	if log == nil {
		return
	}
	if err := log.Settle(context.WithoutCancel(w.ctx)); err != nil {
		w.lostLog(o, err)
	}
}

func (w *worker) lostLog(o coord.Order, err error) {
	w.slog.Warn("Blender's log could not be kept", "task", o.Task.String(), "err", err)
}

// render fetches the project, runs Blender and begins to store its log. Errors that
// are not a [render.Error] are this machine's own.
func (w *worker) render(ctx context.Context, a *attempt) (made, error) {
	o := a.order
	can := w.can()
	root, err := cid.Decode(o.Spec.Project)
	if err != nil {
		return made{}, fmt.Errorf("the project's CID: %w", err)
	}
	whole := w.projects.has(root)
	if !whole {
		if whole, err = w.store.Has(ctx, root); err != nil {
			return made{}, err
		}
	}
	// The leader has matched this machine by its ad. It is checked again here,
	// by who owns the machine.
	needs := o.Spec.Needs
	if whole {
		needs = needs.Holding()
	}
	if lacks := needs.Match(can); len(lacks) > 0 {
		if needs.Disk, needs.Store = 0, 0; len(needs.Match(can)) == 0 {
			return made{}, fmt.Errorf("%w: this machine %s", blobs.ErrDiskFull, lacks[0])
		}
		return made{}, fmt.Errorf("this machine %s", lacks[0])
	}
	if o.Device != "" && !needs.Fits(can, o.Device) {
		return made{}, fmt.Errorf("this machine's %s does not serve the job", o.Device)
	}
	build, _ := o.Spec.Needs.Build(can)
	w.mu.Lock()
	a.blender = build.Path
	w.mu.Unlock()
	if err := w.pin(ctx, root, o.Task.Job); err != nil {
		return made{}, err
	}
	total := len(o.Frames)
	w.say(a, render.Progress{Phase: "fetching", Total: total})
	if whole {
		w.holdings.has(root, 1, 1)
	} else if err := w.project(ctx, root, o); err != nil {
		return made{}, fmt.Errorf("fetch the project: %w", err)
	}
	if !o.Stocked {
		w.crew.Go(func() { w.report(w.ctx, coord.Up{Stock: &lease.Stock{Job: o.Task.Job}}) })
	}
	project, err := w.projects.open(ctx, root, can.Sandbox != "")
	if isFull(err) {
		// A Blender that waits for another attempt holds a project unpacked.
		w.runner.Rest()
		project, err = w.projects.open(ctx, root, can.Sandbox != "")
	}
	if err != nil {
		return made{}, fmt.Errorf("unpack the project: %w", err)
	}
	defer project.release()
	try := render.Attempt{
		ID: o.Lease, Owner: o.Spec.Owner, Project: project.dir, Content: o.Spec.Project, Blend: o.Spec.Blend, Build: build, Frames: o.Frames,
		Needs: o.Spec.Needs, Device: o.Device, Set: o.Spec.Settings, Timeout: o.Spec.TaskTimeout,
		Finish: a.finish, Hold: project.hold,
	}
	switch {
	case len(o.Spans) > 0:
		try.Part = &render.Part{Split: o.Split, Spans: o.Spans}
	case len(o.Movie) > 0:
		pictures, remove, err := w.pictures(ctx, o)
		defer remove()
		if err != nil {
			return made{}, err
		}
		try.Movie = &render.Movie{Kind: o.Spec.Movie, Frames: pictures}
	case o.Split.On():
		inputs, remove, err := w.inputs(ctx, o)
		defer remove()
		if err != nil {
			return made{}, err
		}
		try.Merge = &render.Merge{Split: o.Split, Pieces: inputs}
	}
	s := newSink(ctx, w, a)
	var m made
	log, cleanup, err := w.runner.Run(ctx, try, s)
	m.cleanup = cleanup
	m.frames, m.pieces = s.end(err == nil || errors.Is(err, render.ErrFinished))
	if s.full != nil {
		err = s.full
	}
	if log == "" || ctx.Err() != nil {
		return m, err
	}
	var lost error
	if m.log, lost = w.keepLog(ctx, o.Task.Job, log); lost != nil {
		w.lostLog(o, lost)
	}
	return m, err
}

// pin keeps a project as long as its job is open.
func (w *worker) pin(ctx context.Context, root cid.Cid, job lease.JobID) error {
	w.mu.Lock()
	held := w.pinned[job] == root
	w.pinned[job] = root // before it is: should the job end meanwhile, the next attempt pins anew
	w.mu.Unlock()
	if held {
		return w.store.Use(root)
	}
	err := w.store.Pin(ctx, root, jobPin(job))
	if err != nil {
		w.ended(job)
	}
	return err
}

// ended says that what is pinned for a job may be let go.
func (w *worker) ended(job lease.JobID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pinned, job)
}

// project brings an attempt's project here.
func (w *worker) project(ctx context.Context, root cid.Cid, o coord.Order) error {
	defer w.ahead.waits()()
	by := lease.ProjectOf(o.Task.Job)
	f := swarm.Request{Root: root, Scope: by.String(), Progress: func(done, total int64) { w.holdings.has(root, done, total) }}
	s := &sources{link: w.link, root: root, by: by, from: o.From}
	err := w.bring(ctx, f, s)
	if isFull(err) && w.ahead.giveWay(ctx) {
		err = w.bring(ctx, f, s)
	}
	if err != nil {
		return err
	}
	w.holdings.has(root, 1, 1)
	return nil
}

// unpin takes back all pins of one holder.
func (w *worker) unpin(holder string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), 10*time.Second)
	defer cancel()
	n, err := w.store.UnpinAll(ctx, holder)
	if err != nil {
		w.slog.Warn("a pin could not be taken back", "holder", holder, "err", err)
	}
	if n > 0 {
		w.letGo()
	}
}

// keepFrame stores a picture, durably.
func (w *worker) keepFrame(ctx context.Context, job lease.JobID, file *os.File) (i *blobs.Import, err error) {
	err = w.makingRoom(ctx, file, func() error {
		if i, err = w.store.BeginImport(ctx, file, framePin(job)); err != nil {
			return err
		}
		return i.Wait(ctx)
	})
	return i, err
}

// keepFolder stores what is beside a picture, durably.
func (w *worker) keepFolder(ctx context.Context, job lease.JobID, dir string) (root cid.Cid, sum blobs.Summary, err error) {
	store := func() error {
		if root, sum, err = w.store.ImportDir(ctx, dir, nil); err != nil {
			return err
		}
		return w.store.Pin(ctx, root, framePin(job))
	}
	if err = store(); isFull(err) && w.ahead.giveWay(ctx) {
		err = store()
	}
	return root, sum, err
}

// keepLog begins to store Blender's output.
func (w *worker) keepLog(ctx context.Context, job lease.JobID, path string) (i *blobs.Import, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	err = w.makingRoom(ctx, file, func() error {
		i, err = w.store.BeginImport(ctx, file, framePin(job))
		return err
	})
	return i, err
}

// makingRoom stores a file of an attempt, for which what was fetched ahead gives way.
func (w *worker) makingRoom(ctx context.Context, file *os.File, store func() error) error {
	err := store()
	if isFull(err) && w.ahead.giveWay(ctx) {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		err = store()
	}
	return err
}

// say notes the attempt's progress; the next renewal carries it.
func (w *worker) say(a *attempt, p render.Progress) {
	b, err := json.Marshal(p)
	if err != nil {
		return
	}
	w.mu.Lock()
	first := a.progress == nil
	a.progress = b
	w.mu.Unlock()
	if first {
		w.link.Nudge()
	}
}

// The holders of pins: uploads for a while, by whoever sent them, projects while
// their job is open, frames and logs for a while after.
func uploadPin(user string) string  { return "upload:" + user }
func jobPin(j lease.JobID) string   { return "job:" + string(j) }
func framePin(j lease.JobID) string { return "frames:" + string(j) }
func shownPin(j lease.JobID) string { return "shown:" + string(j) } // pictures of frames under way
