//go:build unix

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// Whoever ends a command that waits is told the same, Ctrl-C or not: the job goes on.
func TestWaitIsStopped(t *testing.T) {
	for signal, word := range map[syscall.Signal]string{syscall.SIGINT: "interrupted", syscall.SIGTERM: "terminated"} {
		t.Run(word, func(t *testing.T) {
			s := &scriptedPeer{t: t, job: twoFrames()}
			open := make(chan struct{})
			s.streams = []func(func(httpapi.Event)){func(func(httpapi.Event)) {
				if err := syscall.Kill(os.Getpid(), signal); err != nil {
					t.Error(err)
				}
				<-open
			}}
			cl := s.client()
			t.Cleanup(func() { close(open) }) // before the server is closed
			token := filepath.Join(t.TempDir(), "token")
			require.NoError(t, os.WriteFile(token, []byte(cl.token), 0o600))
			var out, said bytes.Buffer
			code := run([]string{"job", "wait", "j1", "--api", cl.base, "--token-file", token}, strings.NewReader(""), &out, &said)
			require.Equal(t, exitInterrupted, code, said.String())
			require.Equal(t, "The job goes on. See it with `vizpeer job watch j1`, end it with `vizpeer job cancel j1`.\nvizpeer: "+word+"\n", said.String())
			require.Empty(t, out.String())
		})
	}
}
