package peer

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// leaderless says what this machine knows while nobody leads, and what it does meanwhile;
// nil while somebody does.
func (p *Peer) leaderless() *httpapi.Leaderless {
	since, lost := p.link.Lost()
	if !lost || p.Leads() {
		return nil
	}
	out := &httpapi.Leaderless{Since: since.UTC(), Tried: []string{}}
	for _, id := range p.link.candidates("", "") {
		if id != p.host.ID() {
			out.Tried = append(out.Tried, p.gate.name(id))
		}
	}
	if p.coord != nil {
		if voters := p.coord.Status().Voters; slices.Contains(voters, p.self) {
			out.Voters, out.Reaches = len(voters), p.reaches(voters)
		}
	}
	out.Text = leaderlessText(out, time.Since(since)) + p.elsewhere()
	out.Meanwhile = meanwhile(len(p.worker.reports()), p.worker.results.frames(), p.outbox.Count())
	return out
}

// elsewhere says what is missing where all the addresses that are known of those who may
// lead are on other local networks; "" otherwise.
func (p *Peer) elsewhere() string {
	var known []multiaddr.Multiaddr
	for _, id := range p.link.candidates("", "") {
		if id != p.host.ID() {
			known = append(known, p.host.Peerstore().Addrs(id)...)
		}
	}
	if !onOtherNetworks(known) {
		return ""
	}
	return " They are on another network, and no member relays: " + httpapi.OpenAPort
}

// onOtherNetworks tells whether all of these addresses are good on local networks alone,
// and not on one of this machine's.
func onOtherNetworks(addrs []multiaddr.Multiaddr) bool {
	own, _ := net.InterfaceAddrs()
	far := false
	for _, m := range addrs {
		ip, err := manet.ToIP(m)
		if err == nil && ip.IsLoopback() {
			continue
		}
		if err != nil || circuit(m) || manet.IsPublicAddr(m) || slices.ContainsFunc(own, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.Contains(ip)
		}) {
			return false
		}
		far = true
	}
	return far
}

// reaches counts the machines of a list that this one is connected with, and itself.
func (p *Peer) reaches(ids []authz.PeerID) (n int) {
	for _, id := range ids {
		if other, err := libp2ppeer.Decode(string(id)); err == nil && (other == p.host.ID() || p.host.Network().Connectedness(other) == network.Connected) {
			n++
		}
	}
	return n
}

// leaderlessText says that nobody leads, for how long, and why as far as is known.
func leaderlessText(l *httpapi.Leaderless, d time.Duration) string {
	text := awayText(d)
	switch cut := l.Voters > 0 && 2*l.Reaches <= l.Voters; {
	case cut:
		text += fmt.Sprintf(": this coordinator reaches %d of %d voters, itself included: it cannot lead", l.Reaches, l.Voters)
	case l.Voters > 0:
		return text + ": the coordinators are about to elect a leader; try again in a few seconds"
	case len(l.Tried) == 0:
		return text + ": nobody leads the queue yet; try again in a few seconds"
	}
	if len(l.Tried) > 0 {
		text += fmt.Sprintf(": tried %s; is `vizpeer up` running there?", strings.Join(l.Tried, ", "))
	}
	return text
}

// awayText says for how long nobody has led.
func awayText(d time.Duration) string {
	if d < time.Second {
		return httpapi.ErrNoLeader.Error()
	}
	return fmt.Sprintf("%v for %v", httpapi.ErrNoLeader, d.Truncate(time.Second))
}

// meanwhile says what a machine does while nobody leads.
func meanwhile(running, unkept, waiting int) string {
	words := []string{"it takes nothing new"}
	if running > 0 {
		words = append(words, fmt.Sprintf("it renders on what it has, %s", plural(running, "task")))
	}
	if unkept > 0 {
		words = append(words, fmt.Sprintf("it keeps %s until somebody wants them", plural(unkept, "finished frame")))
	}
	if waiting > 0 {
		words = append(words, fmt.Sprintf("it keeps %s to submit", plural(waiting, "job")))
	}
	return strings.Join(words, "; ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
