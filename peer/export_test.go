package peer

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Roster is the roster that the peer goes by.
func (p *Peer) Roster() *authz.View { return p.gate.view() }

// Revise gives the peer a roster, as its leader would.
func (p *Peer) Revise(v *authz.View) { p.roster(v) }

// Connected tells whether the peer has a connection with another.
func (p *Peer) Connected(other authz.PeerID) bool {
	id, err := peer.Decode(string(other))
	return err == nil && p.host.Network().Connectedness(id) == network.Connected
}

// Dial connects to another peer, as the exchange would.
func (p *Peer) Dial(ctx context.Context, other authz.PeerID) error {
	id, err := peer.Decode(string(other))
	if err != nil {
		return err
	}
	dialAnew(p.host, id)
	_, err = p.host.Network().DialPeer(ctx, id)
	return err
}

// Mint makes a ticket, also one for a coordinator, as nobody can ask for yet.
func (p *Peer) Mint(t testing.TB, role authz.Role, coordinator bool) string {
	ticket, err := authz.NewTicket(rand.Reader, p.farm, role, coordinator, p.Addrs())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := p.coord.Admit(t.Context(), authz.Command{At: now, Mint: &authz.Mint{Ticket: ticket.Record(1, now.Add(time.Hour), "admin")}}); err != nil {
		t.Fatal(err)
	}
	return ticket.String()
}

// Heard is what the peer has heard another say of itself.
func (p *Peer) Heard(who authz.PeerID) lease.Capability {
	if can := p.coord.Knowledge().Members[who].Can; can != nil {
		return *can
	}
	return lease.Capability{}
}
