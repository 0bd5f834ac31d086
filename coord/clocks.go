package coord

import (
	"slices"
	"sync"
	"time"

	"vizpeer/authz"
)

// clocks is the farm's time as a leader takes it: what is written into the log, and what
// is reckoned from there. It is the leader's own clock as long as that is not the one that
// is wrong. A clock may be set by hours while its machine leads, and a new leader's may
// have been wrong all along; members tell what theirs show with every message.
//
// Which time it is, the coordinators' clocks alone decide, for whoever may lead may write
// any time into the log anyway. That it is right enough to end something for good all
// members' clocks must say.
//
// Times that are passed in as at are of the monotonic clock and are compared only with each
// other. It is safe for concurrent use and takes no other lock.
type clocks struct {
	mu     sync.Mutex
	began  time.Time // of the term, monotonic
	logged time.Time // the log's last time before the term; zero where there is none
	alone  bool      // there is no other coordinator
	others map[authz.PeerID]reading
	taken  time.Time // the farm's time when the term began, as it was taken last
	moved  time.Time // when that was last set by more than clockError, monotonic
}

// reading is what another member's clock showed, reckoned back to the beginning of the
// term: that stays the same as long as nobody sets it.
type reading struct {
	began       time.Time
	coordinator bool
}

const (
	// clockSlack is how far clocks that are right may be from each other.
	clockSlack = time.Minute
	// clockError is how far from others a clock is wrong by which something is to be
	// ended for good, and how long one that was set is not gone by for that.
	clockError = time.Hour
	// clockWait is how long a new leader whose clock differs from the log's time goes on
	// from there, until it has heard what others' show.
	clockWait = time.Minute
)

func newClocks(at, logged time.Time, alone bool) *clocks {
	return &clocks{began: at, moved: at, logged: logged, alone: alone, others: make(map[authz.PeerID]reading)}
}

// heard notes what a member's clock shows; zero is one of a member that does not say.
func (c *clocks) heard(p authz.PeerID, shows, at time.Time, coordinator bool) {
	if shows.IsZero() || shows.Year() < 0 || shows.Year() > 9999 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others[p] = reading{shows.Round(0).Add(-at.Sub(c.began)), coordinator}
}

// gone forgets a member whose clock is not heard of any more.
func (c *clocks) gone(p authz.PeerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.others, p)
}

// now is the farm's time at a moment, when the leader's own clock shows own.
func (c *clocks) now(own, at time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	elapsed := at.Sub(c.began)
	taken := c.take(own.Round(0).Add(-elapsed), elapsed)
	if !c.taken.IsZero() && apart(taken, c.taken) > clockError {
		c.moved = at
	}
	c.taken = taken
	return taken.Add(elapsed)
}

// take decides what time it was when the term began. c.mu is held.
func (c *clocks) take(own time.Time, elapsed time.Duration) time.Time {
	var shown []time.Time
	for _, r := range c.others {
		if r.coordinator {
			shown = append(shown, r.began)
		}
	}
	switch len(shown) {
	case 0:
		if !c.alone && !c.logged.IsZero() && elapsed < clockWait && apart(own, c.logged) > clockError {
			return c.logged // which of the two is wrong is known in a moment
		}
		return own
	case 1:
		// Of two that differ it is the one that does not fit to what was.
		if apart(own, shown[0]) > clockSlack && !c.logged.IsZero() && apart(shown[0], c.logged) < apart(own, c.logged) {
			return shown[0]
		}
		return own
	}
	shown = append(shown, own)
	slices.SortFunc(shown, time.Time.Compare)
	low, high := shown[(len(shown)-1)/2], shown[len(shown)/2]
	switch {
	case own.Before(low.Add(-clockSlack)):
		return low
	case own.After(high.Add(clockSlack)):
		return high
	}
	return own
}

// agreed tells whether members' clocks say that the farm's time is right enough to end a
// membership by: most of those that are heard, and one at least.
func (c *clocks) agreed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return 2*c.near() > len(c.others)
}

// steady tells whether it is right enough to forget jobs by, which must go on where nobody
// else is: it has not been set for a while, and most clocks do not say otherwise.
func (c *clocks) steady(at time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return at.Sub(c.moved) >= clockError && 2*c.near() >= len(c.others)
}

// near counts the others whose clocks agree with the farm's time. c.mu is held.
func (c *clocks) near() (n int) {
	for _, r := range c.others {
		if apart(r.began, c.taken) <= clockError {
			n++
		}
	}
	return n
}

func apart(a, b time.Time) time.Duration { return a.Sub(b).Abs() }

// now is the farm's time.
func (l *leader) now() time.Time { return l.clocks.now(l.c.log().cfg.Now(), time.Now()) }

// now is the farm's time where this machine leads, and what its own clock shows elsewhere.
func (c *Coordinator) now() time.Time {
	if l := c.leading.Load(); l != nil {
		return l.now()
	}
	return c.log().cfg.Now()
}

// newClocks is for the term that begins now.
func (c *Coordinator) newClocks() *clocks {
	st := c.Status()
	return newClocks(time.Now(), c.log().fsm.latest(), len(st.Voters)+len(st.Standbys) < 2)
}
