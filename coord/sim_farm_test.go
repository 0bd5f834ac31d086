package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// simFarm is a farm of several coordinators and machines that render, all in this
// process, on [simNet]s and [simDisk]s. The coordinators are real.
type simFarm struct {
	t        *testing.T
	seed     uint64
	dice     *rand.Rand // of the test's own goroutine
	net      *simNet
	machines []*simMachine
	check    *simCheck
	clients  []*simClient
	dir      string
	folders  int
	genesis  *authz.Command
	heal     map[int]func() // faults under way, by number
	faults   int
	tally    map[string]int
	ends     []simEnd
	begun    time.Time
}

// simDice are dice that several goroutines may throw, each machine its own: what it does
// may not hang on the order in which others run.
type simDice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newSimDice(seed, n uint64) *simDice { return &simDice{r: rand.New(rand.NewPCG(seed, n))} }

func (d *simDice) IntN(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

// simIdentity is a machine's key; simIdentities are made once, for they cost more than
// anything else of a farm.
type simIdentity struct {
	key crypto.PrivKey
	id  peer.ID
}

const simMachines = 9

var simIdentities = sync.OnceValue(func() (all []simIdentity) {
	for i := range simMachines {
		key, _, err := crypto.GenerateEd25519Key(rand.NewChaCha8([32]byte{byte(i + 1)}))
		if err != nil {
			panic(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			panic(err)
		}
		all = append(all, simIdentity{key, id})
	}
	return all
})

var simGenesis struct {
	once  sync.Once
	entry Entry
}

// newSimFarm founds a farm and adds machines until it has as many coordinators that vote,
// and workers beside them. It must be called inside a bubble.
func newSimFarm(t *testing.T, seed uint64, coordinators, workers int) *simFarm {
	f := &simFarm{
		t: t, seed: seed, dice: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir(), heal: make(map[int]func()), tally: make(map[string]int), begun: time.Now(),
	}
	f.net = newSimNet(rand.New(rand.NewPCG(seed, 1)))
	f.check = newSimCheck(f)
	for i, who := range simIdentities()[:coordinators+workers] {
		dice := newSimDice(seed, uint64(10+i))
		m := &simMachine{
			farm: f, n: i, peer: who.id, id: authz.PeerID(who.id.String()), coordinates: i < coordinators, dice: dice,
			disk: newSimDisk(rand.New(rand.NewPCG(seed, uint64(30+i)))), content: make(map[string]bool), journal: make(map[lease.ID]*lease.Record),
			perFrame: time.Duration(200+dice.IntN(2500)) * time.Millisecond, slots: 1,
		}
		if m.coordinates && dice.IntN(2) == 0 {
			m.slots = 0
		}
		f.machines = append(f.machines, m)
	}
	founder := f.machines[0]
	simGenesis.once.Do(func() { simGenesis.entry = foundation(t, founder.id) })
	genesis := *simGenesis.entry.Roster
	genesis.At = time.Now()
	f.genesis = &genesis
	t.Cleanup(f.close)
	founder.start()
	f.within(10*time.Second, "the founder leads", founder.coord.Leading)
	f.admit()
	for _, m := range f.machines[1:] {
		m.start()
	}
	f.within(time.Minute, "all machines are there, and all coordinators vote", func() bool {
		return f.connected(founder) == len(f.machines) && len(founder.coord.Status().Voters) == coordinators
	})
	f.begun = time.Now()
	f.check.mu.Lock()
	defer f.check.mu.Unlock()
	f.check.founded = true
	return f
}

// simAway is the machine that never comes.
func simAway() authz.PeerID { return authz.PeerID(simIdentities()[simMachines-1].id.String()) }

// admit makes all machines members, and one more that has been away for half a month
// and never comes.
func (f *simFarm) admit() {
	c, soon := f.machines[0].coord, time.Now().Add(24*time.Hour)
	farm := f.genesis.Found.Farm
	add := func(id authz.PeerID, coordinates bool) {
		ticket, err := authz.NewTicket(rngOf("ticket "+string(id)), farm, authz.Node, coordinates, nil)
		require.NoError(f.t, err)
		require.NoError(f.t, c.Admit(f.t.Context(), authz.Command{Mint: &authz.Mint{Ticket: ticket.Record(1, soon, "admin")}}))
		require.NoError(f.t, c.Admit(f.t.Context(), authz.Command{Redeem: &authz.Redeem{Ticket: ticket.Hash(), Peer: id, Name: "box", Worker: true}}))
	}
	for _, m := range f.machines[1:] {
		add(m.id, m.coordinates)
	}
	away := simAway()
	add(away, false)
	_, err := c.log().Apply(f.t.Context(), Entry{Roster: &authz.Command{At: time.Now().Add(-17 * 24 * time.Hour), Seen: &authz.Seen{Peers: []authz.PeerID{away}}}})
	require.NoError(f.t, err)
}

// connected counts the machines whose stream a leader has.
func (f *simFarm) connected(m *simMachine) int {
	if m.coord == nil {
		return 0
	}
	l := m.coord.leading.Load()
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sessions)
}

// within waits for a condition in simulated time.
func (f *simFarm) within(limit time.Duration, what string, holds func() bool) {
	f.t.Helper()
	for end := time.Now().Add(limit); !holds(); {
		if time.Now().After(end) {
			if dir := os.Getenv("SIM_STACKS"); dir != "" { // where everybody is, for whoever looks into it
				stacks := make([]byte, 16<<20)
				_ = os.WriteFile(filepath.Join(dir, fmt.Sprint("seed-", f.seed)), stacks[:runtime.Stack(stacks, true)], 0o600)
			}
			f.t.Fatalf("it did not happen within %s: %s\n%s\n%s", limit, what, f.describe(), strings.Join(f.check.faults, "\n"))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// describe says how things are, where they should be otherwise.
func (f *simFarm) describe() string {
	var b strings.Builder
	for _, m := range f.machines {
		fmt.Fprintf(&b, "machine %d", m.n)
		if m.coord != nil {
			st := m.coord.Status()
			fmt.Fprintf(&b, ": term %d, %d of %d applied, leads: %v", st.Term, st.AppliedIndex, st.CommitIndex, m.coord.Leading())
		}
		if w := m.worker; w != nil {
			w.mu.Lock()
			fmt.Fprintf(&b, "; connected: %v, %d attempts, keeps %v", w.conn != nil, len(w.attempts), slices.Collect(maps.Keys(w.keeping)))
			w.mu.Unlock()
		}
		fmt.Fprintln(&b)
	}
	leader := f.leader()
	if leader == nil {
		return b.String()
	}
	k := leader.coord.Knowledge()
	leader.coord.Read(func(q *lease.State, _ *authz.Roster) {
		for _, j := range q.Open() {
			fmt.Fprintf(&b, "job %s (%s) is %s, faults %v, trouble %v; its project is at %v\n", j.ID, j.Spec.Name, j.State, j.Faults, k.Trouble[j.ID], j.Holders)
			for i := range j.Tasks {
				t := &j.Tasks[i]
				fmt.Fprintf(&b, "  task %d is %s, fails %d, %d attempts, %d live\n", i, t.State, t.Fails, len(t.Attempts), len(t.Lives()))
			}
			for at, frame := range j.Frames {
				if frame != nil {
					fmt.Fprintf(&b, "  frame %d, done: %v, of %d holders: %v\n", j.Numbers()[at], frame.Done, j.Spec.Replicas, frame.Holders)
				}
			}
		}
	})
	return b.String()
}

func (f *simFarm) machine(id authz.PeerID) *simMachine {
	for _, m := range f.machines {
		if m.id == id {
			return m
		}
	}
	return nil
}

// reaches tells whether a can fetch content from b.
func (f *simFarm) reaches(a, b *simMachine) bool {
	if a == b {
		return false
	}
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	h := f.net.hosts[b.peer]
	return h != nil && !h.down && f.net.open(a.peer, b.peer)
}

// leader is the machine that leads by its own word, nil where none does.
func (f *simFarm) leader() *simMachine {
	var leads *simMachine
	for _, m := range f.coordinators() {
		if m.coord == nil || !m.coord.Leading() {
			continue
		}
		if leads == nil || m.coord.leading.Load().term > leads.coord.leading.Load().term {
			leads = m
		}
	}
	return leads
}

func (f *simFarm) coordinators() (out []*simMachine) {
	for _, m := range f.machines {
		if m.coordinates {
			out = append(out, m)
		}
	}
	return out
}

// close ends all processes.
func (f *simFarm) close() {
	clear(f.heal)
	for _, m := range f.machines {
		if m.coord != nil || m.worker != nil {
			m.kill(true)
		}
		if m.ended != nil {
			<-m.ended
		}
	}
}

// start begins the machine's process.
func (m *simMachine) start() {
	if m.ended != nil {
		<-m.ended
	}
	ctx, end := context.WithCancel(m.farm.t.Context())
	m.host, m.end, m.ended = m.farm.net.start(m.peer, simIdentities()[m.n].key), end, make(chan struct{})
	var running sync.WaitGroup
	if m.coordinates {
		m.open(ctx, &running)
	}
	w := newSimWorker(ctx, m)
	m.mu.Lock()
	m.worker = w
	m.mu.Unlock()
	m.host.onMove(w.wake)
	running.Go(w.run)
	c, ended := m.coord, m.ended
	go func() {
		defer close(ended)
		running.Wait()
		if c != nil {
			_ = c.Close()
		}
	}()
}

// open opens its part of the queue.
func (m *simMachine) open(ctx context.Context, running *sync.WaitGroup) {
	f := m.farm
	var genesis *authz.Command
	if m.n == 0 {
		genesis = f.genesis
	}
	f.folders++
	folder := filepath.Join(f.dir, fmt.Sprint(f.folders))
	if m.folder != "" { // what the process before had written by when it was killed
		_ = os.CopyFS(folder, os.DirFS(m.folder))
	}
	m.folder = folder
	var c *Coordinator
	c, err := Open(m.host, genesis, Machine{
		Coordinates: func(p authz.PeerID) bool { o := f.machine(p); return o != nil && o.coordinates },
		Roster:      func(*authz.View) {},
		Moved:       func() { m.host.moved() },
		Leads:       func() { f.check.leads(m, c.leading.Load().term) },
	}, simConfig(m, folder))
	require.NoError(f.t, err)
	m.mu.Lock()
	m.coord = c
	m.mu.Unlock()
	c.log().Subscribe(func(a Applied) { f.check.applied(m, a) })
	m.host.SetStreamHandler(simAPI, func(s network.Stream) { m.serve(ctx, c, s) })
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			f.t.Errorf("the coordinator of machine %d failed: %v", m.n, err)
		}
	})
}

// simConfig is of a farm whose clocks tick slower than real ones, but for the proportions:
// what a coordinator does while nothing happens is most of what a schedule costs.
func simConfig(m *simMachine, folder string) Config {
	return Config{
		Dir: folder, NoSync: true, storage: m.disk.begin(), Now: m.now,
		Logger:    simLogger(m),
		Heartbeat: 1200 * time.Millisecond, LeaderLease: 800 * time.Millisecond, CommitTimeout: 250 * time.Millisecond,
		SnapshotInterval: 10 * time.Second, SnapshotThreshold: 40, TrailingLogs: 20,
		Stable: 2 * time.Second, Replace: 20 * time.Second,
	}
}

// kill ends the process as kill -9 does: nothing that it had not written or sent is
// written or sent any more.
func (m *simMachine) kill(loud bool) {
	m.host.kill(loud)
	if m.coordinates {
		m.disk.kill()
	}
	m.mu.Lock()
	if m.stopped != nil {
		close(m.stopped)
		m.stopped = nil
	}
	m.mu.Unlock()
	m.end()
	m.mu.Lock()
	m.coord, m.worker = nil, nil
	m.mu.Unlock()
}

// process is what runs on the machine, for other goroutines than the test's; nil for what
// does not.
func (m *simMachine) process() (*simWorker, *Coordinator) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worker, m.coord
}

func (m *simMachine) runs() bool { return m.worker != nil }

// Client requests travel over streams of their own, as peer/gate.go passes them on.
const simAPI = "/sim/api/1"

type simRequest struct {
	Do   string      `json:"do"` // submit, cancel, prioritise, read
	Key  string      `json:"key"`
	Job  lease.JobID `json:"job,omitempty"`
	Tier lease.Tier  `json:"tier,omitempty"`
	Spec *lease.Spec `json:"spec,omitempty"`
}

type simAnswer struct {
	Code   string         `json:"code,omitempty"` // "", ended, unknown-job, elsewhere, unknown
	Reason string         `json:"reason,omitempty"`
	Job    lease.JobID    `json:"job,omitempty"`
	Tier   lease.Tier     `json:"tier,omitempty"`
	State  lease.JobState `json:"state,omitempty"`
}

// serve answers a client on whose way this machine is the leader.
func (m *simMachine) serve(ctx context.Context, c *Coordinator, s network.Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	var r simRequest
	if json.NewDecoder(s).Decode(&r) != nil {
		_ = s.Reset()
		return
	}
	m.passing()
	a := m.answer(ctx, c, r)
	m.passing()
	_ = json.NewEncoder(s).Encode(a)
}

func (m *simMachine) answer(ctx context.Context, c *Coordinator, r simRequest) (a simAnswer) {
	var err error
	a.Job = r.Job
	switch r.Do {
	case "submit":
		a.Job, _, err = c.Submit(ctx, lease.Submit{Spec: *r.Spec, Once: &lease.Once{User: "ann", Key: r.Key, Request: r.Key}})
		if again := new(lease.Repeated); errors.As(err, &again) {
			a.Job, err = again.Job, nil
		}
	case "cancel":
		err = c.Control(ctx, lease.Command{Cancel: &lease.Cancel{Job: r.Job, Reason: "ann cancelled it"}})
	case "prioritise":
		err = c.Control(ctx, lease.Command{Prioritise: &lease.Prioritise{Job: r.Job, Tier: r.Tier}})
	case "read":
		// As the API's reads do: without it about one farm of a thousand hears what was so.
		if !c.Leading() || c.Sure(ctx) != nil {
			return simAnswer{Code: "elsewhere"}
		}
		c.Read(func(q *lease.State, _ *authz.Roster) {
			if j, ok := q.Job(r.Job); ok {
				a.Tier, a.State = j.Tier, j.State
			} else {
				err = lease.ErrUnknownJob
			}
		})
	}
	var elsewhere ErrNotLeader
	switch {
	case err == nil:
	case errors.Is(err, lease.ErrEnded):
		a.Code = "ended"
	case errors.Is(err, lease.ErrUnknownJob):
		a.Code = "unknown-job"
	case errors.As(err, &elsewhere), errors.Is(err, ErrBusy):
		a.Code = "elsewhere"
	case !Refused(err):
		a.Code = "unknown"
	default:
		a.Code = "refused"
	}
	if err != nil {
		a.Reason = err.Error()
	}
	return a
}

// names lists machines in words.
func names(machines []*simMachine) (out []int) {
	for _, m := range machines {
		out = append(out, m.n)
	}
	return out
}

// trouble begins a fault of that kind; heal ends it.
func (f *simFarm) trouble(kind string, heal func(), with ...*simMachine) {
	f.faults++
	f.tally[kind]++
	n := f.faults
	note := f.check.trouble(with)
	f.logf("%s %v", kind, names(with))
	f.heal[n] = func() {
		delete(f.heal, n)
		heal()
		note()
		f.logf("%s %v is over", kind, names(with))
	}
}

var simVerbose = os.Getenv("SIM_LOG") != ""

func (f *simFarm) logf(format string, args ...any) {
	if simVerbose {
		f.t.Logf("%8.3f "+format, append([]any{time.Since(f.begun).Seconds()}, args...)...)
	}
}

// healAll ends all faults and starts what is down.
func (f *simFarm) healAll() {
	for _, n := range slices.Sorted(maps.Keys(f.heal)) {
		f.heal[n]()
	}
	for _, m := range f.machines {
		if !m.runs() {
			m.start()
		}
	}
}

// simLogger is what a machine's coordinator logs to: nowhere, unless somebody looks into it.
func simLogger(m *simMachine) *slog.Logger {
	if os.Getenv("SIM_LOG") != "all" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("machine", m.n)
}
