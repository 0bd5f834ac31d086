package authz

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/mr-tron/base58"
)

// ed25519ID is how the bytes of a peer ID begin that holds an Ed25519 key whole: an
// identity multihash of 36 bytes, of a key document of that type with 32 bytes.
var ed25519ID = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// PublicKey is the key inside the ID of a peer with an Ed25519 identity, as all
// vizpeers have: what that peer signed can be checked by anyone who knows its ID.
func (p PeerID) PublicKey() (ed25519.PublicKey, error) {
	if err := checkPeer(p); err != nil {
		return nil, err
	}
	id, err := base58.Decode(string(p))
	if err != nil {
		return nil, fmt.Errorf("%.64q is not a peer's ID: %w", string(p), err)
	}
	key, ok := bytes.CutPrefix(id, ed25519ID)
	if !ok || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("the peer ID %.64q holds no Ed25519 key", string(p))
	}
	return key, nil
}

// peerIDOf is the ID of the peer with that key.
func peerIDOf(key ed25519.PublicKey) PeerID {
	return PeerID(base58.Encode(slices.Concat(ed25519ID, key)))
}
