package authz

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Approve admits a machine without a ticket: an admin has seen on both screens that
// it is the one that asks.
type Approve struct {
	Peer   PeerID `json:"peer"` // as its connection proved it
	Name   string `json:"name"` // the machine's
	Worker bool   `json:"worker"`
	Role   Role   `json:"role"`
	By     string `json:"by"` // the user who approved it
	// KeyID and KeyHash are as those of Redeem.
	KeyID   string `json:"key_id,omitempty"`
	KeyHash Hash   `json:"key_hash,omitzero"`
}

// Validate says what is wrong with it on its own.
func (a Approve) Validate() error {
	if _, err := ParseRole(string(a.Role)); err != nil {
		return err
	}
	m := Member{ID: a.Peer, Name: a.Name, Role: a.Role, User: a.Name}
	if err := errors.Join(m.validate(), checkName("user", a.By)); err != nil || a.KeyID == "" {
		return err
	}
	return Key{ID: a.KeyID, Hash: a.KeyHash, User: a.Name, Role: a.Role, Peer: a.Peer}.validate()
}

func (r *Roster) approve(at time.Time, c Approve) ([]Event, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if _, isMember := r.Member(c.Peer); !isMember && len(r.members) >= MaxMembers {
		return nil, ErrFull
	}
	return r.admit(at, Redeem{Peer: c.Peer, Name: c.Name, Worker: c.Worker, KeyID: c.KeyID, KeyHash: c.KeyHash}, c.Role, false)
}

// admit makes a machine a member with a role, or adds that to what it may do: nothing
// is ever taken away.
func (r *Roster) admit(at time.Time, c Redeem, role Role, coordinator bool) ([]Event, error) {
	old, isMember := r.Member(c.Peer)
	m := Member{ID: c.Peer, Name: c.Name, Worker: c.Worker, Coordinator: coordinator, Role: role, JoinedAt: at}
	if isMember {
		m.User, m.JoinedAt, m.NamedAt, m.Labels = old.User, old.JoinedAt, old.NamedAt, old.Labels
		if !strings.EqualFold(m.Name, old.Name) {
			m.NamedAt = at
		}
		m.Coordinator = m.Coordinator || old.Coordinator
		m.Role = stronger(m.Role, old.Role)
	} else if f, former := r.Former(c.Peer); former && !r.hasAccount(f.User) {
		m.User = f.User
	} else {
		m.User = r.freeUser(c.Name)
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	if c.KeyID == "" && m.Role != Node {
		return nil, fmt.Errorf("a machine that joins as %s brings an API key for its person", m.Role)
	}
	m.Key = old.Key
	if c.KeyID != "" {
		key := Key{ID: c.KeyID, Hash: c.KeyHash, User: m.User, Role: m.Role, Peer: m.ID, Created: at}
		if err := key.validate(); err != nil {
			return nil, err
		}
		if j, ok := r.key(key.ID); ok && r.keys[j].Peer != m.ID {
			return nil, errors.New("another API key has this ID: make a new one")
		}
		m.Key = key.ID
		r.dropKey(old.Key)
		r.putKey(key)
	}
	r.forgive(m.ID)
	r.putMember(m)
	return []Event{{Type: PeerAdmitted, Peer: m.ID, User: m.User, Role: m.Role}}, nil
}

func (r *Roster) hasAccount(user string) bool {
	_, ok := r.account(user)
	return ok
}
