package authz

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// SessionLife is how long a session lasts.
const SessionLife = time.Hour

const (
	sessionPrefix  = "vzs_"
	sessionVersion = 1
	sessionIDSize  = 16
	// sessionHead is what stands before the user: version, ID, when it was issued,
	// seconds it lasts, and the issuer's key.
	sessionHead = 1 + sessionIDSize + 8 + 4 + ed25519.PublicKeySize
	// maxSession is the longest life that a peer believes.
	maxSession = 24 * time.Hour
	// sessionSkew is how far the clocks of two peers may be apart.
	sessionSkew = 5 * time.Minute
)

// ErrSession is returned for a session that is no good, whatever the reason.
var ErrSession = errors.New("the session is over, or not of this farm: log in again with `vizpeer login`")

// Session is a person's proof of having logged in. Its text is signed by the
// coordinator that checked the password, so that every peer can verify it alone;
// it says who the person is, and never what the person may do.
type Session struct {
	ID      string
	User    string
	Issued  time.Time
	Expires time.Time
	Issuer  PeerID // the coordinator
}

// NewSession makes a session for p with an ID read from random, which is rand.Reader
// of crypto/rand outside tests. at is when the password was asked for: where it is
// changed while it is being checked, the session is no good.
func NewSession(random io.Reader, p Person, issuer PeerID, at time.Time) (Session, error) {
	var id [sessionIDSize]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return Session{}, fmt.Errorf("making a session: %w", err)
	}
	if at.Before(p.ValidAfter) { // by the clock of another leader
		at = p.ValidAfter
	}
	at = canonical(at)
	return Session{ID: base32Text.EncodeToString(id[:]), User: p.User, Issued: at, Expires: at.Add(SessionLife), Issuer: issuer}, nil
}

// Sign is the session's text, "vzs_" and its claims with a signature. sign signs with
// the issuer's own key, the one in its peer ID.
func (s Session) Sign(farm FarmID, sign func([]byte) ([]byte, error)) (string, error) {
	key, err := s.Issuer.PublicKey()
	if err != nil {
		return "", err
	}
	if err := checkName("user", s.User); err != nil {
		return "", err
	}
	id, err := base32Text.DecodeString(s.ID)
	if err != nil || len(id) != sessionIDSize {
		return "", fmt.Errorf("%.64q is not the ID of a session", s.ID)
	}
	claims := append([]byte{sessionVersion}, id...)
	claims = binary.BigEndian.AppendUint64(claims, uint64(s.Issued.UnixNano()))
	claims = binary.BigEndian.AppendUint32(claims, uint32(s.Expires.Sub(s.Issued)/time.Second))
	claims = append(append(claims, key...), s.User...)
	signature, err := sign(sessionStatement(farm, claims))
	if err == nil && len(signature) != ed25519.SignatureSize {
		err = errors.New("the key is not an Ed25519 one")
	}
	if err != nil {
		return "", fmt.Errorf("signing a session: %w", err)
	}
	return sessionPrefix + base32Text.EncodeToString(append(claims, signature...)), nil
}

// sessionStatement is what is signed. The first words keep the signature from being
// taken for one over anything else, or of another farm.
func sessionStatement(farm FarmID, claims []byte) []byte {
	return append([]byte("vizpeer session 1\n"+string(farm)+"\n"), claims...)
}

// parseSession reads a session's text and proves that its issuer signed it for farm.
// Who that is, and whether the session is still good, is the caller's to look up.
func parseSession(text string, farm FarmID) (Session, error) {
	encoded, ok := strings.CutPrefix(text, sessionPrefix)
	raw, err := base32Text.DecodeString(encoded)
	n := len(raw) - ed25519.SignatureSize
	if !ok || err != nil || n <= sessionHead || n > sessionHead+MaxName || raw[0] != sessionVersion {
		return Session{}, ErrSession
	}
	claims, signature := raw[:n], raw[n:]
	at, key := 1+sessionIDSize, ed25519.PublicKey(raw[sessionHead-ed25519.PublicKeySize:sessionHead])
	if !ed25519.Verify(key, sessionStatement(farm, claims), signature) {
		return Session{}, ErrSession
	}
	issued := time.Unix(0, int64(binary.BigEndian.Uint64(raw[at:]))).UTC()
	life := time.Duration(binary.BigEndian.Uint32(raw[at+8:])) * time.Second
	return Session{
		ID: base32Text.EncodeToString(raw[1:at]), User: string(claims[sessionHead:]),
		Issued: issued, Expires: issued.Add(life), Issuer: peerIDOf(key),
	}, nil
}

// session returns who shows the session.
func (d *directory) session(text string, now time.Time) (Principal, error) {
	s, err := parseSession(text, d.Farm())
	if err != nil {
		return Principal{}, err
	}
	person, known := d.Person(s.User)
	_, ended := d.endedAt(s.ID)
	switch {
	case !d.IsCoordinator(s.Issuer), !known, ended:
		return Principal{}, ErrSession
	case !now.Before(s.Expires), s.Expires.Sub(s.Issued) > maxSession, s.Issued.After(now.Add(sessionSkew)):
		return Principal{}, ErrSession
	case person.Disabled:
		return Principal{}, ErrDisabled
	case s.Issued.Before(person.ValidAfter):
		return Principal{}, ErrSession
	}
	return Principal{User: person.User, Role: person.Role, Session: s.ID, Expires: s.Expires, MustChange: person.MustChange}, nil
}
