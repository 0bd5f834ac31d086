package authz

// Standby keeps a coordinator from voting, or lets it vote again: it then only copies the
// queue, such as a machine over a slow line whose vote others would have to wait for.
type Standby struct {
	Peer PeerID `json:"peer"`
	On   bool   `json:"on"`
}

func (r *Roster) standby(c Standby) ([]Event, error) {
	m, ok := r.Member(c.Peer)
	switch {
	case !ok:
		return nil, ErrNotMember
	case !m.Coordinator:
		return nil, ErrNotCoordinator
	case m.Standby == c.On:
		return nil, nil
	}
	m.Standby = c.On
	r.putMember(m)
	return []Event{{Type: PeerStandby, Peer: m.ID, User: m.User, Role: m.Role}}, nil
}
