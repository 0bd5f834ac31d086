package main

import (
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// get asks a peer's API as its own user.
func (p *realPeer) get(path string) (status int, body []byte) {
	t := p.farm.t
	t.Helper()
	cl, err := (&cli{dataDir: p.dir}).client()
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, cl.base+path, nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+cl.token)
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, body
}

// A still is rendered by several machines, in tiles to the bit and in samples to the
// last level of a few pixels, and one of them may be lost on the way.
func TestRealFarmSplitsAStill(t *testing.T) {
	f := startRealFarm(t, "desk", "box1", "box2")
	blend := sampleScene(t)
	still := func(args ...string) (httpapi.Submitted, string) {
		out := t.TempDir()
		var sent httpapi.Submitted
		f.peers[0].run(&sent, append([]string{"render", blend, "--frames", "3", "--output", out}, args...)...)
		return sent, out
	}

	t.Run("tiles", func(t *testing.T) {
		sent, out := still("--tiles", "3x2", "--samples", "32")
		f.peers[0].run(nil, "job", "wait", string(sent.Job))
		samePixels(t, pictures(t, plainRender(t, blend, "s.cycles.samples = 32", 3, 3))[0], pictures(t, out)[0], 0)
		require.Len(t, f.peers[0].job(sent.Job).Frames, 1)
		status, thumb := f.peers[0].get(fmt.Sprintf("/v1/jobs/%s/frames/3?size=thumb", sent.Job))
		require.Equal(t, http.StatusOK, status, "%s", thumb)
		img, err := jpeg.Decode(strings.NewReader(string(thumb)))
		require.NoError(t, err)
		require.Equal(t, 320, img.Bounds().Dx())
	})

	t.Run("samples and a kill", func(t *testing.T) {
		const total = 400
		var lost httpapi.Status
		f.peers[2].run(&lost, "status")
		cl, err := (&cli{dataDir: f.peers[0].dir}).client()
		require.NoError(t, err)
		var sent httpapi.Submitted
		var out string
		shown := false
		kept := map[lease.Span]bool{} // what the lost machine gave
		killed := time.Time{}
		after := int32(0) // samples that others gave since then
		had := lease.Span{}
		require.NoError(t, cl.events(t.Context(), "", listener{
			opened: func() error {
				if sent.Job == "" {
					sent, out = still("--split", "samples", "--samples", fmt.Sprint(total))
				}
				return nil
			},
			event: func(ev httpapi.Event) error {
				switch {
				case ev.Job != sent.Job:
				case ev.Preview != nil && !shown:
					shown = true
					status, picture := f.peers[0].get(fmt.Sprintf("/v1/jobs/%s/frames/3?size=preview", sent.Job))
					require.Equal(t, http.StatusOK, status, "%s", picture)
					_, err := jpeg.Decode(strings.NewReader(string(picture)))
					require.NoError(t, err)
				case ev.Type == lease.PieceKept && ev.Peer == lost.Peer && killed.IsZero():
					had = *ev.Units
					kept[had] = true
					if had.Len() >= 16 { // a few batches are there and others hold them
						f.peers[2].kill()
						killed = time.Now()
					}
				case ev.Type == lease.PieceRendered && !killed.IsZero() && ev.Peer != lost.Peer:
					require.False(t, ev.Units.Meets(had) && !ev.Units.Holds(lease.Span{To: total}), "samples %v are rendered again, and %v are there", *ev.Units, had)
					after += ev.Units.Len()
				case ev.Type == lease.JobEnded:
					return errStop
				}
				return nil
			},
		}))
		require.False(t, killed.IsZero(), "the machine gave nothing")
		require.True(t, shown, "nobody saw anything of it")
		require.Equal(t, lease.JobDone, f.peers[0].job(sent.Job).State)
		f.within(10*time.Second, "the frame is in the folder", func() bool { return len(pictures(t, out)) == 1 })
		// Above 256 samples plain Blender has to be told which pattern's parts are exact.
		want := pictures(t, plainRender(t, blend, fmt.Sprintf("s.cycles.samples = %d; s.cycles.sampling_pattern = 'SOBOL'", total), 3, 3))[0]
		samePixels(t, want, pictures(t, out)[0], 0.001)
		f.peers[2].up()

		more, err := f.peers[0].try("job", "more", string(sent.Job), "--samples", "50")
		require.NoError(t, err, "%s", more)
		f.peers[0].run(nil, "job", "wait", string(sent.Job))
		require.EqualValues(t, total+50, f.peers[0].job(sent.Job).Split.Units)
		want = pictures(t, plainRender(t, blend, fmt.Sprintf("s.cycles.samples = %d; s.cycles.sampling_pattern = 'SOBOL'", total+50), 3, 3))[0]
		f.within(10*time.Second, "the frame is written anew", func() bool {
			status, picture := f.peers[0].get(fmt.Sprintf("/v1/jobs/%s/frames/3", sent.Job))
			have, err := os.ReadFile(pictures(t, out)[0])
			return status == http.StatusOK && err == nil && string(have) == string(picture)
		})
		samePixels(t, want, pictures(t, out)[0], 0.001)
	})
}

// A rented machine that is told that it will be taken away gives what it has and takes
// nothing more: no sample is rendered twice.
func TestRealFarmHeedsASpotNotice(t *testing.T) {
	f := startRealFarm(t, "desk")
	notice := filepath.Join(t.TempDir(), "notice")
	rented := &realPeer{farm: f, dir: filepath.Join(f.dir, "rented"), more: []string{"--spot-notice", notice}}
	f.peers = append(f.peers, rented)
	var invited httpapi.Invited
	f.peers[0].run(&invited, "invite", "--role", "node")
	rented.run(nil, "join", invited.Ticket, "--name", "rented")
	rented.up()
	var is httpapi.Status
	rented.run(&is, "status")
	state := func() string {
		var peers []httpapi.Peer
		f.peers[0].run(&peers, "peer", "ls")
		for _, p := range peers {
			if p.ID == is.Peer {
				return p.State
			}
		}
		return ""
	}
	f.within(time.Minute, "the rented machine is online", func() bool { return state() == "idle" })

	cl, err := (&cli{dataDir: f.peers[0].dir}).client()
	require.NoError(t, err)
	blend, out := sampleScene(t), t.TempDir()
	var sent httpapi.Submitted
	told, ended := false, false
	pieces := map[authz.PeerID]map[int32]int32{} // of each machine, by their beginnings
	require.NoError(t, cl.events(t.Context(), "", listener{
		opened: func() error {
			if sent.Job == "" {
				f.peers[0].run(&sent, "render", blend, "--frames", "3", "--split", "samples", "--samples", "400", "--output", out)
			}
			return nil
		},
		event: func(ev httpapi.Event) error {
			switch {
			case ev.Job != sent.Job:
			case ev.Type == lease.PieceRendered && ev.Units.Len() < 400:
				if pieces[ev.Peer] == nil {
					pieces[ev.Peer] = map[int32]int32{}
				}
				pieces[ev.Peer][ev.Units.From] = ev.Units.To
				if ev.Peer == is.Peer && !told {
					told = true
					require.NoError(t, os.WriteFile(notice, []byte(`{"action": "terminate"}`), 0o600))
				}
			case ev.Type == lease.TaskRequeued && ev.Peer == is.Peer:
				ended = true
				require.Contains(t, ev.Reason, "samples are still to be rendered")
			case ev.Type == lease.TaskEnded && ev.Peer == is.Peer && told:
				ended = true // the batch that it was at was its last
			case ev.Type == lease.TaskGranted && ev.Peer == is.Peer && ended:
				return errors.New("a machine that goes was given more")
			case ev.Type == lease.JobEnded:
				return errStop
			}
			return nil
		},
	}))
	require.True(t, told && ended)
	require.Equal(t, lease.JobDone, f.peers[0].job(sent.Job).State)
	total := int32(0)
	for _, of := range pieces {
		for from, to := range of {
			total += to - from
		}
	}
	require.EqualValues(t, 400, total, "each sample is rendered once: %v", pieces)
	require.Equal(t, "draining", state())
}
