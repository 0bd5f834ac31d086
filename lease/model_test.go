package lease_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/lease/leasetest"
)

// model drives a State with random commands and checks what must always hold.
type model struct {
	s     *lease.State
	w     *leasetest.Witness
	every int             // commands between two full checks
	log   []lease.Command // those that were applied
	verbs map[string]int  // how many of each kind that were
	clock time.Time
	n     int
	jobs  []lease.JobID
	past  []lease.Report // every lease that was granted
	// twin was restored from what s stored and has had the same commands since.
	twin   *lease.State
	frozen *lease.Frozen
	was    []byte // what frozen held
}

var (
	peers = []authz.PeerID{"ann", "bob", "cyd"}
	tiers = []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}
)

// maxJobs is how many jobs a model has that have not ended: what is looked at again
// and again must not grow with the number of commands.
const maxJobs = 6

func newModel(every int) *model {
	return &model{s: lease.NewState(), w: leasetest.NewWitness(), every: every, verbs: map[string]int{}, clock: time.Unix(1e9, 0).UTC()}
}

func (m *model) id(prefix string) string {
	m.n++
	return fmt.Sprintf("%s%d", prefix, m.n)
}

// due tells whether it is time for a full check.
func (m *model) due() bool { return (m.w.Applied+m.w.Refused)%m.every == 0 }

func (m *model) apply(t *rapid.T, c lease.Command) error {
	m.clock = m.clock.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
	c.At = m.clock
	var before []byte
	if m.due() {
		before = m.bytes(t)
	}
	events, err := m.w.Apply(t, m.s, c)
	if m.twin != nil {
		same, because := m.twin.Apply(c)
		if !reflect.DeepEqual(events, same) || !reflect.DeepEqual(err, because) {
			require.Equal(t, []any{events, err}, []any{same, because}, "a restored state does something else")
		}
	}
	if err != nil {
		if before != nil {
			leasetest.Same(t, before, m.bytes(t), "a refused command changed the state")
		}
		return err
	}
	m.log = append(m.log, c)
	m.verbs[verb(reflect.ValueOf(c))]++
	if c.Forget != nil {
		m.jobs = slices.DeleteFunc(m.jobs, func(id lease.JobID) bool { _, there := m.s.Job(id); return !there })
	}
	for _, e := range events {
		switch e.Type {
		case lease.JobSubmitted:
			if !slices.Contains(m.jobs, e.Job) {
				m.jobs = append(m.jobs, e.Job)
			}
		case lease.TaskGranted:
			m.past = append(m.past, lease.Report{Lease: e.Lease, Task: lease.TaskID{Job: e.Job, Index: e.Task}, Peer: e.Peer})
		}
	}
	return nil
}

// verb names what a command is for.
func verb(c reflect.Value) string {
	for i := range c.NumField() {
		if f := c.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			return c.Type().Field(i).Name
		}
	}
	return ""
}

func (m *model) bytes(t require.TestingT) []byte { return written(t, m.s.Freeze()) }

func written(t require.TestingT, f *lease.Frozen) []byte { return leasetest.Bytes(t, f) }

// live lists those of the last leases that live.
func (m *model) live() (live []lease.Report) {
	for _, r := range m.past[max(0, len(m.past)-40):] {
		if _, task, err := m.s.Task(r.Task); err == nil {
			if _, is := task.Live(r.Lease); is {
				live = append(live, r)
			}
		}
	}
	return live
}

func (m *model) drawReport(t *rapid.T) (lease.Report, bool) {
	if len(m.past) == 0 {
		return lease.Report{}, false
	}
	from := m.past[max(0, len(m.past)-12):]
	if live := m.live(); len(live) > 0 && rapid.Bool().Draw(t, "live") {
		from = live
	}
	r := rapid.SampledFrom(from).Draw(t, "attempt")
	if _, _, err := m.s.Task(r.Task); err != nil { // its job is forgotten
		return lease.Report{}, false
	}
	if rapid.IntRange(0, 9).Draw(t, "forge") == 0 {
		r.Peer = rapid.SampledFrom(peers).Draw(t, "forger")
	}
	return r, true
}

func (m *model) results(t *rapid.T, r lease.Report) []lease.Result {
	j, task, err := m.s.Task(r.Task)
	require.NoError(t, err)
	frames := j.TaskFrames(task)
	if rapid.IntRange(0, 3).Draw(t, "all") == 0 { // those of tasks that were cut off, too
		frames = slices.DeleteFunc(slices.Clone(j.Numbers()), func(f int32) bool {
			at, _ := j.Place(f)
			_, of, _ := m.s.Task(lease.TaskID{Job: j.ID, Index: j.TaskOf(at)})
			return !slices.ContainsFunc(of.Attempts, func(a lease.Attempt) bool { return a.Lease == r.Lease })
		})
	}
	var out []lease.Result
	for _, f := range frames {
		if rapid.Bool().Draw(t, "has") {
			made := lease.Result{Frame: f, CID: fmt.Sprintf("cid-%s-%d-%s", j.ID, f, r.Peer), Name: nameOf(f), Size: 1, Seconds: float64(f * f)}
			if n := rapid.IntRange(0, 2).Draw(t, "extra"); n > 0 && f != lease.MovieFrame { // not the same every time, where the frame is
				made.Extra, made.ExtraFiles, made.ExtraSize = fmt.Sprintf("extra%d-%s-%d", n, j.ID, f), n, int64(n)
			}
			out = append(out, made)
		}
	}
	return out
}

func nameOf(frame int32) string {
	if frame == lease.MovieFrame {
		return "shot.mp4"
	}
	return fmt.Sprintf("%04d.png", frame)
}

// pieces draws pieces of a part, or the whole of what was merged.
func (m *model) pieces(t *rapid.T, r lease.Report) (out []lease.PieceResult) {
	j, task, err := m.s.Task(r.Task)
	require.NoError(t, err)
	if !j.Splits() {
		return nil
	}
	frame := j.Numbers()[task.Lo]
	add := func(s lease.Span) {
		out = append(out, lease.PieceResult{Frame: frame, Span: s, CID: fmt.Sprintf("piece-%s-%d-%d-%d-%s", j.ID, frame, s.From, s.To, r.Lease), Size: 1, Seconds: float64(s.Len())})
	}
	switch {
	case !task.Part():
		if rapid.Bool().Draw(t, "merged") {
			add(lease.Span{From: 0, To: j.Units})
		}
	case seldom(t, 8):
		from := rapid.Int32Range(-1, j.Units).Draw(t, "from")
		add(lease.Span{From: from, To: from + rapid.Int32Range(-1, 4).Draw(t, "length")})
	case j.Spec.Split.By == lease.ByTiles:
		for i := task.Span.From; i < task.Span.To; i++ {
			if rapid.Bool().Draw(t, "has") {
				add(lease.Span{From: i, To: i + 1})
			}
		}
	default:
		for _, gap := range j.Gaps(task) {
			if n := rapid.Int32Range(0, gap.Len()).Draw(t, "length"); n > 0 {
				add(lease.Span{From: gap.From, To: gap.From + n})
			}
		}
	}
	return out
}

// job draws a job, most often one that has not ended; nil where there is none.
func (m *model) job(t *rapid.T) *lease.Job {
	var from []lease.JobID
	for _, j := range m.s.Open() {
		from = append(from, j.ID)
	}
	if len(from) == 0 || seldom(t, 5) {
		from = m.jobs
	}
	if len(from) == 0 {
		return nil
	}
	j, _ := m.s.Job(rapid.SampledFrom(from).Draw(t, "job"))
	return j
}

// often are actions that give the others something to act on, and how many times as
// often as those they are taken.
var often = map[string]int{"submit": 2, "grant": 8, "record": 3, "complete": 3, "fail": 2, "hold": 3, "whole": 4, "more": 2}

// weighted are the actions, some of them several times.
func (m *model) weighted() map[string]func(*rapid.T) {
	all := map[string]func(*rapid.T){}
	for name, do := range m.actions() {
		all[name] = do
		for i := 1; i < often[name]; i++ {
			all[fmt.Sprint(name, " ", i)] = do
		}
	}
	return all
}

// seldom draws whether to do what is wanted one time in so many.
func seldom(t *rapid.T, in int) bool { return rapid.IntRange(0, in-1).Draw(t, "seldom") == 0 }

func (m *model) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"submit": func(t *rapid.T) {
			if len(m.s.Open()) >= maxJobs {
				return
			}
			first := rapid.Int32Range(-20, 20).Draw(t, "first")
			spec := spec(lease.Frames{{First: first, Last: first + rapid.Int32Range(-1, 12).Draw(t, "more"), Step: rapid.Int32Range(1, 3).Draw(t, "step")}})
			spec.Chunk = rapid.IntRange(0, 4).Draw(t, "chunk")
			spec.Tier = rapid.SampledFrom(tiers).Draw(t, "tier")
			spec.Replicas = rapid.IntRange(1, 3).Draw(t, "replicas")
			spec.Order = rapid.SampledFrom([]lease.Order{"", lease.Linear}).Draw(t, "order")
			if seldom(t, 3) {
				spec.Chunk, spec.Split = 0, rapid.SampledFrom([]lease.Split{
					{By: lease.BySamples, Units: 9}, {By: lease.BySamples, Units: 1}, {By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2},
				}).Draw(t, "split")
			}
			if seldom(t, 4) {
				spec.Movie = rapid.SampledFrom([]string{"mp4", "webm", "avi"}).Draw(t, "movie")
			}
			spec.Output.Dir = rapid.SampledFrom([]string{"/out", ""}).Draw(t, "folder")
			if len(m.jobs) > 0 && seldom(t, 6) {
				spec.After = []lease.JobID{rapid.SampledFrom(m.jobs).Draw(t, "first")}
			}
			limits := lease.Limits{Tasks: rapid.SampledFrom([]int{0, 3}).Draw(t, "tasks"), OpenJobs: rapid.SampledFrom([]int{0, 4}).Draw(t, "open")}
			_ = m.apply(t, lease.Command{Submit: &lease.Submit{Job: lease.JobID(m.id("j")), Spec: spec, Limits: limits}})
		},
		"grant": func(t *rapid.T) {
			j := m.job(t)
			if j == nil {
				return
			}
			g := &lease.Grant{Lease: lease.ID(m.id("l")), Task: lease.TaskID{Job: j.ID}, Peer: rapid.SampledFrom(peers).Draw(t, "peer")}
			if next := j.Next(1); len(next) > 0 && !seldom(t, 4) {
				g.Task.Index = next[0]
			} else {
				g.Task.Index = rapid.Int32Range(-1, int32(len(j.Tasks))).Draw(t, "task")
				g.Second = !seldom(t, 3)
			}
			if j.Spec.Adaptive() || seldom(t, 10) {
				g.Frames = rapid.SampledFrom([]int32{0, 0, -1, 1, 2, 5}).Draw(t, "frames")
			}
			if j.Splits() || seldom(t, 10) {
				g.Units = rapid.SampledFrom([]int32{0, 0, -1, 1, 2, 5}).Draw(t, "units")
			}
			g.Device = rapid.SampledFrom([]lease.Device{"", "cpu", "gpu0", "gpu1", "cpu", "gpu0", "gpu1", "gpu"}).Draw(t, "device")
			_ = m.apply(t, lease.Command{Grant: g})
		},
		"record": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Record: &lease.Record{Report: r, Frames: m.results(t, r), Pieces: m.pieces(t, r), Machines: rapid.IntRange(0, 3).Draw(t, "machines")}})
			}
		},
		"complete": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Complete: &lease.Complete{Report: r, Frames: m.results(t, r), Pieces: m.pieces(t, r), Machines: rapid.IntRange(0, 3).Draw(t, "machines")}})
			}
		},
		"fail": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Fail: &lease.Fail{
					Report: r, Reason: "crash", Kind: rapid.SampledFrom(append(lease.FailKinds(), "", "odd")).Draw(t, "kind"),
					Had: lease.Memory{RAM: rapid.Int64Range(0, 2).Draw(t, "RAM")}, Others: rapid.IntRange(0, 2).Draw(t, "others"),
				}})
			}
		},
		"release": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Release: &lease.Release{Report: r, Reason: "stopped"}})
			}
		},
		"expire": func(t *rapid.T) {
			if r, ok := m.drawReport(t); ok {
				_ = m.apply(t, lease.Command{Expire: &lease.Expire{Lease: r.Lease, Task: r.Task}})
			}
		},
		"hold": func(t *rapid.T) {
			r, ok := m.drawReport(t)
			if !ok {
				return
			}
			j, task, _ := m.s.Task(r.Task)
			if pieces := j.PiecesOf(task.Lo); len(pieces) > 0 && rapid.Bool().Draw(t, "piece") {
				p := rapid.SampledFrom(pieces).Draw(t, "which")
				_ = m.apply(t, lease.Command{Hold: &lease.Hold{Job: j.ID, Frame: j.Numbers()[task.Lo], CID: p.CID, Peer: rapid.SampledFrom(peers).Draw(t, "keeper"), Machines: 3}})
				return
			}
			f := j.Frames[task.Lo]
			if f == nil {
				return
			}
			_ = m.apply(t, lease.Command{Hold: &lease.Hold{Job: j.ID, Frame: f.Result.Frame, CID: f.CID, Extra: f.Extra, Peer: rapid.SampledFrom(peers).Draw(t, "keeper"), Delivered: rapid.Bool().Draw(t, "delivered"), Machines: 3}})
		},
		"stock": func(t *rapid.T) {
			if j := m.job(t); j != nil {
				_ = m.apply(t, lease.Command{Stock: &lease.Stock{Job: j.ID, Peer: rapid.SampledFrom(peers).Draw(t, "peer")}})
			}
		},
		"lose": func(t *rapid.T) {
			if seldom(t, 3) {
				_ = m.apply(t, lease.Command{Lose: &lease.Lose{Peer: rapid.SampledFrom(peers).Draw(t, "peer"), Machines: rapid.IntRange(0, 3).Draw(t, "machines"), Removed: rapid.IntRange(0, 3).Draw(t, "removed") == 0}})
			}
		},
		"drain": func(t *rapid.T) {
			_ = m.apply(t, lease.Command{Drain: &lease.Drain{Peer: rapid.SampledFrom(append(peers, "")).Draw(t, "peer"), On: seldom(t, 8), Reason: rapid.SampledFrom([]string{"", "by ann"}).Draw(t, "why")}})
		},
		"store": func(t *rapid.T) {
			if seldom(t, 4) {
				_ = m.apply(t, lease.Command{Store: &lease.Store{Peer: rapid.SampledFrom(peers).Draw(t, "peer"), ID: rapid.SampledFrom([]string{"", "one", "two"}).Draw(t, "store")}})
			}
		},
		"unhold": func(t *rapid.T) {
			j := m.job(t)
			if j == nil || !seldom(t, 2) {
				return
			}
			cids := []string{j.Spec.Project, "cid-of-nothing"}
			for at, f := range j.Frames {
				if f != nil {
					cids = append(cids, f.CID, cmp.Or(f.Extra, f.CID))
				}
				for _, p := range j.PiecesOf(int32(at)) {
					cids = append(cids, p.CID)
				}
			}
			_ = m.apply(t, lease.Command{Unhold: &lease.Unhold{Job: j.ID, CID: rapid.SampledFrom(cids).Draw(t, "cid"), Peer: rapid.SampledFrom(peers).Draw(t, "peer"), Machines: 3}})
		},
		"cancel": func(t *rapid.T) {
			if j := m.job(t); j != nil && seldom(t, 10) {
				_ = m.apply(t, lease.Command{Cancel: &lease.Cancel{Job: j.ID, Reason: "by ann"}})
			}
		},
		"forgive": m.control(func(j lease.JobID) lease.Command { return lease.Command{Forgive: &lease.Forgive{Job: j}} }),
		"pause": func(t *rapid.T) {
			if seldom(t, 5) {
				m.control(func(j lease.JobID) lease.Command { return lease.Command{Pause: &lease.Pause{Job: j}} })(t)
			}
		},
		"resume": m.control(func(j lease.JobID) lease.Command { return lease.Command{Resume: &lease.Resume{Job: j}} }),
		"retry":  m.control(func(j lease.JobID) lease.Command { return lease.Command{Retry: &lease.Retry{Job: j}} }),
		"again": func(t *rapid.T) {
			first := rapid.Int32Range(-20, 20).Draw(t, "first")
			frames := lease.Frames{{First: first, Last: first + rapid.Int32Range(-1, 4).Draw(t, "more"), Step: 1}}
			m.control(func(j lease.JobID) lease.Command { return lease.Command{Retry: &lease.Retry{Job: j, Frames: frames}} })(t)
		},
		"whole": func(t *rapid.T) { // else a frame that is split would seldom be whole
			jobs := slices.DeleteFunc(slices.Clone(m.s.Open()), func(j *lease.Job) bool { return !j.Splits() })
			if len(jobs) == 0 {
				return
			}
			j := rapid.SampledFrom(jobs).Draw(t, "job")
			for _, i := range j.Next(1) {
				m.whole(t, j, i, rapid.SampledFrom(peers).Draw(t, "peer"))
			}
		},
		"more": func(t *rapid.T) {
			done := slices.DeleteFunc(slices.Clone(m.jobs), func(id lease.JobID) bool {
				j, _ := m.s.Job(id)
				return !j.Splits() || j.Units > 100
			})
			if len(done) == 0 || len(m.s.Open()) >= maxJobs {
				return
			}
			_ = m.apply(t, lease.Command{More: &lease.More{Job: rapid.SampledFrom(done).Draw(t, "job"), Samples: rapid.Int32Range(0, 4).Draw(t, "samples")}})
		},
		"freeze": func(t *rapid.T) {
			m.unchanged(t)
			m.frozen = m.s.Freeze()
			m.was = written(t, m.frozen)
		},
		"restart": func(t *rapid.T) {
			if seldom(t, 10) {
				m.twin = leasetest.Restored(t, m.s)
			}
		},
		"forget": func(t *rapid.T) {
			if len(m.s.Jobs()) < 2*maxJobs && !seldom(t, 10) {
				return
			}
			ago := time.Duration(rapid.IntRange(-1, 60).Draw(t, "seconds")) * time.Second
			_ = m.apply(t, lease.Command{Forget: &lease.Forget{Before: m.clock.Add(-ago)}})
		},
		"spoilt": m.spoilt,
		"prioritise": func(t *rapid.T) {
			to := rapid.SampledFrom([]lease.Tier{lease.Low, lease.Urgent, "none"}).Draw(t, "to")
			m.control(func(j lease.JobID) lease.Command {
				return lease.Command{Prioritise: &lease.Prioritise{Job: j, Tier: to}}
			})(t)
		},
	}
}

// control applies a command to some job.
func (m *model) control(command func(lease.JobID) lease.Command) func(*rapid.T) {
	return func(t *rapid.T) {
		if j := m.job(t); j != nil {
			_ = m.apply(t, command(j.ID))
		}
	}
}

// spoilt repeats a command with one value of it that nobody honest would give.
func (m *model) spoilt(t *rapid.T) {
	if len(m.log) == 0 {
		return
	}
	c := rapid.SampledFrom(m.log[max(0, len(m.log)-30):]).Draw(t, "command")
	c.At = time.Time{}
	text, err := json.Marshal(c)
	require.NoError(t, err)
	pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") }
	var bad lease.Command
	if json.Unmarshal(spoil(text, pick), &bad) != nil {
		return
	}
	if bad.Submit != nil && len(m.s.Open()) >= maxJobs || bad.Grant != nil && m.granted(bad.Grant.Lease) {
		return // the leader draws the IDs of leases at random
	}
	_ = m.apply(t, bad)
}

func (m *model) granted(l lease.ID) bool {
	return slices.ContainsFunc(m.past, func(r lease.Report) bool { return r.Lease == l })
}

// unchanged requires that what was frozen is as it was.
func (m *model) unchanged(t *rapid.T) {
	if m.frozen != nil {
		leasetest.Same(t, m.was, written(t, m.frozen), "what was frozen has changed")
	}
}

// totals holds what is counted over all jobs against the jobs themselves.
func (m *model) totals(t *rapid.T) {
	for _, tier := range []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent} {
		for _, state := range []lease.TaskState{lease.TaskQueued, lease.TaskLeased, lease.TaskRendered, lease.TaskDone, lease.TaskFailed, lease.TaskCancelled} {
			want := 0
			for _, j := range m.s.Jobs() {
				if j.Tier == tier {
					want += j.Count(state)
				}
			}
			require.Equal(t, want, m.s.Totals()[tier][state], "%s %s", tier, state)
			if m.twin != nil {
				require.Equal(t, want, m.twin.Totals()[tier][state], "%s %s of a restored state", tier, state)
			}
		}
	}
}

// check holds the state against what was told.
func (m *model) check(t *rapid.T) {
	if !m.due() {
		return
	}
	m.totals(t)
	everybody := lease.Presence{Here: func(authz.PeerID) bool { return true }, Voters: peers}
	for _, p := range peers {
		// What is safe job by job is safe as a whole.
		safe := true
		for _, j := range m.s.Jobs() {
			safe = safe && j.Parting(p, everybody).Safe
			m.rights(t, j, p)
		}
		require.Equal(t, safe, m.s.Parting(p, everybody).Safe)
	}
	if m.twin != nil {
		leasetest.Same(t, m.bytes(t), written(t, m.twin.Freeze()), "a restored state went another way")
	}
	for _, j := range m.s.Open() {
		if m.twin != nil {
			twin, _ := m.twin.Job(j.ID)
			require.Equal(t, j.Next(1), twin.Next(1), "a restored state would grant another task")
		}
		next := j.Next(len(j.Tasks) + 1)
		require.Len(t, next, j.Waits())
		if j.Spec.Order == lease.Linear {
			require.True(t, slices.IsSortedFunc(next, func(a, b int32) int { return cmp.Compare(j.Tasks[a].Lo, j.Tasks[b].Lo) }))
		}
	}
	m.w.Check(t, m.s, m.clock)
}

// run applies some n commands.
func (m *model) run(t *rapid.T, n int) {
	actions := m.weighted()
	names := slices.Sorted(maps.Keys(actions))
	for m.w.Applied+m.w.Refused < n {
		actions[rapid.SampledFrom(names).Draw(t, "action")](t)
		m.check(t)
	}
}

// end checks what can be checked only once: a replay of the log is the same state, as
// is a restored snapshot, and what is open can still be finished.
func (m *model) end(t *rapid.T) {
	m.unchanged(t)
	replay := lease.NewState()
	for _, c := range m.log {
		_, err := replay.Apply(c)
		require.NoError(t, err)
	}
	leasetest.Same(t, m.bytes(t), written(t, replay.Freeze()), "a replay gives another state")
	m.s, m.twin, m.every = leasetest.Restored(t, m.s), m.s, 1
	m.check(t)
	m.finish(t)
	m.check(t)
}

// finish renders all that is open: nothing was lost on the way.
func (m *model) finish(t *rapid.T) {
	do := func(c lease.Command) { require.NoError(t, m.apply(t, c)) }
	for _, j := range slices.Clone(m.s.Open()) {
		do(lease.Command{Resume: &lease.Resume{Job: j.ID}})
	}
	for _, r := range m.past {
		_ = m.apply(t, lease.Command{Expire: &lease.Expire{Lease: r.Lease, Task: r.Task}})
	}
	for round := 0; len(m.s.Open()) > 0; round++ {
		require.Less(t, round, 1000, "jobs do not end")
		for _, j := range slices.Clone(m.s.Open()) {
			if m.s.Awaits(j) != "" {
				continue
			}
			for _, i := range j.Next(1) {
				require.NoError(t, m.whole(t, j, i, "dan"))
			}
			for _, f := range j.Frames {
				if f != nil && !f.Done {
					do(lease.Command{Hold: &lease.Hold{Job: j.ID, Frame: f.Result.Frame, CID: f.CID, Extra: f.Extra, Peer: "dan", Machines: 1}})
				}
			}
		}
	}
	for _, j := range m.s.Jobs() {
		if j.State == lease.JobDone {
			require.Equal(t, len(j.Frames), m.w.Accepted(j.ID), "frames are missing of a job that is done")
		}
	}
	require.Zero(t, m.w.Live())
}

// whole grants a task and completes it.
func (m *model) whole(t *rapid.T, j *lease.Job, i int32, p authz.PeerID) error {
	r := lease.Report{Lease: lease.ID(m.id("l")), Task: lease.TaskID{Job: j.ID, Index: i}, Peer: p}
	if err := m.apply(t, lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer}}); err != nil {
		return err
	}
	var frames []lease.Result
	var pieces []lease.PieceResult
	for _, gap := range j.Gaps(&j.Tasks[i]) {
		for u := gap.From; u < gap.To; u++ { // as tiles are
			pieces = append(pieces, lease.PieceResult{Frame: j.Numbers()[j.Tasks[i].Lo], Span: lease.Span{From: u, To: u + 1}, CID: fmt.Sprint("last", m.n, u), Size: 1})
		}
	}
	for _, f := range j.Remaining(&j.Tasks[i]) {
		if !j.Tasks[i].Part() {
			frames = append(frames, lease.Result{Frame: f, CID: fmt.Sprint("last", f), Name: nameOf(f), Size: 1})
		}
	}
	return m.apply(t, lease.Command{Complete: &lease.Complete{Report: r, Frames: frames, Pieces: pieces, Machines: 1}})
}

// rights compares what a node may have with what the state says of it.
func (m *model) rights(t *rapid.T, j *lease.Job, p authz.PeerID) {
	node := authz.Member{ID: p, Role: authz.Node, User: string(p) + "-2"}
	mine := p == j.Spec.Submitter || node.Principal().MaySee(j.Spec.Owner)
	may := mine || j.Renders(p) || !j.State.Ended() && slices.Contains(j.Holders, p)
	require.Equal(t, may, m.s.MayHave(node, j.Spec.Project, lease.ProjectOf(j.ID)))
	require.False(t, m.s.MayHave(node, j.Spec.Project, lease.Scope{}))
	for _, f := range j.Frames {
		if f == nil || f.CID == j.Spec.Project {
			continue
		}
		by := lease.FrameOf(j.ID, f.Result.Frame)
		makes := slices.ContainsFunc(j.Tasks, func(task lease.Task) bool {
			return j.Makes(&task) && slices.ContainsFunc(task.Lives(), func(a lease.Attempt) bool { return a.Peer == p })
		})
		require.Equal(t, mine || makes || p == j.Spec.Output.Peer, m.s.MayHave(node, f.CID, by))
		require.False(t, m.s.MayHave(node, j.Spec.Project, by), "a frame's scope gives no right to the project")
		require.False(t, m.s.MayHave(node, f.CID, lease.ProjectOf(j.ID)), "a job's scope gives no right to its frames")
	}
}

func TestStateHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(1)
		actions := m.weighted()
		actions[""] = m.check
		t.Repeat(actions)
		m.end(t)
	})
}

// TestMillionsOfCommands drives longer lives of a queue, with the full checks only
// now and then, and says how many commands that were.
func TestMillionsOfCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine")
	}
	const total = 2_000_000
	applied, refused, verbs := 0, 0, map[string]int{}
	for applied+refused < total {
		rapid.Check(t, func(t *rapid.T) {
			m := newModel(50)
			m.run(t, rapid.SampledFrom([]int{100, 500, 2500}).Draw(t, "commands"))
			m.end(t)
			applied, refused = applied+m.w.Applied, refused+m.w.Refused
			for v, n := range m.verbs {
				verbs[v] += n
			}
		})
	}
	t.Log(verbs)
	for _, f := range reflect.VisibleFields(reflect.TypeFor[lease.Command]()) {
		if f.Type.Kind() == reflect.Pointer {
			require.Greater(t, verbs[f.Name], total/1000, "the model hardly drives %s", f.Name)
		}
	}
	t.Attr("commands", fmt.Sprintf("%d applied, %d refused", applied, refused))
}

func spec(frames lease.Frames) lease.Spec {
	return lease.Spec{
		Name: "shot", Owner: "ann", Project: "bafy", Blend: "files/shot.blend", Frames: frames, Chunk: 2, Tier: lease.Normal, Replicas: 2,
		Submitter: "ann", Output: lease.Output{Peer: "ann", Dir: "/out"},
	}
}
