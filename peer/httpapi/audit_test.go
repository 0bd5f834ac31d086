package httpapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// record is what is on record beside what came with changes, and clears it.
func (f *farm) record() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	noted := f.noted
	f.noted = nil
	return noted
}

// What changes the farm is on record, by whichever machine it came; so is what was
// refused for want of a right. Who only looks is not.
func TestChangesAreOnRecord(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	for i, m := range ms { // the leader, and a peer that forwards
		for _, path := range []string{"/v1/jobs", "/v1/jobs/jann", "/v1/jobs/jother", "/v1/audit", "/v1/nothing"} {
			m.do(t, "ann", "GET", path, nil)
			m.do(t, "nobody", "GET", path, nil)
		}
		require.Empty(t, f.record(), "reading is not on record")
		require.Equal(t, 200, m.do(t, "ann", "POST", "/v1/blobs/"+someCID+"/pin", nil).StatusCode)
		m.do(t, "ann", "POST", "/v1/projects", nil)
		require.Empty(t, f.record(), "a machine's store is not the farm")

		require.Equal(t, 201, m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID}).StatusCode)
		require.Equal(t, []string{"submit-job ann ok"}, f.record())
		for _, c := range []struct{ who, method, path, noted string }{
			{"ann", "POST", "/v1/jobs/jann/cancel", "cancel-job ann ok jann"}, // the fake puts nothing on record itself
			{"bob", "POST", "/v1/jobs/jann/cancel", "cancel-job bob not_found jann"},
			{"ann", "POST", "/v1/jobs/jmissing/pause", "pause-job ann not_found jmissing"},
			{"vic", "POST", "/v1/jobs/jann/resume", "resume-job vic forbidden jann"},
			{"ann", "POST", "/v1/peers/m7/drain", "drain-peer ann forbidden m7"},
			{"root", "POST", "/v1/peers/m7/drain", "drain-peer root ok m7"},
			{"nobody", "POST", "/v1/jobs/jann/cancel", "cancel-job  unauthorised jann"},
			// People paste the whole of a key or a ticket where its ID belongs.
			{"ann", "DELETE", "/v1/admin/keys/vzk_aaaaaaaaaaaaa_bbbb", "revoke-key ann forbidden (a secret)"},
			{"nobody", "DELETE", "/v1/admin/keys/vzs_aaaa", "revoke-key  unauthorised (a secret)"},
			{"ann", "DELETE", "/v1/tickets/vzt1aaaa", "revoke-ticket ann forbidden (a secret)"},
			{"root", "POST", "/v1/tickets", ""}, // no body: it says nothing of a right
		} {
			m.do(t, c.who, c.method, c.path, nil)
			got := strings.Join(f.record(), "; ")
			if c.noted != "" || got != "invite root ok" {
				require.Equal(t, c.noted, got, "%s %s as %s at machine %d", c.method, c.path, c.who, i)
			}
		}

		login := func(user, password string) { m.do(t, "", "POST", "/v1/auth/login", Credentials{user, password}) }
		login("ann", "password of ann")
		login("ann", "of bob")
		require.Equal(t, []string{"login ann ok ann", "login  unauthorised ann"}, f.record())
	}
}

// The same request with the same key is done once, and answered each time with the same;
// a key stands for one request of one person.
func TestKeyMakesARequestOne(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	body := Submission{Project: someCID, Frames: "1-10"}
	first := ms[0].do(t, "ann", "POST", "/v1/jobs", body, "Idempotency-Key", "k1")
	require.Equal(t, 201, first.StatusCode)
	require.Empty(t, first.Header.Get(replayedHeader))
	for _, m := range ms {
		again := m.do(t, "ann", "POST", "/v1/jobs", body, "Idempotency-Key", "k1")
		require.Equal(t, 201, again.StatusCode)
		require.Equal(t, "true", again.Header.Get(replayedHeader))
		require.JSONEq(t, string(first.body), string(again.body))

		other := m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Frames: "1-11"}, "Idempotency-Key", "k1")
		require.Equal(t, 422, other.StatusCode)
		require.Equal(t, CodeKeyReused, other.problem(t).Code)
		require.Contains(t, other.problem(t).Detail, "take a new one")
	}
	require.Len(t, f.submitted(), 1)
	require.Equal(t, 201, ms[1].do(t, "bob", "POST", "/v1/jobs", body, "Idempotency-Key", "k1").StatusCode)
	require.Len(t, f.submitted(), 2, "bob's key is another")
	require.Equal(t, 201, ms[1].do(t, "ann", "POST", "/v1/jobs", body).StatusCode)
	require.Len(t, f.submitted(), 3, "without a key each is its own")
	for _, bad := range []string{"a b", "\"quoted and spaced\" key", strings.Repeat("x", 65)} {
		require.Equal(t, CodeInvalid, ms[1].do(t, "ann", "POST", "/v1/jobs", body, "Idempotency-Key", bad).problem(t).Code, bad)
	}

	more := ms[1].do(t, "ann", "POST", "/v1/jobs/jann/more", More{Samples: 5}, "Idempotency-Key", "k2")
	require.Equal(t, 200, more.StatusCode, string(more.body))
	once := f.controlled().Once
	require.Equal(t, "ann", once.User)
	require.Equal(t, "k2", once.Key)
	ms[1].do(t, "ann", "POST", "/v1/jobs/jann/more", More{Samples: 6}, "Idempotency-Key", "k2")
	require.NotEqual(t, once.Request, f.controlled().Once.Request)
}

// What is asked for arrives, and what cannot be is refused.
func TestFilters(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	require.Equal(t, 200, ms[1].do(t, "ann", "GET", "/v1/jobs?state=done&owner=ann&name=Shot&after=17&limit=5&since="+at.Format(time.RFC3339), nil).StatusCode)
	require.Equal(t, JobQuery{State: lease.JobDone, Owner: "ann", Name: "Shot", After: "17", Limit: 5, Since: at}, f.jobs)
	r := ms[1].do(t, "root", "GET", fmt.Sprintf("/v1/audit?user=ann&action=login&object=j1&outcome=ok&before=9&since=%s&until=%[1]s", at.Format(time.RFC3339)), nil)
	require.Equal(t, 200, r.StatusCode, string(r.body))
	require.Equal(t, AuditQuery{User: "ann", Action: "login", Object: "j1", Outcome: "ok", Before: 9, Limit: 100, Since: at, Until: at}, f.audit)
	for _, bad := range []string{"/v1/jobs?state=odd", "/v1/jobs?limit=0", "/v1/jobs?limit=10001", "/v1/jobs?after=x", "/v1/jobs?since=yesterday", "/v1/audit?limit=1001", "/v1/audit?before=-1", "/v1/audit?who=ann"} {
		require.Equal(t, CodeInvalid, ms[1].do(t, "root", "GET", bad, nil).problem(t).Code, bad)
	}
	r = ms[1].do(t, "root", "GET", "/v1/audit/verify", nil)
	require.Equal(t, linesType, r.Header.Get("Content-Type"))
	lines := strings.Split(strings.TrimSpace(string(r.body)), "\n")
	var last Step[AuditVerified]
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last))
	require.True(t, last.Result.OK)
}
