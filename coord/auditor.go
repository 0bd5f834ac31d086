package coord

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"vizpeer/authz"
)

// auditor is the leader's part in the audit: it signs the records that the log made,
// also those that the leader before it left unsigned, and writes down what was refused.
// It lives as long as the leadership.
type auditor struct {
	log  auditLog
	slog *slog.Logger
	now  func() time.Time // the farm's time
	sign func(statement []byte) (authz.PeerID, []byte, error)
	wake chan struct{}

	mu sync.Mutex
	// fresh are refusals to be written down at once; seen are those of this window, with
	// how often each came since.
	fresh []authz.Note
	seen  map[refusal]*authz.Note
}

// auditLog is what the auditor needs of the log.
type auditLog interface {
	ApplyAll(context.Context, []Entry) ([]Applied, []error)
	Unsigned() []authz.Record
}

// refusal is what makes one refusal the same as another: who, from where, what.
type refusal struct {
	user, key, address string
	machine            authz.PeerID
	action, outcome    string
	account            string // of a login
}

const (
	// sealPause is how long records wait for others that are signed with them, so that
	// the signatures of many cost the log one entry.
	sealPause = time.Second
	// sealAgain is how long after signatures were refused, which no good leader's are,
	// others are made: each try costs the log an entry.
	sealAgain = time.Minute
	// refusalWindow is how long a refusal that comes again is counted and not written
	// down, and maxRefusals how many different ones a window tells apart: whoever
	// floods the farm with requests that it refuses fills neither disk nor memory.
	refusalWindow = time.Minute
	maxRefusals   = 32
)

func newAuditor(log auditLog, now func() time.Time, sign func([]byte) (authz.PeerID, []byte, error), slog *slog.Logger) *auditor {
	return &auditor{log: log, now: now, sign: sign, slog: slog, wake: make(chan struct{}, 1), seen: make(map[refusal]*authz.Note)}
}

// signal says that there is something to do.
func (a *auditor) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// refused notes that a request was refused, at once or, where it came before, with the
// others of its kind when the window ends.
func (a *auditor) refused(at time.Time, d authz.Deed, outcome string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	what := refusal{user: d.User, key: d.Key, address: d.Address, machine: d.Machine, action: d.Action, outcome: outcome}
	if d.Action == authz.ActionLogin {
		what.account = d.Object
	}
	if a.seen[what] == nil && len(a.seen) >= maxRefusals {
		// Of more there is one count for all.
		d, outcome = authz.Deed{Action: "refused", Detail: "requests of many kinds or callers"}, "refused"
		what = refusal{action: d.Action, outcome: outcome}
	}
	if n := a.seen[what]; n != nil {
		if n.Times++; n.Object != d.Object {
			n.Object = "" // of several
		}
		return
	}
	a.fresh = append(a.fresh, authz.Note{Deed: d, At: at, Outcome: outcome})
	a.seen[what] = &authz.Note{Deed: d, Outcome: outcome}
	a.signal()
}

// due takes what is to be written down now. over tells that the window has ended.
func (a *auditor) due(now time.Time, over bool) (entries []Entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	notes := a.fresh
	a.fresh = nil
	if over {
		for _, n := range a.seen {
			if n.Times > 0 {
				n.At = now
				notes = append(notes, *n)
			}
		}
		clear(a.seen)
	}
	for _, n := range notes {
		entries = append(entries, Entry{Audit: &n})
	}
	return entries
}

// run does what is to be done until ctx ends.
func (a *auditor) run(ctx context.Context) {
	seal, window := time.NewTimer(0), time.NewTimer(refusalWindow)
	defer seal.Stop()
	defer window.Stop()
	sealing, counting := true, false // whether the timers run for something
	pause := sealPause
	for {
		over := false
		select {
		case <-a.wake:
		case <-seal.C:
			sealing, pause = false, sealPause
			if err := a.seal(ctx); err != nil && ctx.Err() == nil {
				a.slog.Warn("records of the audit could not be signed", "err", err)
				pause = sealAgain
			}
		case <-window.C:
			over, counting = counting, false
		case <-ctx.Done():
			return
		}
		entries := a.due(a.now(), over)
		if len(entries) > 0 {
			a.log.ApplyAll(ctx, entries) // what the log cannot take is lost: it was refused
			if !over && !counting {
				window.Reset(refusalWindow)
				counting = true
			}
		}
		if !sealing && len(a.log.Unsigned()) > 0 {
			seal.Reset(pause)
			sealing = true
		}
	}
}

// seal signs all that is not signed.
func (a *auditor) seal(ctx context.Context) error {
	records := a.log.Unsigned()
	var entries []Entry
	for len(records) > 0 {
		some := records[:min(len(records), authz.MaxSeal)]
		records = records[len(some):]
		s := authz.Seal{First: some[0].Seq}
		for _, r := range some {
			who, signature, err := a.sign(r.Statement())
			if err != nil {
				return err
			}
			s.Signer, s.Signatures = who, append(s.Signatures, signature)
		}
		entries = append(entries, Entry{Seal: &s})
	}
	if len(entries) == 0 {
		return nil
	}
	_, errs := a.log.ApplyAll(ctx, entries)
	return errors.Join(errs...)
}

// sign signs with this machine's identity key.
func (c *Coordinator) sign(statement []byte) (authz.PeerID, []byte, error) {
	key := c.host.Peerstore().PrivKey(c.host.ID())
	if key == nil {
		return "", nil, errors.New("this machine's own key is not there")
	}
	signature, err := key.Sign(statement)
	return c.self, signature, err
}
