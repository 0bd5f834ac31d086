package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

var updateRights = flag.Bool("update-rights", false, "write testdata/rights.txt anew, to be read by a person before it is committed")

// caller is somebody of a farm, with the token that says so; nobody has none.
type rightsCaller struct {
	name, token string
}

// rightsFarm is one peer that renders nothing, and somebody of each role.
type rightsFarm struct {
	t       *testing.T
	program string
	dir     string
	farm    *brood
	api     string
	callers []rightsCaller
	job     lease.JobID // ann's
}

func startRightsFarm(t *testing.T) *rightsFarm {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: peers are attacked without the race detector")
	}
	t.Setenv("VIZPEER_NO_WORK", "true")
	program, err := exec.LookPath("vizpeer")
	require.NoError(t, err)
	f := &rightsFarm{t: t, program: program, dir: t.TempDir()}
	data := filepath.Join(f.dir, "desk")
	runTimed(t, program, "init", "--data-dir", data, "--name", "attic", "--machine", "desk", "--json")
	// The test asks more than a person does.
	require.NoError(t, os.WriteFile(filepath.Join(data, configName), []byte("api_rate = 100000\n"), 0o600))
	f.farm = &brood{cli: &cli{errOut: os.Stderr}, data: f.dir, self: func() (string, error) { return program, nil }}
	t.Cleanup(f.farm.stop)
	require.NoError(t, f.farm.up(t.Context(), "desk", nil))
	f.api = f.farm.peers[0].api
	f.callers = []rightsCaller{{"nobody", ""}}
	for _, c := range []struct{ name, role string }{{"viewer", "viewer"}, {"ann", "operator"}, {"bob", "operator"}, {"node", "node"}} {
		f.callers = append(f.callers, rightsCaller{c.name, f.key(c.name, c.role)})
	}
	f.callers = append(f.callers, rightsCaller{"admin", f.tokenOf("desk")})
	f.job = f.submit("ann")
	return f
}

// key makes an API key in a name.
func (f *rightsFarm) key(user, role string) string {
	f.t.Helper()
	var made struct{ Key string }
	out, err := exec.Command(f.program, "key", "create", "--user", user, "--role", role, "--json", "--data-dir", filepath.Join(f.dir, "desk")).Output()
	require.NoError(f.t, err)
	require.NoError(f.t, json.Unmarshal(out, &made))
	require.NotEmpty(f.t, made.Key)
	return made.Key
}

func (f *rightsFarm) tokenOf(name string) string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name, tokenFile))
	require.NoError(f.t, err)
	return strings.TrimSpace(string(b))
}

func (f *rightsFarm) caller(name string) rightsCaller {
	return f.callers[slices.IndexFunc(f.callers, func(c rightsCaller) bool { return c.name == name })]
}

// submit has somebody submit a job that nothing renders.
func (f *rightsFarm) submit(name string) lease.JobID {
	f.t.Helper()
	c := f.caller(name)
	var project httpapi.Project
	f.must(c, http.MethodPost, "/v1/projects", projectTar(f.t, name), &project)
	var sent httpapi.Submitted
	f.must(c, http.MethodPost, "/v1/jobs", []byte(fmt.Sprintf(`{"project": %q, "frames": "1-2"}`, project.Project)), &sent)
	return sent.Job
}

// projectTar is a project whose .blend no Blender could open.
func projectTar(t testing.TB, salt string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, file := range [][2]string{
		{"vizpeer.json", `{"version": 1, "blend": "files/s.blend", "origin": "linux", "complete": true, "scene": {"frame_start": 1, "frame_end": 2, "frame_current": 1}}`},
		{"files/s.blend", "BLENDER-v304" + salt},
	} {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file[0], Size: int64(len(file[1])), Mode: 0o600}))
		_, err := io.WriteString(w, file[1])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// reply is an answer of the API; of one that never ends, its beginning.
type reply struct {
	status int
	body   string
	took   time.Duration // until its header was there
}

// ask makes a request, again and again where the peer says that it is asked too much.
func (f *rightsFarm) ask(c rightsCaller, method, path string, body []byte) reply {
	f.t.Helper()
	for {
		got, after := f.try(c, method, path, body)
		if got.status != http.StatusTooManyRequests {
			return got
		}
		select {
		case <-time.After(after):
		case <-f.t.Context().Done():
			return got
		}
	}
}

func (f *rightsFarm) try(c rightsCaller, method, path string, body []byte) (_ reply, after time.Duration) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, f.api+path, bytes.NewReader(body))
	require.NoError(f.t, err)
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if kind := "application/json"; len(body) > 0 {
		if body[0] != '{' {
			kind = "application/x-tar"
		}
		r.Header.Set("Content-Type", kind)
	}
	began := time.Now()
	resp, err := http.DefaultClient.Do(r)
	require.NoError(f.t, err, "%s %s", method, path)
	defer resp.Body.Close()
	out := reply{status: resp.StatusCode, took: time.Since(began)}
	if resp.StatusCode == http.StatusTooManyRequests {
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		require.NoError(f.t, err)
		after = time.Duration(seconds) * time.Second
	}
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		require.NoError(f.t, err)
		out.body = string(text)
	}
	return out, after
}

func (f *rightsFarm) must(c rightsCaller, method, path string, body []byte, into any) {
	f.t.Helper()
	got := f.ask(c, method, path, body)
	require.Less(f.t, got.status, 300, "%s %s: %s", method, path, got.body)
	require.NoError(f.t, json.Unmarshal([]byte(got.body), into))
}

// routes are those of the peer's own OpenAPI document.
func (f *rightsFarm) routes() (list []string) {
	f.t.Helper()
	var doc struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	f.must(rightsCaller{}, http.MethodGet, "/openapi.json", nil, &doc)
	for path, methods := range doc.Paths {
		for method := range methods {
			list = append(list, path+" "+strings.ToUpper(method))
		}
	}
	slices.Sort(list)
	return list
}

// What stands for the parameters of a path that are not a job's ID. None is of
// anything that exists, so that an admin who may do everything changes nothing.
var rightsParams = map[string]string{
	"{frame}": "1", "{cid}": "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy",
	"{user}": "nobody-of-that-name", "{id}": "12D3KooWHW4upeeehYxBofmQaGeZ2PnXAY9jFAVCLDXTE18PevNC",
}

// unknownJob has the form of a job's ID.
const unknownJob = "jaaaaaaaaaaaaaaa"

// TestWhoMayDoWhat tries every route of the API as nobody, as each role, and as an
// operator with the own and with another's job, and compares who got through with
// testdata/rights.txt, which a person wrote down. An answer lets somebody through
// unless it is 401 or 403 or, for a job, the very one that a job gives which does not
// exist.
func TestWhoMayDoWhat(t *testing.T) {
	f := startRightsFarm(t)
	columns := []struct{ title, caller string }{
		{"nobody", "nobody"}, {"viewer", "viewer"}, {"own", "ann"}, {"another's", "bob"}, {"node", "node"}, {"admin", "admin"},
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "route")
	for _, c := range columns {
		fmt.Fprint(w, "\t", c.title)
	}
	fmt.Fprintln(w)
	for _, route := range f.routes() {
		path, method, _ := strings.Cut(route, " ")
		fmt.Fprint(w, method, " ", path)
		for _, c := range columns {
			verdict := "-"
			if f.passes(f.caller(c.caller), method, path) {
				verdict = "yes"
			}
			fmt.Fprint(w, "\t", verdict)
		}
		fmt.Fprintln(w)
	}
	require.NoError(t, w.Flush())
	t.Logf("who may do what:\n%s", table.String())
	const golden = "testdata/rights.txt"
	if *updateRights {
		require.NoError(t, os.WriteFile(golden, table.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), table.String())
}

// passes tells whether a request gets past who may make it.
func (f *rightsFarm) passes(c rightsCaller, method, path string) bool {
	f.t.Helper()
	ofJob := strings.HasPrefix(path, "/v1/jobs/{id}")
	fill := func(job string) string {
		out := path
		if ofJob {
			out = strings.Replace(out, "{id}", job, 1)
		}
		for _, name := range slices.Sorted(maps.Keys(rightsParams)) {
			out = strings.ReplaceAll(out, name, rightsParams[name])
		}
		require.NotContains(f.t, out, "{", "a parameter of %s that this test does not know", path)
		return out + map[string]string{"/v1/jobs/{id}/logs": "?task=0"}[path]
	}
	var body []byte
	if method != http.MethodGet && method != http.MethodDelete {
		body = []byte(cmp.Or(map[string]string{
			"/v1/jobs/{id}/retry": `{"frames": "9"}`, "/v1/jobs/{id}/more": `{"samples": 1}`, "/v1/jobs/{id}/priority": `{"priority": "high"}`,
			"/v1/projects": "tar", "/v1/blobs": "tar",
		}[path], `{}`))
	}
	got := f.ask(c, method, fill(string(f.job)), body)
	if got.status == http.StatusUnauthorized || got.status == http.StatusForbidden {
		return false
	}
	if !ofJob {
		return true
	}
	none := f.ask(c, method, fill(unknownJob), body)
	require.Equal(f.t, http.StatusNotFound, none.status, "%s %s: %s", method, fill(unknownJob), none.body)
	return got.status != none.status || strings.ReplaceAll(got.body, string(f.job), unknownJob) != none.body
}

// Another's job and one that does not exist cannot be told apart: not by what is
// answered, not by how long that takes.
func TestJobsCannotBeProbed(t *testing.T) {
	f := startRightsFarm(t)
	bob := f.caller("bob")
	for _, route := range f.routes() {
		path, method, _ := strings.Cut(route, " ")
		if strings.HasPrefix(path, "/v1/jobs/{id}") {
			require.False(t, f.passes(bob, method, path), "%s %s", method, path)
		}
	}
	const tries = 60
	var times [2][]time.Duration
	for i := range 2 * tries { // in turns, so that both have the same noise
		id := []string{string(f.job), unknownJob}[i%2]
		got := f.ask(bob, http.MethodGet, "/v1/jobs/"+id, nil)
		times[i%2] = append(times[i%2], got.took)
		require.Equal(t, http.StatusNotFound, got.status)
	}
	medians := [2]time.Duration{}
	for i := range times {
		slices.Sort(times[i])
		medians[i] = times[i][tries/2]
	}
	t.Logf("another's job: %s, none: %s (medians of %d)", medians[0], medians[1], tries)
	require.InEpsilon(t, medians[0].Seconds(), medians[1].Seconds(), 0.5)
	require.Contains(t, f.ask(f.caller("ann"), http.MethodGet, "/v1/jobs", nil).body, string(f.job))
	require.NotContains(t, f.ask(bob, http.MethodGet, "/v1/jobs", nil).body, string(f.job))
	require.Equal(t, http.StatusOK, f.ask(f.caller("ann"), http.MethodGet, "/v1/jobs/"+string(f.job), nil).status)
}
