package authz

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"strings"
)

// Hash is the SHA-256 of a random secret of at least 128 bits: all that the
// farm remembers of it. Nobody can find the secret from it, so it may be
// replicated to every peer.
type Hash [sha256.Size]byte

func hashSecret(secret []byte) Hash { return sha256.Sum256(secret) }

// matches tells whether secret is the one, in constant time.
func (h Hash) matches(secret []byte) bool {
	got := hashSecret(secret)
	return subtle.ConstantTimeCompare(got[:], h[:]) == 1
}

// LooksSecret tells whether a text begins as an API key, a session or a ticket does, and
// so must not be put on record.
func LooksSecret(text string) bool {
	text = strings.TrimSpace(text)
	return strings.HasPrefix(text, tokenPrefix) || strings.HasPrefix(text, sessionPrefix) || strings.HasPrefix(text, ticketPrefix)
}

// MarshalText writes the hash in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("a hash has %d hexadecimal digits, not %d", hex.EncodedLen(len(h)), len(text))
	}
	_, err := hex.Decode(h[:], text)
	return err
}
