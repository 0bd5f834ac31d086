package farmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// A worker that finishes an attempt while nobody leads keeps its frames and hands
// them in when somebody does.
func TestLeaderAwayLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2)
		for _, m := range f.Peers {
			m.Blender.PerFrame = 2 * time.Second
		}
		id := f.Submit(f.Peers[1], "1-30", func(s *httpapi.Submission) { s.Chunk = 10 })
		f.Within(time.Minute, "the workers have begun", func() bool {
			return len(f.Peers[1].Blender.Rendered()) >= 3 && len(f.Peers[2].Blender.Rendered()) >= 3
		})
		f.Peers[0].Crash()
		f.Within(time.Minute, "the workers have ended what they had", func() bool {
			return len(f.Peers[1].Blender.Rendered()) >= 10 && len(f.Peers[2].Blender.Rendered()) >= 10
		})
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		f.Await(id, lease.JobDone, 5*time.Minute)
		for frame := int32(1); frame <= 30; frame++ {
			require.LessOrEqual(t, f.Peers[1].Blender.Rendered()[frame]+f.Peers[2].Blender.Rendered()[frame], 1, "frame %d", frame)
		}
	})
}

// A job whose project nobody else holds yet waits for its submitter, and no
// machine is blamed for it.
func TestSubmitterGoneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2)
		s := f.Peers[1]
		s.Blender.Fail = func(int32) *render.Error {
			return &render.Error{Kind: lease.FailMachine, Reason: "this machine's Blender is gone"}
		}
		id := f.Submit(s, "1-10")
		s.Crash()
		f.Within(2*time.Minute, "the job says what it waits for", func() bool {
			return strings.Contains(f.Job(id).Reason, "it goes on when worker1 is back")
		})
		s.Start()
		f.Await(id, lease.JobDone, 5*time.Minute)
	})
}

// The copy of the roster may be lost: a machine still knows whom to ask.
func TestRosterLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		for _, m := range f.Peers {
			m.Stop()
			require.NoError(t, os.Remove(filepath.Join(m.cfg.DataDir, "roster.json")))
		}
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		f.Peers[1].Start()
		f.Online(2)
	})
}
