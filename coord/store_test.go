package coord

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var quiet = slog.New(slog.DiscardHandler)

func openTestStore(t testing.TB, dir string) *store {
	t.Helper()
	s, err := openStore(dir, false, quiet)
	require.NoError(t, err)
	return s
}

func logAt(index uint64) *raft.Log {
	return &raft.Log{Index: index, Term: index / 3, Type: raft.LogCommand, Data: []byte{byte(index)}, AppendedAt: time.Unix(int64(index), 5)}
}

func logsAt(from, to uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, logAt(i))
	}
	return logs
}

func requireBounds(t testing.TB, s *store, first, last uint64) {
	t.Helper()
	got, err := s.FirstIndex()
	require.NoError(t, err)
	require.Equal(t, first, got, "first")
	got, err = s.LastIndex()
	require.NoError(t, err)
	require.Equal(t, last, got, "last")
}

func TestStoreKeepsLogs(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	requireBounds(t, s, 0, 0)
	require.ErrorIs(t, s.GetLog(1, new(raft.Log)), raft.ErrLogNotFound)
	require.NoError(t, s.StoreLogs(nil))

	logs := []*raft.Log{
		logAt(1),
		{Index: 2, Term: 1 << 60, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("more"), AppendedAt: time.Unix(1, 2)},
		{Index: 3, Type: raft.LogNoop}, // no data, no time
		{Index: 4, Data: bytes.Repeat([]byte("big"), MaxEntry/3)},
	}
	require.NoError(t, s.StoreLog(logs[0]))
	require.NoError(t, s.StoreLogs(logs[1:]))
	require.NoError(t, s.Close())

	s = openTestStore(t, dir)
	defer s.Close()
	requireBounds(t, s, 1, 4)
	for _, want := range logs {
		got := raft.Log{Extensions: []byte("left over")}
		require.NoError(t, s.GetLog(want.Index, &got))
		require.True(t, want.AppendedAt.Equal(got.AppendedAt))
		got.AppendedAt = want.AppendedAt
		require.Equal(t, *want, got)
	}
	require.NoError(t, s.StoreLog(&raft.Log{Index: 2, Term: 9}), "a conflict is overwritten")
	var got raft.Log
	require.NoError(t, s.GetLog(2, &got))
	require.Equal(t, raft.Log{Index: 2, Term: 9}, got)
}

func TestStoreGapsAndDeletes(t *testing.T) {
	s := openTestStore(t, t.TempDir())
	defer s.Close()
	require.NoError(t, s.StoreLogs(logsAt(1, 10)))
	require.NoError(t, s.StoreLogs(logsAt(20, 25))) // what a restored snapshot leaves
	requireBounds(t, s, 1, 25)
	require.ErrorIs(t, s.GetLog(15, new(raft.Log)), raft.ErrLogNotFound)

	require.NoError(t, s.DeleteRange(1, 4)) // after a snapshot
	requireBounds(t, s, 5, 25)
	require.NoError(t, s.DeleteRange(1, 12)) // over the gap
	requireBounds(t, s, 20, 25)
	require.NoError(t, s.DeleteRange(24, 1<<62)) // after a conflict
	requireBounds(t, s, 20, 23)
	require.ErrorIs(t, s.GetLog(24, new(raft.Log)), raft.ErrLogNotFound)
	require.NoError(t, s.DeleteRange(30, 20)) // nothing
	require.NoError(t, s.DeleteRange(0, 1<<62))
	requireBounds(t, s, 0, 0)
	require.NoError(t, s.StoreLogs(logsAt(100, 101)))
	requireBounds(t, s, 100, 101)
}

func TestStoreStableValues(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	_, err := s.Get([]byte("CurrentTerm"))
	require.EqualError(t, err, "not found", "raft compares this text")
	_, err = s.GetUint64([]byte("CurrentTerm"))
	require.EqualError(t, err, "not found")
	require.NoError(t, s.SetUint64([]byte("CurrentTerm"), 7))
	require.NoError(t, s.Set([]byte("LastVoteCand"), []byte("peer")))
	require.NoError(t, s.Set([]byte("empty"), nil))
	require.NoError(t, s.Close())

	s = openTestStore(t, dir)
	defer s.Close()
	n, err := s.GetUint64([]byte("CurrentTerm"))
	require.NoError(t, err)
	require.EqualValues(t, 7, n)
	v, err := s.Get([]byte("LastVoteCand"))
	require.NoError(t, err)
	require.Equal(t, []byte("peer"), v)
	v, err = s.Get([]byte("empty"))
	require.NoError(t, err)
	require.Empty(t, v)
	_, err = s.GetUint64([]byte("LastVoteCand"))
	require.ErrorContains(t, err, "damaged")
	requireBounds(t, s, 0, 0)
}

func TestStoreRefusesASecondProcess(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	defer s.Close()
	_, err := openStore(dir, false, quiet)
	require.ErrorContains(t, err, "another vizpeer")
}

// TestStoreModel compares the store with a map, over reopenings.
// A process may be killed between the making of a file and its sizing.
func TestStoreOpensAfterAKillBetweenTwoSystemCalls(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	require.NoError(t, s.StoreLogs(logsAt(1, 5)))
	require.NoError(t, s.Close())
	for _, name := range []string{"000099.vlog", "00099.mem"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		s = openTestStore(t, dir)
		requireBounds(t, s, 1, 5)
		require.NoError(t, s.StoreLogs(logsAt(6, 7)))
		require.NoError(t, s.DeleteRange(6, 7))
		require.NoError(t, s.Close())
	}
}

func TestStoreModel(t *testing.T) {
	dir := t.TempDir()
	s := openTestStore(t, dir)
	defer func() { s.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		if err := s.DeleteRange(0, ^uint64(0)>>1); err != nil {
			t.Fatal(err)
		}
		want := map[uint64]uint64{} // index → term
		index := rapid.Uint64Range(1, 40)
		t.Repeat(map[string]func(*rapid.T){
			"store": func(t *rapid.T) {
				from, term := index.Draw(t, "from"), rapid.Uint64().Draw(t, "term")
				logs := logsAt(from, from+rapid.Uint64Range(0, 5).Draw(t, "more"))
				for _, l := range logs {
					l.Term = term
					want[l.Index] = term
				}
				if err := s.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			},
			"delete": func(t *rapid.T) {
				low, high := index.Draw(t, "low"), index.Draw(t, "high")
				for i := low; i <= high; i++ {
					delete(want, i)
				}
				if err := s.DeleteRange(low, high); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				var first, last uint64
				for i := range uint64(60) {
					term, ok := want[i]
					var l raft.Log
					if err := s.GetLog(i, &l); ok != (err == nil) || l.Term != term {
						t.Fatalf("entry %d: %v, term %d, want %v, %d", i, err, l.Term, ok, term)
					}
					if ok && first == 0 {
						first = i
					}
					if ok {
						last = i
					}
				}
				if s.first != first || s.last != last {
					t.Fatalf("bounds %d to %d, want %d to %d", s.first, s.last, first, last)
				}
			},
		})
	})
}
