package peer

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// How many machines without a ticket may wait at once, in all and from one address,
// how many may come in a second, and in a burst, how often from one address, and how long
// each may wait.
const (
	maxWaiting     = 32
	maxWaitingFrom = 8
	askingRate     = 1
	askingBurst    = 16
	askingPause    = 6 * time.Second
	waitingTime    = 30 * time.Minute
)

// How often machines at one address may show a ticket that is no good, and how many at
// once: nobody mistypes so many.
const (
	ticketPause = 6 * time.Second
	ticketBurst = 10
)

// How often one machine may show a ticket that is good, and how many times at once: each
// costs a place in the log, and a roster for everybody.
const (
	redeemRate  = 0.1
	redeemBurst = 10
)

// lobby is where machines without a ticket wait until an admin lets them in. It lives
// in the leader's memory alone: strangers cost no place in the log.
type lobby struct {
	limit   *rate.Limiter // of those who come
	asked   *visits       // by those who come
	tickets *visits       // with tickets that are no good
	redeems pace          // by each machine, with one that is

	mu      sync.Mutex
	waiting map[authz.PeerID]*visitor
}

// visitor is a machine that waits.
type visitor struct {
	authz.Approve // what an admin's word would make of it; no Role and no By yet
	words         string
	addr          string // of its connection
	from          netip.Addr
	since         time.Time
	verdict       chan error // takes one: nil once it is a member
}

// Errors for a machine that asks to be admitted.
var (
	errLobbyFull = errors.New("too many machines wait to be admitted: try again in a few minutes, or ask an admin for a ticket (`vizpeer invite`)")
	errAgain     = errors.New("this machine asked again by another connection")
	errTickets   = errors.New("too many tickets that are no good came from this machine's address: try again in a minute")
	errOften     = errors.New("this machine shows its ticket too often: try again in a minute")
	errDenied    = errors.New("an admin denied it")
)

func newLobby() *lobby {
	return &lobby{
		limit: rate.NewLimiter(askingRate, askingBurst), asked: newVisits(askingPause, maxWaitingFrom), tickets: newVisits(ticketPause, ticketBurst),
		redeems: pace{rate: redeemRate, burst: redeemBurst}, waiting: make(map[authz.PeerID]*visitor),
	}
}

// mayEnter tells whether one more from there may ask, before anything costs much.
func (l *lobby) mayEnter(from netip.Addr) error {
	if !l.asked.may(from, 1) || !l.limit.Allow() {
		return errLobbyFull
	}
	return nil
}

// enter lets v wait, in place of an earlier one of the same machine, until leave is
// called.
func (l *lobby) enter(v *visitor) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.waiting[v.Peer]
	from := 0
	for _, o := range l.waiting {
		if o != old && o.from == v.from {
			from++
		}
	}
	if old == nil && len(l.waiting) >= maxWaiting || from >= maxWaitingFrom {
		return nil, errLobbyFull
	}
	if old != nil {
		old.settle(errAgain)
	}
	l.waiting[v.Peer] = v
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.waiting[v.Peer] == v {
			delete(l.waiting, v.Peer)
		}
	}, nil
}

// find is the machine of that ID, if it waits.
func (l *lobby) find(id authz.PeerID) (*visitor, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.waiting[id]
	return v, ok
}

// settle tells the machine what became of it. The first word counts.
func (v *visitor) settle(err error) {
	select {
	case v.verdict <- err:
	default:
	}
}

// list are the machines that wait, the first to come first.
func (l *lobby) list() []httpapi.Applicant {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]httpapi.Applicant, 0, len(l.waiting))
	for _, v := range l.waiting {
		out = append(out, v.document())
	}
	slices.SortFunc(out, func(a, b httpapi.Applicant) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (v *visitor) document() httpapi.Applicant {
	return httpapi.Applicant{ID: v.Peer, Name: v.Name, Worker: v.Worker, Words: v.words, Addr: v.addr, Since: v.since.UTC()}
}

// newVisitor is the machine at the other end of c.
func newVisitor(c network.Conn, r joinRequest, words string) *visitor {
	v := &visitor{words: words, addr: hostPort(c.RemoteMultiaddr()), since: time.Now(), verdict: make(chan error, 1)}
	v.Peer, v.Name, v.Worker, v.KeyID = peerOf(c.RemotePeer()), r.Name, r.Worker, r.KeyID
	if r.KeyHash != nil {
		v.KeyHash = *r.KeyHash
	}
	v.from = addressOf(c.RemoteMultiaddr())
	return v
}

func peerOf(id peer.ID) authz.PeerID { return authz.PeerID(id.String()) }
