package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Config tunes a [Log]. Only Dir is required; the zero value of each other
// field stands for its default.
type Config struct {
	// Dir holds the log, its snapshots and the audit, and nothing else. It is created
	// readable by its owner alone.
	Dir    string
	Logger *slog.Logger // nothing is logged by default
	// Now is what this machine's clock shows, which may be set at any time: time.Now by
	// default.
	Now func() time.Time
	// Took, if set, is told how long each command of this machine took to be committed
	// and applied. It must not block.
	Took func(time.Duration)
	// Limits are of what people submit while this machine leads.
	Limits lease.Limits

	Heartbeat     time.Duration // how long followers wait for a leader before they elect one: 300 ms
	LeaderLease   time.Duration // how long a leader that hears from no majority goes on: 200 ms
	CommitTimeout time.Duration // how long a leader waits before it tells followers what is committed: 20 ms
	ApplyTimeout  time.Duration // how long a command may wait for its place in the log: 5 s
	RPCTimeout    time.Duration // how long an answer from another coordinator may take: 2 s

	Stable  time.Duration // how long a standby must be up before it votes: 1 min
	Replace time.Duration // how long a voter may be away before a standby votes in its place: 10 min

	SnapshotInterval  time.Duration // how often to look whether a snapshot is due: 2 min
	SnapshotThreshold uint64        // entries since the last snapshot that make one due: 8192
	TrailingLogs      uint64        // entries kept behind a snapshot for followers that lag: 10240

	// NoSync answers before commands are on disk. For tests alone.
	NoSync bool

	// storage, if set, is used for the log and its snapshots instead of files in Dir. For
	// tests alone.
	storage *storage
}

func (c Config) withDefaults() Config {
	orElse := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	orElse(&c.Heartbeat, 300*time.Millisecond)
	orElse(&c.LeaderLease, 200*time.Millisecond)
	orElse(&c.CommitTimeout, 20*time.Millisecond)
	orElse(&c.ApplyTimeout, 5*time.Second)
	orElse(&c.RPCTimeout, 2*time.Second)
	orElse(&c.SnapshotInterval, 2*time.Minute)
	orElse(&c.Stable, time.Minute)
	orElse(&c.Replace, 10*time.Minute)
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 8192
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 10240
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Log replicates commands among the coordinators, with raft over libp2p
// streams, and applies them to the queue and the roster. A command is answered
// when a majority of the voters has it on disk and this machine has applied it.
//
// All methods are safe for concurrent use, and none may be called after Close
// but Close itself.
type Log struct {
	cfg       Config
	self      peer.ID
	charter   authz.Charter // of its epoch; zero for the first one
	allow     func(peer.ID) bool
	fsm       *fsm
	storage   storage
	transport *raft.NetworkTransport
	raft      *raft.Raft

	// gate counts the commands under way; closing lets no more in. Raft leaves
	// commands that are queued at its shutdown without an answer, so that Close
	// must wait for them first.
	gate struct {
		sync.Mutex
		closed bool
		active sync.WaitGroup
	}

	// waiting are commands that wait a moment for others: see StartSoon.
	waiting struct {
		sync.Mutex
		all   []*Pending
		timer *time.Timer
	}

	// failed is closed when this machine cannot go on; failure is why.
	failed  chan struct{}
	failure error

	stopped  chan struct{} // closed by Close
	stopRaft func() error  // once, whoever is first

	watchers struct {
		sync.Mutex
		all map[chan struct{}]struct{}
	}
}

// Errors of a [Log], apart from [ErrNotLeader] and those of the queue and the
// roster themselves.
var (
	// ErrOutcomeUnknown says that a command may or may not have been carried out:
	// leadership was lost, or the caller gave up, before it was answered.
	ErrOutcomeUnknown = errors.New("it is not known whether the command was carried out: look, and ask again if it was not")
	// ErrBusy says that a command found no place in the log in time; it was not
	// carried out.
	ErrBusy = errors.New("the coordinator is too busy: try again in a moment")
	// ErrClosed says that the log was closed.
	ErrClosed = errors.New("this coordinator is stopping: ask another one")
	// ErrHasState is returned by [Log.Bootstrap] on a machine that holds a log.
	ErrHasState = errors.New("this machine holds a queue already: use another --data-dir for a new farm")
)

// ErrNotLeader is the error of a command that must go to another coordinator;
// it was not carried out. Find it with errors.As.
type ErrNotLeader struct {
	Leader authz.PeerID // "" while none is known
}

func (e ErrNotLeader) Error() string {
	if e.Leader == "" {
		return "no coordinator leads the farm at the moment: try again in a few seconds"
	}
	return fmt.Sprintf("this machine does not lead the farm: ask %s", e.Leader)
}

// OpenLog opens this machine's copy of the log and starts to take part. allow
// says which peers are coordinators; others are refused in both directions. A
// machine with no state waits until it is bootstrapped or a leader adds it.
func OpenLog(h Host, allow func(peer.ID) bool, cfg Config) (_ *Log, err error) {
	cfg = cfg.withDefaults()
	if cfg.Dir == "" {
		return nil, errors.New("opening the queue's log: no folder was given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the queue's log: %w", err)
	}
	charter, err := charterOf(cfg.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, self: h.ID(), charter: charter, allow: allow, failed: make(chan struct{}), stopped: make(chan struct{})}
	l.watchers.all = make(map[chan struct{}]struct{})
	l.fsm = newFSM(l.fail)
	l.fsm.members = l.changed
	if l.fsm.ledger, err = openLedger(filepath.Join(cfg.Dir, "audit"), !cfg.NoSync, cfg.Logger); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.fsm.ledger.close()
		}
	}()
	logger := &raftLogger{to: cfg.Logger, name: "raft"}
	if l.storage, err = openStorage(cfg, logger); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.storage.log.Close()
		}
	}()
	cached, err := raft.NewLogCache(512, l.storage.log)
	if err != nil {
		return nil, err
	}
	l.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: newStreamLayer(h, raftProtocol(charter), allow), MaxPool: 4, Timeout: cfg.RPCTimeout, Logger: logger,
		// With more, raft stops replicating to a follower for good, and cannot be shut
		// down, where one whose disk was full refuses entries while more are on their way:
		// its sender then waits for a reader that has ended.
		MaxRPCsInFlight: 1,
	})
	l.raft, err = raft.NewRaft(l.raftConfig(logger), l.fsm, cached, l.storage.log, l.storage.snapshots, l.transport)
	if err != nil {
		_ = l.transport.Close()
		if why := l.Err(); why != nil { // raft itself says only that no snapshot could be read
			err = why
		}
		return nil, fmt.Errorf("starting the queue's log in %s: %w", cfg.Dir, err)
	}
	l.stopRaft = sync.OnceValue(func() error { return l.raft.Shutdown().Error() }) // closes the transport, too
	go func() {
		select {
		case <-l.failed:
			_ = l.stopRaft()
		case <-l.stopped:
		}
	}()
	l.raft.RegisterObserver(raft.NewObserver(nil, false, l.observe))
	return l, nil
}

// storage is where a log lies.
type storage struct {
	log interface {
		raft.LogStore
		raft.StableStore
		Close() error
	}
	snapshots raft.SnapshotStore
}

func openStorage(cfg Config, logger *raftLogger) (s storage, err error) {
	if cfg.storage != nil {
		return *cfg.storage, nil
	}
	log, err := openStore(filepath.Join(cfg.Dir, "log"), !cfg.NoSync, cfg.Logger)
	if err != nil {
		return s, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, logger)
	if err != nil {
		return s, errors.Join(fmt.Errorf("opening the queue's snapshots in %s: %w", cfg.Dir, err), log.Close())
	}
	return storage{log, snapshots}, nil
}

func (l *Log) raftConfig(logger *raftLogger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(l.self.String())
	c.HeartbeatTimeout = l.cfg.Heartbeat
	c.ElectionTimeout = l.cfg.Heartbeat
	c.LeaderLeaseTimeout = l.cfg.LeaderLease
	c.CommitTimeout = l.cfg.CommitTimeout
	c.SnapshotInterval = l.cfg.SnapshotInterval
	c.SnapshotThreshold = l.cfg.SnapshotThreshold
	c.TrailingLogs = l.cfg.TrailingLogs
	c.BatchApplyCh = true // commands that wait together share one fsync
	c.NoLegacyTelemetry = true
	c.Logger = logger
	return c
}

// Bootstrap makes self, this machine's peer ID, the only voter of a new log. It
// fails with [ErrHasState] where there is a log already.
func (l *Log) Bootstrap(self peer.ID) error {
	if self != l.self {
		return fmt.Errorf("starting a log for %s: this machine is %s", self, l.self)
	}
	id := self.String()
	err := l.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id),
	}}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		return ErrHasState
	}
	return l.explain(err)
}

// Close stops taking part and lets the folder go. Commands under way are
// answered first; a leader's death is noticed by the others as any other.
func (l *Log) Close() error {
	l.gate.Lock()
	closed := l.gate.closed
	l.gate.closed = true
	l.gate.Unlock()
	if closed {
		return nil
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		l.gate.active.Wait()
	}()
	select {
	case <-answered:
	case <-l.failed:
	}
	close(l.stopped)
	err := l.stopRaft()
	l.transport.CloseStreams()
	if err := errors.Join(err, l.fsm.ledger.close(), l.storage.log.Close()); err != nil {
		return fmt.Errorf("closing the queue's log: %w", err)
	}
	return nil
}

// enter counts a command in; leave counts it out.
func (l *Log) enter() error {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.gate.closed {
		return ErrClosed
	}
	l.gate.active.Add(1)
	return nil
}

func (l *Log) leave() { l.gate.active.Done() }

// fail is called at most once, from the goroutine that applies entries.
func (l *Log) fail(why error) {
	l.failure = why
	l.cfg.Logger.Error("the queue's log stopped", "error", why)
	close(l.failed)
}

// Failed is closed when this machine met an entry that it cannot read, and has
// stopped rather than let its queue differ from the others'. [Log.Err] says why.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err is why the log failed, or nil.
func (l *Log) Err() error {
	select {
	case <-l.failed:
		return l.failure
	default:
		return nil
	}
}

// Read shows the committed state to see, which must neither change nor keep it
// nor take long: commands wait meanwhile. It returns the index of the last
// command that the state includes. On a machine that does not lead, the state
// may be behind.
func (l *Log) Read(see func(*lease.State, *authz.Roster)) uint64 { return l.fsm.read(see) }

// Subscribe has told called with every command that was carried out, in order,
// on this machine, until stop. told must not block and must not wait for a
// command; it may Read. Of refused commands it is told only that they are on record,
// where they are. After a restart commands since the last snapshot are told again.
//
// To follow the state without a gap, subscribe first, then Read, and ignore
// what is told up to the index that Read returned.
func (l *Log) Subscribe(told func(Applied)) (stop func()) { return l.fsm.subscribe(told) }

// explain turns raft's errors into those of this package.
func (l *Log) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case l.Err() != nil:
		return l.Err()
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		leader, _ := l.Leader()
		if leader == authz.PeerID(l.self.String()) {
			leader = "" // it is just giving up or handing over
		}
		return ErrNotLeader{Leader: leader}
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return ErrOutcomeUnknown
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	}
	return fmt.Errorf("replicating the queue: %w", err)
}

// wait returns the future's error, or the reason why ctx ended first.
func (l *Log) wait(ctx context.Context, start func() raft.Future) error {
	if err := l.enter(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer l.leave()
		done <- start().Error()
	}()
	select {
	case err := <-done:
		return l.explain(err)
	case <-l.failed:
		return l.failure
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
