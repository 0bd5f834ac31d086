package peer

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
)

// aPeer draws a peer ID.
func aPeer(t *testing.T) peer.ID {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	key, err := crypto.UnmarshalEd25519PublicKey(pub)
	require.NoError(t, err)
	id, err := peer.IDFromPublicKey(key)
	require.NoError(t, err)
	return id
}

// aRoster is of a farm with these members; version tells which replaces which.
// aFounder is the same for all versions of a roster: of two charters of one epoch, only one
// counts.
const aFounder authz.PeerID = "12D3KooWGtum5HJ2Hmz7DgYDKJqVAh7SqT7fHh6fu1bws4dvyZo6"

func aRoster(t *testing.T, key authz.FarmKey, version int, members ...authz.Member) *authz.View {
	doc, err := json.Marshal(map[string]any{
		"version": version, "name": "attic", "charter": key.SignCharter(aFounder, 1), "members": members, "keys": []authz.Key{},
	})
	require.NoError(t, err)
	v, err := authz.ParseView(doc, key.ID())
	require.NoError(t, err)
	return v
}

func aMember(p peer.ID, role authz.Role) authz.Member {
	return authz.Member{ID: authz.PeerID(p.String()), Name: "box", Worker: true, Role: role, User: "user", JoinedAt: time.Unix(1, 0).UTC()}
}

// leaderStub answers questions as a leader would.
type leaderStub struct {
	allow func(coord.May) bool
	err   error
	asked int
}

func (l *leaderStub) ask(ctx context.Context, up coord.Up) (coord.Ack, error) {
	l.asked++
	switch {
	case l.err != nil:
		return coord.Ack{}, l.err
	case l.allow(*up.May):
		return coord.Ack{}, nil
	}
	return coord.Ack{Code: coord.CodeDenied}, nil
}

func TestRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := authz.NewFarmKey(rand.Reader)
		require.NoError(t, err)
		node, admin, chief, stranger := aPeer(t), aPeer(t), aPeer(t), aPeer(t)
		coordinator := aMember(chief, authz.Node)
		coordinator.Coordinator = true
		both := []authz.Member{aMember(node, authz.Node), aMember(admin, authz.Admin), coordinator}
		g := newGate("self", key.ID(), aRoster(t, key, 1, byID(both)...))
		r := newRights(g)
		root, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
		require.NoError(t, err)
		scope := lease.ProjectOf("j").String()
		may := func(p peer.ID, scope string) bool {
			yes, err := r.MayFetch(t.Context(), p, root, scope)
			if err != nil {
				require.False(t, yes, "an error is a no")
			}
			return yes
		}
		require.False(t, may(node, scope), "there is nobody to ask yet")
		require.True(t, may(admin, ""), "the roster says enough")
		require.True(t, may(chief, ""))

		l := &leaderStub{allow: func(m coord.May) bool { return m.Peer == authz.PeerID(node.String()) && m.By == "j" }}
		r.open(nil, l.ask)
		require.True(t, may(node, scope))
		require.True(t, may(node, scope))
		require.Equal(t, 1, l.asked, "an answer is remembered")
		require.False(t, may(stranger, scope))
		require.Equal(t, 1, l.asked, "nobody is asked about a stranger")
		require.False(t, may(node, string(make([]byte, 300))))
		require.Equal(t, 1, l.asked)

		// A refusal may be out of date in a moment, a yes later.
		require.False(t, may(node, "k"))
		require.False(t, may(node, "k"))
		require.Equal(t, 2, l.asked)
		time.Sleep(noLasts)
		require.False(t, may(node, "k"))
		require.Equal(t, 3, l.asked)
		time.Sleep(yesLasts)
		l.err = errNoLeader
		require.False(t, may(node, scope), "nobody leads")
		l.err = nil
		require.True(t, may(node, scope))

		// What a job's end or a new roster may change is asked anew.
		asked := l.asked
		r.forget("other")
		require.True(t, may(node, scope))
		require.Equal(t, asked, l.asked)
		r.forget("j")
		require.True(t, may(node, scope))
		require.Equal(t, asked+1, l.asked)
		removed, newer := g.update(aRoster(t, key, 2, byID(both[1:])...))
		require.True(t, newer)
		require.Equal(t, []peer.ID{node}, removed)
		require.False(t, may(node, scope), "the answer that is remembered helps no one who is no member")
	})
}

// A member that asks for ever other content costs the leader so many questions a
// second and no more, and this machine so much memory.
func TestRightsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := authz.NewFarmKey(rand.Reader)
		require.NoError(t, err)
		node := aPeer(t)
		r := newRights(newGate("self", key.ID(), aRoster(t, key, 1, aMember(node, authz.Node))))
		l := &leaderStub{allow: func(coord.May) bool { return false }}
		r.open(nil, l.ask)
		root, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
		require.NoError(t, err)
		began := time.Now()
		const questions = 2 * maxAnswers
		for i := range questions {
			yes, err := r.MayFetch(t.Context(), node, root, fmt.Sprint("j", i))
			require.NoError(t, err)
			require.False(t, yes)
		}
		require.Equal(t, questions, l.asked)
		require.GreaterOrEqual(t, time.Since(began), (questions-askBurst)/askRate*time.Second)
		require.LessOrEqual(t, len(r.answers), maxAnswers)
	})
}

// Many that ask at once cost this machine no more of the leader's patience than one
// machine has, or its renewals would come too late.
func TestRightsOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := authz.NewFarmKey(rand.Reader)
		require.NoError(t, err)
		var nodes []peer.ID
		var members []authz.Member
		for range 10 {
			nodes = append(nodes, aPeer(t))
			members = append(members, aMember(nodes[len(nodes)-1], authz.Node))
		}
		r := newRights(newGate("self", key.ID(), aRoster(t, key, 1, byID(members)...)))
		r.open(nil, (&leaderStub{allow: func(coord.May) bool { return false }}).ask)
		root, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
		require.NoError(t, err)
		began := time.Now()
		for i := range askBurst {
			for _, p := range nodes {
				_, err := r.MayFetch(t.Context(), p, root, fmt.Sprint("j", i))
				require.NoError(t, err)
			}
		}
		require.GreaterOrEqual(t, time.Since(began), time.Duration(len(nodes)*askBurst-askAll*askRate-1)*time.Second/(askAll*askRate))
	})
}

func byID(members []authz.Member) []authz.Member {
	return slices.SortedFunc(slices.Values(members), func(a, b authz.Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
}

// What an admin offers, every machine that renders may have, by the roster alone; no
// other may, and nothing that is offered no more.
func TestRightToAnOfferedBlender(t *testing.T) {
	key, err := authz.NewFarmKey(rand.Reader)
	require.NoError(t, err)
	worker, idler, stranger := aPeer(t), aPeer(t), aPeer(t)
	other := aMember(idler, authz.Viewer)
	other.Worker = false
	root, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
	require.NoError(t, err)
	roster := func(version int, offers ...authz.Offer) *authz.View {
		doc, err := json.Marshal(map[string]any{
			"version": version, "name": "attic", "charter": key.SignCharter(aFounder, 1),
			"members": byID([]authz.Member{aMember(worker, authz.Node), other}), "keys": []authz.Key{}, "offers": offers,
		})
		require.NoError(t, err)
		v, err := authz.ParseView(doc, key.ID())
		require.NoError(t, err)
		return v
	}
	g := newGate("self", key.ID(), roster(1, authz.Offer{Root: root.String(), Name: "Blender", Version: "4.2.3", OS: "linux", Arch: "amd64", Files: 1, Size: 1, By: "root"}))
	r := newRights(g)
	leader := &leaderStub{allow: func(coord.May) bool { return false }}
	r.open(nil, leader.ask)
	may := func(p peer.ID) bool {
		yes, err := r.MayFetch(t.Context(), p, root, "")
		require.NoError(t, err)
		return yes
	}
	require.True(t, may(worker))
	require.Zero(t, leader.asked)
	require.False(t, may(idler))
	require.False(t, may(stranger))
	_, newer := g.update(roster(2))
	require.True(t, newer)
	require.False(t, may(worker))
}
