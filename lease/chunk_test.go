package lease_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// A task of which some frames are there is cut by those that are not: no part of it
// has nothing to do.
func TestCutWhatIsLeft(t *testing.T) {
	for _, c := range []struct {
		there  []int32 // frames
		grant  int32
		frames []int32 // leased
		left   []int32 // that wait
	}{
		{[]int32{1, 2}, 2, []int32{3, 4}, []int32{5, 6}},
		{[]int32{2, 3, 6}, 2, []int32{1, 4}, []int32{5}},
		{[]int32{3, 4, 5, 6}, 2, []int32{1, 2}, nil},
		{[]int32{3, 4, 5, 6}, 1, []int32{1}, []int32{2}},
		{[]int32{1, 2, 3, 4, 5}, 9, []int32{6}, nil},
	} {
		f := newFarm(t)
		j := f.submit("j", "1-6", func(s *lease.Spec) { s.Chunk, s.Order = 0, lease.Linear })
		late := f.grant("j", 0, "bob")
		f.do(lease.Command{Expire: &lease.Expire{Lease: late.Lease, Task: late.Task}})
		f.do(lease.Command{Record: &lease.Record{Report: late, Frames: results(c.there...), Machines: 3}})
		f.do(lease.Command{Grant: &lease.Grant{Lease: "l", Task: late.Task, Peer: "cyd", Frames: c.grant}})
		var frames, left []int32
		for i := range j.Tasks {
			task := &j.Tasks[i]
			if require.NotZero(t, j.Left(task), "task %d has nothing to do", i); len(task.Lives()) > 0 {
				frames = j.Remaining(task)
			} else {
				left = j.Remaining(task)
			}
		}
		require.Equal(t, c.frames, frames, c)
		require.Equal(t, c.left, left, c)
	}
}
