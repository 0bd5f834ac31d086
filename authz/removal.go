package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// How long a member may stay away until it is none any more, and how often at most
// the roster notes that it was there. It may have been there for that long after it
// was noted last: it expires when both have passed.
const (
	AwayLimit = 30 * 24 * time.Hour
	SeenPause = 24 * time.Hour
)

// maxFormer bounds how many machines that were removed are remembered.
const maxFormer = 2 * MaxMembers

// ErrLastCoordinator keeps a farm from losing its queue.
var ErrLastCoordinator = errors.New("this machine is the farm's only coordinator: without it there is no queue; admit another coordinator first")

// Revoke removes a machine at an admin's wish, and with it the API keys that its
// person has by it alone. It can be admitted again, by another ticket.
type Revoke struct {
	Peer PeerID `json:"peer"`
	By   string `json:"by"` // the user who wants it
}

// Seen notes that machines were there at the command's time. It changes nothing that
// other peers hold.
type Seen struct {
	Peers []PeerID `json:"peers"`
}

// Expire removes those of some machines that were not seen after Before.
type Expire struct {
	Peers  []PeerID  `json:"peers"`
	Before time.Time `json:"before"`
}

// Former is what is remembered of a machine that was removed: why, for that machine
// to tell its person, and whose it was. Nobody else becomes that user, who may own
// jobs; the machine itself does, if it is admitted again.
type Former struct {
	Peer   PeerID    `json:"peer"`
	User   string    `json:"user"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // in words: "admin removed it"
}

// Former is what is remembered of a machine that was a member.
func (r *Roster) Former(id PeerID) (Former, bool) {
	if i, ok := r.findFormer(id); ok {
		return r.former[i], true
	}
	return Former{}, false
}

func (r *Roster) findFormer(id PeerID) (int, bool) {
	return slices.BinarySearchFunc(r.former, id, func(f Former, id PeerID) int { return strings.Compare(string(f.Peer), string(id)) })
}

func (r *Roster) revoke(at time.Time, c Revoke) ([]Event, error) {
	m, ok := r.Member(c.Peer)
	if !ok {
		return nil, ErrNotMember
	}
	if err := checkName("user", c.By); err != nil {
		return nil, err
	}
	if r.lastCoordinator(m) {
		return nil, ErrLastCoordinator
	}
	why := c.By + " removed it"
	r.remove(at, m, why)
	return []Event{{Type: PeerRevoked, Peer: m.ID, User: m.User, Role: m.Role, Reason: why}}, nil
}

func (r *Roster) expire(at time.Time, c Expire) ([]Event, error) {
	if len(c.Peers) > MaxMembers {
		return nil, fmt.Errorf("%d members are more than a farm has", len(c.Peers))
	}
	var events []Event
	for _, id := range c.Peers {
		m, ok := r.Member(id)
		if last := r.seen[id]; !ok || last.IsZero() || last.After(c.Before) || r.lastCoordinator(m) {
			continue
		}
		why := fmt.Sprintf("it was away for %d days", int(AwayLimit/(24*time.Hour)))
		r.remove(at, m, why)
		events = append(events, Event{Type: PeerExpired, Peer: m.ID, User: m.User, Role: m.Role, Reason: why})
	}
	return events, nil
}

func (r *Roster) note(at time.Time, c Seen) error {
	if len(c.Peers) > MaxMembers {
		return fmt.Errorf("%d members are more than a farm has", len(c.Peers))
	}
	for _, id := range c.Peers {
		if _, ok := r.Member(id); !ok || !at.After(r.seen[id]) && !ahead(r.seen[id], at) {
			continue
		}
		if r.seen == nil {
			r.seen = make(map[PeerID]time.Time)
		}
		r.seen[id] = at
	}
	return nil
}

// ahead tells that a member was noted later than now, by a clock that was wrong: it is
// noted anew, or it would be a member for as long as that clock was ahead.
func ahead(seen, now time.Time) bool { return seen.After(now.Add(SeenPause)) }

func (r *Roster) lastCoordinator(m Member) bool {
	return m.Coordinator && len(r.Coordinators()) == 1
}

// remove takes a member off the roster, with every API key that rests on it: its own,
// and those of its user where that is nobody with an account.
func (r *Roster) remove(at time.Time, m Member, why string) {
	i, _ := r.member(m.ID)
	r.members = slices.Delete(r.members, i, i+1)
	person := r.hasAccount(m.User)
	r.keys = slices.DeleteFunc(r.keys, func(k Key) bool { return k.Peer == m.ID || !person && k.User == m.User })
	delete(r.seen, m.ID)
	f := Former{Peer: m.ID, User: m.User, At: at, Reason: why}
	i, known := r.findFormer(m.ID)
	if known {
		r.former[i] = f
		return
	}
	r.former = slices.Insert(r.former, i, f)
	if len(r.former) > maxFormer {
		oldest := 0
		for i, f := range r.former {
			if f.At.Before(r.former[oldest].At) {
				oldest = i
			}
		}
		r.former = slices.Delete(r.former, oldest, oldest+1)
	}
}

// forgive forgets that a machine was removed: it is admitted again.
func (r *Roster) forgive(id PeerID) {
	if i, ok := r.findFormer(id); ok {
		r.former = slices.Delete(r.former, i, i+1)
	}
}

// LastSeen is when it was last noted that a member was there; zero where it never was.
func (r *Roster) LastSeen(id PeerID) time.Time { return r.seen[id] }

// Roll says what to make of who is there at some time, if anything, and when to ask
// again: of which members to note that they are, and which have stayed away for too
// long. It changes nothing.
//
// Members without a date, or with one that is still to come, are noted: they are counted
// from now on. So is everybody
// where nobody was noted for half of [AwayLimit]: it was the farm that was away, or
// its roster comes from a version that noted nobody.
func (r *Roster) Roll(now time.Time, here func(PeerID) bool) (seen *Seen, expire *Expire, next time.Time) {
	var latest time.Time
	for _, at := range r.seen {
		if at.After(latest) && !ahead(at, now) {
			latest = at
		}
	}
	anew := now.Sub(latest) > AwayLimit/2
	next = now.Add(SeenPause)
	var there, gone []PeerID
	for _, m := range r.members {
		last, lasts := r.seen[m.ID], AwayLimit+SeenPause
		if here(m.ID) {
			lasts = SeenPause
		}
		switch due := last.Add(lasts); {
		case anew, last.IsZero(), ahead(last, now):
			there = append(there, m.ID)
		case due.After(now):
			if due.Before(next) {
				next = due
			}
		case here(m.ID):
			there = append(there, m.ID)
		default:
			gone = append(gone, m.ID)
		}
	}
	if len(there) > 0 {
		seen = &Seen{Peers: there}
	}
	if len(gone) > 0 {
		expire = &Expire{Peers: gone, Before: now.Add(-AwayLimit - SeenPause)}
	}
	return seen, expire, next
}

// loadAway takes over what a snapshot says of who was seen and who was removed, after
// checking it.
func (r *Roster) loadAway(seen map[PeerID]time.Time, former []Former) error {
	for id, at := range seen {
		if _, ok := r.Member(id); !ok || at.IsZero() || at.Year() > maxYear {
			return fmt.Errorf("it says of %.64q, who is no member, when that was seen", string(id))
		}
	}
	if len(former) > maxFormer {
		return ErrFull
	}
	for i, f := range former {
		if err := errors.Join(checkPeer(f.Peer), checkName("user", f.User)); err != nil {
			return err
		}
		if _, member := r.Member(f.Peer); member {
			return fmt.Errorf("it says that %s was removed, and that it is a member", f.Peer)
		}
		if i > 0 && former[i-1].Peer >= f.Peer {
			return errors.New("its former members are not in order")
		}
	}
	r.seen, r.former = seen, former
	return nil
}
