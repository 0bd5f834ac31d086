package peer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func TestSpan(t *testing.T) {
	require.Equal(t, "1-3,5,7-8", span([]int32{1, 2, 3, 5, 7, 8}))
	require.Equal(t, "-2--1", span([]int32{-2, -1}))
	require.Empty(t, span(nil))
}

// Events say what a task is about that was cut off another a moment ago, and how much of
// a frame there is: who only reads events knows nothing else of it.
func TestEventsTellOfPartsAndUnits(t *testing.T) {
	s := lease.NewState()
	now := time.Unix(1, 0)
	do := func(c lease.Command) (out []httpapi.Event) {
		t.Helper()
		c.At = now
		events, err := s.Apply(c)
		require.NoError(t, err)
		j, _ := s.Job("j")
		for _, e := range events {
			ev := httpapi.Event{Type: e.Type, Task: &e.Task}
			if e.Span.Len() > 0 {
				ev.Units = &e.Span
			}
			tell(j, &ev)
			out = append(out, ev)
		}
		return out
	}
	do(lease.Command{Submit: &lease.Submit{Job: "j", Spec: lease.Spec{
		Name: "still", Owner: "ann", Project: "bafyroot", Blend: "a.blend", Frames: lease.Frames{{First: 7, Last: 9, Step: 1}}, Movie: "mp4",
		Tier: lease.Normal, Replicas: 1, Submitter: "desk", Split: lease.Split{By: lease.BySamples, Units: 100},
	}}})
	j, _ := s.Job("j")
	r := lease.Report{Lease: "l", Task: lease.TaskID{Job: "j", Index: j.Next(1)[0]}, Peer: "box"}
	var granted httpapi.Event
	for _, ev := range do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer, Units: 40}}) {
		if ev.Type == lease.TaskGranted {
			granted, r.Task.Index = ev, *ev.Task
		}
	}
	require.Equal(t, "7", granted.Frames)
	require.Equal(t, &lease.Span{To: 40}, granted.Units)
	require.Zero(t, granted.UnitsTotal)

	piece := lease.PieceResult{Frame: 7, Span: lease.Span{To: 10}, CID: "p", Size: 1, Seconds: 1}
	events := do(lease.Command{Record: &lease.Record{Report: r, Pieces: []lease.PieceResult{piece}, Machines: 2}})
	require.Equal(t, lease.PieceRendered, events[0].Type)
	require.Equal(t, &piece.Span, events[0].Units)
	require.Equal(t, []int{10, 300}, []int{events[0].UnitsDone, events[0].UnitsTotal}, "the movie has none")
	require.Equal(t, []int{10, 300}, []int{summary(j).UnitsDone, summary(j).UnitsTotal})
	for at, want := range []int32{10, 0, 0, 0} {
		f := frame(j, &j.Tasks[j.TaskOf(at)], at)
		require.Equal(t, want, f.UnitsDone, f.Frame)
	}
	frames, units := extent(j, &j.Tasks[j.TaskOf(3)])
	require.Equal(t, "movie", frames)
	require.Nil(t, units)
	require.Len(t, j.Tasks, 3+1+3+1)
}
