package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/render"
)

const refusal = `{"status": 507, "detail": "the disk of attic is full: make room there", "code": "disk_full"}`

// largeProject is more than any buffer between here and the peer holds.
func largeProject(t *testing.T) render.Collected {
	blend := filepath.Join(t.TempDir(), "shot.blend")
	require.NoError(t, os.WriteFile(blend, bytes.Repeat([]byte("blend"), 4<<20), 0o600))
	return render.Collected{
		Manifest: render.Manifest{Version: 1, Blend: "files/shot.blend"},
		Files:    []render.File{{Source: blend, Path: "files/shot.blend"}},
	}
}

func uploadTo(t *testing.T, base string) error {
	c := &cli{api: base, tokenFile: filepath.Join(t.TempDir(), "token"), out: io.Discard, errOut: io.Discard}
	require.NoError(t, os.WriteFile(c.tokenFile, []byte("secret"), 0o600))
	cl, err := c.client()
	require.NoError(t, err)
	t.Cleanup(cl.http.CloseIdleConnections)
	_, err = c.upload(context.Background(), cl, largeProject(t), nil, false)
	return err
}

func TestRefusedUploadSaysWhy(t *testing.T) {
	for name, before := range map[string]int64{"at once": 0, "in the middle": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.CopyN(io.Discard, r.Body, before)
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusInsufficientStorage)
				fmt.Fprint(w, refusal)
			}))
			defer server.Close()
			err := uploadTo(t, server.URL)
			require.EqualError(t, err, "the disk of attic is full: make room there")
			require.Equal(t, exitFailed, exitCode(err))
		})
	}
}

// A peer that answers and then resets the connection has answered all the same.
func TestRefusedUploadOverAResetConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			t.Error(err)
		}
		fmt.Fprintf(conn, "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			len(`{"detail": "a node may not submit"}`), `{"detail": "a node may not submit"}`)
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}()
	err = uploadTo(t, "http://"+l.Addr().String())
	require.EqualError(t, err, "a node may not submit")
	require.Equal(t, exitNotFound, exitCode(err))
}

func TestBlindnessNamesItsCause(t *testing.T) {
	require.Contains(t, blindness("a.blend", lease.Version{Major: 4}, nil), "no Blender was found on this machine")
	text := blindness("a.blend", lease.Version{Major: 9, Minor: 99}, []lease.Build{{Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}, {Version: lease.Version{Major: 2, Minor: 93}}})
	require.Contains(t, text, "a.blend was saved by Blender 9.99, newer than any on this machine (3.4.1)")
}
