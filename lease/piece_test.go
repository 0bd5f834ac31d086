package lease_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// still is a job of one frame of 100 samples, or as split says.
func (f *farm) still(id lease.JobID, split lease.Split) *lease.Job {
	return f.submit(id, "7", func(s *lease.Spec) { s.Chunk, s.Split = 0, split })
}

var samples = lease.Split{By: lease.BySamples, Units: 100}

// part grants the next n units of a job's part that waits.
func (f *farm) part(j *lease.Job, n int32, p authz.PeerID) lease.Report {
	f.t.Helper()
	next := j.Next(1)
	require.Len(f.t, next, 1)
	f.n++
	r := lease.Report{Lease: lease.ID("part" + string(rune('a'+f.n))), Task: lease.TaskID{Job: j.ID, Index: next[0]}, Peer: p}
	for _, e := range f.do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: p, Units: n}}) {
		if e.Type == lease.TaskGranted {
			r.Task.Index = e.Task
		}
	}
	return r
}

func pieceOf(from, to int32) []lease.PieceResult {
	cid := fmt.Sprintf("p-%d-%d", from, to)
	return []lease.PieceResult{{Frame: 7, Span: lease.Span{From: from, To: to}, CID: cid, Size: 1, Seconds: float64(to-from) / 100}}
}

func merged(j *lease.Job, cid string) lease.Complete {
	return lease.Complete{
		Frames: []lease.Result{{Frame: 7, CID: cid, Name: "0007.png", Size: 1, Seconds: 1}},
		Pieces: []lease.PieceResult{{Frame: 7, Span: lease.Span{To: j.Units}, CID: cid + ".exr", Size: 1}}, Machines: 3,
	}
}

func TestFrameIsSplitAndMerged(t *testing.T) {
	f := newFarm(t)
	j := f.still("j", samples)
	require.Equal(t, 1, j.Waits(), "the merge waits for the samples")
	require.Equal(t, 100, j.Uncovered())
	a := f.part(j, 30, "peer-a")
	require.Equal(t, lease.Span{To: 30}, j.Tasks[a.Task.Index].Span)
	b := f.part(j, 0, "peer-b")
	require.Equal(t, lease.Span{From: 30, To: 100}, j.Tasks[b.Task.Index].Span)

	// A piece that grows takes the place of the one before.
	f.do(lease.Command{Record: &lease.Record{Report: a, Pieces: pieceOf(0, 10), Machines: 3}})
	events := f.do(lease.Command{Record: &lease.Record{Report: a, Pieces: pieceOf(0, 20), Machines: 3}})
	require.Equal(t, []lease.EventType{lease.PieceGone, lease.PieceRendered}, types(events), "nobody else held the one before")
	require.Equal(t, 80, j.Uncovered())
	require.EqualValues(t, 20, j.Covered(0))
	require.InDelta(t, 0.01, j.Pace(lease.Hand{Peer: "peer-a"}).Seconds(), 1e-9, "each sample counts once")
	require.Equal(t, 20, j.Pace(lease.Hand{Peer: "peer-a"}).Frames())

	// The machine is lost after somebody else held its piece, and before the next one
	// was: the rest is leased again.
	events = f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 7, CID: "p-0-20", Peer: "peer-c", Machines: 3}})
	require.Equal(t, []lease.EventType{lease.PieceKept}, types(events))
	f.do(lease.Command{Record: &lease.Record{Report: a, Pieces: pieceOf(0, 25), Machines: 3}})
	require.Equal(t, 75, j.Uncovered())
	f.do(lease.Command{Lose: &lease.Lose{Peer: "peer-a", Machines: 2}})
	require.Equal(t, 80, j.Uncovered())
	c := f.part(j, 0, "peer-c")
	require.Equal(t, []lease.Span{{From: 20, To: 30}}, j.Gaps(&j.Tasks[c.Task.Index]))

	// Told to stop early, a machine gives what it has, and the rest waits again.
	f.do(lease.Command{Complete: &lease.Complete{Report: b, Pieces: pieceOf(30, 90), Machines: 2}})
	require.Equal(t, lease.TaskQueued, j.Tasks[b.Task.Index].State)
	// What the lost machine still sends is a part of what is wanted, and is taken.
	f.do(lease.Command{Record: &lease.Record{Report: a, Pieces: pieceOf(0, 30), Machines: 2}})
	require.Equal(t, 10, j.Uncovered())
	f.do(lease.Command{Complete: &lease.Complete{Report: c, Machines: 2}})
	require.Equal(t, lease.TaskRendered, j.Tasks[c.Task.Index].State)
	f.refuse(lease.ErrNotQueued, lease.Command{Grant: &lease.Grant{Lease: "early", Task: lease.TaskID{Job: "j"}, Peer: "peer-b"}})
	d := f.part(j, 0, "peer-b")
	f.do(lease.Command{Complete: &lease.Complete{Report: d, Pieces: pieceOf(90, 100), Machines: 2}})
	require.Zero(t, j.Uncovered())

	merge := f.part(j, 0, "peer-b")
	require.Zero(t, merge.Task.Index)
	done := merged(j, "frame")
	done.Report = merge
	f.do(lease.Command{Complete: &done})
	require.Len(t, j.PiecesOf(0), 1, "all samples in one piece")
	require.Equal(t, lease.JobRunning, j.State)
	f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 7, CID: "frame", Peer: "peer-c", Machines: 3}})
	require.Equal(t, lease.JobDone, j.State)
	require.Equal(t, len(j.Tasks), j.Count(lease.TaskDone))

	// More samples: only those are rendered, and the frame stays until it has them.
	f.refuse(lease.ErrInvalid, lease.Command{More: &lease.More{Job: "j", Samples: 0}})
	f.do(lease.Command{More: &lease.More{Job: "j", Samples: 50}})
	require.Equal(t, 50, j.Uncovered())
	require.Equal(t, "frame", j.Frames[0].CID)
	e := f.part(j, 0, "peer-a")
	f.do(lease.Command{Complete: &lease.Complete{Report: e, Pieces: []lease.PieceResult{{Frame: 7, Span: lease.Span{From: 100, To: 150}, CID: "more", Size: 1}}, Machines: 3}})
	again := merged(j, "better")
	again.Report = f.part(j, 0, "peer-c")
	f.do(lease.Command{Complete: &again})
	require.Equal(t, "better", j.Frames[0].CID)
}

func TestLostPiecesAreRenderedAgain(t *testing.T) {
	f := newFarm(t)
	j := f.still("j", samples)
	a := f.part(j, 0, "peer-a")
	f.do(lease.Command{Complete: &lease.Complete{Report: a, Pieces: pieceOf(0, 100), Machines: 3}})
	merge := f.part(j, 0, "peer-b")
	f.do(lease.Command{Lose: &lease.Lose{Peer: "peer-a", Machines: 2}})
	require.Equal(t, 100, j.Uncovered())
	require.Equal(t, lease.TaskQueued, j.Tasks[a.Task.Index].State)
	// Whoever had fetched it all before can still merge it.
	done := merged(j, "frame")
	done.Report = merge
	f.do(lease.Command{Complete: &done})
	require.Zero(t, j.Uncovered())
	require.Zero(t, j.Waits())
}

func TestMoreNeedsSamples(t *testing.T) {
	f := newFarm(t)
	f.submit("whole", "1-2")
	f.still("tiles", lease.Split{By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2})
	for _, id := range []lease.JobID{"whole", "tiles"} {
		_, err := f.try(lease.Command{More: &lease.More{Job: id, Samples: 10}})
		require.ErrorIs(t, err, lease.ErrState)
		require.ErrorContains(t, err, "--split samples")
	}
}

func TestPiecesThatCannotBe(t *testing.T) {
	f := newFarm(t)
	j := f.still("j", samples)
	a := f.part(j, 30, "peer-a")
	good := pieceOf(0, 10)[0]
	for _, spoil := range []func(*lease.PieceResult){
		func(p *lease.PieceResult) { p.Frame = 8 }, func(p *lease.PieceResult) { p.From = -1 }, func(p *lease.PieceResult) { p.To = p.From },
		func(p *lease.PieceResult) { p.To = 40 }, func(p *lease.PieceResult) { p.CID = "" }, func(p *lease.PieceResult) { p.Size = 0 },
		func(p *lease.PieceResult) { p.Seconds = -1 },
	} {
		bad := good
		spoil(&bad)
		f.refuse(lease.ErrInvalid, lease.Command{Record: &lease.Record{Report: a, Pieces: []lease.PieceResult{bad}}})
	}
	f.refuse(lease.ErrInvalid, lease.Command{Record: &lease.Record{Report: a, Frames: results(7)}})
}

// A movie is made when all frames are there, and anew when some are rendered again.
func TestMovieIsMadeLast(t *testing.T) {
	f := newFarm(t)
	_, err := f.try(lease.Command{Submit: &lease.Submit{Job: "bad", Spec: func() lease.Spec {
		s := spec(lease.Frames{{First: 1, Last: 4, Step: 1}})
		s.Movie = "avi"
		return s
	}()}})
	require.ErrorContains(t, err, "mp4, mkv, webm, mov")
	j := f.submit("j", "1-4", func(s *lease.Spec) { s.Movie, s.Replicas = "mp4", 1 })
	require.Equal(t, 4, j.Pictures())
	require.Equal(t, 2, j.Waits())
	for i := range int32(2) {
		f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", i, "a"), Frames: results(2*i+1, 2*i+2), Machines: 1}})
	}
	require.Equal(t, []int32{2}, j.Next(9))
	movie := f.grant("j", 2, "a")
	require.True(t, j.Makes(&j.Tasks[2]))
	result := lease.Result{Frame: lease.MovieFrame, CID: "movie", Name: "shot.mp4", Size: 1}
	for _, name := range []string{"shot.png", ".mp4", "../shot.mp4", "shot.exe"} {
		bad := result
		bad.Name = name
		f.refuse(lease.ErrInvalid, lease.Command{Complete: &lease.Complete{Report: movie, Frames: []lease.Result{bad}}})
	}
	f.do(lease.Command{Complete: &lease.Complete{Report: movie, Frames: []lease.Result{result}, Machines: 1}})
	require.Equal(t, lease.JobDone, j.State)

	f.do(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 2, Last: 2, Step: 1}}}})
	require.Equal(t, []int32{0}, j.Next(9), "the movie waits for the frame")
}

// A frame in as many tiles as there may be: what each report costs must not grow with
// their square.
func TestThousandsOfTiles(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: one goroutine")
	}
	f := newFarm(t)
	j := f.still("j", lease.Split{By: lease.ByTiles, Units: lease.MaxTiles, Columns: 64, Rows: 64})
	for tile := int32(0); j.Uncovered() > 0; tile++ {
		r := lease.Report{Lease: lease.ID(fmt.Sprint("tile", tile)), Task: lease.TaskID{Job: "j", Index: j.Next(1)[0]}, Peer: "peer-a"}
		for _, e := range f.do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer, Units: 1}}) {
			if e.Type == lease.TaskGranted {
				r.Task.Index = e.Task
			}
		}
		f.do(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Pieces: []lease.PieceResult{
			{Frame: 7, Span: j.Tasks[r.Task.Index].Span, CID: fmt.Sprint("tile", tile), Size: 1},
		}}})
	}
	require.Len(t, j.PiecesOf(0), lease.MaxTiles)
	require.Equal(t, []int32{0}, j.Next(9), "only the merge is left")
}
