package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

// session is the leader's end of one member's work stream.
type session struct {
	peer  authz.PeerID
	slog  *slog.Logger
	conn  *Conn
	out   chan Down
	done  chan struct{}
	once  sync.Once
	addrs []string
	limit *rate.Limiter // of what it says
	seed  uint64        // a number that is its own
	knows int           // the highest level that it knows
	since time.Time     // it was opened
	// reports are under way to the log, in the order in which they came.
	reports chan report
	due     atomic.Int32 // reports that its orders ask for, and that it has not made

	// Guarded by the leader's mu.
	said    lease.Capability          // what it says of itself
	can     lease.Capability          // what it is taken to be able to do; see judge
	slots   int                       // of it
	granted map[lease.ID]slot         // leases it was given
	running map[lease.ID]lease.Device // attempts it says it makes, some under leases that have ended
	late    map[lease.ID]bool         // those of them that it came with
	asked   map[KeepID]bool           // what it was asked to keep: true until it has answered
	keeping int                       // orders to keep that it has not answered, sent or not
	later   []Keep                    // those that wait until it has answered some
	holds   map[string]int            // eighths of projects that its ad tells of
	rest    map[lease.JobID]time.Time // until when it is not offered a job that it handed back
	noRoom  map[lease.JobID]shortage
	next    Prefetch // what it was told last to fetch ahead, without sources
	look    bool     // something may be to be fetched ahead

	coordinating *Coordinating // what it said last
	probe        uint64        // index of an entry that came after it did; see autopilot

	equipped map[string]bool // offered Blenders that it was told to fetch

	offering *time.Timer // ends the wait for what the member has rendered before; nil where there is none
}

// slot is what of a member a lease is for.
type slot struct {
	device lease.Device
	// over tells that the member says that the attempt was completed: the slot is free,
	// whatever becomes of the report.
	over bool
}

// messages bounds what a member may say and ask in a second beside the reports that
// its orders ask for: most of it goes into the log, or to every watcher. One that
// says more waits, and its whole stream with it.
const messages = 500

// maxDue bounds how many reports a member may save up for a burst.
const maxDue = 4096

// asks is how many reports an order asks for.
func asks(d Down) int32 {
	switch {
	case d.Grant != nil: // each frame, the attempt's end, that the project is there, and one to spare
		n := int32(len(d.Grant.Frames)) + 3
		for _, s := range d.Grant.Spans { // a piece each time that it has doubled, or a tile
			n += min(s.Len(), 64)
		}
		return n
	case d.Keep != nil: // that it is held, and written
		return 2
	}
	return 0
}

// wasDue tells whether the member was asked for a report like this.
func (s *session) wasDue(up Up) bool {
	if up.Record == nil && up.Complete == nil && up.Fail == nil && up.Release == nil && up.Hold == nil && up.Stock == nil {
		return false
	}
	if s.due.Add(-1) >= 0 {
		return true
	}
	s.due.Add(1)
	return false
}

// heavy is how many messages one counts for that costs the leader much.
const heavy = 50

// maxRunning bounds the attempts that a member may say it makes: those of its
// slots, and as many of which it does not know yet that they have ended.
const maxRunning = 2 * lease.MaxTotalSlots

// keepWindow is how many orders to keep a member may have at once: one that comes
// back after a night must not be flooded.
const keepWindow = 256

// outbox is how many orders a member may be slow to take before it is cut off;
// it then comes back and is told what still holds.
const outbox = 1024

// errSlow ends a stream whose member does not read.
var errSlow = errors.New("the member does not read its orders")

// send queues an order and never waits.
func (s *session) send(d Down) {
	if level.Needed(&d) > s.knows {
		s.slog.Debug("a member's vizpeer is too old for what it was to be told", "peer", s.peer.Short())
		return
	}
	if n := asks(d); n > 0 && s.due.Load() < maxDue {
		s.due.Add(n)
	}
	select {
	case s.out <- d:
	case <-s.done:
	default:
		s.close()
	}
}

// write sends the orders until the stream ends.
func (s *session) write() {
	for {
		select {
		case d := <-s.out:
			if err := s.conn.Send(d); err != nil {
				s.close()
				return
			}
		case <-s.done:
			return
		}
	}
}

func (s *session) close() {
	s.once.Do(func() {
		close(s.done)
		_ = s.conn.Close()
	})
}

// free lists, for each slot without an attempt, what it renders on.
func (s *session) free() (free []lease.Device) {
	busy := make(map[lease.Device]int)
	for _, g := range s.granted {
		if !g.over {
			busy[g.device]++
		}
	}
	for id, d := range s.running {
		if _, granted := s.granted[id]; !granted {
			busy[d]++
		}
	}
	anywhere := busy[""] // on what, nobody said
	for _, d := range s.can.Devices() {
		for n := d.Slots - busy[d.Device]; n > 0; n-- {
			if anywhere--; anywhere < 0 {
				free = append(free, d.Device)
			}
		}
	}
	return free
}

// busy is the number of attempts that it makes, or was just given.
func (s *session) busy() int {
	busy := 0
	for _, g := range s.granted {
		if !g.over {
			busy++
		}
	}
	for id := range s.running {
		if _, granted := s.granted[id]; !granted {
			busy++
		}
	}
	return busy
}

// judge works out anew what a member is taken to be able to do. It is asked whenever
// something of that changes. l.mu is held.
//
// Labels are those of the roster that members have been sent already: a member
// checks what it is granted by its own.
func (l *leader) judge(s *session, q *lease.State) {
	m, _ := l.members.Member(s.peer)
	s.can = s.taken(q, m.Labels)
	s.slots = s.can.TotalSlots()
}

// taken is what the member is taken to be able to do, by what it says and by what
// the farm has decided.
func (s *session) taken(q *lease.State, granted []string) lease.Capability {
	can := s.said.Believed(granted)
	can.Draining = can.Draining || q.Machine(s.peer).Drained != ""
	return can
}

// machine is the member as the scheduler sees it.
func (s *session) machine() sched.Machine {
	m := sched.Machine{Peer: s.peer, Can: s.can, Free: s.free(), Holds: s.holds, NoRoom: make(map[lease.JobID]bool, len(s.noRoom))}
	for j := range s.noRoom {
		m.NoRoom[j] = true
	}
	for j, until := range s.rest {
		if time.Now().Before(until) {
			m.Resting = append(m.Resting, j)
		} else {
			delete(s.rest, j)
		}
	}
	return m
}

// ServeMember speaks the leader's side of the work protocol with a member until
// the stream or ctx ends. A machine that does not lead redirects the member to
// the one that does. The caller has checked that who is a member, and that the
// stream is who's.
func (c *Coordinator) ServeMember(ctx context.Context, rwc io.ReadWriteCloser, who authz.PeerID) error {
	conn := NewConn(rwc)
	defer conn.Close()
	var up Up
	if err := conn.Receive(&up); err != nil {
		return err
	}
	if up.Hello == nil {
		return errors.New("the first message was not a hello")
	}
	if err := up.Hello.validate(); err != nil {
		return err
	}
	l := c.leading.Load()
	if l == nil {
		leader, _ := c.log().Leader()
		if leader == c.self { // elected, but not established yet: ask again soon
			leader = ""
		}
		// The member closes once it has read where to go; the stream must not be
		// torn down before.
		if err := conn.Send(Down{Redirect: &Redirect{Leader: Addr{Peer: leader}}}); err != nil {
			return err
		}
		_ = conn.Receive(&up)
		return nil
	}
	return l.serve(ctx, conn, who, *up.Hello)
}

// housed notes which store a member has, before anything else it says counts.
func (l *leader) housed(p authz.PeerID, store string) error {
	was := ""
	l.c.Read(func(q *lease.State, _ *authz.Roster) { was = q.Machine(p).Store })
	if store == "" || store == was {
		return nil
	}
	if err := l.propose(lease.Command{Store: &lease.Store{Peer: p, ID: store}}); err != nil {
		return err
	}
	if was != "" {
		l.c.slog.Warn("a machine's content store is gone, and it has a new one: what it held is copied again", "peer", p.Short())
		l.mu.Lock()
		l.plan.again, l.plan.ended = true, true
		l.mu.Unlock()
	}
	return nil
}

func (l *leader) serve(ctx context.Context, conn *Conn, who authz.PeerID, hello Hello) error {
	if err := l.housed(who, hello.Store); err != nil {
		return err
	}
	s := &session{
		peer: who, slog: l.c.slog, seed: hash(string(who)), knows: hello.Can.Knows(), conn: conn, out: make(chan Down, outbox), done: make(chan struct{}), addrs: hello.Addrs, said: hello.Can,
		granted: make(map[lease.ID]slot), running: make(map[lease.ID]lease.Device), late: make(map[lease.ID]bool), asked: make(map[KeepID]bool),
		holds: hello.Holds.ByProject(), noRoom: make(map[lease.JobID]shortage), rest: make(map[lease.JobID]time.Time), limit: rate.NewLimiter(messages, messages),
		reports: make(chan report, maxReports), equipped: make(map[string]bool), since: time.Now(),
	}
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	defer context.AfterFunc(l.ctx, s.close)()
	defer s.close()
	unknown, err := l.join(s, hello)
	if err != nil {
		return err
	}
	defer l.leave(s)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.close()
	wg.Go(s.write)
	wg.Go(func() {
		for r := range s.reports {
			l.committed(s, r)
		}
	})
	defer close(s.reports)
	for _, r := range unknown {
		l.giveBack(r, "the machine was restarted")
	}
	l.signal()
	for {
		var up Up
		if err := conn.Receive(&up); err != nil {
			select {
			case <-s.done:
				if ctx.Err() == nil && l.ctx.Err() == nil && len(s.out) == cap(s.out) {
					return errSlow
				}
			default:
			}
			return err
		}
		if err := l.heard(s, up); err != nil {
			return err
		}
	}
}

// join makes s the member's stream and welcomes it. It returns the leases that
// the queue gives the member and of which the member knows nothing.
func (l *leader) join(s *session, hello Hello) (unknown []lease.Report, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(_ *lease.State, r *authz.Roster) {
		if _, member := r.Member(s.peer); !member { // it was one when its stream was opened
			err = authz.ErrNotMember
		}
		if l.now().Sub(r.LastSeen(s.peer)) >= authz.SeenPause {
			l.rollSoon()
		}
	})
	if err != nil {
		return nil, err
	}
	if old := l.sessions[s.peer]; old != nil {
		old.close()
	}
	l.sessions[s.peer] = s
	l.shows(s.peer, hello.At)
	l.coordinates(s, hello.Coordinating)
	if t := l.awaited[s.peer]; t != nil {
		t.Stop()
		delete(l.awaited, s.peer)
	}
	known := make(map[lease.ID]bool)
	for _, r := range hello.Leases {
		known[r.Lease] = true
	}
	w := Welcome{Term: l.term, At: l.now(), Level: level.Known, Awaits: hello.Offers}
	if hello.Offers {
		s.offering = time.AfterFunc(offerTime, func() { l.offered(s) })
	}
	var unwanted []Revoke
	l.c.Read(func(q *lease.State, r *authz.Roster) {
		l.judge(s, q)
		w.Roster = r.View()
		for _, j := range q.Open() {
			w.Open = append(w.Open, j.ID)
		}
		for _, r := range hello.Leases {
			j, t, err := q.Task(r.Task)
			s.running[r.Lease] = ""
			if err == nil {
				s.running[r.Lease] = t.Device(r.Lease)
			}
			// An attempt whose lease has run out may still help: until somebody
			// else has the task, its frames are taken.
			if err == nil {
				_, live := t.Live(r.Lease)
				if live {
					continue
				}
				if !j.State.Ended() && t.State == lease.TaskQueued {
					s.late[r.Lease] = true
					continue
				}
			}
			unwanted = append(unwanted, Revoke{Lease: r.Lease, Reason: "the lease has ended", Offer: err == nil && !j.State.Ended()})
		}
	})
	for id, t := range l.leases {
		switch {
		case t.peer != s.peer:
		case known[id]:
			s.granted[id] = slot{device: s.running[id]}
			l.arm(id, t.task, t.peer)
		default:
			unknown = append(unknown, lease.Report{Lease: id, Task: t.task, Peer: t.peer})
		}
	}
	s.send(Down{Welcome: &w})
	for _, r := range unwanted {
		s.send(Down{Revoke: &r})
	}
	s.look = true
	l.returned(s.peer)
	l.c.hub.publish(Event{At: l.now(), Event: lease.Event{Type: lease.PeerChanged, Task: -1, Peer: s.peer, State: "online"}})
	return unknown, nil
}

func (l *leader) leave(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.peer] != s {
		return // it has a newer stream
	}
	delete(l.sessions, s.peer)
	l.clocks.gone(s.peer)
	if s.coordinating != nil {
		l.recount()
	}
	l.plan.scarce = l.plan.scarce || s.keeping > 0 // who shall keep it instead, or again?
	if _, member := l.members.Member(s.peer); member {
		l.seen[s.peer] = time.Now()
		if l.ctx.Err() == nil {
			l.await(s.peer)
		}
	}
	l.c.hub.publish(Event{At: l.now(), Event: lease.Event{Type: lease.PeerChanged, Task: -1, Peer: s.peer, State: "offline"}})
}

// shows notes what a member's clock shows. l.mu is held.
func (l *leader) shows(p authz.PeerID, at time.Time) {
	m, _ := l.members.Member(p)
	if p != l.c.self {
		l.clocks.heard(p, at, time.Now(), m.Coordinator)
	}
}

// offerTime is how long a member that comes may take to report what it has rendered
// before, in which it is granted nothing.
const offerTime = 5 * time.Second

// offered ends the wait for what the member has rendered before.
func (l *leader) offered(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.offering != nil {
		s.offering.Stop()
		s.offering = nil
		l.signal()
	}
}

// renew keeps the member's leases alive and passes its progress on.
func (l *leader) renew(s *session, r Renew) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(r.Addrs) > 0 {
		s.addrs = r.Addrs
	}
	l.shows(s.peer, r.At)
	l.coordinates(s, r.Coordinating)
	was := s.running
	s.running = make(map[lease.ID]lease.Device, len(r.Leases))
	for _, run := range r.Leases {
		// What it has under a lease that has run out it is about to report: with the slot
		// free it would be granted the same again, and render it twice.
		if !run.Over || s.late[run.Lease] {
			s.running[run.Lease] = was[run.Lease]
		}
		t := l.leases[run.Lease]
		if t == nil || t.peer != s.peer {
			continue
		}
		now := time.Now()
		if now.Before(t.until) { // else it runs out: nobody renders for ever
			l.arm(run.Lease, t.task, t.peer)
		}
		if len(run.Progress) > 0 && len(run.Progress) <= maxProgress && now.Sub(t.told) >= progressPause && json.Valid(run.Progress) {
			t.progress, t.told = run.Progress, now
			l.preview(s.peer, t.task, run.Previews)
			var shown Preview
			if n := len(run.Previews); n > 0 {
				shown = run.Previews[n-1]
			}
			l.c.hub.publish(Event{At: l.now(), Progress: run.Progress, Preview: shown,
				Event: lease.Event{Type: lease.TaskProgress, Job: t.task.Job, Task: t.task.Index, Lease: run.Lease, Peer: s.peer}})
		}
	}
	l.signal()
}

// maxProgress bounds what an attempt says of its progress, in bytes: it goes to
// every watcher.
const maxProgress = 4 << 10

// progressPause is how often at most watchers are told of an attempt's progress.
const progressPause = Renewal / 10

// troubled notes why a machine could not keep something that it was asked to.
func (l *leader) troubled(s *session, t Trouble) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range s.asked {
		if id.Job == t.Job {
			if !t.Writing && l.trouble[t.Job].Peer != s.peer {
				l.plan.again = true // another machine may keep it
				l.c.Read(func(q *lease.State, _ *authz.Roster) {
					if j, ok := q.Job(t.Job); ok && j.State.Ended() {
						l.plan.ended = true
					}
				})
				l.signal()
			}
			l.trouble[t.Job] = Difficulty{Peer: s.peer, Writing: t.Writing, Reason: t.Reason[:min(len(t.Reason), 1000)]}
			return
		}
	}
}

// validate reports what no honest member says.
func (h Hello) validate() error {
	if err := errors.Join(h.Can.Validate(), h.Holds.Validate()); err != nil {
		return err
	}
	if len(h.Store) > lease.MaxStoreID {
		return fmt.Errorf("a hello with a store's ID of %d bytes", len(h.Store))
	}
	if len(h.Leases) > lease.MaxTotalSlots {
		return fmt.Errorf("a hello with %d leases", len(h.Leases))
	}
	if err := validAddrs(h.Addrs); err != nil {
		return fmt.Errorf("a hello with %w", err)
	}
	return nil
}

// MaxAddrs bounds the addresses of one member: they go into every order.
const MaxAddrs = 32

func validAddrs(addrs []string) error {
	if len(addrs) > MaxAddrs {
		return fmt.Errorf("%d addresses", len(addrs))
	}
	for _, a := range addrs {
		if len(a) > 256 {
			return fmt.Errorf("an address of %d bytes", len(a))
		}
	}
	return nil
}
