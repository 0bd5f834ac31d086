package peer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/tyler-smith/go-bip39/wordlists"

	"vizpeer/authz"
)

// Both ends of one connection show the same words. With a machine in between, which is
// another peer to each, they differ; and so they do with any other nonce.
func TestPhrase(t *testing.T) {
	machine, leader, between := aPeer(t), aPeer(t), aPeer(t)
	words := func(farm authz.FarmID, m, l libp2ppeer.ID, mn, ln string) string {
		t.Helper()
		w, err := phrase(farm, m, l, []byte(mn), []byte(ln))
		require.NoError(t, err)
		return w
	}
	one := words("farm", machine, leader, "m", "l")
	require.Equal(t, one, words("farm", machine, leader, "m", "l"))
	parts := strings.Split(one, "-")
	require.Len(t, parts, phraseSize)
	for _, p := range parts {
		require.Contains(t, wordlists.English, p)
	}
	for name, other := range map[string]string{
		"another farm":                words("form", machine, leader, "m", "l"),
		"in between, to the machine":  words("farm", machine, between, "m", "l"),
		"in between, to the leader":   words("farm", between, leader, "m", "l"),
		"the ends exchanged":          words("farm", leader, machine, "m", "l"),
		"another nonce of the one":    words("farm", machine, leader, "n", "l"),
		"another nonce of the other":  words("farm", machine, leader, "m", "k"),
		"a byte moved between nonces": words("farm", machine, leader, "ml", ""),
	} {
		require.NotEqual(t, one, other, name)
	}
}

func TestLobbyIsBounded(t *testing.T) {
	l := newLobby()
	hosts := make(map[string]netip.Addr)
	visit := func(id, from string) (*visitor, func(), error) {
		if _, known := hosts[from]; !known {
			hosts[from] = netip.AddrFrom4([4]byte{10, 0, 0, byte(len(hosts))})
		}
		v := &visitor{Approve: authz.Approve{Peer: authz.PeerID(id)}, from: hosts[from], verdict: make(chan error, 1)}
		leave, err := l.enter(v)
		return v, leave, err
	}
	first, leave, err := visit("p0", "host0")
	require.NoError(t, err)
	for i := 1; i < maxWaitingFrom; i++ {
		_, _, err := visit(fmt.Sprint("p", i), "host0")
		require.NoError(t, err)
	}
	_, _, err = visit("more", "host0")
	require.ErrorIs(t, err, errLobbyFull, "one address does not take all places")
	for i := maxWaitingFrom; i < maxWaiting; i++ {
		_, _, err := visit(fmt.Sprint("p", i), fmt.Sprint("host", i))
		require.NoError(t, err)
	}
	_, _, err = visit("more", "elsewhere")
	require.ErrorIs(t, err, errLobbyFull)
	require.Len(t, l.list(), maxWaiting)

	// One that asks again takes its own place, which its old connection does not give up.
	again, _, err := visit("p0", "host0")
	require.NoError(t, err)
	require.ErrorIs(t, <-first.verdict, errAgain)
	leave()
	v, ok := l.find("p0")
	require.True(t, ok)
	require.Same(t, again, v)

	// So much may come at once, from one address and from all.
	came := func(addr func(int) netip.Addr) (n int) {
		for i := range 1000 {
			if l.mayEnter(addr(i)) == nil {
				n++
			}
		}
		return n
	}
	require.Equal(t, maxWaitingFrom, came(func(int) netip.Addr { return hosts["host0"] }))
	rest := came(func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) })
	require.InDelta(t, askingBurst-maxWaitingFrom, rest, 2)
}

// Tickets that are no good are shown so often from one address and no more, by whatever
// IDs; those that are good count for nothing.
func TestBadTicketsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisits(ticketPause, ticketBurst)
		here, there := addressOf(multiaddr.StringCast("/ip4/10.0.0.1/tcp/1")), addressOf(multiaddr.StringCast("/ip6/2001:db8::1/udp/1/quic-v1"))
		require.Equal(t, there, addressOf(multiaddr.StringCast("/ip6/2001:db8::2/tcp/9")), "one machine's many addresses")
		for range 100 {
			require.True(t, v.may(here, 0))
		}
		for range ticketBurst {
			require.True(t, v.may(here, 1))
		}
		require.False(t, v.may(here, 0))
		require.True(t, v.may(there, 0))
		time.Sleep(ticketPause)
		require.True(t, v.may(here, 0))
	})
}

// FuzzJoin reads what machines and coordinators may say to each other before either is
// trusted, as both do.
func FuzzJoin(f *testing.F) {
	f.Add([]byte(`{"ask":"admission","name":"desk","worker":true,"key_id":"aaaaaaaaaaaaa","key_hash":"00","bound":"AAAA","nonce":"AAAA"}`))
	f.Add([]byte(`{"ticket":"vzt1aaaa","name":"desk"}`))
	f.Add([]byte(`{"code":"refused","reason":"so","leader":{"peer":"12D3Koo","addrs":["/ip4/1.2.3.4/tcp/1","x"]},"roster":{"version":1},"nonce":"AAAA","farm":"attic"}`))
	id := libp2ppeer.ID("\x00\x24\x08\x01\x12\x20" + strings.Repeat("x", 32))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r joinRequest
		if json.NewDecoder(bytes.NewReader(data)).Decode(&r) == nil {
			v := visitor{Approve: authz.Approve{Peer: peerOf(id), Name: r.Name, Worker: r.Worker, KeyID: r.KeyID}}
			if r.KeyHash != nil {
				v.KeyHash = *r.KeyHash
			}
			if v.check() == nil && len(v.Name) > authz.MaxName {
				t.Fatal("a name too long was taken")
			}
			_, _ = authz.ParseTicket(r.Ticket)
		}
		var a joinAnswer
		if json.NewDecoder(bytes.NewReader(data)).Decode(&a) == nil {
			_ = refusal(a)
			if a.Leader != nil {
				_ = info(*a.Leader)
			}
			_, _ = authz.ParseView(a.Roster, "")
		}
		var c authz.Charter
		if json.NewDecoder(bytes.NewReader(data)).Decode(&c) == nil {
			_ = c.Verify(c.ID())
		}
	})
}
