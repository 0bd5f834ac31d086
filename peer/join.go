package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"

	"vizpeer/authz"
	"vizpeer/coord"
)

// The join protocol, the only one that answers a machine that is no member:
//
//	coordinator → machine   the farm's charter, or nothing else
//	machine → coordinator   its request, with the ticket
//	coordinator → machine   the answer
//
// The charter comes first, so that a machine that found the coordinator on the
// local network can tell that it is the farm's own before it shows the ticket.
const (
	joinProtocol = "/vizpeer/join/1"
	joinTimeout  = 20 * time.Second
	maxJoin      = 4 << 20 // bytes of one message
)

type joinRequest struct {
	Ticket  string      `json:"ticket"`
	Name    string      `json:"name"`
	Worker  bool        `json:"worker"`
	KeyID   string      `json:"key_id"`
	KeyHash *authz.Hash `json:"key_hash"`
}

// codeElecting answers while nobody leads: asking again helps.
const codeElecting = "electing"

type joinAnswer struct {
	Code   string          `json:"code,omitempty"` // "" where the machine is admitted
	Reason string          `json:"reason,omitempty"`
	Leader *coord.Addr     `json:"leader,omitempty"` // who to ask instead
	Roster json.RawMessage `json:"roster,omitempty"`
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
	cfg = cfg.withDefaults()
	ticket, err := authz.ParseTicket(text)
	if err != nil {
		return Joined{}, err
	}
	d := dataDir(cfg.DataDir)
	if m, err := d.membership(); err == nil {
		if m.Farm != ticket.Farm {
			return Joined{}, fmt.Errorf("%w: this machine belongs to %s, the ticket to %s; join with another --data-dir", ErrOtherFarm, m.Farm, ticket.Farm)
		}
		return Joined{}, fmt.Errorf("%w, the ticket's own: start it with `vizpeer up`", ErrMember)
	} else if !errors.Is(err, ErrNotMember) {
		return Joined{}, err
	}
	name, err := machineName(j.Name)
	if err != nil {
		return Joined{}, err
	}
	if err := d.create(); err != nil {
		return Joined{}, err
	}
	identity, err := d.identity()
	if err != nil {
		return Joined{}, err
	}
	var listen []string
	if !cfg.NoMDNS {
		listen = []string{"/ip4/0.0.0.0/tcp/0"} // who does not listen cannot look around either
	}
	h, err := newHost(identity, newGate("", ticket.Farm, nil), listen, cfg.HostOptions...)
	if err != nil {
		return Joined{}, err
	}
	defer h.Close()
	token, key, err := authz.NewKey(rand.Reader, name, ticket.Role, time.Now())
	if err != nil {
		return Joined{}, err
	}
	a := applicant{host: h, ticket: ticket, request: joinRequest{Ticket: text, Name: name, Worker: !j.NoWork && !cfg.NoWork, KeyID: key.ID, KeyHash: &key.Hash}}
	view, via, err := a.find(ctx, cfg.NoMDNS)
	if err != nil {
		return Joined{}, err
	}
	self := authz.PeerID(h.ID().String())
	m, ok := view.Member(self)
	if !ok {
		return Joined{}, fmt.Errorf("%w: it says that this machine is admitted, but its roster does not", ErrRefused)
	}
	err = errors.Join(
		d.write("token", []byte(token+"\n"), 0o600),
		d.writeJSON("addrs.json", map[authz.PeerID][]string{authz.PeerID(via.ID.String()): texts(via.Addrs)}, 0o600),
		d.writeJSON("roster.json", view, 0o600),
		d.writeCA(view),
	)
	if err != nil {
		return Joined{}, err
	}
	if err := d.writeJSON("membership.json", membership{Farm: ticket.Farm, Name: name, NoWork: !m.Worker}, 0o600); err != nil {
		return Joined{}, err
	}
	return Joined{Farm: ticket.Farm, Name: view.Name(), Peer: self, Role: m.Role, Roles: m.RoleNames()}, nil
}

// applicant is a machine that asks to be admitted.
type applicant struct {
	host    host.Host
	ticket  authz.Ticket
	request joinRequest
}

// patience is how long a machine that joins looks for somebody who answers: a
// coordinator may just be starting.
const patience = 8 * time.Second

// find asks the coordinators that the ticket names and, unless quiet, those on
// the local network, again and again while its patience lasts.
func (a *applicant) find(ctx context.Context, quiet bool) (*authz.View, peer.AddrInfo, error) {
	named, err := peer.AddrInfosFromP2pAddrs(info(coord.Addr{Peer: authz.PeerID(a.host.ID().String()), Addrs: a.ticket.Addrs}).Addrs...)
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
		lan := mdns.NewMdnsService(a.host, mdnsName(a.ticket.Farm), notifee(found))
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
		answer, err := a.exchange(ctx, p, known)
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
		v, err := authz.ParseView(answer.Roster, a.ticket.Farm)
		return v, peer.AddrInfo{ID: p.ID, Addrs: a.host.Peerstore().Addrs(p.ID)}, err
	}
	return nil, p, errors.New("the coordinators name each other as the leader: try again in a few seconds")
}

// refusal is the error that a code stands for, so that callers can tell.
func refusal(a joinAnswer) error {
	for _, err := range []error{authz.ErrTicketUnknown, authz.ErrTicketUsed, authz.ErrTicketExpired, authz.ErrFull} {
		if a.Reason == err.Error() {
			return err
		}
	}
	return errors.New(a.Reason)
}

func (a *applicant) exchange(ctx context.Context, p peer.AddrInfo, known bool) (answer joinAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	who := authz.PeerID(p.ID.String()).Short()
	dialAnew(a.host, p.ID)
	if err := a.host.Connect(ctx, p); err != nil {
		return answer, &dialError{p, err}
	}
	s, err := a.host.NewStream(ctx, p.ID, joinProtocol)
	if err != nil {
		return answer, fmt.Errorf("%s does not admit machines: %w", who, err)
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(joinTimeout))
	in := json.NewDecoder(io.LimitReader(s, maxJoin))
	var charter authz.Charter
	if err := in.Decode(&charter); err != nil {
		return answer, fmt.Errorf("%s did not say which farm it is of: %w", who, err)
	}
	if err := charter.Verify(a.ticket.Farm); err != nil {
		return answer, fmt.Errorf("%w: %s is of %s, the ticket is for %s", ErrOtherFarm, who, charter.ID(), a.ticket.Farm)
	}
	if !known && charter.Coordinator != authz.PeerID(p.ID.String()) {
		return answer, fmt.Errorf("%s was found on the local network and cannot prove that it leads the farm", who)
	}
	if err := json.NewEncoder(s).Encode(a.request); err != nil {
		return answer, err
	}
	if err := in.Decode(&answer); err != nil {
		return answer, fmt.Errorf("%s did not answer: %w", who, err)
	}
	return answer, nil
}

// admit answers the join protocol on a coordinator.
func admit(ctx context.Context, h host.Host, c *coord.Coordinator) {
	h.SetStreamHandler(joinProtocol, func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(joinTimeout))
		out := json.NewEncoder(s)
		if out.Encode(c.Roster().Charter()) != nil {
			return
		}
		var r joinRequest
		if err := json.NewDecoder(io.LimitReader(s, 16<<10)).Decode(&r); err != nil {
			_ = s.Reset()
			return
		}
		_ = out.Encode(decide(ctx, h, c, authz.PeerID(s.Conn().RemotePeer().String()), r))
	})
}

func decide(ctx context.Context, h host.Host, c *coord.Coordinator, who authz.PeerID, r joinRequest) joinAnswer {
	t, err := authz.ParseTicket(r.Ticket)
	if err != nil {
		return joinAnswer{Code: "ticket", Reason: err.Error()}
	}
	redeem := authz.Redeem{Ticket: t.Hash(), Peer: who, Name: r.Name, Worker: r.Worker, KeyID: r.KeyID}
	if r.KeyHash != nil {
		redeem.KeyHash = *r.KeyHash
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout/2)
	defer cancel()
	// A ticket that is no good costs no place in the log.
	if err := c.MayJoin(time.Now(), redeem); err != nil {
		return joinAnswer{Code: "refused", Reason: plain(err)}
	}
	err = c.Admit(ctx, authz.Command{At: time.Now(), Redeem: &redeem})
	var elsewhere coord.ErrNotLeader
	switch {
	case errors.As(err, &elsewhere):
		leader := coord.Addr{Peer: elsewhere.Leader}
		if id, err := peer.Decode(string(elsewhere.Leader)); err == nil {
			leader.Addrs = texts(h.Peerstore().Addrs(id))
			return joinAnswer{Leader: &leader}
		}
		return joinAnswer{Code: codeElecting, Reason: "the farm is choosing a leader: try again in a few seconds"}
	case err != nil:
		return joinAnswer{Code: "refused", Reason: plain(err)}
	}
	b, err := json.Marshal(c.Roster())
	if err != nil {
		return joinAnswer{Code: "refused", Reason: "the roster cannot be written"}
	}
	return joinAnswer{Roster: b}
}

// plain is the text of the innermost error that a stranger may read.
func plain(err error) string {
	for _, known := range []error{authz.ErrTicketUnknown, authz.ErrTicketUsed, authz.ErrTicketExpired, authz.ErrFull} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}
