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
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

func TestLoginAtAnyPeer(t *testing.T) {
	var log bytes.Buffer
	f, ms := newFarm(t, 2, Config{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for _, m := range ms {
		r := m.do(t, "", "POST", "/v1/auth/login", Credentials{"ann", "password of ann"})
		require.Equal(t, 200, r.StatusCode, "%s", r.body)
		var s Session
		require.NoError(t, json.Unmarshal(r.body, &s))
		require.Equal(t, authz.Operator, s.Role)

		for _, wrong := range []Credentials{{"ann", "password of bob"}, {"nobody", "password of nobody"}} {
			r = m.do(t, "", "POST", "/v1/auth/login", wrong)
			require.Equal(t, 401, r.StatusCode)
			require.Equal(t, authz.ErrPassword.Error(), r.problem(t).Detail, "the same for all that is wrong")
			require.NotContains(t, string(r.body), "password of")
		}
		for _, bad := range []any{nil, Credentials{}, Credentials{"ann", ""}, map[string]string{"username": "ann", "password": "x", "role": "admin"}} {
			r = m.do(t, "", "POST", "/v1/auth/login", bad)
			require.Contains(t, []int{400, 422}, r.StatusCode, "%s", r.body)
		}
		require.Equal(t, 422, m.do(t, "ann", "POST", "/v1/auth/logout", nil).StatusCode, "a key has no end")
	}
	ms[1].stop()
	ms[0].stop()
	require.NotContains(t, log.String(), "password of")
	require.NotContains(t, f.calls, "logout ann")
}

// A key that was pasted where its ID belongs is in no log.
func TestPathsWithSecretsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	_, ms := newFarm(t, 1, Config{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for _, path := range []string{"/v1/admin/keys/vzk_hush", "/v1/tickets/vzt1hush", "/v1/nothing/vzs_hush", "/v1/jobs/a%2Fvzk_hush"} {
		ms[0].do(t, "root", "DELETE", path, nil)
	}
	ms[0].stop()
	require.Contains(t, log.String(), "/v1/admin/keys/(a secret)")
	require.NotContains(t, log.String(), "hush")
}

// TestAOneTimePassword is good for nothing but choosing another.
func TestAOneTimePassword(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	for _, m := range ms {
		m.set(func(m *machine) { m.mustChange = true })
	}
	for _, m := range ms {
		for _, rt := range routes() {
			if rt.place == internal || rt.rule.open {
				continue
			}
			r := m.do(t, "root", rt.Method, someplace(rt), nil)
			switch rt.id {
			case "whoami":
				require.Equal(t, 200, r.StatusCode)
				require.Contains(t, string(r.body), `"must_change":true`)
			case "logout", "change-password":
				require.NotContains(t, []int{401, 403}, r.StatusCode, rt.id)
			default:
				require.Equal(t, 403, r.StatusCode, "%s: %s", rt.id, r.body)
				p := r.problem(t)
				require.Equal(t, CodeMustChange, p.Code, rt.id)
				require.Contains(t, p.Detail, "vizpeer user passwd")
			}
		}
	}
}

func TestAdminRoutes(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	m := ms[1]
	r := m.do(t, "root", "POST", "/v1/admin/users", NewUser{Username: "eve", Role: authz.Viewer})
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	for _, role := range []authz.Role{authz.Node, "god", ""} {
		require.Equal(t, 422, m.do(t, "root", "POST", "/v1/admin/users", NewUser{Username: "eve", Role: role}).StatusCode)
	}
	require.JSONEq(t, `{"username":"eve","role":"viewer","disabled":false,"must_change":false}`, string(m.do(t, "root", "POST", "/v1/admin/users/eve/role", NewRole{authz.Viewer}).body))
	r = m.do(t, "root", "POST", "/v1/admin/users/a%20b/password", nil)
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.JSONEq(t, `{"username":"a b","role":"","disabled":false,"must_change":false,"password":"drawn"}`, string(r.body))
	require.JSONEq(t, `{"username":"eve","role":"","disabled":true,"must_change":false}`, string(m.do(t, "root", "POST", "/v1/admin/users/eve/disable", nil).body))
	require.JSONEq(t, `{"username":"eve","role":"","disabled":false,"must_change":false}`, string(m.do(t, "root", "POST", "/v1/admin/users/eve/enable", nil).body))
	require.Equal(t, 422, m.do(t, "root", "POST", "/v1/admin/users/eve/role", NewRole{"node"}).StatusCode)
	require.Equal(t, 201, m.do(t, "root", "POST", "/v1/admin/keys", NewKey{Role: authz.Node}).StatusCode)
	require.Equal(t, 200, m.do(t, "root", "DELETE", "/v1/admin/keys/abc", nil).StatusCode)
	for err, want := range map[error]int{
		authz.ErrUserUnknown: 404, authz.ErrKeyUnknown: 404, authz.ErrUserExists: 409, authz.ErrLastAdmin: 409, authz.ErrPeopleFull: 409,
		authz.ErrNotAdmin: 403, authz.ErrPasswordChanged: 409,
	} {
		f.mu.Lock()
		f.err = fmt.Errorf("%w: %w", ErrInvalid, err)
		f.mu.Unlock()
		r := m.do(t, "root", "DELETE", "/v1/admin/keys/abc", nil)
		require.Equal(t, want, r.StatusCode, "%s", r.body)
		require.Equal(t, err.Error(), r.problem(t).Detail)
	}
}

// TestClientAddress: the leader hears from the entry peer whose request it is, and
// from nobody else.
func TestClientAddress(t *testing.T) {
	for _, try := range []struct {
		header string
		from   side
		want   string
	}{
		{"192.0.2.7", stream, "192.0.2.7"},
		{"nonsense", stream, "invalid IP"},
		{"", stream, "invalid IP"},
		{"192.0.2.7", loopback, "127.0.0.1"},
	} {
		ctx := context.WithValue(t.Context(), remoteKey{}, net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}))
		r, err := http.NewRequestWithContext(ctx, "GET", "/", nil)
		require.NoError(t, err)
		r.Header.Set(clientHeader, try.header)
		require.Equal(t, try.want, (&Server{}).findClient(try.from, r).String())
	}
	h := http.Header{clientHeader: {"192.0.2.7"}}
	stateClient(h, caller{})
	require.Empty(t, h, "what a client says of itself goes no further")
	stateClient(h, caller{addr: netip.MustParseAddr("127.0.0.1")})
	require.Equal(t, "127.0.0.1", h.Get(clientHeader))
}

func TestHousehold(t *testing.T) {
	for _, try := range []struct{ a, b string }{
		{"127.0.0.1", "127.9.9.9"}, {"127.0.0.1", "::1"}, {"2001:db8::1", "2001:db8::ffff"}, {"192.0.2.1", "192.0.2.1"},
	} {
		require.Equal(t, household(netip.MustParseAddr(try.a)), household(netip.MustParseAddr(try.b)))
	}
	require.NotEqual(t, household(netip.MustParseAddr("192.0.2.1")), household(netip.MustParseAddr("192.0.2.2")))
	require.NotEqual(t, household(netip.MustParseAddr("2001:db8::1")), household(netip.MustParseAddr("2001:db8:0:1::1")))
	require.NotPanics(t, func() { household(netip.Addr{}) })
}

func TestMeter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(n byte) origin { return origin{addr: netip.AddrFrom4([4]byte{192, 0, 2, n})} }
	m := newMeter(50, 100, false)
	for range 100 {
		require.Zero(t, m.take(at(1), now))
	}
	require.Equal(t, 20*time.Millisecond, m.take(at(1), now))
	require.Zero(t, m.take(at(2), now), "another is not concerned")
	require.Zero(t, m.take(at(1), now.Add(20*time.Millisecond)), "what was refused was not counted")

	// Delays grow while somebody goes on, and only for them.
	m = newMeter(10./60, 10, true)
	for range 10 {
		require.Zero(t, m.take(at(1), now))
	}
	for bar := minBar; bar < maxBar; bar *= 2 {
		wait := m.take(at(1), now)
		for range 100 { // until one is refused again
			if wait > 0 {
				break
			}
			wait = m.take(at(1), now)
		}
		require.Equal(t, bar, wait)
		require.Equal(t, bar-time.Second, m.take(at(1), now.Add(time.Second)))
		require.Zero(t, m.take(at(2), now))
		now = now.Add(bar)
	}
	now = now.Add(time.Hour)
	for range 10 {
		require.Zero(t, m.take(at(1), now))
	}
	require.Equal(t, minBar, m.take(at(1), now), "it had been good for a while")

	for i := range 2 * maxOrigins {
		m.take(origin{peer: peer.ID(strconv.Itoa(i))}, now)
	}
	require.Equal(t, maxOrigins, m.seen.Len(), "what is remembered has a bound")
}

func TestRequestsAreLimited(t *testing.T) {
	_, ms := newFarm(t, 1, Config{Requests: 5, Logins: 2})
	m := ms[0]
	var answers []int
	var last reply
	for range 30 {
		last = m.do(t, "", "GET", "/healthz", nil)
		answers = append(answers, last.StatusCode)
	}
	require.Equal(t, 200, answers[0])
	require.Contains(t, answers, 429)
	if last.StatusCode == 429 {
		p := last.problem(t)
		require.Equal(t, CodeTooMany, p.Code)
		require.Equal(t, "1", last.Header.Get("Retry-After"))
	}
	require.Eventually(t, func() bool { return m.do(t, "", "GET", "/healthz", nil).StatusCode == 200 }, 10*time.Second, 50*time.Millisecond)

	// Passwords have a limit of their own, before anybody looks at one.
	f, ms := newFarm(t, 2, Config{Logins: 2})
	for i, want := range []int{401, 401, 429, 429} {
		r := ms[1].do(t, "", "POST", "/v1/auth/login", Credentials{"ann", "wrong"})
		require.Equal(t, want, r.StatusCode, i)
		if want == 429 {
			require.Equal(t, "5", r.Header.Get("Retry-After"))
		}
	}
	require.Equal(t, 429, ms[1].do(t, "ann", "POST", "/v1/auth/password", PasswordChange{"wrong", "another wrong one"}).StatusCode)
	require.Equal(t, 200, ms[1].do(t, "ann", "GET", "/v1/auth/whoami", nil).StatusCode, "nothing else is barred")
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Equal(t, []string{"login ann", "login ann"}, f.calls)
}

// TestEventsEndWithTheirReadersRight: a stream that is open outlives no logout.
func TestEventsEndWithTheirReadersRight(t *testing.T) {
	f, ms := newFarm(t, 2, Config{KeepAlive: 1500 * time.Millisecond})
	resp := ms[1].open(t, "ann", "GET", "/v1/events", nil)
	defer resp.Body.Close()
	require.Equal(t, 200, resp.StatusCode)
	f.follower(t, 1)
	ms[0].set(func(m *machine) { m.tokens = map[string]authz.Role{"root": authz.Admin} })
	data, err := io.ReadAll(resp.Body) // until the leader ends it
	require.NoError(t, err)
	require.Contains(t, string(data), "no good any more")
}

// TestLoginFlood: while one address tries a thousand passwords a second, the requests
// of another are answered as if nothing were.
// The leader keeps for each reader what happened meanwhile: one user has no more than so
// many, however many machines they ask from.
func TestReadersOfOneUserAreBounded(t *testing.T) {
	_, ms := newFarm(t, 2, Config{Requests: 10_000})
	var last *http.Response
	for i := range maxReaders {
		last = ms[i%2].open(t, "vic", "GET", "/v1/events", nil)
		require.Equal(t, 200, last.StatusCode)
	}
	for _, m := range ms {
		r := m.do(t, "vic", "GET", "/v1/events", nil)
		require.Equal(t, 429, r.StatusCode)
		require.NotEmpty(t, r.Header.Get("Retry-After"))
	}
	require.Equal(t, 200, ms[0].open(t, "ann", "GET", "/v1/events", nil).StatusCode, "others have their own")
	last.Body.Close()
	require.Eventually(t, func() bool {
		r := ms[0].open(t, "vic", "GET", "/v1/events", nil)
		return r.StatusCode == 200
	}, 10*time.Second, 20*time.Millisecond)
}

func TestLoginFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds of both processors")
	}
	if runtime.GOOS != "linux" {
		t.Skip("it needs several loopback addresses")
	}
	_, ms := newMachines(t, 1, Config{Requests: 50, Logins: 10})
	m := ms[0]
	slow := &slowLogin{Queue: m.queue}
	m.queue = slow
	l, err := Listen("127.0.0.1:0")
	require.NoError(t, err)
	m.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, awayListener{l}) }()
	defer func() { cancel(); require.NoError(t, <-served) }()

	from := func(addr string) *http.Client {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
		return &http.Client{Transport: &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 64}}
	}
	attacker, artist := from("127.0.0.2"), from("127.0.0.3")
	body, err := json.Marshal(Credentials{"root", "a wrong password"})
	require.NoError(t, err)
	var flood sync.WaitGroup
	var mu sync.Mutex
	counts := map[int]int{}
	const rate, lasts = 1000, 4 * time.Second
	began := time.Now()
	for range 50 {
		flood.Go(func() {
			tick := time.NewTicker(50 * time.Second / rate)
			defer tick.Stop()
			for time.Since(began) < lasts {
				<-tick.C
				resp, err := attacker.Post(m.url+"/v1/auth/login", "application/json", bytes.NewReader(body))
				if err != nil {
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				mu.Lock()
				counts[resp.StatusCode]++
				mu.Unlock()
			}
		})
	}
	var took []time.Duration
	pace := time.NewTicker(25 * time.Millisecond) // 40 a second: below the limit
	defer pace.Stop()
	for time.Since(began) < lasts {
		<-pace.C
		r, err := http.NewRequestWithContext(t.Context(), "GET", m.url+"/v1/jobs", nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer ann")
		t0 := time.Now()
		resp, err := artist.Do(r)
		require.NoError(t, err)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		require.Equal(t, 200, resp.StatusCode)
		took = append(took, time.Since(t0))
	}
	flood.Wait()
	slices.Sort(took)
	total := 0
	for _, n := range counts {
		total += n
	}
	t.Logf("%d login tries in %v (by status: %v), %d of them cost a password check; others' requests: median %v, 99%% %v of %d",
		total, lasts, counts, slow.count(), took[len(took)/2], took[len(took)*99/100], len(took))
	require.Greater(t, total, rate, "there was a flood")
	require.LessOrEqual(t, slow.count(), 20)
	require.Less(t, took[len(took)/2], 50*time.Millisecond)
}

// slowLogin checks passwords at their real price.
type slowLogin struct {
	Queue
	mu sync.Mutex
	n  int
}

func (s *slowLogin) Login(context.Context, Credentials) (Session, error) {
	s.mu.Lock() // one at a time, as the leader does
	defer s.mu.Unlock()
	s.n++
	authz.Account{}.CheckPassword("wrong")
	return Session{}, authz.ErrPassword
}

func (s *slowLogin) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// awayListener has its connections come from elsewhere, one address for each of
// loopback.
type awayListener struct{ net.Listener }

func (l awayListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil, errors.New("no TCP")
	}
	return awayConn{c, &net.TCPAddr{IP: net.IPv4(192, 0, 2, tcp.IP.To4()[3]), Port: tcp.Port}}, nil
}

type awayConn struct {
	net.Conn
	remote net.Addr
}

func (c awayConn) RemoteAddr() net.Addr { return c.remote }

// TestAPeerPassesOnSoMuch: a machine whose limits do not hold meets the leader's.
func TestAPeerPassesOnSoMuch(t *testing.T) {
	_, ms := newFarm(t, 3, Config{Requests: 2, Logins: 1})
	ask := func(m *machine) error {
		_, err := (&remoteQueue{m.Server, ms[0].host.ID(), caller{token: "ann"}}).principal(t.Context())
		return err
	}
	refused := 0
	for range 4 * peerShare * 2 {
		if err := ask(ms[1]); err != nil {
			require.Equal(t, CodeTooMany, MapError(err).Code)
			refused++
		}
	}
	require.Positive(t, refused)
	require.NoError(t, ask(ms[2]), "another is not concerned")

	// So it does with passwords, which it need not have counted.
	login := func() int {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+ms[0].host.ID().String()+"/v1/auth/login", strings.NewReader(`{"username":"ann","password":"wrong"}`))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(clientHeader, "198.51.100.7") // another one every time would be as good
		resp, err := ms[2].Server.farm.RoundTrip(r)
		require.NoError(t, err)
		resp.Body.Close()
		return resp.StatusCode
	}
	for range peerShare {
		require.Equal(t, 401, login())
	}
	require.Equal(t, 429, login())
}
