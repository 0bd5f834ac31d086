package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// still is a job of one frame that is split into 512 samples.
func still(now time.Time) httpapi.Job {
	job := httpapi.Job{Frames: []httpapi.Frame{{Frame: 7, State: lease.TaskQueued}}}
	job.ID, job.State, job.StartedAt = "j1", lease.JobRunning, &now
	job.Split, job.UnitsTotal, job.FramesTotal = lease.Split{By: lease.BySamples, Units: 512}, 512, 1
	return job
}

func TestFollowerCountsSamples(t *testing.T) {
	now := time.Now()
	f := follower{clock: func() time.Time { return now }}
	f.reset(still(now), []httpapi.Task{
		{Index: 0, Frames: "7", State: lease.TaskQueued},
		{Index: 1, Frames: "7", Units: &lease.Span{To: 512}, State: lease.TaskQueued},
	})
	require.Equal(t, " 0 of 512 samples, 0s so far", tailText(&f))

	// Each machine gets a part that is cut off when it is granted.
	for i, who := range []string{"attic", "cellar"} {
		at := int32(100 * i)
		f.apply(httpapi.Event{Type: lease.TaskGranted, Task: ptr(int32(2 + i)), Peer: peerID(who), PeerName: who, Frames: "7", Units: &lease.Span{From: at, To: at + 100}})
		f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(2 + i)), Peer: peerID(who), Progress: json.RawMessage(`{"frame": 7, "phase": "loading"}`)})
	}
	attic := f.peers[peerID("attic")]
	require.Equal(t, "attic        frame 7, samples 0-99  loading", attic.line())
	f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(2)), Peer: peerID("attic"), Progress: json.RawMessage(`{"frame": 7, "phase": "rendering"}`)})
	now = now.Add(10 * time.Second)
	f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(2)), Peer: peerID("attic"), Progress: json.RawMessage(`{"frame": 7, "phase": "rendering", "sample": 50, "samples": 100}`)})
	require.Equal(t, "attic        frame 7, samples 0-99  50 %", attic.line())
	require.Equal(t, " 50 of 512 samples, 2 machines, 10s so far, about 1m32s left", tailText(&f), "462 samples at 5 a second")

	// What a piece holds does not count twice, and the job's own count is what counts.
	piece := httpapi.Event{Type: lease.PieceRendered, Task: ptr(int32(2)), Frame: ptr(int32(7)), Peer: peerID("attic"), Units: &lease.Span{To: 48}, UnitsDone: 48, UnitsTotal: 512}
	f.apply(piece)
	require.Equal(t, 50.0, f.units())
	require.Equal(t, "samples 0-47 of frame 7 by attic: 50 of 512 samples, 2 machines, 10s so far, about 1m32s left", pieceText(piece, &f))
	f.apply(httpapi.Event{Type: lease.PieceGone, Frame: ptr(int32(7)), Units: &lease.Span{To: 16}, UnitsDone: 48, UnitsTotal: 512, Reason: "a larger piece holds it"})
	f.apply(httpapi.Event{Type: lease.PieceRendered, Task: ptr(int32(2)), Frame: ptr(int32(7)), Peer: peerID("attic"), Units: &lease.Span{To: 100}, UnitsDone: 100, UnitsTotal: 512})
	require.Equal(t, 100.0, f.units())
	gone := httpapi.Event{Type: lease.PieceGone, Frame: ptr(int32(7)), Units: &lease.Span{To: 100}, UnitsTotal: 512, Reason: lease.NobodyHolds}
	f.apply(gone)
	require.Equal(t, 0.0, f.units())
	require.Equal(t, "samples 0-99 of frame 7 were lost: nobody holds it any more", eventText(gone, lease.BySamples))

	f.apply(httpapi.Event{Type: lease.TaskEnded, Task: ptr(int32(2)), State: "rendered", Peer: peerID("attic"), Frames: "7", Units: &lease.Span{To: 100}})
	require.Equal(t, "attic", attic.line())
	f.apply(httpapi.Event{Type: lease.PieceRendered, Task: ptr(int32(3)), Frame: ptr(int32(7)), Peer: peerID("cellar"), Units: &lease.Span{To: 512}, UnitsDone: 512, UnitsTotal: 512})
	f.apply(httpapi.Event{Type: lease.TaskEnded, Task: ptr(int32(3)), State: "rendered", Peer: peerID("cellar")})
	merge := httpapi.Event{Type: lease.TaskGranted, Task: ptr(int32(0)), Peer: peerID("attic"), PeerName: "attic", Frames: "7"}
	f.apply(merge)
	require.Equal(t, "task 0 (merging frame 7) goes to attic", eventText(merge, lease.BySamples))
	require.Equal(t, "attic        merging frame 7", attic.line())
	require.Equal(t, " 512 of 512 samples, 1 machine, merging, 10s so far", tailText(&f))
}

func peerID(name string) authz.PeerID { return authz.PeerID("12D3KooW" + name) }

// A follower that comes late does not count what was given before it came.
func TestFollowerComesLate(t *testing.T) {
	now := time.Now()
	f := follower{clock: func() time.Time { return now }}
	job := still(now.Add(-time.Minute))
	job.UnitsDone, job.Frames[0].UnitsDone = 300, 300
	f.reset(job, []httpapi.Task{{Index: 1, Frames: "7", Units: &lease.Span{From: 260, To: 400}, State: lease.TaskLeased, Peer: peerID("attic"),
		Progress: json.RawMessage(`{"frame": 7, "phase": "rendering", "sample": 42, "samples": 140, "elapsed": 20}`)}})
	require.Equal(t, 300.0, f.units())
	f.apply(httpapi.Event{Type: lease.TaskProgress, Task: ptr(int32(1)), Peer: peerID("attic"), Progress: json.RawMessage(`{"frame": 7, "phase": "rendering", "sample": 48, "samples": 140}`)})
	require.Equal(t, 306.0, f.units())
	left, ok := f.left(now)
	require.True(t, ok)
	require.InDelta(t, 206/(48/20.0), left.Seconds(), 1)
}

func TestMovieIsNoFrame(t *testing.T) {
	var f follower
	job := twoFrames()
	job.Output, job.Movie = "/out", &httpapi.Frame{Frame: lease.MovieFrame, State: lease.TaskQueued}
	f.reset(job, []httpapi.Task{{Index: 2, Frames: "movie", State: lease.TaskQueued}})
	for n := range int32(2) {
		f.apply(httpapi.Event{Type: lease.FrameResult, Frame: ptr(n + 1), Peer: peerID("attic"), PeerName: "attic"})
		f.apply(httpapi.Event{Type: lease.FrameWritten, Frame: ptr(n + 1)})
	}
	f.apply(httpapi.Event{Type: lease.TaskGranted, Task: ptr(int32(2)), Peer: peerID("attic"), Frames: "movie"})
	require.Contains(t, tailText(&f), " 2 of 2 frames, making the movie, ")
	require.Equal(t, "attic          2 frames   task 2 (making the movie)", f.peers[peerID("attic")].line())
	made := httpapi.Event{Type: lease.FrameResult, Frame: ptr(int32(lease.MovieFrame)), Peer: peerID("attic"), PeerName: "attic", Seconds: 2}
	f.apply(made)
	require.Equal(t, "the movie made by attic in 2.0 s", eventText(made, ""))
	f.job.State = lease.JobDone
	require.Equal(t, 2, f.rendered)
	require.False(t, f.settled(), "it is still to be written")
	f.apply(httpapi.Event{Type: lease.FrameWritten, Frame: ptr(int32(lease.MovieFrame))})
	require.True(t, f.settled())
	require.Len(t, listed(f.job), 3)
	require.Equal(t, "movie", frameCell(listed(f.job)[2].Frame))
}

func TestWorkText(t *testing.T) {
	for want, got := range map[string]string{
		"frames 1-5":                   workText("1-5", nil, ""),
		"frame -5":                     workText("-5", nil, ""),
		"frame 7, samples 8-15":        workText("7", &lease.Span{From: 8, To: 16}, lease.BySamples),
		"frame 7, tile 3":              workText("7", &lease.Span{From: 3, To: 4}, lease.ByTiles),
		"merging frame 7":              workText("7", nil, lease.ByTiles),
		"making the movie":             workText("movie", nil, ""),
		"3/12 tiles":                   framesCell(httpapi.JobSummary{Split: lease.Split{By: lease.ByTiles}, FramesTotal: 1, UnitsDone: 3, UnitsTotal: 12}),
		"0/2":                          framesCell(httpapi.JobSummary{Split: lease.Split{By: lease.ByTiles}, FramesTotal: 2, UnitsDone: 3, UnitsTotal: 24}),
		"0 of 2 frames, 3 of 24 tiles": summaryText(httpapi.JobSummary{Split: lease.Split{By: lease.ByTiles}, FramesTotal: 2, UnitsDone: 3, UnitsTotal: 24}),
		"leased, 3/12 tiles":           stateCell(httpapi.Frame{State: lease.TaskLeased, UnitsDone: 3}, lease.Split{By: lease.ByTiles, Units: 12}),
	} {
		require.Equal(t, want, got)
	}
}

func TestGrepped(t *testing.T) {
	const log = "--- frame 7, task 1, attempt 1 of 2\nFra:7 x\n--- frame 7, task 1, attempt 2 of 2\nan ERROR\nError again\n"
	require.Equal(t, log, grepped(log, ""))
	require.Equal(t, "--- frame 7, task 1, attempt 2 of 2\nan ERROR\nError again\n", grepped(log, "error"))
	require.Empty(t, grepped(log, "nothing"))
}

func TestWhichFrameToShow(t *testing.T) {
	job := httpapi.Job{}
	_, err := toShow(job)
	require.Equal(t, exitNotFound, exitCode(err))
	job.Frames = []httpapi.Frame{{Frame: 1, State: lease.TaskDone, CID: "x"}, {Frame: 2, State: lease.TaskDone, CID: "y"}, {Frame: 3, State: lease.TaskQueued}}
	n, err := toShow(job)
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	job.Frames[2].State = lease.TaskLeased
	n, err = toShow(job)
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
	n, err = toShow(httpapi.Job{Frames: []httpapi.Frame{{Frame: 9, State: lease.TaskQueued}}})
	require.NoError(t, err)
	require.EqualValues(t, 9, n)
}
