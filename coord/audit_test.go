package coord

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/lease"
)

// doing is ctx of somebody's request.
func doing(ctx context.Context, user, action string) (context.Context, *authz.Doing) {
	d := &authz.Doing{Deed: authz.Deed{User: user, Action: action}}
	return authz.WithDoing(ctx, d), d
}

func untold(int64, int64) {}

// records reads a log's whole audit, the first record first.
func records(t testing.TB, l *Log) (out []authz.Record) {
	t.Helper()
	require.NoError(t, l.Audit(context.Background(), 0, func(r authz.Record) bool {
		out = append(out, r)
		return true
	}))
	slices.Reverse(out)
	return out
}

// requireWhole demands that a log's audit holds, and has so many records.
func requireWhole(t testing.TB, l *Log, n int) {
	t.Helper()
	report, err := l.VerifyAudit(context.Background(), untold)
	require.NoError(t, err)
	require.Nil(t, report.Fault)
	require.EqualValues(t, n, report.Head.Seq)
	require.Len(t, records(t, l), n)
}

// audited is an entry that a person is behind.
func audited(e Entry, action string) Entry {
	e.Audit = &authz.Note{Deed: authz.Deed{User: "ann", Action: action}}
	return e
}

// sealing is what a leader would commit to sign all that is not.
func sealing(t testing.TB, h host.Host, l *Log) Entry {
	t.Helper()
	s := authz.Seal{Signer: idOf(h)}
	for _, r := range l.Unsigned() {
		signature, err := h.Peerstore().PrivKey(h.ID()).Sign(r.Statement())
		require.NoError(t, err)
		if s.First == 0 {
			s.First = r.Seq
		}
		s.Signatures = append(s.Signatures, signature)
	}
	return Entry{Seal: &s}
}

// A record says what became of the command that it came with; what changes nothing has
// an entry of its own; and who is no coordinator signs nothing.
func TestRecordsComeWithTheirCommands(t *testing.T) {
	h := lonelyHost(t)
	l := sole(t, h, Config{Dir: t.TempDir(), NoSync: true})
	apply := func(e Entry) error {
		_, err := l.Apply(t.Context(), e)
		return err
	}
	require.NoError(t, apply(foundation(t, idOf(h))))
	require.NoError(t, apply(audited(submission("j1"), "submit-job")))
	require.ErrorAs(t, apply(audited(submission("j1"), "submit-job")), new(*lease.Repeated))
	require.NoError(t, apply(submission("j2")), "nobody is behind it")
	require.NoError(t, apply(Entry{Audit: &authz.Note{At: noon, Deed: authz.Deed{Action: "login"}, Outcome: "unauthorised"}}))
	all := records(t, l)
	require.Len(t, all, 3)
	for i, outcome := range []string{"ok", "repeated", "unauthorised"} {
		require.EqualValues(t, i+1, all[i].Seq)
		require.Equal(t, outcome, all[i].Outcome)
		require.True(t, noon.Equal(all[i].At))
	}
	requireWhole(t, l, 3)

	stranger := lonelyHost(t)
	require.ErrorIs(t, apply(sealing(t, stranger, l)), authz.ErrSeal)
	require.Len(t, l.Unsigned(), 3)
	require.NoError(t, apply(sealing(t, h, l)))
	require.Empty(t, l.Unsigned())
	require.Empty(t, func() []authz.Record { _, tail := l.auditEnd(); return tail }(), "memory holds only what is not signed")
	requireWhole(t, l, 3)
	require.Equal(t, idOf(h), records(t, l)[2].Signer)
}

// A machine that is killed at any moment has every record again when it is back.
func TestAuditSurvivesACrash(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes long under the race detector")
	}
	for _, snapshotAt := range []int{-1, 4} {
		for _, damage := range []string{"nothing", "torn", "lost", "gone"} {
			if snapshotAt >= 0 && damage == "gone" {
				continue // what a snapshot stands for was made to last before it was taken
			}
			t.Run(fmt.Sprint(damage, " snapshot ", snapshotAt), func(t *testing.T) {
				h, cfg := lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true, TrailingLogs: 1}
				l := sole(t, h, cfg)
				_, err := l.Apply(t.Context(), foundation(t, idOf(h)))
				require.NoError(t, err)
				var kept int64 // bytes on disk for good
				page := filepath.Join(cfg.Dir, "audit", fmt.Sprintf("%016d.jsonl", 1))
				for i := range 9 {
					_, err := l.Apply(t.Context(), audited(submission(fmt.Sprint("j", i)), "submit-job"))
					require.NoError(t, err)
					if i%2 == 0 && i < 8 {
						_, err := l.Apply(t.Context(), sealing(t, h, l))
						require.NoError(t, err)
					}
					if i == snapshotAt {
						require.NoError(t, l.Snapshot(t.Context()))
						info, err := os.Stat(page)
						require.NoError(t, err)
						kept = info.Size()
					}
				}
				before := records(t, l)
				require.NoError(t, l.Close())
				info, err := os.Stat(page)
				require.NoError(t, err)
				switch damage {
				case "torn":
					require.NoError(t, os.Truncate(page, info.Size()-20))
				case "lost":
					require.NoError(t, os.Truncate(page, kept))
				case "gone":
					require.NoError(t, os.Remove(page))
				}
				l = openLog(t, h, cfg)
				awaitLeader(t, l, "")
				require.NoError(t, l.Barrier(t.Context()))
				requireWhole(t, l, 9)
				require.Equal(t, before, records(t, l))
				_, err = l.Apply(t.Context(), sealing(t, h, l))
				require.NoError(t, err)
				requireWhole(t, l, 9)
			})
		}
	}
}

// Whatever somebody does to the files of a ledger is found.
func TestAlteredLedgerIsFound(t *testing.T) {
	h, cfg := lonelyHost(t), Config{Dir: t.TempDir(), NoSync: true}
	l := sole(t, h, cfg)
	_, err := l.Apply(t.Context(), foundation(t, idOf(h)))
	require.NoError(t, err)
	for i := range 6 {
		_, err := l.Apply(t.Context(), audited(submission(fmt.Sprint("j", i)), "submit-job"))
		require.NoError(t, err)
	}
	_, err = l.Apply(t.Context(), sealing(t, h, l))
	require.NoError(t, err)
	requireWhole(t, l, 6)
	page := filepath.Join(cfg.Dir, "audit", fmt.Sprintf("%016d.jsonl", 1))
	good, err := os.ReadFile(page)
	require.NoError(t, err)
	lines := bytes.SplitAfter(good, []byte("\n"))
	swapped := slices.Clone(lines)
	swapped[2], swapped[3] = swapped[3], swapped[2]
	for name, bad := range map[string]struct {
		text []byte
		seq  uint64
	}{
		"altered":    {bytes.Replace(good, lines[2], bytes.Replace(lines[2], []byte(`"user":"ann"`), []byte(`"user":"eve"`), 1), 1), 3},
		"unreadable": {bytes.Replace(good, lines[4], []byte("{what?\n"), 1), 5},
		"deleted":    {bytes.Replace(good, lines[1], nil, 1), 2},
		"swapped":    {bytes.Join(swapped, nil), 3},
		"truncated":  {bytes.Join(lines[:4], nil), 5},
		"emptied":    {nil, 1},
	} {
		require.NoError(t, os.WriteFile(page, bad.text, 0o600))
		report, err := l.VerifyAudit(t.Context(), untold)
		require.NoError(t, err, name)
		require.NotNil(t, report.Fault, name)
		require.Equal(t, bad.seq, report.Fault.Seq, "%s: %s", name, report.Fault.Why)
		require.NoError(t, l.Audit(t.Context(), 0, func(authz.Record) bool { return true }), "what can be read is still shown")
	}
	require.NoError(t, os.Remove(page))
	report, err := l.VerifyAudit(t.Context(), untold)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Fault.Seq)
	require.Contains(t, report.Fault.Why, "is gone")
}

// A ledger holds what was written, in whatever order, across pages and power cuts.
func TestLedgerModel(t *testing.T) {
	var trail authz.Trail
	for range 1000 {
		trail.Add(noon, authz.Deed{Action: "login", User: "<ann>"}, "ok")
	}
	all := trail.Tail()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "ledger")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		open := func() *ledger {
			l, err := openLedger(dir, false, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			l.most = 50
			return l
		}
		l, has, end := open(), map[uint64]bool{}, uint64(0)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"append", "leap", "insert", "reopen", "again", "tear"}).Draw(t, "what") {
			case "leap": // a snapshot stands for what is between
				end = max(end, min(end+uint64(rapid.IntRange(1, 200).Draw(t, "leap")), 900))
				fallthrough
			case "append":
				n := min(uint64(rapid.SampledFrom([]int{1, 3, 20, 170}).Draw(t, "n")), uint64(len(all))-end)
				require.True(t, l.append(all[end:end+n]))
				for seq := end + 1; seq <= end+n; seq++ {
					has[seq] = true
				}
				end += n
			case "again": // as the log is replayed
				from := rapid.Uint64Range(0, end).Draw(t, "from")
				if last := l.list(); len(last) > 0 && from < last[len(last)-1].last {
					require.True(t, l.append(all[from:min(end, last[len(last)-1].last)]))
				}
			case "insert":
				if gaps := l.gaps(authz.Mark{Seq: end}); len(gaps) > 0 {
					g := gaps[len(gaps)-1]
					first := max(g.first, g.last-min(g.last-1, 49))
					require.NoError(t, l.insert(all[first-1:g.last]))
					for seq := first; seq <= g.last; seq++ {
						has[seq] = true
					}
				}
			case "tear":
				pages := l.list()
				require.NoError(t, l.close())
				if n := len(pages); n > 0 {
					p := pages[n-1]
					require.NoError(t, os.Truncate(l.name(p), p.size-1))
					delete(has, p.last)
				}
				l = open()
			case "reopen":
				require.NoError(t, l.close())
				l = open()
			}
		}
		found := 0
		for _, p := range l.list() {
			list, err := l.read(p)
			require.NoError(t, err)
			require.Equal(t, p.first, list[0].Seq)
			require.Equal(t, p.last, list[len(list)-1].Seq)
			require.LessOrEqual(t, len(list), 50)
			for _, r := range list {
				if !has[r.Seq] || all[r.Seq-1].Hash != r.Hash {
					t.Fatalf("record %d is not as it was written", r.Seq)
				}
				found++
			}
		}
		require.Len(t, has, found)
		missing := 0
		for _, g := range l.gaps(authz.Mark{Seq: end}) {
			missing += int(g.last - g.first + 1)
		}
		require.EqualValues(t, end, found+missing)
		require.NoError(t, l.close())
	})
}

// The log and the snapshots of a version that knew no audit are read.
func TestFormerVersionIsRead(t *testing.T) {
	f := newFSM(nil)
	f.Apply(submission("j1").at(t, 1))
	require.Contains(t, string(submission("j1").at(t, 1).Data), `{"v":1,`, "and what holds no audit is written as before")
	require.Contains(t, string(audited(submission("j1"), "x").at(t, 1).Data), `{"v":2,`)
	now := snapshotBytes(t, f)
	head, rest, _ := bytes.Cut(now, []byte("\n"))
	var index, roster, trail int
	_, err := fmt.Sscanf(string(head), "vizpeer queue 3 %d %d %d", &index, &roster, &trail)
	require.NoError(t, err)
	former := append(fmt.Appendf(nil, "vizpeer queue 2 %d %d\n", index, roster), rest[:roster]...)
	former = append(former, rest[roster+trail:]...)
	g := newFSM(nil)
	require.NoError(t, g.Restore(io.NopCloser(bytes.NewReader(former))))
	require.Equal(t, string(now), string(snapshotBytes(t, g)))
}

// council is a farm's coordinators on a simulated network; the first founded it.
type council struct {
	*lan
	t   *testing.T
	all []*Coordinator
}

// newCouncil makes n coordinators, of which the first many vote. The last host is a
// stranger's. It must be called inside a bubble.
func newCouncil(t *testing.T, n, voters int, cfg Config) *council {
	c := &council{lan: newLAN(t, n+1), t: t}
	ours := c.hosts[:n]
	genesis := foundation(t, idOf(c.hosts[0])).Roster
	genesis.At = time.Now()
	genesis.Found.NodeTicket.ExpiresAt = time.Now().Add(time.Hour)
	for i, h := range ours {
		cfg := cfg
		cfg.Dir, cfg.NoSync = t.TempDir(), true
		var g *authz.Command
		if i == 0 {
			g = genesis
		}
		coordinator, err := Open(h, g, Machine{
			Coordinates: func(p authz.PeerID) bool { return p != idOf(c.hosts[n]) }, Roster: func(*authz.View) {}, Leads: func() {}, Moved: func() {},
		}, cfg)
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- coordinator.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			require.NoError(t, <-done)
			require.NoError(t, coordinator.Close())
		})
		c.all = append(c.all, coordinator)
	}
	c.within("the founder leads", c.all[0].Leading)
	ticket, err := authz.NewTicket(rngOf("ticket"), genesis.Found.Farm, authz.Node, true, nil)
	require.NoError(t, err)
	ctx, _ := doing(t.Context(), "admin", "invite")
	require.NoError(t, c.all[0].Admit(ctx, authz.Command{At: time.Now(), Mint: &authz.Mint{Ticket: ticket.Record(10, time.Now().Add(time.Hour), "admin")}}))
	for i, h := range ours[1:] {
		require.NoError(t, c.all[0].Admit(t.Context(), authz.Command{At: time.Now(), Redeem: &authz.Redeem{Ticket: ticket.Hash(), Peer: idOf(h), Name: fmt.Sprint("standby", i+1), Worker: true}}))
	}
	for _, h := range ours[1:voters] {
		require.NoError(t, c.all[0].log().AddVoter(t.Context(), h.ID()))
	}
	return c
}

func (c *council) within(what string, holds func() bool) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); {
		if time.Now().After(end) {
			c.t.Fatalf("it did not happen: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leader is who leads, but for those not asked.
func (c *council) leader(not ...*Coordinator) (led *Coordinator) {
	c.t.Helper()
	c.within("somebody leads", func() bool {
		for _, o := range c.all {
			if o.Leading() && !slices.Contains(not, o) {
				led = o
				return true
			}
		}
		return false
	})
	return led
}

func (c *council) submit(at *Coordinator, user string) {
	c.t.Helper()
	ctx, d := doing(c.t.Context(), user, "submit-job")
	_, _, err := at.Submit(ctx, lease.Submit{Spec: submission(user).Queue.Submit.Spec})
	require.NoError(c.t, err)
	require.True(c.t, d.Noted)
}

// agrees waits until a coordinator has n records, all signed and verified.
func (c *council) agrees(o *Coordinator, n int) (who map[authz.PeerID]uint64) {
	c.t.Helper()
	var last AuditReport
	c.within(fmt.Sprintf("%d records", n), func() bool {
		report, err := o.VerifyAudit(c.t.Context(), untold)
		require.NoError(c.t, err)
		last, who = report, report.Signers
		var signed uint64
		for _, n := range who {
			signed += n
		}
		return report.Fault == nil && report.Head.Seq == uint64(n) && signed == uint64(n)
	})
	require.Nil(c.t, last.Fault)
	return who
}

// The audit is one chain whoever leads; every record is signed, those too that a leader
// left behind; and a machine that was away agrees once it is back.
func TestAuditOutlivesItsLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 3, 3, Config{})
		first := c.leader()
		require.Same(t, c.all[0], first)
		n := 4 // the foundation, the ticket, and two machines
		for range 5 {
			c.submit(first, "ann")
			n++
		}
		c.agrees(first, n)
		for _, o := range c.all {
			c.agrees(o, n)
		}
		c.submit(first, "bob") // is not signed yet when its leader is lost
		n++
		require.NotEmpty(t, first.log().Unsigned())
		c.pull(0)
		second := c.leader(first)
		for range 3 {
			c.submit(second, "carl")
			n++
		}
		signers := c.agrees(second, n)
		require.EqualValues(t, n-4, signers[idOf(c.hosts[0])]) // all but bob's and carl's
		require.EqualValues(t, 4, signers[second.self])
		c.plug(0)
		for _, o := range c.all {
			require.Equal(t, signers, c.agrees(o, n))
		}
		require.Equal(t, records(t, first.log()), records(t, second.log()))
		joined := records(t, second.log())[2]
		require.Equal(t, "join", joined.Action)
		require.Equal(t, "admin", joined.User, "who made the ticket")
		require.Equal(t, idOf(c.hosts[1]), joined.Machine)
	})
}

// A coordinator that comes by a snapshot gets the records that were before it from
// another one, and takes none that do not fit.
func TestOlderRecordsAreFetched(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes long under the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 2, 1, Config{TrailingLogs: 1})
		chief, late := c.all[0], c.all[1]
		n := 3
		for range 2500 {
			ctx, _ := doing(t.Context(), "ann", "label-peer")
			_ = chief.Admit(ctx, authz.Command{At: time.Now(), Label: &authz.Label{Peer: "nobody"}})
			n++
		}
		c.agrees(chief, n)
		require.NoError(t, chief.log().Snapshot(t.Context()))
		page := filepath.Join(chief.log().cfg.Dir, "audit", fmt.Sprintf("%016d.jsonl", 1))
		good, err := os.ReadFile(page)
		require.NoError(t, err)
		// As long as it was: the chief goes on writing behind it.
		line := bytes.SplitAfter(good, []byte("\n"))[499]
		forged := bytes.Replace(line, []byte("nobody"), []byte("nobodx"), 1)
		altered := bytes.Replace(good, line, forged, 1)
		require.NotEqual(t, good, altered)
		require.NoError(t, os.WriteFile(page, altered, 0o600))

		require.NoError(t, chief.log().AddVoter(t.Context(), c.hosts[1].ID()))
		c.submit(chief, "ann") // while it fetches
		n++
		c.within("it has the latest", func() bool { return len(records(t, late.log())) > 1000 })
		time.Sleep(time.Second)
		require.Less(t, len(records(t, late.log())), 1100, "nothing is taken from there on")

		altered, err = os.ReadFile(page)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(page, bytes.Replace(altered, forged, line, 1), 0o600))
		time.Sleep(2 * auditAgain)
		c.agrees(late, n)
		require.Equal(t, records(t, chief.log()), records(t, late.log()))

		// Nobody else is answered.
		stranger, err := c.hosts[2].NewStream(t.Context(), c.hosts[0].ID(), AuditProtocol)
		require.NoError(t, err)
		_ = json.NewEncoder(stranger).Encode(auditRequest{1, 9})
		answer, _ := io.ReadAll(stranger)
		require.Empty(t, answer)
	})
}

// What is refused is on record, and a flood of it is counted.
func TestRefusalsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 1, 1, Config{})
		chief := c.leader()
		for i := range 1000 {
			chief.Refused(authz.Deed{User: "eve", Address: "192.0.2.7", Action: "cancel-job", Object: fmt.Sprint("j", i)}, "not_found")
		}
		for i := range 500 {
			chief.Refused(authz.Deed{Address: fmt.Sprint("192.0.2.", i), Action: "login"}, "unauthorised")
		}
		time.Sleep(2 * refusalWindow)
		var eve, others, rows int
		for _, r := range records(t, chief.log()) {
			times := max(1, r.Times)
			switch {
			case r.User == "eve":
				eve += times
				require.Equal(t, "not_found", r.Outcome)
				if r.Times > 0 {
					require.Empty(t, r.Object)
				}
			case r.Action == "login", r.Action == "refused":
				others += times
			}
			rows++
		}
		require.Equal(t, 1000, eve)
		require.Equal(t, 500, others)
		require.Less(t, rows, 3*maxRefusals)
		chief.Refused(authz.Deed{User: "eve", Action: "cancel-job"}, "not_found")
		c.within("a later one is on record at once", func() bool { return len(records(t, chief.log())) == rows+1 })
	})
}

// A submission that is made again by the same key, because its leader went away, is
// answered by the next leader with the job that there is. Who watches goes on there,
// without a gap.
func TestKeysAndEventsOutliveTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouncil(t, 3, 3, Config{})
		first := c.leader()
		once := &lease.Once{User: "ann", Key: "k1", Request: "r1"}
		spec := submission("ann").Queue.Submit.Spec
		ctx, _ := doing(t.Context(), "ann", "submit-job")
		before := first.log().Status().AppliedIndex
		job, tasks, err := first.Submit(ctx, lease.Submit{Spec: spec, Once: once})
		require.NoError(t, err)
		require.Equal(t, before+1, first.log().Status().AppliedIndex, "being on record costs the caller no entry of its own")
		w := first.Watch(1)
		seen := <-w.C
		require.Equal(t, job, seen.Job)
		w.Stop()

		c.pull(0)
		second := c.leader(first)
		w = second.Watch(seen.ID)
		defer w.Stop()
		_, _, err = second.Submit(ctx, lease.Submit{Spec: spec, Once: once})
		var again *lease.Repeated
		require.ErrorAs(t, err, &again)
		require.Equal(t, lease.Repeated{Job: job, Tasks: tasks}, *again)
		_, _, err = second.Submit(ctx, lease.Submit{Spec: spec, Once: &lease.Once{User: "ann", Key: "k1", Request: "r2"}})
		require.ErrorIs(t, err, lease.ErrKeyReused)
		next, _, err := second.Submit(ctx, lease.Submit{Spec: spec, Once: &lease.Once{User: "bob", Key: "k1", Request: "r1"}})
		require.NoError(t, err)
		require.False(t, w.Gap)
		require.Equal(t, next, (<-w.C).Job, "nothing was missed, and nothing comes twice")
		all := records(t, second.log())
		var outcomes []string
		for _, r := range all[len(all)-4:] {
			outcomes = append(outcomes, r.Outcome)
		}
		require.Equal(t, []string{"ok", "repeated", "conflict", "ok"}, outcomes)
	})
}

// Whatever lies where a ledger should, it is opened or refused, and what it says is read.
func FuzzOpenLedger(f *testing.F) {
	var trail authz.Trail
	for range 3 {
		trail.Add(noon, authz.Deed{Action: "login", User: "ann"}, "ok")
	}
	good, err := encodeLines(trail.Tail())
	require.NoError(f, err)
	f.Add(good, good[:len(good)-9])
	f.Add([]byte("{}\n"), []byte("\n\n"))
	f.Add([]byte("x"), []byte(`{"seq":9}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		dir := t.TempDir()
		for i, data := range [][]byte{first, second} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%016d.jsonl", 1+3*i)), data, 0o600))
		}
		l, err := openLedger(dir, false, slog.New(slog.DiscardHandler))
		if err != nil {
			return
		}
		for _, p := range l.list() {
			_, _ = l.read(p)
		}
		_ = l.gaps(authz.Mark{Seq: 9})
		_ = l.append(trail.Tail())
		require.NoError(t, l.close())
	})
}

// Signatures that are refused are not made again and again: each try is an entry.
func TestRefusedSignaturesAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &countingLog{}
		a := newAuditor(log, time.Now, func([]byte) (authz.PeerID, []byte, error) { return "m1", []byte("no"), nil }, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.run(ctx)
		}()
		for range 600 {
			a.signal()
			time.Sleep(time.Second)
		}
		stop()
		<-done
		require.InDelta(t, 10, log.tries, 2)
	})
}

// countingLog is a log that refuses all signatures.
type countingLog struct{ tries int }

func (l *countingLog) Unsigned() []authz.Record { return []authz.Record{{Seq: 1}} }

func (l *countingLog) ApplyAll(_ context.Context, entries []Entry) ([]Applied, []error) {
	l.tries++
	return make([]Applied, len(entries)), slices.Repeat([]error{authz.ErrSeal}, len(entries))
}
