package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// queue is the leader's side of the HTTP API: it applies the rules of who may
// see and do what, and turns the state into documents.
type queue struct{ *Peer }

var _ httpapi.Queue = queue{}

// mustLead is the answer of a machine that does not lead; nil on one that does.
func (q queue) mustLead() error {
	if q.coord == nil {
		return &httpapi.NotLeaderError{}
	}
	if !q.coord.Leading() {
		return answer(coord.ErrNotLeader{Leader: q.coord.Status().Leader})
	}
	return nil
}

// answer turns an error of the log into one of the API.
func answer(err error) error {
	var elsewhere coord.ErrNotLeader
	var later *coord.LevelError
	switch {
	case errors.As(err, &elsewhere):
		id, _ := peer.Decode(string(elsewhere.Leader)) // "" where it is not known
		return &httpapi.NotLeaderError{Leader: id}
	case errors.As(err, &later):
		return fmt.Errorf("%w: %w", httpapi.ErrUpdate, err)
	case err != nil && !coord.Refused(err):
		return fmt.Errorf("%w: %w", httpapi.ErrUnavailable, err)
	}
	return err
}

// read looks at the state of the queue and at what its leader knows beside it. It shows
// all that anybody was told is done.
func (q queue) read(ctx context.Context, see func(*lease.State, *authz.Roster, coord.Knowledge) error) (err error) {
	if err := q.mustLead(); err != nil {
		return err
	}
	if err := q.coord.Sure(ctx); err != nil {
		return answer(err)
	}
	known := q.coord.Knowledge()
	q.coord.Read(func(s *lease.State, r *authz.Roster) { err = see(s, r, known) })
	return err
}

// visible finds a job that p may see; any other does not exist.
func visible(s *lease.State, p authz.Principal, id lease.JobID) (*lease.Job, error) {
	j, ok := s.Job(id)
	if !ok || !p.MaySee(j.Spec.Owner) {
		return nil, httpapi.ErrNotFound
	}
	return j, nil
}

func (q queue) Submit(ctx context.Context, p authz.Principal, in lease.Submit) (httpapi.Submitted, error) {
	spec := in.Spec
	if err := q.mustLead(); err != nil {
		return httpapi.Submitted{}, err
	}
	if !p.MaySubmit() || spec.Owner != p.User {
		return httpapi.Submitted{}, fmt.Errorf("%w: a %s may not submit jobs", httpapi.ErrDenied, p.Role)
	}
	if free := q.ads.Can().FreeDisk; free < minFree {
		return httpapi.Submitted{}, fmt.Errorf("%w: the coordinator %s has %d MiB left for the queue; make room there and submit again", blobs.ErrDiskFull, q.name, free>>20)
	}
	err := q.read(ctx, func(s *lease.State, _ *authz.Roster, _ coord.Knowledge) error {
		for _, id := range spec.After {
			if _, err := visible(s, p, id); err != nil {
				return fmt.Errorf("%w: the job %s, after which this one is to come, does not exist", httpapi.ErrInvalid, id)
			}
		}
		return nil
	})
	if err != nil {
		return httpapi.Submitted{}, err
	}
	id, tasks, err := q.coord.Submit(ctx, in)
	var again *lease.Repeated
	if errors.As(err, &again) {
		return httpapi.Submitted{Job: again.Job, Project: spec.Project, Tasks: again.Tasks, Split: spec.Split, Replayed: true}, nil
	}
	if err != nil {
		return httpapi.Submitted{}, answer(err)
	}
	q.slog.Info("a job was submitted", "job", id, "user", p.User, "tasks", tasks)
	return httpapi.Submitted{Job: id, Project: spec.Project, Tasks: tasks, Split: spec.Split}, nil
}

func (q queue) Jobs(ctx context.Context, p authz.Principal, in httpapi.JobQuery) (out httpapi.JobList, err error) {
	before := uint64(math.MaxUint64)
	if in.After != "" {
		if before, err = strconv.ParseUint(in.After, 10, 64); err != nil {
			return out, fmt.Errorf("%w: after is %q: send the next of an answer before", httpapi.ErrInvalid, in.After)
		}
	}
	name := strings.ToLower(in.Name)
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, _ coord.Knowledge) error {
		for _, j := range slices.Backward(s.Jobs()) {
			switch {
			case j.Seq >= before || !p.MaySee(j.Spec.Owner):
			case in.State != "" && j.State != in.State || in.Owner != "" && j.Spec.Owner != in.Owner:
			case name != "" && !strings.Contains(strings.ToLower(j.Spec.Name), name):
			case j.Created.Before(in.Since):
			case in.Limit > 0 && len(out.Jobs) == in.Limit:
				out.Next = strconv.FormatUint(before, 10)
				return nil
			default:
				out.Jobs = append(out.Jobs, summary(j))
				before = j.Seq
			}
		}
		return nil
	})
	return out, err
}

func summary(j *lease.Job) httpapi.JobSummary {
	s := httpapi.JobSummary{
		ID: j.ID, Name: j.Spec.Name, State: j.State, Reason: j.Reason, Tier: j.Tier, After: j.Spec.After, Owner: j.Spec.Owner, Split: j.Split(), CreatedAt: j.Created,
		Tasks: httpapi.TaskCounts{
			Total: len(j.Tasks), Queued: j.Count(lease.TaskQueued), Leased: j.Count(lease.TaskLeased), Rendered: j.Count(lease.TaskRendered),
			Done: j.Count(lease.TaskDone), Failed: j.Count(lease.TaskFailed), Cancelled: j.Count(lease.TaskCancelled),
		},
		FramesTotal: j.Pictures(), FramesDone: min(j.Done(), j.Pictures()),
	}
	s.UnitsDone, s.UnitsTotal = units(j)
	if !j.Started.IsZero() {
		s.StartedAt = &j.Started
	}
	if !j.Ended.IsZero() {
		s.EndedAt = &j.Ended
	}
	return s
}

// units counts the units of a job's frames, where those are divided.
func units(j *lease.Job) (done, total int) {
	if !j.Splits() {
		return 0, 0
	}
	total = int(j.Units) * j.Pictures()
	return total - j.Uncovered(), total
}

func (q queue) Job(ctx context.Context, p authz.Principal, id lease.JobID, from authz.PeerID) (out httpapi.Job, err error) {
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		out = httpapi.Job{
			JobSummary: summary(j), Project: j.Spec.Project, FrameList: j.Spec.Frames.String(), Submitter: j.Spec.Submitter,
			Output: j.Spec.Output.Dir, Replicas: j.Spec.Replicas, ProjectHolders: len(j.Holders), Needs: j.Spec.Needs, Log: j.Tail,
			Frames: make([]httpapi.Frame, 0, len(j.Frames)), Failures: failures(j),
		}
		for at := range j.Frames {
			f := frame(j, &j.Tasks[j.TaskOf(at)], at)
			if at < j.Pictures() {
				out.Frames = append(out.Frames, f)
			} else {
				out.Movie = &f
			}
		}
		if out.Reason == "" {
			out.Reason = outlook{s, r, known}.idle(j).Text
		}
		if d := known.Trouble[id]; d.Writing {
			out.OutputError = d.Reason
		} else if out.Reason == "" && d.Reason != "" {
			m, _ := r.Member(d.Peer)
			out.Reason = fmt.Sprintf("%s tries again and again: %s", m.Name, d.Reason)
		}
		if _, member := r.Member(from); member {
			parting := j.Parting(from, known.Presence())
			out.Parting = &parting
		}
		return nil
	})
	return out, err
}

// failures counts a job's failed tries by kind; nil where there is none.
func failures(j *lease.Job) map[lease.FailKind]int {
	var count map[lease.FailKind]int
	for i := range j.Tasks {
		for _, a := range j.Tasks[i].Attempts {
			if a.Outcome != lease.OutcomeFailed {
				continue
			}
			if count == nil {
				count = make(map[lease.FailKind]int)
			}
			count[cmp.Or(a.Kind, lease.FailError)]++
		}
	}
	return count
}

func frame(j *lease.Job, t *lease.Task, place int) httpapi.Frame {
	out := httpapi.Frame{Frame: j.Numbers()[place], State: t.State, UnitsDone: j.Covered(place)}
	f := j.Frames[place]
	if f == nil {
		return out
	}
	out.CID, out.Name, out.Size, out.Peer, out.Seconds = f.CID, f.Name, f.Size, f.Peer, f.Seconds
	out.Holders, out.Delivered, out.Thumb = len(f.Holders), f.Delivered, f.Thumb
	out.Extra, out.ExtraFiles, out.ExtraSize = f.Extra, f.ExtraFiles, f.ExtraSize
	switch {
	case !f.Again.IsZero(): // it is to be rendered again; this one is there meanwhile
	case f.Done:
		out.State = lease.TaskDone
	default:
		out.State = lease.TaskRendered
	}
	return out
}

func (q queue) Frame(ctx context.Context, p authz.Principal, id lease.JobID, number int32) (out httpapi.Frame, err error) {
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, _ coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		place, ok := j.Place(number)
		if !ok {
			return httpapi.ErrNotFound
		}
		out = frame(j, &j.Tasks[j.TaskOf(place)], place)
		out.Split = j.Split()
		return nil
	})
	if err == nil {
		for _, p := range q.coord.Previews(id, number) {
			out.Previews = append(out.Previews, httpapi.Preview{CID: p.CID, Span: p.Span})
		}
	}
	return out, err
}

func (q queue) Tasks(ctx context.Context, p authz.Principal, id lease.JobID) (out []httpapi.Task, err error) {
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, known coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		for i := range j.Tasks {
			out = append(out, task(j, int32(i), known))
		}
		return nil
	})
	return out, err
}

func (q queue) TasksOf(ctx context.Context, p authz.Principal, id lease.JobID, number int32) (out []httpapi.Task, err error) {
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, known coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		place, ok := j.Place(number)
		if !ok {
			return httpapi.ErrNotFound
		}
		for i := range j.Tasks {
			if t := &j.Tasks[i]; int(t.Lo) <= place && place < int(t.Hi) {
				out = append(out, task(j, int32(i), known))
			}
		}
		return nil
	})
	return out, err
}

func (q queue) Task(ctx context.Context, p authz.Principal, id lease.JobID, i int32) (out httpapi.Task, err error) {
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, known coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		if i < 0 || int(i) >= len(j.Tasks) {
			return httpapi.ErrNotFound
		}
		out = task(j, i, known)
		return nil
	})
	return out, err
}

func task(j *lease.Job, i int32, known coord.Knowledge) httpapi.Task {
	t := &j.Tasks[i]
	out := httpapi.Task{Index: i, State: t.State, Tries: t.Fails, Attempts: slices.Clone(t.Attempts)}
	out.Frames, out.Units = extent(j, t)
	if n := len(t.Attempts); n > 0 {
		out.Peer = t.Attempts[n-1].Peer
	}
	for _, a := range t.Lives() {
		if p := known.Progress[a.Lease]; out.Progress == nil && p != nil {
			out.Progress = p
		}
	}
	return out
}

// extent is what a task is about: its frames in words, and the units where it is a part
// of one.
func extent(j *lease.Job, t *lease.Task) (frames string, units *lease.Span) {
	if j.Makes(t) {
		return "movie", nil
	}
	if t.Part() {
		s := t.Span // a state may change it
		units = &s
	}
	return span(j.TaskFrames(t)), units
}

// span writes a task's frames as a list of ranges.
func span(frames []int32) string {
	var list lease.Frames
	for _, f := range frames {
		if n := len(list); n > 0 && list[n-1].Last == f-1 {
			list[n-1].Last = f
			continue
		}
		list = append(list, lease.Range{First: f, Last: f, Step: 1})
	}
	return list.String()
}

func (q queue) Control(ctx context.Context, p authz.Principal, id lease.JobID, c httpapi.Control) (out httpapi.JobSummary, err error) {
	var cmd lease.Command
	switch c.Do {
	case httpapi.Cancel:
		cmd.Cancel = &lease.Cancel{Job: id, Reason: "cancelled by " + p.User}
	case httpapi.Pause:
		cmd.Pause = &lease.Pause{Job: id}
	case httpapi.Resume:
		cmd.Resume = &lease.Resume{Job: id}
	case httpapi.Retry:
		cmd.Retry = &lease.Retry{Job: id, Frames: c.Frames}
	case httpapi.Prioritise:
		cmd.Prioritise = &lease.Prioritise{Job: id, Tier: c.Tier}
	case httpapi.AddMore:
		cmd.More = &lease.More{Job: id, Samples: c.Samples, Once: c.Once}
	default:
		return out, fmt.Errorf("%w: a job cannot be told to %q", httpapi.ErrInvalid, c.Do)
	}
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, _ coord.Knowledge) error {
		j, err := visible(s, p, id)
		switch {
		case err != nil:
			return err
		case !p.MayControl(j.Spec.Owner):
			return fmt.Errorf("%w: a %s may not control jobs", httpapi.ErrDenied, p.Role)
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	var again *lease.Repeated
	err = q.coord.Control(ctx, cmd)
	if err != nil && !errors.As(err, &again) {
		return out, answer(err)
	}
	q.slog.Info("a job was told what to do", "job", id, "user", p.User, "do", c.Do)
	err = q.read(ctx, func(s *lease.State, _ *authz.Roster, _ coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err == nil {
			out = summary(j)
			out.Replayed = again != nil
		}
		return err
	})
	return out, err
}

func (q queue) Peers(ctx context.Context, p authz.Principal) (out []httpapi.Peer, err error) {
	// Everybody may see the farm's counts, in Farm; names and hardware are for
	// admins, and for each machine's owner.
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		for _, m := range r.Members() {
			if p.MaySeeMachines() || m.User == p.User {
				out = append(out, q.member(s, r, m, known.Members[m.ID]))
			}
		}
		return nil
	})
	return out, err
}

func (p *Peer) member(s *lease.State, r *authz.Roster, m authz.Member, known coord.Member) httpapi.Peer {
	out := httpapi.Peer{
		ID: m.ID, Name: m.Name, Roles: m.RoleNames(), State: state(known), Busy: known.Busy, TasksDone: s.Machine(m.ID).Finished,
		Capability: known.Can, Addrs: known.Addrs, Full: httpapi.Full(known.Can), Drained: s.Machine(m.ID).Drained, Granted: m.Labels,
	}
	if known.Can != nil {
		out.Slots = known.Can.TotalSlots()
	}
	out.Via = p.reach.via(m.ID)
	if known.Seen.IsZero() {
		known.Seen = r.LastSeen(m.ID)
	}
	if !known.Seen.IsZero() {
		seen := known.Seen.UTC()
		out.LastSeen = &seen
	}
	return out
}

func (q queue) Drain(ctx context.Context, p authz.Principal, id authz.PeerID, on bool) (out httpapi.Peer, err error) {
	if err := q.mayManage(ctx, p, id); err != nil {
		return out, err
	}
	if err := q.coord.Control(ctx, lease.Command{Drain: &lease.Drain{Peer: id, On: on, Reason: "drained by " + p.User}}); err != nil {
		return out, answer(err)
	}
	q.slog.Info("a machine was drained, or not any more", "peer", id.Short(), "user", p.User, "drained", on)
	return q.peer(ctx, id)
}

func (q queue) Label(ctx context.Context, p authz.Principal, id authz.PeerID, labels []string) (out httpapi.Peer, err error) {
	if err := q.mayManage(ctx, p, id); err != nil {
		return out, err
	}
	if err := authz.CheckLabels(labels); err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	if err := q.coord.Admit(ctx, authz.Command{At: time.Now(), Label: &authz.Label{Peer: id, Labels: labels}}); err != nil {
		return out, answer(err)
	}
	q.slog.Info("a machine was labelled", "peer", id.Short(), "user", p.User, "labels", labels)
	return q.peer(ctx, id)
}

// mayManage refuses who may not decide about machines, and what is no member.
func (q queue) mayManage(ctx context.Context, p authz.Principal, id authz.PeerID) error {
	if !p.MayManageMachines() {
		return fmt.Errorf("%w: only an admin may decide about machines", httpapi.ErrDenied)
	}
	_, err := q.peer(ctx, id)
	return err
}

// peer is what is known of one member.
func (q queue) peer(ctx context.Context, id authz.PeerID) (out httpapi.Peer, err error) {
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		m, ok := r.Member(id)
		if !ok {
			return httpapi.ErrNotFound
		}
		out = q.member(s, r, m, known.Members[id])
		return nil
	})
	return out, err
}

func state(m coord.Member) string {
	switch {
	case !m.Connected:
		return "offline"
	case m.Can != nil && m.Can.Draining:
		return "draining"
	case m.Busy > 0:
		return "busy"
	}
	return "idle"
}

func (q queue) Farm(ctx context.Context, p authz.Principal) (out httpapi.Farm, err error) {
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		out = httpapi.Farm{Farm: string(r.Farm()), Name: r.Name(), Peers: map[string]int{}, Jobs: map[string]int{}, Versions: map[string]int{}, Limits: q.cfg.Limits.OrDefault(), CA: fingerprints(r.CA())}
		for _, m := range r.Members() {
			out.Peers[state(known.Members[m.ID])]++
			if can := known.Members[m.ID].Can; can != nil && can.Version != "" {
				out.Versions[can.Version]++
			}
		}
		for _, j := range s.Jobs() {
			if p.MaySee(j.Spec.Owner) {
				out.Jobs[string(j.State)]++
			}
		}
		return nil
	})
	if err == nil {
		out.Coord = q.coordination(p)
	}
	return out, err
}

func (q queue) Invite(ctx context.Context, p authz.Principal, in httpapi.Invitation) (httpapi.Invited, error) {
	if !p.MayInvite() {
		return httpapi.Invited{}, fmt.Errorf("%w: only an admin may invite machines", httpapi.ErrDenied)
	}
	if in.Role == "" {
		in.Role = authz.Node
	}
	role, err := authz.ParseRole(string(in.Role))
	if err != nil {
		return httpapi.Invited{}, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	uses, life := max(in.Uses, 1), TicketLife
	if in.ExpiresIn > 0 {
		if in.ExpiresIn > float64(365*24*time.Hour/time.Second) {
			return httpapi.Invited{}, fmt.Errorf("%w: a ticket lives a year at most", httpapi.ErrInvalid)
		}
		life = time.Duration(in.ExpiresIn * float64(time.Second))
	}
	t, err := authz.NewTicket(rand.Reader, q.farm, role, in.Coordinator, q.ticketAddrs())
	if err != nil {
		return httpapi.Invited{}, err
	}
	now := time.Now()
	record := t.Record(uses, now.Add(life).UTC(), p.User)
	if err := q.coord.Admit(ctx, authz.Command{At: now, Mint: &authz.Mint{Ticket: record}}); err != nil {
		return httpapi.Invited{}, answer(err)
	}
	return httpapi.Invited{Ticket: t.String(), ID: record.ID(), Role: role, Coordinator: in.Coordinator, Uses: uses, ExpiresAt: record.ExpiresAt}, nil
}

// otherCoordinators is how many others than the leader a ticket names, each by one address.
const otherCoordinators = 2

// ticketAddrs is where a machine with a ticket finds the farm, also when another
// coordinator leads by then.
func (q queue) ticketAddrs() []string {
	addrs, known := bestFirst(q.Addrs()), q.coord.Knowledge()
	others := 0
	for _, id := range known.Voters {
		m := known.Members[id]
		if id == q.self || !m.Connected || others == otherCoordinators {
			continue
		}
		all := make([]string, len(m.Addrs))
		for i, a := range m.Addrs {
			all[i] = a + "/p2p/" + string(id)
		}
		if best := bestFirst(all); len(best) > 0 {
			addrs = append(addrs, best[0])
			others++
		}
	}
	return addrs
}

func (q queue) Events(ctx context.Context, p authz.Principal, in httpapi.EventQuery) (*httpapi.Subscription, error) {
	if err := q.mustLead(); err != nil {
		return nil, err
	}
	after := uint64(0)
	if in.Resume {
		after = max(in.After, 1)
	}
	w := q.coord.Watch(after)
	out := make(chan httpapi.Event)
	go func() {
		defer close(out)
		defer w.Stop()
		for {
			select {
			case e, ok := <-w.C:
				if !ok {
					return
				}
				if !q.maySeeEvent(p, in.Job, e) {
					continue
				}
				select {
				case out <- q.event(e):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return &httpapi.Subscription{Events: out, Missed: w.Gap, Err: func() error {
		switch err := w.Err(); {
		case errors.Is(err, coord.ErrSlow):
			return httpapi.ErrSlowReader
		case err != nil:
			return &httpapi.NotLeaderError{}
		}
		return nil
	}}, nil
}

// maySeeEvent keeps others' jobs, and others' machines, out of the stream.
func (q queue) maySeeEvent(p authz.Principal, only lease.JobID, e coord.Event) (ok bool) {
	if only != "" && e.Job != only {
		return false
	}
	q.coord.Read(func(s *lease.State, r *authz.Roster) {
		if e.Job == "" {
			m, known := r.Member(e.Peer)
			ok = p.MaySeeMachines() || known && m.User == p.User
			return
		}
		_, err := visible(s, p, e.Job)
		ok = err == nil
	})
	return ok
}

func (q queue) event(e coord.Event) httpapi.Event {
	out := httpapi.Event{
		ID: e.ID, Type: e.Type, Time: e.At.UTC(), Job: e.Job, Frame: e.Frame, Peer: e.Peer, State: e.State, Reason: e.Reason,
		Progress: json.RawMessage(e.Progress),
	}
	if e.Job != "" && e.Task >= 0 {
		out.Task = &e.Task
	}
	if e.Result != nil {
		out.CID, out.Seconds, out.Thumb = e.Result.CID, e.Result.Seconds, e.Result.Thumb
	}
	if e.Span.Len() > 0 {
		out.Units = &e.Span
	}
	if e.Preview.CID != "" {
		out.Frame = &e.Preview.Frame
		out.Preview = &httpapi.Preview{CID: e.Preview.CID, Span: e.Preview.Span}
	}
	if v := q.gate.view(); v != nil {
		if m, ok := v.Member(e.Peer); ok {
			out.PeerName = m.Name
		}
	}
	q.coord.Read(func(s *lease.State, _ *authz.Roster) {
		if j, ok := s.Job(e.Job); ok {
			tell(j, &out)
		}
	})
	return out
}

// tell adds to an event what the state knows of its task and its units. That is as it is
// now: a reader who is late, or reads old events again, hears of the present sooner.
func tell(j *lease.Job, ev *httpapi.Event) {
	switch ev.Type {
	case lease.TaskGranted, lease.TaskRequeued, lease.TaskEnded:
		// A task may have been cut off another when it was granted: nobody else knows it.
		if ev.Task != nil && int(*ev.Task) < len(j.Tasks) {
			ev.Frames, ev.Units = extent(j, &j.Tasks[*ev.Task])
		}
	case lease.PieceRendered, lease.PieceGone, lease.FrameResult, lease.FrameLost, lease.JobSubmitted:
		ev.UnitsDone, ev.UnitsTotal = units(j)
	}
}
