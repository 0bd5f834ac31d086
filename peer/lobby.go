package peer

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// How many machines without a ticket may wait at once, in all and from one address,
// how many may come in a second, and in a burst, and how long each may wait.
const (
	maxWaiting     = 32
	maxWaitingFrom = 8
	askingRate     = 1
	askingBurst    = 16
	waitingTime    = 30 * time.Minute
)

// lobby is where machines without a ticket wait until an admin lets them in. It lives
// in the leader's memory alone: strangers cost no place in the log.
type lobby struct {
	limit *rate.Limiter // of those who come

	mu      sync.Mutex
	waiting map[authz.PeerID]*visitor
}

// visitor is a machine that waits.
type visitor struct {
	authz.Approve // what an admin's word would make of it; no Role and no By yet
	words         string
	addr          string // of its connection
	from          string // the host of that
	since         time.Time
	verdict       chan error // takes one: nil once it is a member
}

// Errors for a machine that asks to be admitted.
var (
	errLobbyFull = errors.New("too many machines wait to be admitted: try again in a few minutes, or ask an admin for a ticket (`vizpeer invite`)")
	errAgain     = errors.New("this machine asked again by another connection")
	errDenied    = errors.New("an admin denied it")
)

func newLobby() *lobby {
	return &lobby{limit: rate.NewLimiter(askingRate, askingBurst), waiting: make(map[authz.PeerID]*visitor)}
}

// mayEnter tells whether one more may ask, before anything costs much.
func (l *lobby) mayEnter() error {
	if !l.limit.Allow() {
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
	v.from = v.addr
	if ip, err := manet.ToIP(c.RemoteMultiaddr()); err == nil {
		v.from = ip.String()
	}
	return v
}

func peerOf(id peer.ID) authz.PeerID { return authz.PeerID(id.String()) }
