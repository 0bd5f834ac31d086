package peer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/peer/cert"
)

// The certificate protocol: a member asks a coordinator to certify a key, of its HTTPS
// listener or, if it is a coordinator itself, of its own part of the CA. One question,
// one answer, both JSON. Every coordinator that has a key of the CA answers, whoever
// leads.
const (
	certProtocol = "/vizpeer/cert/1"
	certTimeout  = 15 * time.Second
	maxCertAsk   = 32 << 10 // bytes of the question
	maxCertSay   = 64 << 10 // and of the answer
)

type certRequest struct {
	CA      bool   `json:"ca,omitempty"`
	Request []byte `json:"request"` // see [cert.Request]
}

type certAnswer struct {
	Chain   [][]byte `json:"chain,omitempty"`
	Refused []string `json:"refused,omitempty"` // names that are not in it, and why
	Reason  string   `json:"reason,omitempty"`  // why there is none
}

// The files of this part of the data folder.
const (
	caFileName = "ca.crt"
	caKeyFile  = "ca.key"
	leafFile   = "https.key"
)

// writeCA writes ca.crt as the roster has it, where it differs.
func (d dataDir) writeCA(v *authz.View) error {
	if v == nil || len(v.CA()) == 0 {
		return nil
	}
	text := cert.Bundle(v.CA())
	if old, err := os.ReadFile(d.path(caFileName)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return d.write(caFileName, text, 0o644)
}

// fingerprints are what people pin.
func fingerprints(ca [][]byte) (out []string) {
	for _, der := range ca {
		out = append(out, cert.Fingerprint(der))
	}
	return out
}

// certs keeps this machine's certificate good while it runs, and on a coordinator its
// part of the farm's CA, with which it answers others.
type certs struct {
	dir   dataDir
	host  host.Host
	self  authz.PeerID
	gate  *gate
	coord *coord.Coordinator // nil where this machine has no log
	link  *link
	slog  *slog.Logger
	// wanted lists the names that the certificate should be for, those that somebody
	// asked for in so many words first; nil where nothing listens beyond loopback.
	wanted func() (asked, own []string)
	life   time.Duration // of what it issues; 0: [cert.LeafLife]

	listener cert.Listener
	changed  chan struct{} // the roster or the leader: what was refused may go now
	asks     pace          // what others ask, so that none takes the place of all

	mu        sync.Mutex
	authority *cert.Authority // nil where there is none yet
	asked     []string        // for what the certificate in use was asked
	refused   []string        // of these
	had       chan struct{}   // closed once there is a certificate
}

// newCerts leaves coord and link to be set before Run.
func newCerts(dir dataDir, h host.Host, g *gate, log *slog.Logger) *certs {
	return &certs{
		dir: dir, host: h, self: authz.PeerID(h.ID().String()), gate: g, slog: log,
		changed: make(chan struct{}, 1), had: make(chan struct{}), asks: pace{rate: rate.Every(time.Minute), burst: certBurst},
	}
}

// Look has the next step looked for: the roster is another one, or somebody leads.
func (c *certs) Look() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Wait waits for the first certificate.
func (c *certs) Wait(ctx context.Context) error {
	select {
	case <-c.had:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w, and none of its coordinators issues one: is `vizpeer up` running there? Until then listen on 127.0.0.1 only (--api-listen)", cert.ErrNone)
	}
}

// roots are the certificates of the CA, by the roster that this machine goes by.
func (c *certs) roots() [][]byte {
	if v := c.gate.view(); v != nil {
		return v.CA()
	}
	return nil
}

// certPatience is how long a peer that starts waits for its first certificate before
// it gives up.
const certPatience = 15 * time.Second

// localURL is where this machine's own programs find the API: on loopback, if that is
// served, in plain HTTP.
func localURL(apis []net.Listener) string {
	url := ""
	for _, l := range apis {
		addr, ok := l.Addr().(*net.TCPAddr)
		switch {
		case !ok:
		case addr.IP.IsLoopback():
			return "http://" + addr.String()
		case addr.IP.IsUnspecified(): // of IPv6, it takes IPv4 too
			url = fmt.Sprintf("http://127.0.0.1:%d", addr.Port)
		case url == "":
			url = "https://" + addr.String()
		}
	}
	return url
}

// httpsURL is how others call a listener: one on every interface by the first address
// of this machine that others may reach.
func httpsURL(at netip.AddrPort) string {
	addr := at.Addr().Unmap()
	if addr.IsUnspecified() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		for _, own := range ownAddrs() {
			if !own.IsLoopback() {
				addr = own
				break
			}
		}
	}
	return "https://" + netip.AddrPortFrom(addr, at.Port()).String()
}

// Run keeps the certificates good until ctx ends.
func (c *certs) Run(ctx context.Context) error {
	c.host.SetStreamHandler(certProtocol, func(s network.Stream) { c.answer(s) })
	defer c.host.RemoveStreamHandler(certProtocol)
	moved, err := c.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated), eventbus.Name("certificates"))
	if err != nil {
		return fmt.Errorf("watch this machine's addresses: %w", err)
	}
	defer moved.Close()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 500*time.Millisecond, 5*time.Minute
	told := false
	for {
		next, err := c.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			level := slog.LevelDebug
			if !told && c.roots() != nil {
				level, told = slog.LevelWarn, true
			}
			c.slog.Log(ctx, level, "no certificate for HTTPS yet, trying again", "err", err)
			next = pause.NextBackOff()
		} else {
			pause.Reset()
			told = false
		}
		wait := time.NewTimer(next)
		select {
		case <-wait.C:
		case <-c.changed:
		case <-moved.Out():
		case <-ctx.Done():
		}
		wait.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// never is for what is due at no time.
const never = 24 * time.Hour

// step does what is due and answers when the next is.
func (c *certs) step(ctx context.Context) (next time.Duration, err error) {
	next = never
	if c.gate.coordinator(c.self) {
		if next, err = c.certifySelf(ctx); err != nil && c.wanted == nil {
			return 0, err // else another coordinator may issue what is needed
		}
	}
	if c.wanted == nil {
		return next, err
	}
	due, leafErr := c.renew(ctx)
	return min(next, due), errors.Join(err, leafErr)
}

// certifySelf makes sure that a coordinator has its part of the CA.
func (c *certs) certifySelf(ctx context.Context) (time.Duration, error) {
	a, now := c.signer(), time.Now()
	roots := c.roots()
	if a == nil && len(roots) > 0 {
		if a = c.load(roots); a != nil {
			c.use(a)
		}
	}
	switch {
	case a != nil && now.Before(a.Due()):
		return a.Due().Sub(now), nil
	case len(roots) == 0:
		return never, c.found(ctx)
	}
	key, err := cert.NewKey()
	if err != nil {
		return 0, err
	}
	chain, err := c.ask(ctx, true, key, nil)
	if err == nil {
		var certified *cert.Authority
		if certified, err = cert.NewAuthority(key, chain.Chain, roots, now); err == nil {
			if a != nil && !certified.Until().After(a.Until()) {
				return max(time.Minute, a.Until().Sub(now)/2), nil // nobody can say more
			}
			a = certified
			if err = c.save(a); err == nil {
				c.use(a)
				c.slog.Info("this coordinator can issue certificates now", "until", a.Until())
				return a.Due().Sub(now), nil
			}
		}
	}
	if a != nil && now.Before(a.Until()) {
		return max(time.Minute, a.Until().Sub(now)/2), nil
	}
	return 0, fmt.Errorf("no coordinator certifies this one's part of the farm's CA: %w", err)
}

// load finds the authority of an earlier run or, where its file is lost, the root in
// the recovery file.
func (c *certs) load(roots [][]byte) *cert.Authority {
	text, err := os.ReadFile(c.dir.path(caKeyFile))
	if err == nil {
		var a *cert.Authority
		if a, err = cert.DecodeAuthority(text, roots, time.Now()); err == nil {
			return a
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.slog.Warn("this coordinator's part of the farm's CA is of no use and is made anew", "file", c.dir.path(caKeyFile), "err", err)
	}
	if text, err = os.ReadFile(c.dir.path(RecoveryFile)); err == nil {
		if key := authz.RecoveredCA(text); key != nil {
			if a, err := cert.Recovered(key, roots, time.Now()); err == nil && c.save(a) == nil {
				return a
			}
		}
	}
	return nil
}

func (c *certs) save(a *cert.Authority) error {
	text, err := a.Encode()
	if err != nil {
		return err
	}
	return c.dir.write(caKeyFile, text, 0o600)
}

// found makes the CA of a farm that has none, one of an earlier version: whoever leads
// does.
func (c *certs) found(ctx context.Context) error {
	if c.coord == nil || !c.coord.Leading() {
		return errors.New("the farm has no CA yet: its leader makes one")
	}
	a, err := cert.NewRoot("vizpeer "+string(c.gate.farm), time.Now())
	if err != nil {
		return err
	}
	if err := c.save(a); err != nil {
		return err
	}
	// The roster that comes of it wakes this loop, which then finds the file.
	return c.coord.Admit(ctx, authz.Command{At: time.Now(), Trust: &authz.Trust{CA: a.Root().Raw}})
}

func (c *certs) signer() *cert.Authority {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.authority
}

func (c *certs) use(a *cert.Authority) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.authority = a
}

// renew makes sure that the listener's certificate is good for a while, and for the
// names that this machine goes by now. It answers when to look again.
func (c *certs) renew(ctx context.Context) (time.Duration, error) {
	now, roots := time.Now(), c.roots()
	if len(roots) == 0 {
		return 0, errors.New("the farm's CA is not known yet")
	}
	asked, own := c.wanted()
	names := slices.Clip(asked)
	for _, n := range own {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	leaf := c.listener.Leaf()
	if leaf == nil {
		if text, err := os.ReadFile(c.dir.path(leafFile)); err == nil {
			if old, err := cert.DecodeLeaf(text, roots, now); err == nil {
				leaf = old
				c.take(leaf, nil, nil) // whether it has all names shows below
			}
		}
	}
	if leaf != nil && now.Before(leaf.Due()) && c.fits(leaf, names) {
		return leaf.Due().Sub(now), nil
	}
	key, err := cert.NewKey()
	if err != nil {
		return 0, err
	}
	a, err := c.ask(ctx, false, key, names)
	if err != nil {
		if leaf != nil && now.Before(leaf.Until()) {
			err = fmt.Errorf("the one in use is good until %s: %w", leaf.Until().Format(time.DateTime), err)
		}
		return 0, err
	}
	fresh, err := cert.NewLeaf(key, a.Chain, roots, now)
	if err != nil {
		return 0, err
	}
	text, err := fresh.Encode()
	if err != nil {
		return 0, err
	}
	if err := c.dir.write(leafFile, text, 0o600); err != nil {
		c.slog.Warn("the certificate could not be remembered", "err", err)
	}
	missing := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(fresh.Names(), n) })
	c.take(fresh, names, missing)
	level := slog.LevelDebug
	if slices.ContainsFunc(missing, func(n string) bool { return slices.Contains(asked, n) }) {
		level = slog.LevelWarn
	}
	for _, why := range a.Refused {
		c.slog.Log(ctx, level, "the certificate for HTTPS lacks a name", "reason", why)
	}
	c.slog.Info("certificate for HTTPS", "names", strings.Join(fresh.Names(), " "), "until", fresh.Until())
	return fresh.Due().Sub(now), nil
}

func (c *certs) take(l *cert.Leaf, asked, refused []string) {
	first := c.listener.Leaf() == nil
	c.listener.Use(l)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked, c.refused = asked, refused
	if first {
		close(c.had)
	}
}

// fits tells whether asking for names again would give nothing but what l is for.
func (c *certs) fits(l *cert.Leaf, names []string) bool {
	has := l.Names()
	c.mu.Lock()
	refused := c.refused
	c.mu.Unlock()
	if slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(has, n) && !slices.Contains(refused, n) }) {
		return false
	}
	// An admin may have allowed since what was refused.
	granted, _ := c.gate.view().CertNames(c.self, refused, nil)
	return len(granted) == 0
}

// ask has a key certified: by this machine's own part of the CA, if it has one, or by
// the first coordinator that does it.
func (c *certs) ask(ctx context.Context, ca bool, key *ecdsa.PrivateKey, names []string) (certAnswer, error) {
	der, err := cert.Request(key, names)
	if err != nil {
		return certAnswer{}, err
	}
	r := certRequest{CA: ca, Request: der}
	if a := c.signer(); a != nil && !ca {
		return c.issue(a, c.self, r, ownAddrs())
	}
	var whom []peer.ID
	add := func(id authz.PeerID) {
		if p, err := peer.Decode(string(id)); err == nil && p != c.host.ID() && !slices.Contains(whom, p) {
			whom = append(whom, p)
		}
	}
	v := c.gate.view()
	if ca {
		add(v.Charter().Coordinator) // the root makes the shortest chain
	}
	if leader := c.link.Current(); leader != "" {
		add(authz.PeerID(leader.String()))
	}
	for _, id := range v.Coordinators() {
		add(id)
	}
	var errs []error
	for _, p := range whom {
		if !c.gate.coordinator(authz.PeerID(p.String())) {
			continue
		}
		a, err := c.exchange(ctx, p, r)
		if err == nil {
			return a, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.gate.name(p), err))
	}
	if len(errs) == 0 {
		return certAnswer{}, errors.New("there is no other coordinator to ask")
	}
	return certAnswer{}, errors.Join(errs...)
}

func (c *certs) exchange(ctx context.Context, p peer.ID, r certRequest) (a certAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, certTimeout)
	defer cancel()
	s, err := c.host.NewStream(ctx, p, certProtocol)
	if err != nil {
		return a, fmt.Errorf("it cannot be reached, or issues no certificates: %w", err)
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(certTimeout))
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	if err := json.NewEncoder(s).Encode(r); err != nil {
		return a, err
	}
	if err := json.NewDecoder(io.LimitReader(s, maxCertSay)).Decode(&a); err != nil {
		return a, fmt.Errorf("it did not answer: %w", err)
	}
	if a.Reason != "" {
		return a, errors.New(a.Reason)
	}
	return a, nil
}

// answer is the coordinator's side. Who asks was proven by the connection.
func (c *certs) answer(s network.Stream) {
	who := s.Conn().RemotePeer()
	if !c.gate.member(who) || !c.gate.coordinator(c.self) {
		_ = s.Reset()
		return
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(certTimeout))
	var r certRequest
	if err := json.NewDecoder(io.LimitReader(s, maxCertAsk)).Decode(&r); err != nil {
		_ = s.Reset()
		return
	}
	var a certAnswer
	err := errors.New("too many certificates were asked for: try again in a few minutes")
	if c.asks.may(who, 1) {
		err = errors.New("it has no key of the farm's CA yet")
		if signer := c.signer(); signer != nil {
			a, err = c.issue(signer, authz.PeerID(who.String()), r, seenAt(c.host, who))
		}
	}
	if err != nil {
		a = certAnswer{Reason: err.Error()}
	}
	_ = json.NewEncoder(s).Encode(a)
}

// One member may ask for so many certificates in a burst, and one more every minute: an
// honest one asks for a few in a week.
const certBurst = 10

// issue certifies what a member may have certified. It is the one place that signs.
func (c *certs) issue(a *cert.Authority, who authz.PeerID, r certRequest, proven []netip.Addr) (certAnswer, error) {
	req, names, err := cert.ParseRequest(r.Request)
	if err != nil {
		return certAnswer{}, err
	}
	v := c.gate.view()
	if r.CA {
		if !v.IsCoordinator(who) {
			return certAnswer{}, errors.New("only a coordinator may have a part of the farm's CA")
		}
		chain, err := a.SignCA(req, "vizpeer "+who.Short(), time.Now())
		if err == nil {
			c.slog.Info("certified a coordinator's part of the farm's CA", "peer", who.Short())
		}
		return certAnswer{Chain: chain}, err
	}
	granted, refused := v.CertNames(who, names, proven)
	var out certAnswer
	for _, err := range refused {
		out.Refused = append(out.Refused, err.Error())
	}
	if len(granted) == 0 {
		return out, fmt.Errorf("none of the names may be certified: %w", errors.Join(refused...))
	}
	out.Chain, err = a.SignLeaf(req, string(who), granted, c.life, time.Now())
	return out, err
}

// seenAt lists the addresses that a member's connections come from. One that comes from
// this machine has all of its addresses.
func seenAt(h host.Host, who peer.ID) (addrs []netip.Addr) {
	for _, conn := range h.Network().ConnsToPeer(who) {
		ip, err := manet.ToIP(conn.RemoteMultiaddr())
		if err != nil {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, addr.Unmap())
			if addr.IsLoopback() {
				addrs = append(addrs, ownAddrs()...)
			}
		}
	}
	return addrs
}

// ownAddrs lists the addresses of this machine's interfaces, but for those that are
// only good on one link.
func ownAddrs() (addrs []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if addr := prefix.Addr().Unmap(); err == nil && !addr.IsLinkLocalUnicast() {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// certNames are the names that a machine's certificate should be for: those of
// --api-name and the addresses that it listens on in so many words, and those that it
// has by itself.
func certNames(machine string, named []string, listens []netip.Addr) (asked, own []string) {
	own = []string{"localhost", "127.0.0.1", "::1"}
	if name, err := authz.CheckCertName(machine); err == nil && !strings.Contains(name, ".") {
		own = append(own, name)
	}
	for _, n := range named {
		if n, err := authz.CheckCertName(n); err == nil {
			asked = append(asked, n)
		}
	}
	for _, l := range listens {
		if !l.IsUnspecified() {
			asked = append(asked, l.String())
			continue
		}
		for _, a := range ownAddrs() {
			own = append(own, a.String())
		}
	}
	return asked, own[:min(len(own), authz.MaxCertNames-min(len(asked), authz.MaxCertNames/2))]
}
