// Package cert makes the certificates that the farm's HTTPS listeners show, and checks
// them for those who call.
//
// The founder holds the key of the root, which is what people and programs pin. Every
// other coordinator holds a key of its own, which the root or another coordinator has
// certified, so that certificates can be issued while any coordinator lives. No private
// key ever leaves the machine that made it, but for the root's copy in the recovery file.
// A listener's certificate lives for days and is renewed by itself: nothing is revoked,
// it runs out.
//
// Who may have which name is not decided here: see authz.
package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// How long certificates last, and how far clocks may be apart: a certificate is good
// from that long before it was made.
const (
	LeafLife = 7 * 24 * time.Hour

	caLife   = 10 * 365 * 24 * time.Hour
	rootLife = 20 * 365 * 24 * time.Hour
	skew     = time.Hour
)

// maxChain bounds how many stand between a listener and the root, both counted. Chains
// grow by one where a coordinator is certified by one that is not the root, so only with
// generations of coordinators.
const maxChain = 8

// MaxRequest bounds a certificate request, in bytes.
const MaxRequest = 16 << 10

// Authority signs certificates: a key, and the chain that says it may.
type Authority struct {
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate // its own first, the root last
}

// NewKey makes the private key of a certificate to be asked for.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a certificate's key: %w", err)
	}
	return key, nil
}

// NewRoot makes the CA of a farm, of which name is for people.
func NewRoot(name string, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	t := caTemplate(name, now, now.Add(rootLife))
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the farm's CA: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	return &Authority{key, []*x509.Certificate{c}}, err
}

func caTemplate(name string, now, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"vizpeer"}, CommonName: name},
		NotBefore: now.Add(-skew), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// Of no use to sign programs, mails or callers with.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // crypto/rand never fails
	b[0] &= 0x7f        // not negative
	return new(big.Int).SetBytes(b)
}

// Root is what an authority's certificates lead to.
func (a *Authority) Root() *x509.Certificate { return a.chain[len(a.chain)-1] }

// Until is when the authority can sign no more.
func (a *Authority) Until() time.Time { return earliest(a.chain) }

// Due is when it should be certified anew.
func (a *Authority) Due() time.Time { return due(a.chain) }

func earliest(chain []*x509.Certificate) time.Time {
	until := chain[0].NotAfter
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return until
}

// due is when two thirds of a chain's life are over.
func due(chain []*x509.Certificate) time.Time {
	until := earliest(chain)
	return until.Add(-until.Sub(chain[0].NotBefore) / 3)
}

// PrivateKey is the authority's key in PKCS #8, for the recovery file.
func (a *Authority) PrivateKey() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(a.key) }

// Request asks for a certificate of key for names, which are hosts and addresses. For
// an [Authority] there are none.
func Request(key *ecdsa.PrivateKey, names []string) ([]byte, error) {
	t := &x509.CertificateRequest{}
	t.DNSNames, t.IPAddresses = split(names)
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("asking for a certificate: %w", err)
	}
	return der, nil
}

func split(names []string) (hosts []string, addrs []net.IP) {
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			addrs = append(addrs, ip)
		} else {
			hosts = append(hosts, name)
		}
	}
	return hosts, addrs
}

// ParseRequest reads what [Request] wrote, from outside: it is signed by the key that
// it is for.
func ParseRequest(der []byte) (*x509.CertificateRequest, []string, error) {
	if len(der) > MaxRequest {
		return nil, nil, fmt.Errorf("a certificate request of %d bytes: %d are allowed", len(der), MaxRequest)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	if key, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, nil, errors.New("the certificate request is for a key of another kind than ECDSA P-256")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	names := req.DNSNames
	for _, ip := range req.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, addr.Unmap().String())
		}
	}
	return req, names, nil
}

// SignCA certifies another authority, and answers its chain in DER.
func (a *Authority) SignCA(req *x509.CertificateRequest, name string, now time.Time) ([][]byte, error) {
	if len(a.chain) >= maxChain-1 {
		return nil, fmt.Errorf("%d coordinators stand between this one and the root of the farm's CA: ask another one", len(a.chain)-1)
	}
	return a.sign(req, caTemplate(name, now, now.Add(caLife)), now)
}

// SignLeaf certifies a listener for the given names, and answers its chain in DER. The
// names that the request asks for do not count. life 0 is [LeafLife].
func (a *Authority) SignLeaf(req *x509.CertificateRequest, owner string, names []string, life time.Duration, now time.Time) ([][]byte, error) {
	if len(names) == 0 {
		return nil, errors.New("a certificate without a name is of no use")
	}
	if life == 0 {
		life = LeafLife
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"vizpeer"}, CommonName: owner},
		NotBefore: now.Add(-min(skew, life)), NotAfter: now.Add(life),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	t.DNSNames, t.IPAddresses = split(names)
	return a.sign(req, t, now)
}

func (a *Authority) sign(req *x509.CertificateRequest, t *x509.Certificate, now time.Time) ([][]byte, error) {
	until := a.Until()
	if !now.Before(until) {
		return nil, fmt.Errorf("this coordinator's right to issue certificates ended at %s", until.Format(time.DateTime))
	}
	if t.NotAfter.After(until) {
		t.NotAfter = until
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.chain[0], req.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate: %w", err)
	}
	return append([][]byte{der}, raw(a.chain)...), nil
}

func raw(chain []*x509.Certificate) (out [][]byte) {
	for _, c := range chain {
		out = append(out, c.Raw)
	}
	return out
}

// check reads a chain and makes sure that it is key's and leads to one of roots.
func check(key *ecdsa.PrivateKey, ders, roots [][]byte, now time.Time) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates is not possible", len(ders))
	}
	known, between := x509.NewCertPool(), x509.NewCertPool()
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a certificate cannot be read: %w", err)
		}
		chain = append(chain, c)
		between.AddCert(c)
	}
	for _, der := range roots {
		if c, err := x509.ParseCertificate(der); err == nil {
			known.AddCert(c)
		}
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: known, Intermediates: between, CurrentTime: now}); err != nil {
		return nil, fmt.Errorf("the certificate does not lead to the farm's CA: %w", err)
	}
	return chain, nil
}

// NewAuthority makes an authority of a key and what it was certified with.
func NewAuthority(key *ecdsa.PrivateKey, chain, roots [][]byte, now time.Time) (*Authority, error) {
	certs, err := check(key, chain, roots, now)
	if err != nil {
		return nil, err
	}
	if !certs[0].IsCA {
		return nil, errors.New("the certificate is none of a CA")
	}
	return &Authority{key, certs}, nil
}

// Recovered is the root whose key stands in a recovery file, if it is one of roots.
func Recovered(pkcs8 []byte, roots [][]byte, now time.Time) (*Authority, error) {
	key, err := parseKey(pkcs8)
	if err != nil {
		return nil, err
	}
	for _, der := range roots {
		if a, err := NewAuthority(key, [][]byte{der}, [][]byte{der}, now); err == nil {
			return a, nil
		}
	}
	return nil, errors.New("the recovery file holds the key of no CA that the farm goes by")
}

func parseKey(pkcs8 []byte) (*ecdsa.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if key, ok := k.(*ecdsa.PrivateKey); ok && err == nil {
		return key, nil
	}
	return nil, errors.New("the private key cannot be read") // what is wrong with it is nobody's business
}

// The blocks of the files of this package.
const (
	keyBlock  = "PRIVATE KEY"
	certBlock = "CERTIFICATE"
)

// Encode writes key and chain as PEM. It is a secret: the file is its owner's alone.
func (a *Authority) Encode() ([]byte, error) { return encode(a.key, raw(a.chain)) }

func encode(key *ecdsa.PrivateKey, chain [][]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), Bundle(chain)...), nil
}

func decode(text []byte) (key *ecdsa.PrivateKey, chain [][]byte, err error) {
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		switch {
		case block == nil && (key == nil || chain == nil):
			return nil, nil, errors.New("it lacks a private key or a certificate")
		case block == nil:
			return key, chain, nil
		case block.Type == keyBlock:
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, nil, err
			}
		case block.Type == certBlock:
			chain = append(chain, block.Bytes)
		}
	}
}

// DecodeAuthority reads what [Authority.Encode] wrote. It fails where that is no longer
// good, or does not lead to one of roots.
func DecodeAuthority(text []byte, roots [][]byte, now time.Time) (*Authority, error) {
	key, chain, err := decode(text)
	if err != nil {
		return nil, err
	}
	return NewAuthority(key, chain, roots, now)
}

// Bundle writes certificates as PEM: of a CA, what goes into ca.crt.
func Bundle(ders [][]byte) []byte {
	var out bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&out, &pem.Block{Type: certBlock, Bytes: der}) // a buffer takes all
	}
	return out.Bytes()
}

// Fingerprint names a certificate: the SHA-256 of its DER, in hexadecimal, as
// `openssl x509 -fingerprint -sha256` shows it but for the colons.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
