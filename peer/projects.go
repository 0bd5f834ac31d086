package peer

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"vizpeer/blobs"
)

// projects unpacks projects for attempts, once for all attempts that need the
// same one at a time or one soon after another. A Blender that waits for the next
// attempt may hold one longer than its attempt.
type projects struct {
	dir   string
	store *blobs.Store
	slog  *slog.Logger

	mu    sync.Mutex
	inUse map[cid.Cid]*unpacked
	idle  *unpacked // the one used last, while nobody uses it: mostly the next attempt is of the same job
}

// projectIdle is how long an unpacked project waits for the next attempt.
const projectIdle = 10 * time.Second

// unpacked is a project that attempts use. Whoever opens it first unpacks it.
type unpacked struct {
	root  cid.Cid
	users int           // attempts, and those that hold it
	holds int           // of the latter
	ready chan struct{} // closed when folder or err is set
	folder
	err    error
	spoilt bool        // it is not as it was
	end    *time.Timer // of idle
}

// folder is where a project was unpacked, and what was there then.
type folder struct {
	dir   string
	files inventory
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

// opened is a project that an attempt reads in dir, until release.
type opened struct {
	dir     string
	release func()
	hold    func() (letGo func()) // keeps dir longer; called before release
}

// open unpacks the project, where it is not. It may wait for another attempt that
// unpacks the same project; should that one be stopped, the project is unpacked anew.
// confined tells that Blender cannot write there.
func (p *projects) open(ctx context.Context, root cid.Cid, confined bool) (o opened, err error) {
	for {
		u, first, held, before := p.join(root)
		release := sync.OnceFunc(func() { p.leave(u) })
		if first {
			u.folder, u.err = p.unpack(ctx, root, before, confined)
			close(u.ready)
		}
		select {
		case <-u.ready:
		case <-ctx.Done():
			release()
			return o, ctx.Err()
		}
		if u.err == nil && held && !confined && !u.files.holds(u.dir) {
			// As for one that is idle: a scene wrote there. Those that hold it may keep it.
			p.disown(u)
			release()
			continue
		}
		if u.err == nil {
			return opened{u.dir, release, func() func() { return p.hold(u) }}, nil
		}
		release()
		if first || ctx.Err() != nil {
			return o, u.err
		}
	}
}

// hold keeps a project in use until letGo.
func (p *projects) hold(u *unpacked) (letGo func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.users++
	u.holds++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		u.holds--
		p.mu.Unlock()
		p.leave(u)
	})
}

// disown lets nobody else use the folder of a project.
func (p *projects) disown(u *unpacked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inUse[u.root] == u {
		delete(p.inUse, u.root)
	}
	u.spoilt = true
}

// has tells whether the project is unpacked: then all of it is here.
func (p *projects) has(root cid.Cid) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.inUse[root]
	return u != nil && u.isReady() && u.err == nil || p.idle != nil && p.idle.root == root
}

// unpack makes the folder of a project, or takes over the one that was idle.
func (p *projects) unpack(ctx context.Context, root cid.Cid, before *unpacked, confined bool) (f folder, err error) {
	if before != nil {
		// Where Blender is not confined a scene of the last attempt's may have written
		// where it should not.
		if before.root == root && (confined || before.files.holds(before.dir)) {
			return before.folder, nil
		}
		p.remove(before.dir) // first: there may be room for one alone
	}
	// The name is random: Blender may run as this user, and must not find the
	// folder by the project's name.
	if f.dir, err = os.MkdirTemp(p.dir, "project-"); err != nil {
		return f, err
	}
	if err := p.store.Export(ctx, root, f.dir); err != nil {
		return f, err
	}
	f.files, err = takeInventory(f.dir)
	return f, err
}

// join finds the project in use, or makes the caller the one to unpack it, who then
// also owns what was idle. held tells that it was used before by what holds it still.
func (p *projects) join(root cid.Cid) (u *unpacked, first, held bool, before *unpacked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u = p.inUse[root]
	if u != nil && u.isReady() && u.err != nil { // it failed for another attempt, perhaps because that was stopped
		u = nil
	}
	if u == nil {
		u, first = &unpacked{root: root, ready: make(chan struct{})}, true
		p.inUse[root] = u
		before = p.takeIdle()
	}
	u.users++
	return u, first, u.holds > 0, before
}

func (u *unpacked) isReady() bool {
	select {
	case <-u.ready:
		return true
	default:
		return false
	}
}

// takeIdle makes the caller the owner of the idle project, if there is one. p.mu is
// held.
func (p *projects) takeIdle() *unpacked {
	u := p.idle
	if p.idle = nil; u != nil {
		u.end.Stop()
	}
	return u
}

// leave gives a project up. With its last user it becomes the idle one.
func (p *projects) leave(u *unpacked) {
	p.mu.Lock()
	u.users--
	if u.users > 0 {
		p.mu.Unlock()
		return
	}
	if p.inUse[u.root] == u {
		delete(p.inUse, u.root)
	}
	gone := u
	if u.isReady() && u.err == nil && !u.spoilt {
		gone = p.takeIdle()
		p.idle = u
		u.end = time.AfterFunc(projectIdle, func() { p.rest(u) })
	}
	p.mu.Unlock()
	if gone != nil {
		p.remove(gone.dir)
	}
}

// rest removes the idle project, if it is still u.
func (p *projects) rest(u *unpacked) {
	p.mu.Lock()
	idle := p.idle == u
	if idle {
		p.takeIdle()
	}
	p.mu.Unlock()
	if idle {
		p.remove(u.dir)
	}
}

// close removes what is idle. Nothing may be in use.
func (p *projects) close() {
	p.mu.Lock()
	u := p.takeIdle()
	p.mu.Unlock()
	if u != nil {
		p.remove(u.dir)
	}
}

func (p *projects) remove(dir string) {
	if dir == "" {
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		p.slog.Warn("an unpacked project could not be removed; the next start does", "err", err)
	}
}

// inventory is what lies below a folder, by path: enough to notice what was written
// there by mistake.
type inventory map[string]fileMark

type fileMark struct {
	size    int64
	changed int64 // Unix nanoseconds
	mode    fs.FileMode
}

func takeInventory(dir string) (inventory, error) {
	files := make(inventory)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		files[path] = fileMark{info.Size(), info.ModTime().UnixNano(), info.Mode()}
		return nil
	})
	return files, err
}

// holds tells whether the folder is as it was.
func (i inventory) holds(dir string) bool {
	now, err := takeInventory(dir)
	return err == nil && maps.Equal(i, now)
}
