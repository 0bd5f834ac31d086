package httpapi

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// selfSigned is TLS for a listener on this machine, and for its callers.
func selfSigned(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"http/1.1"}}, &tls.Config{RootCAs: pool}
}

// beyond has m answer on an address that other machines reach, too. What it returns is m
// called over HTTPS; addr is that of the listener on this machine.
func beyond(t *testing.T, m *machine, client *tls.Config) (far *machine, addr string) {
	t.Helper()
	l, err := Listen("0.0.0.0:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	addr = fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
	transport := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &machine{Server: m.Server, host: m.host, farm: m.farm, url: "https://" + addr, transport: transport}, addr
}

func TestRemoteSide(t *testing.T) {
	server, client := selfSigned(t)
	f, ms := newFarm(t, 2, Config{TLS: server})
	for _, m := range ms { // the leader, and a peer that forwards
		far, addr := beyond(t, m, client)
		r := far.do(t, "ann", "GET", "/v1/jobs", nil)
		require.Equal(t, 200, r.StatusCode, "%s", r.body)
		require.Equal(t, 1, r.ProtoMajor, "ranges and events know HTTP/1.1")
		require.Equal(t, "127.0.0.1", f.askedFrom().String(), "the leader knows where the caller is")
		require.Equal(t, 401, far.do(t, "", "GET", "/v1/jobs", nil).StatusCode)
		require.Equal(t, 200, far.do(t, "", "GET", "/healthz", nil).StatusCode)

		// What is about this machine's own folders and store is for its own programs.
		for _, rt := range routes() {
			if rt.id == "events" {
				continue
			}
			got := far.do(t, "root", rt.Method, someplace(rt), nil)
			switch rt.place {
			case here:
				require.Contains(t, got.problem(t).Detail, "ask there, or ask the peer of your own machine", rt.id)
				require.Equal(t, 403, got.StatusCode, rt.id)
			case internal:
				require.Equal(t, 404, got.StatusCode, rt.id)
			default:
				require.NotContains(t, []int{401, 403, 405}, got.StatusCode, rt.id)
			}
		}
		p := far.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Output: "/etc"}).problem(t)
		require.Equal(t, CodeForbidden, p.Code)
		require.Contains(t, p.Detail, "vizpeer job frames ID --output DIR")
		require.Equal(t, 201, far.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}).StatusCode)
		routes := far.do(t, "", "GET", "/nowhere", nil).problem(t).Routes
		require.Contains(t, routes, "GET /v1/jobs")
		require.NotContains(t, routes, "POST /v1/blobs/gc")

		for origin, ok := range map[string]bool{"https://" + addr: true, "http://" + addr: false, "https://evil.example": false, "null": false} {
			require.Equal(t, ok, far.do(t, "ann", "GET", "/v1/jobs", nil, "Origin", origin).StatusCode == 200, origin)
		}

		// Ranges and events, as on loopback.
		part := far.do(t, "ann", "GET", "/v1/jobs/jann/frames/1", nil, "Range", "bytes=0-2")
		require.Equal(t, 206, part.StatusCode)
		require.Equal(t, picture[:3], string(part.body))
		f.mu.Lock()
		n := len(f.subs)
		f.mu.Unlock()
		events := far.open(t, "ann", "GET", "/v1/events", nil)
		told, _ := f.follower(t, n+1)
		told <- Event{ID: 7, Type: lease.JobStarted, Job: "jann"}
		line, err := bufio.NewReader(events.Body).ReadString('\n')
		require.NoError(t, err)
		require.NotEmpty(t, line)
		require.NoError(t, events.Body.Close())

		// Programs of this machine find the same port as on loopback.
		near := &machine{Server: m.Server, url: "http://" + addr}
		require.Equal(t, 201, near.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Output: "/out"}).StatusCode)
		require.Equal(t, 403, near.do(t, "ann", "GET", "/v1/jobs", nil, "Host", "evil.example").StatusCode)
	}
	for _, s := range f.submitted() {
		require.Contains(t, []lease.Output{{}, {Peer: s.Submitter, Dir: "/out"}}, s.Output)
	}
}

func TestProxies(t *testing.T) {
	server, client := selfSigned(t)
	f, ms := newFarm(t, 2, Config{TLS: server, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/24")}})
	far, addr := beyond(t, ms[1], client)
	for said, is := range map[string]string{
		"192.0.2.9":                    "192.0.2.9",
		"6.6.6.6, 192.0.2.9":           "192.0.2.9",
		"6.6.6.6, 192.0.2.9, 10.0.0.3": "192.0.2.9",
		"10.0.0.8, 10.0.0.3":           "10.0.0.8",
		"192.0.2.9, rubbish":           "0.0.0.0",
		"rubbish, 10.0.0.3":            "10.0.0.3",
		"::ffff:192.0.2.9":             "192.0.2.9",
		"2001:db8::1":                  "2001:db8::1",
		"fe80::1%lo":                   "0.0.0.0",
		"192.0.2.9:1234":               "0.0.0.0", // as some proxies write it: nobody knows, and it is not this machine
		"":                             "0.0.0.0",
	} {
		require.Equal(t, 200, far.do(t, "ann", "GET", "/v1/farm", nil, "X-Forwarded-For", said).StatusCode)
		require.Equal(t, is, f.askedFrom().String(), said)
	}
	far.do(t, "ann", "GET", "/v1/farm", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-For", "192.0.2.7", "Vizpeer-Client", "7.7.7.7")
	require.Equal(t, "192.0.2.7", f.askedFrom().String(), "the last line is the nearest proxy's")

	// A proxy on this machine speaks for others: they are no programs of this machine.
	near := &machine{Server: ms[1].Server, url: "http://" + addr}
	for _, m := range []*machine{near, ms[1]} {
		r := m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Output: "/etc"}, "X-Forwarded-For", "192.0.2.9")
		require.Equal(t, 403, r.StatusCode)
		require.Equal(t, 200, m.do(t, "ann", "GET", "/v1/farm", nil, "X-Forwarded-For", "192.0.2.9", "Host", "farm.example").StatusCode)
		require.Equal(t, "192.0.2.9", f.askedFrom().String())
	}

	// Nobody else is believed.
	f, ms = newFarm(t, 2, Config{TLS: server})
	far, _ = beyond(t, ms[1], client)
	require.Equal(t, 200, far.do(t, "ann", "GET", "/v1/farm", nil, "X-Forwarded-For", "192.0.2.9", "Vizpeer-Client", "7.7.7.7").StatusCode)
	require.Equal(t, "127.0.0.1", f.askedFrom().String())
	r := ms[1].do(t, "ann", "GET", "/v1/farm", nil, "X-Forwarded-For", "192.0.2.9")
	require.Contains(t, r.problem(t).Detail, "--trusted-proxy")
}

// A machine's key is for its own programs: it is of no use elsewhere, not even against
// that machine.
func TestMachinesKeyStaysAtHome(t *testing.T) {
	at := func(from, own string) netip.Addr {
		ctx := context.WithValue(t.Context(), remoteKey{}, net.Addr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))))
		ctx = context.WithValue(ctx, http.LocalAddrContextKey, net.Addr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(own))))
		r, err := http.NewRequestWithContext(ctx, "GET", "/", nil)
		require.NoError(t, err)
		return (&Server{}).findClient(remote, r)
	}
	h := newHost(t)
	c := caller{Principal: authz.Principal{Machine: authz.PeerID(h.ID().String())}, peer: h.ID()}
	for _, try := range []struct {
		remote, own string
		ok          bool
	}{
		{"127.0.0.1:1", "127.0.0.1:8787", true},
		{"[::1]:1", "[::1]:8787", true},
		{"10.0.0.7:1", "10.0.0.7:8787", true}, // this machine by its own address
		{"10.0.0.8:1", "10.0.0.7:8787", false},
	} {
		c.addr = at(try.remote, try.own)
		require.Equal(t, try.ok, c.atHome() == nil, "%v is %v", try, c.addr)
	}
	c.addr, c.peer = netip.Addr{}, newHost(t).ID()
	require.Error(t, c.atHome(), "it came to another peer")
}

func TestNoCertificateNoListener(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	l, err := Listen("0.0.0.0:0")
	require.NoError(t, err)
	require.ErrorContains(t, ms[0].Serve(t.Context(), l), "no certificate for HTTPS")
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

// endsSoon reads a connection until the server ends it, and answers what came.
func endsSoon(t *testing.T, c net.Conn) string {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	data, err := io.ReadAll(c)
	var slow net.Error
	require.False(t, errors.As(err, &slow) && slow.Timeout(), "the server waits for ever; it said %q", data)
	return string(data)
}

func TestHostileCallers(t *testing.T) {
	const wait = 300 * time.Millisecond
	server, client := selfSigned(t)
	_, ms := newFarm(t, 1, Config{TLS: server, HeaderWait: wait, BodyWait: wait, Stall: wait})
	_, addr := beyond(t, ms[0], client)
	plain := func(t *testing.T) net.Conn {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	secure := func(t *testing.T) net.Conn {
		c := plain(t)
		cfg := client.Clone()
		cfg.ServerName = "localhost"
		return tls.Client(c, cfg)
	}
	post := "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\nContent-Type: application/json\r\n"
	for name, dial := range map[string]func(*testing.T) net.Conn{"https": secure, "http": plain} {
		say := func(t *testing.T, text string) net.Conn {
			c := dial(t)
			_, err := io.WriteString(c, text)
			require.NoError(t, err)
			return c
		}
		t.Run(name+" slow header", func(t *testing.T) {
			c := say(t, "GET /healthz HTTP/1.1\r\n")
			go func() {
				for { // a byte now and then gives no more time
					if _, err := io.WriteString(c, "X"); err != nil {
						return
					}
					time.Sleep(wait / 10)
				}
			}()
			endsSoon(t, c)
		})
		t.Run(name+" slow body", func(t *testing.T) {
			require.Contains(t, endsSoon(t, say(t, post+"Content-Length: 100\r\n\r\n{")), "408 Request Timeout")
		})
		t.Run(name+" slow upload", func(t *testing.T) {
			c := say(t, "POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\nContent-Type: application/x-tar\r\nContent-Length: 100000\r\n\r\nabc")
			require.Contains(t, endsSoon(t, c), "408 Request Timeout")
		})
		t.Run(name+" endless body", func(t *testing.T) {
			c := say(t, post+"Transfer-Encoding: chunked\r\n\r\n")
			go func() {
				for chunk := fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat("a", 0x10000)); ; {
					if _, err := io.WriteString(c, chunk); err != nil {
						return
					}
				}
			}()
			got, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, 413, got.StatusCode)
		})
		t.Run(name+" large header", func(t *testing.T) {
			c := dial(t)
			go io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "+strings.Repeat("a", 100<<10)+"\r\n\r\n")
			got, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			require.Equal(t, 431, got.StatusCode)
		})
		t.Run(name+" never reads", func(t *testing.T) {
			c := dial(t)
			wrote := make(chan error, 1)
			go func() {
				for { // each is answered with many times as much
					if _, err := io.WriteString(c, "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
						wrote <- err
						return
					}
				}
			}()
			select {
			case err := <-wrote:
				require.NotErrorIs(t, err, net.ErrClosed, "it was not the caller who hung up")
			case <-time.After(20 * time.Second):
				t.Fatal("the server waits for ever")
			}
		})
	}
	t.Run("silence", func(t *testing.T) { require.Empty(t, endsSoon(t, plain(t))) })
	t.Run("handshake that stalls", func(t *testing.T) {
		c := plain(t)
		_, err := c.Write([]byte{tlsHandshake, 3, 1})
		require.NoError(t, err)
		endsSoon(t, c)
	})
}

// farConn is a connection from another machine.
type farConn struct {
	net.Conn
	from   string
	closed chan struct{}
}

func (c *farConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}

func (c *farConn) Close() error {
	close(c.closed)
	return c.Conn.Close()
}

func TestConnectionsAreBounded(t *testing.T) {
	limit := newConnLimit(5, 2, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.99") })
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := newSorter(l, limit, time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := s.secure.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer s.secure.Close()
	// come answers the connection as it was accepted, or nil where it was refused.
	come := func(from string) net.Conn {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		c := &farConn{Conn: here, from: from, closed: make(chan struct{})}
		l.conns <- c
		select {
		case got := <-accepted:
			return got
		case <-c.closed:
			return nil
		}
	}
	first := come("10.0.0.1:1")
	require.NotNil(t, first)
	second := come("10.0.0.1:2")
	require.NotNil(t, second)
	third := come("10.0.0.1:3")
	require.Nil(t, third, "one address has two")
	require.NoError(t, first.Close())
	third = come("10.0.0.1:3")
	require.NotNil(t, third)

	six := come("[2001:db8::1]:1")
	require.NotNil(t, six)
	six = come("[2001:db8::2]:1")
	require.NotNil(t, six)
	six = come("[2001:db8::3]:1")
	require.Nil(t, six, "a network of IPv6 is one machine")
	proxy := come("10.0.0.99:1")
	require.NotNil(t, proxy)
	last := come("10.0.0.2:1")
	require.Nil(t, last, "all together have five")
	cancel()
	require.NoError(t, <-ended)
}

func TestMetrics(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	for _, m := range ms {
		require.Equal(t, 200, m.do(t, "vic", "GET", "/v1/jobs", nil).StatusCode)
		m.do(t, "vic", "GET", "/v1/jobs/"+strings.Repeat("x", 40), nil)
		m.do(t, "", "GET", "/no/such/path", nil)
		m.do(t, "", "BREW", "/healthz", nil)
		require.Equal(t, 401, m.do(t, "", "GET", "/metrics", nil).StatusCode)
		require.Equal(t, 403, m.do(t, "box", "GET", "/metrics", nil).StatusCode)
		r := m.do(t, "vic", "GET", "/metrics", nil)
		require.Equal(t, 200, r.StatusCode)
		require.Contains(t, r.Header.Get("Content-Type"), "text/plain; version=0.0.4")
		text := string(r.body)
		require.Contains(t, text, `vizpeer_http_request_duration_seconds_count{code="200",route="GET /v1/jobs",side="loopback"} 1`)
		require.Contains(t, text, `vizpeer_http_request_duration_seconds_count{code="404",route="GET /v1/jobs/{id}",side="loopback"} 1`)
		require.Contains(t, text, `code="404",route="none"`)
		require.NotContains(t, text, "no/such")
		require.NotContains(t, text, "xxxx")
		require.NotContains(t, text, "BREW")
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		require.NoError(t, err)
		require.Empty(t, problems)
	}
	require.Contains(t, string(ms[0].do(t, "vic", "GET", "/metrics", nil).body), `route="GET /v1/jobs",side="stream"`)
}
