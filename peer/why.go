package peer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/coord/sched"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// outlook is what an answer to "why" rests on: the queue, the members, and what the
// leader knows of them.
type outlook struct {
	queue   *lease.State
	members *authz.Roster
	known   coord.Knowledge
}

func (q queue) Why(ctx context.Context, p authz.Principal, id lease.JobID, task int32) (out httpapi.Why, err error) {
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		j, err := visible(s, p, id)
		if err != nil {
			return err
		}
		if int(task) >= len(j.Tasks) {
			return httpapi.ErrNotFound
		}
		o := outlook{s, r, known}
		if task < 0 {
			out = o.job(j)
		} else {
			out = o.task(j, task)
		}
		return nil
	})
	return out, err
}

func (o outlook) name(p authz.PeerID) string {
	if m, ok := o.members.Member(p); ok && m.Name != "" {
		return m.Name
	}
	return p.Short()
}

// job says why a job is where it is.
func (o outlook) job(j *lease.Job) httpapi.Why {
	w := o.idle(j)
	w.State = string(j.State)
	switch n := j.Count(lease.TaskLeased); {
	case j.State == lease.JobDone:
		w.Text = "every frame of it is rendered, and held by as many machines as it asks for"
	case j.State.Ended():
		w.Text = j.Reason
	case w.Text != "":
	case n > 0:
		w.Text = fmt.Sprintf("%d of its %d tasks are being rendered", n, len(j.Tasks))
		if waits := j.Count(lease.TaskQueued); waits > 0 {
			w.Text += fmt.Sprintf(", %d wait for a machine to be free", waits)
		}
	default:
		w.Text = o.keeping(j)
	}
	return w
}

// keeping says why rendered frames are not done.
func (o outlook) keeping(j *lease.Job) string {
	text := fmt.Sprintf("its frames are rendered, and go to the %d machines that are to hold them", j.Spec.Replicas)
	if d := o.known.Trouble[j.ID]; d.Reason != "" {
		text += fmt.Sprintf("; %s tries again and again: %s", o.name(d.Peer), d.Reason)
	}
	return text
}

// task says why a task is where it is.
func (o outlook) task(j *lease.Job, i int32) httpapi.Why {
	t := &j.Tasks[i]
	w := httpapi.Why{Job: j.ID, State: string(t.State)}
	switch t.State {
	case lease.TaskQueued:
		w = o.idle(j)
		w.State = string(t.State)
		if w.Text == "" {
			w.Text = "it waits for a machine to be free" + o.turn(w.Ahead)
		}
		if n := len(t.Attempts); n > 0 && t.Attempts[n-1].Reason != "" {
			a := t.Attempts[n-1]
			w.Text += fmt.Sprintf("; the last try, by %s, %s: %s", o.name(a.Peer), ending(a), a.Reason)
		}
	case lease.TaskLeased:
		lives := t.Lives()
		w.Text = fmt.Sprintf("%s renders it since %s", o.name(lives[0].Peer), lives[0].Granted.UTC().Format(time.RFC3339))
		for _, a := range lives[1:] {
			w.Text += fmt.Sprintf("; it took far longer than its siblings, so %s tries it too since %s, and the first result counts", o.name(a.Peer), a.Granted.UTC().Format(time.RFC3339))
		}
	case lease.TaskRendered:
		w.Text = o.keeping(j)
	case lease.TaskDone:
		w.Text = "its frames are rendered, and held by as many machines as the job asks for"
	case lease.TaskFailed, lease.TaskCancelled:
		w.Text = j.Reason
	}
	w.Task = &i
	if n := len(t.Attempts); n > 0 && t.Attempts[n-1].Outcome != "" {
		last := t.Attempts[n-1]
		w.Last = &last
	}
	return w
}

// ending says how an attempt ended, in a word or two.
func ending(a lease.Attempt) string {
	switch {
	case a.Outcome != lease.OutcomeFailed:
		return "was " + string(a.Outcome)
	case a.Kind == "":
		return "failed"
	}
	return fmt.Sprintf("failed (%s)", a.Kind)
}

// turn tells how many jobs are served first.
func (o outlook) turn(ahead int) string {
	switch ahead {
	case 0:
		return ""
	case 1:
		return "; 1 other job is served first"
	}
	return fmt.Sprintf("; %d other jobs are served first", ahead)
}

// idle says why nothing of an open job is being rendered; without words where
// something is, or may be at any moment.
func (o outlook) idle(j *lease.Job) httpapi.Why {
	w := httpapi.Why{Job: j.ID}
	if j.State.Ended() {
		return w
	}
	if first := o.queue.Awaits(j); first != "" {
		state := lease.JobState("")
		if f, ok := o.queue.Job(first); ok {
			state = f.State
		}
		w.Text = fmt.Sprintf("it waits for job %s, after which it comes and which is %s", first, state)
		return w
	}
	if j.State == lease.JobPaused {
		w.Text = "it is paused; `vizpeer job resume` goes on with it"
		if n := j.Count(lease.TaskLeased); n > 0 {
			w.Text += fmt.Sprintf("; %d tasks that were being rendered still are", n)
		}
		return w
	}
	if !j.HasQueued() || j.Count(lease.TaskLeased) > 0 {
		return w
	}
	w.Ahead = max(slices.Index(o.queue.Waiting(time.Now(), nil), j), 0)
	o.lacking(j, &w)
	return w
}

// fetching says which machine fetches the Blender that a job lacks; "" where none does.
func (o outlook) fetching(j *lease.Job) string {
	var names []string
	var what authz.Offer
	for _, m := range o.members.Members() {
		if k := o.known.Members[m.ID]; k.Connected && k.Can != nil {
			if offer, ok := j.Spec.Needs.Lacking(*k.Can, o.members.Offers()); ok {
				names, what = append(names, m.Name), offer
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	if more := len(names) - 3; more > 0 {
		names = append(names[:3], fmt.Sprintf("one of %d more", more))
	}
	return fmt.Sprintf("it waits until %s has fetched %s %s, which the farm offers", strings.Join(names, " or "), what.Name, what.Version)
}

// lacking says what a job with nothing but waiting tasks lacks.
func (o outlook) lacking(j *lease.Job, w *httpapi.Why) {
	var machines []sched.Machine
	keptOff, renders, idle := 0, 0, "" // idle: why one of the machines takes no work
	for _, m := range o.members.Members() {
		if k := o.known.Members[m.ID]; k.Connected && k.Can != nil && k.Can.Slots > 0 {
			renders++
			if k.Can.Draining {
				if why := o.queue.Machine(m.ID).Drained; why != "" {
					idle = fmt.Sprintf("; %s is drained: %s (an admin ends that with `vizpeer peer drain %s --off`)", m.Name, why, m.Name)
				} else if why := httpapi.Full(k.Can); why != "" {
					idle = fmt.Sprintf("; %s takes no work: %s", m.Name, why)
				}
				continue
			}
			machines = append(machines, sched.Machine{Peer: m.ID, Can: *k.Can, Holds: k.Holds, NoRoom: k.NoRoom})
			if j.KeptOff(m.ID) {
				keptOff++
			}
		}
	}
	switch {
	case !slices.ContainsFunc(j.Holders, func(p authz.PeerID) bool { return o.known.Members[p].Connected }):
		w.Text = fmt.Sprintf("it waits: no machine that holds its project is connected; it goes on when %s is back", o.name(j.Spec.Submitter))
		if name := o.name(j.Spec.Submitter); o.known.Members[j.Spec.Submitter].Connected {
			w.Text = fmt.Sprintf("it waits: %s has lost its project, and no other machine that holds it is connected; it goes on when one is, or when the project is sent to %s again", name, name)
		}
		return
	case renders == 0:
		w.Text = cmp.Or(o.fetching(j), "it waits: no machine of the farm that renders is connected")
		return
	case len(machines) == 0:
		w.Text = "it waits: every machine that is connected takes no more work" + idle
		return
	case keptOff == len(machines):
		w.Text = "it waits: every machine that is connected failed it too often by its own fault; see `vizpeer job show` for the tasks' attempts" + idle
		return
	}
	nearest, lacks := sched.Nearest(j, machines)
	if len(lacks) == 0 {
		w.Text = "it waits for a machine to be free" + o.turn(w.Ahead) + idle
		return
	}
	if w.Text = o.fetching(j); w.Text != "" {
		return
	}
	words := make([]string, len(lacks))
	for i, l := range lacks {
		words[i] = l.String()
	}
	w.Nearest = &httpapi.Nearest{Peer: nearest.Peer, Name: o.name(nearest.Peer), Lacks: lacks}
	w.Text = fmt.Sprintf("it waits: no machine meets its requirements; the nearest is %s: %s", w.Nearest.Name, strings.Join(words, "; ")) + idle
}
