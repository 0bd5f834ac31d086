package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// What a request came to.
type outcome int

const (
	notSent   outcome = iota // nobody was there to take it, or it was one too many
	unknown                  // it may have been carried out, or may be yet
	carried                  // it was carried out
	hasEnded                 // the job has ended
	isMissing                // there is no such job
)

// requestTime is how long a client waits for an answer.
const requestTime = 6 * time.Second

// ask makes a request of machine i, and reads the answer into out.
func (c *chaos) ask(i int, method, path, key string, body, out any) outcome {
	var text []byte
	kind := ""
	switch b := body.(type) {
	case nil:
	case []byte:
		text, kind = b, "application/x-tar"
	default:
		text, _ = json.Marshal(b)
		kind = "application/json"
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:8787"+path, bytes.NewReader(text))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.machines[i].http.Do(r)
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return notSent
	case err != nil:
		return unknown
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<24))
	if err != nil {
		return unknown
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		if out == nil {
			return carried
		}
		if b, raw := out.(*[]byte); raw {
			*b = answer
		} else if err := json.Unmarshal(answer, out); err != nil {
			c.wrong("%s %s was answered with %.200q: %v", method, path, answer, err)
		}
		return carried
	case http.StatusTooManyRequests:
		return notSent
	case http.StatusConflict:
		return hasEnded
	case http.StatusNotFound:
		return isMissing
	case http.StatusAccepted, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusInsufficientStorage:
		return unknown
	}
	c.wrong("%s %s was answered by %s with %d: %.300s", method, path, c.machines[i].name, resp.StatusCode, answer)
	return unknown
}

// chaosJob is a job that was accepted.
type chaosJob struct {
	id     lease.JobID
	name   string
	frames int
}

// pendingJob is a submission that was not answered yet.
type pendingJob struct {
	key    string
	body   map[string]any
	tier   lease.Tier
	frames int
	call   int64
}

// submit asks one machine, and then others, for a new job. The key makes it one.
func (c *chaos) submit(client int, chance *rand.Rand, p *pendingJob, tries int) bool {
	for try := range tries {
		var sent httpapi.Submitted
		i := chance.IntN(len(c.machines))
		switch got := c.ask(i, http.MethodPost, "/v1/jobs", p.key, p.body, &sent); got {
		case carried:
			c.history.add(client, asked{sent.Job, doSubmit, p.tier}, p.call, answered{})
			c.mu.Lock()
			c.jobs = append(c.jobs, &chaosJob{sent.Job, p.key, p.frames})
			c.mu.Unlock()
			if chance.IntN(4) == 0 { // and once more: it is the same job
				var again httpapi.Submitted
				if c.ask(chance.IntN(len(c.machines)), http.MethodPost, "/v1/jobs", p.key, p.body, &again) == carried && again.Job != sent.Job {
					c.wrong("the key %s made two jobs: %s and %s", p.key, sent.Job, again.Job)
				}
			}
			return true
		case hasEnded, isMissing:
			c.wrong("the submission %s was refused by %s: %d", p.key, c.machines[i].name, got)
			return true
		}
		if try < tries-1 {
			c.sleep(time.Duration(100+chance.IntN(400)) * time.Millisecond)
		}
	}
	return false
}

var tiers = []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}

// openJobs is about how many jobs wait or are rendered at a time.
const openJobs = 10

// client does what people and scripts do, until the chaos ends.
func (c *chaos) client(n int) {
	chance := rand.New(rand.NewPCG(uint64(c.seed), uint64(100+n)))
	for count := 0; c.running(); count++ {
		c.mu.Lock()
		open := slices.DeleteFunc(slices.Clone(c.jobs), func(j *chaosJob) bool { return c.ended[j.id] })
		all := slices.Clone(c.jobs)
		c.mu.Unlock()
		if len(open) < openJobs && chance.IntN(3) == 0 {
			p := &pendingJob{key: fmt.Sprintf("chaos-%d-%d", n, count), tier: tiers[chance.IntN(len(tiers))], frames: 4 + chance.IntN(12), call: c.history.now()}
			p.body = standInJob(c.project, fmt.Sprintf("1-%d", p.frames), 2)
			p.body["priority"], p.body["name"] = p.tier, p.key
			if !c.submit(n, chance, p, 8) {
				c.mu.Lock()
				c.pending = append(c.pending, p)
				c.mu.Unlock()
			}
		}
		if len(all) == 0 {
			c.sleep(100 * time.Millisecond)
			continue
		}
		j := all[chance.IntN(len(all))]
		if len(open) > 0 && chance.IntN(8) > 0 {
			j = open[chance.IntN(len(open))]
		}
		i := chance.IntN(len(c.machines))
		switch dice := chance.IntN(100); {
		case dice < 50:
			c.read(n, i, j)
		case dice < 55:
			c.control(n, i, j, doCancel, "")
		case dice < 65:
			c.control(n, i, j, doPause, "")
		case dice < 82:
			c.control(n, i, j, doResume, "")
		default:
			c.control(n, i, j, doPrioritise, tiers[chance.IntN(len(tiers))])
		}
		c.sleep(time.Duration(chance.IntN(250)) * time.Millisecond)
	}
}

// read reads a job by machine i.
func (c *chaos) read(client, i int, j *chaosJob) (doc httpapi.Job, ok bool) {
	call := c.history.now()
	switch c.ask(i, http.MethodGet, "/v1/jobs/"+string(j.id), "", nil, &doc) {
	case carried:
		c.history.add(client, asked{j.id, doRead, ""}, call, answered{state: doc.State, tier: doc.Tier, done: doc.FramesDone})
		if doc.Name != j.name || doc.FramesTotal != j.frames {
			c.wrong("%s is %q with %d frames, and was %q with %d", j.id, doc.Name, doc.FramesTotal, j.name, j.frames)
		}
		if doc.State.Ended() {
			c.mu.Lock()
			c.ended[j.id] = true
			c.mu.Unlock()
		}
		return doc, true
	case isMissing:
		c.history.add(client, asked{j.id, doRead, ""}, call, answered{missing: true})
	}
	return doc, false
}

// control asks machine i to do something to a job. It tells whether there was an answer.
func (c *chaos) control(client, i int, j *chaosJob, do verb, tier lease.Tier) bool {
	call := c.history.now()
	var body any
	if do == doPrioritise {
		body = httpapi.Priority{Priority: tier}
	}
	got := c.ask(i, http.MethodPost, fmt.Sprintf("/v1/jobs/%s/%s", j.id, do), "", body, nil)
	in := asked{j.id, do, tier}
	switch got {
	case notSent:
		return false
	case unknown:
		c.history.add(client, in, call, answered{unknown: true})
		return false
	case hasEnded:
		c.history.add(client, in, call, answered{ended: true})
	case isMissing:
		c.history.add(client, in, call, answered{missing: true})
	case carried:
		c.history.add(client, in, call, answered{})
		if do == doCancel {
			c.mu.Lock()
			c.cancelled[j.id] = true
			c.mu.Unlock()
		}
	}
	return true
}

// follow takes the events that machine i passes on, until the end.
func (c *chaos) follow(ctx context.Context, i int) {
	last := ""
	for ctx.Err() == nil {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8787/v1/events", nil)
		if err != nil {
			panic(err)
		}
		r.Header.Set("Authorization", "Bearer "+c.token)
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		if resp, err := c.machines[i].http.Do(r); err == nil {
			if resp.StatusCode == http.StatusOK {
				c.events(resp.Body, &last)
			}
			resp.Body.Close()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (c *chaos) events(stream io.Reader, last *string) {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		var ev httpapi.Event
		if !ok || json.Unmarshal([]byte(text), &ev) != nil || ev.ID == 0 {
			continue
		}
		*last = strconv.FormatUint(ev.ID, 10)
		c.mu.Lock()
		c.told[ev.ID] = ev
		c.mu.Unlock()
	}
}
