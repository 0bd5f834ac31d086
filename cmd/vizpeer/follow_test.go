package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// scriptedPeer serves one job, and an event stream whose connections are
// scripted one by one.
type scriptedPeer struct {
	t *testing.T

	mu      sync.Mutex
	job     httpapi.Job
	streams []func(send func(httpapi.Event))
	resumed []string // Last-Event-ID of each connection
	idle    func()   // sends a keep-alive
	reads   int      // of the job
	read    *sync.Cond
}

func (s *scriptedPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer secret" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"status": 401, "detail": "the token is not valid here", "code": "unauthorised"}`)
		return
	}
	switch r.URL.Path {
	case "/v1/jobs/j1":
		s.mu.Lock()
		_ = json.NewEncoder(w).Encode(s.job)
		s.reads++
		s.mu.Unlock()
		s.read.Broadcast()
	case "/v1/jobs/j1/tasks":
		_ = json.NewEncoder(w).Encode(httpapi.TaskList{Tasks: []httpapi.Task{{Index: 0, Frames: "1-2", State: lease.TaskQueued}}})
	case "/v1/events":
		s.mu.Lock()
		if len(s.streams) == 0 {
			s.mu.Unlock()
			http.Error(w, "no more", http.StatusTeapot)
			return
		}
		play := s.streams[0]
		s.idle = func() {
			fmt.Fprint(w, ": still here\n\n")
			_ = http.NewResponseController(w).Flush()
		}
		s.streams = s.streams[1:]
		s.resumed = append(s.resumed, r.Header.Get("Last-Event-ID"))
		s.mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "retry: 2000\n\n: hello\n\n")
		_ = http.NewResponseController(w).Flush()
		play(func(ev httpapi.Event) {
			text, err := json.Marshal(ev)
			if err != nil {
				s.t.Error(err)
			}
			fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", ev.ID, ev.Type, text)
			_ = http.NewResponseController(w).Flush()
		})
	default:
		http.NotFound(w, r)
	}
}

func (s *scriptedPeer) set(change func(*httpapi.Job)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.job.Frames = slices.Clone(s.job.Frames)
	change(&s.job)
}

func (s *scriptedPeer) client() *client {
	s.read = sync.NewCond(&s.mu)
	server := httptest.NewServer(s)
	s.t.Cleanup(server.Close)
	return &client{base: server.URL, token: "secret", http: server.Client(), local: true}
}

// await returns when the job has been read n times.
func (s *scriptedPeer) await(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.reads < n {
		s.read.Wait()
	}
}

func ptr[T any](v T) *T { return &v }

func twoFrames() httpapi.Job {
	job := httpapi.Job{Frames: []httpapi.Frame{{Frame: 1, State: lease.TaskQueued}, {Frame: 2, State: lease.TaskQueued}}}
	job.ID, job.State, job.StartedAt = "j1", lease.JobRunning, ptr(time.Now())
	return job
}

func TestFollowReconnectsAndWaitsForDelivery(t *testing.T) {
	s := &scriptedPeer{t: t, job: twoFrames()}
	s.job.Output = "/out"
	ev := func(id uint64, kind lease.EventType, frame int32) httpapi.Event {
		return httpapi.Event{ID: id, Type: kind, Job: "j1", Frame: &frame, Peer: "12D3KooWattic", PeerName: "attic"}
	}
	s.streams = []func(func(httpapi.Event)){
		func(send func(httpapi.Event)) { // breaks off in the middle
			send(httpapi.Event{ID: 1, Type: lease.TaskGranted, Job: "j1", Task: ptr(int32(0)), Peer: "12D3KooWattic", PeerName: "attic"})
			send(ev(2, lease.FrameResult, 1))
		},
		func(send func(httpapi.Event)) {
			send(ev(3, lease.FrameResult, 2))
			s.set(func(j *httpapi.Job) {
				j.State = lease.JobDone
				for i := range j.Frames {
					j.Frames[i].State, j.Frames[i].Peer = lease.TaskDone, "12D3KooWattic"
				}
			})
			send(httpapi.Event{ID: 4, Type: lease.JobEnded, Job: "j1", State: "done"})
			send(ev(5, lease.FrameWritten, 1))
			s.set(func(j *httpapi.Job) { j.Frames[0].Delivered, j.Frames[1].Delivered = true, true })
			send(ev(6, lease.FrameWritten, 2))
		},
	}
	var rendered []int
	job, err := s.client().follow(context.Background(), "j1", func(f *follower, ev *httpapi.Event) {
		if ev != nil && ev.Type == lease.FrameResult {
			rendered = append(rendered, f.rendered)
		}
	})
	require.NoError(t, err)
	require.NoError(t, verdict(job))
	require.True(t, job.Frames[0].Delivered && job.Frames[1].Delivered)
	require.Equal(t, []string{"", "2"}, s.resumed)
	require.NotEmpty(t, rendered)
	require.Equal(t, 1, rendered[0])
}

func TestFollowEndsWithTheReason(t *testing.T) {
	s := &scriptedPeer{t: t, job: twoFrames()}
	s.streams = []func(func(httpapi.Event)){func(send func(httpapi.Event)) {
		s.set(func(j *httpapi.Job) {
			j.State, j.Reason, j.Log = lease.JobFailed, "task 0 failed 3 times", "Error: no memory"
		})
		send(httpapi.Event{ID: 1, Type: lease.JobEnded, Job: "j1", State: "failed"})
	}}
	job, err := s.client().follow(context.Background(), "j1", nil)
	require.NoError(t, err)
	err = verdict(job)
	require.Equal(t, exitJob, exitCode(err))
	require.EqualError(t, err, "job j1 failed: task 0 failed 3 times. Next: see `vizpeer job logs j1`\nBlender's last lines:\nError: no memory")
}

// notes is a board that keeps what it was told.
type notes struct {
	noBoard
	said []string
}

func (n *notes) warn(text string) { n.said = append(n.said, text) }

func TestFollowSaysWhatKeepsAJob(t *testing.T) {
	s := &scriptedPeer{t: t, job: twoFrames()}
	s.job.State, s.job.Output, s.job.Reason = lease.JobQueued, "/out", "it waits: no machine meets its requirements; the nearest is attic: needs label \"x\", has none"
	s.streams = []func(func(httpapi.Event)){func(send func(httpapi.Event)) {
		s.await(2) // at the opening, and at the hello, which is a comment too
		s.idle()   // nothing has changed
		s.await(3)
		s.set(func(j *httpapi.Job) { j.Reason, j.OutputError = "", "no space left on device" })
		s.idle()
		s.await(4)
		s.idle()
		s.await(5)
		s.set(func(j *httpapi.Job) {
			j.State, j.OutputError = lease.JobDone, ""
			for i := range j.Frames {
				j.Frames[i].State = lease.TaskDone
			}
		})
		send(httpapi.Event{ID: 1, Type: lease.JobEnded, Job: "j1", State: "done"})
		s.await(6)
		s.idle() // done, and the frames are still to be written
		s.await(7)
		s.set(func(j *httpapi.Job) { j.Frames[0].Delivered, j.Frames[1].Delivered = true, true })
		s.idle()
	}}
	n := &notes{}
	teller := teller{board: n}
	job, err := s.client().follow(context.Background(), "j1", teller.show)
	require.NoError(t, err)
	require.NoError(t, verdict(job))
	require.Equal(t, []string{
		"job j1 waits: no machine meets its requirements; the nearest is attic: needs label \"x\", has none",
		"frames cannot be written: no space left on device; the farm keeps them: make room and they come by themselves",
		"job j1 is done; still waiting for 2 frames to be written to /out",
	}, n.said)
}

func TestBoardSaysWhatItWaitsFor(t *testing.T) {
	var f follower
	job := twoFrames()
	job.StartedAt, job.Output, job.Reason = nil, "/out", "it waits for a machine to be free"
	f.reset(job, nil)
	require.Equal(t, " 0 of 2 frames, waiting for a machine", tailText(&f))
	require.Empty(t, stuck(f.job), "a busy farm needs nobody")
	f.job.OutputError = "no space left"
	require.Contains(t, tailText(&f), "frames cannot be written")
	f.job.OutputError, f.job.State, f.delivered = "", lease.JobDone, 1
	require.Equal(t, " 0 of 2 frames, 1 written, waiting for the rest to be written", tailText(&f))
}

func TestFollowIsInterrupted(t *testing.T) {
	s := &scriptedPeer{t: t, job: twoFrames()}
	ctx, cancel := context.WithCancelCause(context.Background())
	open := make(chan struct{})
	defer close(open)
	s.streams = []func(func(httpapi.Event)){func(send func(httpapi.Event)) {
		cancel(errInterrupted)
		<-open
	}}
	cl := s.client()
	t.Cleanup(cl.http.CloseIdleConnections)
	_, err := cl.follow(ctx, "j1", nil)
	require.ErrorIs(t, err, errInterrupted)
}

func TestRefusalsAreTold(t *testing.T) {
	s := &scriptedPeer{t: t, job: twoFrames()}
	cl := s.client()
	_, err := cl.job(context.Background(), "j2")
	require.Equal(t, exitNotFound, exitCode(err))
	cl.token = "wrong"
	_, err = cl.follow(context.Background(), "j1", nil)
	require.EqualError(t, err, "the token is not valid here")
	require.Equal(t, exitNotFound, exitCode(err))
}

func TestNobodyThere(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	cl := &client{base: server.URL, http: http.DefaultClient, local: true}
	_, err := cl.job(context.Background(), "j1")
	require.EqualError(t, err, "no vizpeer is running on this machine: start it with `vizpeer up`")
	require.Equal(t, exitUnreachable, exitCode(err))
	_, err = cl.follow(context.Background(), "j1", nil)
	require.Equal(t, exitUnreachable, exitCode(err))
}

func TestFollowerFoldsProgressIn(t *testing.T) {
	now := time.Now()
	f := follower{clock: func() time.Time { return now }}
	began := now
	job := twoFrames()
	job.StartedAt = &began
	f.reset(job, []httpapi.Task{{Index: 0, Frames: "1-2", State: lease.TaskQueued}})
	_, known := f.left(now)
	require.False(t, known, "nothing is rendered yet")
	id := authz.PeerID("12D3KooWabcdefgh")
	f.apply(httpapi.Event{Type: lease.JobStarted, Peer: "12D3KooWsubmitter"})
	f.apply(httpapi.Event{Type: lease.TaskGranted, Task: ptr(int32(0)), Peer: id, PeerName: "attic"})
	f.apply(httpapi.Event{Type: lease.FrameKept, Frame: ptr(int32(2)), Peer: "12D3KooWkeeper1"})
	f.apply(httpapi.Event{Type: lease.FrameLost, Frame: ptr(int32(2)), Peer: "12D3KooWkeeper1"})
	require.Equal(t, []authz.PeerID{id}, f.order, "who keeps frames or submitted is no worker")
	f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(0)), Peer: id, Progress: json.RawMessage(`{"frame": 0, "phase": "fetching"}`)})
	require.Equal(t, "attic          0 frames   task 0 (frames 1-2)  fetching", f.peers[id].line())
	now = now.Add(10 * time.Second)
	f.apply(httpapi.Event{Type: lease.FrameResult, Frame: ptr(int32(1)), Peer: id, PeerName: "attic", Seconds: 10})
	now = now.Add(5 * time.Second)
	f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(0)), Peer: id, Progress: json.RawMessage(`{"frame": 2, "sample": 8, "samples": 16}`)})
	require.Equal(t, "attic          1 frame   task 0 (frames 1-2)  frame 2  sample 8/16", f.peers[id].line())
	left, known := f.left(now)
	require.True(t, known)
	require.InDelta(t, 5, left.Seconds(), 0.01)
	require.Equal(t, "15s so far, about 5s left", timesText(&f))
	f.apply(httpapi.Event{Type: lease.FrameResult, Frame: ptr(int32(1)), Peer: id})
	require.Equal(t, 1, f.rendered, "a frame counts once")
	f.apply(httpapi.Event{Type: lease.TaskRequeued, Task: ptr(int32(0)), State: "queued", Reason: "it went away"})
	require.Equal(t, "attic          1 frame", f.peers[id].line())
	f.apply(httpapi.Event{Type: lease.FrameLost, Frame: ptr(int32(1))})
	require.Equal(t, 0, f.rendered)
}

// Three machines render 24 frames of 10 s each: 80 s of work, of which the first
// guesses must not be far.
func TestLeftIsNearTheTruthFromTheBeginning(t *testing.T) {
	const frames, each = 24, 10.0
	for name, samples := range map[string]bool{"with samples": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			f := follower{clock: func() time.Time { return now }}
			job := httpapi.Job{}
			began := now
			job.ID, job.State, job.StartedAt = "j1", lease.JobRunning, &began
			var tasks []httpapi.Task
			for i := range int32(frames) {
				job.Frames = append(job.Frames, httpapi.Frame{Frame: i, State: lease.TaskQueued})
				tasks = append(tasks, httpapi.Task{Index: i, Frames: fmt.Sprint(i), State: lease.TaskQueued})
			}
			f.reset(job, tasks)
			peers := []authz.PeerID{"12D3KooWattic", "12D3KooWcellar", "12D3KooWloft"}
			offset := []float64{0, 1, 3} // they do not run in step
			next, at := int32(0), map[authz.PeerID]int32{}
			grant := func(p authz.PeerID) {
				if next < frames {
					at[p] = next
					f.apply(httpapi.Event{Type: lease.TaskGranted, Task: ptr(next), Peer: p})
					next++
				}
			}
			for _, p := range peers {
				grant(p)
			}
			told := 0
			for second := 1; second <= 70; second++ {
				now = now.Add(time.Second)
				for i, p := range peers {
					into := float64(second) - offset[i]
					for into > each {
						into -= each
					}
					switch {
					case into <= 0:
						f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(at[p]), Peer: p,
							Progress: json.RawMessage(fmt.Sprintf(`{"frame": %d, "phase": "loading"}`, at[p]))})
					case into == each:
						f.apply(httpapi.Event{Type: lease.FrameResult, Frame: ptr(at[p]), Peer: p, Seconds: each})
						f.apply(httpapi.Event{Type: lease.TaskEnded, Task: ptr(at[p]), Peer: p, State: "rendered"})
						grant(p)
					default:
						n := 0
						if samples {
							n = 100
						}
						f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(at[p]), Peer: p,
							Progress: json.RawMessage(fmt.Sprintf(`{"frame": %d, "phase": "rendering", "sample": %d, "samples": %d}`, at[p], int(into*float64(n)/each), n))})
					}
				}
				if left, ok := f.left(now); ok {
					told++
					truth := 81.5 - float64(second)
					require.InDelta(t, 1, left.Seconds()/truth, 0.4, "after %d s: %s", second, left)
				}
			}
			require.Greater(t, told, 60)
		})
	}
}
