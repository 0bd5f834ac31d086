package blobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
)

// room sees to it that the folder never grows beyond its quota, nor the disk runs
// full: whoever writes asks first.
type room struct {
	quota     int64
	high, low float64

	mu       sync.Mutex
	granted  int64 // may be written, and is not counted by diskUse yet
	tidied   int64 // how large the folder was after the last tidy
	reserved int64 // the sum of all reservations
	index    int64 // what the index took of the disk when it was measured last
	measured time.Time

	making sync.Mutex    // one makes room, the others wait for it
	behind chan struct{} // holds one while the folder is brought below the low mark
}

// reservation is the room kept for one writer. The zero value keeps none.
type reservation struct{ left int64 } // guarded by room.mu

// defaultQuota is a fifth of the disk, between 10 and 500 GiB.
func defaultQuota(dir string) int64 {
	const least, most = 10 << 30, 500 << 30
	u, err := disk.Usage(dir)
	if err != nil {
		return least
	}
	return min(max(int64(u.Total/5), least), most)
}

// limit is how large the folder may be now, given its size: the quota, or less
// where the disk has too little left.
func (s *Store) limit(used int64) (limit int64, free uint64) {
	limit = s.space.quota
	if s.cfg.MinFree < 0 {
		return limit, 0
	}
	u, err := disk.Usage(s.dir)
	if err != nil {
		s.log.Debug("cannot tell the free space", "dir", s.dir, "err", err)
		return limit, 0
	}
	return min(limit, used+int64(u.Free)-s.cfg.MinFree), u.Free
}

// indexSlack is what the index may grow by before it is measured again: Badger
// writes a table anew before it removes the old one.
func (s *Store) indexSlack() int64 { return min(16<<20, s.space.quota/16) }

// The index is measured file by file. Where there is plenty of room, what it took a
// moment ago will do: it cannot have grown by that much since.
const (
	plenty     = 64 << 20
	measureAge = 100 * time.Millisecond
)

// shortage is by how much the folder would be too large with n bytes more beside
// those that are granted and reserved, and with the slack. s.space.mu is held.
func (s *Store) shortage(n, slack int64) (short int64, st roomState, err error) {
	if time.Since(s.space.measured) < measureAge {
		if short, st = s.shortBy(n, slack); short < -plenty {
			return short, st, nil
		}
	}
	if s.space.index, err = diskUse(s.index.dir); err != nil {
		return 0, st, err
	}
	s.space.measured = time.Now()
	short, st = s.shortBy(n, slack)
	return short, st, nil
}

// shortBy is shortage by what the index took when it was measured. s.space.mu is held.
func (s *Store) shortBy(n, slack int64) (short int64, st roomState) {
	st.used = s.space.index + s.packs.Allocated() + s.journal.bytes()
	st.limit, st.free = s.limit(st.used)
	st.need = s.space.reserved + s.space.granted + n + slack + s.index.ballast.lacking()
	return st.used + st.need - st.limit, st
}

type roomState struct {
	used, limit, need int64
	free              uint64
}

// takeRoom waits until n bytes may be written, which come out of v as far as it
// goes; release them when diskUse counts them. It evicts if need be. Errors:
// ErrNoRoom, ErrDiskFull.
func (s *Store) takeRoom(ctx context.Context, n int64, v *reservation) (release func(), err error) {
	err = s.makeRoom(ctx, n, func() (bool, roomState, error) { return s.grant(n, v) })
	if err != nil {
		return nil, err
	}
	return func() { s.release(n) }, nil
}

// grant lets n bytes be written if there is room for them now. s.space.mu is held.
func (s *Store) grant(n int64, v *reservation) (bool, roomState, error) {
	own, slack := min(n, v.left), s.indexSlack()
	if own == n {
		slack = 0 // it is promised, and the slack is for what the index grows by since
	}
	short, st, err := s.shortage(n-own, slack)
	if err != nil || short > 0 {
		return false, st, err
	}
	v.left -= own
	s.space.reserved -= own
	s.space.granted += n
	return true, st, nil
}

// release takes back what was granted.
func (s *Store) release(n int64) {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	s.space.granted -= n
}

// Reserve makes room for bytes to come, evicting the least recently used roots
// that no pin holds, and keeps it until Close for what is added to the intake:
// nobody else that writes or reserves gets any of it. Errors: ErrNoRoom,
// ErrDiskFull (both name what is there and what is lacking), ctx's.
func (in *Intake) Reserve(ctx context.Context, bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("reserve %d bytes", bytes)
	}
	bytes += bytes / 128 // of the index, and what pages of the disk have left over
	s := in.s
	return s.makeRoom(ctx, bytes, func() (bool, roomState, error) {
		short, st, err := s.shortage(bytes, s.indexSlack())
		if err != nil || short > 0 {
			return false, st, err
		}
		in.w.room.left += bytes
		s.space.reserved += bytes
		return true, st, nil
	})
}

// unreserve gives up what is left of a reservation.
func (s *Store) unreserve(v *reservation) {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	s.space.reserved -= v.left
	v.left = 0
}

// makeRoom evicts until take, which is called with s.space.mu held, says that it
// has got its n bytes.
func (s *Store) makeRoom(ctx context.Context, n int64, take func() (bool, roomState, error)) error {
	try := func() (bool, roomState, error) {
		s.space.mu.Lock()
		defer s.space.mu.Unlock()
		ok, st, err := take()
		if !ok || err != nil {
			return false, st, err
		}
		if st.used+st.need > int64(s.space.high*float64(st.limit)) {
			s.tidy(st)
		}
		return true, st, nil
	}
	ok, st, err := try()
	if ok || err != nil {
		return err
	}
	s.space.making.Lock()
	defer s.space.making.Unlock()
	overhead, err := diskUse(s.index.dir)
	if err != nil {
		return err
	}
	for round := range 4 { // what is freed is an estimate, in pages and tables
		if ok, st, err = try(); ok || err != nil {
			return err
		}
		if st.need > st.limit { // in vain
			break
		}
		if round > 0 { // now that the garbage is gone, what is not blocks will stay
			overhead = max(st.used-s.index.counts().bytes, 0)
		}
		freed, err := s.shrink(ctx, st, overhead)
		if err != nil {
			return err
		}
		if round > 0 && freed.Blocks == 0 && freed.Disk <= 0 {
			break
		}
	}
	ok, st, err = try()
	switch {
	case ok || err != nil:
		return err
	case st.limit < s.space.quota:
		return &diskFullError{dir: s.dir, free: st.free, need: uint64(n), keep: uint64(s.cfg.MinFree)}
	}
	return &noRoomError{dir: s.dir, quota: s.space.quota, used: st.used, need: st.need}
}

// shrink brings the folder below the low mark, and further if more is needed.
// overhead is what it takes beside the bytes of the blocks: the index, and what
// cannot be given back between blocks that stay.
func (s *Store) shrink(ctx context.Context, st roomState, overhead int64) (Freed, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	limit := st.limit - st.need - overhead
	// Blocks take whole pages of the disk, a few more than they have bytes.
	keep := min(int64(s.space.low*float64(st.limit))-overhead, limit)
	keep -= keep / 64
	return s.collect(ctx, max(keep, 0), max(limit, 0))
}

// tidy shrinks the folder behind the scenes, so that whoever writes next need not
// wait for it. Where that did not help, it waits for more to come. s.space.mu is
// held.
func (s *Store) tidy(st roomState) {
	if more := st.used - s.space.tidied; more >= 0 && more < st.limit/64 {
		return
	}
	select {
	case s.space.behind <- struct{}{}:
	default:
		return // at it already
	}
	s.running.Go(func() {
		defer func() { <-s.space.behind }()
		s.space.mu.Lock()
		_, st, err := s.shortage(0, s.indexSlack())
		s.space.mu.Unlock()
		overhead := int64(0)
		if err == nil {
			overhead, err = diskUse(s.index.dir)
		}
		if err == nil {
			_, err = s.shrink(s.ctx, st, overhead)
		}
		if used, uerr := s.diskUse(); uerr == nil {
			s.space.mu.Lock()
			s.space.tidied = used
			s.space.mu.Unlock()
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			s.log.Warn("the store could not be brought below its low mark", "err", err)
		}
	})
}
