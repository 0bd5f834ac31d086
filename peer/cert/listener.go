package cert

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Leaf is a listener's certificate with its key.
type Leaf struct {
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate
}

// NewLeaf makes a leaf of a key and what it was certified with, which must lead to one
// of roots.
func NewLeaf(key *ecdsa.PrivateKey, chain, roots [][]byte, now time.Time) (*Leaf, error) {
	certs, err := check(key, chain, roots, now)
	if err != nil {
		return nil, err
	}
	return &Leaf{key, certs}, nil
}

// Encode writes key and chain as PEM. It is a secret: the file is its owner's alone.
func (l *Leaf) Encode() ([]byte, error) { return encode(l.key, raw(l.chain)) }

// DecodeLeaf reads what [Leaf.Encode] wrote. It fails where that is no longer good.
func DecodeLeaf(text []byte, roots [][]byte, now time.Time) (*Leaf, error) {
	key, chain, err := decode(text)
	if err != nil {
		return nil, err
	}
	return NewLeaf(key, chain, roots, now)
}

// Until is when the certificate ends, Due when it should be renewed.
func (l *Leaf) Until() time.Time { return earliest(l.chain) }

// Due is when two thirds of its life are over.
func (l *Leaf) Due() time.Time { return due(l.chain) }

// Names lists the hosts and addresses that it is for.
func (l *Leaf) Names() []string {
	names := slices.Clone(l.chain[0].DNSNames)
	for _, ip := range l.chain[0].IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// ErrNone says that a listener has no certificate that is good now.
var ErrNone = errors.New("this machine has no certificate of the farm's CA")

// Listener is the TLS side of a listener whose certificate is exchanged while it runs.
// The zero value has none yet and refuses every handshake. Safe for concurrent use.
type Listener struct{ leaf atomic.Pointer[shown] }

type shown struct {
	*Leaf
	tls tls.Certificate
}

// Use shows l from now on.
func (s *Listener) Use(l *Leaf) {
	// The root goes with it: whoever pins a fingerprint knows nothing else of it.
	s.leaf.Store(&shown{l, tls.Certificate{Certificate: raw(l.chain), PrivateKey: l.key, Leaf: l.chain[0]}})
}

// Leaf is what is shown, nil before the first.
func (s *Listener) Leaf() *Leaf {
	if l := s.leaf.Load(); l != nil {
		return l.Leaf
	}
	return nil
}

// Check reports why the listener shows nothing now, or nil.
func (s *Listener) Check(now time.Time) error {
	l := s.leaf.Load()
	switch {
	case l == nil:
		return ErrNone
	case !now.Before(l.Until()):
		return fmt.Errorf("%w: the one it had ended at %s", ErrNone, l.Until().Format(time.DateTime))
	}
	return nil
}

// Config is for TLS 1.2 and later, with Go's own choice of ciphers, and HTTP/1.1.
func (s *Listener) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if err := s.Check(time.Now()); err != nil {
				return nil, err
			}
			return &s.leaf.Load().tls, nil
		},
	}
}

// ParseFingerprint reads a SHA-256 in hexadecimal, with or without colons.
func ParseFingerprint(text string) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
	if err != nil || len(b) != len(sum) {
		return sum, fmt.Errorf("%.100q is no fingerprint: it is 64 hexadecimal digits, as `vizpeer status` shows it", text)
	}
	return [sha256.Size]byte(b), nil
}

// ErrPin says that a server is not of the farm that was pinned.
var ErrPin = errors.New("the server is not of that farm")

// Trusting is a caller's TLS settings that believe the certificates in a ca.crt and no
// others.
func Trusting(bundle []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, nil
}

// Pinning is a caller's TLS settings that believe the CA with that fingerprint, which
// the server shows, and no other. host is the name or address that is called.
func Pinning(sum [sha256.Size]byte, host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The verification below is in its place: it needs the chain to find the root.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			found := false
			for _, c := range state.PeerCertificates {
				if sha256.Sum256(c.Raw) == sum {
					roots.AddCert(c)
					found = true
				} else {
					between.AddCert(c)
				}
			}
			if !found {
				return fmt.Errorf("%w: it shows no CA with the fingerprint %x", ErrPin, sum)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host}) // the state names no server that is called by its address
			return err
		},
	}
}
