package peer

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func resultOf(frame int32) lease.Result {
	return lease.Result{Frame: frame, CID: fmt.Sprint("cid", frame), Name: fmt.Sprintf("%04d.png", frame), Size: 1}
}

func reportOf(id lease.ID) lease.Report {
	return lease.Report{Lease: id, Task: lease.TaskID{Job: lease.JobID("job of " + string(id))}}
}

func openTestResults(t *testing.T, dir string) *results {
	t.Helper()
	r, err := openResults(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return r
}

// offered lists what would be offered, by lease.
func (r *results) offered() map[lease.ID][]lease.Result {
	out := map[lease.ID][]lease.Result{}
	for _, up := range r.orphans(func(lease.ID) bool { return false }) {
		out[up.Record.Lease] = up.Record.Frames
	}
	return out
}

// What was rendered is there again after kill -9, whose last line may be cut off, and
// what others hold is not.
func TestResultsSurvive(t *testing.T) {
	dir := t.TempDir()
	r := openTestResults(t, dir)
	require.NoError(t, r.add(pending{Report: reportOf("a"), Frames: []lease.Result{resultOf(1)}}))
	require.NoError(t, r.add(pending{Report: reportOf("b"), Frames: []lease.Result{resultOf(2)}}))
	require.NoError(t, r.add(pending{Report: reportOf("a"), Frames: []lease.Result{resultOf(3), resultOf(4)}}))
	require.NoError(t, r.add(pending{Report: reportOf("c"), Frames: []lease.Result{resultOf(5)}}))
	r.forget("b")
	r.forget("unknown")
	r.forgetJob("job of c")
	want := map[lease.ID][]lease.Result{"a": {resultOf(1), resultOf(3), resultOf(4)}}
	require.Equal(t, want, r.offered())
	require.Equal(t, 3, r.frames())

	killed := t.TempDir() // with all that had been written
	text, err := os.ReadFile(filepath.Join(dir, resultsFile))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(killed, resultsFile), append(text, `{"add":{"report":{"lea`...), 0o600))
	for range 2 {
		again := openTestResults(t, killed)
		require.Equal(t, want, again.offered())
		require.Equal(t, "job of a", string(again.all["a"].Report.Task.Job))
		require.NoError(t, again.add(pending{Report: reportOf("d"), Frames: []lease.Result{resultOf(6)}}))
		again.forget("d")
		require.NoError(t, again.close())
	}
	r.forget("a")
	require.NoError(t, r.close())
	text, err = os.ReadFile(filepath.Join(dir, resultsFile))
	require.NoError(t, err)
	require.Empty(t, string(text), "nothing of the past")
}

// An earlier version wrote a file for each lease.
func TestResultsOfAnEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	old := `{"report":{"lease":"a","task":{"job":"j","index":3},"peer":"p"},"frames":[{"frame":1,"cid":"cid1","name":"0001.png","size":1,"seconds":0}]}`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.json"), []byte(old), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b.json"), []byte(old[:40]), 0o600))
	for range 2 {
		r := openTestResults(t, dir)
		require.Equal(t, map[lease.ID][]lease.Result{"a": {resultOf(1)}}, r.offered())
		require.EqualValues(t, 3, r.all["a"].Report.Task.Index)
		require.NoError(t, r.close())
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// The journal does not grow without end, and loses nothing when it is written anew.
func TestResultsJournalStaysSmall(t *testing.T) {
	dir := t.TempDir()
	r := openTestResults(t, dir)
	require.NoError(t, r.add(pending{Report: reportOf("kept"), Frames: []lease.Result{resultOf(1)}}))
	for i := range 2 * pastLines {
		id := lease.ID(fmt.Sprint("lease", i))
		require.NoError(t, r.add(pending{Report: reportOf(id), Frames: []lease.Result{resultOf(2)}}))
		r.forget(id)
		if i%100 == 0 {
			r.sync()
		}
	}
	require.Less(t, r.lines, pastLines+400)
	require.NoError(t, r.close())
	require.Equal(t, map[lease.ID][]lease.Result{"kept": {resultOf(1)}}, openTestResults(t, dir).offered())
}
