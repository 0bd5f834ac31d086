package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"

	"vizpeer/authz"
	"vizpeer/coord"
)

// mdnsAnyone is the name under which coordinators answer machines that have no ticket
// yet, and so know no farm.
const mdnsAnyone = "_vizpeer-join._udp"

// Errors of Ask, beside those of Join.
var (
	ErrAddress    = errors.New("this is no coordinator's address: write it as `vizpeer up --json` shows it there, with /p2p/ and its ID at the end")
	ErrUnanswered = errors.New("no admin has let this machine in yet")
	// errOtherFolder keeps a machine that was removed from joining another farm with what
	// it has of the first.
	errOtherFolder = errors.New("this machine's data folder is another farm's: use another --data-dir")
)

// Waiting is a farm that was asked to admit this machine. An admin who sees the same
// words there knows that it is this machine that asks.
type Waiting struct {
	Farm  authz.FarmID
	Name  string // of the farm, as it says itself
	Peer  authz.PeerID
	Words string // four, with dashes between them
}

// Ask asks the farms of the local network, or the coordinators at addrs where there are
// any, to admit this machine without a ticket, and waits until an admin of one does, or
// for ctx. shown is called for each that takes the request, from goroutines of its own,
// and again where one had to be asked anew.
//
// The machine gets what a ticket would have given it. Ask fails with [ErrRefused] once
// all who took the request have denied it, with [ErrUnanswered] where nobody had by the
// time that ctx ended, and with [ErrNoFarm] where nobody was found.
func Ask(ctx context.Context, cfg Config, addrs []string, j Joining, shown func(Waiting)) (Joined, error) {
	n, err := newNewcomer(cfg, "", j)
	if err != nil {
		return Joined{}, err
	}
	defer n.host.Close()
	named, err := peer.AddrInfosFromP2pAddrs(info(coord.Addr{Peer: peerOf(n.host.ID()), Addrs: addrs}).Addrs...)
	if err != nil || len(named) == 0 && len(addrs) > 0 {
		return Joined{}, fmt.Errorf("%.200q: %w", addrs, ErrAddress)
	}
	found := make(chan peer.AddrInfo, 16)
	switch {
	case len(named) > 0:
	case n.cfg.NoMDNS:
		return Joined{}, fmt.Errorf("%w: mDNS, which would find one, is switched off here: name a coordinator with --addr, or use a ticket", ErrNoFarm)
	default:
		lan := mdns.NewMdnsService(n.host, mdnsAnyone, notifee(found))
		if err := lan.Start(); err != nil {
			return Joined{}, fmt.Errorf("%w: this machine cannot look around on the local network: %w: name a coordinator with --addr, or use a ticket", ErrNoFarm, err)
		}
		defer lan.Close()
	}
	return n.ask(ctx, named, found, shown)
}

// plea is what became of asking one coordinator.
type plea struct {
	peer peer.ID
	view *authz.View
	via  peer.AddrInfo
	err  error
}

// ask asks all that were named and that are found, each by a goroutine of its own.
func (n *newcomer) ask(ctx context.Context, named []peer.AddrInfo, found <-chan peer.AddrInfo, shown func(Waiting)) (Joined, error) {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan plea)
	asked := make(map[peer.ID]bool)
	open := 0
	begin := func(p peer.AddrInfo) {
		if asked[p.ID] || len(asked) >= maxWaiting {
			return
		}
		asked[p.ID] = true
		open++
		go func() {
			v, via, err := n.plead(ctx, p, len(named) > 0, shown)
			answers <- plea{p.ID, v, via, err}
		}()
	}
	defer func() {
		cancel()
		for ; open > 0; open-- {
			<-answers
		}
	}()
	for _, p := range named {
		begin(p)
	}
	var why []error
	for {
		select {
		case p := <-found:
			begin(p)
		case a := <-answers:
			open--
			if a.err == nil {
				return n.settle(a.view, a.via)
			}
			if why = append(why, a.err); open == 0 {
				return Joined{}, errors.Join(why...)
			}
		case <-ctx.Done():
			cause := context.Cause(ctx)
			if len(asked) == 0 {
				return Joined{}, fmt.Errorf("%w: nobody answered on the local network: name a coordinator with --addr, or use a ticket: %w", ErrNoFarm, cause)
			}
			return Joined{}, fmt.Errorf("%w: %w", ErrUnanswered, cause)
		}
	}
}

// plead asks one coordinator, and whoever it names as the leader, until it gives its
// answer or ctx ends: a connection may break, and a leader change.
func (n *newcomer) plead(ctx context.Context, first peer.AddrInfo, named bool, shown func(Waiting)) (*authz.View, peer.AddrInfo, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 500*time.Millisecond, 15*time.Second
	p, known, tries := first, named, 0
	for {
		answer, charter, err := n.wait(ctx, p, known, func(w Waiting) {
			pause.Reset()
			tries = 0
			shown(w)
		})
		switch {
		case err == nil && answer.Leader != nil:
			p, known = info(*answer.Leader), true
			if tries++; tries < 3 {
				continue
			}
		case err == nil && answer.Code == "":
			v, err := authz.ParseView(answer.Roster, charter.ID())
			return v, peer.AddrInfo{ID: p.ID, Addrs: n.host.Peerstore().Addrs(p.ID)}, err
		case err == nil && answer.Code != codeElecting:
			return nil, p, fmt.Errorf("%w: %w", ErrRefused, refusal(answer))
		case ctx.Err() != nil:
			return nil, p, context.Cause(ctx)
		case errors.Is(err, errOtherFolder):
			return nil, p, err
		}
		p, known, tries = first, named, 0
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			if err != nil {
				return nil, p, err
			}
			return nil, p, context.Cause(ctx)
		}
	}
}

// wait asks p once, shows the phrase, and waits for the answer.
func (n *newcomer) wait(ctx context.Context, p peer.AddrInfo, known bool, shown func(Waiting)) (answer joinAnswer, charter authz.Charter, err error) {
	a := applicant{host: n.host, farm: n.farm, request: n.request}
	dialling, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c, err := a.open(dialling, p, known)
	if err != nil {
		return answer, charter, err
	}
	defer c.Reset()
	defer context.AfterFunc(ctx, func() { _ = c.Reset() })()
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // it never fails
	bound := sha256.Sum256(nonce)
	a.request.Ask, a.request.Bound = askAdmission, bound[:]
	if err := c.out.Encode(a.request); err != nil {
		return answer, c.charter, err
	}
	if err := c.hear(&answer); err != nil || answer.Code != codeNonce {
		return answer, c.charter, err
	}
	words, err := phrase(c.charter.ID(), n.host.ID(), p.ID, nonce, answer.Nonce)
	if err != nil {
		return answer, c.charter, err
	}
	if err := c.out.Encode(joinRequest{Nonce: nonce}); err != nil {
		return answer, c.charter, err
	}
	answer = joinAnswer{}
	if err := c.hear(&answer); err != nil || answer.Code != codeWaiting {
		return answer, c.charter, err
	}
	shown(Waiting{Farm: c.charter.ID(), Name: answer.Farm, Peer: peerOf(p.ID), Words: words})
	_ = c.SetDeadline(time.Now().Add(waitingTime + joinTimeout))
	answer = joinAnswer{}
	return answer, c.charter, c.hear(&answer)
}

// receive lets a machine without a ticket wait for an admin's word, on the leader.
func (p *Peer) receive(ctx context.Context, s network.Stream, r joinRequest, in *json.Decoder, out *json.Encoder) joinAnswer {
	if !p.coord.Leading() {
		return p.turnAway(coord.ErrNotLeader{Leader: p.coord.Status().Leader})
	}
	if err := p.lobby.mayEnter(addressOf(s.Conn().RemoteMultiaddr())); err != nil {
		return p.turnAway(err)
	}
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // it never fails
	if err := out.Encode(joinAnswer{Code: codeNonce, Nonce: nonce}); err != nil {
		return joinAnswer{}
	}
	var shown joinRequest
	if err := in.Decode(&shown); err != nil {
		return joinAnswer{Code: "refused", Reason: "the request is not whole"}
	}
	if bound := sha256.Sum256(shown.Nonce); len(shown.Nonce) != nonceSize || !bytes.Equal(bound[:], r.Bound) {
		return joinAnswer{Code: "refused", Reason: "the machine did not show the nonce that it had bound itself to"}
	}
	words, err := phrase(p.farm, s.Conn().RemotePeer(), p.host.ID(), shown.Nonce, nonce)
	if err != nil {
		return joinAnswer{Code: "refused", Reason: "the phrase cannot be made"}
	}
	v := newVisitor(s.Conn(), r, words)
	if err := v.check(); err != nil {
		return p.turnAway(err)
	}
	defer p.gate.keep(s.Conn())()
	leave, err := p.lobby.enter(v)
	if err != nil {
		return p.turnAway(err)
	}
	defer leave()
	if err := out.Encode(joinAnswer{Code: codeWaiting, Farm: p.gate.view().Name()}); err != nil {
		return joinAnswer{}
	}
	p.slog.Info("a machine asks to be admitted: see `vizpeer peer ls --pending`", "name", v.Name, "peer", v.Peer.Short(), "addr", v.addr)
	_ = s.SetDeadline(time.Now().Add(waitingTime))
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, io.LimitReader(s, maxAsking)) // it has nothing more to say
		close(gone)
	}()
	for p.coord.Leading() {
		_, changed := p.link.Watch() // this machine's own stream ends with its leadership
		select {
		case err := <-v.verdict:
			_ = s.SetWriteDeadline(time.Now().Add(joinTimeout))
			if err != nil {
				return p.turnAway(err)
			}
			return p.welcomeIn()
		case <-changed:
			continue
		case <-gone:
		case <-ctx.Done():
		}
		break
	}
	return joinAnswer{Code: codeElecting, Reason: "the time to wait is over, or another coordinator leads: try again"}
}

// check refuses what could not be admitted whatever an admin says.
func (v *visitor) check() error {
	a := v.Approve
	a.Role, a.By = authz.Node, "admin"
	return a.Validate()
}
