package authz

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	tokenPrefix     = "vzk_"
	tokenIDSize     = 8
	tokenSecretSize = 32
)

// ErrToken is returned when a request shows no API key that this farm knows. It
// is the same for an unknown key and a wrong secret.
var ErrToken = errors.New("the API key is not one of this farm's: use the one that `vizpeer init`, `join` or `key create` printed")

// ErrTokenText is wrapped by the errors of a text that cannot be an API key.
var ErrTokenText = errors.New("this is not a whole API key")

// Key is what the farm remembers of an API key: whose it is and what it may do.
type Key struct {
	ID      string    `json:"id"`
	Hash    Hash      `json:"hash"`
	User    string    `json:"user"`
	Role    Role      `json:"role"`
	Peer    PeerID    `json:"peer,omitempty"` // the machine whose token file holds it; "" for a person's own
	Created time.Time `json:"created"`
	Name    string    `json:"name,omitempty"` // what it is for, in its maker's words
	By      string    `json:"by,omitempty"`   // the user who made it; "" where a ticket did
}

// NewKey makes an API key with a 256-bit secret read from random, which is
// rand.Reader of crypto/rand outside tests. The token is shown once; only the
// Key is kept.
func NewKey(random io.Reader, user string, role Role, at time.Time) (token string, key Key, err error) {
	var id [tokenIDSize]byte
	var secret [tokenSecretSize]byte
	for _, part := range [][]byte{id[:], secret[:]} {
		if _, err := io.ReadFull(random, part); err != nil {
			return "", Key{}, fmt.Errorf("making an API key: %w", err)
		}
	}
	key = Key{ID: base32Text.EncodeToString(id[:]), Hash: hashSecret(secret[:]), User: user, Role: role, Created: canonical(at)}
	if err := key.validate(); err != nil {
		return "", Key{}, err
	}
	return tokenPrefix + key.ID + "_" + base32Text.EncodeToString(secret[:]), key, nil
}

func (k Key) validate() error {
	if len(k.ID) != base32Text.EncodedLen(tokenIDSize) || !isBase32(k.ID) {
		return fmt.Errorf("%.64q is not the ID of an API key", k.ID)
	}
	if k.Hash == (Hash{}) {
		return fmt.Errorf("the API key %s has no hash", k.ID)
	}
	if _, err := ParseRole(string(k.Role)); err != nil {
		return err
	}
	if k.Peer != "" {
		if err := checkPeer(k.Peer); err != nil {
			return err
		}
	}
	if k.Name != "" {
		if err := checkName("API key", k.Name); err != nil {
			return err
		}
	}
	if k.By != "" {
		if err := checkName("user", k.By); err != nil {
			return err
		}
	}
	return checkName("user", k.User)
}

// parseToken splits "vzk_<id>_<secret>". Its errors never quote the text.
func parseToken(token string) (id string, secret []byte, err error) {
	const size = len(tokenPrefix) + 13 + 1 + 52
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	switch {
	case token == "":
		return "", nil, fmt.Errorf("%w: it is empty", ErrTokenText)
	case !ok && strings.HasPrefix(token, "vzt"):
		return "", nil, fmt.Errorf("%w: it is a ticket; redeem it with `vizpeer join`", ErrTokenText)
	case !ok:
		return "", nil, fmt.Errorf("%w: an API key begins with %q", ErrTokenText, tokenPrefix)
	case len(token) < size:
		return "", nil, fmt.Errorf("%w: it is cut short; copy the whole line", ErrTokenText)
	case len(token) > size:
		return "", nil, fmt.Errorf("%w: it has %d characters too many", ErrTokenText, len(token)-size)
	}
	id, text, ok := strings.Cut(rest, "_")
	if !ok || len(id) != base32Text.EncodedLen(tokenIDSize) || !isBase32(id) || !isBase32(text) {
		return "", nil, fmt.Errorf("%w: it is mistyped; copy the whole line", ErrTokenText)
	}
	secret, err = base32Text.DecodeString(text)
	if err != nil || base32Text.EncodeToString(secret) != text {
		return "", nil, fmt.Errorf("%w: it is mistyped; copy the whole line", ErrTokenText)
	}
	return id, secret, nil
}

func isBase32(s string) bool { return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == "" }
