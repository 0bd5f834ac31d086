package coord

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// seat is a coordinator's place: its folder, and what it knows of the farm's epochs.
type seat struct {
	*Coordinator
	t       *testing.T
	host    host.Host
	cfg     Config
	genesis *authz.Command
	known   atomic.Pointer[authz.Charter]
	stop    func()
}

func newSeat(t *testing.T, h host.Host, genesis *authz.Command) *seat {
	s := &seat{t: t, host: h, genesis: genesis, cfg: Config{Dir: filepath.Join(t.TempDir(), "queue"), NoSync: true}}
	s.known.Store(&authz.Charter{})
	s.start()
	return s
}

func (s *seat) start() {
	var err error
	s.Coordinator, err = Open(s.host, s.genesis, Machine{
		Coordinates: func(authz.PeerID) bool { return true }, Roster: func(*authz.View) {}, Leads: func() {}, Moved: func() {},
		Charter: func() authz.Charter { return *s.known.Load() },
	}, s.cfg)
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	run, stopped := s.Coordinator, false
	go func() { done <- run.Run(ctx) }()
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(s.t, <-done)
		require.NoError(s.t, run.Close())
	}
	s.t.Cleanup(func() { s.stop() })
}

// learns has the seat see a charter.
func (s *seat) learns(c authz.Charter) {
	s.known.Store(&c)
	s.Follow()
}

func (s *seat) submits(user string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	ctx, _ = doing(ctx, user, "submit-job")
	_, _, err := s.Submit(ctx, lease.Submit{Spec: submission(user).Queue.Submit.Spec})
	return err
}

// next is how the seat's machine begins an epoch.
func (s *seat) next(key authz.FarmKey) func(Holding, *authz.Roster) (Succession, error) {
	return func(h Holding, r *authz.Roster) (Succession, error) {
		return Succession{
			Succession: authz.Succession{Charter: key.SignCharter(idOf(s.host), h.Charter.Epoch+1)},
			At:         time.Now(), Deed: authz.Deed{Machine: idOf(s.host), Action: "recover", Object: string(r.Farm())},
		}, nil
	}
}

// A farm whose only voter is gone goes on with what a standby has. The old leader, which
// has gone on by itself, shares nothing with the new one, and follows it once it learns of
// it; so does another standby.
func TestSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 3)
		genesis := foundation(t, idOf(net.hosts[0])).Roster
		genesis.At, genesis.Found.NodeTicket.ExpiresAt = time.Now(), time.Now().Add(time.Hour)
		key, err := authz.NewFarmKey(rngOf(string(idOf(net.hosts[0]))))
		require.NoError(t, err)
		founder, heir, third := newSeat(t, net.hosts[0], genesis), newSeat(t, net.hosts[1], nil), newSeat(t, net.hosts[2], nil)
		c := &council{lan: net, t: t}
		c.within("the founder leads", founder.Leading)
		require.NoError(t, founder.Admit(t.Context(), authz.Command{At: time.Now(), Redeem: &authz.Redeem{Ticket: genesis.Found.NodeTicket.Hash, Peer: idOf(heir.host), Name: "heir", Worker: true}}))
		for _, s := range []*seat{heir, third} {
			require.NoError(t, founder.log().AddStandby(t.Context(), s.host.ID()))
		}
		for range 5 {
			require.NoError(t, founder.submits("ann"))
		}
		c.agrees(heir.Coordinator, 7)
		c.agrees(third.Coordinator, 7)
		net.pull(0)
		require.NoError(t, founder.submits("alone")) // nobody else will ever hear of it
		require.Error(t, heir.submits("ann"))

		_, err = Succeed(heir.cfg, heir.next(key))
		require.ErrorIs(t, err, ErrInUse)
		heir.stop()
		refused := errors.New("not so")
		_, err = Succeed(heir.cfg, func(Holding, *authz.Roster) (Succession, error) { return Succession{}, refused })
		require.ErrorIs(t, err, refused)
		before := heir.Status().AppliedIndex
		had, err := Succeed(heir.cfg, heir.next(key))
		require.NoError(t, err)
		require.Equal(t, before, had.Index)
		require.Equal(t, []authz.PeerID{idOf(founder.host)}, had.Voters)
		require.ElementsMatch(t, []authz.PeerID{idOf(heir.host), idOf(third.host)}, had.Standbys)
		require.Equal(t, 5, had.Jobs)
		heir.start()
		c.within("the heir leads", heir.Leading)
		require.EqualValues(t, 2, heir.Charter().Epoch)
		require.Equal(t, []authz.PeerID{idOf(heir.host)}, heir.Status().Voters)
		require.Greater(t, heir.Status().AppliedIndex, before+epochGap)
		require.NoError(t, heir.submits("bob"))
		signers := c.agrees(heir.Coordinator, 9) // "recover", and bob's
		require.EqualValues(t, 2, signers[idOf(heir.host)])
		require.Len(t, jobs(heir.log()), 6)

		// Before they have heard of the new epoch, and after.
		net.plug(0)
		require.NoError(t, heir.log().AddStandby(t.Context(), third.host.ID()))
		require.NoError(t, heir.log().AddStandby(t.Context(), founder.host.ID()))
		time.Sleep(10 * time.Second)
		require.True(t, founder.Leading())
		require.NoError(t, founder.submits("alone"))
		c.within("the third replicates what the old leader says", func() bool { return len(jobs(third.log())) == 7 })
		for _, s := range []*seat{third, founder} {
			s.learns(heir.Charter())
		}
		for _, s := range []*seat{third, founder} {
			c.within("it follows", func() bool { return s.Charter().Epoch == 2 })
			require.Equal(t, signers, c.agrees(s.Coordinator, 9))
			require.Equal(t, string(snapshotBytes(t, heir.log().fsm)), string(snapshotBytes(t, s.log().fsm)))
			require.DirExists(t, s.cfg.Dir+".epoch-1", "the old queue is kept")
			require.False(t, s.Leading())
		}
		// With the old log's folder and its genesis it is a standby still after a restart.
		founder.stop()
		founder.start()
		time.Sleep(10 * time.Second)
		require.False(t, founder.Leading())
		require.EqualValues(t, 2, founder.Charter().Epoch)
		require.NoError(t, heir.submits("carl"))
		c.within("it replicates", func() bool { return len(jobs(founder.log())) == 7 })
	})
}

// Cut off at any step, a succession has happened or has not, and can be done again.
func TestSuccessionIsCutOff(t *testing.T) {
	h := lonelyHost(t)
	key, err := authz.NewFarmKey(rngOf(string(idOf(h))))
	require.NoError(t, err)
	cfg := Config{Dir: filepath.Join(t.TempDir(), "queue"), NoSync: true}
	l := sole(t, h, cfg)
	_, err = l.Apply(t.Context(), foundation(t, idOf(h)))
	require.NoError(t, err)
	_, err = l.Apply(t.Context(), submission("j1"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	s := &seat{t: t, host: h}
	for n, step := range []string{"half written", "not named", "old one aside", "done"} {
		t.Run(step, func(t *testing.T) {
			epoch := uint64(n + 1)
			tmp, next := cfg.Dir+".tmp", cfg.Dir+nextSuffix
			switch step {
			case "half written":
				require.NoError(t, os.MkdirAll(filepath.Join(tmp, "log"), 0o700))
				require.NoError(t, os.WriteFile(filepath.Join(tmp, "log", "MANIFEST"), []byte("rubbish"), 0o600))
			case "not named", "old one aside":
				// As far as naming it, in a copy; then what was on disk at that moment.
				other := Config{Dir: filepath.Join(t.TempDir(), "queue"), NoSync: true}
				require.NoError(t, os.CopyFS(other.Dir, os.DirFS(cfg.Dir)))
				_, err := Succeed(other, s.next(key))
				require.NoError(t, err)
				require.NoError(t, os.CopyFS(next, os.DirFS(other.Dir)))
				if step == "old one aside" {
					require.NoError(t, os.Rename(cfg.Dir, fmt.Sprintf(asideFormat, cfg.Dir, epoch)))
				}
			}
			if _, err := os.Stat(next); err == nil {
				_, err := enterEpoch(cfg.Dir, authz.Charter{})
				require.NoError(t, err)
			} else {
				_, err := Succeed(cfg, s.next(key))
				require.NoError(t, err)
			}
			charter, err := charterOf(cfg.Dir)
			require.NoError(t, err)
			require.Equal(t, epoch+1, charter.Epoch)
			require.NoDirExists(t, next)
			require.NoDirExists(t, tmp)
			require.DirExists(t, fmt.Sprintf(asideFormat, cfg.Dir, epoch))
			l := openLog(t, h, cfg)
			awaitLeader(t, l, "")
			require.NoError(t, l.Barrier(t.Context()))
			require.Len(t, jobs(l), 1)
			require.Equal(t, charter, func() authz.Charter { v := (&Coordinator{}); v.current.Store(l); return v.Roster().Charter() }())
			requireWhole(t, l, int(epoch))
			require.NoError(t, l.Close())
		})
	}
	_, err = Succeed(Config{Dir: filepath.Join(t.TempDir(), "queue")}, s.next(key))
	require.ErrorIs(t, err, ErrNoQueue)
}
