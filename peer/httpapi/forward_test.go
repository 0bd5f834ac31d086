package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// sse reads server-sent events.
type sse struct {
	t *testing.T
	*bufio.Reader
	*http.Response
}

func (m *machine) follow(t *testing.T, path string, header ...string) sse {
	t.Helper()
	resp := m.open(t, "ann", "GET", path, nil, header...)
	t.Cleanup(func() { resp.Body.Close() })
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	s := sse{t, bufio.NewReader(resp.Body), resp}
	require.Equal(t, "retry: 2000\n\n", s.next())
	return s
}

// next is the stream's next block, or "" at its clean end.
func (s sse) next() string {
	s.t.Helper()
	var b strings.Builder
	for {
		line, err := s.ReadString('\n')
		if err != nil {
			require.Equal(s.t, "EOF", err.Error())
			require.Empty(s.t, b.String()+line)
			return ""
		}
		b.WriteString(line)
		if line == "\n" {
			return b.String()
		}
	}
}

func TestEvents(t *testing.T) {
	for _, transport := range []string{onTCP, onQUIC} {
		t.Run(transport, func(t *testing.T) { testEvents(t, transport) })
	}
}

func testEvents(t *testing.T, transport string) {
	f, ms := newFarm(t, 2, Config{}, transport)
	for i, m := range ms { // at the leader, and through another peer: each event at once
		s := m.follow(t, "/v1/events?job=jann", "Last-Event-ID", "41")
		ch, ended := f.follower(t, i+1)
		require.Equal(t, EventQuery{Job: "jann", Resume: true, After: 41}, f.query)

		at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		ch <- Event{ID: 42, Type: lease.JobStarted, Time: at, Job: "jann"}
		require.Equal(t, "id: 42\nevent: job.started\ndata: {\"id\":42,\"type\":\"job.started\",\"time\":\"2026-01-02T03:04:05Z\",\"job\":\"jann\"}\n\n", s.next())
		ch <- Event{Type: lease.TaskProgress, Time: at, Progress: json.RawMessage("{\n\"frame\": 3}")}
		require.Equal(t, "event: task.progress\ndata: {\"type\":\"task.progress\",\"time\":\"2026-01-02T03:04:05Z\",\"progress\":{\"frame\":3}}\n\n", s.next())
		ch <- Event{Type: lease.TaskProgress, Time: at, Progress: json.RawMessage("}\n\ndata: forged")}
		require.Equal(t, "event: task.progress\ndata: {\"type\":\"task.progress\",\"time\":\"2026-01-02T03:04:05Z\"}\n\n", s.next())

		s.Body.Close()
		<-ended.Done() // the reader's leaving reaches the leader
	}
}

func TestEventsEnd(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	f.missed, f.subErr = true, fmt.Errorf("%w: 1000 events", ErrSlowReader)
	for i, m := range ms {
		s := m.follow(t, "/v1/events")
		require.Contains(t, s.next(), "event: stream.missed\n")
		ch, _ := f.follower(t, i+1)
		require.False(t, f.query.Resume)
		ch <- Event{ID: 1, Type: lease.JobEnded}
		close(ch)
		require.Contains(t, s.next(), "id: 1\n")
		last := s.next()
		require.Contains(t, last, "event: stream.ended\n")
		require.Contains(t, last, "the reader fell behind: 1000 events")
		require.NotContains(t, last, "id:")
		require.Empty(t, s.next())
	}
}

func TestEventsKeepAlive(t *testing.T) {
	for _, transport := range []string{onTCP, onQUIC} {
		// A stream that is silent for longer than a write may take is no stall.
		_, ms := newMachines(t, 2, Config{KeepAlive: 10 * time.Millisecond}, transport)
		ms[1].cfg.KeepAlive = time.Minute // so that what comes is the leader's
		for _, m := range ms {
			m.loopback, m.peers = outlasted(m.loopback), outlasted(m.peers)
			m.start(t)
		}
		for _, m := range ms {
			s := m.follow(t, "/v1/events")
			for range 3 {
				require.Equal(t, ": still here\n\n", s.next())
			}
		}
	}
}

// outlasted is h where each silence is longer than a write may take: whenever a
// piece of an answer is out, the time for the writing is over.
func outlasted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(outlastedWriter{w, http.NewResponseController(w)}, r)
	})
}

type outlastedWriter struct {
	http.ResponseWriter
	conn *http.ResponseController
}

func (w outlastedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w outlastedWriter) FlushError() error {
	return errors.Join(w.conn.Flush(), w.conn.SetWriteDeadline(time.Unix(1, 0)))
}

func TestStopping(t *testing.T) {
	f, ms := newFarm(t, 2, Config{Grace: time.Minute})
	direct, through := ms[0].follow(t, "/v1/events"), ms[1].follow(t, "/v1/events")
	_, ended := f.follower(t, 2)

	// A peer that passes on ends its readers' streams; the leader notices.
	ms[1].stop()
	require.Empty(t, through.next())
	<-ended.Done()

	// The leader says why.
	ms[0].stop()
	require.Contains(t, direct.next(), "this peer is stopping")
	require.Empty(t, direct.next())
}

func TestLeaderStopsUnderReaders(t *testing.T) {
	_, ms := newFarm(t, 2, Config{Grace: time.Minute})
	s := ms[1].follow(t, "/v1/events")
	ms[0].stop()
	require.Contains(t, s.next(), "this peer is stopping")
	require.Empty(t, s.next())
}

func TestLeaderDiesUnderReaders(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	s := ms[1].follow(t, "/v1/events")
	ms[0].host.Close()
	require.Empty(t, s.next(), "the stream ends whole, so that the reader resumes")
}

// A request that has begun is answered although the server is told to stop.
func TestStoppingIsPatient(t *testing.T) {
	_, ms := newFarm(t, 1, Config{Grace: time.Minute})
	m := ms[0]
	entered, leave := make(chan struct{}), make(chan struct{})
	m.set(func(m *machine) { m.spec = func(*lease.Spec) { close(entered); <-leave } })
	answered := make(chan reply)
	go func() {
		answered <- m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID})
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { m.stop(); close(stopped) }()
	close(leave)
	require.Equal(t, 201, (<-answered).StatusCode)
	<-stopped
}

func TestNobodyLeads(t *testing.T) {
	f, ms := newFarm(t, 1, Config{})
	f.leader = ""
	m := ms[0]
	for _, path := range []string{"/v1/jobs", "/v1/jobs/jann/frames/1", "/v1/events"} {
		r := m.do(t, "ann", "GET", path, nil)
		require.Equal(t, 503, r.StatusCode)
		require.Equal(t, "2", r.Header.Get("Retry-After"))
		p := r.problem(t)
		require.Equal(t, CodeNoLeader, p.Code)
		require.Equal(t, "no coordinator can be reached: tried nobody", p.Detail)
	}
	require.Equal(t, 200, m.do(t, "ann", "GET", "/v1/status", nil).StatusCode, "this machine can tell about itself")
	// Whose token it is, nobody can be asked either.
	require.Equal(t, CodeNoLeader, m.do(t, "nobody", "GET", "/v1/status", nil).problem(t).Code)

	f.leader = m.host.ID()
	f.err = &NotLeaderError{}
	require.Equal(t, CodeNoLeader, m.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)

	// A Find that takes too long counts as none.
	m.set(func(m *machine) { m.finds = func() (peer.ID, error) { return "", context.DeadlineExceeded } })
	require.Equal(t, CodeNoLeader, m.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)
}

func TestLeaderIsElsewhereByNow(t *testing.T) {
	f, ms := newFarm(t, 3, Config{})
	a, b, c := ms[0], ms[1], ms[2]
	f.leader = c.host.ID()
	// a believes that b leads; b knows that c does.
	a.set(func(m *machine) { m.finds = func() (peer.ID, error) { return b.host.ID(), nil } })
	require.Equal(t, 200, a.do(t, "ann", "GET", "/v1/jobs", nil).StatusCode)
	require.Equal(t, 201, a.do(t, "root", "POST", "/v1/tickets", Invitation{Role: authz.Node}).StatusCode, "the body goes along")
	require.Equal(t, 201, a.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}).StatusCode)
	require.Equal(t, authz.PeerID(a.host.ID().String()), f.submitted()[0].Submitter)

	// b is wrong as well: one retry, then no more.
	b.set(func(m *machine) { m.finds = func() (peer.ID, error) { return c.host.ID(), nil } })
	c.set(func(m *machine) { m.finds = func() (peer.ID, error) { return b.host.ID(), nil } })
	require.Equal(t, CodeNoLeader, a.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)
	// b names a itself.
	b.set(func(m *machine) { m.finds = func() (peer.ID, error) { return a.host.ID(), nil } })
	require.Equal(t, CodeNoLeader, a.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)
	// b knows nobody.
	b.set(func(m *machine) { m.finds = func() (peer.ID, error) { return "", ErrNoLeader } })
	require.Equal(t, CodeNoLeader, a.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)
	// b names a stranger: the credential does not go there.
	stranger, err := libp2p.New(libp2p.NoListenAddrs)
	require.NoError(t, err)
	defer stranger.Close()
	b.set(func(m *machine) { m.finds = func() (peer.ID, error) { return stranger.ID(), nil } })
	require.Contains(t, a.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Detail, "not a member")
	// Leadership is lost between the gate and the queue.
	b.set(func(m *machine) { m.finds = func() (peer.ID, error) { return b.host.ID(), nil } })
	f.err = &NotLeaderError{}
	require.Equal(t, CodeNoLeader, a.do(t, "ann", "GET", "/v1/jobs", nil).problem(t).Code)
}

func TestLeaderIsGone(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	ms[0].host.Close()
	r := ms[1].do(t, "ann", "GET", "/v1/jobs", nil)
	require.Equal(t, CodeNoLeader, r.problem(t).Code)
	require.Equal(t, "no coordinator can be reached: "+short(ms[0].host.ID())+" leads the queue and does not answer; try again in a few seconds", r.problem(t).Detail)
}

// The leader believes the stream and its own list of tokens, not the document
// and not the peer that passes it on.
func TestLeaderBelievesTheStream(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	lead, other := ms[0], ms[1]
	direct := &http.Client{Transport: newFarmTransport(other.host, lead.cfg.Member, other)}
	post := func(token string, spec lease.Spec, id ...string) *http.Response {
		data, err := json.Marshal(spec)
		require.NoError(t, err)
		r, err := http.NewRequest("POST", "http://"+lead.host.ID().String()+"/v1/queue/jobs", strings.NewReader(string(data)))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		if len(id) > 0 {
			r.Header.Set(jobHeader, id[0])
		}
		resp, err := direct.Do(r)
		require.NoError(t, err)
		resp.Body.Close()
		return resp
	}
	spec := lease.Spec{
		Name: "n", Owner: "root", Submitter: authz.PeerID(lead.host.ID().String()), Project: someCID, Blend: "b", Tier: lease.Normal, Replicas: 1,
		Frames: lease.Frames{{First: 1, Last: 1, Step: 1}}, Output: lease.Output{Peer: authz.PeerID(lead.host.ID().String()), Dir: "/etc"},
	}
	require.Equal(t, 201, post("ann", spec).StatusCode)
	me := authz.PeerID(other.host.ID().String())
	got := f.submitted()[0]
	require.Equal(t, "ann", got.Owner)
	require.Equal(t, me, got.Submitter)
	require.Equal(t, lease.Output{Peer: me, Dir: "/etc"}, got.Output)

	spec.Output.Dir = ""
	require.Equal(t, 201, post("ann", spec).StatusCode)
	require.Zero(t, f.submitted()[1].Output)
	// The ID of a job is one that machines draw, and no other.
	for _, id := range []string{"jann", "../../etc/passwd", "jabcdefghijklmn1", "JABCDEFGHIJKLMNO", "jabcdefghijklmnop"} {
		require.Equal(t, 422, post("ann", spec, id).StatusCode, id)
	}
	require.Equal(t, 201, post("ann", spec, "jabcdefghijklmno").StatusCode)
	require.Equal(t, lease.JobID("jabcdefghijklmno"), f.asked[2])
	spec.Replicas = 99
	require.Equal(t, 422, post("ann", spec).StatusCode)
	require.Equal(t, 403, post("vic", spec).StatusCode)
	require.Equal(t, 401, post("nobody", spec).StatusCode)
	require.Len(t, f.submitted(), 3)

	// What is about a machine is not there for others.
	for _, path := range []string{"/v1/status", "/v1/jobs/jann/frames/1", "/healthz", "/openapi.json"} {
		r, err := http.NewRequest("GET", "http://"+lead.host.ID().String()+path, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer root")
		resp, err := direct.Do(r)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, 404, resp.StatusCode, path)
	}
}

// A machine need not know every token: it asks the leader.
func TestTokensOfElsewhere(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	lead, other := ms[0], ms[1]
	other.set(func(m *machine) { m.tokens = nil })
	require.Equal(t, 200, other.do(t, "ann", "GET", "/v1/status", nil).StatusCode)
	require.Equal(t, 201, other.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}).StatusCode)
	require.Equal(t, CodeForbidden, other.do(t, "vic", "POST", "/v1/jobs", Submission{Project: someCID}).problem(t).Code)
	r := other.do(t, "nobody", "GET", "/v1/status", nil)
	require.Equal(t, 401, r.StatusCode)
	require.NotEmpty(t, r.Header.Get("WWW-Authenticate"))

	// The leader's word counts for what the leader does, whatever this machine thinks.
	other.set(func(m *machine) { m.tokens = map[string]authz.Role{"vic": authz.Admin} })
	require.Equal(t, CodeForbidden, other.do(t, "vic", "POST", "/v1/jobs", Submission{Project: someCID}).problem(t).Code)
	require.Equal(t, CodeForbidden, other.do(t, "vic", "POST", "/v1/tickets", Invitation{}).problem(t).Code)
	// A principal that makes no sense is nobody.
	lead.set(func(m *machine) { m.tokens = map[string]authz.Role{"odd": "emperor"} })
	require.Equal(t, 401, lead.do(t, "odd", "GET", "/v1/status", nil).StatusCode)
	require.Equal(t, 401, lead.do(t, "odd", "GET", "/v1/jobs", nil).StatusCode)
}

func TestStrangersAreNotHeard(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	lead := ms[0]
	stranger, err := libp2p.New(libp2p.NoListenAddrs)
	require.NoError(t, err)
	defer stranger.Close()
	stranger.Peerstore().AddAddrs(lead.host.ID(), lead.host.Addrs(), peerstore.PermanentAddrTTL)
	c, err := gostream.Dial(t.Context(), stranger, lead.host.ID(), Protocol)
	if err == nil { // else the stream was refused before its protocol was agreed on
		defer c.Close()
		fmt.Fprintf(c, "GET /v1/farm HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer root\r\n\r\n")
		_, err = c.Read(make([]byte, 1))
	}
	require.Error(t, err)
	require.Empty(t, lead.farm.calls)
}

// Membership that ends between the accepting of a stream and its request counts.
func TestRequestsOfFormerMembers(t *testing.T) {
	s := New(Config{}, nil, nil, nil, newHost(t))
	id := newHost(t).ID()
	ctx := context.WithValue(t.Context(), remoteKey{}, streamAddr(id))
	r, err := http.NewRequestWithContext(ctx, "GET", "/v1/jobs", nil)
	require.NoError(t, err)
	require.ErrorIs(t, s.admit(stream, r), ErrDenied)
	s.cfg.Member = func(p peer.ID) bool { return p == id }
	require.NoError(t, s.admit(stream, r))
	require.ErrorIs(t, s.admit(stream, r.WithContext(t.Context())), ErrDenied)
}

// What a browser adds for this machine stays here, and what the leader adds for
// a browser as well.
func TestForwardedHeaders(t *testing.T) {
	lead := newHost(t)
	other := newHost(t)
	other.Peerstore().AddAddrs(lead.ID(), lead.Addrs(), peerstore.PermanentAddrTTL)
	l, err := gostream.Listen(lead, Protocol)
	require.NoError(t, err)
	got := make(chan http.Header, 1)
	var leader atomic.Value // of http.HandlerFunc
	leader.Store(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Content-Security-Policy", "none")
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
	}))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leader.Load().(http.HandlerFunc)(w, r)
	})}
	go srv.Serve(l)
	defer srv.Close()

	m := &machine{host: other, farm: &farm{leader: lead.ID()}, tokens: farmTokens}
	m.Server = New(Config{Member: func(peer.ID) bool { return true }}, m, m.farm, m, m.host)
	m.start(t)
	r := m.do(t, "ann", "GET", "/v1/jobs", nil, "Origin", m.url, "Cookie", "c=d", "Referer", "http://x", "Last-Event-ID", "7", "Connection", "Upgrade", "Upgrade", "websocket")
	require.Equal(t, "{}", string(r.body))
	require.Equal(t, "default-src 'none'; frame-ancestors 'none'", r.Header.Get("Content-Security-Policy"))
	for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin"} {
		require.Empty(t, r.Header.Get(name))
	}
	h := <-got
	require.Equal(t, "Bearer ann", h.Get("Authorization"))
	require.Equal(t, "7", h.Get("Last-Event-ID"))
	for _, name := range []string{"Origin", "Cookie", "Referer", "Upgrade", "X-Forwarded-For"} {
		require.Empty(t, h.Get(name), name)
	}

	// A leader that breaks off leaves it open whether the thing was done.
	leader.Store(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	p := m.do(t, "root", "POST", "/v1/tickets", Invitation{}).problem(t)
	require.Equal(t, CodeNoLeader, p.Code)
	require.Contains(t, p.Detail, "this may have been done or not")
	require.NotContains(t, m.do(t, "root", "GET", "/v1/jobs", nil).problem(t).Detail, "may have been done")
	// A leader that answers nonsense is an internal error here.
	leader.Store(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	require.Equal(t, CodeInternal, m.do(t, "ann", "GET", "/v1/jobs/jann/frames/1", nil).problem(t).Code)
	// A leader that falls silent ends its stream.
	m.cfg.KeepAlive = 200 * time.Millisecond
	leader.Store(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "retry: 2000\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	require.Empty(t, m.follow(t, "/v1/events").next())
}

// TestOlderLeader: what a leader of an earlier version does not know is said to be its
// version's, not the caller's, mistake.
func TestOlderLeader(t *testing.T) {
	_, ms := newMachines(t, 2, Config{})
	whole := ms[0].peers
	ms[0].peers = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.URL.Path == "/v1/jobs/jann/retry", strings.HasSuffix(r.URL.Path, "/frames/7"):
			p := newProblem(http.StatusNotFound, CodeNotFound, "there is no such path: see routes, or /openapi.json for all about them")
			p.Routes = []string{"GET /v1/jobs"}
			writeProblem(w, p)
		case r.Method == http.MethodDelete:
			writeProblem(w, newProblem(http.StatusMethodNotAllowed, CodeInvalid, "DELETE is not possible here: use GET", "Allow", "GET"))
		case r.URL.Path == "/v1/queue/jobs":
			writeProblem(w, newProblem(http.StatusUnprocessableEntity, CodeInvalid, "the request is not valid: body.gently: unexpected property"))
		default:
			whole.ServeHTTP(w, r)
		}
	})
	for _, m := range ms {
		m.start(t)
	}
	m := ms[1]
	for name, r := range map[string]reply{
		"a route that is passed on":    m.do(t, "ann", "POST", "/v1/jobs/jann/retry", nil),
		"a route that is asked for":    m.do(t, "ann", "GET", "/v1/jobs/jann/frames/7", nil),
		"a method that is passed on":   m.do(t, "root", "DELETE", "/v1/admin/keys/k", nil),
		"a field that this side reads": m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}),
	} {
		require.Equal(t, http.StatusNotImplemented, r.StatusCode, "%s: %s", name, r.body)
		p := r.problem(t)
		require.Equal(t, CodeUpdate, p.Code, name)
		require.Equal(t, short(ms[0].host.ID())+", which leads the queue, runs an older vizpeer that cannot do this yet: update it there", p.Detail, name)
	}
	require.Equal(t, CodeNotFound, m.do(t, "ann", "GET", "/v1/jobs/jnone", nil).problem(t).Code, "what is not there is not there")
	require.Equal(t, 200, m.do(t, "ann", "GET", "/v1/jobs/jann", nil).StatusCode, "and what both know goes on")
}
