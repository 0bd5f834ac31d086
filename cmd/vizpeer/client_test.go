package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// answers is a peer that answers one request after the other.
type answers struct {
	all  []string // "503 {...}"
	keys []string
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.keys = append(a.keys, r.Header.Get("Idempotency-Key"))
	status, body, _ := strings.Cut(a.all[0], " ")
	if len(a.all) > 1 {
		a.all = a.all[1:]
	}
	code := map[string]int{"503": 503, "201": 201, "422": 422}[status]
	return &http.Response{
		StatusCode: code, Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

// A submission whose leader went away is made again under the same key, and given up
// after a while.
func TestSubmissionIsMadeAgain(t *testing.T) {
	const gone, full = `503 {"code":"no_leader","detail":"it went away"}`, `422 {"code":"invalid","detail":"no"}`
	synctest.Test(t, func(t *testing.T) {
		try := func(all ...string) (httpapi.Submitted, *answers, int, error) {
			a, waits := &answers{all: all}, 0
			cl := &client{base: "http://127.0.0.1:1", http: &http.Client{Transport: a}, local: true}
			out, err := cl.submit(t.Context(), httpapi.Submission{}, func(error) { waits++ })
			return out, a, waits, err
		}
		out, a, waits, err := try(gone, `503 {"code":"unavailable","detail":"it is not known"}`, `201 {"job":"j1"}`)
		require.NoError(t, err)
		require.Equal(t, lease.JobID("j1"), out.Job)
		require.Equal(t, 2, waits)
		require.Len(t, a.keys, 3)
		require.NoError(t, lease.CheckKey(a.keys[0]))
		require.Equal(t, []string{a.keys[0], a.keys[0], a.keys[0]}, a.keys)

		_, other, _, err := try(full)
		require.ErrorContains(t, err, "no")
		require.Len(t, other.keys, 1, "what is refused is not asked again")
		require.NotEqual(t, a.keys[0], other.keys[0], "each submission has a key of its own")

		began := time.Now()
		_, _, _, err = try(gone)
		require.ErrorContains(t, err, "it went away")
		require.InDelta(t, submitPatience, time.Since(began), float64(2*submitPause))
	})
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"24h": now.Add(-24 * time.Hour), "-90s": now.Add(-90 * time.Second), "2026-03-01": time.Date(2026, 3, 1, 0, 0, 0, 0, time.Local),
		"2026-03-01 08:30:00": time.Date(2026, 3, 1, 8, 30, 0, 0, time.Local), "2026-03-01T08:30:00Z": time.Date(2026, 3, 1, 8, 30, 0, 0, time.UTC),
	} {
		got, err := parseMoment(text, now)
		require.NoError(t, err, text)
		require.True(t, want.Equal(got), "%s: %s", text, got)
	}
	_, err := parseMoment("yesterday", now)
	require.Error(t, err)
}

// roundTrip is a function that answers requests.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Who asks too much at once waits as long as the peer says and asks again, body and all;
// where that is long, such as after many wrong passwords, the person is told.
func TestTooManyRequestsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait, refusals, asked := "2", 3, 0
		cl := &client{base: "http://127.0.0.1:1", local: true, http: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.JSONEq(t, `{"username":"ann","password":"secret"}`, string(body))
			if asked++; asked > refusals {
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"token":"t"}`)), Request: r}, nil
			}
			return &http.Response{
				StatusCode: 429, Header: http.Header{"Retry-After": {wait}, "Content-Type": {"application/problem+json"}},
				Body: io.NopCloser(strings.NewReader(`{"code":"too_many","detail":"try again"}`)), Request: r,
			}, nil
		})}}
		call := func(ctx context.Context) error {
			var s httpapi.Session
			return cl.call(ctx, http.MethodPost, "/v1/auth/login", httpapi.Credentials{Username: "ann", Password: "secret"}, &s)
		}
		began := time.Now()
		require.NoError(t, call(t.Context()))
		require.Equal(t, 6*time.Second, time.Since(began))
		require.Equal(t, 4, asked)

		for _, long := range []string{"900", "", "soon", "-1"} {
			wait, asked, began = long, 0, time.Now()
			require.ErrorContains(t, call(t.Context()), "try again")
			require.Equal(t, 1, asked)
			require.Zero(t, time.Since(began))
		}
		wait, refusals = "2", 1000
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.Error(t, call(ctx), "it does not wait for ever")
	})
}
