package coord

import (
	"cmp"
	"slices"
	"time"

	"vizpeer/authz"
)

// maxVoters is how many coordinators vote at most: every command waits for a majority of
// them, and two that are lost at once are all that five have to survive.
const maxVoters = 5

// standing is what the leader knows of one coordinator, or of a machine that holds the
// log and should not.
type standing struct {
	id          authz.PeerID
	coordinator bool // by the roster
	held        bool // an admin keeps it from voting
	old         bool // its vizpeer does not know the farm's level
	server      bool // it holds the log
	voter       bool // with a vote
	up          bool
	since       time.Time // it is up, or is not
	current     bool      // what it has applied is as good as all there is
	leaving     bool      // it is being stopped
	applied     uint64    // entries, as it said last
	trusted     bool      // somebody wants it to vote without more ado
}

// patience is how long a standby must be up before it votes, and how long a voter may be
// away before another takes its place.
type patience struct{ stable, replace time.Duration }

// moveKind is a way to change who holds the log.
type moveKind string

const (
	moveAdd     moveKind = "add"     // as a standby
	moveRemove  moveKind = "remove"  // from the log
	movePromote moveKind = "promote" // to a voter
	moveDemote  moveKind = "demote"  // to a standby
	moveYield   moveKind = "yield"   // the leadership, by the leader
)

// move is one change of who holds the log.
type move struct {
	kind moveKind
	who  authz.PeerID
}

// nextMove is the change that should be made now to who holds the log; "" is its kind
// where there is none. next is when time alone may change that, zero where it cannot.
//
// The number of voters is kept odd: an even one survives the loss of no more machines
// than the odd one below it, and of two neither may be lost. It grows only by two at once
// where two are ready, and shrinks only when two are away for long: a command is then on
// disk in as many places as before. A voter that is gone is replaced, first one in, then
// the other out. The leader, self, keeps its vote.
func nextMove(self authz.PeerID, now time.Time, all []standing, p patience) (m move, next time.Time) {
	var voters, ready, gone, held []standing
	var began time.Time
	yields := false
	here := 0 // voters that are up
	passed := func(since time.Time, d time.Duration) bool {
		at := since.Add(d)
		if at.After(now) && (next.IsZero() || at.Before(next)) {
			next = at
		}
		return !at.After(now)
	}
	for _, s := range all {
		switch {
		case s.server && !s.coordinator && s.id != self:
			return move{moveRemove, s.id}, next
		case s.coordinator && !s.server && s.up && !s.old:
			return move{moveAdd, s.id}, next
		case s.voter:
			voters = append(voters, s)
			switch {
			case s.id == self:
				began, yields = s.since, s.held
			case s.held:
				held = append(held, s)
			}
			if s.up {
				here++
			} else if passed(s.since, p.replace) {
				gone = append(gone, s)
			}
		case s.server && s.up && s.current && !s.held && !s.leaving && (s.trusted || passed(s.since, p.stable)):
			ready = append(ready, s)
		}
	}
	// Whoever is up for longest is the likeliest to stay.
	slices.SortFunc(ready, func(a, b standing) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.id, b.id)) })
	slices.SortFunc(gone, func(a, b standing) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.id, b.id)) })
	even := len(voters)%2 == 0
	switch {
	case yields && here > 1:
		return move{moveYield, self}, next
	case len(held) > 0:
		return move{moveDemote, held[0].id}, next
	case even && len(voters) > 2 && len(gone) > 0:
		return move{moveDemote, gone[0].id}, next
	case even && len(ready) > 0:
		return move{movePromote, ready[0].id}, next
	case even && (len(voters) == 2 || passed(began, p.stable)): // who is up is known by then
		return move{moveDemote, leastOf(voters, self)}, next
	case even:
	case len(gone) > 0 && len(ready) > 0:
		return move{movePromote, ready[0].id}, next
	case len(voters) >= 5 && len(gone) >= 2:
		return move{moveDemote, gone[0].id}, next
	case len(voters) < maxVoters && here == len(voters) && len(ready) >= 2:
		return move{movePromote, ready[0].id}, next
	}
	return move{}, next
}

// leastOf is the voter, other than self, that is missed least: one that leaves or is away
// before others, and who came last before who is here for long.
func leastOf(voters []standing, self authz.PeerID) authz.PeerID {
	others := slices.DeleteFunc(slices.Clone(voters), func(s standing) bool { return s.id == self })
	rank := func(s standing) int {
		switch {
		case s.leaving:
			return 0
		case !s.up:
			return 1
		}
		return 2
	}
	return slices.MinFunc(others, func(a, b standing) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.since.Compare(a.since), cmp.Compare(a.id, b.id))
	}).id
}
