package coord

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"vizpeer/lease"
)

// simClient is a person at one of the machines: it submits, cancels, gives other
// priorities and reads, through whatever machine of the farm it can, and never knows more
// than it is told.
type simClient struct {
	f    *simFarm
	n    int
	dice *simDice
	done chan struct{}
}

// simJob is a job as the clients know it.
type simJob struct {
	key       string
	id        lease.JobID // "" while no answer came
	spec      lease.Spec
	cancelled bool // acknowledged
}

// simHistory is what clients asked and were told, for porcupine.
type simHistory struct {
	mu    sync.Mutex
	clock int64 // numbers calls and answers in the order in which they happen
	ops   []porcupine.Operation
	jobs  []*simJob
	keys  int
}

func (h *simHistory) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// never is the time of an answer that did not come: what was asked for may still happen.
const simNever = int64(1) << 60

func (h *simHistory) add(client int, r simRequest, called int64, a simAnswer, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	op := porcupine.Operation{ClientId: client, Input: r, Call: called, Output: a, Return: h.clock}
	if !known {
		if r.Do == "read" {
			return
		}
		op.Output, op.Return = simAnswer{Code: "unknown"}, simNever
	}
	h.ops = append(h.ops, op)
}

// run asks for one thing after the other until ctx ends, and then sees to it that what it
// has submitted is accepted.
func (c *simClient) run(ctx context.Context) {
	defer close(c.done)
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(200+c.dice.IntN(4000)) * time.Millisecond):
		case <-ctx.Done():
			return
		}
		c.step(ctx)
	}
}

func (c *simClient) step(ctx context.Context) {
	h := &c.f.check.history
	h.mu.Lock()
	jobs := slices.Clone(h.jobs)
	h.mu.Unlock()
	var known []*simJob
	for _, j := range jobs {
		if j.id != "" {
			known = append(known, j)
		}
	}
	k := c.dice.IntN(100)
	if len(known) == 0 || k < 15 && len(jobs) < 6 {
		if len(jobs) < 6 {
			if j := c.newJob(); j != nil {
				c.submit(j)
			}
		}
		return
	}
	j := known[c.dice.IntN(len(known))]
	switch {
	case k < 22:
		c.ask(ctx, simRequest{Do: "cancel", Key: j.key, Job: j.id})
	case k < 55:
		c.ask(ctx, simRequest{Do: "prioritise", Key: j.key, Job: j.id, Tier: []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}[c.dice.IntN(4)]})
	default:
		c.ask(ctx, simRequest{Do: "read", Key: j.key, Job: j.id})
	}
}

func (c *simClient) newJob() *simJob {
	f, h := c.f, &c.f.check.history
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys++
	key := fmt.Sprint("key-", h.keys)
	at := f.machines[c.dice.IntN(len(f.machines))]
	project := simCID("project ", key)
	if at.put(project) != nil { // its disk is full
		return nil
	}
	j := &simJob{key: key, spec: lease.Spec{
		Name: key, Owner: "ann", Project: project, Blend: "shot.blend", Frames: lease.Frames{{First: 1, Last: int32(2 + c.dice.IntN(7)), Step: 1}},
		Chunk: 1 + c.dice.IntN(3), Tier: lease.Normal, Replicas: 1 + c.dice.IntN(3), Submitter: at.id,
	}}
	h.jobs = append(h.jobs, j)
	return j
}

// submit submits a job until it hears that it is accepted, under one key. Now and then it
// is sent twice at once, as by an impatient finger.
func (c *simClient) submit(j *simJob) {
	ctx, cancel := context.WithTimeout(c.f.t.Context(), 20*time.Minute)
	defer cancel()
	r := simRequest{Do: "submit", Key: j.key, Spec: &j.spec}
	called := c.f.check.history.tick()
	if c.dice.IntN(4) == 0 {
		twice := make(chan struct{})
		go func() {
			defer close(twice)
			c.call(r)
		}()
		defer func() { <-twice }()
	}
	for ctx.Err() == nil {
		if a, told := c.call(r); told && a.Code == "" {
			c.f.check.history.add(c.n, r, called, a, true)
			c.f.check.history.mu.Lock()
			j.id = a.Job
			c.f.check.history.mu.Unlock()
			return
		} else if told && a.Code == "refused" {
			c.f.check.failf("the submission of %s was refused: %s", j.key, a.Reason)
			return
		}
		time.Sleep(time.Duration(300+c.dice.IntN(1000)) * time.Millisecond)
	}
	c.f.check.failf("the submission of %s was not accepted", j.key)
}

// ask asks once for something, at whatever leader it finds, and writes down what it hears.
func (c *simClient) ask(ctx context.Context, r simRequest) {
	for ctx.Err() == nil {
		called := c.f.check.history.tick()
		a, told := c.call(r)
		switch {
		case told && a.Code == "elsewhere": // nothing was done
			time.Sleep(time.Duration(300+c.dice.IntN(1000)) * time.Millisecond)
			continue
		case told && a.Code == "unknown":
			told = false
		case told && a.Code == "refused":
			c.f.check.failf("%s of %s was refused: %s", r.Do, r.Key, a.Reason)
		}
		c.f.check.history.add(c.n, r, called, a, told)
		if told && a.Code == "" && r.Do == "cancel" {
			c.f.check.cancelled(r.Key)
		}
		return
	}
}

// call sends a request by way of some machine to the leader that it knows. told is false
// where no answer came.
func (c *simClient) call(r simRequest) (a simAnswer, told bool) {
	ctx, cancel := context.WithTimeout(c.f.t.Context(), 10*time.Second)
	defer cancel()
	nobody := simAnswer{Code: "elsewhere"}
	m := c.f.machines[c.dice.IntN(len(c.f.machines))]
	w, co := m.process()
	if w == nil {
		return nobody, true
	}
	m.passing()
	w.mu.Lock()
	leader := w.leader
	w.mu.Unlock()
	if leader == "" {
		return nobody, true
	}
	if leader == m.peer {
		if co != nil {
			a := m.answer(ctx, co, r)
			m.passing()
			if m.worker != w { // it was killed before it could tell anybody
				return simAnswer{}, false
			}
			return a, true
		}
		return nobody, true
	}
	s, err := m.host.NewStream(ctx, leader, simAPI)
	if err != nil {
		return nobody, true
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	if json.NewEncoder(s).Encode(r) != nil || json.NewDecoder(s).Decode(&a) != nil {
		return simAnswer{}, false
	}
	return a, true
}

// simModel is what the queue promises of one job, for porcupine: every answer is as if
// all that was asked for happened at one moment each, between call and answer, one after
// the other. That a job is done happens by itself.
var simModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		at := make(map[string]int)
		for _, op := range history {
			key := op.Input.(simRequest).Key
			i, ok := at[key]
			if !ok {
				i = len(parts)
				at[key], parts = i, append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return simJobState{} },
	Step: func(state, input, output any) (bool, any) {
		s, r, a := state.(simJobState), input.(simRequest), output.(simAnswer)
		open := s.Job != "" && !s.Cancelled && !s.Ended
		switch {
		case r.Do == "submit":
			if s.Job == "" {
				s.Job, s.Tier = a.Job, lease.Normal
			}
			return s.Job == a.Job, s
		case a.Code == "unknown":
			if open && r.Do == "cancel" {
				s.Cancelled = true
			} else if open {
				s.Tier = r.Tier
			}
			return true, s
		case a.Code == "unknown-job" || s.Job == "":
			return false, s
		case a.Code == "ended":
			s.Ended = s.Ended || !s.Cancelled
			return true, s
		case r.Do == "cancel":
			s.Cancelled = true
			return open, s
		case r.Do == "prioritise":
			s.Tier = r.Tier
			return open, s
		}
		// It was read.
		if a.Tier != s.Tier || (a.State == lease.JobCancelled) != s.Cancelled {
			return false, s
		}
		ended := a.State == lease.JobDone || a.State == lease.JobFailed
		if s.Ended && !ended {
			return false, s
		}
		s.Ended = s.Ended || ended
		return true, s
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		r, a := input.(simRequest), output.(simAnswer)
		return fmt.Sprintf("%s %s %s → %q %s %s", r.Do, r.Key, r.Tier, a.Code, a.Tier, a.State)
	},
}

// simJobState is a job as simModel has it.
type simJobState struct {
	Job              lease.JobID
	Tier             lease.Tier
	Cancelled, Ended bool
}
