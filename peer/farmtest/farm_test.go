package farmtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

func TestJobIsRenderedByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		out := t.TempDir()
		start := time.Now()
		id := f.Submit(f.Peers[1], "1-30", func(s *httpapi.Submission) { s.Output = out })
		j := f.Await(id, lease.JobDone, time.Minute)
		require.Less(t, time.Since(start), 25*time.Second, "30 frames of a second each on three machines")
		require.Len(t, j.Frames, 30)
		f.Within(5*time.Second, "all frames are in the output folder", func() bool { return len(farmtest.Files(t, out)) == 30 })
		require.Equal(t, "0001.png", farmtest.Files(t, out)[0])
		total := 0
		for _, m := range f.Peers {
			n := len(m.Blender.Rendered())
			require.NotZero(t, n, "%s rendered nothing", m.Name)
			total += n
		}
		require.Equal(t, 30, total, "each frame is rendered once")
		for _, frame := range j.Frames {
			require.Equal(t, lease.TaskDone, frame.State)
			require.GreaterOrEqual(t, frame.Holders, 2, fmt.Sprint("frame ", frame.Frame))
		}
	})
}

func TestLostWorkerCostsItsFramesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		id := f.Submit(f.Peers[0], "1-40", func(s *httpapi.Submission) { s.Chunk = 10 })
		lost := f.Peers[1]
		f.Within(time.Minute, "the worker has rendered some", func() bool { return len(lost.Blender.Rendered()) >= 3 })
		lost.Crash()
		j := f.Await(id, lease.JobDone, 2*time.Minute)
		twice := 0
		for frame := int32(1); frame <= 40; frame++ {
			n := 0
			for _, m := range f.Peers {
				n += m.Blender.Rendered()[frame]
			}
			require.NotZero(t, n)
			twice += n - 1
		}
		require.LessOrEqual(t, twice, 1, "only a frame that nobody else held yet may be rendered again")
		for _, frame := range j.Frames {
			require.Equal(t, lease.TaskDone, frame.State)
		}
	})
}

func TestLeaderRestartLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		founder := f.Peers[0]
		out := t.TempDir()
		id := f.Submit(f.Peers[1], "1-40", func(s *httpapi.Submission) { s.Chunk = 10; s.Output = out })
		f.Within(time.Minute, "some frames are done", func() bool {
			done := 0
			for _, frame := range f.Job(id).Frames {
				if frame.State == lease.TaskDone {
					done++
				}
			}
			return done >= 6
		})
		founder.Crash()
		founder.Start()
		f.Within(10*time.Second, "the founder leads again", founder.Leads)
		f.Await(id, lease.JobDone, 2*time.Minute)
		f.Within(5*time.Second, "all frames are in the output folder", func() bool { return len(farmtest.Files(t, out)) == 40 })
		// The workers went on while nobody led; only what the founder itself was
		// rendering had to be done again.
		for frame := int32(1); frame <= 40; frame++ {
			require.LessOrEqual(t, f.Peers[1].Blender.Rendered()[frame]+f.Peers[2].Blender.Rendered()[frame], 1, "frame %d", frame)
		}
	})
}

func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		for _, m := range f.Peers {
			m.Blender.Fail = func(frame int32) *render.Error {
				if frame == 7 {
					return &render.Error{Kind: lease.FailCrash, Reason: "Blender crashed (signal 11)", Tail: "Writing: /tmp/shot.crash.txt"}
				}
				return nil
			}
		}
		j := f.Await(f.Submit(f.Peers[0], "1-10"), lease.JobFailed, 5*time.Minute)
		require.Contains(t, j.Reason, "times, the last time because: ")
		require.Contains(t, j.Reason, "Blender crashed (signal 11)")
		require.Contains(t, j.Log, "shot.crash.txt")

		unmet := f.Submit(f.Peers[0], "1", func(s *httpapi.Submission) { s.Needs.RequireGPU = true; s.Needs.MinRAM = 64 << 30 })
		f.Within(time.Minute, "the job says what it waits for", func() bool {
			return strings.Contains(f.Job(unmet).Reason, "needs 64.0 GiB RAM, has 8.0 GiB")
		})
		require.Contains(t, f.Job(unmet).Reason, "needs a GPU, has none")

		slow := f.Submit(f.Peers[0], "1-1000", func(s *httpapi.Submission) { s.Chunk = 100 })
		f.Within(time.Minute, "it runs", func() bool { return f.Job(slow).State == lease.JobRunning })
		_, err := f.Peers[0].Queue().Control(t.Context(), farmtest.Operator, slow, httpapi.Control{Do: httpapi.Cancel})
		require.NoError(t, err)
		require.Equal(t, lease.JobCancelled, f.Job(slow).State)
		f.Within(5*time.Second, "nobody renders it any more", func() bool {
			return len(f.Peers[0].Local().Status(t.Context()).Running)+len(f.Peers[1].Local().Status(t.Context()).Running) == 0
		})
	})
}

// Once others hold the project and the frames, neither the submitter's machine
// nor the one that rendered is needed.
func TestMachinesMayBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		submitter := f.Peers[1]
		submitter.Blender.PerFrame = time.Hour
		id := f.Submit(submitter, "1-20")
		f.Within(time.Minute, "others hold the project", func() bool { return f.Job(id).ProjectHolders >= 2 })
		submitter.Crash()
		f.Await(id, lease.JobDone, 3*time.Minute)
		for _, m := range []*farmtest.Member{f.Peers[0], f.Peers[2]} {
			f.Within(time.Minute, m.Name+" is not needed any more", func() bool { return m.Local().Status(t.Context()).Unkept == 0 })
		}
	})
}

// People look while machines work: neither may wait for the other for ever.
func TestReadingWhileRendering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		for _, m := range f.Peers {
			m.Blender.PerFrame = 20 * time.Millisecond
		}
		id := f.Submit(f.Peers[0], "1-300")
		stop := make(chan struct{})
		var readers sync.WaitGroup
		admin := authz.Principal{User: "admin", Role: authz.Admin}
		for range 4 {
			readers.Go(func() {
				q, tick := f.Peers[0].Queue(), time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
					case <-stop:
						return
					}
					_, err := q.Peers(t.Context(), admin)
					assert.NoError(t, err)
					_, err = q.Job(t.Context(), admin, id, "")
					assert.NoError(t, err)
					_, err = q.Tasks(t.Context(), admin, id)
					assert.NoError(t, err)
					_, err = q.Farm(t.Context(), admin)
					assert.NoError(t, err)
				}
			})
		}
		f.Await(id, lease.JobDone, time.Minute)
		close(stop)
		readers.Wait()
	})
}

// A folder that cannot be written holds up neither the frames nor the job, and is
// written as soon as it can be.
func TestOutputFolderInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		for _, m := range f.Peers {
			m.Blender.PerFrame = 20 * time.Millisecond
		}
		// More frames than a machine is asked to keep at a time.
		const frames = 300
		out := filepath.Join(t.TempDir(), "out")
		id := f.Submit(f.Peers[1], fmt.Sprint("1-", frames), func(s *httpapi.Submission) { s.Output = out })
		require.NoError(t, os.RemoveAll(out))
		require.NoError(t, os.WriteFile(out, []byte("a file stands where the folder was"), 0o600))
		j := f.Await(id, lease.JobDone, time.Minute)
		require.False(t, j.Frames[0].Delivered)
		f.Within(time.Minute, "the job says why", func() bool {
			return strings.Contains(f.Job(id).OutputError, "the output folder cannot be made")
		})
		other := t.TempDir()
		f.Await(f.Submit(f.Peers[1], "1-6", func(s *httpapi.Submission) { s.Output = other }), lease.JobDone, time.Minute)
		f.Within(5*time.Second, "another job's folder is written meanwhile", func() bool { return len(farmtest.Files(t, other)) == 6 })
		require.NoError(t, os.Remove(out))
		f.Within(time.Minute, "the frames are written", func() bool {
			return !slices.ContainsFunc(f.Job(id).Frames, func(frame httpapi.Frame) bool { return !frame.Delivered })
		})
		require.Len(t, farmtest.Files(t, out), frames)
		require.Empty(t, f.Job(id).OutputError)
	})
}
