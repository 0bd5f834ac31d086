package coord

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"vizpeer/authz"
)

// ErrNoQueue says that a folder holds no copy of the farm's queue.
var ErrNoQueue = errors.New("this machine holds no copy of the farm's queue")

// ErrInUse says that another process has the queue's folder open.
var ErrInUse = errors.New("the queue is in use: stop the peer first")

// Holding is a copy of the farm's queue, of which the next epoch can be made.
type Holding struct {
	Charter  authz.Charter // as the roster has it
	Index    uint64        // of the last entry
	At       time.Time     // when that was made; zero where it is not known
	Voters   []authz.PeerID
	Standbys []authz.PeerID
	Jobs     int // that have not ended
}

// Succession begins the farm's next epoch on this machine.
type Succession struct {
	authz.Succession
	At   time.Time
	Deed authz.Deed // what the audit says of it
}

// epochGap is how far the first index of an epoch lies behind the last one that this
// machine has of the epoch before: whatever others have seen beyond that, the IDs of the
// farm's events go on growing.
const epochGap = 1 << 20

// Succeed makes, of the copy of the queue in cfg.Dir, the queue of the farm's next epoch,
// with this machine as its only voter. begin is shown the copy and says how; its error
// stops it all. No peer may run here, and nothing has changed where Succeed fails. A
// machine that is switched off meanwhile has the old queue or the new one.
//
// What the copy lacks of the old queue, such as a command that its leader acknowledged
// alone, is lost to the farm. The old folder is kept aside.
func Succeed(cfg Config, begin func(Holding, *authz.Roster) (Succession, error)) (Holding, error) {
	cfg = cfg.withDefaults()
	if _, err := finishSwap(cfg.Dir); err != nil {
		return Holding{}, err
	}
	return succeed(cfg, begin, func(tmp string, f *fsm) (Holding, uint64, error) { return replay(cfg, tmp, f) })
}

// succeed makes the next queue of what read puts into a state machine, whose audit is in
// the new folder already, and of which it answers the last term.
func succeed(cfg Config, begin func(Holding, *authz.Roster) (Succession, error), read func(tmp string, f *fsm) (Holding, uint64, error)) (h Holding, err error) {
	var next authz.Charter
	err = prepare(cfg.Dir, func(tmp string) (authz.Charter, error) {
		var broken error
		f := newFSM(func(err error) { broken = err })
		if f.ledger, err = openLedger(filepath.Join(tmp, "audit"), !cfg.NoSync, cfg.Logger); err != nil {
			return next, err
		}
		defer func() { _ = f.ledger.close() }()
		var term uint64
		if h, term, err = read(tmp, f); err != nil {
			return next, err
		}
		if broken != nil {
			return next, broken
		}
		h.Charter, h.Jobs = f.roster.Charter(), len(f.queue.Open())
		s, err := begin(h, f.roster)
		if err != nil {
			return next, err
		}
		if err := f.roster.Succeed(s.At, s.Succession); err != nil {
			return next, err
		}
		f.trail.Add(s.At, s.Deed, authz.OutcomeOK)
		f.index = h.Index + epochGap
		next = s.Charter
		return next, lay(cfg, tmp, f, term+1, s.Charter.Coordinator)
	})
	if err != nil {
		return h, err
	}
	_, err = finishSwap(cfg.Dir)
	return h, err
}

// replay applies all that a queue's folder holds. What is not known to be committed is
// applied, too: nobody was told that it is not.
func replay(cfg Config, tmp string, f *fsm) (h Holding, term uint64, err error) {
	if _, err := os.Stat(filepath.Join(cfg.Dir, "log")); errors.Is(err, fs.ErrNotExist) {
		return h, 0, ErrNoQueue
	}
	st, err := openStore(filepath.Join(cfg.Dir, "log"), !cfg.NoSync, cfg.Logger)
	if err != nil && strings.Contains(err.Error(), "acquire directory lock") {
		return h, 0, fmt.Errorf("%w (%w)", ErrInUse, err)
	}
	if err != nil {
		return h, 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := copyPages(filepath.Join(cfg.Dir, "audit"), f.ledger); err != nil {
		return h, 0, err
	}
	logger := &raftLogger{to: cfg.Logger, name: "raft"}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, logger)
	if err != nil {
		return h, 0, fmt.Errorf("opening the queue's snapshots in %s: %w", cfg.Dir, err)
	}
	var servers raft.Configuration
	if h.Index, term, servers, err = restoreLatest(snapshots, f); err != nil {
		return h, 0, err
	}
	last, err := st.LastIndex()
	if err != nil {
		return h, 0, err
	}
	if h.Index == 0 && last == 0 {
		return h, 0, ErrNoQueue
	}
	for index := h.Index + 1; index <= last; index++ {
		var l raft.Log
		if err := st.GetLog(index, &l); err != nil {
			return h, 0, err
		}
		switch l.Type {
		case raft.LogCommand:
			if f.apply(&l); f.broken != nil {
				return h, 0, f.broken
			}
		case raft.LogConfiguration:
			servers = raft.DecodeConfiguration(l.Data)
		}
		h.Index, term = index, l.Term
		if !l.AppendedAt.IsZero() {
			h.At = l.AppendedAt
		}
	}
	if f.roster.Farm() == "" {
		return h, 0, ErrNoQueue
	}
	for _, s := range servers.Servers {
		if s.Suffrage == raft.Voter {
			h.Voters = append(h.Voters, authz.PeerID(s.ID))
		} else {
			h.Standbys = append(h.Standbys, authz.PeerID(s.ID))
		}
	}
	current, err := st.GetUint64([]byte(raftTerm))
	if err != nil && err.Error() != errNoKey.Error() {
		return h, 0, err
	}
	return h, max(term, current), nil
}

// raftTerm is raft's own name for the term in the stable store.
const raftTerm = "CurrentTerm"

// restoreLatest restores the newest snapshot that can be read, if there are any.
func restoreLatest(snapshots raft.SnapshotStore, f *fsm) (index, term uint64, servers raft.Configuration, err error) {
	list, err := snapshots.List()
	if err != nil {
		return 0, 0, servers, fmt.Errorf("listing the queue's snapshots: %w", err)
	}
	var why error
	for _, meta := range list { // the newest first
		_, in, err := snapshots.Open(meta.ID)
		if err == nil {
			err = errors.Join(f.Restore(in), in.Close())
		}
		if err == nil {
			return meta.Index, meta.Term, meta.Configuration, nil
		}
		why = errors.Join(why, err)
	}
	return 0, 0, servers, why
}

// lay writes the state as the whole of a new log, in which self votes alone.
func lay(cfg Config, tmp string, f *fsm, term uint64, self authz.PeerID) (err error) {
	logger := &raftLogger{to: cfg.Logger, name: "raft"}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(tmp, 2, logger)
	if err != nil {
		return fmt.Errorf("writing the new queue: %w", err)
	}
	_, addresses := raft.NewInmemTransport(raft.ServerAddress(self)) // for how it writes them, alone
	servers := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self), Address: raft.ServerAddress(self)}}}
	sink, err := snapshots.Create(raft.SnapshotVersionMax, f.index, term, servers, 1, addresses)
	if err != nil {
		return fmt.Errorf("writing the new queue: %w", err)
	}
	state, err := f.Snapshot()
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := state.Persist(sink); err != nil {
		return fmt.Errorf("writing the new queue: %w", err)
	}
	st, err := openStore(filepath.Join(tmp, "log"), !cfg.NoSync, cfg.Logger)
	if err != nil {
		return err
	}
	return errors.Join(st.SetUint64([]byte(raftTerm), term), st.Close())
}

// copyPages copies the audit of a folder that is not in use into a new one.
func copyPages(from string, to *ledger) error {
	old, err := openLedger(from, false, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = old.close() }()
	for _, p := range old.list() {
		records, err := old.read(p)
		// What was altered stays as it is, for a verification to find.
		var altered *authz.Fault
		if err != nil && !errors.As(err, &altered) {
			return err
		}
		if len(records) > 0 && !to.append(records) {
			return errors.New("the audit cannot be copied: see the log")
		}
	}
	return nil
}

// SoleVoter tells that nobody but the machine keeps the queue going.
func (h Holding) SoleVoter(self authz.PeerID) bool {
	return slices.Equal(h.Voters, []authz.PeerID{self})
}
