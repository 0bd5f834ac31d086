package coord

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
)

// LevelError is why the log does not take a command yet: not all who hold the log know
// it. It may be proposed again once they were updated. Find it with errors.As.
type LevelError struct {
	Needs, Farm int
	Behind      []Behind // who is to be updated, as far as known
}

func (e *LevelError) Error() string {
	who := "the coordinators that are of an older version: see `vizpeer coord status`"
	if len(e.Behind) > 0 {
		words := make([]string, len(e.Behind))
		for i, b := range e.Behind {
			words[i] = b.String()
		}
		who = strings.Join(words, " and ")
	}
	return fmt.Sprintf("not all of the farm's coordinators know this yet (it is of level %d, and the farm's is %d): update vizpeer on %s", e.Needs, e.Farm, who)
}

// Behind is a coordinator that holds the farm's level back, or keeps it from being one
// itself.
type Behind struct {
	Peer    authz.PeerID
	Name    string
	Version string // "" where it has not been heard from
	Knows   int
}

func (b Behind) String() string {
	if b.Version == "" {
		return fmt.Sprintf("%s (which was not heard from)", b.Name)
	}
	return fmt.Sprintf("%s (%s)", b.Name, b.Version)
}

// reach is the level to which a farm may be raised: the highest that all of the log's
// holders know. behind lists those who know less than most, which is what the leader knows.
func reach(holders []Behind, most int) (to int, behind []Behind) {
	to = most
	for _, h := range holders {
		if h.Knows < most {
			behind = append(behind, h)
		}
		to = min(to, h.Knows)
	}
	return to, behind
}

// mayHold reports why a machine must not hold the log of a farm of that level: it would
// stop at the first thing that it cannot read.
func mayHold(farm int, m Behind) error {
	if m.Knows >= farm {
		return nil
	}
	return fmt.Errorf("%s cannot hold the queue: its vizpeer knows level %d, and the farm's is %d: update it there", m, m.Knows, farm)
}

// takes reports why the log must not hold e yet.
func (f *fsm) takes(e Entry) error {
	if needs, farm := e.level(), int(f.level.Load()); needs > farm && e.Raise == nil {
		return &LevelError{Needs: needs, Farm: farm}
	}
	return nil
}

// Level is the farm's level, as far as this machine has applied the log.
func (l *Log) Level() int { return int(l.fsm.level.Load()) }

// encode writes an entry as the log will hold it.
func (l *Log) encode(e Entry) ([]byte, error) {
	if err := l.fsm.takes(e); err != nil {
		return nil, err
	}
	return e.encode()
}

// known is what is known of the levels of some machines: by what they said when they
// opened their work streams, or in their last ads, to this machine.
func (c *Coordinator) known(peers []authz.PeerID) []Behind {
	list := make([]Behind, len(peers))
	c.mu.Lock()
	for i, p := range peers {
		can := c.can[p]
		list[i] = Behind{Peer: p, Name: p.Short(), Version: can.Version, Knows: can.Knows()}
		if p == c.self {
			list[i].Knows = level.Known
		}
	}
	c.mu.Unlock()
	if l := c.leading.Load(); l != nil {
		l.mu.Lock()
		for i, p := range peers {
			if s := l.sessions[p]; s != nil && p != c.self {
				list[i].Version, list[i].Knows = s.said.Version, s.knows
			}
		}
		l.mu.Unlock()
	}
	c.Read(func(_ *lease.State, r *authz.Roster) {
		for i, p := range peers {
			if m, ok := r.Member(p); ok {
				list[i].Name = m.Name
			}
		}
	})
	return list
}

// Levels is how far the farm's update has come.
type Levels struct {
	Farm     int
	Behind   []Behind                // who holds the log and keeps the farm from the level that this machine knows
	Machines map[authz.PeerID]Behind // what all coordinators know
}

// HoldsBack tells whether a machine is behind.
func (l Levels) HoldsBack(p authz.PeerID) bool {
	return slices.ContainsFunc(l.Behind, func(b Behind) bool { return b.Peer == p })
}

// Levels tells how far the farm's update has come, as far as this machine knows.
func (c *Coordinator) Levels() Levels {
	st := c.Status()
	_, behind := reach(c.known(append(st.Voters, st.Standbys...)), level.Known)
	var all []authz.PeerID
	c.Read(func(_ *lease.State, r *authz.Roster) { all = r.Coordinators() })
	out := Levels{Farm: c.log().Level(), Behind: behind, Machines: make(map[authz.PeerID]Behind)}
	for _, m := range c.known(all) {
		out.Machines[m.Peer] = m
	}
	return out
}

// explained names who is behind, in an error of the log.
func (c *Coordinator) explained(err error) error {
	if behind, ok := err.(*LevelError); ok {
		behind.Behind = c.Levels().Behind
	}
	return err
}

// raise raises the farm's level where all who hold the log know a higher one. Only the
// term's own goroutine calls it.
func (l *leader) raise() {
	c := l.c
	if c.log().Level() >= level.Known {
		return
	}
	c.raising.Lock()
	defer c.raising.Unlock()
	st := c.Status()
	to, _ := reach(c.known(append(st.Voters, st.Standbys...)), level.Known)
	was := c.log().Level()
	if to <= was {
		return
	}
	if _, err := c.log().Apply(l.ctx, Entry{Raise: &Raise{At: time.Now(), Level: to}}); err != nil {
		c.slog.Debug("the farm's level was not raised", "err", err)
		return
	}
	c.slog.Info("the farm's level was raised: all who hold the queue know it", "from", was, "to", to)
}

// enlist calls add, which lets a machine hold the log, unless the machine's vizpeer is too
// old for the farm. The level is not raised meanwhile.
func (c *Coordinator) enlist(ctx context.Context, p authz.PeerID, add func(context.Context) error) error {
	c.raising.Lock()
	defer c.raising.Unlock()
	if err := mayHold(c.log().Level(), c.known([]authz.PeerID{p})[0]); err != nil {
		return err
	}
	return add(ctx)
}
