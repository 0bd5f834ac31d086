package peer

import (
	"errors"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/lease"
)

// Frames stay as long as the farm remembers their job, however long ago they were
// kept, and while nobody can be asked.
func TestFramesOutliveLongJobs(t *testing.T) {
	now := time.Now()
	all := func(yield func(blobs.Pin, error) bool) {
		for holder, age := range map[string]time.Duration{
			framePin("open"): keepFrames + time.Hour, framePin("forgotten"): keepFrames + time.Hour, framePin("young"): keepFrames - time.Hour,
			uploadPin("ann"): keepUploads + time.Hour, uploadPin("bob"): keepUploads - time.Hour,
			jobPin("open"): 2 * keepFrames, userPin("ann"): 2 * keepFrames, nextPin("open"): 2 * keepFrames,
		} {
			if !yield(blobs.Pin{Holder: holder, At: now.Add(-age)}, nil) {
				return
			}
		}
	}
	holders := func(pins iter.Seq2[blobs.Pin, error], recall func([]lease.JobID) ([]lease.JobID, error)) (out []string) {
		list, err := stale(pins, now, recall)
		require.NoError(t, err)
		for _, pin := range list {
			out = append(out, pin.Holder)
		}
		return slices.Sorted(slices.Values(out))
	}
	require.Equal(t, []string{framePin("forgotten"), uploadPin("ann")}, holders(all, func(jobs []lease.JobID) ([]lease.JobID, error) {
		require.ElementsMatch(t, []lease.JobID{"open", "forgotten"}, jobs)
		return []lease.JobID{"open"}, nil
	}))
	require.Equal(t, []string{uploadPin("ann")}, holders(all, func([]lease.JobID) ([]lease.JobID, error) { return nil, errNoLeader }))

	many := func(yield func(blobs.Pin, error) bool) {
		for i := range recallBatch + 1 {
			if !yield(blobs.Pin{Holder: framePin(lease.JobID(time.Duration(i).String())), At: now.Add(-2 * keepFrames)}, nil) {
				return
			}
		}
	}
	require.Len(t, holders(many, func(jobs []lease.JobID) ([]lease.JobID, error) {
		require.LessOrEqual(t, len(jobs), recallBatch)
		return jobs[:1], nil
	}), recallBatch-1)
	broken := errors.New("broken")
	_, err := stale(func(yield func(blobs.Pin, error) bool) { yield(blobs.Pin{}, broken) }, now, nil)
	require.ErrorIs(t, err, broken)
}
