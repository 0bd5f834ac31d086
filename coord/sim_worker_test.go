package coord

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
)

// simWorker is the part of a machine that renders and keeps, as peer/link.go,
// peer/worker.go and peer/keeper.go play it, without Blender and without content: a
// frame is its CID, and to fetch it takes a moment and a link to one who has it.
type simWorker struct {
	m     *simMachine
	coord *Coordinator    // the process's, too; nil where it has none
	ctx   context.Context // the process's

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when leader or conn change
	leader   peer.ID       // "" while there is no stream
	conn     *Conn
	seq      uint64
	waiting  map[uint64]chan Ack
	attempts map[lease.ID]*simAttempt
	keeping  map[KeepID]context.CancelFunc
	nudge    chan struct{}
}

type simAttempt struct {
	order  Order
	cancel context.CancelCauseFunc
	over   bool
}

var (
	errSimRevoked = errors.New("the lease was taken back")
	errSimExpired = fmt.Errorf("%w, and what was rendered may be wanted", errSimRevoked)
)

func newSimWorker(ctx context.Context, m *simMachine) *simWorker {
	return &simWorker{
		m: m, coord: m.coord, ctx: ctx, changed: make(chan struct{}), waiting: make(map[uint64]chan Ack), attempts: make(map[lease.ID]*simAttempt),
		keeping: make(map[KeepID]context.CancelFunc), nudge: make(chan struct{}, 1),
	}
}

// run keeps a stream to the leader open until the process ends.
func (w *simWorker) run() {
	pause := 50 * time.Millisecond
	var hint, silent peer.ID
	for w.ctx.Err() == nil {
		served := false
		for _, p := range w.candidates(hint, silent) {
			next, welcomed := w.session(p)
			served = served || welcomed
			if welcomed || next == "" {
				silent = p
			}
			if w.ctx.Err() != nil {
				return
			}
			if hint = next; welcomed || next != "" {
				break
			}
		}
		if pause = min(2*pause, 5*time.Second); served {
			pause = 50 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-w.nudge:
		case <-w.ctx.Done():
		}
	}
}

func (w *simWorker) candidates(hint, silent peer.ID) (ids []peer.ID) {
	if hint != "" {
		ids = append(ids, hint)
	}
	for _, m := range w.m.farm.machines {
		if m.coordinates && m.peer != hint {
			ids = append(ids, m.peer)
		}
	}
	if i := slices.Index(ids, silent); i >= 0 && silent != hint {
		ids = append(slices.Delete(ids, i, i+1), silent)
	}
	return ids
}

func (w *simWorker) session(p peer.ID) (next peer.ID, welcomed bool) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	rwc, err := w.m.host.NewStream(w.ctx, p, WorkProtocol)
	if err != nil {
		return "", false
	}
	conn := NewConn(rwc)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var down Down
	if conn.Send(Up{Hello: w.hello()}) != nil || conn.Receive(&down) != nil {
		return "", false
	}
	switch {
	case down.Redirect != nil:
		next, err := peer.Decode(string(down.Redirect.Leader.Peer))
		if err != nil || next == p {
			return "", false
		}
		return next, false
	case down.Welcome == nil:
		return "", false
	}
	w.drop(func(KeepID) bool { return true }) // this leader says itself what is to be kept
	if offered := w.offer(); down.Welcome.Awaits {
		go func() {
			offered.Wait()
			if conn := w.stream(); conn != nil {
				_ = conn.Send(Up{Offered: true})
			}
		}()
	}
	conn.Patience = Silence
	w.set(p, conn)
	defer w.set("", nil)
	go w.renew(ctx, conn)
	for {
		var down Down
		if conn.Receive(&down) != nil {
			return "", true
		}
		w.m.passing() // a machine that is stopped does nothing
		w.obey(down)
	}
}

func (w *simWorker) hello() *Hello {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &Hello{Can: w.m.can(), Addrs: []string{"/ip4/10.0.0.1/tcp/1"}, Store: string(w.m.id), At: w.m.now()}
	for _, a := range w.attempts {
		h.Leases = append(h.Leases, a.order.Report)
	}
	h.Offers = len(w.m.orphans(func(id lease.ID) bool { return w.attempts[id] != nil })) > 0
	h.Coordinating = w.coordinating()
	return h
}

// coordinating is what a coordinator says of itself; nil for any other machine.
func (w *simWorker) coordinating() *Coordinating {
	if w.coord == nil {
		return nil
	}
	return w.coord.Coordinating()
}

func (w *simWorker) obey(d Down) {
	switch {
	case d.Ack != nil:
		w.mu.Lock()
		ack := w.waiting[d.Ack.Seq]
		delete(w.waiting, d.Ack.Seq)
		w.mu.Unlock()
		if ack != nil {
			ack <- *d.Ack
		}
	case d.Grant != nil:
		w.start(*d.Grant)
	case d.Revoke != nil:
		w.mu.Lock()
		a := w.attempts[d.Revoke.Lease]
		w.mu.Unlock()
		why := errSimRevoked
		if d.Revoke.Offer {
			why = errSimExpired
		}
		if a != nil {
			a.cancel(why)
		}
	case d.Keep != nil:
		w.keep(*d.Keep)
	case d.Drop != nil:
		w.drop(func(id KeepID) bool { return id.Job == d.Drop.Job && id.Frame == d.Drop.Frame && id.CID == d.Drop.CID })
	case d.Kept != nil && d.Kept.Lease != "":
		w.m.forget(d.Kept.Lease)
	case d.Ended != nil:
		w.drop(func(id KeepID) bool { return id.Job == d.Ended.Job && id.Project })
	}
}

func (w *simWorker) renew(ctx context.Context, conn *Conn) {
	tick := time.NewTicker(Renewal)
	defer tick.Stop()
	for {
		w.m.passing()
		w.mu.Lock()
		r := Renew{Leases: []Running{}, Coordinating: w.coordinating(), At: w.m.now()}
		for id, a := range w.attempts {
			r.Leases = append(r.Leases, Running{Lease: id, Over: a.over})
		}
		w.mu.Unlock()
		if conn.Send(Up{Renew: &r}) != nil {
			_ = conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-w.nudge:
		case <-ctx.Done():
			return
		}
	}
}

// wake has it try, or renew its leases, without waiting.
func (w *simWorker) wake() {
	select {
	case w.nudge <- struct{}{}:
	default:
	}
}

// set notes the stream in use and wakes whoever waits for one.
func (w *simWorker) set(p peer.ID, conn *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leader, w.conn = p, conn
	if conn == nil {
		for seq, ack := range w.waiting {
			delete(w.waiting, seq)
			close(ack)
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// report sends a report until somebody answers, over as many leaders as it takes. ok is
// false where ctx ended first.
func (w *simWorker) report(ctx context.Context, up Up) (code string, ok bool) {
	for {
		w.m.passing()
		w.mu.Lock()
		conn, changed := w.conn, w.changed
		var again <-chan time.Time
		if conn != nil {
			w.seq++
			up.Seq = w.seq
			answer := make(chan Ack, 1)
			w.waiting[up.Seq] = answer
			w.mu.Unlock()
			if conn.Send(up) != nil {
				_ = conn.Close()
			}
			select {
			case a, ok := <-answer:
				if ok && a.Code != CodeLeader {
					return a.Code, true
				}
			case <-ctx.Done():
				return "", false
			}
			again = time.After(Renewal)
		} else {
			w.mu.Unlock()
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return "", false
		}
	}
}

// offer reports what attempts that have ended rendered, and of which it is not known that
// others hold it.
func (w *simWorker) offer() *sync.WaitGroup {
	var offered sync.WaitGroup
	w.mu.Lock()
	running := maps.Clone(w.attempts)
	w.mu.Unlock()
	for _, r := range w.m.orphans(func(id lease.ID) bool { return running[id] != nil }) {
		offered.Go(func() {
			if code, ok := w.report(w.ctx, Up{Record: &r}); ok && code != "" {
				w.m.forget(r.Lease)
			}
		})
	}
	return &offered
}

func (w *simWorker) start(o Order) {
	ctx, cancel := context.WithCancelCause(w.ctx)
	a := &simAttempt{order: o, cancel: cancel}
	w.mu.Lock()
	busy := 0
	for _, other := range w.attempts {
		if !other.over {
			busy++
		}
	}
	if busy < w.m.slots {
		w.attempts[o.Lease] = a
		busy = -1
	}
	w.mu.Unlock()
	go func() {
		defer cancel(nil)
		if busy >= 0 {
			w.report(w.ctx, Up{Release: &lease.Release{Report: o.Report, Reason: "no free slot"}})
			return
		}
		w.m.farm.check.begins(w.m, o)
		w.try(ctx, a)
		w.mu.Lock()
		delete(w.attempts, o.Lease)
		w.mu.Unlock()
		w.wake()
		if errors.Is(context.Cause(ctx), errSimExpired) {
			w.offer()
		}
	}()
}

// try makes the attempt and reports how it ended.
func (w *simWorker) try(ctx context.Context, a *simAttempt) {
	o := a.order
	last, err := w.render(ctx, a)
	w.mu.Lock()
	a.over = true
	w.mu.Unlock()
	var up Up
	switch cause := context.Cause(ctx); {
	case err == nil:
		up.Complete = &lease.Complete{Report: o.Report, Frames: last}
	case errors.Is(cause, errSimRevoked):
		if !errors.Is(cause, errSimExpired) {
			w.m.forget(o.Lease)
		}
		return
	case ctx.Err() != nil: // the process was killed
		return
	case errors.Is(err, errSimFull):
		up.Release, up.NoRoom = &lease.Release{Report: o.Report, Reason: err.Error()}, true
	case errors.Is(err, errSimBlender):
		up.Fail = &lease.Fail{Report: o.Report, Reason: err.Error(), Kind: lease.FailCrash}
	default:
		up.Fail = &lease.Fail{Report: o.Report, Reason: err.Error(), Kind: lease.FailMachine}
	}
	code, ok := w.report(ctx, up)
	if ok && code != "" && len(last) > 0 {
		code, ok = w.report(ctx, Up{Record: &lease.Record{Report: o.Report, Frames: last}})
	}
	if ok && code != "" {
		w.m.forget(o.Lease)
	}
}

var errSimBlender = errors.New("blender crashed (signal 11)")

// render brings the project here and renders frame by frame. All but the last are
// reported as they come.
func (w *simWorker) render(ctx context.Context, a *simAttempt) (last []lease.Result, err error) {
	o := a.order
	if !w.m.has(o.Spec.Project) {
		if err := w.fetch(ctx, o.Spec.Project, lease.ProjectOf(o.Task.Job), o.From); err != nil {
			return nil, err
		}
	}
	if !o.Stocked {
		go w.report(w.ctx, Up{Stock: &lease.Stock{Job: o.Task.Job}})
	}
	for i, frame := range o.Frames {
		if err := w.sleep(ctx, w.m.perFrame); err != nil {
			return nil, err
		}
		if w.m.roll(100) < w.m.clumsy {
			return nil, errSimBlender
		}
		// Each attempt's picture is another one: which was taken shows.
		r := lease.Result{Frame: frame, CID: simCID(o.Lease, frame), Name: fmt.Sprintf("%04d.png", frame), Size: 1000, Seconds: w.m.perFrame.Seconds()}
		if err := w.m.put(r.CID); err != nil {
			return nil, err
		}
		w.m.note(o.Report, r)
		if i == len(o.Frames)-1 {
			return []lease.Result{r}, nil
		}
		go w.report(ctx, Up{Record: &lease.Record{Report: o.Report, Frames: []lease.Result{r}}})
	}
	return nil, nil
}

// sleep takes time in which the machine works, not counting that in which it is stopped.
func (w *simWorker) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	w.m.passing()
	return ctx.Err()
}

func simCID(of ...any) string {
	h, err := multihash.Sum(fmt.Append(nil, of...), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, h).String()
}

// fetch brings content here from whoever of the sources has it and can be reached, else
// from whom the leader names.
func (w *simWorker) fetch(ctx context.Context, root string, by lease.Scope, from []Addr) error {
	for try := 0; ; try++ {
		if err := w.sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		for _, a := range from {
			if o := w.m.farm.machine(a.Peer); o != nil && w.m.farm.reaches(w.m, o) && o.has(root) {
				return w.m.put(root)
			}
		}
		if try == 5 {
			return errors.New("nobody who has it can be reached")
		}
		if err := w.sleep(ctx, time.Second<<try); err != nil {
			return err
		}
		from = w.find(ctx, root, by)
	}
}

// find asks the leader of now who has content.
func (w *simWorker) find(ctx context.Context, root string, by lease.Scope) []Addr {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w.mu.Lock()
	conn := w.conn
	if conn == nil {
		w.mu.Unlock()
		return nil
	}
	w.seq++
	seq, answer := w.seq, make(chan Ack, 1)
	w.waiting[seq] = answer
	w.mu.Unlock()
	if conn.Send(Up{Seq: seq, Find: &Find{Root: root, By: by.String()}}) != nil {
		_ = conn.Close()
	}
	select {
	case a := <-answer:
		return a.From
	case <-ctx.Done():
		return nil
	}
}

// keep begins to hold what was ordered, and tries until it is here or unwanted.
func (w *simWorker) keep(k Keep) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := k.ID()
	if w.keeping[id] != nil {
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	w.keeping[id] = cancel
	go func() {
		defer cancel()
		by := lease.FrameOf(k.Job, k.Frame)
		if k.Project {
			by = lease.ProjectOf(k.Job)
		}
		for !w.m.has(k.CID) {
			if err := w.fetch(ctx, k.CID, by, k.From); err == nil {
				break
			} else if ctx.Err() != nil {
				return
			} else if conn := w.stream(); conn != nil {
				_ = conn.Send(Up{Trouble: &Trouble{Job: k.Job, Reason: err.Error()}})
			}
			if w.sleep(ctx, 2*time.Second) != nil {
				return
			}
		}
		w.mu.Lock()
		if ctx.Err() == nil {
			delete(w.keeping, id)
		}
		w.mu.Unlock()
		if k.Project {
			w.report(ctx, Up{Stock: &lease.Stock{Job: k.Job}})
			return
		}
		w.report(ctx, Up{Hold: &lease.Hold{Job: k.Job, Frame: k.Frame, CID: k.CID}})
	}()
}

func (w *simWorker) stream() *Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn
}

// drop forgets orders to keep.
func (w *simWorker) drop(unwanted func(KeepID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, cancel := range w.keeping {
		if unwanted(id) {
			cancel()
			delete(w.keeping, id)
		}
	}
}

// idle tells whether it has nothing to do and nothing to offer.
func (w *simWorker) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn != nil && len(w.attempts) == 0 && len(w.keeping) == 0
}

// simMachine is one machine of a simulated farm: what of it survives a kill, and its
// process of now.
type simMachine struct {
	farm        *simFarm
	n           int
	peer        peer.ID
	id          authz.PeerID
	coordinates bool
	slots       int
	perFrame    time.Duration
	clumsy      int // of 100 frames, how many Blender crashes on
	disk        *simDisk
	folder      string // of the audit's records

	mu      sync.Mutex
	dice    *simDice
	content map[string]bool
	journal map[lease.ID]*lease.Record
	full    bool
	stopped chan struct{} // closed when it goes on; nil while it does
	skew    time.Duration // of its clock

	// The process; nil while there is none.
	host   *simHost
	coord  *Coordinator
	worker *simWorker
	end    context.CancelFunc
	ended  chan struct{}
}

func (m *simMachine) can() lease.Capability {
	c := machine(m.slots)
	c.OS, c.Arch, c.Level = "linux", "amd64", level.Known
	return c
}

// now is what its clock shows.
func (m *simMachine) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.skew).Round(0)
}

func (m *simMachine) roll(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dice.IntN(n)
}

// passing returns when the machine is not stopped.
func (m *simMachine) passing() {
	for {
		m.mu.Lock()
		stopped := m.stopped
		m.mu.Unlock()
		if stopped == nil {
			return
		}
		<-stopped
	}
}

func (m *simMachine) has(root string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.content[root]
}

func (m *simMachine) put(root string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return errSimFull
	}
	m.content[root] = true
	return nil
}

// note remembers a frame before it is reported.
func (m *simMachine) note(r lease.Report, f lease.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.journal[r.Lease] == nil {
		m.journal[r.Lease] = &lease.Record{Report: r}
	}
	m.journal[r.Lease].Frames = append(m.journal[r.Lease].Frames, f)
}

func (m *simMachine) forget(id lease.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.journal, id)
}

// orphans lists what was rendered by attempts that do not run.
func (m *simMachine) orphans(running func(lease.ID) bool) (out []lease.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.journal)) {
		if r := m.journal[id]; !running(id) {
			out = append(out, lease.Record{Report: r.Report, Frames: slices.Clone(r.Frames)})
		}
	}
	return out
}
