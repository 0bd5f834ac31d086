package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
)

// The charter protocol: two machines show each other the latest charter that each has
// seen, as JSON, and both follow the later one from then on. Whoever goes by one of a
// later epoch than the first opens it with everybody it is connected with, so that in a
// farm that was never recovered nobody speaks it.
//
// It answers strangers, too: the machine that a charter names need not have been a
// member before, and the charter is signed by the farm key.
const (
	charterProtocol = "/vizpeer/charter/1"
	charterTime     = 10 * time.Second
	maxCharter      = 4 << 10
)

const charterFile = "charter.json"

// charter reads the latest charter that this machine has seen; the zero one where it has
// seen none of a later epoch than the first.
func (d dataDir) charter(farm authz.FarmID) (c authz.Charter, err error) {
	err = d.readJSON(charterFile, &c)
	if errors.Is(err, fs.ErrNotExist) {
		return authz.Charter{}, nil
	}
	if err == nil {
		err = c.Verify(farm)
	}
	if err != nil {
		return authz.Charter{}, fmt.Errorf("%s is damaged: %w", d.path(charterFile), err)
	}
	return c, nil
}

// latest is the latest charter that this machine has seen; zero where it has seen none.
func (g *gate) latest() authz.Charter {
	if c := g.charter.Load(); c != nil {
		return *c
	}
	return authz.Charter{}
}

// hear takes a charter, from whomever it comes, and tells whether it is the farm's own
// and supersedes all that were heard before.
func (g *gate) hear(c authz.Charter) bool {
	if c.Verify(g.farm) != nil {
		return false
	}
	for {
		old := g.charter.Load()
		if old != nil && !c.Supersedes(*old) {
			return false
		}
		if g.charter.CompareAndSwap(old, &c) {
			return true
		}
	}
}

// named tells whether the farm key says that p holds the queue, in an epoch of which this
// machine has no roster yet.
func (g *gate) named(p authz.PeerID) bool {
	c, v := g.latest(), g.view()
	return c.Epoch > 1 && c.Coordinator == p && (v == nil || c.Supersedes(v.Charter()))
}

// stale tells whether a roster is of an epoch that is over.
func (g *gate) stale(v *authz.View) bool {
	return v != nil && g.latest().Supersedes(v.Charter())
}

// follow takes a charter: where it is a later one, this machine turns to whoever holds
// the queue by it, and tells others.
func (p *Peer) follow(c authz.Charter) {
	if !p.gate.hear(c) || c.Epoch <= 1 {
		return
	}
	p.slog.Warn("the farm has begun a new epoch", "epoch", c.Epoch, "coordinator", p.gate.name(peerIDOf(c.Coordinator)))
	if err := p.dir.writeJSON(charterFile, c, 0o600); err != nil {
		p.slog.Warn("the farm's charter could not be remembered", "err", err)
	}
	if p.coord != nil {
		p.coord.Follow()
	}
	if p.link != nil {
		p.link.Renounce()
	}
	if p.neighbours != nil {
		p.neighbours.Show()
	}
}

// peerIDOf is an ID as libp2p has it, "" for one that is none.
func peerIDOf(id authz.PeerID) peer.ID {
	p, err := peer.Decode(string(id))
	if err != nil {
		return ""
	}
	return p
}

// answerCharters answers the charter protocol until ctx ends.
func (p *Peer) answerCharters(ctx context.Context) error {
	p.host.SetStreamHandler(charterProtocol, func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(charterTime))
		var c authz.Charter
		if json.NewDecoder(io.LimitReader(s, maxCharter)).Decode(&c) != nil {
			_ = s.Reset()
			return
		}
		p.follow(c)
		_ = json.NewEncoder(s).Encode(p.gate.latest())
	})
	defer p.host.RemoveStreamHandler(charterProtocol)
	<-ctx.Done()
	return nil
}

// showCharter shows the latest charter to a machine that is connected, where it is of a
// later epoch than the first, and takes a later one.
func (p *Peer) showCharter(ctx context.Context, to peer.ID) error {
	mine := p.gate.latest()
	if mine.Epoch <= 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "only who is connected is shown it"), charterTime)
	defer cancel()
	s, err := p.host.NewStream(ctx, to, charterProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(charterTime))
	if err := json.NewEncoder(s).Encode(mine); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	var theirs authz.Charter
	if err := json.NewDecoder(io.LimitReader(s, maxCharter)).Decode(&theirs); err != nil {
		return err
	}
	p.follow(theirs)
	return nil
}
