package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// shelf is a peer that keeps what it is sent, and gives receipts for it.
type shelf struct {
	mu    sync.Mutex
	files map[string]string // by receipt
	last  map[string]string // what the latest upload came to, by path
	bytes int               // that the latest upload sent
	tries int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries++
	var receipts, lacks []string
	s.last, s.bytes = map[string]string{}, 0
	t := tar.NewReader(r.Body)
	for {
		h, err := t.Next()
		if err != nil {
			break
		}
		receipt := h.PAXRecords[httpapi.ReceiptRecord]
		if receipt == "" {
			data, err := io.ReadAll(t)
			if err != nil {
				return
			}
			s.bytes += len(data)
			receipt = fmt.Sprintf("receipt for %q", data)
			s.files[receipt] = string(data)
		}
		data, ok := s.files[receipt]
		if !ok {
			lacks = append(lacks, h.Name)
		}
		s.last[h.Name] = data
		receipts = append(receipts, receipt)
	}
	if lacks != nil {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(httpapi.Problem{Status: 409, Code: httpapi.CodeLacking, Detail: "send them", Lacks: lacks})
		return
	}
	_ = json.NewEncoder(w).Encode(httpapi.Project{Project: "bafyroot", Receipts: receipts})
}

// sender is an artist with a folder of files and a peer.
type sender struct {
	t     *testing.T
	shelf *shelf
	cl    *client
	cli   *cli
	dir   string
	files []render.File
	later time.Duration // by how much the files are older than they are
}

func newSender(t *testing.T) *sender {
	for _, name := range []string{"XDG_CACHE_HOME", "HOME", "LocalAppData"} {
		t.Setenv(name, t.TempDir())
	}
	s := &sender{t: t, shelf: &shelf{files: map[string]string{}}, dir: t.TempDir()}
	server := httptest.NewServer(s.shelf)
	t.Cleanup(server.Close)
	s.cli = &cli{api: server.URL, tokenFile: filepath.Join(s.dir, "token"), out: io.Discard, errOut: io.Discard}
	require.NoError(t, os.WriteFile(s.cli.tokenFile, []byte("secret"), 0o600))
	var err error
	s.cl, err = s.cli.client()
	require.NoError(t, err)
	t.Cleanup(s.cl.http.CloseIdleConnections)
	return s
}

// write makes a file that was last written long ago, or just now.
func (s *sender) write(name, text string, old bool) {
	path := filepath.Join(s.dir, name)
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o600))
	if old {
		long := time.Now().Add(-time.Hour)
		require.NoError(s.t, os.Chtimes(path, long, long))
	}
	f := render.File{Source: path, Path: "files/" + name}
	if !slices.Contains(s.files, f) {
		s.files = append(s.files, f)
	}
}

// send uploads all files and answers how many bytes of them were sent.
func (s *sender) send(rehash bool) int {
	s.t.Helper()
	sent := openSent("peer")
	p, err := pack(s.files, []byte("{}"), sent, rehash)
	require.NoError(s.t, err)
	p.now = func() time.Time { return time.Now().Add(s.later) }
	var project httpapi.Project
	require.NoError(s.t, s.cli.deliver(context.Background(), s.cl, "/", p, &project, &project.Receipts))
	for _, f := range s.files {
		data, err := os.ReadFile(f.Source)
		require.NoError(s.t, err)
		require.Equal(s.t, string(data), s.shelf.last[f.Path], f.Path)
	}
	return s.shelf.bytes - len("{}")
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	s := newSender(t)
	s.write("a.png", "aaaa", true)
	s.write("b.png", "bb", true)
	require.Equal(t, 6, s.send(false))
	if runtime.GOOS != "windows" {
		// The change time of files written now is now: they are not trusted yet.
		require.Equal(t, 6, s.send(false))
	}
	s.later = 2 * settled
	require.Equal(t, 6, s.send(false))
	require.Equal(t, 0, s.send(false), "nothing has changed")
	require.Equal(t, 6, s.send(true), "--rehash")

	// The same size and the same time of writing do not hide a change.
	s.write("a.png", "AAAA", true)
	require.Equal(t, 4, s.send(false))

	// A peer that let something go is sent it, and only it.
	s.send(true)
	s.shelf.files = map[string]string{s.receiptOf("bb"): "bb"}
	s.shelf.tries = 0
	require.Equal(t, 4, s.send(false))
	require.Equal(t, 2, s.shelf.tries)

	// Another peer was sent nothing.
	p, err := pack(s.files, nil, openSent("other"), false)
	require.NoError(t, err)
	n, bytes := p.left()
	require.Equal(t, 2, n)
	require.EqualValues(t, 6, bytes)

	// The index is nobody else's, and a damaged one is as good as none.
	path := openSent("peer").path
	info, err := os.Stat(path)
	require.NoError(t, err)
	if runtime.GOOS != "windows" {
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	require.NoError(t, os.Truncate(path, info.Size()/2))
	require.Equal(t, 6, s.send(false))
	require.Equal(t, 0, s.send(false))
}

func (s *sender) receiptOf(data string) string { return fmt.Sprintf("receipt for %q", data) }

func TestSentFilesAreBounded(t *testing.T) {
	s := newSender(t)
	sent := openSent("peer")
	long := time.Now()
	for i := range maxSent + 10 {
		sent.fresh[fmt.Sprintf("peer /%d", i)] = sentFile{Receipt: "r", Used: int64(i)}
	}
	require.NoError(t, sent.save())
	sent = openSent("peer")
	require.Len(t, sent.files, maxSent)
	require.Empty(t, sent.receipt("/9", stamp{}), "the least recently used went")
	require.Equal(t, "r", sent.receipt("/10", stamp{}))
	require.True(t, stamp{Modified: long.Add(-3 * time.Second).UnixNano()}.settledAt(long))
	require.False(t, stamp{Modified: long.Add(-3 * time.Second).UnixNano(), Changed: long.UnixNano()}.settledAt(long))
	require.False(t, stamp{Modified: long.Add(time.Hour).UnixNano()}.settledAt(long), "a clock that is ahead")
	_ = s
}

func TestFilesThatChangeWhileTheyAreSent(t *testing.T) {
	s := newSender(t)
	for name, change := range map[string]func(path string) error{
		"longer":  func(path string) error { return os.WriteFile(path, []byte("texture!"), 0o600) },
		"shorter": func(path string) error { return os.Truncate(path, 3) },
		"touched": func(path string) error { return os.Chtimes(path, time.Now(), time.Now()) },
	} {
		s.files = nil
		s.write(name, "texture", true)
		p, err := pack(s.files, nil, nil, false)
		require.NoError(t, err)
		require.NoError(t, change(s.files[0].Source))
		require.ErrorContains(t, p.write(io.Discard), name+" was changed while it was being sent", name)
	}
	_, err := pack([]render.File{{Source: s.dir, Path: "a"}}, nil, nil, false)
	require.ErrorContains(t, err, "is not a plain file")
}

func TestNamesThatClash(t *testing.T) {
	files := []render.File{
		{Source: "/art/Tex/wood.png", Path: "files/art/Tex/wood.png"},
		{Source: "/art/Tex/stone.png", Path: "files/art/Tex/stone.png"},
	}
	got, err := distinct(files, "linux")
	require.NoError(t, err)
	require.Equal(t, files, got)

	for other, part := range map[string]string{"/art/tex/moss.png": "tex", "/art/Tex/Wood.png": "Wood.png"} {
		_, err = distinct(append(slices.Clip(files), render.File{Source: other, Path: "files" + other}), "linux")
		require.ErrorContains(t, err, "/art/Tex/wood.png and "+other+" differ only in capital letters")
		require.ErrorContains(t, err, fmt.Sprintf("and %q", part))
	}
	_, err = distinct([]render.File{{Source: "/a", Path: "files/B\u00e4r"}, {Source: "/b", Path: "files/Ba\u0308r"}}, "linux")
	require.ErrorContains(t, err, "how their accents are written")

	// Where the artist's own machine makes no difference there is none to report.
	got, err = distinct([]render.File{
		{Source: `C:\Art\Tex\wood.png`, Path: "files/C/Art/Tex/wood.png"},
		{Source: `C:\art\tex\Wood.png`, Path: "files/C/art/tex/Wood.png"},
		{Source: `C:\art\tex\moss.png`, Path: "files/C/art/tex/moss.png"},
		{Source: `\\server\share\x y ü.png`, Path: "files/UNC/server/share/x y ü.png"},
	}, "windows")
	require.NoError(t, err)
	var paths []string
	for _, f := range got {
		paths = append(paths, f.Path)
	}
	require.Equal(t, "files/C/Art/Tex/wood.png files/C/Art/Tex/moss.png files/UNC/server/share/x y ü.png", strings.Join(paths, " "))
}
