package authz

import (
	"errors"
	"fmt"
	"time"
)

// ErrEpoch says that a charter comes too late: the farm follows another one.
var ErrEpoch = errors.New("the farm has moved on to another epoch")

// Supersedes tells that whoever knows both charters follows c, and no more o: its epoch
// is higher. Two of one epoch come only of a farm that was recovered on two machines;
// their coordinators' IDs order them, so that all machines follow the same one.
func (c Charter) Supersedes(o Charter) bool {
	if c.Epoch != o.Epoch {
		return c.Epoch > o.Epoch
	}
	return c.Coordinator > o.Coordinator
}

// Succession begins a farm's next epoch: the machine that its charter names holds the
// queue from then on. It is no [Command]: it stands in no log, but before the first
// entry of one.
type Succession struct {
	Charter Charter
	// Name is the machine's, and Worker whether it renders, where it is no member yet.
	// It is then admitted as an admin's.
	Name   string
	Worker bool
	// KeyID and KeyHash are of the API key that it brings: see [Redeem]. A member may
	// keep the one that it has.
	KeyID   string
	KeyHash Hash
}

// Succeed begins the next epoch, or answers why not and changes nothing.
func (r *Roster) Succeed(at time.Time, s Succession) error {
	if r.Farm() == "" {
		return ErrNotFounded
	}
	if err := s.Charter.Verify(r.Farm()); err != nil {
		return err
	}
	if !s.Charter.Supersedes(r.charter) {
		return fmt.Errorf("%w: it is in epoch %d of %s", ErrEpoch, r.charter.Epoch, r.charter.Coordinator.Short())
	}
	c := Redeem{Peer: s.Charter.Coordinator, Name: s.Name, Worker: s.Worker, KeyID: s.KeyID, KeyHash: s.KeyHash}
	role := Admin
	switch m, member := r.Member(c.Peer); {
	case member && c.KeyID == "":
		m.Coordinator = true
		r.putMember(m)
	case member:
		c.Name, c.Worker, role = m.Name, m.Worker, m.Role
		fallthrough
	default:
		if !member && len(r.members) >= MaxMembers {
			return ErrFull
		}
		if _, err := r.admit(canonical(at), c, role, true); err != nil {
			return err
		}
	}
	r.charter = s.Charter
	r.version++
	return nil
}
