package coord

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/multiformats/go-multihash"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// desk is a leader whose members are played by the test.
type desk struct {
	*Coordinator
	t      *testing.T
	ticket authz.Hash
	chief  authz.PeerID            // the leader's own machine, which has no stream unless it is joined
	stores map[authz.PeerID]string // what members say of their stores
	offers map[authz.PeerID]bool   // members that say that they have results to offer
}

// newDesk founds a farm that leads itself; it must be called inside a bubble.
func newDesk(t *testing.T) *desk {
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableIdentifyAddressDiscovery())
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	d := &desk{t: t, chief: authz.PeerID(h.ID().String()), stores: make(map[authz.PeerID]string), offers: make(map[authz.PeerID]bool)}
	genesis := foundation(t, d.chief).Roster
	ticket, err := authz.NewTicket(rngOf("ticket"), genesis.Found.Farm, authz.Node, false, nil)
	require.NoError(t, err)
	d.ticket = ticket.Record(100, time.Now().Add(24*time.Hour), "admin").Hash
	d.Coordinator, err = Open(h, genesis, Machine{
		Coordinates: func(authz.PeerID) bool { return true }, Roster: func(*authz.View) {}, Leads: func() {}, Moved: func() {},
	}, Config{Dir: t.TempDir(), NoSync: true})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
		require.NoError(t, d.Close())
	})
	d.within(10*time.Second, "it leads", d.Leading)
	require.NoError(t, d.Admit(t.Context(), authz.Command{At: time.Now(), Mint: &authz.Mint{Ticket: ticket.Record(100, time.Now().Add(24*time.Hour), "admin")}}))
	return d
}

// within waits for a condition in simulated time.
func (d *desk) within(limit time.Duration, what string, holds func() bool) {
	d.t.Helper()
	for end := time.Now().Add(limit); !holds(); {
		if time.Now().After(end) {
			d.t.Fatalf("it did not happen within %s: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// part is one member, as the test plays it.
type part struct {
	d    *desk
	id   authz.PeerID
	conn *Conn
	stop context.CancelFunc

	mu    sync.Mutex
	seq   uint64
	acks  map[uint64]chan Ack
	downs []Down
	over  map[lease.ID]bool // attempts that it has ended
}

// machine is what every member of these tests can do, with that many slots.
func machine(slots int) lease.Capability {
	return lease.Capability{Slots: slots, FreeDisk: 100 << 30, Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4}}}}
}

// join admits a machine, unless it is a member already, and opens its stream.
func (d *desk) join(id authz.PeerID, can lease.Capability, holds ...lease.Holding) *part {
	d.t.Helper()
	if _, member := d.Roster().Member(id); !member {
		require.NoError(d.t, d.Admit(d.t.Context(), authz.Command{At: time.Now(), Redeem: &authz.Redeem{Ticket: d.ticket, Peer: id, Name: string(id), Worker: true}}))
	}
	here, there := net.Pipe()
	ctx, stop := context.WithCancel(d.t.Context())
	p := &part{d: d, id: id, conn: NewConn(here), stop: stop, acks: make(map[uint64]chan Ack), over: make(map[lease.ID]bool)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = d.ServeMember(ctx, there, id)
	}()
	d.t.Cleanup(func() { stop(); <-served })
	require.NoError(d.t, p.conn.Send(Up{Hello: &Hello{Can: can, Holds: holds, Addrs: []string{"/ip4/10.0.0.1/tcp/1"}, Store: d.stores[id], Offers: d.offers[id]}}))
	var down Down
	require.NoError(d.t, p.conn.Receive(&down))
	require.NotNil(d.t, down.Welcome)
	require.Equal(d.t, d.offers[id], down.Welcome.Awaits)
	go p.read()
	go p.renew(ctx)
	return p
}

func (p *part) read() {
	for {
		var d Down
		if p.conn.Receive(&d) != nil {
			return
		}
		p.mu.Lock()
		if d.Ack == nil {
			p.downs = append(p.downs, d)
		} else if c := p.acks[d.Ack.Seq]; c != nil {
			c <- *d.Ack
		}
		p.mu.Unlock()
	}
}

func (p *part) renew(ctx context.Context) {
	for ctx.Err() == nil {
		var r Renew
		for _, o := range p.orders() {
			if !p.ended(o.Lease) {
				r.Leases = append(r.Leases, Running{Lease: o.Lease})
			}
		}
		if p.conn.Send(Up{Renew: &r}) != nil {
			return
		}
		select {
		case <-time.After(Renewal):
		case <-ctx.Done():
		}
	}
}

// leave closes the member's stream.
func (p *part) leave() {
	p.stop()
	synctest.Wait()
}

// says sends a report or a question and returns its answer.
func (p *part) says(up Up) Ack {
	p.d.t.Helper()
	p.mu.Lock()
	p.seq++
	up.Seq = p.seq
	answer := make(chan Ack, 1)
	p.acks[up.Seq] = answer
	switch {
	case up.Complete != nil:
		p.over[up.Complete.Lease] = true
	case up.Release != nil:
		p.over[up.Release.Lease] = true
	}
	p.mu.Unlock()
	require.NoError(p.d.t, p.conn.Send(up))
	select {
	case a := <-answer:
		return a
	case <-time.After(10 * time.Second):
		p.d.t.Fatal("no answer")
		return Ack{}
	}
}

func (p *part) ended(id lease.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over[id]
}

func (p *part) heard() []Down {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.downs)
}

// orders lists the attempts that it was asked to make.
func (p *part) orders() (out []Order) {
	for _, d := range p.heard() {
		if d.Grant != nil {
			out = append(out, *d.Grant)
		}
	}
	return out
}

// keeps lists what it was asked to keep.
func (p *part) keeps() (out []Keep) {
	for _, d := range p.heard() {
		if d.Keep != nil {
			out = append(out, *d.Keep)
		}
	}
	return out
}

// asked counts the orders to keep that content.
func (p *part) asked(cid string) (n int) {
	for _, k := range p.keeps() {
		if k.CID == cid {
			n++
		}
	}
	return n
}

// ahead lists the projects that it was told to fetch ahead.
func (p *part) ahead() (out []string) {
	for _, d := range p.heard() {
		if d.Prefetch != nil {
			out = append(out, d.Prefetch.CID)
		}
	}
	return out
}

// aCID is the CID of some content, the same for the same number.
func aCID(n int) string {
	h, err := multihash.Sum(fmt.Append(nil, "content ", n), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, h).String()
}

// submit submits a job of that many frames, one a task, from a machine.
func (d *desk) submit(from authz.PeerID, project string, frames int32, change ...func(*lease.Spec)) lease.JobID {
	d.t.Helper()
	spec := lease.Spec{
		Name: "shot", Owner: "ann", Project: project, Blend: "files/shot.blend", Frames: lease.Frames{{First: 1, Last: frames, Step: 1}}, Chunk: 1,
		Tier: lease.Normal, Replicas: 2, Submitter: from,
	}
	for _, c := range change {
		c(&spec)
	}
	id, _, err := d.Submit(d.t.Context(), lease.Submit{Spec: spec})
	require.NoError(d.t, err)
	synctest.Wait()
	return id
}

// render completes the order with a frame of that content.
func (p *part) render(o Order, cid string) {
	p.d.t.Helper()
	f := lease.Result{Frame: o.Frames[0], CID: cid, Name: fmt.Sprintf("%04d.png", o.Frames[0]), Size: 1}
	require.Empty(p.d.t, p.says(Up{Complete: &lease.Complete{Report: o.Report, Frames: []lease.Result{f}}}).Code)
	synctest.Wait()
}

// holds reports that it keeps a frame.
func (p *part) holds(job lease.JobID, frame int32, cid string) {
	p.d.t.Helper()
	require.Empty(p.d.t, p.says(Up{Hold: &lease.Hold{Job: job, Frame: frame, CID: cid}}).Code)
	synctest.Wait()
}

// holders lists who holds a job's first frame.
func (d *desk) holders(id lease.JobID) (out []authz.PeerID) {
	d.Read(func(s *lease.State, _ *authz.Roster) {
		if j, ok := s.Job(id); ok && j.Frames[0] != nil {
			out = slices.Clone(j.Frames[0].Holders)
		}
	})
	return out
}

// A frame whose keeper is away for too long is kept by another machine, also when
// its job has ended, and nobody acts.
func TestLostKeeperIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		id := d.submit("ann", aCID(0), 1)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		d.within(time.Second, "ann is asked to keep the frame", func() bool { return ann.asked(aCID(1)) == 1 })
		ann.holds(id, 1, aCID(1))
		require.Equal(t, []authz.PeerID{"bob", "ann"}, d.holders(id))

		cyd := d.join("cyd", machine(1))
		ann.leave()
		time.Sleep(AwayBound)
		require.Zero(t, cyd.asked(aCID(1)), "it may come back")
		d.within(time.Minute, "cyd is asked instead", func() bool { return cyd.asked(aCID(1)) == 1 })
		require.Equal(t, []Addr{{Peer: "bob", Addrs: []string{"/ip4/10.0.0.1/tcp/1"}}}, cyd.keeps()[0].From)
		cyd.holds(id, 1, aCID(1))
		time.Sleep(time.Hour)
		require.Equal(t, 1, cyd.asked(aCID(1)), "it is asked once")
		require.Zero(t, bob.asked(aCID(1)))
	})
}

// A machine that has to keep more than it can at once is given the rest later.
func TestHealingInWaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		const frames = backlog + keepWindow
		id := d.submit("ann", aCID(0), frames, func(s *lease.Spec) { s.Chunk = frames })
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		var results []lease.Result
		for n := range int32(frames) {
			results = append(results, lease.Result{Frame: n + 1, CID: aCID(int(n) + 1), Name: fmt.Sprintf("%04d.png", n+1), Size: 1})
		}
		require.Empty(t, bob.says(Up{Complete: &lease.Complete{Report: bob.orders()[0].Report, Frames: results}}).Code)
		for n := range int32(frames) {
			require.Empty(t, ann.says(Up{Hold: &lease.Hold{Job: id, Frame: n + 1, CID: aCID(int(n) + 1)}}).Code)
		}
		ann.leave()
		cyd := d.join("cyd", machine(0))
		time.Sleep(AwayBound + time.Minute)
		require.Len(t, cyd.keeps(), keepWindow, "no more at once")
		for n := 0; n < len(cyd.keeps()); n++ {
			k := cyd.keeps()[n]
			require.Empty(t, cyd.says(Up{Hold: &lease.Hold{Job: id, Frame: k.Frame, CID: k.CID}}).Code)
			synctest.Wait()
		}
		require.Len(t, cyd.keeps(), frames, "all, in the end")
	})
}

// What a machine held that is no member any more counts no more.
func TestRemovedMembersCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		id := d.submit("ann", aCID(0), 2)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		// The log may hold what a member did before it was removed.
		_, err := d.log().Apply(t.Context(), Entry{Queue: &lease.Command{At: time.Now(), Hold: &lease.Hold{Job: id, Frame: 1, CID: aCID(1), Peer: "ghost", Machines: 2}}})
		require.NoError(t, err)
		require.Equal(t, []authz.PeerID{"bob", "ghost"}, d.holders(id))
		d.join("cyd", machine(0))
		d.within(time.Second, "the ghost is forgotten", func() bool { return slices.Equal(d.holders(id), []authz.PeerID{"bob"}) })
		require.Equal(t, 1, ann.asked(aCID(1)))
	})
}

// With too few machines a lost copy is made as soon as there is one more.
func TestHealingWaitsForAMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		id := d.submit("ann", aCID(0), 1)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		ann.holds(id, 1, aCID(1))
		ann.leave()
		time.Sleep(AwayBound + time.Hour)
		full := machine(1)
		full.FreeDisk = keepFree
		eve := d.join("eve", full)
		time.Sleep(time.Minute)
		require.Zero(t, eve.asked(aCID(1)), "it has no room")
		cyd := d.join("cyd", machine(1))
		d.within(time.Minute, "cyd is asked", func() bool { return cyd.asked(aCID(1)) == 1 })
	})
}

// A machine that says that its copy is gone is no holder any more; whoever should
// have one is asked again.
func TestCopyTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		id := d.submit("ann", aCID(0), 2)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		ann.holds(id, 1, aCID(1))
		d.within(time.Second, "ann is asked for the project, which she submitted", func() bool { return ann.asked(aCID(0)) == 1 })
		require.Empty(t, ann.says(Up{Stock: &lease.Stock{Job: id}}).Code)

		require.Empty(t, ann.says(Up{Unhold: &lease.Unhold{Job: id, CID: aCID(1)}}).Code)
		require.Equal(t, []authz.PeerID{"bob"}, d.holders(id))
		d.within(time.Second, "ann is asked again", func() bool { return ann.asked(aCID(1)) == 2 })
		require.Empty(t, ann.says(Up{Unhold: &lease.Unhold{Job: id, CID: aCID(0)}}).Code)
		d.within(time.Second, "for the project too", func() bool { return ann.asked(aCID(0)) == 2 })

		// Nobody holds it now: it is rendered again, although it was done.
		require.Empty(t, bob.says(Up{Unhold: &lease.Unhold{Job: id, CID: aCID(1)}}).Code)
		require.Empty(t, d.holders(id))
		require.NotEmpty(t, ann.says(Up{Unhold: &lease.Unhold{Job: "j0", CID: aCID(1)}}).Code)
	})
}

// A machine that comes back with another store holds nothing, and whatever it held is
// made anew, also of jobs that have ended.
func TestStoreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.stores["ann"], d.stores["bob"] = "a1", "b1"
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		id := d.submit("ann", aCID(0), 1)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		ann.holds(id, 1, aCID(1))
		for _, store := range []string{"b1", "", "b1"} {
			bob.leave()
			d.stores["bob"] = store
			bob = d.join("bob", machine(1))
			require.Equal(t, []authz.PeerID{"bob", "ann"}, d.holders(id), "its store is the same, or it does not say")
		}
		ann.leave()
		d.stores["ann"] = "a2"
		ann = d.join("ann", machine(0))
		require.Equal(t, []authz.PeerID{"bob"}, d.holders(id))
		p, _ := d.Parting("bob")
		require.Equal(t, lease.ReasonOnlyCopy, p.Reasons[0].Kind)
		d.within(time.Minute, "ann is asked to keep the frame again", func() bool { return ann.asked(aCID(1)) == 1 })
		ann.holds(id, 1, aCID(1))
		require.Equal(t, []authz.PeerID{"bob", "ann"}, d.holders(id))
	})
}

// A job is remembered while it is open, and for a while after its end.
// A machine that comes back with something that it has rendered is not granted that.
func TestOffersComeBeforeGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.offers["a"], d.offers["b"] = true, true
		a, b := d.join("a", machine(1)), d.join("b", machine(1))
		d.submit("a", aCID(1), 20, func(s *lease.Spec) { s.Chunk = 5 })
		time.Sleep(offerTime / 2)
		require.Empty(t, append(a.orders(), b.orders()...))
		require.NoError(t, a.conn.Send(Up{Offered: true}))
		d.within(time.Second, "a is granted something", func() bool { return len(a.orders()) == 1 })
		require.Empty(t, b.orders())
		d.within(offerTime, "b was waited for long enough", func() bool { return len(b.orders()) == 1 })
	})
}

func TestRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann := d.join("ann", machine(0))
		ended, open := d.submit("ann", aCID(0), 1), d.submit("ann", aCID(0), 1)
		require.NoError(t, d.Control(t.Context(), lease.Command{Cancel: &lease.Cancel{Job: ended}}))
		known := func() []lease.JobID {
			return ann.says(Up{Recall: &Recall{Jobs: []lease.JobID{"none", ended, open}}}).Known
		}
		require.Equal(t, []lease.JobID{ended, open}, known())
		_, err := d.log().Apply(t.Context(), Entry{Queue: &lease.Command{At: time.Now(), Forget: &lease.Forget{Before: time.Now().Add(time.Hour)}}})
		require.NoError(t, err)
		require.Equal(t, []lease.JobID{open}, known())
	})
}

// Who may have what, by the queue and by what the leader remembers beside it.
func TestMayFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		full := machine(0) // nobody asks it to keep anything
		full.FreeDisk = 0
		ann, bob, eve := d.join("ann", machine(0)), d.join("bob", machine(1)), d.join("eve", full)
		id := d.submit("ann", aCID(0), 2)
		project, frame := lease.ProjectOf(id).String(), lease.FrameOf(id, 1).String()
		may := func(p authz.PeerID, root, by string) bool {
			t.Helper()
			ok, err := d.MayFetch(p, root, by)
			require.NoError(t, err)
			told := eve.says(Up{May: &May{Peer: p, Root: root, By: by}})
			require.Equal(t, ok, told.Code == "", "a member that asks is told the same")
			return ok
		}
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		require.True(t, may("ann", aCID(0), project))
		require.True(t, may("bob", aCID(0), project))
		require.True(t, may(d.chief, aCID(0), project))
		require.True(t, may(d.chief, aCID(9), ""), "it is an admin's")
		for _, p := range []authz.PeerID{"eve", "nobody", ""} {
			require.False(t, may(p, aCID(0), project), p)
			require.False(t, may(p, aCID(0), ""), p)
			require.False(t, may(p, aCID(0), "../../etc"), p)
		}
		bob.render(bob.orders()[0], aCID(1))
		require.True(t, may("ann", aCID(1), frame))
		require.False(t, may("eve", aCID(1), frame))
		ack := ann.says(Up{Find: &Find{Root: aCID(1), By: frame}})
		require.Equal(t, []Addr{{Peer: "bob", Addrs: []string{"/ip4/10.0.0.1/tcp/1"}}}, ack.From)
		require.Equal(t, CodeDenied, ann.says(Up{Find: &Find{Root: aCID(2), By: frame}}).Code)
		require.Equal(t, CodeDenied, eve.says(Up{Find: &Find{Root: aCID(1), By: frame}}).Code)

		ann.leave()
		require.False(t, may("cyd", aCID(1), frame))
		cyd := d.join("cyd", machine(0))
		d.within(time.Minute, "cyd is asked to keep the frame", func() bool { return cyd.asked(aCID(1)) == 1 })
		require.True(t, may("cyd", aCID(1), frame))
		require.Equal(t, ack.From, cyd.says(Up{Find: &Find{Root: aCID(1), By: frame}}).From)
		require.NoError(t, d.Control(t.Context(), lease.Command{Cancel: &lease.Cancel{Job: id}}))
		synctest.Wait()
		require.False(t, may("bob", aCID(0), project), "the job has ended")
		require.False(t, may("cyd", aCID(0), project))
		require.True(t, may("cyd", aCID(1), frame))
	})
}

// A machine that renders is told once what it is likely to need next, and may
// have it.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		bob := d.join("bob", machine(1))
		first := d.submit("ann", aCID(1), 3)
		d.submit("ann", aCID(1), 3)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		require.Empty(t, bob.ahead(), "the next job has the same project")
		next := d.submit("ann", aCID(2), 1, func(s *lease.Spec) { s.Replicas = 1 })
		later := d.submit("ann", aCID(3), 1, func(s *lease.Spec) { s.Replicas = 1 })
		d.within(time.Second, "bob is told", func() bool { return len(bob.ahead()) == 1 })
		require.Equal(t, []string{aCID(2)}, bob.ahead())
		ok, err := d.MayFetch("bob", aCID(2), lease.ProjectOf(next).String())
		require.NoError(t, err)
		require.True(t, ok)
		ok, err = d.MayFetch("bob", aCID(3), lease.ProjectOf(later).String())
		require.NoError(t, err)
		require.False(t, ok)
		bob.render(bob.orders()[0], aCID(10))
		d.within(time.Second, "bob goes on", func() bool { return len(bob.orders()) == 2 })
		require.NoError(t, d.Control(t.Context(), lease.Command{Cancel: &lease.Cancel{Job: first}}))
		time.Sleep(time.Minute)
		require.Equal(t, []string{aCID(2)}, bob.ahead(), "once")
		require.NoError(t, d.Control(t.Context(), lease.Command{Cancel: &lease.Cancel{Job: next}}))
		d.within(time.Second, "bob is told of another", func() bool { return len(bob.ahead()) == 2 })
		require.Equal(t, aCID(3), bob.ahead()[1])
		ok, err = d.MayFetch("bob", aCID(2), lease.ProjectOf(next).String())
		require.NoError(t, err)
		require.False(t, ok)
	})
}

// Orders name those who have some of the project, the most of it first, and those
// who are fetching it.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		project := aCID(1)
		d.join("ann", machine(0))
		none, some, most, whole := d.join("none", machine(1)), d.join("some", machine(1), lease.Holding{Project: lease.ShortCID(project), Eighths: 2}),
			d.join("most", machine(1), lease.Holding{Project: lease.ShortCID(project), Eighths: 7}),
			d.join("whole", machine(0), lease.Holding{Project: lease.ShortCID(project), Eighths: 8})
		d.submit("ann", project, 3, func(s *lease.Spec) { s.Replicas = 1 })
		all := []*part{none, some, most}
		d.within(time.Second, "all render", func() bool {
			return !slices.ContainsFunc(all, func(p *part) bool { return len(p.orders()) != 1 })
		})
		names := func(p *part) (out []authz.PeerID) {
			for _, a := range p.orders()[0].From {
				out = append(out, a.Peer)
			}
			return out
		}
		require.ElementsMatch(t, []authz.PeerID{"ann", "whole"}, names(none)[:2])
		require.Equal(t, []authz.PeerID{"most", "some"}, names(none)[2:])
		require.NotContains(t, names(most), authz.PeerID("most"))
		require.Empty(t, whole.orders())
	})
}

// A machine whose store is full gets no more of the job until it has room.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		bob := d.join("bob", machine(1))
		id := d.submit("ann", aCID(1), 1, func(s *lease.Spec) { s.Needs.Store, s.Needs.Disk = 1<<30, 2<<30 })
		d.within(time.Second, "bob is asked", func() bool { return len(bob.orders()) == 1 })
		o := bob.orders()[0]
		require.Empty(t, bob.says(Up{Release: &lease.Release{Report: o.Report, Reason: "no room in the content store"}, NoRoom: true}).Code)
		time.Sleep(time.Minute)
		require.Len(t, bob.orders(), 1)
		require.True(t, d.Knowledge().Members["bob"].NoRoom[id])
		other := d.submit("ann", aCID(2), 1)
		d.within(time.Second, "other jobs go on", func() bool { return len(bob.orders()) == 2 })
		bob.render(bob.orders()[1], aCID(3))
		require.NotEqual(t, id, other)

		can := machine(1)
		d.Advertise("bob", can, nil)
		time.Sleep(time.Minute)
		require.Len(t, bob.orders(), 2, "its ad says the same as before")
		can.FreeDisk += 1 << 30
		d.Advertise("bob", can, nil)
		d.within(time.Second, "bob is asked again", func() bool { return len(bob.orders()) == 3 })
		d.Read(func(s *lease.State, _ *authz.Roster) {
			j, _ := s.Job(id)
			require.Zero(t, j.Tasks[0].Fails)
			require.Empty(t, j.Faults)
		})
	})
}

// A drained machine finishes what it has and is given nothing more, by this leader
// and over streams, until an admin ends it; whoever watches hears of both.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		bob := d.join("bob", machine(1))
		drain := func(on bool) {
			t.Helper()
			require.NoError(t, d.Control(t.Context(), lease.Command{Drain: &lease.Drain{Peer: "bob", On: on, Reason: "drained by root"}}))
		}
		d.submit("ann", aCID(1), 3)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		watch := d.Watch(0)
		defer watch.Stop()
		drain(true)
		require.Equal(t, lease.PeerDrained, (<-watch.C).Type)
		require.True(t, d.Knowledge().Members["bob"].Can.Draining)
		require.Equal(t, "drained by root", bob.says(Up{Part: &Part{}}).Drained)
		bob.render(bob.orders()[0], aCID(10))
		d.Advertise("bob", machine(1), nil)
		time.Sleep(time.Minute)
		require.Len(t, bob.orders(), 1)
		bob.leave()
		bob = d.join("bob", machine(1))
		time.Sleep(time.Minute)
		require.Empty(t, bob.orders(), "it is not forgotten when the machine comes back")
		drain(false)
		d.within(time.Second, "bob renders again", func() bool { return len(bob.orders()) == 1 })
		require.False(t, d.Knowledge().Members["bob"].Can.Draining)

		// What is remembered of a machine goes with its membership.
		_, err := d.log().Apply(t.Context(), Entry{Queue: &lease.Command{At: time.Now(), Drain: &lease.Drain{Peer: "ghost", On: true}}})
		require.NoError(t, err)
		d.join("cyd", machine(0))
		d.within(time.Second, "the ghost is forgotten", func() (gone bool) {
			d.Read(func(q *lease.State, _ *authz.Roster) { gone = !slices.Contains(q.Machines(), "ghost") })
			return gone
		})
	})
}

// A label that may mean a licence counts where an admin granted it, and not where
// the machine says so.
func TestGrantedLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		claims := machine(1)
		claims.Labels = []string{"lic:keyshot", "fast", "calibrated"}
		bob := d.join("bob", claims)
		label := func(labels ...string) {
			t.Helper()
			require.NoError(t, d.Admit(t.Context(), authz.Command{At: time.Now(), Label: &authz.Label{Peer: "bob", Labels: labels}}))
			synctest.Wait()
		}
		labels := func(p authz.PeerID) []string { return d.Knowledge().Members[p].Can.Labels }
		needs := func(labels ...string) func(*lease.Spec) { return func(s *lease.Spec) { s.Needs.Labels = labels } }
		plain := d.submit("ann", aCID(1), 1, needs("fast"))
		d.within(time.Second, "what it may say of itself counts", func() bool { return len(bob.orders()) == 1 })
		require.Equal(t, plain, bob.orders()[0].Task.Job)
		bob.render(bob.orders()[0], aCID(10))

		licensed := d.submit("ann", aCID(2), 2, needs("lic:keyshot"))
		d.Advertise("bob", claims, nil)
		d.Advertise("away", claims, nil)
		time.Sleep(time.Minute)
		require.Len(t, bob.orders(), 1)
		require.Equal(t, []string{"fast"}, labels("bob"))
		require.Equal(t, []string{"fast"}, labels("away"), "nor where the machine is not connected")
		label("lic:keyshot")
		d.within(time.Second, "it is granted", func() bool { return len(bob.orders()) == 2 })
		require.Equal(t, licensed, bob.orders()[1].Task.Job)
		require.Equal(t, []string{"fast", "lic:keyshot"}, labels("bob"))
		// The member hears of its label before it has to check it.
		var granted []string
		for _, down := range bob.heard() {
			if down.Roster != nil {
				m, _ := down.Roster.Member("bob")
				granted = m.Labels
			}
			if down.Grant != nil && down.Grant.Task.Job == licensed {
				require.Equal(t, []string{"lic:keyshot"}, granted)
			}
		}
		d.Advertise("bob", machine(1), nil)
		require.Equal(t, []string{"lic:keyshot"}, labels("bob"), "an ad does not take it away")
		label()
		bob.render(bob.orders()[1], aCID(11))
		time.Sleep(time.Minute)
		require.Len(t, bob.orders(), 2, "it is taken back")
		label("lic:keyshot")
		bob.leave()
		bob = d.join("bob", machine(1))
		d.within(time.Second, "and outlasts a stream", func() bool { return len(bob.orders()) == 1 })
	})
}

// A member may ask what hangs on its machine.
func TestParting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ann, bob := d.join("ann", machine(0)), d.join("bob", machine(1))
		require.True(t, ann.says(Up{Part: &Part{}}).Parting.Safe)
		d.submit("ann", aCID(1), 1)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		require.Equal(t, lease.ReasonAttempts, bob.says(Up{Part: &Part{}}).Parting.Reasons[0].Kind)
		require.Equal(t, lease.ReasonProject, ann.says(Up{Part: &Part{}}).Parting.Reasons[0].Kind)
		p, leads := d.Parting(d.chief)
		require.True(t, leads)
		require.Equal(t, lease.ReasonQueue, p.Reasons[0].Kind)
	})
}

// A member cannot make itself a holder of what it has no right to, by naming it,
// and so get it, or keep others from holding it.
func TestHoldingIsNotClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		full := machine(0) // nobody asks it to keep anything
		full.FreeDisk = 0
		ann, bob, eve := d.join("ann", machine(0)), d.join("bob", machine(1)), d.join("eve", full)
		id := d.submit("ann", aCID(0), 2)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		bob.render(bob.orders()[0], aCID(1))
		may := func(p authz.PeerID, root string, by lease.Scope) bool {
			ok, err := d.MayFetch(p, root, by.String())
			require.NoError(t, err)
			return ok
		}
		lies := map[string]Up{
			"the project": {Stock: &lease.Stock{Job: id}}, "a project of no job": {Stock: &lease.Stock{Job: "none"}},
			"a frame": {Hold: &lease.Hold{Job: id, Frame: 1, CID: aCID(1)}}, "another frame": {Hold: &lease.Hold{Job: id, Frame: 1, CID: aCID(2)}},
		}
		reasons := make(map[string]bool)
		for what, lie := range lies {
			ack := eve.says(lie)
			require.NotEmpty(t, ack.Code, what)
			reasons[ack.Code+ack.Reason] = true
		}
		require.Len(t, reasons, 1, "what is not hers looks like what is not there")
		require.False(t, may("eve", aCID(0), lease.ProjectOf(id)))
		require.False(t, may("eve", aCID(1), lease.FrameOf(id, 1)))
		require.NotContains(t, d.holders(id), authz.PeerID("eve"))

		// Nor by giving out another's content for a frame of its own.
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 2 })
		bob.render(bob.orders()[1], aCID(7))
		require.False(t, may("bob", aCID(7), lease.FrameOf(id, 2)))
		ann.holds(id, 2, aCID(7))
	})
}

// A machine that is removed loses its stream and its lease at once, without the patience
// that one gets which only went silent.
func TestRemovedMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.join("ann", machine(0))
		bob := d.join("bob", machine(1))
		d.submit("ann", aCID(0), 1)
		d.within(time.Second, "bob renders", func() bool { return len(bob.orders()) == 1 })
		cyd := d.join("cyd", machine(1))
		events := d.Watch(0)
		defer events.Stop()
		began := time.Now()
		require.NoError(t, d.Remove(t.Context(), authz.Command{At: time.Now(), Revoke: &authz.Revoke{Peer: "bob", By: "admin"}}))
		d.within(time.Second, "cyd renders it instead", func() bool { return len(cyd.orders()) == 1 })
		require.Less(t, time.Since(began), time.Second)
		require.Error(t, bob.conn.Send(Up{Renew: &Renew{}}), "its stream is closed")
		e := <-events.C
		require.Equal(t, lease.PeerChanged, e.Type)
		require.Equal(t, "removed", e.State)
		require.Equal(t, "admin removed it", e.Reason)

		here, there := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- d.leading.Load().serve(t.Context(), NewConn(there), "bob", Hello{Can: machine(1)}) }()
		require.ErrorIs(t, <-served, authz.ErrNotMember, "it has no way back by a stream that it had")
		_ = here.Close()
		_, ok := d.Knowledge().Members["bob"]
		require.False(t, ok)
		require.ErrorIs(t, d.Remove(t.Context(), authz.Command{At: time.Now(), Revoke: &authz.Revoke{Peer: d.self, By: "admin"}}), ErrSoleVoter)
	})
}
