package coord

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
)

// Status is who holds the log.
type Status struct {
	Leader       authz.PeerID // "" while none is known
	Term         uint64
	Voters       []authz.PeerID
	Standbys     []authz.PeerID
	AppliedIndex uint64
	// CommitIndex is the last entry that this machine knows to be committed: what lies
	// between is still to be applied here.
	CommitIndex uint64
}

// Status is who holds the log, as far as this machine knows.
func (l *Log) Status() Status {
	var s Status
	s.Leader, s.Term = l.Leader()
	s.AppliedIndex, s.CommitIndex = l.raft.AppliedIndex(), l.raft.CommitIndex()
	for _, server := range l.raft.GetConfiguration().Configuration().Servers {
		id := authz.PeerID(server.ID)
		if server.Suffrage == raft.Voter {
			s.Voters = append(s.Voters, id)
		} else {
			s.Standbys = append(s.Standbys, id)
		}
	}
	return s
}

// Leader is the leader that this machine knows of, "" if none, and the current
// term.
func (l *Log) Leader() (authz.PeerID, uint64) {
	_, id := l.raft.LeaderWithID()
	return authz.PeerID(id), l.raft.CurrentTerm()
}

// LeaderCh tells when this machine gains (true) or loses (false) leadership. It
// holds the latest word only: leadership lost and won again between two reads is
// told as true, under a higher term. It has one reader, and is never closed.
func (l *Log) LeaderCh() <-chan bool { return l.raft.LeaderCh() }

// StepDown hands the leadership to another voter that is up to date. It fails on
// a sole voter, which goes on leading, and on a machine that does not lead.
func (l *Log) StepDown() error {
	return l.wait(context.Background(), func() raft.Future { return l.raft.LeadershipTransfer() })
}

// Changes signals, until stop, that who leads or who holds the log may have changed, as
// far as this machine knows: ask [Log.Status]. Signals that nobody took yet are one.
func (l *Log) Changes() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	l.watchers.Lock()
	defer l.watchers.Unlock()
	l.watchers.all[c] = struct{}{}
	return c, func() {
		l.watchers.Lock()
		defer l.watchers.Unlock()
		delete(l.watchers.all, c)
	}
}

// observe is raft's filter of observations, used for its call alone: unlike an
// observer's channel it can neither block raft nor miss the last change.
func (l *Log) observe(o *raft.Observation) bool {
	if _, ok := o.Data.(raft.LeaderObservation); ok {
		l.changed()
	}
	return false
}

// changed wakes whoever watches.
func (l *Log) changed() {
	l.watchers.Lock()
	defer l.watchers.Unlock()
	for c := range l.watchers.all {
		select {
		case c <- struct{}{}:
		default: // one is waiting
		}
	}
}

// AddStandby has a coordinator replicate the log without a vote. Only the leader
// can.
func (l *Log) AddStandby(ctx context.Context, id peer.ID) error {
	return l.change(ctx, id, func(id raft.ServerID, at raft.ServerAddress) raft.Future {
		return l.raft.AddNonvoter(id, at, 0, l.cfg.ApplyTimeout)
	})
}

// AddVoter has a coordinator replicate the log with a vote. Only the leader can.
// With two voters neither may die: go from one to three.
func (l *Log) AddVoter(ctx context.Context, id peer.ID) error {
	return l.change(ctx, id, func(id raft.ServerID, at raft.ServerAddress) raft.Future {
		return l.raft.AddVoter(id, at, 0, l.cfg.ApplyTimeout)
	})
}

// Demote takes a coordinator's vote; it goes on replicating the log. Only the leader can,
// and not its own.
func (l *Log) Demote(ctx context.Context, id peer.ID) error {
	return l.wait(ctx, func() raft.Future { return l.raft.DemoteVoter(raft.ServerID(id.String()), 0, l.cfg.ApplyTimeout) })
}

// Transfer hands the leadership to that voter. Only the leader can.
func (l *Log) Transfer(ctx context.Context, id peer.ID) error {
	name := id.String()
	return l.wait(ctx, func() raft.Future {
		return l.raft.LeadershipTransferToServer(raft.ServerID(name), raft.ServerAddress(name))
	})
}

// Remove has a coordinator hold the log no more. Only the leader can.
func (l *Log) Remove(ctx context.Context, id peer.ID) error {
	return l.wait(ctx, func() raft.Future { return l.raft.RemoveServer(raft.ServerID(id.String()), 0, l.cfg.ApplyTimeout) })
}

func (l *Log) change(ctx context.Context, id peer.ID, f func(raft.ServerID, raft.ServerAddress) raft.Future) error {
	if !l.allow(id) {
		return fmt.Errorf("%s is no coordinator of this farm: admit it with a coordinator's ticket first", id)
	}
	name := id.String()
	return l.wait(ctx, func() raft.Future { return f(raft.ServerID(name), raft.ServerAddress(name)) })
}
