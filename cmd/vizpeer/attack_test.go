package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// These tests attack peers that run as they do for people. What strangers and members
// try over libp2p is in package peer (TestWhoMayWhat, TestGossipIsChecked), a flood of
// passwords in package httpapi (TestLoginFlood), hostile .blend files in package render
// (TestHostileFiles), and what decoders get to read is made up by `make fuzz`.

// A ticket that was used admits nobody else, and a session that was ended nobody at all.
func TestReplays(t *testing.T) {
	f := startRightsFarm(t)
	desk := filepath.Join(f.dir, "desk")
	run := func(into any, stdin string, args ...string) (string, error) {
		t.Helper()
		cmd := exec.Command(f.program, append(args, "--json")...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		if err == nil && into != nil {
			require.NoError(t, json.Unmarshal(out, into))
		}
		if exit, ok := err.(*exec.ExitError); ok {
			return string(exit.Stderr), err
		}
		return string(out), err
	}
	var ticket httpapi.Invited
	_, err := run(&ticket, "", "invite", "--role", "operator", "--data-dir", desk)
	require.NoError(t, err)
	_, err = run(nil, ticket.Ticket, "join", "-", "--name", "box", "--data-dir", filepath.Join(f.dir, "box"))
	require.NoError(t, err)
	require.NoError(t, f.farm.up(t.Context(), "box", nil))
	said, err := run(nil, ticket.Ticket, "join", "-", "--name", "thief", "--data-dir", filepath.Join(f.dir, "thief"))
	require.Error(t, err)
	require.Contains(t, said, "used up")

	var user httpapi.User
	_, err = run(&user, "", "user", "add", "eva", "--role", "operator", "--data-dir", desk)
	require.NoError(t, err)
	var s httpapi.Session
	f.must(rightsCaller{}, http.MethodPost, "/v1/auth/login", fmt.Appendf(nil, `{"username": "eva", "password": %q}`, user.Password), &s)
	f.must(rightsCaller{token: s.Token}, http.MethodPost, "/v1/auth/password", fmt.Appendf(nil, `{"old": %q, "new": "a password of eva's own"}`, user.Password), &s)
	eva, there := rightsCaller{token: s.Token}, *f
	there.api = f.farm.peers[1].api
	for _, at := range []*rightsFarm{f, &there} {
		require.Equal(t, http.StatusOK, at.ask(eva, http.MethodGet, "/v1/auth/whoami", nil).status)
	}
	require.Equal(t, http.StatusOK, there.ask(eva, http.MethodPost, "/v1/auth/logout", nil).status)
	began := time.Now()
	for _, at := range []*rightsFarm{f, &there} {
		require.Eventually(t, func() bool {
			return at.ask(eva, http.MethodGet, "/v1/auth/whoami", nil).status == http.StatusUnauthorized
		}, 5*time.Second, 20*time.Millisecond, "the session goes on after logout")
	}
	t.Logf("refused by both machines %s after logout", time.Since(began).Round(time.Millisecond))
	// One that is made up of it is no better.
	for i := range 8 {
		at := len("vzs_") + i*(len(s.Token)-len("vzs_"))/8
		forged := s.Token[:at] + string('a'+(s.Token[at]-'a'+1)%26) + s.Token[at+1:]
		require.Equal(t, http.StatusUnauthorized, f.ask(rightsCaller{token: forged}, http.MethodGet, "/v1/auth/whoami", nil).status)
	}
}

// Content is for those who have a right to it, whatever CID they ask for.
func TestBlocksCannotBeProbed(t *testing.T) {
	f := startRightsFarm(t)
	ann := f.caller("ann")
	var job httpapi.Job
	f.must(ann, http.MethodGet, "/v1/jobs/"+string(f.job), nil, &job)
	var blob httpapi.Blob
	f.must(ann, http.MethodPost, "/v1/blobs", projectTar(t, "of ann's own"), &blob)
	for _, route := range []struct{ method, path string }{{"GET", ""}, {"POST", "/fetch"}, {"POST", "/pin"}, {"POST", "/unpin"}} {
		for _, who := range []string{"bob", "viewer"} {
			none := f.ask(f.caller(who), route.method, "/v1/blobs/"+rightsParams["{cid}"]+route.path, nil)
			for _, cid := range []string{job.Project, blob.CID} {
				there := f.ask(f.caller(who), route.method, "/v1/blobs/"+cid+route.path, nil)
				require.Equal(t, none.status, there.status, "%s as %s: %s", route.path, who, there.body)
				require.Equal(t, strings.ReplaceAll(none.body, rightsParams["{cid}"], cid), there.body)
			}
		}
	}
	got := f.ask(f.caller("bob"), http.MethodPost, "/v1/jobs", fmt.Appendf(nil, `{"project": %q, "frames": "1"}`, job.Project))
	require.GreaterOrEqual(t, got.status, 400, "a job about another's project: %s", got.body)
	require.Equal(t, http.StatusOK, f.ask(ann, http.MethodGet, "/v1/blobs/"+blob.CID, nil).status)
}

// An upload cannot leave its folder, unpack itself, or fill the disk.
func TestHostileUploadsToAPeer(t *testing.T) {
	t.Setenv("VIZPEER_CACHE_QUOTA", "64 MiB")
	f := startRightsFarm(t)
	ann := f.caller("ann")
	before := f.size("desk") // of the database too, which makes its files beforehand
	healthy := func() {
		t.Helper()
		require.Equal(t, http.StatusOK, f.ask(ann, http.MethodGet, "/v1/jobs/"+string(f.job), nil).status)
	}

	// A thousand times its size, if anybody unpacked it.
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := z.Write(bytes.Repeat(projectTar(t, strings.Repeat("0", 8<<20)), 2))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.Less(t, bomb.Len(), 1<<20)
	for _, header := range []string{"", "Content-Encoding"} {
		status, body := f.upload(ann, &bomb, header, "gzip")
		require.Equal(t, http.StatusUnprocessableEntity, status, body)
	}
	healthy()

	// More than the store may hold, and no end to it.
	status, body := f.upload(ann, endless("files/a", 1<<40), "", "")
	require.Contains(t, []int{http.StatusInsufficientStorage, http.StatusRequestEntityTooLarge}, status, body)
	healthy()
	grown := f.size("desk") - before
	t.Logf("the peer's folder grew by %d MiB", grown>>20)
	require.Less(t, grown, int64(64<<20), "a store keeps to its quota")
	status, body = f.upload(ann, bytes.NewReader(projectTar(t, "small")), "", "")
	require.Equal(t, http.StatusOK, status, "there is room again: %s", body)
}

// A million and one entries are one too many, and take no memory to speak of.
func TestMillionEntries(t *testing.T) {
	if testing.Short() || runtime.GOOS != "linux" {
		t.Skip("sends half a gigabyte, and reads /proc")
	}
	f := startRightsFarm(t)
	in, out := io.Pipe()
	go func() {
		w := tar.NewWriter(out)
		for i := range 1_000_002 {
			if w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("files/%07d/", i), Mode: 0o700}) != nil {
				break
			}
		}
		out.CloseWithError(w.Close())
	}()
	status, body := f.upload(f.caller("ann"), in, "", "")
	in.Close()
	require.Equal(t, http.StatusRequestEntityTooLarge, status, body)
	require.Contains(t, body, "1000000 files and folders")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.farm.peers[0].cmd.Process.Pid))
	require.NoError(t, err)
	peak, err := strconv.Atoi(string(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)[1]))
	require.NoError(t, err)
	t.Logf("the peer's memory was %d MiB at most", peak>>10)
	require.Less(t, peak>>10, 600)
}

// Names and folders that lead elsewhere are refused, or are words and nothing more.
func TestNamesLeadNowhere(t *testing.T) {
	f := startRightsFarm(t)
	ann := f.caller("ann")
	var job httpapi.Job
	f.must(ann, http.MethodGet, "/v1/jobs/"+string(f.job), nil, &job)
	for field, bad := range map[string][]string{
		"output":  {"../out", "out", "./out", "\u0000/tmp", "/tmp/\u0000", "~/out"},
		"project": {"../../etc/passwd", "bafkrei/../../x", "", strings.Repeat("b", 4096)},
		"frames":  {"../1", "1-99999999999", "9-1", strings.Repeat("1,", 100_000)},
		"name":    {strings.Repeat("n", 100_000)},
	} {
		for _, value := range bad {
			body := map[string]string{"project": job.Project, "frames": "1"}
			body[field] = value
			text, err := json.Marshal(body)
			require.NoError(t, err)
			got := f.ask(ann, http.MethodPost, "/v1/jobs", text)
			require.Contains(t, []int{400, 404, 413, 422}, got.status, "%s %.60q: %s", field, value, got.body)
		}
	}
	for _, path := range []string{"/v1/jobs/../../etc/passwd", "/v1/jobs/%2e%2e%2f%2e%2e/frames/1", "/v1/blobs/..%2f..%2ftoken", "/v1/jobs/" + string(f.job) + "/frames/..%2f1", "//etc/passwd"} {
		got := f.ask(ann, http.MethodGet, path, nil)
		require.GreaterOrEqual(t, got.status, 300, "%s: %s", path, got.body)
	}
}

// upload sends a tar that may be none. A peer that has seen enough may hang up.
func (f *rightsFarm) upload(c rightsCaller, body io.Reader, header, value string) (status int, answer string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 4*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.api+"/v1/projects", body)
	require.NoError(f.t, err)
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("Content-Type", "application/x-tar")
	if header != "" {
		r.Header.Set(header, value)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(text)
}

// endless is a tar of one file that claims a size and goes on for ever.
func endless(name string, size int64) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatGNU})
	return io.MultiReader(&b, &noise{state: 1})
}

// noise never repeats itself, so that nothing of it is stored once for many.
type noise struct{ state uint64 }

func (n *noise) Read(p []byte) (int, error) {
	for i := range p {
		n.state ^= n.state << 13
		n.state ^= n.state >> 7
		n.state ^= n.state << 17
		p[i] = byte(n.state)
	}
	return len(p), nil
}

// size is what the folder of a peer takes, in bytes.
func (f *rightsFarm) size(name string) (sum int64) {
	f.t.Helper()
	_ = filepath.Walk(filepath.Join(f.dir, name), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
