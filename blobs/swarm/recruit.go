package swarm

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/blobs"
)

const (
	maxCandidates = 256
	maxSources    = 24 // at once
	maxOpening    = 8  // that have not answered yet
	// silence is how long a source may owe and send nothing before it loses what
	// others have as well; if it goes on as long, it is left.
	silence = 8 * time.Second
	// lendTime is how long pieces are left to whoever was promised them: it may not
	// be known here, or die.
	lendTime = 2 * time.Second

	maxRetries     = 8 // of a source that broke off, in a row
	firstRetry     = 250 * time.Millisecond
	maxRetry       = 5 * time.Second
	reasonsToPrint = 5
)

// candidate is a peer that may be a source.
type candidate struct {
	info    peer.AddrInfo
	source  *source // while it is asked
	fresh   bool    // to be asked
	retry   time.Time
	tries   int
	banned  bool
	granted bool // it has given something, or said that it would
	err     error
}

// loans are pieces that others have been promised.
type loans struct {
	since  time.Time
	pieces []uint32
}

// lend leaves pieces to others for a while; the caller holds mu, in the round of
// the leaves.
func (f *fetch) lend(pieces []uint32) {
	if len(pieces) == 0 {
		return
	}
	for _, i := range pieces {
		f.round.picker.lend(i)
	}
	f.loans = append(f.loans, loans{time.Now(), pieces})
}

func (f *fetch) wakeAll() {
	for s := range f.sources {
		s.signal()
	}
}

func (f *fetch) signal() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// offer names peers that may be sources. again asks those anew who gave nothing.
func (f *fetch) offer(again bool, from ...peer.AddrInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, info := range from {
		if info.ID == f.e.host.ID() {
			continue
		}
		c := f.candidates[info.ID]
		if c == nil {
			if len(f.candidates) >= maxCandidates {
				break
			}
			c = &candidate{info: info, fresh: true}
			f.candidates[info.ID] = c
			f.order = append(f.order, c)
			continue
		}
		c.info.Addrs = append(c.info.Addrs[:len(c.info.Addrs):len(c.info.Addrs)], info.Addrs...)
		if len(c.info.Addrs) > 64 {
			c.info.Addrs = info.Addrs
		}
		if again && !c.banned && c.source == nil {
			c.fresh = true
		}
	}
	f.signal()
}

// recruit opens streams to candidates, or says why there is none left to wait for.
func (f *fetch) recruit(r *round, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	opening, hope := 0, false
	for s := range f.sources {
		if !s.welcome {
			opening++
		}
	}
	for _, c := range f.order {
		if c.source != nil {
			hope = true
			continue
		}
		if !c.retry.IsZero() && !now.Before(c.retry) {
			c.fresh, c.retry = true, time.Time{}
		}
		hope = hope || c.fresh || !c.retry.IsZero()
		if c.fresh && !f.over && len(f.sources) < maxSources && opening < maxOpening {
			opening++
			f.open(c)
		}
	}
	if hope {
		return nil
	}
	return f.nobody(ErrNoSource, r.picker.missing, "is a peer that holds it online, and may this one have it?")
}

// nobody explains why blocks are missing; the caller holds mu.
func (f *fetch) nobody(kind error, missing int, next string) error {
	var reasons []error
	for _, c := range f.order {
		err := c.err
		switch s := c.source; {
		case s == nil:
		case s.strikes > 0:
			err = fmt.Errorf("%w: %d blocks from it had another hash than they should; its copy may be damaged", errRotten, s.strikes)
		case !s.welcome:
			err = errors.New("it has not answered yet")
		case s.supply != nil && len(s.supply.owed) > 0:
			err = fmt.Errorf("it was asked for %d blocks and has not sent them", len(s.supply.owed))
		default:
			err = errors.New("it does not have them either")
		}
		if err != nil && len(reasons) < reasonsToPrint {
			reasons = append(reasons, fmt.Errorf("peer %s: %w", c.info.ID, err))
		}
	}
	err := fmt.Errorf("%w: %d blocks missing; %s", kind, missing, next)
	if len(f.order) == 0 {
		return fmt.Errorf("%w (no peer was named that might)", err)
	}
	return fmt.Errorf("%w\n%w", err, errors.Join(reasons...))
}

// watch looks for sources that are silent, and for a fetch that is.
func (f *fetch) watch(r *round, now time.Time, moving bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if moving || f.storing > 0 {
		f.advanced = now
	}
	for len(f.loans) > 0 && now.Sub(f.loans[0].since) >= lendTime {
		for _, i := range f.loans[0].pieces {
			r.picker.unlend(i)
		}
		f.loans = f.loans[1:]
	}
	if idle := now.Sub(f.advanced); idle >= f.e.cfg.StallTimeout {
		return f.nobody(blobs.ErrStalled, r.picker.missing,
			fmt.Sprintf("nothing came for %v; is a peer that holds all of it online? Try again: what came is kept", f.e.cfg.StallTimeout))
	}
	for s := range f.sources {
		if s.supply == nil || len(s.supply.owed) == 0 {
			continue
		}
		quiet := now.Sub(s.heard(now))
		if quiet > 2*tickTime {
			s.rate = min(s.rate, float64(s.supply.owes)/quiet.Seconds())
			s.supply.rate = s.rate
		}
		if quiet < silence {
			continue
		}
		lost := r.picker.disperse(s.supply)
		if len(lost) == 0 {
			continue // asked for again, what is on its way would come twice
		}
		came := s.came.Load()
		if came == s.struck {
			s.end(fmt.Errorf("it sent nothing for %v", 2*silence))
			continue
		}
		s.asked, s.struck = now, came
		s.cancels = append(s.cancels, lost...)
	}
	f.wakeAll()
	return nil
}
