package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// While one address tries a thousand passwords a second on a real peer, others are
// answered as if nothing were, and the person whose password is tried can log in.
func TestLoginFloodOnARealPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds of both processors")
	}
	program, err := exec.LookPath("vizpeer")
	require.NoError(t, err)
	dir := t.TempDir()
	data := filepath.Join(dir, "desk")
	out, err := exec.Command(program, "init", "--data-dir", data, "--name", "attic", "--json").Output()
	require.NoError(t, err)
	var founded struct {
		Admin struct{ Username, Password string }
	}
	require.NoError(t, json.Unmarshal(out, &founded))
	// The attacker comes from elsewhere, through a proxy on this machine.
	require.NoError(t, os.WriteFile(filepath.Join(data, configName), []byte("trusted_proxy = [\"127.0.0.1/32\"]\nno_work = true\n"), 0o600))
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	t.Cleanup(farm.stop)
	require.NoError(t, farm.up(t.Context(), "desk", nil))
	api := farm.peers[0].api
	token, err := os.ReadFile(filepath.Join(data, tokenFile))
	require.NoError(t, err)

	login := func(client *http.Client, password, from string) (int, string) {
		body, err := json.Marshal(httpapi.Credentials{Username: founded.Admin.Username, Password: password})
		require.NoError(t, err)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+"/v1/auth/login", bytes.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json")
		if from != "" {
			r.Header.Set("X-Forwarded-For", from)
		}
		resp, err := client.Do(r)
		if err != nil {
			return 0, ""
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	const rate, lasts, hands = 1000, 5 * time.Second, 50
	attacker := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: hands}}
	var mu sync.Mutex
	counts := map[int]int{}
	var flood sync.WaitGroup
	began := time.Now()
	for range hands {
		flood.Go(func() {
			tick := time.NewTicker(hands * time.Second / rate)
			defer tick.Stop()
			for time.Since(began) < lasts {
				<-tick.C
				status, _ := login(attacker, "a wrong password", "198.51.100.7")
				mu.Lock()
				counts[status]++
				mu.Unlock()
			}
		})
	}
	var took []time.Duration
	pace := time.NewTicker(25 * time.Millisecond) // 40 a second: below the limit
	defer pace.Stop()
	for time.Since(began) < lasts {
		<-pace.C
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api+"/v1/jobs", nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		t0 := time.Now()
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		took = append(took, time.Since(t0))
		require.Equal(t, http.StatusOK, resp.StatusCode)
		if len(took) == 20 { // half a second into the flood
			status, text := login(http.DefaultClient, founded.Admin.Password, "")
			require.Equal(t, http.StatusOK, status, text)
		}
	}
	flood.Wait()
	slices.Sort(took)
	total := 0
	for _, n := range counts {
		total += n
	}
	t.Logf("%d login tries in %v, by status: %v; %d requests of others: median %v, 99%% %v", total, lasts, counts, len(took), took[len(took)/2], took[len(took)*99/100])
	require.Greater(t, total, rate, "there was a flood")
	require.LessOrEqual(t, counts[http.StatusUnauthorized], 20, "few cost a check of the password")
	require.Equal(t, total, counts[http.StatusUnauthorized]+counts[http.StatusTooManyRequests])
	require.Less(t, took[len(took)/2], 50*time.Millisecond)
}
