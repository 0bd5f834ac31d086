package coord

import (
	"context"
	"time"

	"vizpeer/authz"
)

// unstick takes a snapshot where a coordinator is connected, is behind and has applied
// nothing for a whole look: raft may not find by itself where their logs meet. That is so
// where its disk was full soon after it had come by a snapshot: the leader went back, entry
// by entry, to before that, and sends the same snapshot again and again, behind which the
// other's log goes on. A newer one replaces that log.
func (l *leader) unstick() {
	st := l.c.Status()
	stuck := false
	l.mu.Lock()
	applied := make(map[authz.PeerID]uint64)
	for p, s := range l.sessions {
		if s.coordinating == nil || p == l.c.self {
			continue
		}
		applied[p] = s.coordinating.Applied
		if was, known := l.applying[p]; known && was == applied[p] && was < l.applyingTo {
			stuck = true
		}
	}
	l.applying, l.applyingTo = applied, st.AppliedIndex
	l.mu.Unlock()
	if !stuck {
		return
	}
	l.c.slog.Warn("a coordinator does not get on with the queue: a snapshot is taken for it")
	ctx, cancel := context.WithTimeout(l.ctx, time.Minute)
	defer cancel()
	if err := l.c.log().Snapshot(ctx); err != nil && l.ctx.Err() == nil {
		l.c.slog.Warn("a snapshot could not be taken", "err", err)
	}
}
