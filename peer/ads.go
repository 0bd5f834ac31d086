package peer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"vizpeer/authz"
	"vizpeer/lease"
)

// maxAd bounds one ad, in bytes. Gossip that is too large is dropped without a
// word, so it is checked before it is sent.
const maxAd = 16 << 10

// adPeriod is how often a peer says what it can do.
const adPeriod = 15 * time.Second

// ads tells the farm what this machine can do, and hears what others can, over
// gossip. Ads are signed by the machine they are about and believed only of
// members.
type ads struct {
	topic *pubsub.Topic
	sub   *pubsub.Subscription
	self  peer.ID
	slog  *slog.Logger
	heard func(authz.PeerID, ad)
	nudge chan struct{} // something changed that others should hear of
	now   chan struct{} // likewise, and that cannot wait

	mu   sync.Mutex
	mine ad // written by send alone
}

// ad is what a peer says of itself: what it can do, what it holds, and that it leads.
type ad struct {
	lease.Capability
	Holds lease.Holdings `json:"holds,omitempty"`
	// Leads is the term in which the machine leads the queue; 0 where it does not. That
	// somebody leads anew, others may hear from nobody else.
	Leads uint64 `json:"leads,omitempty"`
	// Epoch is the farm's that the machine goes by, whose terms those are.
	Epoch uint64 `json:"epoch,omitempty"`
}

func (a ad) validate() error { return errors.Join(a.Capability.Validate(), a.Holds.Validate()) }

// encode writes the ad, without the projects used longest ago where it would be
// too large with them.
func (a ad) encode() ([]byte, error) {
	for {
		b, err := json.Marshal(a)
		if err != nil || len(b) <= maxAd {
			return b, err
		}
		if len(a.Holds) == 0 {
			return nil, fmt.Errorf("it has %d bytes, more than the %d allowed: give it fewer labels or Blender builds", len(b), maxAd)
		}
		a.Holds = a.Holds[:len(a.Holds)/2]
	}
}

// openAds joins the farm's gossip. It lives until ctx ends.
func openAds(ctx context.Context, h host.Host, g *gate, farm authz.FarmID, can lease.Capability, log *slog.Logger, heard func(authz.PeerID, ad)) (*ads, error) {
	often, passed := pace{rate: adRate, burst: adBurst}, pace{rate: passRate, burst: passBurst}
	var heardLast order
	ps, err := pubsub.NewGossipSub(ctx, h,
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMaxMessageSize(2*maxAd),
		pubsub.WithPeerFilter(func(p peer.ID, _ string) bool { return g.member(p) }),
		pubsub.WithAppSpecificRpcInspector(func(p peer.ID, rpc *pubsub.RPC) error {
			if !g.member(p) || !passed.may(p, weight(rpc)) {
				return errHushed
			}
			return nil
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	name := "/vizpeer/" + string(farm) + "/ads/1"
	err = ps.RegisterTopicValidator(name, func(_ context.Context, _ peer.ID, m *pubsub.Message) bool {
		if len(m.Data) > maxAd || m.GetFrom() != h.ID() && (!g.member(m.GetFrom()) || !often.may(m.GetFrom(), 1)) {
			return false
		}
		var said ad
		if err := json.Unmarshal(m.Data, &said); err != nil || said.validate() != nil {
			return false
		}
		if !heardLast.newer(m.GetFrom(), m.GetSeqno(), time.Now()) {
			return false
		}
		m.ValidatorData = said
		return true
	})
	if err != nil {
		return nil, err
	}
	topic, err := ps.Join(name)
	if err != nil {
		return nil, fmt.Errorf("join the farm's gossip: %w", err)
	}
	sub, err := topic.Subscribe()
	if err != nil {
		return nil, fmt.Errorf("join the farm's gossip: %w", err)
	}
	return &ads{topic: topic, sub: sub, self: h.ID(), slog: log, heard: heard, nudge: make(chan struct{}, 1), now: make(chan struct{}, 1), mine: ad{Capability: can}}, nil
}

// One member may say so much of itself in a second, and in a burst: twice what an
// honest one does. What is more is dropped, here and on the way to others.
const (
	adRate  = 2
	adBurst = 10
)

// One neighbour may pass on so much in a second, and in a burst, of what all members
// say, and of the words by which gossip arranges itself: checking what it passes on costs
// more than saying it. What is more is not looked at.
const (
	passRate  = 1000
	passBurst = 2 * authz.MaxMembers
)

// order keeps anybody from saying again what a member said before: each gives its ads
// growing numbers. After forgotten, any number is good: a machine whose clock was set back
// begins with lower ones.
type order struct {
	mu   sync.Mutex
	last map[peer.ID]numbered // of members; who is none any more costs a few bytes
}

type numbered struct {
	number uint64
	at     time.Time
}

const forgotten = 8 * adPeriod

// newer tells whether p has not said that, or something later, before.
func (o *order) newer(p peer.ID, number []byte, now time.Time) bool {
	if len(number) != 8 {
		return false
	}
	n := binary.BigEndian.Uint64(number)
	o.mu.Lock()
	defer o.mu.Unlock()
	if last, ok := o.last[p]; ok && n <= last.number && now.Sub(last.at) < forgotten {
		return false
	}
	if o.last == nil {
		o.last = make(map[peer.ID]numbered)
	}
	o.last[p] = numbered{n, now}
	return true
}

// errHushed drops what a neighbour sent.
var errHushed = errors.New("it says too much, or is no member")

// weight is how much there is to look at in what a neighbour sent.
func weight(rpc *pubsub.RPC) int {
	n := 1 + len(rpc.GetPublish()) + len(rpc.GetSubscriptions())
	c := rpc.GetControl()
	for _, ids := range c.GetIhave() {
		n += len(ids.GetMessageIDs())
	}
	for _, ids := range c.GetIwant() {
		n += len(ids.GetMessageIDs())
	}
	return n + len(c.GetGraft()) + len(c.GetPrune()) + len(c.GetIdontwant())
}

// Can is what this machine says of itself.
func (a *ads) Can() lease.Capability {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mine.Capability
}

// Holds is what this machine says that it holds.
func (a *ads) Holds() lease.Holdings {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mine.Holds
}

// Nudge asks for an ad soon: something changed.
func (a *ads) Nudge() {
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

// Now asks for an ad at once.
func (a *ads) Now() {
	select {
	case a.now <- struct{}{}:
	default:
	}
}

// Run sends and hears ads until ctx ends. refresh updates what changes by itself,
// before each is sent; leads is the term that this machine leads.
func (a *ads) Run(ctx context.Context, refresh func(*lease.Capability), holds func(context.Context) lease.Holdings, leads func() (term, epoch uint64)) error {
	defer a.topic.Close()
	defer a.sub.Cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.send(ctx, refresh, holds, leads) })
	g.Go(func() error { return a.hear(ctx) })
	return g.Wait()
}

// adPause is how long a change waits for others to be told with it.
const adPause = time.Second

// adRepeats is how often what cannot wait is said again, each [adPause]: gossip reaches a
// machine that has just connected, or had lost a neighbour, only from the next time on.
const adRepeats = 8

// send says what this machine can do and what it holds, every [adPeriod] and soon
// after a change.
func (a *ads) send(ctx context.Context, refresh func(*lease.Capability), holds func(context.Context) lease.Holdings, leads func() (term, epoch uint64)) error {
	tick := time.NewTicker(adPeriod)
	defer tick.Stop()
	repeats := 0
	for {
		mine := ad{Capability: a.Can(), Holds: holds(ctx)}
		mine.Leads, mine.Epoch = leads()
		refresh(&mine.Capability) // it may ask the disk: not under the lock
		a.mu.Lock()
		a.mine = mine
		a.mu.Unlock()
		a.heard(authz.PeerID(a.self.String()), mine)
		b, err := mine.encode()
		if err == nil {
			err = a.topic.Publish(ctx, b)
		}
		if err != nil && ctx.Err() == nil {
			a.slog.Warn("this machine's description could not be sent", "err", err)
		}
		var again <-chan time.Time
		if repeats > 0 {
			repeats--
			again = time.After(adPause)
		}
		select {
		case <-tick.C:
			continue
		case <-again:
			continue
		case <-a.now:
			repeats = adRepeats
			continue
		case <-a.nudge:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(adPause):
		case <-a.now:
			repeats = adRepeats
		case <-ctx.Done():
			return nil
		}
	}
}

// hear takes the ads of others, which the topic's validator has checked.
func (a *ads) hear(ctx context.Context) error {
	for {
		m, err := a.sub.Next(ctx)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, pubsub.ErrSubscriptionCancelled) {
				return nil
			}
			return fmt.Errorf("hear the farm's gossip: %w", err)
		}
		if said, ok := m.ValidatorData.(ad); ok && m.GetFrom() != a.self {
			a.heard(authz.PeerID(m.GetFrom().String()), said)
		}
	}
}
