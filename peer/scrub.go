package peer

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// All of the store is read again and again: disks forget without a word. It is so
// slow that nobody notices; half a terabyte takes a day and a half.
const (
	scrubRate   = 4 << 20            // bytes a second
	scrubPeriod = 7 * 24 * time.Hour // from the end of one to the start of the next
)

// scrubber reads the store in the background, and at once where a person asks. One
// reads at a time.
type scrubber struct {
	store  *blobs.Store
	dir    dataDir
	slog   *slog.Logger
	repair func(ctx context.Context, damaged []cid.Cid) (repaired, lacking []string)
	every  time.Duration // scrubPeriod
	asked  chan asking   // to read everything now
	gone   chan struct{} // closed when Run has returned
}

func newScrubber(store *blobs.Store, dir dataDir, log *slog.Logger, repair func(context.Context, []cid.Cid) (repaired, lacking []string)) *scrubber {
	return &scrubber{store: store, dir: dir, slog: log, repair: repair, every: scrubPeriod, asked: make(chan asking), gone: make(chan struct{})}
}

// asking is a person's request, answered on done.
type asking struct {
	ctx      context.Context
	progress func(done, total int64)
	done     chan<- scrubbed
}

type scrubbed struct {
	blobs.Scrubbed
	err error
}

// scrubState is what outlives a restart; where an unfinished scrub goes on, the
// store itself remembers.
type scrubState struct {
	Finished time.Time `json:"finished"`
}

// Run scrubs when it is time to, until ctx ends.
func (s *scrubber) Run(ctx context.Context) error {
	defer close(s.gone)
	var state scrubState
	_ = s.dir.readJSON("scrub.json", &state) // lost, it is only done sooner
	if state.Finished.IsZero() || state.Finished.After(time.Now()) {
		// A new machine has nothing to read.
		state.Finished = time.Now()
		s.note(state)
	}
	due := time.NewTimer(time.Until(state.Finished.Add(s.every)))
	defer due.Stop()
	for {
		var ask *asking
		select {
		case <-due.C:
			var err error
			if ask, err = s.slowly(ctx); err != nil && ctx.Err() == nil {
				s.slog.Warn("the store could not be read through; it is tried again in an hour", "err", err)
				due.Reset(time.Hour)
				continue
			}
		case a := <-s.asked:
			ask = &a
		case <-ctx.Done():
		}
		if ask != nil { // answered in any case
			if err := s.answer(ctx, ask); err != nil && ctx.Err() == nil {
				due.Reset(max(0, time.Until(state.Finished.Add(s.every))))
				continue
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		state.Finished = time.Now()
		s.note(state)
		due.Reset(s.every)
	}
}

func (s *scrubber) note(state scrubState) {
	if err := s.dir.writeJSON("scrub.json", state, 0o600); err != nil {
		s.slog.Warn("when the store was read through could not be noted", "err", err)
	}
}

// slowly reads the store in the background and repairs it. A person who asks
// meanwhile ends it, and is answered by the caller.
func (s *scrubber) slowly(ctx context.Context) (ask *asking, err error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	s.slog.Debug("reading the store through")
	tenth := int64(-1)
	ended := make(chan scrubbed, 1)
	go func() {
		found, err := s.store.Scrub(reading, scrubRate, func(done, total int64) {
			if total > 0 && done*10/total != tenth {
				tenth = done * 10 / total
				s.slog.Debug("reading the store through", "bytes", done, "of", total)
			}
		})
		ended <- scrubbed{found, err}
	}()
	var found scrubbed
	select {
	case a := <-s.asked:
		ask = &a
		stop()
		found = <-ended
		found.err = nil
	case found = <-ended:
	}
	if len(found.Lost) > 0 {
		s.slog.Warn("content is damaged", "blocks", found.Dropped, "roots", len(found.Lost))
		s.repair(ctx, found.Lost)
	}
	if found.err == nil && ask == nil {
		s.slog.Debug("the store was read through", "blocks", found.Blocks, "bytes", found.Bytes, "damaged", found.Dropped)
	}
	return ask, found.err
}

// answer reads everything for a person.
func (s *scrubber) answer(ctx context.Context, ask *asking) error {
	reading, stop := context.WithCancel(ask.ctx)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	found, err := s.everything(reading, ask.progress)
	ask.done <- scrubbed{found, err}
	return err
}

// everything reads the whole store as fast as it can. A scrub goes on where an
// earlier one ended, so a second may be needed.
func (s *scrubber) everything(ctx context.Context, progress func(done, total int64)) (blobs.Scrubbed, error) {
	held, err := s.store.Stat(ctx)
	if err != nil {
		return blobs.Scrubbed{}, err
	}
	found, err := s.store.Scrub(ctx, 0, progress)
	if err != nil || found.Blocks >= held.Blocks {
		return found, err
	}
	rest, err := s.store.Scrub(ctx, 0, progress)
	rest.Dropped += found.Dropped
	for _, c := range found.Lost {
		if !slices.Contains(rest.Lost, c) {
			rest.Lost = append(rest.Lost, c)
		}
	}
	return rest, err
}

// Now has everything read at once, for a person.
func (s *scrubber) Now(ctx context.Context, progress func(done, total int64)) (blobs.Scrubbed, error) {
	done := make(chan scrubbed, 1)
	select {
	case s.asked <- asking{ctx, progress, done}:
		found := <-done
		return found.Scrubbed, found.err
	case <-ctx.Done():
		return blobs.Scrubbed{}, ctx.Err()
	case <-s.gone:
		return blobs.Scrubbed{}, errShutdown
	}
}
