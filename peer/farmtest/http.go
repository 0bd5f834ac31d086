package farmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"
)

// pipes is the listener of a machine's HTTP API: connections in memory, which a bubble
// can wait for.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

// Addr is one that only the machine's own programs reach.
func (l *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8787} }

// pipe is an end of a connection that says, as the API wants to know, where it comes from.
type pipe struct{ net.Conn }

func (pipe) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000} }

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- pipe{there}:
		return here, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Token is what the machine's token file holds.
func (m *Member) Token() string {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "token"))
	require.NoError(m.farm.t, err)
	return strings.TrimSpace(string(b))
}

// Call makes a request to the machine's HTTP API, as a program there does: in is the body,
// nil for none, and the answer is put into out, unless that is nil. header holds name,
// value pairs. It returns the status.
func (m *Member) Call(token, method, path string, in, out any, header ...string) int {
	m.farm.t.Helper()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		require.NoError(m.farm.t, err)
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(m.farm.t.Context(), method, "http://127.0.0.1:8787"+path, body)
	require.NoError(m.farm.t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DialContext: m.api.dial, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	require.NoError(m.farm.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(m.farm.t, err)
	if out != nil {
		require.NoError(m.farm.t, json.Unmarshal(data, out), "%s %s: %s", method, path, data)
	}
	return resp.StatusCode
}
