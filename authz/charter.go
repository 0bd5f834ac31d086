package authz

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCharter is wrapped by every reason why a charter does not hold.
var ErrCharter = errors.New("the farm's charter does not hold")

// Charter is the farm key's signed word that a peer may found the farm's queue.
// Peers follow the highest epoch, so that a coordinator that was replaced for
// good cannot come back as a rival.
type Charter struct {
	Farm        ed25519.PublicKey `json:"farm"`
	Coordinator PeerID            `json:"coordinator"`
	Epoch       uint64            `json:"epoch"` // counts from 1
	Signature   []byte            `json:"signature"`
}

// SignCharter says that coordinator may lead the farm from this epoch on.
func (k FarmKey) SignCharter(coordinator PeerID, epoch uint64) Charter {
	c := Charter{Farm: k.Public(), Coordinator: coordinator, Epoch: epoch}
	c.Signature = ed25519.Sign(k.private, c.statement())
	return c
}

// ID is the farm that the charter claims to be of; [Charter.Verify] proves it.
func (c Charter) ID() FarmID { return farmIDOf(c.Farm) }

// Verify reports why the charter is not farm's own word, or nil.
func (c Charter) Verify(farm FarmID) error {
	switch {
	case len(c.Farm) != ed25519.PublicKeySize:
		return fmt.Errorf("%w: its key is damaged", ErrCharter)
	case c.ID() != farm:
		return fmt.Errorf("%w: it is of farm %s, not of %s", ErrCharter, c.ID(), farm)
	case c.Epoch == 0:
		return fmt.Errorf("%w: it has no epoch", ErrCharter)
	case checkPeer(c.Coordinator) != nil:
		return fmt.Errorf("%w: %w", ErrCharter, checkPeer(c.Coordinator))
	case !ed25519.Verify(c.Farm, c.statement(), c.Signature):
		return fmt.Errorf("%w: the farm key did not sign it", ErrCharter)
	}
	return nil
}

// statement is what is signed. The first words keep the signature from being
// taken for one over anything else.
func (c Charter) statement() []byte {
	b := []byte("vizpeer charter 1\n")
	b = binary.BigEndian.AppendUint64(b, c.Epoch)
	return append(b, c.Coordinator...)
}
