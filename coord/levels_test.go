package coord

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
)

func TestReach(t *testing.T) {
	box := func(name string, knows int) Behind {
		return Behind{Peer: authz.PeerID(name), Name: name, Version: "0.3", Knows: knows}
	}
	for name, c := range map[string]struct {
		holders []Behind
		to      int
		behind  []string
	}{
		"one alone":            {[]Behind{box("a", 4)}, 4, nil},
		"one is behind":        {[]Behind{box("a", 4), box("b", 3), box("c", 4)}, 3, []string{"b (0.3)"}},
		"the lowest counts":    {[]Behind{box("a", 4), box("b", 3), box("c", 2)}, 2, []string{"b (0.3)", "c (0.3)"}},
		"more than the leader": {[]Behind{box("a", 4), box("b", 9)}, 4, nil},
		"one says nothing":     {[]Behind{box("a", 4), {Name: "b", Knows: level.Unsaid}}, 2, []string{"b (which was not heard from)"}},
	} {
		t.Run(name, func(t *testing.T) {
			to, behind := reach(c.holders, 4)
			require.Equal(t, c.to, to)
			var words []string
			for _, b := range behind {
				words = append(words, b.String())
			}
			require.Equal(t, c.behind, words)
		})
	}
	require.NoError(t, mayHold(3, box("b", 3)))
	require.NoError(t, mayHold(3, box("b", 4)))
	require.EqualError(t, mayHold(3, box("b", 2)), "b (0.3) cannot hold the queue: its vizpeer knows level 2, and the farm's is 3: update it there")
}

// TestRaise: the level is part of the state, never lowered, and what a snapshot says.
func TestRaise(t *testing.T) {
	raise := func(to int) Entry { return Entry{Raise: &Raise{At: noon, Level: to}} }
	f := newFSM(func(err error) { t.Error(err) })
	f.Apply(submission("j1").at(t, 1))
	require.True(t, bytes.HasPrefix(snapshotBytes(t, f), []byte("vizpeer queue 3 1 ")), "as level 2 reads it")
	require.Contains(t, string(raise(3).at(t, 2).Data), `{"v":3,`, "level 2 stops at it")
	require.Contains(t, string(raise(99).at(t, 2).Data), `{"v":99,`, "who does not know the level stops at it")
	require.Equal(t, 3, f.Apply(raise(3).at(t, 2)).(outcome).applied.Level)
	require.Zero(t, f.Apply(raise(2).at(t, 3)).(outcome).applied.Level)
	require.Zero(t, f.Apply(raise(3).at(t, 4)).(outcome).applied.Level)
	require.EqualValues(t, 3, f.level.Load())
	whole := snapshotBytes(t, f)
	require.True(t, bytes.HasPrefix(whole, []byte("vizpeer queue 4 3 4 ")), "level 2 does not read it, for it would not know the level: %.30s", whole)

	back := newFSM(func(err error) { t.Error(err) })
	require.NoError(t, back.Restore(io.NopCloser(bytes.NewReader(whole))))
	require.EqualValues(t, 3, back.level.Load())
	require.Equal(t, string(whole), string(snapshotBytes(t, back)))

	var broken error
	old := newFSM(func(err error) { broken = err })
	old.Apply(submission("j1").at(t, 1))
	newer := bytes.Replace(whole, []byte("queue 4 3 "), []byte("queue 4 99 "), 1)
	require.ErrorIs(t, old.Restore(io.NopCloser(bytes.NewReader(newer))), errTooNew)
	require.ErrorContains(t, broken, "its level is 99 and this vizpeer knows 3: update vizpeer on this machine")
	require.Equal(t, broken, old.Apply(submission("j2").at(t, 2)).(outcome).err, "it must not go on without it")
}

// TestLogTakesWhatAllKnow: what is of a higher level than the farm is refused before it
// has a place in the log, and what is not goes on.
func TestLogTakesWhatAllKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 1, 1, Config{})
		first := c.all[0]
		c.within("the farm is at this program's level", func() bool { return first.Levels().Farm == level.Known })
		require.Empty(t, first.Levels().Behind)

		first.raising.Lock() // the leader would raise it at once
		defer first.raising.Unlock()
		first.log().fsm.level.Store(1) // as if the audit was new
		ctx, _ := doing(t.Context(), "ann", "submit-job")
		_, _, err := first.Submit(ctx, lease.Submit{Spec: submission("ann").Queue.Submit.Spec})
		var refused *LevelError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, 2, refused.Needs)
		require.False(t, Refused(err), "it may be tried again")
		require.Equal(t, CodeLeader, ackOf(1, err).Code, "a machine keeps what it has to report")
		require.Equal(t, CodeLeader, ackOf(1, refusedAtOnce(err).err).Code)
		_, err = first.log().Start(audited(submission("bob"), "x")).Wait(t.Context())
		require.ErrorAs(t, err, &refused)
		_, err = first.log().Apply(t.Context(), submission("bob"))
		require.NoError(t, err, "what everybody knows goes on")
	})
}

// TestLevelWaitsForAllWhoHoldTheLog: a standby counts as much as a voter, and one that is
// not heard from counts as old.
func TestLevelWaitsForAllWhoHoldTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 4, 1, Config{})
		first := c.all[0]
		c.within("the farm is at this program's level", func() bool { return first.Levels().Farm == level.Known })
		ids := func(i int) authz.PeerID { return idOf(c.hosts[i]) }
		ad := func(i, knows int) {
			first.Advertise(ids(i), lease.Capability{Version: fmt.Sprint("0.", knows), Level: knows}, nil)
		}
		enlist := func(i int) error {
			return first.enlist(t.Context(), ids(i), func(ctx context.Context) error { return first.log().AddStandby(ctx, c.hosts[i].ID()) })
		}
		require.EqualError(t, enlist(1), "standby1 (which was not heard from) cannot hold the queue: its vizpeer knows level 2, and the farm's is 3: update it there")
		ad(1, 2)
		require.ErrorContains(t, enlist(1), "standby1 (0.2) cannot hold the queue")
		ad(1, 3)
		require.NoError(t, enlist(1))
		c.within("it has the level", func() bool { return c.all[1].log().Level() == level.Known })

		// A farm that was not raised yet, with one old standby.
		ad(2, 2)
		first.raising.Lock()
		for _, o := range c.all {
			o.log().fsm.level.Store(level.Unsaid)
		}
		require.NoError(t, first.log().AddStandby(t.Context(), c.hosts[2].ID()))
		first.raising.Unlock()
		first.leading.Load().raise()
		levels := first.Levels()
		require.Equal(t, 2, levels.Farm)
		require.Equal(t, []Behind{{Peer: ids(2), Name: "standby2", Version: "0.2", Knows: 2}}, levels.Behind)
		require.True(t, levels.HoldsBack(ids(2)))
		require.False(t, levels.HoldsBack(ids(1)))
		require.Equal(t, 3, levels.Machines[ids(1)].Knows)
		_, err := first.log().Apply(t.Context(), submission("j"))
		require.NoError(t, err)
		require.Equal(t, "not all of the farm's coordinators know this yet (it is of level 3, and the farm's is 2): update vizpeer on standby2 (0.2)", first.explained(&LevelError{Needs: 3, Farm: 2}).Error())
		ad(2, 3) // it was updated, and says so
		first.leading.Load().signal()
		c.within("all have the level", func() bool {
			return !slices.ContainsFunc(c.all[:3], func(o *Coordinator) bool { return o.log().Level() != level.Known })
		})
		require.Empty(t, first.Levels().Behind)
	})
}

// TestNewerSnapshotKeepsTheLogClosed: a machine whose vizpeer was put back does not start
// from a snapshot of which it would see a part, and says why.
func TestNewerSnapshotKeepsTheLogClosed(t *testing.T) {
	h, cfg := lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true}
	l := sole(t, h, cfg)
	_, err := l.Apply(t.Context(), Entry{Raise: &Raise{At: noon, Level: level.Known}})
	require.NoError(t, err)
	require.NoError(t, l.Snapshot(t.Context()))
	require.NoError(t, l.Close())
	l = openLog(t, h, cfg)
	require.Equal(t, level.Known, l.Level(), "the level is in the snapshot")
	require.NoError(t, l.Close())

	states, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*", "state.bin"))
	require.NoError(t, err)
	require.Len(t, states, 1)
	text, err := os.ReadFile(states[0])
	require.NoError(t, err)
	newer := bytes.Replace(text, []byte("queue 4 3 "), []byte("queue 4 9 "), 1)
	require.NotEqual(t, text, newer)
	require.NoError(t, os.WriteFile(states[0], newer, 0o600))
	sum := crc64.Checksum(newer, crc64.MakeTable(crc64.ECMA))
	about := filepath.Join(filepath.Dir(states[0]), "meta.json")
	meta, err := os.ReadFile(about)
	require.NoError(t, err)
	crc := binary.BigEndian.AppendUint64(nil, sum)
	meta = regexp.MustCompile(`"CRC":"[^"]*"`).ReplaceAll(meta, fmt.Appendf(nil, `"CRC":%q`, base64.StdEncoding.EncodeToString(crc)))
	require.NoError(t, os.WriteFile(about, meta, 0o600))
	_, err = OpenLog(h, everyone, cfg)
	require.ErrorContains(t, err, "its level is 9 and this vizpeer knows 3: update vizpeer on this machine")
}

// TestBackupHasTheLevel: what it holds may be of that level.
func TestBackupHasTheLevel(t *testing.T) {
	h := lonelyHost(t)
	l := sole(t, h, Config{Dir: t.TempDir(), NoSync: true})
	for _, e := range []Entry{foundation(t, idOf(h)), {Raise: &Raise{At: noon, Level: level.Known}}} {
		_, err := l.Apply(t.Context(), e)
		require.NoError(t, err)
	}
	var text bytes.Buffer
	_, err := l.backup(t.Context(), &text, "0.4", nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	r, err := newBackupReader(&text)
	require.NoError(t, err)
	_, err = r.head()
	require.NoError(t, err)
	f := newFSM(nil)
	_, err = r.load(f)
	require.NoError(t, err)
	require.EqualValues(t, level.Known, f.level.Load())
}
