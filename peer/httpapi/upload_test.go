package httpapi

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/peer/render"
)

// entry is one header of a tar and its bytes.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}

func special(kind byte, name string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: "/etc/passwd"}, ""}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func (m *machine) upload(t *testing.T, body io.Reader, header ...string) reply {
	t.Helper()
	return m.do(t, "ann", "POST", "/v1/projects", body, append([]string{"Content-Type", tarType}, header...)...)
}

func TestUpload(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	long := "files/" + strings.Repeat("long/", 60) + "shot.blend" // needs a PAX header
	data := pack(t,
		entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""},
		special(tar.TypeDir, "./"), special(tar.TypeDir, "./files/"),
		file("./"+render.ManifestName, "{}"), file(long, "BLENDER"), file("files/Ünï/😀.png", ""))
	r := m.upload(t, bytes.NewReader(data))
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.JSONEq(t, `{"project":"`+someCID+`","files":3,"size":9,"new_bytes":0,"missing":[]}`, string(r.body))
	require.Equal(t, map[string]string{render.ManifestName: "{}", long: "BLENDER", "files/Ünï/😀.png": ""}, m.files)

	// What comes after the end is read, so that the connection can be used again.
	r = m.upload(t, bytes.NewReader(append(data, make([]byte, 600<<10)...)))
	require.Equal(t, 200, r.StatusCode)
	require.False(t, r.Close)
}

func TestHostileUploads(t *testing.T) {
	_, ms := newFarm(t, 1, Config{MaxEntries: 20, MaxProject: 64 << 10})
	m := ms[0]
	sparse := file("files/a", "x")
	sparse.PAXRecords = map[string]string{"GNU.sparse.major": "1"}
	many := make([]entry, 21)
	for i := range many {
		many[i] = special(tar.TypeDir, fmt.Sprintf("d%d/", i))
	}
	whole := pack(t, file("files/a", strings.Repeat("a", 4000)))
	for name, tc := range map[string]struct {
		body   io.Reader
		status int
		detail string
	}{
		"parent":               {bytes.NewReader(pack(t, file("../a", ""))), 422, "path not allowed"},
		"parent inside":        {bytes.NewReader(pack(t, file("files/../../a", ""))), 422, "path not allowed"},
		"hidden parent":        {bytes.NewReader(pack(t, file("./../a", ""))), 422, "path not allowed"},
		"parent folder":        {bytes.NewReader(pack(t, special(tar.TypeDir, "../a/"))), 422, "path not allowed"},
		"absolute":             {bytes.NewReader(pack(t, file("/etc/passwd", ""))), 422, "is absolute"},
		"dotted absolute":      {bytes.NewReader(pack(t, file(".//etc/passwd", ""))), 422, "is absolute"},
		"backslash":            {bytes.NewReader(pack(t, file(`files\..\..\a`, ""))), 422, "path not allowed"},
		"device name":          {bytes.NewReader(pack(t, file("files/NUL.png", ""))), 422, "device name"},
		"no name":              {bytes.NewReader(pack(t, file("", ""))), 422, "path not allowed"},
		"symlink":              {bytes.NewReader(pack(t, special(tar.TypeSymlink, "files/a"))), 422, "neither a plain file nor a folder"},
		"hard link":            {bytes.NewReader(pack(t, special(tar.TypeLink, "files/a"))), 422, "neither a plain file nor a folder"},
		"device":               {bytes.NewReader(pack(t, special(tar.TypeChar, "files/a"))), 422, "neither a plain file nor a folder"},
		"block device":         {bytes.NewReader(pack(t, special(tar.TypeBlock, "files/a"))), 422, "neither a plain file nor a folder"},
		"fifo":                 {bytes.NewReader(pack(t, special(tar.TypeFifo, "files/a"))), 422, "neither a plain file nor a folder"},
		"too many entries":     {bytes.NewReader(pack(t, many...)), 413, "more than the 20 files and folders"},
		"too large":            {bytes.NewReader(pack(t, file("a", strings.Repeat("a", 64<<10)))), 413, "larger than the 65536 bytes"},
		"too large, no length": {io.MultiReader(bytes.NewReader(pack(t, file("a", strings.Repeat("a", 64<<10))))), 413, "larger than the 65536 bytes"},
		"cut in a file":        {bytes.NewReader(whole[:2000]), 422, "ended before all of it had come"},
		"cut in a header":      {bytes.NewReader(whole[:300]), 422, "ended before all of it had come"},
		"no tar":               {strings.NewReader(strings.Repeat("PK\x03\x04", 1000)), 422, "this is not a tar"},
	} {
		r := m.upload(t, tc.body)
		require.Equal(t, tc.status, r.StatusCode, "%s: %s", name, r.body)
		require.Contains(t, r.problem(t).Detail, tc.detail, name)
		require.Nil(t, m.files, name)
	}
	r := m.do(t, "ann", "POST", "/v1/projects", bytes.NewReader(whole), "Content-Type", "application/zip")
	require.Equal(t, 415, r.StatusCode)

	// GNU's own sparse format: one header that claims what it does not hold.
	gnu := pack(t, file("files/a", ""))
	gnu[156] = tar.TypeGNUSparse
	for i := range 8 {
		gnu[148+i] = ' '
	}
	sum := 0
	for _, b := range gnu[:512] {
		sum += int(b)
	}
	copy(gnu[148:], fmt.Sprintf("%06o\x00 ", sum))
	require.Equal(t, 422, m.upload(t, bytes.NewReader(gnu)).StatusCode)
	_, err := projectFile(&sparse.Header)
	require.ErrorContains(t, err, "sparse")
}

// As many entries as allowed are taken and one more is not. The tar has no end.
func TestTooManyEntries(t *testing.T) {
	s := New(Config{}, nil, nil, nil, newHost(t))
	require.Equal(t, 1_000_000, s.cfg.MaxEntries)
	require.Equal(t, int64(256<<30), s.cfg.MaxProject)
	s.cfg.MaxEntries = 50_000
	header := pack(t, file("files/a", ""))[:512]
	var err error
	files := 0
	for _, err = range (&upload{s, &endless{data: bytes.Repeat(header, 1024)}}).files() {
		if err == nil {
			files++
		}
	}
	require.ErrorIs(t, err, ErrTooLarge)
	require.Equal(t, 50_000, files)
}

// endless repeats its data for ever.
type endless struct {
	data []byte
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.data[e.at:])
	e.at = (e.at + n) % len(e.data)
	return n, nil
}

func TestUploadThatStalls(t *testing.T) {
	inBubble(t, Config{Stall: 50 * time.Millisecond}, func(t *testing.T, m *machine) {
		pr, pw := io.Pipe()
		defer pw.Close()
		go pw.Write(pack(t, file("files/a", strings.Repeat("a", 4000)))[:1000])
		r := m.upload(t, pr)
		require.Equal(t, 408, r.StatusCode)
		require.Contains(t, r.problem(t).Detail, "did not come within 50ms")
	})
}

// An upload may take much longer than the time-out for its silences, and the
// time-out must not look like a caller that left.
func TestSlowUpload(t *testing.T) {
	inBubble(t, Config{Stall: 200 * time.Millisecond}, func(t *testing.T, m *machine) {
		data := pack(t, file("files/a", strings.Repeat("a", 4000)))
		began := time.Now()
		r := m.upload(t, &slowReader{data, 199 * time.Millisecond})
		require.Equal(t, 200, r.StatusCode, "%s", r.body)
		require.Greater(t, time.Since(began), 2*time.Second)
	})
}

// inBubble runs a test of one machine on a simulated clock, over pipes.
func inBubble(t *testing.T, cfg Config, test func(*testing.T, *machine)) {
	h := newHost(t) // outside: nothing goes over it
	synctest.Test(t, func(t *testing.T) {
		m := &machine{host: h, farm: &farm{leader: h.ID()}, tokens: farmTokens, url: "http://127.0.0.1"}
		m.Server = New(cfg, m, m.farm, m, h)
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		m.transport = &http.Transport{DialContext: l.dial}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- m.serve(ctx, l, m.Server.loopback) }()
		defer func() {
			m.transport.CloseIdleConnections()
			cancel()
			require.NoError(t, <-ended)
		}()
		test(t, m)
	})
}

// pipes is a listener whose connections are pipes.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// slowReader gives a piece whenever its timer fires.
type slowReader struct {
	data  []byte
	every time.Duration
}

func (s *slowReader) Read(p []byte) (int, error) {
	<-time.After(s.every)
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 512)], s.data)
	s.data = s.data[n:]
	return n, nil
}

func TestUploadCutByItsSender(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	c, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
	require.NoError(t, err)
	data := pack(t, file("files/a", strings.Repeat("a", 4000)))
	fmt.Fprintf(c, "POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", tarType, len(data))
	c.Write(data[:1024])
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Contains(t, string(answer), " 422 ")
	require.Nil(t, m.files)
}

func FuzzFiles(f *testing.F) {
	f.Add(pack(f, file(render.ManifestName, "{}"), special(tar.TypeDir, "files/"), file("files/a", "abc")))
	f.Add(pack(f, file("../a", "x")))
	f.Add(pack(f, special(tar.TypeSymlink, "a")))
	f.Add(pack(f, file(strings.Repeat("n/", 200)+"a", "x")))
	f.Add([]byte("not a tar"))
	s := &Server{cfg: Config{MaxEntries: 100, MaxProject: 1 << 20}}
	f.Fuzz(func(t *testing.T, data []byte) {
		var total int64
		n := 0
		failed := false
		for file, err := range (&upload{s, bytes.NewReader(data)}).files() {
			if failed {
				t.Fatal("something came after the error")
			}
			if err != nil {
				failed = true
				continue
			}
			if err := blobs.CheckPath(file.Path); err != nil {
				t.Fatal(err)
			}
			n++
			size, err := io.Copy(io.Discard, file.Body)
			total += size
			if err == nil && size != file.Size {
				t.Fatalf("%q has %d bytes and claims %d", file.Path, size, file.Size)
			}
		}
		if n > 100 || total > 1<<20 {
			t.Fatalf("%d files with %d bytes", n, total)
		}
	})
}

// BenchmarkUpload is what the API itself costs: the importer only counts.
func BenchmarkUpload(b *testing.B) {
	s := &Server{cfg: Config{MaxEntries: 1_000_000, MaxProject: 256 << 30}}
	data := pack(b, file("files/a", strings.Repeat("a", 64<<20)))
	b.SetBytes(int64(len(data)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for f, err := range (&upload{s, newPatientBody(r.Body, http.NewResponseController(w), time.Minute)}).files() {
			if _, cerr := io.Copy(io.Discard, f.Body); err != nil || cerr != nil {
				w.WriteHeader(500)
			}
		}
	}))
	defer srv.Close()
	for b.Loop() {
		resp, err := http.Post(srv.URL, tarType, bytes.NewReader(data))
		if err != nil || resp.StatusCode != 200 {
			b.Fatal(resp, err)
		}
		resp.Body.Close()
	}
}
