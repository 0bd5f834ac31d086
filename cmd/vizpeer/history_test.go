package main

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// verb is what a client asks of a job.
type verb string

const (
	doSubmit     verb = "submit"
	doRead       verb = "read"
	doCancel     verb = verb(httpapi.Cancel)
	doPause      verb = verb(httpapi.Pause)
	doResume     verb = verb(httpapi.Resume)
	doPrioritise verb = verb(httpapi.Prioritise)
)

// asked is the input of an operation of the history.
type asked struct {
	job  lease.JobID
	do   verb
	tier lease.Tier // that it is submitted with, or moved to
}

// answered is its output.
type answered struct {
	unknown bool // whether it was done
	ended   bool // it was refused because the job has ended
	missing bool // there is no such job
	// Of what was read.
	state lease.JobState
	tier  lease.Tier
	done  int // frames
}

// history is what clients asked of the queue and were answered.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
	unknown    int
}

func newHistory() *history { return &history{began: time.Now()} }

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// add notes an operation that was asked for at the time call, and has just been
// answered. One whose outcome is unknown may be carried out at any time from then on,
// for ever.
func (h *history) add(client int, in asked, call int64, out answered) {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.now()
	if out.unknown {
		if in.do == doRead {
			return // it says nothing
		}
		end = math.MaxInt64
		h.unknown++
	}
	h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

// check looks for an order of all operations, each between its call and its answer, in
// which a single machine that does one thing after another would have answered the same.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	byJob := make(map[lease.JobID][]porcupine.Operation)
	for _, o := range h.operations {
		byJob[o.Input.(asked).job] = append(byJob[o.Input.(asked).job], o)
	}
	for job, operations := range byJob {
		switch porcupine.CheckOperationsTimeout(queueModel, operations, time.Minute) {
		case porcupine.Illegal:
			text := ""
			for _, o := range operations {
				end := fmt.Sprintf("%.3f", float64(o.Return)/1e9)
				if o.Return == math.MaxInt64 {
					end = "?"
				}
				text += fmt.Sprintf("%.3f–%s s, client %d: %s\n", float64(o.Call)/1e9, end, o.ClientId, queueModel.DescribeOperation(o.Input, o.Output))
			}
			t.Errorf("the history of %s is not linearizable:\n%s", job, text)
		case porcupine.Unknown:
			t.Errorf("the history of %s could not be checked within a minute: %d operations", job, len(operations))
		}
	}
}

// modelJob is the state of a job in the model.
type modelJob struct {
	state lease.JobState // queued (stands for running as well), paused, done, failed, cancelled; "" before it is submitted
	tier  lease.Tier
	done  int // frames, at least
}

// queueModel is one job of the queue as its API promises it, done one operation after
// another. The farm goes on beside: a job that is open may be done or fail at any time,
// and has more frames done from look to look, never fewer.
var queueModel = porcupine.Model{
	Init: func() any { return modelJob{} },
	Step: func(state, input, output any) (bool, any) {
		j, in, out := state.(modelJob), input.(asked), output.(answered)
		open := j.state == lease.JobQueued || j.state == lease.JobPaused
		switch in.do {
		case doSubmit:
			return j.state == "", modelJob{state: lease.JobQueued, tier: in.tier}
		case doRead:
			if j.state == "" || out.missing {
				return j.state == "" && out.missing, j
			}
			seen := out.state
			if seen == lease.JobRunning {
				seen = lease.JobQueued
			}
			ended := open && (seen == lease.JobDone || seen == lease.JobFailed)
			return (seen == j.state || ended) && out.tier == j.tier && out.done >= j.done, modelJob{seen, j.tier, out.done}
		}
		if out.unknown { // it changes what it can, here or, after all others, never
			if open {
				j = j.after(in)
			}
			return true, j
		}
		if out.ended {
			if open { // it was done, or failed: a read will tell
				j.state = lease.JobDone
			}
			return j.state != "", j
		}
		return open && !out.missing, j.after(in)
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(asked), output.(answered)
		text := fmt.Sprint(in.do, " ", in.tier)
		switch {
		case out.unknown:
			return text + ": no answer"
		case out.ended:
			return text + ": it has ended"
		case out.missing:
			return text + ": there is no such job"
		case in.do == doRead:
			return fmt.Sprintf("read: %s, %s, %d frames done", out.state, out.tier, out.done)
		}
		return text + ": yes"
	},
}

// after is the open job once a command was carried out.
func (j modelJob) after(in asked) modelJob {
	switch in.do {
	case doCancel:
		j.state = lease.JobCancelled
	case doPause:
		j.state = lease.JobPaused
	case doResume:
		j.state = lease.JobQueued
	case doPrioritise:
		j.tier = in.tier
	}
	return j
}

// The model lets pass what a queue may do, and nothing else.
func TestQueueModel(t *testing.T) {
	type op struct {
		in         asked
		out        answered
		call, till int64
	}
	const never = math.MaxInt64
	submit := op{asked{do: doSubmit, tier: lease.Normal}, answered{}, 0, 1}
	read := func(call int64, s lease.JobState, tier lease.Tier, done int) op {
		return op{asked{do: doRead}, answered{state: s, tier: tier, done: done}, call, call + 1}
	}
	for name, c := range map[string]struct {
		legal bool
		ops   []op
	}{
		"an ordinary life":                {true, []op{submit, read(2, "queued", "normal", 0), {asked{do: doPrioritise, tier: lease.High}, answered{}, 4, 5}, read(6, "running", "high", 2), read(8, "done", "high", 5)}},
		"a lost command":                  {false, []op{submit, {asked{do: doPrioritise, tier: lease.High}, answered{}, 4, 5}, read(6, "running", "normal", 0)}},
		"a lost cancel":                   {false, []op{submit, {asked{do: doCancel}, answered{}, 4, 5}, read(6, "done", "normal", 5)}},
		"a lost job":                      {false, []op{submit, {asked{do: doRead}, answered{missing: true}, 2, 3}}},
		"not there yet":                   {true, []op{{asked{do: doSubmit, tier: lease.Normal}, answered{}, 0, 9}, {asked{do: doRead}, answered{missing: true}, 2, 3}, read(4, "queued", "normal", 0)}},
		"a look back":                     {false, []op{submit, read(2, "running", "normal", 3), read(4, "running", "normal", 2)}},
		"risen again":                     {false, []op{submit, read(2, "done", "normal", 3), read(4, "running", "normal", 3)}},
		"no answer, and it was done late": {true, []op{submit, {asked{do: doCancel}, answered{unknown: true}, 2, never}, read(4, "running", "normal", 0), read(6, "cancelled", "normal", 0)}},
		"no answer, and it was not done":  {true, []op{submit, {asked{do: doCancel}, answered{unknown: true}, 2, never}, read(4, "running", "normal", 0), read(6, "done", "normal", 1)}},
		"no answer, and it was undone":    {false, []op{submit, {asked{do: doCancel}, answered{unknown: true}, 2, never}, read(4, "cancelled", "normal", 0), read(6, "running", "normal", 1)}},
		"refused for no reason":           {false, []op{submit, {asked{do: doPause}, answered{ended: true}, 2, 3}, read(6, "running", "normal", 1)}},
		"a pause that ends by itself":     {false, []op{submit, {asked{do: doPause}, answered{}, 2, 3}, read(4, "paused", "normal", 0), read(6, "running", "normal", 1)}},
		"done while it is paused":         {true, []op{submit, {asked{do: doPause}, answered{}, 2, 3}, read(6, "done", "normal", 1), {asked{do: doCancel}, answered{ended: true}, 8, 9}}},
	} {
		t.Run(name, func(t *testing.T) {
			var operations []porcupine.Operation
			for i, o := range c.ops {
				operations = append(operations, porcupine.Operation{ClientId: i, Input: o.in, Output: o.out, Call: o.call, Return: o.till})
			}
			require.Equal(t, c.legal, porcupine.CheckOperations(queueModel, operations))
		})
	}
}
