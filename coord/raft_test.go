package coord

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
	"vizpeer/lease"
)

func everyone(peer.ID) bool { return true }

// lonelyHost is a libp2p host that nobody can reach.
func lonelyHost(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs)
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func openLog(t testing.TB, h host.Host, cfg Config) *Log {
	t.Helper()
	l, err := OpenLog(h, everyone, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// awaitLeader waits until l knows a leader other than not.
func awaitLeader(t testing.TB, l *Log, not authz.PeerID) authz.PeerID {
	t.Helper()
	changed, stop := l.Changes()
	defer stop()
	deadline := time.After(20 * time.Second)
	for {
		if id, _ := l.Leader(); id != "" && id != not {
			return id
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("no leader")
		}
	}
}

// awaitJobs waits until l has applied n jobs.
func awaitJobs(t testing.TB, l *Log, n int) {
	t.Helper()
	more := make(chan struct{}, 1)
	defer l.Subscribe(func(Applied) {
		select {
		case more <- struct{}{}:
		default:
		}
	})()
	deadline := time.After(20 * time.Second)
	for len(jobs(l)) < n {
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d jobs of %d", len(jobs(l)), n)
		}
	}
}

// jobs lists what l has applied.
func jobs(l *Log) map[lease.JobID]bool {
	ids := map[lease.JobID]bool{}
	l.Read(func(s *lease.State, _ *authz.Roster) {
		for _, j := range s.Jobs() {
			ids[j.ID] = true
		}
	})
	return ids
}

// sole opens and bootstraps the log of a farm of one, ready to take commands.
func sole(t testing.TB, h host.Host, cfg Config) *Log {
	t.Helper()
	l := openLog(t, h, cfg)
	require.NoError(t, l.Bootstrap(h.ID()))
	awaitLeader(t, l, "")
	require.NoError(t, l.Barrier(t.Context()))
	return l
}

func TestSoleVoterRestarts(t *testing.T) {
	h, cfg := lonelyHost(t), Config{Dir: filepath.Join(t.TempDir(), "coord"), NoSync: true, TrailingLogs: 1}
	l := sole(t, h, cfg)
	self := authz.PeerID(h.ID().String())
	require.ErrorIs(t, l.Bootstrap(h.ID()), ErrHasState)
	require.Error(t, l.Bootstrap("somebody else"))
	require.True(t, <-l.LeaderCh())
	require.NoError(t, l.VerifyLeader(t.Context()))

	applied, err := l.Apply(t.Context(), foundation(t, self))
	require.NoError(t, err)
	require.NotEmpty(t, applied.Roster)
	require.True(t, noon.Equal(applied.At))
	for i := range 5 {
		if i == 3 { // what follows is replayed from the log, what precedes restored
			require.NoError(t, l.Snapshot(t.Context()))
		}
		a, err := l.Apply(t.Context(), submission(fmt.Sprint("j", i)))
		require.NoError(t, err)
		require.Greater(t, a.Index, applied.Index)
		applied = a
	}
	_, err = l.Apply(t.Context(), submission("j0"))
	require.ErrorAs(t, err, new(*lease.Repeated))
	_, err = l.Apply(t.Context(), Entry{})
	require.ErrorContains(t, err, "one command")
	before := snapshotBytes(t, l.fsm)
	require.Equal(t, Status{
		Leader: self, Term: l.Status().Term, Voters: []authz.PeerID{self}, AppliedIndex: l.Status().AppliedIndex, CommitIndex: l.Status().AppliedIndex,
	}, l.Status())
	require.Error(t, l.StepDown(), "there is nobody to step down for")
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = l.Apply(t.Context(), submission("late"))
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, l.Barrier(t.Context()), ErrClosed)

	l = openLog(t, h, cfg)
	require.ErrorIs(t, l.Bootstrap(h.ID()), ErrHasState)
	awaitLeader(t, l, "")
	require.NoError(t, l.Barrier(t.Context()))
	require.Len(t, jobs(l), 5)
	l.Read(func(_ *lease.State, r *authz.Roster) { require.True(t, r.IsCoordinator(self)) })
	require.Equal(t, string(before), string(snapshotBytes(t, l.fsm)))

	info, err := os.Stat(cfg.Dir)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o077, "the folder is its owner's alone")
}

// TestPowerCut copies the folder of a log that is being written, as a power cut
// would leave it, and opens the copy: whatever was acknowledged before the copy
// began is there, and on record.
func TestPowerCut(t *testing.T) {
	h, dir := lonelyHost(t), t.TempDir()
	l := sole(t, h, Config{Dir: filepath.Join(dir, "live")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	_, err := l.Apply(ctx, foundation(t, idOf(h)))
	require.NoError(t, err)
	var mu sync.Mutex
	acked := map[lease.JobID]bool{}
	enough := make(chan struct{})
	var writers errgroup.Group
	for w := range 8 {
		writers.Go(func() error {
			for i := 0; ; i++ {
				id := fmt.Sprintf("j%d-%d", w, i)
				if _, err := l.Apply(ctx, audited(submission(id), "submit-job")); err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return err
				}
				mu.Lock()
				if acked[lease.JobID(id)] = true; len(acked) == 200 {
					close(enough)
				}
				mu.Unlock()
				if w == 0 && i%5 == 0 { // which moves records from memory to the disk
					_, _ = l.Apply(ctx, sealing(t, h, l))
				}
			}
		})
	}
	<-enough
	mu.Lock()
	want := make(map[lease.JobID]bool)
	for id := range acked {
		want[id] = true
	}
	mu.Unlock()
	copyRunning(t, filepath.Join(dir, "live"), filepath.Join(dir, "copy"))
	cancel()
	require.NoError(t, writers.Wait())
	require.NoError(t, l.Close())

	l = openLog(t, h, Config{Dir: filepath.Join(dir, "copy"), NoSync: true})
	awaitLeader(t, l, "")
	require.NoError(t, l.Barrier(t.Context()))
	got := jobs(l)
	for id := range want {
		require.True(t, got[id], "%s was acknowledged and is lost", id)
	}
	_, err = l.Apply(t.Context(), submission("after"))
	require.NoError(t, err)
	all := records(t, l)
	require.GreaterOrEqual(t, len(all), len(want), "what was acknowledged is on record")
	requireWhole(t, l, len(all))
}

// copyRunning copies a folder that a Badger has open, but for its lock.
func copyRunning(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || d.Name() == "LOCK" {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	}))
}

func TestApplyAllAnswersEach(t *testing.T) {
	h := lonelyHost(t)
	l := sole(t, h, Config{Dir: t.TempDir(), NoSync: true})
	var order []uint64
	stop := l.Subscribe(func(a Applied) { order = append(order, a.Index) })
	entries := []Entry{submission("a"), submission("a"), {}, submission("b")}
	applied, errs := l.ApplyAll(t.Context(), entries)
	require.NoError(t, l.Barrier(t.Context()))
	stop()
	require.NoError(t, errs[0])
	require.ErrorAs(t, errs[1], new(*lease.Repeated))
	require.ErrorContains(t, errs[2], "one command")
	require.NoError(t, errs[3])
	require.Equal(t, []uint64{applied[0].Index, applied[3].Index}, order)
	require.Equal(t, lease.JobSubmitted, applied[3].Queue[0].Type)

	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the caller has gone"))
	_, errs = l.ApplyAll(gone, entries)
	require.ErrorContains(t, errs[0], "the caller has gone")
	require.NotErrorIs(t, errs[0], ErrOutcomeUnknown, "it was never under way")
}

func TestNotLeader(t *testing.T) {
	l := openLog(t, lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true}) // not bootstrapped
	_, err := l.Apply(t.Context(), submission("j1"))
	var elsewhere ErrNotLeader
	require.ErrorAs(t, err, &elsewhere)
	require.Equal(t, ErrNotLeader{}, elsewhere)
	require.ErrorContains(t, err, "no coordinator leads")
	require.ErrorContains(t, ErrNotLeader{"12D3KooWx"}, "ask 12D3KooWx")
	require.ErrorAs(t, l.Barrier(t.Context()), &elsewhere)
	require.ErrorAs(t, l.VerifyLeader(t.Context()), &elsewhere)
}

// A disk that is full is no answer of the farm's: a machine that reports a frame keeps it.
func TestFullDiskRefusesNothing(t *testing.T) {
	l := sole(t, lonelyHost(t), Config{Dir: filepath.Join(t.TempDir(), "coord"), NoSync: true})
	l.storage.log.(*store).least = 1 << 62
	_, err := l.Apply(t.Context(), Entry{Queue: &lease.Command{At: time.Now(), Lose: &lease.Lose{Peer: "a"}}})
	require.ErrorIs(t, err, ErrOutcomeUnknown)
	require.ErrorContains(t, err, "is full")
	require.False(t, Refused(err))
}

// TestNewerEntryStopsTheLog: a coordinator that meets an entry of a newer
// vizpeer stops, says so, and does so again when it is started again.
func TestNewerEntryStopsTheLog(t *testing.T) {
	h, cfg := lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true}
	l := sole(t, h, cfg)
	_, err := l.Apply(t.Context(), submission("j1"))
	require.NoError(t, err)
	require.NoError(t, l.Err())
	require.NoError(t, l.raft.Apply([]byte(`{"v":99}`), 0).Error())
	<-l.Failed()
	require.ErrorContains(t, l.Err(), "update vizpeer")
	_, err = l.Apply(t.Context(), submission("j2"))
	require.ErrorContains(t, err, "update vizpeer")
	require.Error(t, l.Barrier(t.Context()))
	require.NoError(t, l.Close())

	l = openLog(t, h, cfg)
	<-l.Failed()
	require.Len(t, jobs(l), 1)
}

func TestOpenLogRefuses(t *testing.T) {
	h := lonelyHost(t)
	_, err := OpenLog(h, everyone, Config{})
	require.ErrorContains(t, err, "no folder")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = OpenLog(h, everyone, Config{Dir: file})
	require.Error(t, err)
	_, err = OpenLog(h, everyone, Config{Dir: t.TempDir(), NoSync: true, LeaderLease: time.Hour})
	require.ErrorContains(t, err, "LeaderLeaseTimeout")
	dir := t.TempDir()
	openLog(t, h, Config{Dir: dir, NoSync: true})
	_, err = OpenLog(h, everyone, Config{Dir: dir, NoSync: true})
	require.ErrorContains(t, err, "another vizpeer")
}

func TestRaftSpeaksThroughSlog(t *testing.T) {
	var out bytes.Buffer
	to := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	var l = (&raftLogger{to: to, name: "raft"}).Named("fsm").With("peer", "p1")
	l.Error("failed to heartbeat", "error", errors.New("gone"), "server", raft.ServerID("s1"))
	l.Warn("election")
	l.Info("entering follower state")
	l.StandardLogger(nil).Print("a line")
	require.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), `level=WARN msg="raft.fsm: failed to heartbeat" peer=p1 error=gone server=s1`)
	require.Contains(t, out.String(), `level=INFO msg="raft.fsm: election"`)
	require.True(t, l.IsWarn())
	require.False(t, l.IsInfo())
}

// BenchmarkApply measures commands per second of a sole voter with 64 callers
// and every command on disk before it is answered.
func BenchmarkApply(b *testing.B) {
	for _, mode := range []struct {
		name   string
		noSync bool
	}{{"fsync", false}, {"nosync", true}} {
		b.Run(mode.name, func(b *testing.B) {
			l := sole(b, lonelyHost(b), Config{Dir: b.TempDir(), NoSync: mode.noSync})
			// A command that is refused costs the log as much as any, and does not
			// fill the queue while it is measured.
			_, err := l.Apply(b.Context(), submission("j1"))
			require.NoError(b, err)
			var next = make(chan struct{})
			var callers errgroup.Group
			b.ResetTimer()
			for range 64 {
				callers.Go(func() error {
					for range next {
						if _, err := l.Apply(b.Context(), submission("j1")); !errors.As(err, new(*lease.Repeated)) {
							return err
						}
					}
					return nil
				})
			}
			for range b.N {
				next <- struct{}{}
			}
			close(next)
			require.NoError(b, callers.Wait())
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "applies/s")
		})
	}
	b.Run("pipelined", func(b *testing.B) {
		l := sole(b, lonelyHost(b), Config{Dir: b.TempDir()})
		entries := make([]Entry, 64)
		for i := range entries {
			entries[i] = submission("j1")
		}
		b.ResetTimer()
		for range b.N {
			l.ApplyAll(b.Context(), entries)
		}
		b.ReportMetric(float64(b.N*len(entries))/b.Elapsed().Seconds(), "applies/s")
	})
}

// Commands that are started get their places in order, those that wait for others
// right before the next one or, if none comes, a moment later.
func TestStartedInOrder(t *testing.T) {
	l := sole(t, lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true})
	var pending []*Pending
	for i := range 300 {
		start := l.Start
		if i%3 > 0 {
			start = l.StartSoon
		}
		pending = append(pending, start(submission(fmt.Sprint("j", i))))
	}
	_, errs := l.ApplyAll(t.Context(), []Entry{submission("j299"), submission("j300")})
	require.ErrorAs(t, errs[0], new(*lease.Repeated), "it came behind the others")
	require.NoError(t, errs[1])
	last := uint64(0)
	for _, p := range pending {
		a, err := p.Wait(t.Context())
		require.NoError(t, err)
		require.Greater(t, a.Index, last)
		last = a.Index
	}
	_, err := l.StartSoon(submission("alone")).Wait(t.Context())
	require.NoError(t, err)
	_, err = l.Start(Entry{}).Wait(t.Context())
	require.ErrorContains(t, err, "one command")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	late := l.StartSoon(submission("late"))
	_, err = late.Wait(ctx)
	require.ErrorIs(t, err, ErrOutcomeUnknown)
	require.NoError(t, l.Close(), "what is under way is answered first")
	_, err = late.Wait(t.Context())
	require.NoError(t, err)
	_, err = l.StartSoon(submission("too late")).Wait(t.Context())
	require.ErrorIs(t, err, ErrClosed)
}
