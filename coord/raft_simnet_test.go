package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// lan is a simulated network of hosts that know each other's addresses.
type lan struct {
	hosts []host.Host
	mu    sync.Mutex
	cut   map[string]bool // IP addresses whose cable is pulled
}

// newLAN makes a network of n hosts; it must be called inside a synctest bubble.
func newLAN(t *testing.T, n int) *lan {
	t.Helper()
	quietly := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the simulated network has no other logger
	t.Cleanup(func() { slog.SetDefault(quietly) })
	l := &lan{cut: map[string]bool{}}
	gigabit := simnet.LinkSettings{BitsPerSecond: 1e9}
	nw, meta, err := simlibp2p.SimpleLibp2pNetwork([]simlibp2p.NodeLinkSettingsAndCount{{
		LinkSettings: simnet.NodeBiDiLinkSettings{Downlink: gigabit, Uplink: gigabit}, Count: n,
	}}, l.latency, simlibp2p.NetworkSettings{})
	require.NoError(t, err)
	nw.Start()
	t.Cleanup(nw.Close)
	l.hosts = meta.Nodes
	for _, a := range l.hosts {
		t.Cleanup(func() { _ = a.Close() })
		for _, b := range l.hosts {
			a.Peerstore().AddAddrs(b.ID(), b.Addrs(), peerstore.PermanentAddrTTL)
		}
	}
	return l
}

// latency is 1 ms, or longer than any test where a cable is pulled.
func (l *lan) latency(p *simnet.Packet) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut[ipOf(p.From.String())] || l.cut[ipOf(p.To.String())] {
		return 1000 * time.Hour
	}
	return time.Millisecond
}

// pull takes host i off the network: what it sends and is sent vanishes, and
// nobody is told.
func (l *lan) pull(i int) { l.set(i, true) }

// plug puts it back.
func (l *lan) plug(i int) { l.set(i, false) }

func (l *lan) set(i int, cut bool) {
	ip, _ := l.hosts[i].Addrs()[0].ValueForProtocol(4) // ip4
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[ip] = cut
}

func ipOf(hostport string) string {
	for i := range hostport {
		if hostport[i] == ':' {
			return hostport[:i]
		}
	}
	return hostport
}

func idOf(h host.Host) authz.PeerID { return authz.PeerID(h.ID().String()) }

// voters opens a log on every host and makes all of them voters; the first
// leads.
func (l *lan) voters(t *testing.T) []*Log {
	t.Helper()
	logs := make([]*Log, len(l.hosts))
	for i, h := range l.hosts {
		logs[i] = openLog(t, h, Config{Dir: t.TempDir(), NoSync: true})
	}
	require.NoError(t, logs[0].Bootstrap(l.hosts[0].ID()))
	awaitLeader(t, logs[0], "")
	require.NoError(t, logs[0].Barrier(t.Context()))
	for _, h := range l.hosts[1:] {
		require.NoError(t, logs[0].AddVoter(t.Context(), h.ID()))
	}
	for _, log := range logs[1:] {
		require.Equal(t, idOf(l.hosts[0]), awaitLeader(t, log, ""))
	}
	return logs
}

// TestLeaderDies kills the leader of three under load, by closing it and by
// pulling its cable: another leads within two seconds, and whatever was
// acknowledged is there.
func TestLeaderDies(t *testing.T) {
	for _, way := range []string{"closed", "cable pulled"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newLAN(t, 3)
				logs := net.voters(t)
				old := idOf(net.hosts[0])
				require.Len(t, logs[0].Status().Voters, 3)

				// Callers submit through the leader until it fails them.
				var mu sync.Mutex
				acked := map[lease.JobID]bool{}
				enough := make(chan struct{})
				var callers sync.WaitGroup
				for w := range 4 {
					callers.Go(func() {
						for i := 0; ; i++ {
							id := fmt.Sprintf("j%d-%d", w, i)
							_, err := logs[0].Apply(t.Context(), submission(id))
							var elsewhere ErrNotLeader
							switch {
							case err == nil:
								mu.Lock()
								if acked[lease.JobID(id)] = true; len(acked) == 100 {
									close(enough)
								}
								mu.Unlock()
								continue
							case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, ErrClosed), errors.As(err, &elsewhere):
							default:
								t.Errorf("an error that says nothing of what became of the command: %v", err)
							}
							return
						}
					})
				}
				<-enough
				died := time.Now()
				if way == "closed" {
					require.NoError(t, logs[0].Close())
				} else {
					net.pull(0)
				}
				next := awaitLeader(t, logs[1], old)
				require.Equal(t, next, awaitLeader(t, logs[2], old))
				leader := logs[1]
				if next == idOf(net.hosts[2]) {
					leader = logs[2]
				}
				require.NoError(t, leader.Barrier(t.Context()))
				took := time.Since(died)
				t.Logf("a new leader is ready after %v", took)
				require.Less(t, took, 2*time.Second)
				callers.Wait()

				have := jobs(leader)
				for id := range acked {
					require.True(t, have[id], "%s was acknowledged and is lost", id)
				}
				_, err := leader.Apply(t.Context(), submission("after"))
				require.NoError(t, err)

				if way == "cable pulled" { // the old leader comes back and follows
					_, err := logs[0].Apply(t.Context(), submission("alone"))
					require.Error(t, err, "a leader without a majority says yes to nobody")
					net.plug(0)
					require.Equal(t, next, awaitLeader(t, logs[0], old))
					awaitJobs(t, logs[0], len(jobs(leader)))
					require.Equal(t, string(snapshotBytes(t, leader.fsm)), string(snapshotBytes(t, logs[0].fsm)))
				}
			})
		})
	}
}

// TestHandOver moves the leadership by hand, and tells the old leader's callers
// where to go.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 3)
		logs := net.voters(t)
		old := idOf(net.hosts[0])
		require.NoError(t, logs[0].StepDown())
		next := awaitLeader(t, logs[0], old)
		_, err := logs[0].Apply(t.Context(), submission("j1"))
		var elsewhere ErrNotLeader
		require.ErrorAs(t, err, &elsewhere)
		require.Equal(t, next, elsewhere.Leader)
	})
}

// TestRemove takes voters off the log: what is left of them goes on without.
func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 3)
		logs := net.voters(t)
		for _, i := range []int{2, 1} {
			require.NoError(t, logs[0].Remove(t.Context(), net.hosts[i].ID()))
			require.NotContains(t, logs[0].Status().Voters, idOf(net.hosts[i]))
			require.Len(t, logs[0].Status().Voters, i)
		}
		net.pull(1)
		net.pull(2)
		_, err := logs[0].Apply(t.Context(), submission("j1"))
		require.NoError(t, err)
	})
}

// TestStandbyCatchesUpFromASnapshot adds a standby after the log was cut: it
// gets the snapshot, is told that its state was replaced, and follows on.
func TestStandbyCatchesUpFromASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 2)
		leader := openLog(t, net.hosts[0], Config{Dir: t.TempDir(), NoSync: true, TrailingLogs: 1})
		require.NoError(t, leader.Bootstrap(net.hosts[0].ID()))
		awaitLeader(t, leader, "")
		for i := range 20 {
			_, err := leader.Apply(t.Context(), submission(fmt.Sprint("j", i)))
			require.NoError(t, err)
		}
		require.NoError(t, leader.Snapshot(t.Context()))

		standby := openLog(t, net.hosts[1], Config{Dir: t.TempDir(), NoSync: true})
		told := make(chan Applied, 100)
		standby.Subscribe(func(a Applied) { told <- a })
		require.NoError(t, leader.AddStandby(t.Context(), net.hosts[1].ID()))
		first := <-told
		require.True(t, first.Restored)
		_, err := leader.Apply(t.Context(), submission("more"))
		require.NoError(t, err)
		awaitJobs(t, standby, 21)
		require.Equal(t, string(snapshotBytes(t, leader.fsm)), string(snapshotBytes(t, standby.fsm)))
		require.Equal(t, []authz.PeerID{idOf(net.hosts[1])}, leader.Status().Standbys)
		require.Equal(t, []authz.PeerID{idOf(net.hosts[0])}, leader.Status().Voters)
	})
}

// TestStrangersAreRefused opens a raft stream as a peer that is no coordinator,
// and has a coordinator asked to call one.
func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 2)
		stranger := net.hosts[1]
		l, err := OpenLog(net.hosts[0], func(p peer.ID) bool { return p != stranger.ID() }, Config{Dir: t.TempDir(), NoSync: true})
		require.NoError(t, err)
		defer l.Close()
		require.NoError(t, l.Bootstrap(net.hosts[0].ID()))
		awaitLeader(t, l, "")

		s, err := stranger.NewStream(t.Context(), net.hosts[0].ID(), RaftProtocol)
		if err == nil { // else the stream was refused before its protocol was agreed on
			_, err = s.Write([]byte{0})
		}
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		require.ErrorIs(t, err, network.ErrReset)

		require.ErrorContains(t, l.AddVoter(t.Context(), stranger.ID()), "is no coordinator")
		require.ErrorContains(t, l.AddStandby(t.Context(), stranger.ID()), "is no coordinator")
		layer := newStreamLayer(net.hosts[0], RaftProtocol, l.allow)
		_, err = layer.Dial("not a peer", time.Second)
		require.ErrorContains(t, err, "peer ID")
		stranger.SetStreamHandler(RaftProtocol, func(s network.Stream) { t.Error("the stranger was called") })
		_, err = layer.Dial(raft.ServerAddress(stranger.ID().String()), time.Second)
		require.ErrorContains(t, err, "is no coordinator")
		require.NoError(t, layer.Close())
		_, err = layer.Accept()
		require.Error(t, err)
	})
}

// TestCallerGivesUp: whoever stops waiting for a command learns that it may yet
// be carried out, and Close waits for it.
func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newLAN(t, 3)
		logs := net.voters(t)
		net.pull(0) // it leads on for a moment, and nobody answers it
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := logs[0].Apply(ctx, submission("j1"))
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, logs[0].Close())
	})
}
