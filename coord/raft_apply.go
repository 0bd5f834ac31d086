package coord

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Apply carries out one command and returns what it did, once a majority of the
// voters has it on disk and this machine has applied it. The error is the
// queue's or the roster's own; or, where the command did not get that far, an
// [ErrNotLeader], [ErrBusy], [ErrClosed], or one that wraps [ErrOutcomeUnknown].
func (l *Log) Apply(ctx context.Context, e Entry) (Applied, error) {
	applied, errs := l.ApplyAll(ctx, []Entry{e})
	return applied[0], errs[0]
}

// ApplyAll carries out many commands in the order given, and is to be preferred
// to calls of Apply in a row: all of them are under way together and share the
// cost of the disk. It answers each as Apply does; one that fails does not hold
// up those behind it.
func (l *Log) ApplyAll(ctx context.Context, entries []Entry) ([]Applied, []error) {
	errs := make([]error, len(entries))
	all := func(err error) ([]Applied, []error) {
		errs := make([]error, len(entries))
		for i := range errs {
			errs[i] = err
		}
		return make([]Applied, len(entries)), errs
	}
	if err := ctx.Err(); err != nil {
		return all(context.Cause(ctx))
	}
	data := make([][]byte, len(entries))
	for i, e := range entries {
		data[i], errs[i] = l.encode(e)
	}
	if err := l.enter(); err != nil {
		return all(err)
	}
	applied := make([]Applied, len(entries))
	done := make(chan struct{})
	go func() {
		defer l.leave()
		defer close(done)
		l.startWaiting()
		futures, began := make([]raft.ApplyFuture, len(entries)), time.Now()
		for i := range data {
			if errs[i] == nil {
				futures[i] = l.raft.Apply(data[i], l.cfg.ApplyTimeout)
			}
		}
		for i, f := range futures {
			if f != nil {
				applied[i], errs[i] = l.result(f, began)
			}
		}
	}()
	// Once the caller has gone, applied and errs are the goroutine's alone.
	select {
	case <-done:
		return applied, errs
	case <-l.failed:
		return all(fmt.Errorf("%w (%w)", ErrOutcomeUnknown, l.failure))
	case <-ctx.Done():
		return all(fmt.Errorf("%w (%w)", ErrOutcomeUnknown, context.Cause(ctx)))
	}
}

// Pending is a command under way: see [Log.Start].
type Pending struct {
	data    []byte
	failed  <-chan struct{} // the log's
	done    chan struct{}   // closed when what follows is set
	applied Applied
	err     error
}

// Start is Apply in two steps: it gives the command its place in the log, behind all
// that the caller started before, and Wait answers as Apply does. It may wait for the
// place, at most Config.ApplyTimeout.
func (l *Log) Start(e Entry) *Pending {
	p := l.prepare(e)
	if p.err == nil {
		l.startWaiting()
		l.start(p)
	}
	return p
}

// StartSoon is Start for a command to which others are likely to come that should
// share its sync: it gets its place right before the next one, a moment later at most.
func (l *Log) StartSoon(e Entry) *Pending {
	p := l.prepare(e)
	if p.err != nil {
		return p
	}
	l.waiting.Lock()
	defer l.waiting.Unlock()
	if l.waiting.all = append(l.waiting.all, p); len(l.waiting.all) == 1 {
		l.waiting.timer = time.AfterFunc(startSoon, l.startWaiting)
	}
	return p
}

// startSoon is how long a command may wait for others: about as long as the leader
// needs to find the next task for a slot, and less than a sync.
const startSoon = 200 * time.Microsecond

// startWaiting starts what waits for others.
func (l *Log) startWaiting() {
	l.waiting.Lock()
	defer l.waiting.Unlock() // until all have their place: what is started next comes behind
	if len(l.waiting.all) == 0 {
		return
	}
	l.waiting.timer.Stop()
	for _, p := range l.waiting.all {
		l.start(p)
	}
	l.waiting.all = nil
}

// prepare counts a command in. Where that fails it is refused at once.
func (l *Log) prepare(e Entry) *Pending {
	data, err := l.encode(e)
	if err == nil {
		err = l.enter()
	}
	if err != nil {
		return refusedAtOnce(err)
	}
	return &Pending{data: data, failed: l.failed, done: make(chan struct{})}
}

// start gives a command its place in the log.
func (l *Log) start(p *Pending) {
	began := time.Now()
	f := l.raft.Apply(p.data, l.cfg.ApplyTimeout)
	go func() {
		defer l.leave()
		defer close(p.done)
		p.applied, p.err = l.result(f, began)
	}()
}

// refusedAtOnce is a command that needs no place in the log to be refused.
func refusedAtOnce(err error) *Pending {
	p := &Pending{done: make(chan struct{}), err: err}
	close(p.done)
	return p
}

// Wait returns what the command did.
func (p *Pending) Wait(ctx context.Context) (Applied, error) {
	select {
	case <-p.done:
		return p.applied, p.err
	case <-p.failed:
		return Applied{}, fmt.Errorf("%w: the log has failed", ErrOutcomeUnknown)
	case <-ctx.Done():
		return Applied{}, fmt.Errorf("%w (%w)", ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// result waits for what became of a command that was given its place at began.
func (l *Log) result(f raft.ApplyFuture, began time.Time) (Applied, error) {
	if err := f.Error(); err != nil {
		return Applied{}, l.lost(err)
	}
	if l.cfg.Took != nil {
		l.cfg.Took(time.Since(began))
	}
	o := f.Response().(outcome)
	return o.applied, o.err
}

// lost explains why a command that may have got its place in the log was not answered.
// Where that is the disk's or raft's end it is not known how far it had got; above all,
// nobody said no to the command.
func (l *Log) lost(err error) error {
	why := l.explain(err)
	if errors.Is(err, raft.ErrRaftShutdown) || Refused(why) {
		return fmt.Errorf("%w (%w)", ErrOutcomeUnknown, why)
	}
	return why
}

// Barrier returns when this machine, which must lead, has applied everything
// that was committed before.
func (l *Log) Barrier(ctx context.Context) error {
	return l.wait(ctx, func() raft.Future { return l.raft.Barrier(l.cfg.ApplyTimeout) })
}

// VerifyLeader returns nil if, after it was called, a majority of the voters
// still took this machine for the leader.
func (l *Log) VerifyLeader(ctx context.Context) error {
	return l.wait(ctx, func() raft.Future { return l.raft.VerifyLeader() })
}

// Snapshot writes a snapshot now and lets go of the log behind it.
func (l *Log) Snapshot(ctx context.Context) error {
	return l.wait(ctx, func() raft.Future { return l.raft.Snapshot() })
}
