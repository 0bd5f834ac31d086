package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
)

// How long an answer of the leader's is gone by. A refusal is asked about again
// soon: the right to something may come a moment after the wish for it.
const (
	yesLasts = 30 * time.Second
	noLasts  = time.Second
	// maxAnswers bounds how many are remembered.
	maxAnswers = 8192
	// askTime bounds how long the leader may take.
	askTime = 5 * time.Second
)

// One member may cause this many questions in a second, and in a burst: as many
// as a machine needs that keeps every frame of a fast job. One that asks for more
// waits.
const (
	askRate  = 100
	askBurst = 200
	// All together may cause this many times as many: fewer than the leader answers
	// one machine, so that those who ask for much do not hold up its renewals.
	askAll = 4
)

// rights decides who may fetch what from this machine. Whether a member is an
// admin's or a coordinator, and which Blenders are offered, is known here; all else the leader knows, and is asked.
// Without a leader the answer is no.
type rights struct {
	gate *gate

	mu      sync.Mutex
	coord   *coord.Coordinator // nil where this machine does not hold the queue
	ask     func(context.Context, coord.Up) (coord.Ack, error)
	answers map[question]verdictUntil
	askers  map[authz.PeerID]*rate.Limiter
	all     *rate.Limiter // of all askers
	epoch   uint64        // counts the times at which answers were forgotten
}

// question is one that a peer causes by asking for content.
type question struct {
	peer  authz.PeerID
	root  string
	scope string
}

// verdictUntil is an answer and when it is to be asked for anew.
type verdictUntil struct {
	yes   bool
	until time.Time
}

// newRights goes by g's roster. Until open is called the leader is not asked.
func newRights(g *gate) *rights {
	return &rights{
		gate: g, answers: make(map[question]verdictUntil), askers: make(map[authz.PeerID]*rate.Limiter),
		all: rate.NewLimiter(askAll*askRate, askAll*askRate),
	}
}

// open says where to ask: c is nil where this machine does not hold the queue.
func (r *rights) open(c *coord.Coordinator, ask func(context.Context, coord.Up) (coord.Ack, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.coord, r.ask = c, ask
}

// MayFetch tells whether a peer may have all content below root. scope is the
// peer's hint at where its right is to be found, a [lease.Scope] as text; it is
// not believed. It may wait for the leader. An error means no.
func (r *rights) MayFetch(ctx context.Context, p peer.ID, root cid.Cid, scope string) (bool, error) {
	q := question{authz.PeerID(p.String()), root.String(), scope}
	m, member := r.member(q.peer)
	switch {
	case !member || len(scope) > lease.MaxScope:
		return false, nil
	case m.Role == authz.Admin || m.Coordinator:
		return true, nil
	case m.Worker && r.offered(q.root):
		return true, nil
	}
	r.mu.Lock()
	here, ask := r.coord, r.ask
	r.mu.Unlock()
	if ask == nil {
		return false, errNoLeader
	}
	if here != nil {
		yes, err := here.MayFetch(q.peer, q.root, q.scope)
		var elsewhere coord.ErrNotLeader
		if !errors.As(err, &elsewhere) {
			return yes, err
		}
	}
	yes, asker, epoch, known := r.known(q)
	if known {
		return yes, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := asker.Wait(ctx); err != nil {
		return false, fmt.Errorf("%s asks for too much at once: %w", q.peer.Short(), err)
	}
	if err := r.all.Wait(ctx); err != nil {
		return false, fmt.Errorf("all others together ask for too much at once: %w", err)
	}
	ack, err := ask(ctx, coord.Up{May: &coord.May{Peer: q.peer, Root: q.root, By: q.scope}})
	switch {
	case err != nil:
		return false, fmt.Errorf("ask the leader whether %s may have %s: %w", q.peer.Short(), q.root, err)
	case ack.Code != "" && ack.Code != coord.CodeDenied:
		return false, fmt.Errorf("ask the leader whether %s may have %s: %s", q.peer.Short(), q.root, ack.Reason)
	}
	yes = ack.Code == ""
	r.note(q, yes, epoch)
	// The roster may have changed while the leader was asked.
	_, member = r.member(q.peer)
	return yes && member, nil
}

// offered tells whether the content is a Blender that an admin offers to all machines
// that render.
func (r *rights) offered(root string) bool {
	v := r.gate.view()
	if v == nil {
		return false
	}
	_, ok := v.Offered(root)
	return ok
}

func (r *rights) member(p authz.PeerID) (authz.Member, bool) {
	v := r.gate.view()
	if v == nil {
		return authz.Member{}, false
	}
	return v.Acting(p)
}

// known looks for an answer that is still good, and otherwise for what bounds the
// peer's questions.
func (r *rights) known(q question) (yes bool, asker *rate.Limiter, epoch uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, found := r.answers[q]; found && time.Now().Before(a.until) {
		return a.yes, nil, r.epoch, true
	}
	if asker = r.askers[q.peer]; asker == nil {
		asker = rate.NewLimiter(askRate, askBurst)
		r.askers[q.peer] = asker // members only, and forgotten with each change of them
	}
	return false, asker, r.epoch, false
}

// note remembers an answer, unless what it rests on may have changed since the
// question.
func (r *rights) note(q question, yes bool, epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch != r.epoch {
		return
	}
	now := time.Now()
	if len(r.answers) >= maxAnswers {
		for old, a := range r.answers {
			if now.After(a.until) || len(r.answers) > maxAnswers*3/4 {
				delete(r.answers, old)
			}
		}
	}
	lasts := noLasts
	if yes {
		lasts = yesLasts
	}
	r.answers[q] = verdictUntil{yes, now.Add(lasts)}
}

// forget drops the answers about one job's content, or all where job is "": they
// are to be asked for anew.
func (r *rights) forget(job lease.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	if job == "" {
		clear(r.answers)
		clear(r.askers)
		return
	}
	for q := range r.answers {
		if s, ok := lease.ParseScope(q.scope); !ok || s.Job == job {
			delete(r.answers, q)
		}
	}
}
