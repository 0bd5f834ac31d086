package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/multiformats/go-multiaddr"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// The join protocol, the only one that answers a machine that is no member:
//
//	coordinator → machine   the farm's charter, or nothing else
//	machine → coordinator   its request
//	coordinator → machine   the answer
//
// The charter comes first, so that a machine that found the coordinator on the
// local network can tell that it is the farm's own before it shows its ticket.
//
// A machine without a ticket asks an admin: see [phrase] for why it does so in steps.
//
//	machine → coordinator   its request, with the hash of its nonce
//	coordinator → machine   the leader's nonce
//	machine → coordinator   its nonce
//	coordinator → machine   that it waits; from here on both show the phrase
//	coordinator → machine   the answer, once an admin has given it
const (
	joinProtocol = "/vizpeer/join/1"
	joinTimeout  = 20 * time.Second
	maxJoin      = 4 << 20  // bytes that a coordinator may say
	maxAsking    = 16 << 10 // bytes that a machine may
)

// What a machine may ask for; without any word, that its ticket be redeemed.
const (
	askAdmission = "admission" // that an admin be asked
	askMember    = "member"    // whether it is a member
)

type joinRequest struct {
	Ask     string      `json:"ask,omitempty"`
	Ticket  string      `json:"ticket,omitempty"`
	Name    string      `json:"name,omitempty"`
	Worker  bool        `json:"worker,omitempty"`
	KeyID   string      `json:"key_id,omitempty"`
	KeyHash *authz.Hash `json:"key_hash,omitempty"`
	// Bound is the hash of the machine's nonce, and Nonce that itself.
	Bound []byte `json:"bound,omitempty"`
	Nonce []byte `json:"nonce,omitempty"`
}

// The codes of answers; any other is a refusal.
const (
	codeElecting = "electing" // nobody leads now: asking again helps
	codeNonce    = "nonce"
	codeWaiting  = "waiting"
	codeMember   = "member"
	codeRemoved  = "removed" // it was a member, or never was
)

type joinAnswer struct {
	Code   string          `json:"code,omitempty"` // "" where the machine is admitted
	Reason string          `json:"reason,omitempty"`
	Leader *coord.Addr     `json:"leader,omitempty"` // who to ask instead
	Roster json.RawMessage `json:"roster,omitempty"`
	// Version is of the roster that the answer goes by: see askMember.
	Version uint64 `json:"version,omitempty"`
	Nonce   []byte `json:"nonce,omitempty"`
	Farm    string `json:"farm,omitempty"` // its name
}

// Errors of Join, beside those of authz for the ticket itself.
var (
	ErrNoFarm    = errors.New("no coordinator of the farm can be reached")
	ErrOtherFarm = errors.New("the ticket is for another farm")
	ErrRefused   = errors.New("the farm refused")
)

// Joining names the machine that joins.
type Joining struct {
	Name   string // "": the host's name
	NoWork bool   // the machine does not render
}

// Joined is what became of a machine.
type Joined struct {
	Farm  authz.FarmID
	Name  string // of the farm
	Peer  authz.PeerID
	Role  authz.Role
	Roles []string
}

// Join redeems a ticket: afterwards this machine's own key is its credential.
// No peer needs to run here. Repeating it with the same ticket is harmless.
func Join(ctx context.Context, cfg Config, text string, j Joining) (Joined, error) {
	ticket, err := authz.ParseTicket(text)
	if err != nil {
		return Joined{}, err
	}
	n, err := newNewcomer(cfg, ticket.Farm, j)
	if err != nil {
		return Joined{}, err
	}
	defer n.host.Close()
	n.request.Ticket = text
	a := applicant{host: n.host, farm: ticket.Farm, addrs: ticket.Addrs, request: n.request}
	view, via, err := a.find(ctx, n.cfg.NoMDNS)
	if err != nil {
		return Joined{}, err
	}
	return n.settle(view, via)
}

// newcomer is this machine on its way into a farm.
type newcomer struct {
	cfg     Config
	dir     dataDir
	host    host.Host
	farm    authz.FarmID // "": any
	name    string
	token   string // of the API key that it brings
	request joinRequest
}

// newNewcomer readies this machine to ask a farm, "" for any, to admit it. It fails
// with [ErrMember] where it is a member already. The host is the caller's to close.
func newNewcomer(cfg Config, farm authz.FarmID, j Joining) (*newcomer, error) {
	cfg = cfg.withDefaults()
	d := dataDir(cfg.DataDir)
	switch m, err := d.membership(); {
	case errors.Is(err, ErrNotMember):
	case err != nil:
		return nil, err
	case farm != "" && m.Farm != farm:
		return nil, fmt.Errorf("%w: this machine belongs to %s, the ticket to %s; join with another --data-dir", ErrOtherFarm, m.Farm, farm)
	case m.Removed != "":
		farm = m.Farm // whose the folder is for good: so are its store and its results
	case farm != "":
		return nil, fmt.Errorf("%w, the ticket's own: start it with `vizpeer up`", ErrMember)
	default:
		return nil, fmt.Errorf("%w, %s: start it with `vizpeer up`, or use another --data-dir", ErrMember, m.Farm)
	}
	name, err := machineName(j.Name)
	if err != nil {
		return nil, err
	}
	if err := d.create(); err != nil {
		return nil, err
	}
	identity, err := d.identity()
	if err != nil {
		return nil, err
	}
	// Whose the key is and what it may do is the farm's to say: see authz.Redeem.
	token, key, err := authz.NewKey(rand.Reader, name, authz.Node, time.Now())
	if err != nil {
		return nil, err
	}
	var listen []string
	if !cfg.NoMDNS {
		listen = []string{"/ip4/0.0.0.0/tcp/0"} // who does not listen cannot look around either
	}
	options := cfg.HostOptions
	if !cfg.NoNAT {
		options = append(slices.Clone(options), libp2p.EnableRelay()) // the coordinator may be behind a NAT
	}
	h, err := newHost(identity, newGate("", farm, nil), listen, options...)
	if err != nil {
		return nil, err
	}
	return &newcomer{
		cfg: cfg, dir: d, host: h, farm: farm, name: name, token: token,
		request: joinRequest{Name: name, Worker: !j.NoWork && !cfg.NoWork, KeyID: key.ID, KeyHash: &key.Hash},
	}, nil
}

// settle writes down what this machine became by the word of the coordinator via.
func (n *newcomer) settle(view *authz.View, via peer.AddrInfo) (Joined, error) {
	self := peerOf(n.host.ID())
	m, ok := view.Member(self)
	if !ok {
		return Joined{}, fmt.Errorf("%w: it says that this machine is admitted, but its roster does not", ErrRefused)
	}
	err := errors.Join(
		n.dir.write("token", []byte(n.token+"\n"), 0o600),
		n.dir.writeJSON("addrs.json", map[authz.PeerID][]string{peerOf(via.ID): texts(via.Addrs)}, 0o600),
		n.dir.writeJSON("roster.json", view, 0o600),
		n.dir.writeCA(view),
	)
	if err != nil {
		return Joined{}, err
	}
	if err := n.dir.writeJSON("membership.json", membership{Farm: view.Farm(), Name: n.name, NoWork: !m.Worker}, 0o600); err != nil {
		return Joined{}, err
	}
	return Joined{Farm: view.Farm(), Name: view.Name(), Peer: self, Role: m.Role, Roles: m.RoleNames()}, nil
}

// applicant is a machine that asks to be admitted.
type applicant struct {
	host    host.Host
	farm    authz.FarmID // "": any that proves itself
	addrs   []string     // where its ticket says that coordinators are
	request joinRequest
}

// patience is how long a machine that joins looks for somebody who answers: a
// coordinator may just be starting.
const patience = 8 * time.Second

// find asks the coordinators that the ticket names and, unless quiet, those on
// the local network, again and again while its patience lasts.
func (a *applicant) find(ctx context.Context, quiet bool) (*authz.View, peer.AddrInfo, error) {
	named, err := peer.AddrInfosFromP2pAddrs(info(coord.Addr{Peer: authz.PeerID(a.host.ID().String()), Addrs: a.addrs}).Addrs...)
	if err != nil {
		return nil, peer.AddrInfo{}, fmt.Errorf("the ticket's addresses: %w", err)
	}
	known := make(map[peer.ID]bool)
	for _, p := range named {
		known[p.ID] = true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	const another = "make another with `vizpeer invite` while the peer is up there"
	nobody := errors.New("the ticket names no address, and nobody answered on the local network: " + another)
	found := make(chan peer.AddrInfo, 16)
	switch {
	case quiet && len(named) == 0:
		return nil, peer.AddrInfo{}, fmt.Errorf("%w: the ticket names no address, and mDNS, which would find one, is switched off here: %s", ErrNoFarm, another)
	case !quiet:
		lan := mdns.NewMdnsService(a.host, mdnsName(a.farm), notifee(found))
		if err := lan.Start(); err != nil {
			nobody = fmt.Errorf("the ticket names no address, and this machine cannot look around on the local network: %w: %s", err, another)
		} else {
			defer lan.Close()
		}
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, time.Second
	why := make(map[peer.ID]error) // the last answer of each that was not cut short
	for candidates := named; ; {
		for _, p := range candidates {
			v, via, err := a.ask(ctx, p, known[p.ID])
			if err == nil || final(err) {
				return v, via, err
			}
			if why[p.ID] == nil || ctx.Err() == nil {
				why[p.ID] = err
			}
		}
		select {
		case p := <-found:
			candidates = append(candidates, p)
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return nil, peer.AddrInfo{}, unreached(candidates, why, nobody)
		}
	}
}

// unreached says why nobody admitted this machine, a line for each try. nobody is
// the reason where there was none to ask.
func unreached(asked []peer.AddrInfo, why map[peer.ID]error, nobody error) error {
	if len(asked) == 0 {
		return fmt.Errorf("%w: %w", ErrNoFarm, nobody)
	}
	var lines []error
	for _, p := range asked {
		if err := why[p.ID]; err != nil {
			lines = append(lines, err)
			delete(why, p.ID) // mDNS may find one twice
		}
	}
	var known []multiaddr.Multiaddr
	for _, p := range asked {
		known = append(known, p.Addrs...)
	}
	if onOtherNetworks(known) {
		lines = append(lines, errors.New("these addresses are good on the coordinator's own network alone: from elsewhere, "+httpapi.OpenAPort+", and make another ticket"))
	}
	return fmt.Errorf("%w: is `vizpeer up` running there, and can this machine reach it?\n%w", ErrNoFarm, errors.Join(lines...))
}

// final tells that asking elsewhere would give the same answer.
func final(err error) bool {
	return errors.Is(err, ErrRefused) || errors.Is(err, ErrOtherFarm)
}

type notifee chan peer.AddrInfo

func (n notifee) HandlePeerFound(p peer.AddrInfo) {
	select {
	case n <- p:
	default:
	}
}

// ask asks one peer, and whoever it names as the leader. known tells that the
// ticket itself names p, so that its identity is proven.
func (a *applicant) ask(ctx context.Context, p peer.AddrInfo, known bool) (*authz.View, peer.AddrInfo, error) {
	for range 3 {
		answer, _, err := a.exchange(ctx, p, known)
		if err != nil {
			return nil, p, err
		}
		switch {
		case answer.Leader != nil && answer.Leader.Peer != "":
			p, known = info(*answer.Leader), true
			continue
		case answer.Code == codeElecting:
			return nil, p, errors.New(answer.Reason)
		case answer.Code != "":
			return nil, p, fmt.Errorf("%w: %w", ErrRefused, refusal(answer))
		}
		v, err := authz.ParseView(answer.Roster, a.farm)
		return v, peer.AddrInfo{ID: p.ID, Addrs: a.host.Peerstore().Addrs(p.ID)}, err
	}
	return nil, p, errors.New("the coordinators name each other as the leader: try again in a few seconds")
}

// refusal is the error that a code stands for, so that callers can tell.
func refusal(a joinAnswer) error {
	for _, err := range strangersMayRead {
		if a.Reason == err.Error() {
			return err
		}
	}
	return errors.New(a.Reason)
}

// exchange asks p once. It answers the charter that p showed, too.
func (a *applicant) exchange(ctx context.Context, p peer.AddrInfo, known bool) (answer joinAnswer, charter authz.Charter, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c, err := a.open(ctx, p, known)
	if err != nil {
		return answer, charter, err
	}
	defer c.Reset()
	if err := c.out.Encode(a.request); err != nil {
		return answer, c.charter, err
	}
	return answer, c.charter, c.hear(&answer)
}

// inquiry is the machine's end of a stream of the join protocol.
type inquiry struct {
	network.Stream
	who     string // the coordinator, for people
	charter authz.Charter
	in      *json.Decoder
	out     *json.Encoder
}

// hear reads the next answer.
func (c *inquiry) hear(answer *joinAnswer) error {
	if err := c.in.Decode(answer); err != nil {
		return fmt.Errorf("%s did not answer: %w", c.who, err)
	}
	return nil
}

// open begins to ask p, which has [joinTimeout] to prove which farm it is of. The stream
// is the caller's to reset.
func (a *applicant) open(ctx context.Context, p peer.AddrInfo, known bool) (_ *inquiry, err error) {
	who := peerOf(p.ID).Short()
	dialAnew(a.host, p.ID)
	if err := a.host.Connect(ctx, p); err != nil {
		return nil, &dialError{p, err}
	}
	s, err := a.host.NewStream(ctx, p.ID, joinProtocol)
	if err != nil {
		return nil, fmt.Errorf("%s does not admit machines: %w", who, err)
	}
	defer func() {
		if err != nil {
			_ = s.Reset()
		}
	}()
	_ = s.SetDeadline(time.Now().Add(joinTimeout))
	c := &inquiry{Stream: s, who: who, in: json.NewDecoder(io.LimitReader(s, maxJoin)), out: json.NewEncoder(s)}
	if err := c.in.Decode(&c.charter); err != nil {
		return nil, fmt.Errorf("%s did not say which farm it is of: %w", who, err)
	}
	farm := a.farm
	if farm == "" {
		farm = c.charter.ID()
	}
	if err := c.charter.Verify(farm); err != nil {
		other := ErrOtherFarm
		if a.request.Ticket == "" {
			other = errOtherFolder
		}
		return nil, fmt.Errorf("%w: %s is of %s, not of %s", other, who, c.charter.ID(), farm)
	}
	if !known && c.charter.Coordinator != peerOf(p.ID) {
		return nil, fmt.Errorf("%s was found on the local network and cannot prove that it leads the farm", who)
	}
	return c, nil
}

// admit answers the join protocol on a coordinator, until ctx ends.
func (p *Peer) admit(ctx context.Context) {
	p.host.SetStreamHandler(joinProtocol, func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(joinTimeout))
		out := json.NewEncoder(s)
		var charter authz.Charter
		p.coord.Read(func(_ *lease.State, r *authz.Roster) { charter = r.Charter() })
		if out.Encode(charter) != nil {
			return
		}
		in := json.NewDecoder(io.LimitReader(s, maxAsking))
		var r joinRequest
		if err := in.Decode(&r); err != nil {
			_ = s.Reset()
			return
		}
		who := peerOf(s.Conn().RemotePeer())
		switch r.Ask {
		case "":
			from, doing := addressOf(s.Conn().RemoteMultiaddr()), new(authz.Doing) // by whom, and of what ticket, the log finds out
			if from.IsValid() {
				doing.Address = from.String()
			}
			_ = out.Encode(p.redeem(authz.WithDoing(ctx, doing), s.Conn(), r))
		case askMember:
			answer := joinAnswer{Code: codeMember}
			p.coord.Read(func(_ *lease.State, roster *authz.Roster) {
				answer.Version = roster.Version()
				if why, yes := whyRemoved(roster, who); yes {
					answer.Code, answer.Reason = codeRemoved, why
				}
			})
			_ = out.Encode(answer)
		case askAdmission:
			_ = out.Encode(p.receive(ctx, s, r, in, out))
		default:
			_ = out.Encode(joinAnswer{Code: "refused", Reason: "the farm's vizpeer is older than this machine's: update it"})
		}
	})
}

// redeem redeems a machine's ticket.
func (p *Peer) redeem(ctx context.Context, c network.Conn, r joinRequest) joinAnswer {
	who, from := peerOf(c.RemotePeer()), addressOf(c.RemoteMultiaddr())
	if !p.lobby.tickets.may(from, 0) {
		return p.turnAway(errTickets)
	}
	t, err := authz.ParseTicket(r.Ticket)
	if err != nil {
		p.lobby.tickets.may(from, 1)
		p.coord.Refused(authz.Deed{Machine: who, Address: authz.DoingOf(ctx).Address, Action: "join", Object: string(who), Detail: plain(err)}, "ticket")
		return joinAnswer{Code: "ticket", Reason: err.Error()}
	}
	redeem := authz.Redeem{Ticket: t.Hash(), Peer: who, Name: r.Name, Worker: r.Worker, KeyID: r.KeyID}
	if r.KeyHash != nil {
		redeem.KeyHash = *r.KeyHash
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout/2)
	defer cancel()
	// A ticket that is no good costs no place in the log.
	if err := p.coord.MayJoin(ctx, redeem); err != nil {
		p.lobby.tickets.may(from, 1)
		return p.turnAway(err)
	}
	if p.coord.Leading() && !p.lobby.redeems.may(c.RemotePeer(), 1) {
		return p.turnAway(errOften)
	}
	if err := p.coord.Admit(ctx, authz.Command{At: time.Now(), Redeem: &redeem}); err != nil {
		if coord.Refused(err) { // such as a name that is none, which uses no ticket up
			p.lobby.tickets.may(from, 1)
		}
		return p.turnAway(err)
	}
	return p.welcomeIn()
}

// welcomeIn is what a machine gets that is a member now.
func (p *Peer) welcomeIn() joinAnswer {
	b, err := json.Marshal(p.coord.Roster())
	if err != nil {
		return joinAnswer{Code: "refused", Reason: "the roster cannot be written"}
	}
	return joinAnswer{Roster: b}
}

// turnAway says why a machine is not admitted, or who to ask instead.
func (p *Peer) turnAway(err error) joinAnswer {
	var elsewhere coord.ErrNotLeader
	if !errors.As(err, &elsewhere) {
		return joinAnswer{Code: "refused", Reason: plain(err)}
	}
	if id, err := peer.Decode(string(elsewhere.Leader)); err == nil && id != p.host.ID() {
		return joinAnswer{Leader: &coord.Addr{Peer: elsewhere.Leader, Addrs: texts(p.host.Peerstore().Addrs(id))}}
	}
	return joinAnswer{Code: codeElecting, Reason: "the farm is choosing a leader: try again in a few seconds"}
}

// strangersMayRead are the errors whose text a stranger is told, and tells its person.
var strangersMayRead = []error{
	authz.ErrTicketUnknown, authz.ErrTicketUsed, authz.ErrTicketExpired, authz.ErrTicketBefore, authz.ErrFull,
	errLobbyFull, errAgain, errDenied, errTickets, errOften,
}

// plain is the text of the innermost error that a stranger may read.
func plain(err error) string {
	for _, known := range strangersMayRead {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}
