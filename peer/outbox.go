package peer

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// Limits of an outbox.
const (
	maxOutbox      = 100      // jobs
	maxOutboxBytes = 16 << 20 // of their files
	maxPosting     = 2 << 20  // bytes of one
	// A job that was not submitted for so long is not any more: the farm must still
	// remember a job, so as not to take it twice, 30 days after it ended.
	keepWaiting = 14 * 24 * time.Hour
	// keepEnded is for how long it is shown that a job was refused, or cancelled.
	keepEnded = 7 * 24 * time.Hour
	// deliverTime bounds one try to submit a job.
	deliverTime = 30 * time.Second
)

// waitingPin is the pin of the project of a job that waits.
func waitingPin(j lease.JobID) string { return "waiting:" + string(j) }

// outbox keeps the jobs that were posted at this machine while nobody led the queue: a
// file for each, written whole and synced before the one who posted it hears of it, and
// gone once the job was submitted. See [httpapi.Outbox].
//
// A job goes under the ID that it was given here, and the farm takes an ID once: it may
// be delivered as often as it takes. It goes with the credential of who posted it, which
// the leader checks as it checks any. That is in memory alone; after a restart, the
// machine's own key is in its token file, and anybody else's jobs wait until their person
// shows it, or begins another session, here. So no machine ever speaks for a person.
type outbox struct {
	dir     dataDir
	store   *blobs.Store
	link    *link
	slog    *slog.Logger
	view    func() *authz.View
	limits  lease.Limits
	token   func() string // this machine's own, "" where it has none
	orphans atomic.Int32  // jobs that wait for a credential

	mu      sync.Mutex
	all     []*posting    // in the order in which they were posted
	changed chan struct{} // closed and replaced at each change
	wake    chan struct{}
}

// openOutbox reads what an earlier process left in dir. What cannot be read is set aside,
// for people to look at.
func openOutbox(dir string, store *blobs.Store, log *slog.Logger) (*outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of jobs to submit: %w", err)
	}
	o := &outbox{dir: dataDir(dir), store: store, slog: log, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the jobs to submit: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		id, ok := strings.CutSuffix(name, ".json")
		if !ok {
			if strings.HasPrefix(name, ".") { // a write that was cut short
				_ = os.Remove(o.dir.path(name))
			}
			continue
		}
		p, err := readFile(o.dir.path(name))
		if err == nil && string(p.Job) != id {
			err = errors.New("it is another job's")
		}
		if err != nil {
			log.Error("a job that waited to be submitted cannot be read, and is set aside: submit it again", "file", o.dir.path(name), "err", err)
			if err := os.Rename(o.dir.path(name), o.dir.path(name+".damaged")); err != nil {
				return nil, fmt.Errorf("set a damaged job aside: %w", err)
			}
			continue
		}
		o.all = append(o.all, p)
	}
	slices.SortStableFunc(o.all, func(a, b *posting) int { return a.Posted.Compare(b.Posted) })
	o.count()
	return o, o.unpinOthers()
}

func readFile(path string) (*posting, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPosting+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPosting {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", maxPosting)
	}
	return readPosting(data)
}

// unpinOthers lets go of projects whose job does not wait any more.
func (o *outbox) unpinOthers() error {
	ctx := context.Background()
	var stale []blobs.Pin
	for pin, err := range o.store.Pins(ctx) {
		if err != nil {
			return err
		}
		if job, ok := strings.CutPrefix(pin.Holder, waitingPin("")); ok && !slices.ContainsFunc(o.all, func(p *posting) bool {
			return string(p.Job) == job && !p.State.Ended()
		}) {
			stale = append(stale, pin)
		}
	}
	for _, pin := range stale {
		if err := o.store.Unpin(ctx, pin.Root, pin.Holder); err != nil {
			return err
		}
	}
	return nil
}

// NewJob draws an ID.
func (o *outbox) NewJob() lease.JobID { return coord.NewJobID() }

// find is the posting of a job. o.mu is held.
func (o *outbox) find(id lease.JobID) *posting {
	if i := slices.IndexFunc(o.all, func(p *posting) bool { return p.Job == id }); i >= 0 {
		return o.all[i]
	}
	return nil
}

// tell wakes whoever waits for a change. o.mu is held.
func (o *outbox) tell() {
	o.count()
	close(o.changed)
	o.changed = make(chan struct{})
}

// count notes how many jobs wait for a credential. o.mu is held, or o is not shared yet.
func (o *outbox) count() {
	n := 0
	for _, p := range o.all {
		if !p.State.Ended() && p.token == "" {
			n++
		}
	}
	o.orphans.Store(int32(n))
}

// write puts a posting on the disk as change makes it, and then in its place. o.mu is
// held.
func (o *outbox) write(p *posting, change func(*posting)) error {
	next := *p
	change(&next)
	data, err := json.Marshal(&next)
	if err != nil {
		return err
	}
	if len(data) > maxPosting {
		return fmt.Errorf("%w: the job takes %d bytes, more than the %d that can wait here", httpapi.ErrTooLarge, len(data), maxPosting)
	}
	if err := o.dir.write(string(p.Job)+".json", data, 0o600); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %w", blobs.ErrDiskFull, err)
		}
		return err
	}
	next.size = len(data)
	*p = next
	return o.dir.sync()
}

// drop forgets a posting. o.mu is held. A file that a power cut brings back is delivered
// once more, to no effect.
func (o *outbox) drop(p *posting) {
	if err := os.Remove(o.dir.path(string(p.Job) + ".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		o.slog.Warn("a job that was submitted could not be taken off the list: it is submitted again after the next start, to no effect", "job", p.Job, "err", err)
	}
	o.all = slices.DeleteFunc(o.all, func(other *posting) bool { return other == p })
	if !p.State.Ended() {
		o.unpin(p)
	}
}

// Keep takes a job. The project is pinned before, so that it is here for as long.
func (o *outbox) Keep(ctx context.Context, in httpapi.Posted) (out httpapi.Submitted, err error) {
	tasks, err := in.Spec.CountTasks(o.limits.Tasks)
	if err != nil {
		return out, err
	}
	root, err := cid.Decode(in.Spec.Project)
	if err != nil {
		return out, fmt.Errorf("%w: the project: %w", httpapi.ErrInvalid, err)
	}
	p := &posting{
		Job: in.Job, Posted: time.Now().UTC(), Spec: in.Spec, Once: in.Once, Key: in.By.Key, Session: in.By.Session, Address: in.Address,
		Tasks: tasks, Tried: in.Tried, State: lease.JobQueued, token: in.Token,
	}
	if p.Once == nil { // for a leader of an earlier version, which takes no notice of the ID
		p.Once = &lease.Once{User: p.Spec.Owner, Key: "job:" + string(p.Job), Request: string(p.Job)}
	}
	if err := o.store.Pin(ctx, root, waitingPin(p.Job)); err != nil {
		return out, err
	}
	if out, err = o.take(p); err != nil || out.Job != p.Job {
		_ = o.store.Unpin(context.WithoutCancel(ctx), root, waitingPin(p.Job))
		return out, err
	}
	o.slog.Warn("nobody leads the queue: a job waits here to be submitted", "job", p.Job, "user", p.Spec.Owner)
	return out, nil
}

func (o *outbox) take(p *posting) (httpapi.Submitted, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out, ok, err := o.kept(p.Once); ok || err != nil {
		return out, err
	}
	o.expire(time.Now())
	n, size := 0, 0
	for _, other := range o.all {
		size += other.size
		if !other.State.Ended() {
			n++
		}
	}
	switch {
	case n >= maxOutbox:
		return httpapi.Submitted{}, fmt.Errorf("%w, and %d jobs wait on this machine already, the most that it keeps: submit this one again later", httpapi.ErrNoLeader, n)
	case size >= maxOutboxBytes:
		return httpapi.Submitted{}, fmt.Errorf("%w, and the jobs that wait on this machine take %d MiB, the most that it keeps: submit this one again later", httpapi.ErrNoLeader, size>>20)
	}
	if err := o.write(p, func(*posting) {}); err != nil {
		_ = os.Remove(o.dir.path(string(p.Job) + ".json"))
		return httpapi.Submitted{}, err
	}
	o.all = append(o.all, p)
	o.tell()
	o.nudge()
	return o.answer(p), nil
}

func (o *outbox) answer(p *posting) httpapi.Submitted {
	return httpapi.Submitted{Job: p.Job, Project: p.Spec.Project, Tasks: p.Tasks, Split: p.Spec.Split, Waiting: !p.State.Ended(), Reason: p.reason()}
}

// Kept is what was answered to an earlier request with the same key.
func (o *outbox) Kept(once *lease.Once) (httpapi.Submitted, bool, error) {
	if once == nil {
		return httpapi.Submitted{}, false, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept(once)
}

func (o *outbox) kept(once *lease.Once) (out httpapi.Submitted, ok bool, err error) {
	if once == nil {
		return out, false, nil
	}
	for _, p := range o.all {
		switch {
		case p.Once == nil || p.Once.User != once.User || p.Once.Key != once.Key:
		case p.State == lease.JobFailed: // it was refused, and may be tried again
		case p.Once.Request != once.Request:
			return out, false, lease.ErrKeyReused
		default:
			out = o.answer(p)
			out.Replayed = true
			return out, true, nil
		}
	}
	return out, false, nil
}

// Holds tells whether a job is here.
func (o *outbox) Holds(id lease.JobID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.find(id) != nil
}

// Count is how many jobs wait.
func (o *outbox) Count() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.all {
		if !p.State.Ended() {
			n++
		}
	}
	return n
}

// Waiting lists the jobs that who may see.
func (o *outbox) Waiting(who authz.Principal) (out []httpapi.JobSummary) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range slices.Backward(o.all) {
		if who.MaySee(p.Spec.Owner) {
			out = append(out, p.summary())
		}
	}
	return out
}

// WaitingJob is one of them.
func (o *outbox) WaitingJob(who authz.Principal, id lease.JobID) (httpapi.Job, <-chan struct{}, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.find(id)
	if p == nil || !who.MaySee(p.Spec.Owner) {
		return httpapi.Job{}, nil, false
	}
	job := httpapi.Job{
		JobSummary: p.summary(), Project: p.Spec.Project, FrameList: p.Spec.Frames.String(), Submitter: p.Spec.Submitter, Output: p.Spec.Output.Dir,
		Replicas: p.Spec.Replicas, ProjectHolders: 1, Needs: p.Spec.Needs, Frames: []httpapi.Frame{},
	}
	task := lease.TaskQueued
	if p.State.Ended() {
		task = lease.TaskCancelled
	}
	for _, n := range p.Spec.Frames.Expand() {
		job.Frames = append(job.Frames, httpapi.Frame{Frame: n, State: task})
	}
	return job, o.changed, true
}

// Withdraw cancels a job. One that a coordinator may have taken is cancelled there, as
// soon as one can be reached: it is submitted once more, so that it is sure to be there.
func (o *outbox) Withdraw(who authz.Principal, id lease.JobID) (out httpapi.JobSummary, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.find(id)
	switch {
	case p == nil || !who.MaySee(p.Spec.Owner):
		return out, httpapi.ErrNotFound
	case !who.MayControl(p.Spec.Owner):
		return out, fmt.Errorf("%w: a %s may not control jobs", httpapi.ErrDenied, who.Role)
	case p.State.Ended():
		return out, lease.ErrEnded
	}
	said := "cancelled by " + who.User
	if p.Tried {
		err = o.write(p, func(p *posting) {
			if p.Cancel == "" {
				p.Cancel, p.Ended = said, time.Now().UTC()
			}
		})
		o.nudge()
	} else {
		err = o.end(p, lease.JobCancelled, said)
	}
	if err != nil {
		return out, err
	}
	o.tell()
	return p.summary(), nil
}

// end notes that a job will not be submitted, and why. o.mu is held.
func (o *outbox) end(p *posting, state lease.JobState, why string) error {
	err := o.write(p, func(p *posting) { p.State, p.Reason, p.Ended, p.token = state, why, time.Now().UTC(), "" })
	if err == nil {
		o.unpin(p)
	}
	return err
}

// unpin lets the project of a job go.
func (o *outbox) unpin(p *posting) {
	root, err := cid.Decode(p.Spec.Project)
	if err == nil {
		err = o.store.Unpin(context.Background(), root, waitingPin(p.Job))
	}
	if err != nil {
		o.slog.Warn("the project of a job that waits no more is kept until the next start", "job", p.Job, "err", err)
	}
}

// expire forgets what was shown for long enough. o.mu is held.
func (o *outbox) expire(now time.Time) {
	for _, p := range slices.Clone(o.all) {
		if p.State.Ended() && now.Sub(p.Ended) > keepEnded {
			o.drop(p)
		}
	}
	// Those that wait need the room more.
	for _, p := range slices.Clone(o.all) {
		if p.State.Ended() && len(o.all) >= maxOutbox {
			o.drop(p)
		}
	}
}

func (o *outbox) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Shown gives a credential to the jobs that wait for it.
func (o *outbox) Shown(token string) {
	view := o.view()
	if o.orphans.Load() == 0 || view == nil || token == "" {
		return
	}
	who, err := view.Authenticate(token, time.Now())
	if err != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	found := false
	for _, p := range o.all {
		if p.token == "" && !p.State.Ended() && subtle.ConstantTimeCompare([]byte(p.spent), []byte(token)) == 0 && p.goesWith(who, view) {
			p.token, p.why, found = token, "", true
		}
	}
	if found {
		o.tell()
		o.nudge()
	}
}

// The outbox of this machine's side of the API.

func (l local) NewJob() lease.JobID { return l.outbox.NewJob() }

func (l local) Keep(ctx context.Context, in httpapi.Posted) (httpapi.Submitted, error) {
	return l.outbox.Keep(ctx, in)
}

func (l local) Kept(once *lease.Once) (httpapi.Submitted, bool, error) { return l.outbox.Kept(once) }

func (l local) Holds(id lease.JobID) bool { return l.outbox.Holds(id) }

func (l local) Waiting(p authz.Principal) []httpapi.JobSummary { return l.outbox.Waiting(p) }

func (l local) WaitingJob(p authz.Principal, id lease.JobID) (httpapi.Job, <-chan struct{}, bool) {
	return l.outbox.WaitingJob(p, id)
}

func (l local) Withdraw(_ context.Context, p authz.Principal, id lease.JobID) (httpapi.JobSummary, error) {
	return l.outbox.Withdraw(p, id)
}

func (l local) Shown(token string) { l.outbox.Shown(token) }
