package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
)

// ErrRemoved says that the farm has removed this machine.
var ErrRemoved = errors.New("this machine was removed from the farm")

// goneError is how the link ends on a machine that was removed.
type goneError struct{ why string }

func (e *goneError) Error() string { return ErrRemoved.Error() + ": " + e.why }
func (e *goneError) Unwrap() error { return ErrRemoved }

// removedError is ErrRemoved with why.
func removedError(farm, why string) error {
	return fmt.Errorf("%w %s: %s; to let it in again, ask an admin for a new ticket and run `vizpeer join TICKET`", ErrRemoved, farm, why)
}

// removed finds out, from a coordinator that turned this machine away, whether the farm
// has removed it, and why. Only a coordinator of the roster that this machine goes by
// is believed, and only by a newer one: it may have fallen behind itself.
func (l *link) removed(ctx context.Context, p peer.ID) (why string, yes bool) {
	v := l.gate.view()
	if v == nil || !l.gate.coordinator(peerOf(p)) || l.host.Network().Connectedness(p) != network.Connected {
		return "", false // who cannot be reached has turned nobody away
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	a := applicant{host: l.host, farm: v.Farm(), request: joinRequest{Ask: askMember}}
	answer, charter, err := a.exchange(ctx, peer.AddrInfo{ID: p}, true)
	if err != nil || answer.Code != codeRemoved {
		return "", false
	}
	_, member := v.Member(l.self)
	mine, current := v.Charter(), charter.Epoch == v.Charter().Epoch && charter.Coordinator == v.Charter().Coordinator
	switch {
	case mine.Supersedes(charter), l.gate.latest().Supersedes(charter), current && answer.Version < v.Version(), current && answer.Version == v.Version() && member:
		return "", false
	}
	return answer.Reason, true
}

// whyRemoved is what a coordinator tells a machine that asks whether it is a member;
// false where it is one.
func whyRemoved(r *authz.Roster, id authz.PeerID) (string, bool) {
	if _, member := r.Member(id); member {
		return "", false
	}
	if f, ok := r.Former(id); ok {
		return fmt.Sprintf("%s on %s", f.Reason, f.At.UTC().Format(time.DateOnly)), true
	}
	return "it is no member", true
}

// left notes on disk that this machine is no member any more, so that it does not try
// again and again, and that a new ticket is taken.
func (p *Peer) left(why string) error {
	m, err := p.dir.membership()
	if err != nil {
		return err
	}
	m.Removed = why
	return p.dir.writeJSON("membership.json", m, 0o600)
}
