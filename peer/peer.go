package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/probe"
	"vizpeer/peer/render"
)

// ErrRunning says that a process uses the data folder already.
var ErrRunning = errors.New("this machine's peer is running already")

// Machine is what a peer does its work with. [Run] makes the real one.
type Machine struct {
	Runner render.Runner    // the peer's to close; nil for one that does not render
	Can    lease.Capability // Slots 0 keeps the machine from rendering
	// Refresh updates what changes by itself, before each ad; nil: nothing does.
	Refresh func(*lease.Capability)
	// Probe finds out anew what the machine can do, with the Blenders at these paths
	// beside its own; nil keeps it from taking Blenders from the farm.
	Probe func(ctx context.Context, blenders []string) (lease.Capability, error)
}

// Peer is one machine's daemon. Make it with [New], then call [Peer.Run] once.
type Peer struct {
	cfg  Config
	dir  dataDir
	farm authz.FarmID
	name string
	self authz.PeerID
	slog *slog.Logger
	has  Machine

	host       host.Host
	gate       *gate
	reach      *reach
	store      *blobs.Store
	unroute    func() error // ends what makes host find members; nil before
	exchange   *swarm.Exchange
	coord      *coord.Coordinator // nil where this machine does not hold the queue
	link       *link
	ads        *ads
	worker     *worker
	builds     *builds
	keeper     *keeper
	rights     *rights
	holdings   *holdings
	neighbours *neighbours
	receipts   receipts
	certs      *certs
	meters     *meters
	health     health
	https      []netip.AddrPort // where it listens for other machines' programs
	passwords  *passwords
	lobby      *lobby
	outbox     *outbox

	scrubber *scrubber

	addrs     atomic.Pointer[[]string] // that the leader was told
	newRoster chan struct{}
	freed     chan struct{} // pins were taken back
	damaged   chan struct{} // pinned content may lack something
}

// Ready says where a peer that runs can be reached.
type Ready struct {
	Peer authz.PeerID
	API  string // base URL
	P2P  []string
}

// Run runs the peer of cfg.DataDir until ctx ends. ready is called once, when
// the peer serves. It fails with [ErrNotMember] where the folder is no member's, and with [ErrRemoved] where
// the farm has removed the machine, before or while it runs.
func Run(ctx context.Context, cfg Config, ready func(Ready)) error {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	m, err := d.admitted()
	if err != nil {
		return err
	}
	// The address that people and programs use is taken first: it tells best
	// that another peer runs.
	var apis []net.Listener
	for _, addr := range cfg.APIListen {
		l, err := httpapi.Listen(addr)
		if err != nil {
			return err
		}
		defer l.Close()
		apis = append(apis, l)
	}
	look := func(ctx context.Context, fetched []string) (lease.Capability, error) {
		can, err := probe.Probe(ctx, probe.Config{
			Blender: cfg.Blender, Fetched: fetched, Labels: cfg.Labels, Slots: cfg.Slots, NoWork: cfg.NoWork || m.NoWork, DataDir: cfg.DataDir, Logger: cfg.Logger,
		})
		can.Version = cfg.Version
		return can, err
	}
	var fetched []string
	if !cfg.NoFetch {
		fetched = Fetched(cfg.DataDir)
	}
	can, err := look(ctx, fetched)
	if err != nil {
		return fmt.Errorf("find out what this machine can do: %w", err)
	}
	p, err := New(cfg, Machine{
		Runner: render.NewBlender(render.Config{Dir: d.path("work", "attempts"), MaxIdle: can.TotalSlots(), Logger: cfg.Logger}),
		Can:    can,
		Probe:  look,
		Refresh: func(c *lease.Capability) {
			if free, err := probe.FreeDisk(cfg.DataDir); err == nil {
				// What the store leaves alone is free for nobody's work.
				c.FreeDisk = max(0, free-max(0, cfg.MinFree-minFree))
			}
		},
	})
	if err != nil {
		return err
	}
	return p.serve(ctx, apis, ready)
}

// New opens the peer of cfg.DataDir on the given machine: its host listens, its
// store is open, and nothing runs yet. [Peer.Run] closes what it opened.
func New(cfg Config, has Machine) (_ *Peer, err error) {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	m, err := d.admitted()
	if err != nil {
		return nil, err
	}
	identity, err := d.identity()
	if err != nil {
		return nil, err
	}
	id, err := libp2ppeer.IDFromPrivateKey(identity)
	if err != nil {
		return nil, err
	}
	view, err := d.roster(m.Farm)
	if err != nil {
		return nil, err
	}
	p := &Peer{
		cfg: cfg, dir: d, farm: m.Farm, name: m.Name, self: authz.PeerID(id.String()), slog: cfg.Logger, has: has,
		passwords: newPasswords(), lobby: newLobby(),
	}
	p.has.Can.Level = cmp.Or(has.Can.Level, level.Known) // tests may have one that knows less
	p.newRoster, p.freed, p.damaged = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	p.gate = newGate(p.self, p.farm, view)
	seen, err := d.charter(p.farm)
	if err != nil {
		return nil, err
	}
	p.gate.hear(seen)
	p.rights = newRights(p.gate)
	p.meters = newMeters(cfg.Version)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.store, err = blobs.Open(d.path("store"), blobs.Config{
		Quota: cfg.Quota, High: cfg.High, Low: cfg.Low, MinFree: cfg.MinFree, Logger: cfg.Logger, Dropped: p.hurt,
	}); err != nil {
		if strings.Contains(err.Error(), "acquire directory lock") {
			return nil, fmt.Errorf("%w: see `vizpeer status`, or use another --data-dir (data folder %s)", ErrRunning, cfg.DataDir)
		}
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	if p.receipts, err = openReceipts(d); err != nil {
		return nil, err
	}
	named, err := multiaddrs(cfg.Announce)
	if err != nil {
		return nil, err
	}
	p.reach = newReach(p.gate, cfg.Relay, named, cfg.Logger)
	options := slices.Clone(cfg.HostOptions)
	if !cfg.NoNAT {
		options = append(options, p.reach.options(!cfg.NoPortMapping && !loopback(cfg.P2PListen))...)
	}
	if p.host, err = newHost(identity, p.gate, cfg.P2PListen, options...); err != nil {
		return nil, err
	}
	if !cfg.NoNAT {
		if err := p.reach.open(p.host, identity); err != nil {
			return nil, err
		}
	}
	if p.host, p.unroute, err = routed(p.host, p.gate); err != nil {
		return nil, err
	}
	p.reach.finds = p.host
	if p.exchange, err = swarm.New(p.host, p.store, swarm.Config{Allow: p.rights.MayFetch, Caps: cfg.Caps, Came: p.came, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if err := p.openBuilds(cfg.NoFetch || cfg.NoWork || m.NoWork); err != nil {
		return nil, err
	}
	p.reach.turn = p.exchange.Turn
	p.certs = newCerts(d, p.host, p.gate, cfg.Logger)
	genesis, err := d.genesis()
	if err != nil {
		return nil, err
	}
	if genesis != nil {
		// The founder knows who belongs to the farm before the queue is up.
		founded, err := p.foresee(*genesis)
		if err != nil {
			return nil, err
		}
		if view != nil && view.Replaces(founded) {
			// The farm has gone on: were the log lost here, another one begun in its
			// place would be a rival of those that others keep.
			genesis = nil
		}
	}
	if p.gate.coordinator(p.self) {
		if p.coord, err = coord.Open(p.host, genesis, coord.Machine{
			Coordinates: p.gate.coordinator, Roster: p.roster, Charter: p.gate.latest, Leads: func() { p.moved(); p.ads.Now(); p.certs.Look() }, Moved: p.moved,
		}, coord.Config{
			Dir: d.path("queue"), Logger: cfg.Logger, Limits: cfg.Limits, Took: p.meters.took, Stable: cfg.Stable, Replace: cfg.Replace,
		}); err != nil {
			return nil, err
		}
	}
	proj, err := newProjects(d.path("work", "projects"), p.store, cfg.Logger)
	if err != nil {
		return nil, err
	}
	res, err := openResults(d.path("results"), cfg.Logger)
	if err != nil {
		return nil, err
	}
	p.link = newLink(p.host, p.gate, p.coord, cfg.Logger, p)
	if p.outbox, err = openOutbox(d.path("outbox"), p.store, cfg.Logger); err != nil {
		return nil, err
	}
	p.outbox.link, p.outbox.view, p.outbox.limits, p.outbox.token = p.link, p.gate.view, cfg.Limits, d.ownToken
	p.rights.open(p.coord, p.link.Ask)
	p.certs.coord, p.certs.link = p.coord, p.link
	p.holdings = newHoldings(p.store, func() { p.ads.Nudge() })
	p.worker = &worker{
		store: p.store, fetch: p.exchange, runner: has.Runner, link: p.link, results: res, projects: proj, holdings: p.holdings, slog: cfg.Logger,
		attempts: make(map[lease.ID]*attempt), pinned: make(map[lease.JobID]cid.Cid), can: p.can,
	}
	p.worker.ahead.w, p.worker.letGo = p.worker, p.letGo
	p.keeper = &keeper{
		store: p.store, fetch: p.exchange, link: p.link, slog: cfg.Logger, slots: semaphore.NewWeighted(keepers),
		pending: make(map[coord.KeepID]*keeping), stocked: func(root cid.Cid) { p.holdings.has(root, 1, 1) },
	}
	p.scrubber = newScrubber(p.store, d, cfg.Logger, p.repair)
	p.neighbours = newNeighbours(p.host, p.gate, d, p.link, cfg.Logger)
	p.link.show, p.neighbours.show = p.showCharter, p.showCharter
	if err := d.writeCA(p.gate.view()); err != nil {
		return nil, err
	}
	return p, p.meters.registry.Register(p)
}

// openBuilds opens the folder of the farm's Blenders, of which this machine may take none.
func (p *Peer) openBuilds(none bool) (err error) {
	if p.builds, err = openBuilds(p.dir.path("blenders")); err != nil {
		return err
	}
	b := p.builds
	b.store, b.slog, b.view, b.letGo = p.store, p.slog, p.gate.view, p.letGo
	b.bring = func(ctx context.Context, c cid.Cid) error { return p.bring(ctx, c, lease.Scope{}, 0, nil) }
	b.can = func() lease.Capability { return p.ads.Can() }
	b.tell = func() { p.ads.Nudge() }
	b.uses = func(dir string) bool { return p.worker.runsFrom(dir) }
	if !none {
		b.probe = p.has.Probe
	}
	p.has.Can.Fetches = b.probe != nil
	return nil
}

// foresee answers the roster as the farm's first entry makes it, and goes by it unless a
// later one is known.
func (p *Peer) foresee(genesis authz.Command) (*authz.View, error) {
	r := authz.NewRoster()
	if _, err := r.Apply(genesis); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", p.dir.path("genesis.json"), err)
	}
	_, _ = p.gate.update(r.View())
	return r.View(), nil
}

// Run runs the peer until ctx ends, with its HTTP API on the listeners, if any.
func (p *Peer) Run(ctx context.Context, apis ...net.Listener) error {
	return p.serve(ctx, apis, func(Ready) {})
}

// Metrics has this machine's numbers for Prometheus.
func (p *Peer) Metrics() *prometheus.Registry { return p.meters.registry }

// Queue is the queue's API. Only the peer that leads answers.
func (p *Peer) Queue() httpapi.Queue { return queue{p} }

// Local is this machine's API.
func (p *Peer) Local() httpapi.Local { return local{p} }

// Leads tells whether this peer leads the queue.
func (p *Peer) Leads() bool { return p.coord != nil && p.coord.Leading() }

// Epoch is the latest epoch of the farm that this peer has heard of.
func (p *Peer) Epoch() uint64 { return p.gate.latest().Epoch }

// leastProcs is how many threads run Go code at once, however few processors there are.
const leastProcs = 4

// stopGrace is how long the peer waits, when it is stopped, for attempts at parts of
// frames to end the samples under way and save them: whole frames cannot be saved.
const stopGrace = 30 * time.Second

// serve runs every part until ctx ends or one fails, then stops them in the
// order in which they need each other.
func (p *Peer) serve(ctx context.Context, apis []net.Listener, ready func(Ready)) (err error) {
	defer func() { err = errors.Join(err, p.close()) }()
	// A peer waits for its disk in system calls, and Go notices only after a while that
	// the thread in one could let another run: on a small machine all would stand still.
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastProcs {
		runtime.GOMAXPROCS(leastProcs)
	}
	// The parts outlive ctx for a moment: the worker hands its tasks back over
	// the work stream.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	work, stopWork := context.WithCancelCause(parts)
	defer stopWork(nil)
	p.worker.ctx, p.keeper.ctx = work, work

	refresh := func(c *lease.Capability) {
		if now := p.builds.now.Load(); now != nil {
			*c = *now
		}
		if p.has.Refresh != nil {
			p.has.Refresh(c)
		}
		c.Level, c.Room = p.has.Can.Level, p.holdings.room(parts)
		c.Reach, c.Relays = p.reach.says()
		full := httpapi.Full(c) != ""
		if c.Draining = p.has.Can.Draining || full || p.worker.leaves() != ""; full {
			p.worker.crew.Go(func() { p.worker.ahead.giveWay(work) })
		}
	}
	can := p.has.Can
	refresh(&can) // the leader hears of it before the first ad
	if p.ads, err = openAds(parts, p.host, p.gate, p.farm, can, p.slog, p.heard); err != nil {
		return err
	}
	var url string
	if len(apis) > 0 {
		url = localURL(apis)
		if err := p.dir.write("api", []byte(url+"\n"), 0o644); err != nil {
			return err
		}
		defer os.Remove(p.dir.path("api"))
	}
	var beyond []netip.Addr
	for _, l := range apis {
		if addr, ok := l.Addr().(*net.TCPAddr); ok && !httpapi.Loopback(l) {
			beyond = append(beyond, addr.AddrPort().Addr().Unmap())
			p.https = append(p.https, addr.AddrPort())
		}
	}
	if len(beyond) > 0 {
		p.certs.wanted = func() (asked, own []string) { return certNames(p.name, p.cfg.APINames, beyond) }
	}
	server := httpapi.New(httpapi.Config{
		Version: p.cfg.Version, Member: p.gate.member, Requests: p.cfg.APIRate, TLS: p.certs.listener.Config(), Proxies: p.cfg.TrustedProxies, Logger: p.slog,
		Metrics: p.Metrics(),
	}, local{p}, queue{p}, finder{p}, p.host)
	if p.coord != nil {
		p.admit(parts)
		g.Go(func() error { return p.coord.Run(parts) })
	}
	g.Go(func() error { return server.ServePeers(parts) })
	g.Go(func() error { return p.ads.Run(parts, refresh, p.holdings.list, p.leads) })
	g.Go(func() error { return p.neighbours.Run(parts, p.farm, p.cfg.NoMDNS) })
	g.Go(func() error { return p.neighbours.Seek(parts) })
	p.reach.told = func() { p.ads.Nudge(); p.link.Nudge() }
	g.Go(func() error { return p.reach.Run(parts) })
	g.Go(func() error { return p.answerCharters(parts) })
	g.Go(func() error {
		err := p.link.Run(parts)
		var gone *goneError
		if errors.As(err, &gone) {
			p.slog.Error("this machine was removed from the farm, and stops", "why", gone.why)
			err = errors.Join(removedError(p.gate.view().Name(), gone.why), p.left(gone.why))
		}
		return err
	})
	g.Go(func() error { return p.remember(parts) })
	g.Go(func() error { return p.certs.Run(parts) })
	g.Go(func() error { return p.outbox.Run(parts, server) })
	g.Go(func() error { return p.sweep(work) })
	g.Go(func() error { return p.scrubber.Run(work) })
	g.Go(func() error { return p.mend(work) })
	g.Go(func() error { return p.builds.Run(work) })
	if len(apis) > 0 {
		for _, l := range apis {
			g.Go(func() error { return server.Serve(parts, l) })
		}
		// Whoever reads the line will ask something of the farm at once. The leader may
		// be out of reach, but a sole voter is sure to lead, however slow its disk.
		wait := 3 * time.Second
		if p.coord != nil && slices.Equal(p.coord.Status().Voters, []authz.PeerID{p.self}) {
			wait = time.Minute
		}
		joining, cancel := context.WithTimeout(ctx, wait)
		context.AfterFunc(parts, cancel)
		_, _ = p.link.Leader(joining)
		cancel()
		if len(beyond) > 0 {
			waiting, cancel := context.WithTimeout(ctx, certPatience)
			context.AfterFunc(parts, cancel)
			err := p.certs.Wait(waiting)
			cancel()
			if err != nil && ctx.Err() == nil {
				g.Go(func() error { return fmt.Errorf("the API cannot be served on %s: %w", p.https[0], err) })
				<-parts.Done()
			}
		}
		if parts.Err() == nil {
			ready(Ready{Peer: p.self, API: url, P2P: p.Addrs()})
		}
	}
	g.Go(func() error { return p.watchSpot(work) })
	select {
	case <-ctx.Done():
	case <-parts.Done():
	}
	saving, saved := context.WithTimeout(parts, stopGrace)
	p.worker.leave("the machine's vizpeer is stopping")
	if p.worker.conclude(saving, false) {
		p.worker.alone.wait(saving)
	}
	saved()
	stopWork(errShutdown)
	p.worker.crew.Dismiss()
	p.keeper.crew.Dismiss()
	if p.coord != nil {
		p.coord.HandOver(parts, p.link.Nudge)
	}
	stop()
	return g.Wait()
}

// Addrs lists where this peer listens, as multiaddrs with its ID.
func (p *Peer) Addrs() []string {
	var out []string
	for _, a := range p.host.Addrs() {
		out = append(out, a.String()+"/p2p/"+p.host.ID().String())
	}
	return out
}

// close closes what New opened.
func (p *Peer) close() error {
	var errs []error
	if p.coord != nil {
		errs = append(errs, p.coord.Close())
	}
	if p.has.Runner != nil {
		errs = append(errs, p.has.Runner.Close()) // it may hold projects
	}
	if p.worker != nil {
		p.worker.projects.close()
		errs = append(errs, p.worker.results.close())
	}
	if p.exchange != nil {
		errs = append(errs, p.exchange.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if p.reach != nil {
		p.reach.close()
	}
	if p.unroute != nil {
		errs = append(errs, p.unroute())
	}
	if p.host != nil {
		errs = append(errs, p.host.Close())
	}
	return errors.Join(errs...)
}

// can is what this machine can do as the farm takes it, by the roster that it has.
func (p *Peer) can() lease.Capability {
	var m authz.Member
	if v := p.gate.view(); v != nil {
		m, _ = v.Member(p.self)
	}
	return p.ads.Can().Believed(m.Labels)
}

// moved has the work stream follow the log to whoever leads.
func (p *Peer) moved() {
	st := p.coord.Status()
	if leader, err := libp2ppeer.Decode(string(st.Leader)); err == nil {
		p.link.Claim(leader, st.Term)
	}
	p.link.Nudge()
}

// leads is the term that this machine leads, 0 where it does not, and the farm's epoch.
func (p *Peer) leads() (term, epoch uint64) {
	if p.Leads() {
		term = p.coord.Status().Term
	}
	return term, p.Epoch()
}

// heard takes a member's ad, this machine's own too.
func (p *Peer) heard(who authz.PeerID, said ad) {
	if said.Leads > 0 && said.Epoch == p.Epoch() && p.gate.coordinator(who) {
		if leader, err := libp2ppeer.Decode(string(who)); err == nil {
			p.link.Claim(leader, said.Leads)
		}
	}
	if p.coord != nil {
		p.coord.Advertise(who, said.Capability, said.Holds)
	}
	if id, err := libp2ppeer.Decode(string(who)); err == nil && who != p.self {
		p.reach.offered(id, said.Relays)
	}
}

// The orders of the work stream.

func (p *Peer) hello() coord.Hello {
	addrs := p.told()
	p.addrs.Store(&addrs)
	return coord.Hello{
		Can: p.ads.Can(), Leases: p.worker.reports(), Addrs: addrs, Holds: p.ads.Holds(), Store: p.store.ID(), Coordinating: p.coordinating(),
		At:     time.Now(),
		Offers: len(p.worker.results.orphans(p.worker.runs)) > 0,
	}
}

func (p *Peer) renewal() coord.Renew {
	r := coord.Renew{Leases: p.worker.running(), Coordinating: p.coordinating(), At: time.Now()}
	if addrs := p.told(); !slices.Equal(addrs, *p.addrs.Load()) {
		p.addrs.Store(&addrs)
		r.Addrs = addrs
	}
	return r
}

// told are the addresses that the leader is told, which passes them on with content to
// fetch: not more than it takes, those through relays and those of the network first.
func (p *Peer) told() []string {
	all := p.host.Addrs()
	slices.SortStableFunc(all, func(a, b multiaddr.Multiaddr) int { return cmp.Compare(rank(a), rank(b)) })
	return texts(all[:min(len(all), coord.MaxAddrs)])
}

// rank orders addresses by how much is lost without them.
func rank(m multiaddr.Multiaddr) int {
	switch {
	case circuit(m), manet.IsPublicAddr(m):
		return 0
	case manet.IsIPLoopback(m):
		return 2
	}
	return 1
}

// coordinating is what a coordinator says of itself; nil for any other machine.
func (p *Peer) coordinating() *coord.Coordinating {
	if p.coord == nil {
		return nil
	}
	return p.coord.Coordinating()
}

func (p *Peer) welcome(w coord.Welcome) {
	// This leader says itself what is to be kept.
	p.keeper.drop(func(coord.KeepID) bool { return true })
	if offered := p.worker.offer(); w.Awaits {
		p.worker.crew.Go(func() {
			offered.Wait()
			if _, err := p.link.Leader(p.worker.ctx); err == nil {
				p.link.Tell(coord.Up{Offered: true})
			}
		})
	}
	open := make(map[lease.JobID]bool, len(w.Open))
	for _, j := range w.Open {
		open[j] = true
	}
	// Jobs that ended while this machine was away need their projects no more.
	// They are listed before the next order comes, which may pin a newer job's.
	stale := make(map[lease.JobID]bool)
	var ahead []string
	for pin, err := range p.store.Pins(p.worker.ctx) {
		if err != nil {
			return
		}
		if job, ok := strings.CutPrefix(pin.Holder, jobPin("")); ok && !open[lease.JobID(job)] {
			stale[lease.JobID(job)] = true
		}
		// What an earlier process fetched ahead is cached now and no more.
		if job, ok := strings.CutPrefix(pin.Holder, nextPin("")); ok && !p.worker.ahead.orders(lease.JobID(job)) {
			ahead = append(ahead, pin.Holder)
		}
	}
	for job := range stale {
		p.ended(job)
	}
	for _, holder := range ahead {
		p.worker.crew.Go(func() { p.worker.unpin(holder) })
	}
}

func (p *Peer) roster(v *authz.View) {
	if v != nil {
		p.follow(v.Charter())
	}
	removed, newer := p.gate.update(v)
	if !newer {
		return
	}
	p.rights.forget("")
	for _, id := range removed {
		p.slog.Info("no member any more: its connections are closed", "peer", p.gate.name(id))
		p.exchange.Drop(id)
		_ = p.host.Network().ClosePeer(id)
	}
	p.exchange.Recheck()
	p.builds.look()
	p.certs.Look()
	select {
	case p.newRoster <- struct{}{}:
	default:
	}
}

// remember writes the latest roster to disk, until ctx ends.
func (p *Peer) remember(ctx context.Context) error {
	for {
		select {
		case <-p.newRoster:
			if err := p.dir.writeJSON("roster.json", p.gate.view(), 0o600); err != nil {
				p.slog.Warn("the roster could not be remembered", "err", err)
			}
			if err := p.dir.writeCA(p.gate.view()); err != nil {
				p.slog.Warn("the farm's CA could not be written down", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Peer) grant(o coord.Order) { p.worker.start(o) }

func (p *Peer) revoke(r coord.Revoke) { p.worker.revoke(r) }

func (p *Peer) keep(k coord.Keep) { p.keeper.keep(k) }

func (p *Peer) drop(d coord.Drop) {
	p.keeper.drop(func(id coord.KeepID) bool {
		return !id.Project && id.Job == d.Job && id.Frame == d.Frame && id.CID == d.CID
	})
	p.worker.alone.drop(func(cid string, _ lease.JobID) bool { return cid == d.CID })
	if d.Piece {
		p.worker.crew.Go(func() { p.worker.discard(d.Job, d.CID) })
	}
}

func (p *Peer) kept(k coord.Kept) {
	p.worker.alone.drop(func(cid string, _ lease.JobID) bool { return cid == k.CID })
	if k.Lease != "" {
		p.worker.crew.Go(func() { p.worker.results.forget(k.Lease) })
	}
}

func (p *Peer) prefetch(o coord.Prefetch) { p.worker.ahead.begin(o) }

func (p *Peer) equip(e coord.Equip) { p.builds.want(e.Root) }

func (p *Peer) ended(j lease.JobID) {
	p.rights.forget(j)
	p.exchange.Recheck()
	p.worker.ahead.ended(j)
	p.worker.ended(j)
	p.worker.alone.drop(func(_ string, of lease.JobID) bool { return of == j })
	p.keeper.drop(func(id coord.KeepID) bool { return id.Project && id.Job == j })
	p.worker.crew.Go(func() {
		p.worker.results.forgetJob(j)
		p.worker.unpin(jobPin(j))
		p.worker.unpin(shownPin(j))
		p.worker.unpin(nextPin(j))
	})
}

// Cut takes the peer off the network for good, without a word to anyone. It is
// for tests of what others then do.
func (p *Peer) Cut() { _ = p.host.Close() }
