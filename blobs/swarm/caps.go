package swarm

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Caps limit what this peer sends and receives, all streams together, in bytes a
// second; 0 is no limit. They bound content, to which the network adds a few
// percent of its own. Negative values are taken for 0.
type Caps struct {
	Up, Down int64
	// Hours replace Up and Down for a part of the week. The first that covers a
	// moment counts.
	Hours []Hours
}

// Hours is a part of each day, by the clock on the wall, with limits of its own.
type Hours struct {
	Days     []time.Weekday // none: every day
	From, To time.Duration  // since midnight; a part that ends before it begins goes on past midnight, one that ends where it begins is the whole day
	Up, Down int64
}

// At tells the limits that hold at t, in t's time zone.
func (c Caps) At(t time.Time) (up, down int64) {
	up, down = c.Up, c.Down
	for _, h := range c.Hours {
		if h.covers(t) {
			up, down = h.Up, h.Down
			break
		}
	}
	return max(up, 0), max(down, 0)
}

func (h Hours) covers(t time.Time) bool {
	hour, minute, second := t.Clock()
	now := time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute + time.Duration(second)*time.Second
	switch {
	case h.From < h.To:
		return h.on(t.Weekday()) && now >= h.From && now < h.To
	case h.From == h.To:
		return h.on(t.Weekday())
	case now >= h.From:
		return h.on(t.Weekday())
	default: // what began yesterday
		return now < h.To && h.on((t.Weekday()+6)%7)
	}
}

// String writes the part of the week as in "mon,tue 08:00-19:00".
func (h Hours) String() string {
	var b strings.Builder
	for i, d := range h.Days {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strings.ToLower(d.String()[:3]))
	}
	if len(h.Days) > 0 {
		b.WriteByte(' ')
	}
	to := h.To
	if to == 0 {
		to = 24 * time.Hour
	}
	fmt.Fprintf(&b, "%02d:%02d-%02d:%02d", h.From/time.Hour, h.From%time.Hour/time.Minute, to/time.Hour, to%time.Hour/time.Minute)
	return b.String()
}

func (h Hours) on(day time.Weekday) bool {
	for _, d := range h.Days {
		if d == day {
			return true
		}
	}
	return len(h.Days) == 0
}

// slice is the most that is sent, or taken from a limit, at once, so that streams
// take turns and no socket waits long.
const slice = 64 << 10

// limiter is one direction of Caps. Streams that wait are served in turn.
type limiter struct {
	lim *rate.Limiter

	mu  sync.Mutex
	now int64 // the limit set, 0 none
}

func newLimiter() *limiter { return &limiter{lim: rate.NewLimiter(rate.Inf, slice)} }

// set makes bytes a second the limit from now on.
func (l *limiter) set(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes == l.now {
		return
	}
	l.now = bytes
	if bytes == 0 {
		l.lim.SetLimit(rate.Inf)
		return
	}
	// A twentieth of a second's worth makes up for timers that come late.
	l.lim.SetBurst(int(max(bytes/20, slice)))
	l.lim.SetLimit(rate.Limit(bytes))
}

// limited tells whether there is a limit now.
func (l *limiter) limited() bool { return l.lim.Limit() != rate.Inf }

// turn is how many bytes a stream moves before it is the next one's turn: under a
// low limit few, so that a stream among many does not seem dead.
func (l *limiter) turn() int {
	if !l.limited() {
		return slice
	}
	return int(min(max(l.lim.Limit()/20, 1<<10), slice))
}

// take waits until n bytes may pass. They may be more than a turn: perhaps there
// was no limit yet when they were asked for.
func (l *limiter) take(ctx context.Context, n int) error {
	for n > 0 && l.limited() {
		k := min(n, slice)
		if err := l.lim.WaitN(ctx, k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
