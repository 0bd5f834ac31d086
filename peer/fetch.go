package peer

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
	"vizpeer/lease"
)

// fetcher brings content into the store from the peers that hold it.
type fetcher interface {
	Fetch(context.Context, swarm.Request) error
}

// sources knows whom to ask for some content: first whom an order named, and
// then, where they could not give it, whoever has it by now.
type sources struct {
	link  *link
	root  cid.Cid
	by    lease.Scope
	from  []coord.Addr
	tried bool
}

// next lists whom to ask in the next try.
func (s *sources) next(ctx context.Context) []peer.AddrInfo {
	if s.tried || len(s.from) == 0 {
		if from, err := s.link.Find(ctx, s.root, s.by); err == nil && len(from) > 0 {
			s.from = from
		}
	}
	s.tried = true
	return infos(s.from)
}

// isFull tells that this machine's store or disk cannot take something.
func isFull(err error) bool {
	return errors.Is(err, blobs.ErrDiskFull) || errors.Is(err, blobs.ErrNoRoom)
}

// fetchPatience is how long an attempt tries to fetch its project: longer than the
// leader needs to notice that a holder is lost.
const fetchPatience = 4 * coord.LeaseTTL

// bring fetches a project, again and again while its patience lasts: a holder
// that is away for a moment is no fault of this machine's. Without a leader nobody
// may give anything, and its patience does not wear.
func (w *worker) bring(ctx context.Context, f swarm.Request, s *sources) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, 5*time.Second
	for began := time.Now(); ; {
		f.From = s.next(ctx)
		err := w.fetch.Fetch(ctx, f)
		if err == nil || isFull(err) || time.Since(began) > fetchPatience {
			return err
		}
		if w.link.Current() == "" {
			began = time.Now()
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return err
		}
	}
}
