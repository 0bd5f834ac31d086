package coord

import (
	"context"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// rollPause is how long the leader waits for others who are there too, before it notes
// who is: at the beginning of its term, and after one has come that was away.
const rollPause = time.Minute

// rollAgain is how long after nobody could be found to confirm the time the roll is called
// again.
const rollAgain = time.Hour

// rollSoon has the roll called within a [rollPause]. l.mu is held.
func (l *leader) rollSoon() {
	if soon := time.Now().Add(rollPause); soon.Before(l.rollAt) {
		l.roll.Reset(rollPause)
		l.rollAt = soon
	}
}

// rollCall notes who is there and removes who has stayed away for too long, as
// [authz.Roster.Roll] says, if others' clocks agree that it is so late. Whoever keeps the
// log counts as there: the log must lose it first.
func (l *leader) rollCall() {
	now := l.now()
	keeps := make(map[authz.PeerID]bool)
	st := l.c.Status()
	for _, p := range append(st.Voters, st.Standbys...) {
		keeps[p] = true
	}
	var (
		seen   *authz.Seen
		expire *authz.Expire
		next   time.Time
	)
	l.mu.Lock()
	l.c.Read(func(_ *lease.State, r *authz.Roster) {
		seen, expire, next = r.Roll(now, func(p authz.PeerID) bool { return l.sessions[p] != nil || keeps[p] })
	})
	if expire != nil && !l.clocks.agreed() {
		// Nobody loses a membership by one clock alone.
		expire, next = nil, now.Add(rollAgain)
	}
	wait := max(next.Sub(now), rollPause)
	l.roll.Reset(wait)
	l.rollAt = time.Now().Add(wait)
	l.mu.Unlock()
	if seen != nil {
		l.change(authz.Command{Seen: seen})
	}
	if expire != nil {
		for _, p := range expire.Peers { // each with a record of its own in the audit
			l.change(authz.Command{Expire: &authz.Expire{Peers: []authz.PeerID{p}, Before: expire.Before}})
		}
	}
}

// change commits a change of the roster of the leader's own. One that could not be
// made is due at the next roll call.
func (l *leader) change(cmd authz.Command) {
	cmd.At = l.now()
	ctx, cancel := context.WithTimeout(l.ctx, rollPause)
	defer cancel()
	e := Entry{Roster: &cmd}
	e.Audit = l.c.note(ctx, e)
	if _, err := l.c.log().Apply(ctx, e); err != nil && l.ctx.Err() == nil {
		l.c.slog.Warn("who is there could not be noted", "err", err)
		l.mu.Lock()
		l.rollSoon()
		l.mu.Unlock()
	}
}
