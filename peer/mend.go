package peer

import (
	"context"
	"time"
)

// mendPause is how long damage waits for more to be found, before it is mended: a
// rotten block is seldom alone. Where the mending is long, the pause is longer, so
// that at most a twentieth of the time goes into it.
const mendPause = time.Second

// hurt says that pinned content may lack something, which mend then looks for. It
// does not block.
func (p *Peer) hurt() {
	select {
	case p.damaged <- struct{}{}:
	default: // it is known already
	}
}

// mend has what is pinned here whole again, or the farm told, soon after a read has
// dropped some of it, until ctx ends. What it misses, say by a crash, the scrubber
// finds.
func (p *Peer) mend(ctx context.Context) error {
	for pause := mendPause; ; {
		select {
		case <-p.damaged:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		select {
		case <-p.damaged: // meanwhile
		default:
		}
		began := time.Now()
		lacking, err := p.store.Lacking(ctx)
		if err != nil && ctx.Err() == nil {
			p.slog.Warn("what is missing from the store could not be found out; the next reading through does", "err", err)
		}
		p.repair(ctx, lacking)
		pause = max(mendPause, 20*time.Since(began))
	}
}
