package peer

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// rosterOf is the roster of a farm founded by the first of the machines, as peers have it.
func rosterOf(t *testing.T, ids ...authz.PeerID) *authz.View { return founded(t, ids...).View() }

// founded is that roster itself; its admin is called admin.
func founded(t *testing.T, ids ...authz.PeerID) *authz.Roster {
	farm, err := authz.NewFarmKey(rand.Reader)
	require.NoError(t, err)
	admin, err := authz.NewAccount(rand.Reader, "admin", authz.Admin, "a long enough password")
	require.NoError(t, err)
	ticket, err := authz.NewTicket(rand.Reader, farm.ID(), authz.Node, false, nil)
	require.NoError(t, err)
	now := time.Now()
	_, operator, err := authz.NewKey(rand.Reader, "operator", authz.Operator, now)
	require.NoError(t, err)
	_, own, err := authz.NewKey(rand.Reader, "admin", authz.Admin, now)
	require.NoError(t, err)
	r := authz.NewRoster()
	_, err = r.Apply(authz.Command{At: now, Found: &authz.Found{
		Farm: farm.ID(), Name: "attic", Charter: farm.SignCharter(ids[0], 1), Founder: ids[0], FounderName: "hub",
		Admin: admin, NodeTicket: ticket.Record(len(ids), now.Add(time.Hour), "admin"), OperatorKey: operator, MachineKey: own,
	}})
	require.NoError(t, err)
	for _, id := range ids[1:] {
		_, err = r.Apply(authz.Command{At: now, Redeem: &authz.Redeem{Ticket: ticket.Hash(), Peer: id, Name: "box" + string(id[len(id)-6:]), Worker: true}})
		require.NoError(t, err)
	}
	return r
}

// Two members that are connected with a third alone reach each other by ID; a
// stranger in touch with that third learns nothing.
func TestMembersFindEachOtherThroughOthers(t *testing.T) {
	names := []string{"hub", "box1", "box2", "stranger"}
	keys, ids := map[string]crypto.PrivKey{}, map[string]libp2ppeer.ID{}
	for _, name := range names {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		keys[name] = key
		ids[name], err = libp2ppeer.IDFromPrivateKey(key)
		require.NoError(t, err)
	}
	id := func(name string) authz.PeerID { return authz.PeerID(ids[name].String()) }
	members := rosterOf(t, id("hub"), id("box1"), id("box2"))
	hosts := map[string]host.Host{}
	for _, name := range names {
		view := members
		if name == "stranger" {
			view = rosterOf(t, id("stranger"), id("hub"), id("box1"), id("box2")) // in its own eyes all are friends
		}
		g := newGate(id(name), view.Farm(), view)
		h, err := newHost(keys[name], g, []string{"/ip4/127.0.0.1/tcp/0"})
		require.NoError(t, err)
		t.Cleanup(func() { _ = h.Close() })
		known, end, err := routed(h, g)
		require.NoError(t, err)
		t.Cleanup(func() { _ = end() })
		hosts[name] = known
	}
	hub := libp2ppeer.AddrInfo{ID: ids["hub"], Addrs: hosts["hub"].Addrs()}
	for _, name := range names[1:] {
		require.NoError(t, hosts[name].Connect(t.Context(), hub))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.Eventually(t, func() bool {
		return hosts["box1"].Connect(ctx, libp2ppeer.AddrInfo{ID: ids["box2"]}) == nil
	}, 20*time.Second, 50*time.Millisecond, "the table fills as members are identified")
	require.Equal(t, network.Connected, hosts["box1"].Network().Connectedness(ids["box2"]))

	require.Error(t, hosts["stranger"].Connect(ctx, libp2ppeer.AddrInfo{ID: ids["box2"]}), "the stranger was told where a member listens")
	require.Empty(t, hosts["stranger"].Peerstore().Addrs(ids["box2"]))
}
