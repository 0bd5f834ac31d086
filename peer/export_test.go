package peer

import "vizpeer/authz"

// Roster is the roster that the peer goes by.
func (p *Peer) Roster() *authz.View { return p.gate.view() }

// Revise gives the peer a roster, as its leader would.
func (p *Peer) Revise(v *authz.View) { p.roster(v) }
