package peer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// projects unpacks projects for attempts, once for all attempts that need the
// same one at a time.
type projects struct {
	dir   string
	store *blobs.Store
	slog  *slog.Logger

	mu    sync.Mutex
	inUse map[cid.Cid]*unpacked
}

// unpacked is a project that attempts use. Whoever opens it first unpacks it.
type unpacked struct {
	users int
	ready chan struct{} // closed when dir or err is set
	dir   string
	err   error
}

// newProjects uses dir, which it empties: what an earlier process left there
// belongs to nobody.
func newProjects(dir string, store *blobs.Store, log *slog.Logger) (*projects, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("empty the working folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the working folder: %w", err)
	}
	return &projects{dir: dir, store: store, slog: log, inUse: make(map[cid.Cid]*unpacked)}, nil
}

// open returns the folder that holds the project, for reading only, until
// release. It may wait for another attempt that unpacks the same project; should
// that one be stopped, the project is unpacked anew.
func (p *projects) open(ctx context.Context, root cid.Cid) (dir string, release func(), err error) {
	for {
		u, first := p.join(root)
		release := sync.OnceFunc(func() { p.leave(root, u) })
		if first {
			// The name is random: Blender may run as this user, and must not find the
			// folder by the project's name.
			if u.dir, u.err = os.MkdirTemp(p.dir, "project-"); u.err == nil {
				u.err = p.store.Export(ctx, root, u.dir)
			}
			close(u.ready)
		}
		select {
		case <-u.ready:
		case <-ctx.Done():
			release()
			return "", func() {}, ctx.Err()
		}
		if u.err == nil {
			return u.dir, release, nil
		}
		release()
		if first || ctx.Err() != nil {
			return "", func() {}, u.err
		}
	}
}

// join finds the project in use, or makes the caller the one to unpack it.
func (p *projects) join(root cid.Cid) (u *unpacked, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u = p.inUse[root]
	if u != nil {
		select {
		case <-u.ready:
			if u.err != nil { // it failed for another attempt, perhaps because that was stopped
				u = nil
			}
		default:
		}
	}
	if u == nil {
		u, first = &unpacked{ready: make(chan struct{})}, true
		p.inUse[root] = u
	}
	u.users++
	return u, first
}

// leave removes the folder with its last user.
func (p *projects) leave(root cid.Cid, u *unpacked) {
	p.mu.Lock()
	u.users--
	last := u.users == 0
	if last && p.inUse[root] == u {
		delete(p.inUse, root)
	}
	p.mu.Unlock()
	if last && u.dir != "" {
		if err := os.RemoveAll(u.dir); err != nil {
			p.slog.Warn("an unpacked project could not be removed; the next start does", "err", err)
		}
	}
}
