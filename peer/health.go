package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"vizpeer/peer/cert"
	"vizpeer/peer/httpapi"
)

const (
	// maxSkew is how far this machine's clock may be from the leader's: sessions last an
	// hour, and certificates are good from an hour before they are made.
	maxSkew = time.Minute
	// maxBehind is how many entries of the log may wait to be applied.
	maxBehind = 1000
	// writtenLasts is how long the answer whether the disk can be written is gone by.
	writtenLasts = 5 * time.Second
)

// clock is what this machine knows of the leader's: what both said at one moment.
type clock struct{ here, there time.Time }

// clockAt notes both clocks; there is zero where an earlier version leads.
func clockAt(here, there time.Time) clock {
	if there.IsZero() {
		return clock{}
	}
	return clock{here, there}
}

// skew is how far this machine's clock is ahead at now, which must carry a monotonic
// reading as clockAt's did: where the clock was set since, that shows.
func (c clock) skew(now time.Time) time.Duration {
	if c.there.IsZero() {
		return 0
	}
	return now.Round(0).Sub(c.there.Add(now.Sub(c.here)))
}

// Clock is what is known of the leader's clock.
func (l *link) Clock() clock {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock
}

// health remembers what costs something to find out.
type health struct {
	mu      sync.Mutex
	written error
	until   time.Time
}

// writable tells why the folder cannot be written to, from a file that it writes, but not
// more often than every writtenLasts: anybody may ask.
func (h *health) writable(dir dataDir) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		h.written, h.until = tryWrite(dir.path("store")), now.Add(writtenLasts)
	}
	return h.written
}

func tryWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".ready-*")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("ready\n"))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// Ready lists what must be well for this peer to be of use.
func (l local) Ready(context.Context) []httpapi.Check {
	return []httpapi.Check{
		{Name: "joined", Err: l.joined()}, {Name: "leader", Err: l.led(), Say: l.leaderlessFor()}, {Name: "log", Err: l.caughtUp()},
		{Name: "store", Err: l.stores()}, {Name: "clock", Err: l.sane()}, {Name: "certificate", Err: l.certified()},
	}
}

func (l local) joined() error {
	v := l.gate.view()
	if v == nil {
		return errors.New("the farm's roster has not been seen")
	}
	if _, ok := v.Member(l.self); !ok {
		return errors.New("this machine is no member any more: join again with a ticket")
	}
	return nil
}

func (l local) led() error {
	if l.link.Current() == "" {
		return httpapi.ErrNoLeader
	}
	return nil
}

// leaderlessFor says for how long nobody has led, without a word about other machines:
// anybody may ask.
func (l local) leaderlessFor() string {
	if since, lost := l.link.Lost(); lost {
		return awayText(time.Since(since))
	}
	return ""
}

func (l local) caughtUp() error {
	if l.coord == nil {
		return nil
	}
	s := l.coord.Status()
	if s.CommitIndex > s.AppliedIndex+maxBehind {
		return fmt.Errorf("%d entries of the queue's log are still to be applied here", s.CommitIndex-s.AppliedIndex)
	}
	return nil
}

func (l local) stores() error {
	if can := l.ads.Can(); httpapi.Full(&can) != "" {
		return errors.New(httpapi.Full(&can))
	}
	return l.health.writable(l.dir)
}

func (l local) sane() error {
	if skew := l.link.Clock().skew(time.Now()); skew.Abs() > maxSkew {
		return fmt.Errorf("this machine's clock is %v off the leader's: have both set by the network", skew.Round(time.Second))
	}
	return nil
}

func (l local) certified() error {
	if l.certs.wanted == nil {
		return nil // nothing shows one
	}
	if err := l.certs.listener.Check(time.Now()); err != nil {
		return err
	}
	if leaf := l.certs.listener.Leaf(); time.Until(leaf.Until()) < cert.LeafLife/100 && time.Now().After(leaf.Due()) {
		return fmt.Errorf("the certificate ends at %s and could not be renewed", leaf.Until().Format(time.DateTime))
	}
	return nil
}
