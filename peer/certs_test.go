package peer

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/cert"
)

// certPeer is a machine of which only the certificates work.
type certPeer struct {
	*certs
	member authz.Member
	stop   func()
}

// certFarm starts machines: the first founds the farm and its CA, those named coord-…
// hold the queue, and the one named stranger is no member.
func certFarm(t *testing.T, life time.Duration, names ...string) map[string]*certPeer {
	key, err := authz.NewFarmKey(rand.Reader)
	require.NoError(t, err)
	root, err := cert.NewRoot("vizpeer test", time.Now())
	require.NoError(t, err)
	farm, all := make(map[string]*certPeer), []*certPeer{}
	var members []authz.Member
	for i, name := range names {
		identity, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		id, err := peer.IDFromPrivateKey(identity)
		require.NoError(t, err)
		g := newGate(authz.PeerID(id.String()), key.ID(), nil)
		h, err := newHost(identity, g, []string{"/ip4/127.0.0.1/tcp/0"})
		require.NoError(t, err)
		t.Cleanup(func() { h.Close() })
		d := dataDir(t.TempDir())
		c := newCerts(d, h, g, slog.New(slog.DiscardHandler))
		c.life, c.link = life, newLink(h, g, nil, c.slog, nil)
		c.wanted = func() (asked, own []string) { return certNames(name, nil, nil) }
		p := &certPeer{certs: c, member: aMember(id, authz.Node)}
		p.member.Name, p.member.JoinedAt = name, time.Unix(int64(i), 0).UTC()
		if i == 0 {
			require.NoError(t, c.save(root))
		}
		if i == 0 || name[:2] == "co" {
			p.member.Coordinator = true
		}
		if name != "stranger" {
			members = append(members, p.member)
		}
		farm[name] = p
		all = append(all, p)
	}
	view := certView(t, key, 1, root, members)
	for _, p := range all {
		p.gate.update(view)
		for _, o := range all {
			p.host.Peerstore().AddAddrs(o.host.ID(), o.host.Addrs(), peerstore.PermanentAddrTTL)
		}
	}
	return farm
}

func certView(t *testing.T, key authz.FarmKey, version int, root *cert.Authority, members []authz.Member) *authz.View {
	doc := map[string]any{}
	text, err := json.Marshal(aRoster(t, key, version, sortedMembers(members)...))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &doc))
	doc["ca"] = [][]byte{root.Root().Raw}
	text, err = json.Marshal(doc)
	require.NoError(t, err)
	v, err := authz.ParseView(text, key.ID())
	require.NoError(t, err)
	return v
}

func (p *certPeer) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	p.stop = func() {
		cancel()
		require.NoError(t, <-ended)
	}
	t.Cleanup(func() { cancel() })
}

func (p *certPeer) wait(t *testing.T) *cert.Leaf {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, p.Wait(ctx))
	return p.listener.Leaf()
}

// shown is the chain that a machine's listener shows to who calls it localhost and pins
// the CA.
func (p *certPeer) shown(t *testing.T) (names []string, chain int, err error) {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() { _ = tls.Server(there, p.listener.Config()).Handshake() }()
	sum, err := cert.ParseFingerprint(fingerprints(p.roots())[0])
	require.NoError(t, err)
	cfg := cert.Pinning(sum, "localhost")
	cfg.ServerName = "localhost"
	c := tls.Client(here, cfg)
	if err := c.Handshake(); err != nil {
		return nil, 0, err
	}
	peers := c.ConnectionState().PeerCertificates
	return peers[0].DNSNames, len(peers), nil
}

func TestCertificatesOutliveTheFounder(t *testing.T) {
	farm := certFarm(t, 0, "founder", "coord-2", "coord-3", "box")
	founder, second, third, box := farm["founder"], farm["coord-2"], farm["coord-3"], farm["box"]
	founder.start(t)
	founder.wait(t)
	second.start(t)
	second.wait(t)
	require.Eventually(t, func() bool { return second.signer() != nil }, 20*time.Second, 10*time.Millisecond)
	info, err := os.Stat(second.dir.path(caKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	founder.stop()
	require.NoError(t, founder.host.Close())
	box.start(t)
	box.wait(t)
	names, chain, err := box.shown(t)
	require.NoError(t, err, "who pinned the founder's CA goes on")
	require.Equal(t, []string{"localhost", "box"}, names)
	require.Equal(t, 3, chain)

	// A coordinator that comes later is certified by one that was.
	third.start(t)
	require.Eventually(t, func() bool { return third.signer() != nil }, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, founder.roots()[0], third.signer().Root().Raw)
	second.stop()
	require.NoError(t, second.host.Close())
	box.stop()
	require.NoError(t, os.Remove(box.dir.path(leafFile)))
	again := newCerts(box.dir, box.host, box.gate, box.slog)
	again.link, again.wanted = box.link, box.wanted
	box.certs = again
	box.start(t)
	box.wait(t)
	_, chain, err = box.shown(t)
	require.NoError(t, err)
	require.Equal(t, 4, chain)
	box.stop()

	// A restart needs nobody.
	third.stop()
	require.NoError(t, third.host.Close())
	last := newCerts(box.dir, box.host, box.gate, box.slog)
	last.link, last.wanted = box.link, box.wanted
	before, err := os.ReadFile(box.dir.path(leafFile))
	require.NoError(t, err)
	box.certs = last
	box.start(t)
	box.wait(t)
	after, err := os.ReadFile(box.dir.path(leafFile))
	require.NoError(t, err)
	require.Equal(t, before, after)
	box.stop()
}

func TestCertificatesAreRenewed(t *testing.T) {
	farm := certFarm(t, 3*time.Second, "founder", "box")
	founder, box := farm["founder"], farm["box"]
	founder.start(t)
	box.start(t)
	first := box.wait(t)
	require.Eventually(t, func() bool { return box.listener.Leaf() != first }, 20*time.Second, 10*time.Millisecond)
	require.True(t, time.Now().Before(first.Until()), "in time")
	_, _, err := box.shown(t)
	require.NoError(t, err)

	// Where nobody renews it, it ends, and nothing is shown.
	founder.stop()
	require.NoError(t, founder.host.Close())
	require.Eventually(t, func() bool { return box.listener.Check(time.Now()) != nil }, 20*time.Second, 10*time.Millisecond)
	_, _, err = box.shown(t)
	require.Error(t, err)
	box.stop()
}

// ask has who ask to, which is another machine, for a certificate.
func certAsk(t *testing.T, who, to *certPeer, ca bool, names ...string) (certAnswer, error) {
	t.Helper()
	key, err := cert.NewKey()
	require.NoError(t, err)
	der, err := cert.Request(key, names)
	require.NoError(t, err)
	return who.exchange(t.Context(), to.host.ID(), certRequest{CA: ca, Request: der})
}

func TestWhoIsCertified(t *testing.T) {
	farm := certFarm(t, 0, "founder", "coord-2", "box", "stranger")
	founder, box, stranger := farm["founder"], farm["box"], farm["stranger"]
	founder.start(t)
	founder.wait(t)
	require.Eventually(t, func() bool { return founder.signer() != nil }, 20*time.Second, 10*time.Millisecond)

	a, err := certAsk(t, box, founder, false, "localhost", "box", "founder", "www.example.org", "10.9.9.9")
	require.NoError(t, err)
	require.Len(t, a.Chain, 2)
	require.Len(t, a.Refused, 3)
	require.Contains(t, a.Refused[1], "vizpeer peer label "+box.member.ID.Short()+" name:www.example.org")
	_, err = certAsk(t, box, founder, false, "www.example.org")
	require.ErrorContains(t, err, "none of the names")
	_, err = certAsk(t, box, founder, false)
	require.ErrorContains(t, err, "none of the names")
	_, err = certAsk(t, box, founder, true)
	require.ErrorContains(t, err, "only a coordinator")
	_, err = certAsk(t, farm["coord-2"], founder, true)
	require.NoError(t, err)
	_, err = box.exchange(t.Context(), founder.host.ID(), certRequest{Request: []byte("rubbish")})
	require.ErrorContains(t, err, "cannot be read")
	_, err = box.exchange(t.Context(), founder.host.ID(), certRequest{Request: make([]byte, maxCertAsk)})
	require.ErrorContains(t, err, "did not answer")
	for range certBurst {
		_, err = certAsk(t, box, founder, false, "localhost")
	}
	require.ErrorContains(t, err, "too many certificates")
	_, err = certAsk(t, farm["coord-2"], founder, false, "localhost")
	require.NoError(t, err, "that is one member's fault")
	_, err = certAsk(t, stranger, founder, false, "localhost")
	require.Error(t, err)
	_, err = certAsk(t, founder, box, false, "localhost")
	require.Error(t, err, "a node issues none")
	founder.stop()
}

// A name that an admin allows later comes into the certificate by itself.
func TestAllowedNameIsTakenUp(t *testing.T) {
	farm := certFarm(t, 0, "founder", "box")
	founder, box := farm["founder"], farm["box"]
	box.wanted = func() (asked, own []string) { return certNames("box", []string{"box.example.org"}, nil) }
	founder.start(t)
	founder.wait(t)
	box.start(t)
	require.NotContains(t, box.wait(t).Names(), "box.example.org")

	text, err := json.Marshal(box.gate.view())
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(text, &doc))
	doc["version"] = 2
	for _, m := range doc["members"].([]any) {
		if m := m.(map[string]any); m["name"] == "box" {
			m["labels"] = []string{"name:box.example.org"}
		}
	}
	text, err = json.Marshal(doc)
	require.NoError(t, err)
	view, err := authz.ParseView(text, box.gate.farm)
	require.NoError(t, err)
	for _, p := range farm {
		_, newer := p.gate.update(view)
		require.True(t, newer)
		p.Look()
	}
	require.Eventually(t, func() bool { return slices.Contains(box.listener.Leaf().Names(), "box.example.org") }, 20*time.Second, 10*time.Millisecond)
	box.stop()
	founder.stop()
}

// One member that asks without end does not keep others from their certificates.
func TestAskingForCertificatesWithoutEnd(t *testing.T) {
	farm := certFarm(t, 0, "founder", "greedy", "box")
	founder := farm["founder"]
	founder.start(t)
	founder.wait(t)
	require.Eventually(t, func() bool { return founder.signer() != nil }, 20*time.Second, 10*time.Millisecond)
	refused := 0
	for range 150 {
		if _, err := farm["greedy"].exchange(t.Context(), founder.host.ID(), certRequest{Request: []byte("rubbish")}); err != nil && strings.Contains(err.Error(), "too many") {
			refused++
		}
	}
	require.Positive(t, refused)
	_, err := certAsk(t, farm["box"], founder, false, "localhost")
	require.NoError(t, err)
	founder.stop()
}

func TestCertNamesOfAMachine(t *testing.T) {
	asked, own := certNames("Attic", []string{"render.example.org"}, []netip.Addr{netip.MustParseAddr("10.0.0.7")})
	require.Equal(t, []string{"render.example.org", "10.0.0.7"}, asked)
	require.Equal(t, []string{"localhost", "127.0.0.1", "::1", "attic"}, own)
	_, own = certNames("two words", nil, []netip.Addr{netip.IPv4Unspecified()})
	for _, a := range ownAddrs() {
		require.Contains(t, own, a.String())
	}
	require.LessOrEqual(t, len(own), authz.MaxCertNames)
}

func TestWhereProgramsFindTheAPI(t *testing.T) {
	at := func(addrs ...string) []net.Listener {
		var out []net.Listener
		for _, a := range addrs {
			out = append(out, listenerAt(a))
		}
		return out
	}
	for want, addrs := range map[string][]string{
		"http://127.0.0.1:1":     {"10.0.0.1:3", "0.0.0.0:2", "127.0.0.1:1"},
		"http://127.0.0.1:2":     {"10.0.0.1:3", "0.0.0.0:2"},
		"http://127.0.0.1:4":     {"[::]:4"},
		"https://10.0.0.1:3":     {"10.0.0.1:3", "10.0.0.2:4"},
		"https://[2001:db8::]:3": {"[2001:db8::]:3"},
	} {
		require.Equal(t, want, localURL(at(addrs...)))
	}
}

type listenerAt string

func (l listenerAt) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (l listenerAt) Close() error              { return nil }
func (l listenerAt) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(string(l)))
}

func TestClockSkew(t *testing.T) {
	here := time.Now()
	c := clockAt(here, here.Add(-5*time.Minute).Round(0))
	require.Equal(t, 5*time.Minute, c.skew(here))
	require.Equal(t, 5*time.Minute, c.skew(here.Add(time.Hour)), "both went on")
	require.Zero(t, clockAt(here, time.Time{}).skew(here), "an earlier version says nothing")
	require.Zero(t, clock{}.skew(here))
}

func sortedMembers(members []authz.Member) []authz.Member {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b authz.Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return members
}

// once runs a peer until it has its part of the CA, and answers the root.
func once(t *testing.T, cfg Config) []byte {
	t.Helper()
	p, err := New(cfg, Machine{Can: benchMachine(0)})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	require.Eventually(t, func() bool { return p.certs.signer() != nil }, 30*time.Second, 10*time.Millisecond)
	root := p.certs.signer().Root().Raw
	require.Equal(t, [][]byte{root}, p.gate.view().CA())
	d := dataDir(cfg.DataDir)
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(d.path(caFileName))
		return err == nil && string(text) == string(cert.Bundle([][]byte{root}))
	}, 10*time.Second, 10*time.Millisecond)
	stop()
	require.NoError(t, <-ended)
	return root
}

func TestLostKeyOfTheCA(t *testing.T) {
	cfg := benchConfig(t.TempDir())
	f, err := Init(cfg, Founding{FarmName: "attic", MachineName: "desk"})
	require.NoError(t, err)
	root := once(t, cfg)
	require.Equal(t, f.CAFingerprint, cert.Fingerprint(root))
	key := dataDir(cfg.DataDir).path(caKeyFile)
	require.NoError(t, os.Remove(key))
	require.Equal(t, root, once(t, cfg), "the recovery file has it")
	require.FileExists(t, key)
}

func TestFarmOfAnEarlierVersionGetsACA(t *testing.T) {
	cfg := benchConfig(t.TempDir())
	_, err := Init(cfg, Founding{FarmName: "attic", MachineName: "desk"})
	require.NoError(t, err)
	d := dataDir(cfg.DataDir)
	var genesis map[string]any
	require.NoError(t, d.readJSON("genesis.json", &genesis))
	delete(genesis["found"].(map[string]any), "ca")
	require.NoError(t, d.writeJSON("genesis.json", genesis, 0o600))
	for _, name := range []string{caKeyFile, caFileName, "farm.recovery"} {
		require.NoError(t, os.Remove(d.path(name)))
	}
	root := once(t, cfg)
	require.Equal(t, root, once(t, cfg), "and keeps it")
}
