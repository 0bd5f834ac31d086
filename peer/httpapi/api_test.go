package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
)

// What a role may reach at all. A route that is not here fails the test below.
var reach = map[string][]string{
	"GET /healthz":                             {"", "root", "ann", "vic", "box"},
	"GET /readyz":                              {"", "root", "ann", "vic", "box"},
	"GET /openapi.json":                        {"", "root", "ann", "vic", "box"},
	"GET /ca.crt":                              {"", "root", "ann", "vic", "box"},
	"GET /v1/status":                           {"root", "ann", "vic", "box"},
	"GET /metrics":                             {"root", "ann", "vic"},
	"GET /v1/auth/whoami":                      {"root", "ann", "vic", "box"},
	"GET /v1/farm":                             {"root", "ann", "vic", "box"},
	"GET /v1/backup":                           {"root"},
	"GET /v1/jobs":                             {"root", "ann", "vic"},
	"GET /v1/jobs/{id}":                        {"root", "ann", "vic"},
	"GET /v1/jobs/{id}/tasks":                  {"root", "ann", "vic"},
	"GET /v1/jobs/{id}/logs":                   {"root", "ann", "vic"},
	"GET /v1/jobs/{id}/frames/{frame}":         {"root", "ann", "vic"},
	"GET /v1/jobs/{id}/frames/{frame}/extra":   {"root", "ann", "vic"},
	"GET /v1/events":                           {"root", "ann", "vic"},
	"GET /v1/audit":                            {"root"},
	"GET /v1/audit/verify":                     {"root"},
	"POST /v1/projects":                        {"root", "ann"},
	"POST /v1/jobs":                            {"root", "ann"},
	"GET /v1/outbox":                           {"root", "ann", "vic"},
	"POST /v1/jobs/{id}/cancel":                {"root", "ann"},
	"POST /v1/jobs/{id}/pause":                 {"root", "ann"},
	"POST /v1/jobs/{id}/resume":                {"root", "ann"},
	"POST /v1/jobs/{id}/retry":                 {"root", "ann"},
	"POST /v1/jobs/{id}/priority":              {"root", "ann"},
	"POST /v1/jobs/{id}/more":                  {"root", "ann"},
	"GET /v1/jobs/{id}/why":                    {"root", "ann", "vic"},
	"GET /v1/peers":                            {"root", "ann", "vic", "box"},
	"POST /v1/peers/{id}/drain":                {"root"},
	"POST /v1/peers/{id}/undrain":              {"root"},
	"PUT /v1/peers/{id}/labels":                {"root"},
	"POST /v1/peers/{id}/revoke":               {"root"},
	"GET /v1/peers/pending":                    {"root"},
	"POST /v1/peers/pending/{id}/approve":      {"root"},
	"POST /v1/peers/pending/{id}/deny":         {"root"},
	"GET /v1/tickets":                          {"root"},
	"DELETE /v1/tickets/{id}":                  {"root"},
	"GET /v1/blenders":                         {"root", "ann", "vic"},
	"POST /v1/blenders":                        {"root"},
	"POST /v1/blenders/{cid}/withdraw":         {"root"},
	"GET /v1/blobs":                            {"root", "ann", "vic"},
	"POST /v1/blobs":                           {"root", "ann"},
	"GET /v1/blobs/stat":                       {"root", "ann", "vic"},
	"POST /v1/blobs/gc":                        {"root", "ann"},
	"POST /v1/blobs/verify":                    {"root", "ann"},
	"GET /v1/blobs/{cid}":                      {"root", "ann", "vic"},
	"POST /v1/blobs/{cid}/fetch":               {"root", "ann", "vic"},
	"POST /v1/blobs/{cid}/pin":                 {"root", "ann"},
	"POST /v1/blobs/{cid}/unpin":               {"root", "ann"},
	"POST /v1/coordinators/{id}/promote":       {"root"},
	"POST /v1/coordinators/{id}/demote":        {"root"},
	"POST /v1/coordinators/{id}/transfer":      {"root"},
	"POST /v1/tickets":                         {"root"},
	"POST /v1/auth/login":                      {"", "root", "ann", "vic", "box"},
	"POST /v1/auth/logout":                     {"root", "ann", "vic", "box"},
	"POST /v1/auth/password":                   {"root", "ann", "vic"},
	"GET /v1/admin/users":                      {"root"},
	"POST /v1/admin/users":                     {"root"},
	"POST /v1/admin/users/{user}/password":     {"root"},
	"POST /v1/admin/users/{user}/disable":      {"root"},
	"POST /v1/admin/users/{user}/enable":       {"root"},
	"POST /v1/admin/users/{user}/role":         {"root"},
	"GET /v1/admin/keys":                       {"root"},
	"POST /v1/admin/keys":                      {"root"},
	"DELETE /v1/admin/keys/{id}":               {"root"},
	"POST /v1/queue/jobs":                      {"root", "ann"},
	"GET /v1/queue/jobs/{id}/frames/{f}":       {"root", "ann", "vic"},
	"GET /v1/queue/jobs/{id}/tasks/{tsk}":      {"root", "ann", "vic"},
	"GET /v1/queue/principal":                  {"root", "ann", "vic", "box"},
	"GET /v1/queue/jobs/{id}/frames/{f}/tasks": {"root", "ann", "vic"},
}

func TestEveryRouteHasARule(t *testing.T) {
	_, ms := newFarm(t, 1, Config{Version: "1.2.3"})
	m := ms[0]
	r := m.do(t, "", "GET", "/openapi.json", nil)
	require.Equal(t, "application/openapi+json", r.Header.Get("Content-Type"))
	var doc struct {
		OpenAPI    string
		Info       struct{ Version string }
		Paths      map[string]map[string]struct{ Security []map[string][]string }
		Components struct{ Schemas map[string]any }
	}
	require.NoError(t, json.Unmarshal(r.body, &doc))
	require.Equal(t, "3.1.0", doc.OpenAPI)
	require.Equal(t, "1.2.3", doc.Info.Version)
	for _, name := range []string{"Job", "Event", "Problem", "Submission"} {
		require.Contains(t, doc.Components.Schemas, name)
	}

	documented := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			name := strings.ToUpper(method) + " " + path
			documented[name] = true
			require.Contains(t, reach, name)
			require.Equal(t, slices.Contains(reach[name], ""), len(op.Security) == 0, name)
		}
	}
	for _, rt := range routes() {
		name := rt.Method + " " + rt.Path
		require.NotEmpty(t, rt.rule.who, name)
		require.True(t, rt.rule.open != (rt.rule.allows != nil), name)
		require.Equal(t, rt.place != internal, documented[name], name)
		delete(documented, name)
	}
	require.Empty(t, documented)
}

func TestRulesAreApplied(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	for _, m := range ms { // the leader, and a peer that forwards
		for _, rt := range routes() {
			if rt.place == internal || rt.id == "events" {
				continue
			}
			path := someplace(rt)
			for _, who := range []string{"", "root", "ann", "vic", "box", "nobody"} {
				r := m.do(t, who, rt.Method, path, nil)
				name := rt.Method + " " + rt.Path
				switch {
				case slices.Contains(reach[name], ""), slices.Contains(reach[name], who):
					require.NotContains(t, []int{401, 403, 405, 500}, r.StatusCode, "%s as %q: %s", name, who, r.body)
				case who == "" || who == "nobody":
					require.Equal(t, CodeUnauthorised, r.problem(t).Code, "%s as %q", name, who)
					require.Equal(t, 401, r.StatusCode)
					require.Contains(t, r.Header.Get("WWW-Authenticate"), `Bearer realm="vizpeer"`)
					require.Equal(t, who != "", strings.Contains(r.Header.Get("WWW-Authenticate"), "invalid_token"))
				default:
					require.Equal(t, CodeForbidden, r.problem(t).Code, "%s as %q", name, who)
					require.Equal(t, 403, r.StatusCode)
				}
			}
		}
	}
}

// someplace is a path of a route.
func someplace(rt *route) string {
	path := strings.NewReplacer("{id}", "jann", "{frame}", "1", "{cid}", someCID, "{user}", "ann").Replace(rt.Path)
	if rt.id == "task-log" {
		path += "?task=0"
	}
	return path
}

func TestInternalRoutesAreNotOnLoopback(t *testing.T) {
	f, ms := newFarm(t, 1, Config{})
	for _, path := range []string{"/v1/queue/principal", "/v1/queue/jobs/jann/frames/1"} {
		require.Equal(t, 404, ms[0].do(t, "root", "GET", path, nil).StatusCode)
	}
	require.Equal(t, 404, ms[0].do(t, "root", "POST", "/v1/queue/jobs", lease.Spec{}).StatusCode)
	require.Empty(t, f.submitted())
}

func TestAnothersJobLooksLikeNone(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	for _, m := range ms {
		for _, path := range []string{"", "/tasks", "/why", "/frames/1", "/logs?task=0"} {
			none := m.do(t, "bob", "GET", "/v1/jobs/jnone"+path, nil)
			anns := m.do(t, "bob", "GET", "/v1/jobs/jann"+path, nil)
			require.Equal(t, CodeNotFound, none.problem(t).Code)
			require.Equal(t, string(none.body), string(anns.body))
			require.Equal(t, 200, m.do(t, "ann", "GET", "/v1/jobs/jann"+path, nil).StatusCode, path)
		}
		for _, verb := range []string{"cancel", "pause", "resume", "retry"} {
			none := m.do(t, "bob", "POST", "/v1/jobs/jnone/"+verb, nil)
			require.Equal(t, string(none.body), string(m.do(t, "bob", "POST", "/v1/jobs/jann/"+verb, nil).body))
		}
	}
}

func TestDocuments(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	for _, m := range ms {
		require.JSONEq(t, `{"jobs":[]}`, string(m.do(t, "ann", "GET", "/v1/jobs", nil).body))
		require.JSONEq(t, `{"peers":[]}`, string(m.do(t, "root", "GET", "/v1/peers", nil).body))
		require.JSONEq(t, `{"tasks":[{"index":0,"frames":"1-5","state":"queued","tries":0}]}`, string(m.do(t, "ann", "GET", "/v1/jobs/jann/tasks", nil).body))
		require.JSONEq(t, fmt.Sprintf(`{"user":"ann","role":"operator","peer":%q,"farm":"farm"}`, m.host.ID()), string(m.do(t, "ann", "GET", "/v1/auth/whoami", nil).body))
		var st map[string]any
		require.NoError(t, json.Unmarshal(m.do(t, "box", "GET", "/v1/status", nil).body, &st))
		require.Equal(t, []any{}, st["running"])
		var sum JobSummary
		require.NoError(t, json.Unmarshal(m.do(t, "ann", "POST", "/v1/jobs/jann/cancel", nil).body, &sum))
		require.Equal(t, lease.JobCancelled, sum.State)
		for _, verb := range []string{"pause", "resume", "retry"} {
			require.Equal(t, 200, m.do(t, "ann", "POST", "/v1/jobs/jann/"+verb, nil).StatusCode)
		}
		require.NoError(t, json.Unmarshal(m.do(t, "ann", "POST", "/v1/jobs/jann/priority", Priority{lease.High}).body, &sum))
		require.Equal(t, lease.High, sum.Tier)
		require.Equal(t, 422, m.do(t, "ann", "POST", "/v1/jobs/jann/priority", Priority{"soon"}).StatusCode)
		r := m.do(t, "ann", "POST", "/v1/jobs/jann/more", More{Samples: 28})
		require.Contains(t, string(r.body), `"split":{"by":"samples","units":128}`)
		require.Equal(t, Control{Do: AddMore, Samples: 28}, f.controlled())
		for _, body := range []any{More{}, More{Samples: -1}, More{Samples: lease.MaxSamples + 1}, nil} {
			require.Contains(t, []int{400, 422}, m.do(t, "ann", "POST", "/v1/jobs/jann/more", body).StatusCode, body)
		}
		require.JSONEq(t, `{"job":"jann","task":-1,"state":"","text":"it waits","ahead":0}`, string(m.do(t, "ann", "GET", "/v1/jobs/jann/why", nil).body))
		require.Contains(t, string(m.do(t, "ann", "GET", "/v1/jobs/jann/why?task=3", nil).body), `"task":3`)
		for verb, state := range map[string]string{"drain": "draining", "undrain": "idle"} {
			var p Peer
			require.NoError(t, json.Unmarshal(m.do(t, "root", "POST", "/v1/peers/12D3Koo/"+verb, nil).body, &p))
			require.Equal(t, authz.PeerID("12D3Koo"), p.ID)
			require.Equal(t, state, p.State)
		}
		require.Equal(t, 422, m.do(t, "root", "POST", "/v1/peers/no-peer/drain", nil).StatusCode)
		var p Peer
		require.NoError(t, json.Unmarshal(m.do(t, "root", "PUT", "/v1/peers/12D3Koo/labels", Labels{[]string{"lic:x"}}).body, &p))
		require.Equal(t, Peer{ID: "12D3Koo", Granted: []string{"lic:x"}}, p)
		require.Equal(t, 422, m.do(t, "root", "PUT", "/v1/peers/12D3Koo/labels", Labels{make([]string, 65)}).StatusCode)
		require.JSONEq(t, `{"pending":[]}`, string(m.do(t, "root", "GET", "/v1/peers/pending", nil).body))
		require.JSONEq(t, `{"tickets":[]}`, string(m.do(t, "root", "GET", "/v1/tickets", nil).body))
		require.Equal(t, 200, m.do(t, "root", "DELETE", "/v1/tickets/abcdefgh", nil).StatusCode)
		require.Equal(t, 422, m.do(t, "root", "DELETE", "/v1/tickets/vzt1secret", nil).StatusCode)
		r = m.do(t, "root", "POST", "/v1/peers/pending/12D3Koo/approve", Approval{authz.Operator})
		require.Contains(t, string(r.body), `"roles":["operator"]`)
		require.Equal(t, 200, m.do(t, "root", "POST", "/v1/peers/pending/12D3Koo/deny", nil).StatusCode)
		require.Contains(t, string(m.do(t, "root", "POST", "/v1/peers/12D3Koo/revoke", nil).body), `"tickets":[]`)
		// Where the request began counts, not who passed it on.
		require.Equal(t, CodeConflict, m.do(t, "root", "POST", "/v1/peers/"+m.host.ID().String()+"/revoke", nil).problem(t).Code)
		r = m.do(t, "root", "POST", "/v1/tickets", Invitation{Role: authz.Operator, Uses: 3})
		require.Equal(t, 201, r.StatusCode)
		require.Contains(t, string(r.body), `"ticket":"secret","role":"operator","uses":3`)
	}
	f.err = fmt.Errorf("raft says: the disk at /secret/path broke")
	p := ms[1].do(t, "ann", "GET", "/v1/jobs", nil).problem(t)
	require.Equal(t, CodeInternal, p.Code)
	require.NotContains(t, p.Detail, "secret")
}

func TestHealth(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	require.JSONEq(t, `{"status":"ok"}`, string(m.do(t, "", "GET", "/healthz", nil).body))
	m.set(func(m *machine) { m.checks = []Check{{Name: "store"}} })
	require.JSONEq(t, `{"status":"ok"}`, string(m.do(t, "", "GET", "/readyz", nil).body))
	m.set(func(m *machine) {
		m.checks = []Check{{Name: "store", Err: errors.New("secret")}, {Name: "roster"}, {Name: "leader", Err: errors.New("x"), Say: "for 3s"}}
	})
	r := m.do(t, "", "GET", "/readyz", nil)
	require.Equal(t, 503, r.StatusCode)
	require.Equal(t, []string{"store", "leader"}, r.problem(t).Failing)
	require.NotContains(t, string(r.body), "secret")
}

func TestGuards(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	port := m.url[strings.LastIndex(m.url, ":"):]
	for _, tc := range []struct {
		host, origin string
		ok           bool
	}{
		{"127.0.0.1" + port, "", true},
		{"localhost:1", "", true},
		{"LOCALHOST", "", true},
		{"[::1]:9", "", true},
		{"[::1]", "http://[::1]", true},
		{"127.0.0.1" + port, "http://127.0.0.1" + port, true},
		{"evil.example", "", false},
		{"evil.example:8787", "http://evil.example:8787", false},
		{"localhost.evil.example", "", false},
		{"127.0.0.1.evil.example", "", false},
		{"192.168.1.4:8787", "", false},
		{"127.0.0.1" + port, "http://evil.example", false},
		{"127.0.0.1" + port, "http://127.0.0.1:1", false},
		{"127.0.0.1" + port, "https://127.0.0.1" + port, false},
		{"127.0.0.1" + port, "null", false},
	} {
		var header []string
		if header = []string{"Host", tc.host}; tc.origin != "" {
			header = append(header, "Origin", tc.origin)
		}
		r := m.do(t, "ann", "GET", "/v1/jobs", nil, header...)
		if tc.ok {
			require.Equal(t, 200, r.StatusCode, "%v", tc)
		} else {
			require.Equal(t, CodeForbidden, r.problem(t).Code, "%v", tc)
		}
		require.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
		require.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
	}
}

func TestBadRequests(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	for _, m := range ms {
		for _, tc := range []struct {
			name, method, path string
			body               any
			header             []string
			status             int
			code               Code
			detail             string
		}{
			{"unknown path", "GET", "/v1/nothing", nil, nil, 404, CodeNotFound, "/openapi.json"},
			{"wrong method", "DELETE", "/v1/jobs", nil, nil, 405, CodeInvalid, "use GET, HEAD, POST"},
			{"preflight", "OPTIONS", "/v1/jobs", nil, nil, 405, CodeInvalid, "OPTIONS is not possible"},
			{"unknown query", "GET", "/v1/jobs?stat=done", nil, nil, 422, CodeInvalid, "query.stat: unknown query parameter"},
			{"not JSON", "POST", "/v1/jobs", strings.NewReader("{"), []string{"Content-Type", "application/json"}, 400, CodeInvalid, "body"},
			{"form", "POST", "/v1/jobs", strings.NewReader("a=b"), []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, CodeInvalid, "unknown content type"},
			{"no body", "POST", "/v1/jobs", nil, nil, 400, CodeInvalid, "body is required"},
			{"misspelt field", "POST", "/v1/jobs", map[string]any{"project": someCID, "farmes": "1"}, nil, 422, CodeInvalid, "body.farmes: unexpected property"},
			{"negative chunk", "POST", "/v1/jobs", map[string]any{"project": someCID, "chunk": -1}, nil, 422, CodeInvalid, "body.chunk"},
			{"no project", "POST", "/v1/jobs", Submission{Project: "x"}, nil, 422, CodeInvalid, `there is no project "x" here: upload it first`},
			{"too large", "POST", "/v1/jobs", strings.NewReader(strings.Repeat(" ", maxBody+1)), nil, 413, CodeTooLarge, "1048576 bytes"},
			{"too large, forwarded", "POST", "/v1/tickets", strings.NewReader(strings.Repeat(" ", maxBody+1)), nil, 413, CodeTooLarge, "1048576 bytes"},
			{"frame is no number", "GET", "/v1/jobs/jann/frames/one", nil, nil, 422, CodeInvalid, "path.frame"},
			{"climbing job", "GET", "/v1/jobs/..%2F..%2Fprincipal/frames/1", nil, nil, 422, CodeInvalid, "path.id"},
			{"frame without picture", "GET", "/v1/jobs/jann/frames/7", nil, nil, 404, CodeNotFound, "frame 7 is queued"},
			{"log of no task", "GET", "/v1/jobs/jann/logs", nil, nil, 422, CodeInvalid, "query.task"},
			{"log of no number", "GET", "/v1/jobs/jann/logs?frame=x", nil, nil, 422, CodeInvalid, "query.frame"},
			{"no log of a frame", "GET", "/v1/jobs/jann/logs?frame=6", nil, nil, 404, CodeNotFound, "no log tells of frame 6 yet"},
			{"no log of a frame in a task", "GET", "/v1/jobs/jann/logs?frame=1&task=1", nil, nil, 404, CodeNotFound, "no log of task 1 tells of frame 1"},
			{"no log", "GET", "/v1/jobs/jann/logs?task=4", nil, nil, 404, CodeNotFound, "task 4 has no log yet"},
			{"bad event id", "GET", "/v1/events", nil, []string{"Last-Event-ID", "-1"}, 422, CodeInvalid, "Last-Event-ID"},
			{"uses", "POST", "/v1/tickets", Invitation{Uses: 10001}, nil, 422, CodeInvalid, "body.uses"},
		} {
			r := m.do(t, "root", tc.method, tc.path, tc.body, tc.header...)
			p := r.problem(t)
			require.Equal(t, tc.status, p.Status, "%s: %s", tc.name, r.body)
			require.Equal(t, tc.code, p.Code, tc.name)
			require.Contains(t, p.Detail, tc.detail, tc.name)
			if tc.status == 404 && tc.path == "/v1/nothing" {
				require.Contains(t, p.Routes, "POST /v1/projects")
				require.NotContains(t, string(r.body), "queue")
			}
		}
	}
	require.Empty(t, f.submitted())

	// A secret in a malformed body does not come back.
	r := ms[0].do(t, "root", "POST", "/v1/jobs", strings.NewReader(`{"password":"hunter2"`), "Content-Type", "application/json")
	require.NotContains(t, string(r.body), "hunter2")
	require.Equal(t, 431, ms[0].do(t, "root", "GET", "/healthz", nil, "X-Long", strings.Repeat("x", 80<<10)).StatusCode)

	ms[0].set(func(m *machine) { m.panics = true })
	require.Equal(t, CodeInternal, ms[0].do(t, "ann", "GET", "/v1/status", nil).problem(t).Code)
}

func TestSubmitBelievesNothing(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	for i, m := range ms {
		r := m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Output: "/out"})
		require.Equal(t, 201, r.StatusCode, "%s", r.body)
		require.JSONEq(t, `{"job":"jnew","project":"`+someCID+`","tasks":3,"missing":["/tex/lost.png"]}`, string(r.body))
		spec := f.submitted()[2*i]
		me := authz.PeerID(m.host.ID().String())
		require.Equal(t, "ann", spec.Owner)
		require.Equal(t, me, spec.Submitter)
		require.Equal(t, lease.Output{Peer: me, Dir: "/out"}, spec.Output)

		r = m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Split: lease.WishTiles, Tiles: "3x2"})
		require.JSONEq(t, `{"job":"jnew","project":"`+someCID+`","tasks":3,"missing":["/tex/lost.png"],"split":{"by":"tiles","units":6,"columns":3,"rows":2},
			"warnings":["as you wish"],"whole":"no, it is not"}`, string(r.body))
		refused := m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Split: "frames"})
		require.Equal(t, 422, refused.StatusCode)
		require.Contains(t, refused.problem(t).Detail, "none, samples, tiles, auto")

		m.set(func(m *machine) { m.spec = func(s *lease.Spec) { s.Frames[0].Last = 0 } })
		p := m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}).problem(t)
		require.Equal(t, "the frame range 1-0 is inverted: write 0-1", p.Detail)
	}
}

func TestContent(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	const path = "/v1/jobs/jann/frames/1"
	etag := `"` + someCID + `"`
	for _, m := range ms {
		r := m.do(t, "ann", "GET", path, nil)
		require.Equal(t, picture, string(r.body))
		require.Equal(t, "image/png", r.Header.Get("Content-Type"))
		require.Equal(t, etag, r.Header.Get("ETag"))
		require.Equal(t, `inline; filename=0001.png`, r.Header.Get("Content-Disposition"))

		r = m.do(t, "ann", "GET", path, nil, "Range", "bytes=4-9")
		require.Equal(t, 206, r.StatusCode)
		require.Equal(t, picture[4:10], string(r.body))

		opened := m.opened
		r = m.do(t, "ann", "HEAD", path, nil)
		require.Equal(t, 200, r.StatusCode)
		require.Equal(t, int64(len(picture)), r.ContentLength)
		require.Equal(t, etag, r.Header.Get("ETag"))
		for _, match := range []string{etag, "W/" + etag} {
			require.Equal(t, 304, m.do(t, "ann", "GET", path, nil, "If-None-Match", match).StatusCode)
		}
		require.Equal(t, opened, m.opened, "nothing is fetched for an answer without bytes")
		for _, match := range []string{`"other"`, "junk " + etag, `"a", ` + etag} {
			r = m.do(t, "ann", "GET", path, nil, "If-None-Match", match)
			require.Contains(t, []int{200, 304}, r.StatusCode)
			require.Equal(t, r.StatusCode == 200, string(r.body) == picture)
		}

		r = m.do(t, "ann", "GET", "/v1/jobs/jann/logs?task=0", nil)
		require.Equal(t, picture, string(r.body))
		require.Equal(t, "text/plain; charset=utf-8", r.Header.Get("Content-Type"))

		// A log that tells no frames apart may be about each of them, and one that is gone
		// does not hide the others.
		for _, query := range []string{"frame=1", "frame=1&task=0"} {
			r = m.do(t, "ann", "GET", "/v1/jobs/jann/logs?"+query, nil)
			require.Equal(t, "--- frame 1, task 0, attempt 1 of 3\nits log cannot be had now: the machines that hold it are away\n--- frame 1, task 0, attempt 2 of 3\n"+picture+"\n", string(r.body))
			require.Equal(t, "text/plain; charset=utf-8", r.Header.Get("Content-Type"))
		}
	}
	require.Equal(t, "application/octet-stream", imageType("x.html"))
	require.Equal(t, "image/x-exr", imageType("0001.EXR"))
}

func TestMapError(t *testing.T) {
	for err, want := range map[error]struct {
		status int
		code   Code
		detail string
	}{
		fmt.Errorf("%w: jx is ann's", ErrNotFound):                 {404, CodeNotFound, "there is no such thing here, or it is not yours to see"},
		fmt.Errorf("job jx: %w", lease.ErrUnknownJob):              {404, CodeNotFound, "there is no such thing here, or it is not yours to see"},
		fmt.Errorf("%w: ask an admin", ErrDenied):                  {403, CodeForbidden, "ask an admin"},
		fmt.Errorf("%w: the folder cannot be written", ErrInvalid): {422, CodeInvalid, "the folder cannot be written"},
		fmt.Errorf("importing: %w", blobs.ErrDiskFull):             {507, CodeDiskFull, "importing: disk is full"},
		fmt.Errorf("cancelling: %w", lease.ErrEnded):               {409, CodeConflict, "cancelling: the job has ended"},
		fmt.Errorf("asking: %w", &NotLeaderError{Leader: "x"}):     {503, CodeNoLeader, "no coordinator can be reached: the queue is changing hands: try again"},
		fmt.Errorf("%w: tried 3 peers", ErrNoLeader):               {503, CodeNoLeader, "no coordinator can be reached: tried 3 peers"},
		fmt.Errorf("%w: bad path ..", blobs.ErrBadPath):            {422, CodeInvalid, "path not allowed: bad path .."},
		authz.ErrToken:              {401, CodeUnauthorised, "the token is not valid here: use the one that init or join left in this machine's token file"},
		errors.New("/secret broke"): {500, CodeInternal, "something went wrong on this machine: its log says what"},
	} {
		p := MapError(err)
		require.Equal(t, want.status, p.Status, "%v", err)
		require.Equal(t, want.code, p.Code, "%v", err)
		require.Equal(t, want.detail, p.Detail, "%v", err)
	}
}

func TestListen(t *testing.T) {
	_, err := Listen("example.org:80")
	require.ErrorContains(t, err, "give one of this machine's addresses")
	_, err = Listen("8787")
	require.ErrorContains(t, err, "write it like 127.0.0.1:8787")
	l, err := Listen("localhost:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = Listen(l.Addr().String())
	require.ErrorContains(t, err, "127.0.0.1:0 for any that is free")
}

func TestRoutesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, rt := range routes() {
		require.False(t, seen[rt.id], rt.id)
		seen[rt.id] = true
	}
	require.Len(t, slices.Collect(maps.Keys(reach)), len(seen))
	require.Equal(t, uploadProject, http.MethodPost+" /v1/projects")
}
