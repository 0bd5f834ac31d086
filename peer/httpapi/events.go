package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/lease"
)

type eventsInput struct {
	exchange
	Job  lease.JobID `query:"job" maxLength:"64" doc:"this job's events only"`
	Last string      `header:"Last-Event-ID" maxLength:"20" doc:"begin after this event; without it, the stream begins now"`
}

// eventStream is GET /v1/events; it puts the shape of an event's data into the
// document.
func eventStream(s *Server, from side, rt *route, api huma.API, op huma.Operation) {
	api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Event](), true, "Event")
	bind((*Server).events)(s, from, rt, api, op)
}

func (s *Server) events(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	q := EventQuery{Job: in.Job}
	if in.Last != "" {
		after, err := strconv.ParseUint(in.Last, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: Last-Event-ID is %q: send the number of the last event", ErrInvalid, in.Last)
		}
		q.Resume, q.After = true, after
	}
	p := callerOf(ctx).Principal
	leave, err := s.readers.enter(p.User)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	cancel := func() { stop(); leave() }
	var sub *Subscription
	if _, _, ok := s.waiting(callerOf(ctx), in.Job); ok {
		sub = s.awaiting(ctx, in.Job)
	} else {
		sub, err = s.queue.Events(ctx, p, q)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer cancel()
		h := in.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		s.stream(ctx, in.w, sub, s.stillAllowed(ctx))
	}}, nil
}

// maxReaders is how many streams of events one user may have open at a time: for each,
// the leader keeps what its reader has not taken yet.
const maxReaders = 128

// readers counts the open streams of events, by user.
type readers struct {
	mu sync.Mutex
	of map[string]int
}

// enter counts one in, and leave, which is to be called once, out.
func (l *readers) enter(user string) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[user] >= maxReaders {
		return nil, newProblem(http.StatusTooManyRequests, CodeTooMany, fmt.Sprintf("%s follows the events %d times already: close some of the programs and pages that do", user, maxReaders), "Retry-After", "2")
	}
	if l.of == nil {
		l.of = make(map[string]int)
	}
	l.of[user]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.of[user]--; l.of[user] == 0 {
			delete(l.of, user)
		}
	}, nil
}

// stream writes events as they come, until the subscription, the caller or the
// server ends, or the caller may read no more.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, sub *Subscription, allowed func() bool) {
	flusher := http.NewResponseController(w)
	send := func(b []byte) bool {
		_, err := w.Write(b)
		if err == nil && len(sub.Events) == 0 {
			err = flusher.Flush()
		}
		return err == nil
	}
	end := func(reason string) {
		send(encodeEvent(Event{Type: StreamEnded, Time: time.Now().UTC(), Reason: reason}))
		flusher.Flush()
	}
	// The first bytes tell the reader that it will miss nothing from here on.
	hello := []byte("retry: 2000\n\n")
	if sub.Missed {
		hello = append(hello, encodeEvent(Event{Type: StreamMissed, Time: time.Now().UTC(), Reason: "older events are no longer kept: read the jobs anew"})...)
	}
	if !send(hello) || flusher.Flush() != nil {
		return
	}
	quiet := time.NewTicker(s.cfg.KeepAlive)
	defer quiet.Stop()
	for {
		select {
		case e, ok := <-sub.Events:
			if !ok {
				if err := sub.Err(); err != nil {
					end(err.Error())
				}
				return
			}
			if !allowed() {
				end("the key or the session is no good any more")
				return
			}
			if !send(encodeEvent(e)) {
				return
			}
			quiet.Reset(s.cfg.KeepAlive)
		case <-quiet.C:
			if !allowed() {
				end("the key or the session is no good any more")
				return
			}
			if !send([]byte(": still here\n\n")) {
				return
			}
		case <-stopping(ctx).Done():
			end("this peer is stopping")
			return
		case <-ctx.Done():
			return
		}
	}
}

// encodeEvent writes one server-sent event. Its JSON is one line, as encoding/json
// also makes of the raw progress inside.
func encodeEvent(e Event) []byte {
	data, err := json.Marshal(e)
	if err != nil {
		// Only the progress, which comes from a worker, can be malformed.
		e.Progress = nil
		data, _ = json.Marshal(e)
	}
	var b bytes.Buffer
	if e.ID > 0 {
		fmt.Fprintf(&b, "id: %d\n", e.ID)
	}
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", e.Type, data)
	return b.Bytes()
}
