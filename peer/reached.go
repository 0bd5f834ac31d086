package peer

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// via is the relay through which this machine is connected with a member; "" where it
// needs none.
func (r *reach) via(id authz.PeerID) authz.PeerID {
	p, err := peer.Decode(string(id))
	if err != nil || r.host == nil || r.direct(p) {
		return ""
	}
	for _, c := range r.host.Network().ConnsToPeer(p) {
		if relay, yes := relayOf(c.RemoteMultiaddr()); yes && !c.IsClosed() {
			return peerOf(relay)
		}
	}
	return ""
}

// state is how others reach this machine, for people.
func (r *reach) state() (s httpapi.Reach) {
	if r.host == nil {
		return s
	}
	s.From, s.Relays = r.says()
	for _, p := range r.host.Network().Peers() {
		if r.gate.member(p) && r.via(peerOf(p)) != "" {
			s.Relayed++
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.At = texts(slices.Concat(r.named, r.proven))
	for p := range r.places {
		s.Through = append(s.Through, peerOf(p))
	}
	slices.Sort(s.Through)
	if r.serving != nil {
		s.Circuits = int(r.serving.circuits.Load())
	}
	return s
}

// says is what this machine tells others of it: see [lease.Capability].
func (r *reach) says() (how string, relays bool) {
	if r.host == nil {
		return "", false
	}
	switch {
	case r.public():
		how = lease.ReachPublic
	case r.translated():
		how = lease.ReachNAT
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return how, r.service != nil
}
