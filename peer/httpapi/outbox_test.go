package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// A job that is posted while nobody leads is kept, and the answer says so; whatever else
// goes wrong is the caller's to hear.
func TestJobIsKeptWhileNobodyLeads(t *testing.T) {
	f, ms := newFarm(t, 2, Config{LeaderWait: 50 * time.Millisecond})
	m := ms[1]
	body := Submission{Project: someCID, Frames: "1-10"}
	f.mu.Lock()
	f.leader = ""
	f.mu.Unlock()
	got := m.do(t, "ann", "POST", "/v1/jobs", body, "Idempotency-Key", "k1")
	require.Equal(t, 202, got.StatusCode, string(got.body))
	var out Submitted
	require.NoError(t, json.Unmarshal(got.body, &out))
	require.Equal(t, Submitted{Job: "jabcdefghijklmno", Project: someCID, Tasks: 3, Waiting: true, Reason: "nobody leads", Findings: Findings{Missing: []string{"/tex/lost.png"}}}, out)
	require.Len(t, m.kept, 1)
	kept := m.kept[0]
	require.False(t, kept.Tried, "nobody was there to try")
	require.Equal(t, "ann", kept.Spec.Owner)
	require.Equal(t, authz.PeerID(m.host.ID().String()), kept.Spec.Submitter)
	require.Equal(t, "ann", kept.Token)
	require.True(t, kept.Address.IsLoopback())

	again := m.do(t, "ann", "POST", "/v1/jobs", body, "Idempotency-Key", "k1")
	require.Equal(t, 202, again.StatusCode)
	require.Equal(t, "true", again.Header.Get(replayedHeader))
	require.JSONEq(t, string(got.body), string(again.body))
	require.Len(t, m.kept, 1)

	for _, who := range []string{"vic", "box"} {
		require.Equal(t, 403, m.do(t, who, "POST", "/v1/jobs", body).StatusCode, who)
	}
	require.Equal(t, 401, m.do(t, "", "POST", "/v1/jobs", body).StatusCode)
	require.Len(t, m.kept, 1)

	// A leader that refuses, or that does not say what became of it.
	f.mu.Lock()
	f.leader, f.err = ms[0].host.ID(), fmt.Errorf("%w: too many", lease.ErrLimit)
	f.mu.Unlock()
	require.Equal(t, 409, m.do(t, "ann", "POST", "/v1/jobs", body).StatusCode)
	require.Len(t, m.kept, 1)
	f.mu.Lock()
	f.err = fmt.Errorf("%w: it may have been done", ErrUnavailable)
	f.mu.Unlock()
	for _, m := range ms { // at the leader itself, too
		m.set(func(m *machine) { m.kept = nil })
		require.Equal(t, 202, m.do(t, "ann", "POST", "/v1/jobs", body).StatusCode)
		require.Len(t, m.kept, 1)
		require.True(t, m.kept[0].Tried)
	}
	// One that is not to be reached.
	stranger := newHost(t)
	m.set(func(m *machine) {
		m.kept, m.finds = nil, func() (peer.ID, error) { return stranger.ID(), nil }
	})
	require.Equal(t, 202, m.do(t, "ann", "POST", "/v1/jobs", body).StatusCode)
	require.False(t, m.kept[0].Tried, "it was never sent")
}

// A job that waits is answered for by the machine where it does, to who may see it.
func TestWaitingJob(t *testing.T) {
	f, ms := newFarm(t, 2, Config{LeaderWait: 50 * time.Millisecond})
	lead, m := ms[0], ms[1]
	f.mu.Lock()
	f.leader = ""
	f.mu.Unlock()
	require.Equal(t, 202, m.do(t, "ann", "POST", "/v1/jobs", Submission{Project: someCID, Frames: "1-10"}).StatusCode)
	const path = "/v1/jobs/jabcdefghijklmno"
	for range 2 { // without a leader, and with one, who knows nothing of it
		for _, who := range []string{"ann", "root"} {
			var list JobList
			require.NoError(t, json.Unmarshal(m.do(t, who, "GET", "/v1/outbox", nil).body, &list))
			require.Len(t, list.Jobs, 1)
			r := m.do(t, who, "GET", path, nil)
			require.Equal(t, 200, r.StatusCode, string(r.body))
			require.Contains(t, string(r.body), `"waiting":true`)
			require.JSONEq(t, `{"tasks":[]}`, string(m.do(t, who, "GET", path+"/tasks", nil).body))
			require.Contains(t, string(m.do(t, who, "GET", path+"/why", nil).body), "nobody leads")
			for _, verb := range []string{"pause", "resume", "retry"} {
				r := m.do(t, who, "POST", path+"/"+verb, nil)
				require.Equal(t, 409, r.StatusCode, verb)
				require.Contains(t, r.problem(t).Detail, "waits on this machine")
			}
		}
		require.JSONEq(t, `{"jobs":[]}`, string(m.do(t, "bob", "GET", "/v1/outbox", nil).body))
		require.NotEqual(t, 200, m.do(t, "bob", "GET", path, nil).StatusCode)
		require.NotEqual(t, 200, m.do(t, "bob", "POST", path+"/cancel", nil).StatusCode)
		require.Equal(t, 403, m.do(t, "vic", "POST", path+"/cancel", nil).StatusCode)
		require.Equal(t, 403, m.do(t, "box", "GET", "/v1/outbox", nil).StatusCode)
		f.mu.Lock()
		f.leader = lead.host.ID()
		f.mu.Unlock()
	}
	require.Equal(t, 404, lead.do(t, "ann", "GET", path, nil).StatusCode, "it is on the other machine")
	f.record()
	s := m.follow(t, "/v1/events?job=jabcdefghijklmno")
	r := m.do(t, "ann", "POST", path+"/cancel", nil)
	require.Equal(t, 200, r.StatusCode, string(r.body))
	require.Contains(t, s.next(), `"state":"cancelled","reason":"cancelled by ann"`)
	require.Empty(t, s.next())
	require.Empty(t, f.record(), "nothing of the farm was changed")
	m.do(t, "bob", "GET", "/v1/jobs", nil)
	require.Equal(t, "bob", m.shown, "the outbox hears of who is there, wherever a request is answered")
}

// What waited is submitted with the credential of who posted it, and in that name alone.
func TestDeliver(t *testing.T) {
	f, ms := newFarm(t, 2, Config{})
	spec := lease.Spec{
		Name: "n", Owner: "ann", Submitter: authz.PeerID(ms[1].host.ID().String()), Project: someCID, Blend: "b", Tier: lease.Normal, Replicas: 1,
		Frames: lease.Frames{{First: 1, Last: 1, Step: 1}},
	}
	for i, m := range ms { // the leader's own, and another's
		p := Posted{Submit: lease.Submit{Job: "jabcdefghijklmno", Spec: spec}, By: authz.Principal{User: "ann", Key: "k"}, Token: "ann", Address: netip.MustParseAddr("127.0.0.1")}
		out, err := m.Deliver(t.Context(), p)
		require.NoError(t, err)
		require.Equal(t, lease.JobID("jnew"), out.Job)
		require.Len(t, f.submitted(), i+1)
		require.Equal(t, "ann", f.submitted()[i].Owner)
		require.Equal(t, p.Job, f.asked[i], "under the ID that it has")
		require.NoError(t, m.Recall(t.Context(), Posted{Submit: lease.Submit{Job: "jann"}, Token: "ann", By: p.By}))
		require.Equal(t, Cancel, f.controlled().Do)
		for token, status := range map[string]int{"vic": 403, "box": 403, "nobody": 401, "": 401} {
			p.Token = token
			_, err := m.Deliver(t.Context(), p)
			require.Equal(t, status, MapError(err).Status, token)
		}
		require.Len(t, f.submitted(), i+1)
		record := strings.Join(f.record(), "\n")
		require.Contains(t, record, "submit-job ann ok")
		require.Contains(t, record, "submit-job vic forbidden")
	}
	f.leader = ""
	_, err := ms[1].Deliver(t.Context(), Posted{Submit: lease.Submit{Job: "jabcdefghijklmno", Spec: spec}, Token: "ann"})
	require.True(t, errors.Is(err, ErrNoLeader))
}
