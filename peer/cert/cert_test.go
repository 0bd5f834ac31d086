package cert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var noon = time.Now().Truncate(time.Second)

// certified makes a leaf for names.
func certified(t *testing.T, a *Authority, life time.Duration, now time.Time, names ...string) *Leaf {
	t.Helper()
	key, err := NewKey()
	require.NoError(t, err)
	der, err := Request(key, names)
	require.NoError(t, err)
	req, asked, err := ParseRequest(der)
	require.NoError(t, err)
	require.ElementsMatch(t, names, asked)
	chain, err := a.SignLeaf(req, "peer", asked, life, now)
	require.NoError(t, err)
	l, err := NewLeaf(key, chain, [][]byte{a.Root().Raw}, now)
	require.NoError(t, err)
	require.ElementsMatch(t, names, l.Names())
	return l
}

// below makes an authority that a certifies.
func below(t *testing.T, a *Authority, now time.Time) (*Authority, error) {
	t.Helper()
	key, err := NewKey()
	require.NoError(t, err)
	der, err := Request(key, nil)
	require.NoError(t, err)
	req, _, err := ParseRequest(der)
	require.NoError(t, err)
	chain, err := a.SignCA(req, "coordinator", now)
	if err != nil {
		return nil, err
	}
	sub, err := NewAuthority(key, chain, [][]byte{a.Root().Raw}, now)
	require.NoError(t, err)
	return sub, nil
}

func newRoot(t *testing.T) *Authority {
	t.Helper()
	a, err := NewRoot("vizpeer test", noon)
	require.NoError(t, err)
	return a
}

func TestChainsLeadToTheRoot(t *testing.T) {
	root := newRoot(t)
	leaf := certified(t, root, 0, noon, "localhost", "127.0.0.1", "::1")
	require.Equal(t, noon.Add(LeafLife).UTC(), leaf.Until())
	require.WithinDuration(t, noon.Add(LeafLife*2/3), leaf.Due(), time.Hour)

	a := root
	for range maxChain - 2 { // one coordinator certifies the next
		var err error
		a, err = below(t, a, noon)
		require.NoError(t, err)
		require.Equal(t, root.Root().Raw, a.Root().Raw)
		certified(t, a, 0, noon, "localhost")
	}
	_, err := below(t, a, noon)
	require.ErrorContains(t, err, "ask another one")

	// A leaf certifies nothing, and outlives nobody above it.
	_, err = NewAuthority(leaf.key, raw(leaf.chain), [][]byte{root.Root().Raw}, noon)
	require.ErrorContains(t, err, "none of a CA")
	late := root.Until().Add(-time.Hour)
	require.Equal(t, root.Until(), certified(t, root, 0, late, "localhost").Until())
	key, err := NewKey()
	require.NoError(t, err)
	der, err := Request(key, nil)
	require.NoError(t, err)
	req, _, err := ParseRequest(der)
	require.NoError(t, err)
	_, err = root.SignLeaf(req, "peer", []string{"localhost"}, 0, root.Until())
	require.ErrorContains(t, err, "ended at")
	_, err = root.SignLeaf(req, "peer", nil, 0, noon)
	require.ErrorContains(t, err, "without a name")
}

func TestWhatIsNotGoodIsRefused(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	leaf := certified(t, root, time.Hour, noon, "localhost")
	text, err := leaf.Encode()
	require.NoError(t, err)
	roots := [][]byte{root.Root().Raw}
	_, err = DecodeLeaf(text, roots, noon)
	require.NoError(t, err)
	_, err = DecodeLeaf(text, [][]byte{other.Root().Raw}, noon)
	require.ErrorContains(t, err, "does not lead to the farm's CA")
	_, err = DecodeLeaf(text, roots, noon.Add(2*time.Hour))
	require.ErrorContains(t, err, "expired")
	_, err = DecodeLeaf(text[:len(text)/8], roots, noon)
	require.Error(t, err)
	key, err := NewKey()
	require.NoError(t, err)
	_, err = NewLeaf(key, raw(leaf.chain), roots, noon)
	require.ErrorContains(t, err, "for another key")
	_, err = NewLeaf(key, nil, roots, noon)
	require.ErrorContains(t, err, "not possible")

	saved, err := root.Encode()
	require.NoError(t, err)
	same, err := DecodeAuthority(saved, roots, noon)
	require.NoError(t, err)
	certified(t, same, 0, noon, "localhost")
	pkcs8, err := root.PrivateKey()
	require.NoError(t, err)
	same, err = Recovered(pkcs8, [][]byte{other.Root().Raw, root.Root().Raw}, noon)
	require.NoError(t, err)
	require.Equal(t, root.Root().Raw, same.Root().Raw)
	_, err = Recovered(pkcs8, [][]byte{other.Root().Raw}, noon)
	require.Error(t, err)
	_, err = Recovered([]byte("no key"), roots, noon)
	require.Error(t, err)
}

// handshake calls a listener by a name, and tells what the caller said of it.
func handshake(t *testing.T, server, client *tls.Config, name string) error {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() { _ = tls.Server(there, server).HandshakeContext(context.Background()) }()
	client = client.Clone()
	client.ServerName = name
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return tls.Client(here, client).HandshakeContext(ctx)
}

func TestPinning(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	sub, err := below(t, root, noon)
	require.NoError(t, err)
	var l Listener
	require.ErrorIs(t, l.Check(noon), ErrNone)
	trusting, err := Trusting(Bundle([][]byte{root.Root().Raw}))
	require.NoError(t, err)
	require.Error(t, handshake(t, l.Config(), trusting, "localhost"), "it has no certificate yet")

	l.Use(certified(t, sub, 0, noon, "localhost", "127.0.0.1"))
	require.NoError(t, l.Check(noon))
	sum, err := ParseFingerprint(" " + Fingerprint(root.Root().Raw) + "\n")
	require.NoError(t, err)
	for _, name := range []string{"localhost", "127.0.0.1"} {
		require.NoError(t, handshake(t, l.Config(), trusting, name))
		require.NoError(t, handshake(t, l.Config(), Pinning(sum, name), name))
	}
	for _, name := range []string{"attic", "10.0.0.1"} {
		require.ErrorAs(t, handshake(t, l.Config(), trusting, name), new(x509.HostnameError))
		require.ErrorAs(t, handshake(t, l.Config(), Pinning(sum, name), name), new(x509.HostnameError))
	}
	wrong, err := ParseFingerprint(Fingerprint(other.Root().Raw))
	require.NoError(t, err)
	require.ErrorIs(t, handshake(t, l.Config(), Pinning(wrong, "localhost"), "localhost"), ErrPin)
	distrusting, err := Trusting(Bundle([][]byte{other.Root().Raw}))
	require.NoError(t, err)
	require.ErrorAs(t, handshake(t, l.Config(), distrusting, "localhost"), new(x509.UnknownAuthorityError))

	// Who shows the right root beside a certificate of its own is not believed.
	var liar Listener
	forged := certified(t, other, 0, noon, "localhost")
	forged.chain = append(forged.chain, root.Root())
	liar.Use(forged)
	require.ErrorAs(t, handshake(t, liar.Config(), Pinning(sum, "localhost"), "localhost"), new(x509.UnknownAuthorityError))

	// The next certificate is shown without a new listener; one that has ended is not.
	config := l.Config()
	next := certified(t, sub, 0, noon, "attic")
	l.Use(next)
	require.NoError(t, handshake(t, config, trusting, "attic"))
	l.Use(certified(t, sub, time.Second, noon.Add(-time.Minute+2*time.Second), "attic"))
	require.ErrorIs(t, l.Check(time.Now()), ErrNone)
	require.Error(t, handshake(t, config, trusting, "attic"))

	// Nothing older than TLS 1.2.
	l.Use(next)
	old := trusting.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	require.Error(t, handshake(t, config, old, "attic"))
	require.NotContains(t, config.NextProtos, "h2")
}

func TestFingerprints(t *testing.T) {
	for _, bad := range []string{"", "abc", "zz", Fingerprint(nil) + "00", Fingerprint(nil)[2:]} {
		_, err := ParseFingerprint(bad)
		require.ErrorContains(t, err, "64 hexadecimal digits", bad)
	}
	_, err := Trusting([]byte("nothing"))
	require.Error(t, err)

	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here")
	}
	file := filepath.Join(t.TempDir(), "ca.crt")
	root := newRoot(t)
	require.NoError(t, os.WriteFile(file, Bundle([][]byte{root.Root().Raw}), 0o600))
	out, err := exec.Command(openssl, "x509", "-in", file, "-noout", "-fingerprint", "-sha256").Output()
	require.NoError(t, err)
	_, text, _ := strings.Cut(string(out), "=")
	sum, err := ParseFingerprint(text)
	require.NoError(t, err)
	want, err := ParseFingerprint(Fingerprint(root.Root().Raw))
	require.NoError(t, err)
	require.Equal(t, want, sum)
}

func FuzzRequest(f *testing.F) {
	key, err := NewKey()
	require.NoError(f, err)
	der, err := Request(key, []string{"localhost", "127.0.0.1"})
	require.NoError(f, err)
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		req, _, err := ParseRequest(der)
		if err == nil {
			require.NoError(t, req.CheckSignature())
		}
	})
}
