package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// A coordinator behind one router and a worker behind another, neither of which forwards
// a port, and a third machine on the internet: the newcomer joins through the third, the
// job is done, and so is another after the worker's router got another address.
func TestFarmBehindNATs(t *testing.T) {
	t.Parallel() // to the chaos
	for _, c := range []struct {
		name    string
		hostile bool
		direct  bool // whether the worker is connected with the coordinator directly in the end
	}{{"routers that defeat hole punching", true, false}, {"routers of homes", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			behindNATs(t, c.hostile, c.direct)
		})
	}
}

func behindNATs(t *testing.T, hostile, direct bool) {
	if testing.Short() {
		t.Skip("-short: it renders with real Blender and waits for real time-outs")
	}
	blend := sampleScene(t)
	n := newInternet(t)
	f := &realFarm{t: t, dir: t.TempDir()}
	began := time.Now()
	say := func(what string, args ...any) {
		t.Logf("%5.1f s: %s", time.Since(began).Seconds(), fmt.Sprintf(what, args...))
	}
	peer := func(name string) *realPeer {
		p := &realPeer{farm: f, dir: filepath.Join(f.dir, name), netns: n.space(name), more: []string{"--log-level", "debug"}}
		f.peers = append(f.peers, p)
		return p
	}
	n.router("homeA", "45.10.0.1", hostile)
	n.router("homeB", "45.10.0.2", hostile)
	desk, hub, box := peer("desk"), peer("hub"), peer("box")
	desk.more, hub.more = append(desk.more, "--no-work"), append(hub.more, "--no-work")

	// The farm begins where the third machine can reach its coordinator, which then goes
	// home.
	n.plug("desk", "45.10.0.30")
	n.plug("hub", "45.10.0.9")
	desk.run(nil, "init", "--name", "attic", "--machine", "desk")
	desk.up()
	var invited httpapi.Invited
	desk.run(&invited, "invite")
	hub.run(nil, "join", invited.Ticket, "--name", "hub")
	hub.up()
	online := func(names ...string) func() bool {
		return func() bool {
			var peers []httpapi.Peer
			if out, err := desk.try("peer", "ls"); err != nil || json.Unmarshal(out, &peers) != nil {
				return false
			}
			return !slices.ContainsFunc(names, func(name string) bool {
				return !slices.ContainsFunc(peers, func(p httpapi.Peer) bool { return p.Name == name && p.State != "offline" })
			})
		}
	}
	f.within(time.Minute, "the machine on the internet is online", online("hub"))
	desk.kill()
	hub.kill()
	n.unplug("desk")
	n.inside("desk", "homeB", "192.168.1.2")
	hub.up()
	desk.up()
	f.within(time.Minute, "it is online again", online("hub"))
	n.closed("hub", "45.10.0.2")
	say("the coordinator is behind its router")

	through := func(p *realPeer) bool {
		var s httpapi.Status
		p.run(&s, "status")
		return slices.ContainsFunc(s.Addrs, func(a string) bool { return strings.Contains(a, "/p2p-circuit") })
	}
	f.within(time.Minute, "the coordinator has a place with the relay", func() bool { return through(desk) })
	say("it is reached through the relay")
	desk.run(&invited, "invite")
	n.inside("box", "homeA", "192.168.1.3")
	box.run(nil, "join", invited.Ticket, "--name", "box")
	say("a newcomer behind another router joined")
	box.up()
	f.within(time.Minute, "the worker is online", online("hub", "box"))
	say("it is online")

	render := func(frames int) {
		t.Helper()
		out := filepath.Join(f.dir, fmt.Sprint("out", frames))
		var sent httpapi.Submitted
		desk.run(&sent, "render", blend, "--frames", fmt.Sprint("1-", frames), "--output", out)
		f.within(2*time.Minute, "the job is done", func() bool { return desk.job(sent.Job).State == lease.JobDone })
		require.Len(t, pictures(t, out), frames)
		for _, frame := range desk.job(sent.Job).Frames {
			require.Equal(t, box.id(), frame.Peer)
		}
		say("%d frames rendered behind one router are behind the other", frames)
	}
	render(2)
	how := func() string {
		var s httpapi.Status
		box.run(&s, "status")
		switch {
		case s.Leader == "":
			return "not at all"
		case s.LeaderVia == hub.id():
			return "through the relay"
		}
		return "directly"
	}
	want := map[bool]string{true: "directly", false: "through the relay"}[direct]
	f.within(time.Minute, "the worker is connected "+want, func() bool { return how() == want })
	t.Attr("connected", how())
	say("the worker is connected with the coordinator %s", how())

	n.renumber("homeA", "45.10.0.77")
	say("the worker's router has another address")
	f.within(2*time.Minute, "the worker is online again", online("hub", "box"))
	render(3)
	f.within(time.Minute, "the worker is connected "+want, func() bool { return how() == want })

	// Who is removed is relayed no more.
	circuits := func() int {
		var s httpapi.Status
		hub.run(&s, "status")
		return s.Reach.Circuits
	}
	say("%d connections are relayed", circuits())
	desk.run(nil, "peer", "revoke", "box")
	removed := time.Now()
	f.within(10*time.Second, "nothing is relayed for it any more", func() bool { return circuits() == 0 })
	say("%.1f s after it was removed nothing is relayed for the worker", time.Since(removed).Seconds())

	// Where a router forwards the port, that is found out.
	desk.kill()
	n.forward("homeB", "192.168.1.2")
	desk.up()
	f.within(time.Minute, "the coordinator is reached, and relays", func() bool {
		var s httpapi.Status
		desk.run(&s, "status")
		return s.Reach.From == lease.ReachPublic && s.Reach.Relays && slices.Contains(s.Reach.At, "/ip4/45.10.0.2/tcp/8788")
	})
	say("the coordinator's router forwards a port: it relays itself")
}

// id is the peer's ID.
func (p *realPeer) id() authz.PeerID {
	p.farm.t.Helper()
	var s httpapi.Status
	p.run(&s, "status")
	return s.Peer
}
