package spot

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Answers as the clouds' manuals show them.
func TestParse(t *testing.T) {
	at := time.Date(2027, 9, 18, 8, 22, 0, 0, time.UTC)
	for text, want := range map[string]struct {
		at time.Time
		is bool
	}{
		`{"action": "terminate", "time": "2027-09-18T08:22:00Z"}`: {at, true},
		`{"action": "stop"}`:                    {time.Time{}, true},
		`{}`:                                    {time.Time{}, false},
		"TRUE":                                  {time.Time{}, true},
		"FALSE\n":                               {time.Time{}, false},
		"NONE":                                  {time.Time{}, false},
		"":                                      {time.Time{}, false},
		"2027-09-18T08:22:00Z\n":                {at, true},
		"going down":                            {time.Time{}, true},
		`{"DocumentIncarnation":1,"Events":[]}`: {time.Time{}, false},
		`{"Events":[{"EventType":"Reboot","NotBefore":"Sat, 18 Sep 2027 08:22:00 GMT"}]}`:                         {time.Time{}, false},
		`{"Events":[{"EventType":"Freeze"},{"EventType":"Preempt","NotBefore":"Sat, 18 Sep 2027 08:22:00 GMT"}]}`: {at, true},
		`{"Events":[{"EventId":"A1","EventType":"Preempt","EventStatus":"Started","NotBefore":""}]}`:              {time.Time{}, true},
	} {
		n, is := parse([]byte(text))
		require.Equal(t, want.is, is, text)
		require.True(t, want.at.Equal(n.At), "%s: %s", text, n.At)
	}
}

func TestCheck(t *testing.T) {
	abs, err := filepath.Abs("notice")
	require.NoError(t, err)
	for _, good := range []string{"aws", "gcp", "azure", abs, "http://127.0.0.1:1/x", "https://a/b"} {
		require.NoError(t, Check(good), good)
	}
	for _, bad := range []string{"", "notice", "AWS", "ftp://a", "http://"} {
		require.Error(t, Check(bad), bad)
	}
}

func TestFileThatComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notice")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	got := make(chan Notice, 1)
	go func() {
		n, err := Watch(t.Context(), path, slog.New(slog.DiscardHandler))
		if err == nil {
			got <- n
		}
	}()
	// It may not be watched yet, or be: both times it must be seen.
	require.NoError(t, os.WriteFile(path+".new", []byte(`{"action":"stop","time":"2027-09-18T08:22:00Z"}`), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
	n := <-got
	require.Equal(t, 2027, n.At.Year())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Watch(ctx, filepath.Join(t.TempDir(), "never"), slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, context.Canceled)
	_, err = Watch(t.Context(), filepath.Join(t.TempDir(), "no", "folder"), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "watch the folder")
}

func TestCloudIsAsked(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && r.Method == http.MethodPut && r.Header.Get(tokenTime) != "":
			_, _ = w.Write([]byte("secret\n"))
		case r.Header.Get(tokenHeader) != "secret":
			w.WriteHeader(http.StatusUnauthorized)
		case asked.Add(1) == 1:
			http.NotFound(w, r)
		default:
			_, _ = w.Write([]byte(`{"action":"terminate","time":"2027-09-18T08:22:00Z"}`))
		}
	}))
	defer server.Close()
	q := question{url: server.URL + "/action", token: server.URL + "/token", within: answerIn}
	_, ok, err := q.ask(t.Context())
	require.NoError(t, err)
	require.False(t, ok)
	n, ok, err := q.ask(t.Context())
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, 2027, n.At.Year())
	q.token = ""
	_, _, err = q.ask(t.Context())
	require.ErrorContains(t, err, "401")
}
