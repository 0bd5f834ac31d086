// Package farmtest is a whole farm in one test: real peers with real libp2p,
// gossip, block exchange, stores and raft on a simulated network and, inside a
// [testing/synctest] bubble, a simulated clock. Only Blender is a stand-in.
//
// It promises that a farm of minutes runs in milliseconds, and that peers find
// each other, join and fail by the same code as on real machines.
//
// Its tests call what the HTTP API calls or, with [Member.Call], that itself. Only
// tests import it.
package farmtest

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
	"vizpeer/peer/httpapi"
)

// Farm is a simulated farm. Its methods fail the test where something is wrong,
// and are for the test's own goroutine.
type Farm struct {
	t     *testing.T
	net   *simnet.Simnet
	log   *slog.Logger
	Peers []*Member // the founder first
	addrs int       // handed out so far

	change   []func(int, *lease.Capability)
	standbys int // of the machines that join, those that may hold the queue

	mu      sync.Mutex
	severed map[[2]string]bool // by the addresses of two machines
}

// Member is one machine of a simulated farm.
type Member struct {
	*peer.Peer
	ID      authz.PeerID
	Name    string
	Blender *Blender

	farm *Farm
	cfg  peer.Config
	can  lease.Capability
	stop context.CancelFunc
	done chan error
	ip   string
	api  *pipes
}

// Operator is who submits in simulated farms, and Admin who administers them.
var (
	Operator = authz.Principal{User: "operator", Role: authz.Operator}
	Admin    = authz.Principal{User: "admin", Role: authz.Admin}
)

// New founds a farm of one coordinator, which also renders, and joins workers to
// it by tickets. change, if any, alters what each can do, by its place in Peers.
// The farm is stopped when the test ends. Call it inside a bubble.
func New(t *testing.T, workers int, change ...func(i int, can *lease.Capability)) *Farm {
	return NewOf(t, 1, workers, change...)
}

// NewOf founds a farm like [New] of that many coordinators, which come first in Peers and
// of which the founder alone votes yet: see [Farm.Vote].
func NewOf(t *testing.T, coordinators, workers int, change ...func(i int, can *lease.Capability)) *Farm {
	f := &Farm{t: t, change: change, standbys: coordinators - 1, log: logger(t), severed: make(map[[2]string]bool)}
	f.net = &simnet.Simnet{LatencyFunc: f.latency}
	f.net.Start()
	t.Cleanup(f.net.Close)
	founder := f.machine("founder")
	founded, err := peer.Init(founder.cfg, peer.Founding{FarmName: "attic", MachineName: founder.Name})
	require.NoError(t, err)
	founder.ID = founded.Peer
	founder.Start()
	f.Within(10*time.Second, "the founder leads", founder.Leads)
	for i := range f.standbys + workers {
		name := fmt.Sprintf("worker%d", i-f.standbys+1)
		if i < f.standbys {
			name = fmt.Sprintf("standby%d", i+1)
		}
		m := f.machine(name)
		ticket, err := founder.Queue().Invite(t.Context(), Admin, httpapi.Invitation{Coordinator: i < f.standbys})
		require.NoError(t, err)
		_, err = m.Join(ticket.Ticket)
		require.NoError(t, err)
		m.Start()
	}
	f.Online(coordinators + workers)
	return f
}

// Vote waits until that many coordinators vote, as the leader knows it.
func (f *Farm) Vote(n int) {
	f.t.Helper()
	f.Within(3*time.Minute, fmt.Sprintf("%d coordinators vote", n), func() bool {
		for _, m := range f.Peers {
			if m.stop != nil && m.Leads() {
				return len(m.voters()) == n
			}
		}
		return false
	})
}

// Ready waits until that many coordinators have the queue, the leader among them.
func (f *Farm) Ready(n int) {
	f.t.Helper()
	f.Within(time.Minute, fmt.Sprintf("%d coordinators are ready", n), func() bool {
		ready := 0
		for _, m := range f.Peers {
			if m.stop == nil || !m.Leads() {
				continue
			}
			farm, err := m.Queue().Farm(f.t.Context(), Admin)
			if err != nil {
				return false
			}
			for _, c := range farm.Coord.Coordinators {
				if c.State == "leader" || c.State == "ready" {
					ready++
				}
			}
		}
		return ready == n
	})
}

// voters are those that this machine, a coordinator, knows of.
func (m *Member) voters() []authz.PeerID {
	farm, err := m.Queue().Farm(m.farm.t.Context(), Admin)
	if err != nil {
		return nil
	}
	return farm.Coord.Voters
}

// Led waits until a machine leads, and is that.
func (f *Farm) Led(within time.Duration) *Member {
	f.t.Helper()
	var leads *Member
	f.Within(within, "somebody leads", func() bool {
		i := slices.IndexFunc(f.Peers, func(m *Member) bool { return m.stop != nil && m.Leads() })
		if i >= 0 {
			leads = f.Peers[i]
		}
		return i >= 0
	})
	return leads
}

// logger shows the peers' logs where FARMTEST_LOG is set.
func logger(t *testing.T) *slog.Logger {
	if os.Getenv("FARMTEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// machine adds a machine that has not joined yet.
func (f *Farm) machine(name string) *Member {
	fast := simnet.LinkSettings{BitsPerSecond: 1e9}
	m := &Member{Name: name, Blender: &Blender{PerFrame: time.Second}, farm: f, can: lease.Capability{
		OS: "linux", Arch: "amd64", Cores: 2, RAM: 8 << 30, Slots: 1, FreeDisk: 1 << 40, Backends: []lease.Backend{lease.CPU},
		Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}},
	}}
	for _, change := range f.change {
		change(len(f.Peers), &m.can)
	}
	m.cfg = peer.Config{
		DataDir:   f.t.TempDir(),
		P2PListen: m.address(),
		NoMDNS:    true,
		NoNAT:     true,
		Logger:    f.log.With("at", name),
		HostOptions: []libp2p.Option{
			simlibp2p.QUICSimnet(f.net, simnet.NodeBiDiLinkSettings{Uplink: fast, Downlink: fast}),
			// It polls without end, which a bubble takes for work.
			libp2p.DisableIdentifyAddressDiscovery(),
		},
	}
	f.Peers = append(f.Peers, m)
	return m
}

// address gives the machine an address of the network's that nobody has had.
func (m *Member) address() []string {
	m.farm.addrs++
	m.ip = fmt.Sprintf("1.0.0.%d", m.farm.addrs)
	return []string{"/ip4/" + m.ip + "/udp/8788/quic-v1"}
}

// latency is a millisecond, or as good as for ever where a link is cut.
func (f *Farm) latency(p *simnet.Packet) time.Duration {
	from, _, _ := net.SplitHostPort(p.From.String())
	to, _, _ := net.SplitHostPort(p.To.String())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.severed[[2]string{min(from, to), max(from, to)}] {
		return 100 * 365 * 24 * time.Hour
	}
	return time.Millisecond
}

// Sever cuts the links between a machine and others, and Heal mends all that are cut.
func (f *Farm) Sever(m *Member, others ...*Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range others {
		f.severed[[2]string{min(m.ip, o.ip), max(m.ip, o.ip)}] = true
	}
}

// Heal is Sever's opposite.
func (f *Farm) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.severed)
}

// Move gives a machine that is not running another address.
func (m *Member) Move() { m.cfg.P2PListen = m.address() }

// TakeNoBlenders keeps a machine that is not running from taking Blenders from the farm.
func (m *Member) TakeNoBlenders() { m.cfg.NoFetch = true }

// Update gives a machine that is not running a vizpeer that knows all that this one does.
func (m *Member) Update() { m.can.Level = 0 }

// DataDir is the machine's data folder.
func (m *Member) DataDir() string { return m.cfg.DataDir }

// Start runs the machine's peer.
func (m *Member) Start() {
	p, err := peer.New(m.cfg, peer.Machine{Runner: m.Blender, Can: m.can, Probe: m.probe})
	require.NoError(m.farm.t, err)
	m.Peer = p
	ctx, cancel := context.WithCancel(context.Background())
	m.stop, m.done = cancel, make(chan error, 1)
	m.api = newPipes()
	go func() { m.done <- p.Run(ctx, m.api) }()
	m.farm.t.Cleanup(m.Stop)
}

// probe answers what the machine can do with Blenders from the farm: what stands in for
// one is a file that says what --version would.
func (m *Member) probe(_ context.Context, blenders []string) (lease.Capability, error) {
	can := m.can
	can.Builds = slices.Clone(can.Builds)
	for _, path := range blenders {
		text, err := os.ReadFile(path)
		if err != nil {
			return can, err
		}
		name, number, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		if v, err := lease.ParseVersion(number); err == nil {
			can.Builds = append(can.Builds, lease.Build{Name: name, Version: v, Path: path})
		}
	}
	if len(can.Builds) > 0 {
		can.Slots, can.Backends = max(1, can.Slots), []lease.Backend{lease.CPU}
	}
	return can, nil
}

// Ended waits until the peer has ended by itself, and is why.
func (m *Member) Ended(within time.Duration) error {
	m.farm.t.Helper()
	select {
	case err := <-m.done:
		m.stop()
		m.stop = nil
		return err
	case <-time.After(within):
		require.Fail(m.farm.t, "the peer goes on", "%s for %s", m.Name, within)
		return nil
	}
}

// joining is how the machine is configured before its peer runs: it must be reachable to
// reach others in a simulated network.
func (m *Member) joining() peer.Config {
	cfg := m.cfg
	cfg.HostOptions = append(slices.Clone(cfg.HostOptions), libp2p.ListenAddrStrings(cfg.P2PListen...))
	return cfg
}

// Join joins the farm by a ticket. The peer must not run.
func (m *Member) Join(ticket string) (peer.Joined, error) {
	joined, err := peer.Join(m.farm.t.Context(), m.joining(), ticket, peer.Joining{Name: m.Name})
	if err == nil {
		m.ID = joined.Peer
	}
	return joined, err
}

// Ask asks the founder to let the machine in without a ticket.
func (m *Member) Ask(ctx context.Context, shown func(peer.Waiting)) (peer.Joined, error) {
	joined, err := peer.Ask(ctx, m.joining(), m.farm.Peers[0].Addrs(), peer.Joining{Name: m.Name}, shown)
	if err == nil {
		m.ID = joined.Peer
	}
	return joined, err
}

// Newcomer is a machine that has not joined yet.
func (f *Farm) Newcomer(name string) *Member { return f.machine(name) }

// Revived is why the peer of the machine's folder cannot be started again; nil where it
// can.
func (m *Member) Revived() error {
	_, err := peer.New(m.cfg, peer.Machine{Can: m.can})
	return err
}

// Stop shuts the peer down as a service manager would.
func (m *Member) Stop() {
	if m.stop == nil {
		return
	}
	m.stop()
	require.NoError(m.farm.t, <-m.done)
	m.stop = nil
}

// Crash takes the machine off the network before it can say anything, then ends
// the peer: the farm sees what it sees of kill -9 or a pulled plug.
func (m *Member) Crash() {
	m.Cut()
	m.stop()
	<-m.done
	m.stop = nil
}

// Upload gives machine m a project whose texture has that many bytes, which
// differ from seed to seed, and returns its CID.
func (f *Farm) Upload(m *Member, seed uint64, texture int) string {
	p, err := m.Local().ImportProject(f.t.Context(), Operator, Project(seed, texture))
	require.NoError(f.t, err)
	return p.Project
}

// Submit submits a job from machine m, of a project that it uploads unless change
// names another.
func (f *Farm) Submit(m *Member, frames string, change ...func(*httpapi.Submission)) lease.JobID {
	s := httpapi.Submission{Frames: frames}
	for _, c := range change {
		c(&s)
	}
	if s.Project == "" {
		s.Project = f.Upload(m, 0, 200_000)
	}
	spec, _, err := m.Local().Prepare(f.t.Context(), Operator, s)
	require.NoError(f.t, err)
	spec.Owner, spec.Submitter = Operator.User, m.ID
	if spec.Output.Dir != "" {
		spec.Output.Peer = m.ID
	}
	out, err := f.leader().Queue().Submit(f.t.Context(), Operator, lease.Submit{Spec: spec})
	require.NoError(f.t, err)
	return out.Job
}

// Project is a .blend of version 3.4 that nobody will open, and a texture.
func Project(seed uint64, texture int) iter.Seq2[httpapi.ProjectFile, error] {
	noise := make([]byte, texture)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(noise) // it never fails
	files := []struct{ path, text string }{
		{"vizpeer.json", `{"version": 1, "blend": "files/home/ann/shot.blend", "origin": "linux", "complete": true, "scene": {"name": "Scene", "frame_start": 1, "frame_end": 10, "frame_current": 1}}`},
		{"files/home/ann/shot.blend", "BLENDER-v304" + strings.Repeat("\x00", 1000)},
		{"files/home/ann/textures/wood.png", string(noise)},
	}
	return func(yield func(httpapi.ProjectFile, error) bool) {
		for _, file := range files {
			if !yield(httpapi.ProjectFile{Path: file.path, Size: int64(len(file.text)), Body: strings.NewReader(file.text)}, nil) {
				return
			}
		}
	}
}

func (f *Farm) leader() *Member {
	f.t.Helper()
	for _, m := range f.Peers {
		if m.stop != nil && m.Leads() {
			return m
		}
	}
	require.Fail(f.t, "nobody leads")
	return nil
}

// Job is the job as its owner sees it.
func (f *Farm) Job(id lease.JobID) httpapi.Job {
	f.t.Helper()
	j, err := f.leader().Queue().Job(f.t.Context(), Operator, id, "")
	require.NoError(f.t, err)
	return j
}

// Await waits until the job is in the state, in simulated time.
func (f *Farm) Await(id lease.JobID, state lease.JobState, within time.Duration) httpapi.Job {
	f.t.Helper()
	f.Within(within, fmt.Sprintf("job %s is %s", id, state), func() bool { return f.Job(id).State == state })
	return f.Job(id)
}

// Online waits until that many machines are connected to the leader.
func (f *Farm) Online(n int) {
	f.t.Helper()
	f.Within(30*time.Second, fmt.Sprintf("%d machines are online", n), func() bool { return f.online() == n })
}

// online counts the machines that are connected to the leader.
func (f *Farm) online() int {
	farm, err := f.leader().Queue().Farm(f.t.Context(), authz.Principal{User: "admin", Role: authz.Admin})
	if err != nil {
		return 0
	}
	return farm.Peers["idle"] + farm.Peers["busy"] + farm.Peers["draining"]
}

// Within waits for a condition, looking every 50 ms of simulated time.
func (f *Farm) Within(limit time.Duration, what string, holds func() bool) {
	f.t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-deadline.C:
			require.Fail(f.t, "it did not happen in time", "%s within %s", what, limit)
		}
	}
}

// Files lists the files below a folder, by their slash paths in it.
func Files(t *testing.T, dir string) []string {
	var names []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(name))
		return err
	}))
	return names
}

// Join tries to join a new machine, which is not started.
func (f *Farm) Join(name, ticket string) (peer.Joined, error) {
	m := f.machine(name)
	f.Peers = f.Peers[:len(f.Peers)-1]
	return m.Join(ticket)
}

// Stranger is a host on the farm's network that belongs to nobody, and knows
// where everybody is.
func (f *Farm) Stranger() host.Host {
	m := f.machine("stranger")
	f.Peers = f.Peers[:len(f.Peers)-1]
	return f.raw(m)
}

// Impersonate is a host with the identity of a machine whose peer does not run, which
// knows where everybody is: for what a machine can do that keeps to no rule.
func (f *Farm) Impersonate(m *Member) host.Host {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "identity.key"))
	require.NoError(f.t, err)
	key, err := crypto.UnmarshalPrivateKey(b)
	require.NoError(f.t, err)
	return f.raw(m, libp2p.Identity(key))
}

func (f *Farm) raw(m *Member, options ...libp2p.Option) host.Host {
	options = append(options, libp2p.ListenAddrStrings(m.cfg.P2PListen...))
	h, err := libp2p.New(append(options, m.cfg.HostOptions...)...)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = h.Close() })
	for _, m := range f.Peers {
		infos, err := libp2ppeer.AddrInfosFromP2pAddrs(addrs(f.t, m.Addrs())...)
		require.NoError(f.t, err)
		for _, i := range infos {
			h.Peerstore().AddAddrs(i.ID, i.Addrs, 365*24*time.Hour)
		}
	}
	return h
}

func addrs(t *testing.T, texts []string) (out []multiaddr.Multiaddr) {
	for _, text := range texts {
		m, err := multiaddr.NewMultiaddr(text)
		require.NoError(t, err)
		out = append(out, m)
	}
	return out
}

// HostID is the machine's peer ID as libp2p writes it.
func (m *Member) HostID() libp2ppeer.ID {
	id, err := libp2ppeer.Decode(string(m.ID))
	require.NoError(m.farm.t, err)
	return id
}
