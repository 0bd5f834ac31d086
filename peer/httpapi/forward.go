package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"vizpeer/authz"
	"vizpeer/lease"
)

// jobHeader has the ID that the machine which takes a submission drew for the job: an
// earlier version's leader knows no such thing, and draws one itself.
const jobHeader = "Vizpeer-Job"

// leaderHeader names the leader in the answer of a peer that is not.
const leaderHeader = "Vizpeer-Leader"

// forward passes a request to the leader as it is, and its answer back.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, rt *route, leader peer.ID, c caller) {
	proxy := &httputil.ReverseProxy{
		Transport:     s.farm,
		FlushInterval: -1, // an event must not wait for the next
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "http", leader.String(), ""
			// What is between a browser and this machine.
			for _, name := range []string{"Origin", "Referer", "Cookie", "Connection", "Upgrade"} {
				pr.Out.Header.Del(name)
			}
			stateClient(pr.Out.Header, c)
		},
		ModifyResponse: func(resp *http.Response) error {
			if err := olderThan(resp, leader); err != nil {
				return err
			}
			// The answer is the leader's, the browser's trust in it this machine's.
			answered := resp.Header
			resp.Header = http.Header{}
			for _, name := range []string{"Content-Type", "Content-Length", "Cache-Control", "Retry-After", "Www-Authenticate", "Allow", replayedHeader} {
				if v := answered.Values(name); len(v) > 0 {
					resp.Header[name] = v
				}
			}
			if rt.answers == "text/event-stream" {
				resp.Body = endWith(stopping(r.Context()), 3*s.cfg.KeepAlive, resp.Body)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			writeProblem(w, s.explain(r.Context(), loopback, rt, err))
		},
	}
	proxy.ServeHTTP(w, r)
}

// unexpectedProperty is what huma says of a field that it does not know.
const unexpectedProperty = "unexpected property"

// olderThan reports that the leader knows no such route as this machine passed on to it.
// The body of any other answer is left to be read.
func olderThan(resp *http.Response, leader peer.ID) error {
	if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Content-Type") != problemType {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(text))
	p := Problem{Status: resp.StatusCode}
	if json.Unmarshal(text, &p) != nil {
		return nil
	}
	return p.older(leader)
}

// older tells, of an answer to what this machine passed on, that the leader has no such
// route: it is not for the caller's mistakes, which this machine finds first.
func (p *Problem) older(leader peer.ID) error {
	if len(p.Routes) == 0 && p.Status != http.StatusMethodNotAllowed {
		return nil
	}
	return tooOld(leader)
}

func tooOld(leader peer.ID) error {
	return fmt.Errorf("%w: %s, which leads the queue, runs an older vizpeer that cannot do this yet: update it there", ErrUpdate, short(leader))
}

// endWith makes a stream of events end, rather than break, when ctx does, when
// its sender is gone, and when it was silent for so long that the sender must
// be: a reader of events connects again and resumes.
func endWith(ctx context.Context, silence time.Duration, body io.ReadCloser) io.ReadCloser {
	hangUp := func() { body.Close() }
	stop := context.AfterFunc(ctx, hangUp)
	silent := time.AfterFunc(silence, hangUp)
	return &endingBody{body, silence, silent, func() { stop(); silent.Stop() }}
}

type endingBody struct {
	io.ReadCloser
	silence time.Duration
	silent  *time.Timer
	stop    func()
}

func (b *endingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.silent.Reset(b.silence)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

func (b *endingBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

// farmTransport sends requests to peers: the host of the URL is a peer's ID, and
// each request has a stream of its own. Where that peer answers that another one
// leads, it asks that one, once.
type farmTransport struct {
	*http.Transport
	self   peer.ID
	leader Leader
}

func newFarmTransport(h host.Host, member func(peer.ID) bool, leader Leader) *farmTransport {
	return &farmTransport{self: h.ID(), leader: leader, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			id, err := peer.Decode(name)
			if err != nil {
				return nil, err
			}
			// The request carries a credential: it goes to members only.
			if !member(id) {
				return nil, &dialError{id, "is not a member of the farm", ErrNoLeader}
			}
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c, err := gostream.Dial(ctx, h, id, Protocol)
			if err != nil {
				return nil, &dialError{id, "does not answer; try again in a few seconds", err}
			}
			return c, nil
		},
		DisableKeepAlives:      true, // a stream costs no round trip
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		// A leader that lost its power does not hang up.
		ResponseHeaderTimeout: 15 * time.Second,
	}}
}

type dialError struct {
	id  peer.ID
	why string // for people: libp2p's own words are for nobody else
	err error
}

func (e *dialError) Error() string {
	return fmt.Sprintf("%v: %s leads the queue and %s", ErrNoLeader, short(e.id), e.why)
}
func (e *dialError) Unwrap() []error { return []error{ErrNoLeader, e.err} }

// short is the ID that people know a machine by.
func short(id peer.ID) string { return authz.PeerID(id.String()).Short() }

// RoundTrip sends r to the peer that its URL names or, if that one says so, to
// the one that leads.
func (t *farmTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.try(r)
	var wrong *NotLeaderError
	if !errors.As(err, &wrong) || wrong.Leader == "" || wrong.Leader == t.self {
		return resp, err
	}
	again := r.Clone(r.Context())
	again.URL.Host = wrong.Leader.String()
	if r.Body != nil && r.GetBody != nil {
		if again.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	return t.try(again)
}

// roundTrip gives up once another machine is known to lead: one that was killed does not
// hang up, and its stream of events would be silent for long.
func (t *farmTransport) roundTrip(r *http.Request) (*http.Response, error) {
	id, err := peer.Decode(r.URL.Host)
	if err != nil {
		return t.Transport.RoundTrip(r)
	}
	ctx, release := t.leader.While(r.Context(), id)
	resp, err := t.Transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		release()
		return resp, err
	}
	resp.Body = &releasedBody{resp.Body, release}
	return resp, nil
}

// releasedBody lets something go when it is closed.
type releasedBody struct {
	io.ReadCloser
	release func()
}

func (b *releasedBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}

func (t *farmTransport) try(r *http.Request) (*http.Response, error) {
	resp, err := t.roundTrip(r)
	who := authz.PeerID(r.URL.Host).Short()
	var dial *dialError
	switch {
	case err == nil && resp.StatusCode == http.StatusMisdirectedRequest:
		resp.Body.Close()
		leader, err := peer.Decode(resp.Header.Get(leaderHeader))
		if err != nil {
			leader = ""
		}
		return nil, &NotLeaderError{Leader: leader}
	case err == nil, errors.As(err, &dial), r.Context().Err() != nil:
		return resp, err
	case r.Method == http.MethodGet:
		return nil, fmt.Errorf("%w: %s led the queue and went away: %w", ErrNoLeader, who, err)
	}
	return nil, fmt.Errorf("%w: %s led the queue and went away before it answered, so this may have been done or not: look before you try again: %w", ErrNoLeader, who, err)
}

// queuePart is what a request that is answered here needs of the leader.
type queuePart interface {
	Submit(context.Context, authz.Principal, lease.Submit) (Submitted, error)
	Control(context.Context, authz.Principal, lease.JobID, Control) (JobSummary, error)
	Frame(context.Context, authz.Principal, lease.JobID, int32) (Frame, error)
	TasksOf(context.Context, authz.Principal, lease.JobID, int32) ([]Task, error)
	Task(context.Context, authz.Principal, lease.JobID, int32) (Task, error)
}

// part is the queue where it is led: here or at another peer.
func (s *Server) part(ctx context.Context, c caller) (queuePart, error) {
	leader, local, err := s.findLeader(ctx)
	switch {
	case err != nil:
		return nil, err
	case local:
		return s.queue, nil
	}
	return &remoteQueue{s, leader, c}, nil
}

// remoteQueue asks the leader in the name of the one whose token it has; the
// leader authenticates that itself, so the principals here do not count.
type remoteQueue struct {
	s      *Server
	leader peer.ID
	caller caller
}

func (q *remoteQueue) Submit(ctx context.Context, _ authz.Principal, in lease.Submit) (Submitted, error) {
	path := "queue/jobs"
	if in.Once != nil {
		path += "?" + url.Values{"key": {in.Once.Key}, "request": {in.Once.Request}}.Encode()
	}
	var out enqueued
	err := q.ask(ctx, http.MethodPost, in.Spec, &out, path, jobHeader, string(in.Job))
	out.Replayed = out.Again
	return out.Submitted, err
}

// Control cancels a job; there is no need of other verbs.
func (q *remoteQueue) Control(ctx context.Context, _ authz.Principal, job lease.JobID, c Control) (out JobSummary, err error) {
	err = q.ask(ctx, http.MethodPost, nil, &out, fmt.Sprintf("jobs/%s/%s", url.PathEscape(string(job)), c.Do))
	return out, err
}

func (q *remoteQueue) Frame(ctx context.Context, _ authz.Principal, job lease.JobID, frame int32) (out Frame, err error) {
	err = q.ask(ctx, http.MethodGet, nil, &out, fmt.Sprintf("queue/jobs/%s/frames/%d", url.PathEscape(string(job)), frame))
	return out, err
}

func (q *remoteQueue) TasksOf(ctx context.Context, _ authz.Principal, job lease.JobID, frame int32) ([]Task, error) {
	var out TaskList
	err := q.ask(ctx, http.MethodGet, nil, &out, fmt.Sprintf("queue/jobs/%s/frames/%d/tasks", url.PathEscape(string(job)), frame))
	return out.Tasks, err
}

func (q *remoteQueue) Task(ctx context.Context, _ authz.Principal, job lease.JobID, task int32) (out Task, err error) {
	err = q.ask(ctx, http.MethodGet, nil, &out, fmt.Sprintf("queue/jobs/%s/tasks/%d", url.PathEscape(string(job)), task))
	return out, err
}

func (q *remoteQueue) principal(ctx context.Context) (out authz.Principal, err error) {
	err = q.ask(ctx, http.MethodGet, nil, &out, "queue/principal")
	return out, err
}

// maxAnswer bounds, in bytes, what the leader may answer to ask.
const maxAnswer = 4 << 20

// ask makes a request; header holds name, value pairs.
func (q *remoteQueue) ask(ctx context.Context, method string, in, out any, path string, header ...string) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("asking the leader: %w", err)
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+q.leader.String()+"/v1/"+path, body)
	if err != nil {
		return fmt.Errorf("asking the leader: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+q.caller.token)
	stateClient(r.Header, q.caller)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := q.s.farm.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode < 300 {
		if err := answer.Decode(out); err != nil {
			return fmt.Errorf("reading the answer of %s, who leads the queue: %w", short(q.leader), err)
		}
		return nil
	}
	p := Problem{header: http.Header{}}
	if err := answer.Decode(&p); err != nil || p.Code == "" {
		return fmt.Errorf("%s, who leads the queue, answered %s", short(q.leader), resp.Status)
	}
	p.Status = resp.StatusCode
	if err := p.older(q.leader); err != nil {
		return err
	}
	if strings.Contains(p.Detail, unexpectedProperty) { // this machine has read what it passes on
		return tooOld(q.leader)
	}
	for _, name := range []string{"Retry-After", "Www-Authenticate"} {
		if v := resp.Header.Get(name); v != "" {
			p.header.Set(name, v)
		}
	}
	return &p
}
