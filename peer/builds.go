package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/portable"
)

// buildPin is the pin of an offered Blender's folder: whoever has it keeps it, so that
// others can have it when whoever offered it is away.
func buildPin(root string) string { return "blender:" + root }

// builds are the Blenders that this machine has from the farm, each unpacked in a
// folder that is named by its CID. It fetches one when the leader says that a job needs
// it, and goes by its own roster alone: nothing is fetched, or kept, that no admin
// offers.
type builds struct {
	dir   string
	store *blobs.Store
	view  func() *authz.View
	bring func(context.Context, cid.Cid) error
	// probe finds out anew what the machine can do, with the Blenders at these paths
	// beside its own; nil: it takes none from the farm.
	probe func(context.Context, []string) (lease.Capability, error)
	can   func() lease.Capability // what others were told
	uses  func(dir string) bool   // an attempt runs a Blender from there
	tell  func()                  // the machine can do more, or less: others should hear of it; must not block
	letGo func()                  // pins were taken back; must not block
	slog  *slog.Logger
	nudge chan struct{}
	// now is what the machine can do since it was last asked; nil: as at the start.
	now atomic.Pointer[lease.Capability]

	mu      sync.Mutex
	wanted  map[string]bool // by root
	refused map[string]bool // that did not work here, in the life of this process
}

// openBuilds uses dir, and removes what an earlier process had not finished.
func openBuilds(dir string) (*builds, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the farm's Blenders: %w", err)
	}
	// As a Blender's own path is told.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	unfinished, _ := filepath.Glob(filepath.Join(dir, unfinishedBuild+"*"))
	for _, d := range unfinished {
		if err := portable.Remove(d); err != nil {
			return nil, fmt.Errorf("remove what is left of a Blender: %w", err)
		}
	}
	return &builds{dir: dir, nudge: make(chan struct{}, 1), wanted: make(map[string]bool), refused: make(map[string]bool)}, nil
}

const unfinishedBuild = ".part-"

// want says that a job needs an offered Blender. It does not block.
func (b *builds) want(root string) {
	b.mu.Lock()
	if len(b.wanted) < authz.MaxOffers { // no honest leader says more
		b.wanted[root] = true
	}
	b.mu.Unlock()
	b.look()
}

// look asks for a look at what is offered. It does not block.
func (b *builds) look() {
	select {
	case b.nudge <- struct{}{}:
	default:
	}
}

// fetchedBuilds lists, by root, the programs in dir that v offers.
func fetchedBuilds(dir string, v *authz.View) map[string]string {
	programs := make(map[string]string)
	if v == nil {
		return programs
	}
	for _, o := range v.Offers() {
		folder := filepath.Join(dir, o.Root)
		if m, err := portable.Read(folder); err == nil {
			programs[o.Root] = filepath.Join(folder, filepath.FromSlash(m.Program))
		}
	}
	return programs
}

// Fetched lists the programs of the Blenders that the machine of a data folder has from
// its farm.
func Fetched(folder string) []string {
	d := dataDir(folder)
	m, err := d.membership()
	if err != nil {
		return nil // it has no farm
	}
	view, err := d.roster(m.Farm)
	if err != nil {
		return nil // whoever starts the peer is told
	}
	return programsOf(fetchedBuilds(d.path("blenders"), view))
}

// programsOf lists the programs of fetched Blenders in the order of their roots.
func programsOf(fetched map[string]string) []string {
	var list []string
	for _, path := range fetched {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

// How long the fetching of a Blender pauses after a failure, and how soon one that is
// withdrawn is looked at again while something of it is in use.
const (
	minBuildPause = 10 * time.Second
	maxBuildPause = 10 * time.Minute
	buildInUse    = 2 * time.Second
)

// Run keeps what is offered, removes what is not any more, and fetches what is wanted,
// until ctx ends.
func (b *builds) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minBuildPause, maxBuildPause
	b.look()
	var again, retry <-chan time.Time
	for {
		select {
		case <-b.nudge:
		case <-again:
		case <-retry:
		case <-ctx.Done():
			return nil
		}
		again, retry = nil, nil
		v := b.view()
		if v == nil {
			continue
		}
		b.keep(ctx, v)
		if !b.drop(ctx, v) {
			again = time.After(buildInUse)
		}
		switch err := b.next(ctx, v); {
		case ctx.Err() != nil:
		case err != nil:
			retry = time.After(pause.NextBackOff())
		default:
			pause.Reset()
		}
	}
}

// keep pins what is offered and here, and nothing else.
func (b *builds) keep(ctx context.Context, v *authz.View) {
	pinned := make(map[string]bool)
	for pin, err := range b.store.Pins(ctx) {
		if err != nil {
			return // it is looked at again with the next change
		}
		if root, ok := strings.CutPrefix(pin.Holder, buildPin("")); ok {
			pinned[root] = true
		}
	}
	for root := range pinned {
		if _, offered := v.Offered(root); !offered {
			if _, err := b.store.UnpinAll(ctx, buildPin(root)); err != nil {
				b.slog.Warn("a Blender that is not offered any more could not be let go", "root", root, "err", err)
			}
			b.letGo()
		}
	}
	for _, o := range v.Offers() {
		root, err := blobs.ParseCID(o.Root)
		if err != nil || pinned[o.Root] {
			continue
		}
		if whole, err := b.store.Has(ctx, root); err != nil || !whole {
			continue
		}
		if err := b.store.Pin(ctx, root, buildPin(o.Root)); err != nil {
			b.slog.Warn("a Blender that is offered could not be kept", "root", o.Root, "err", err)
		}
	}
}

// drop removes the folders of what is not offered any more, or all where this machine
// takes none. It is false while some is in use, or others believe that it is there.
func (b *builds) drop(ctx context.Context, v *authz.View) (done bool) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		b.slog.Warn("the folder of the farm's Blenders cannot be read", "err", err)
		return true
	}
	done = true
	for _, e := range entries {
		if _, offered := v.Offered(e.Name()); offered && b.probe != nil {
			continue
		}
		folder := filepath.Join(b.dir, e.Name())
		if b.told(folder) {
			// First nobody may count on it.
			if b.probe != nil {
				_ = b.ask(ctx, v) // else it is asked again
			}
			done = false
			continue
		}
		if b.uses(folder) {
			done = false
			continue
		}
		if err := portable.Remove(folder); err != nil {
			b.slog.Warn("a Blender that is not offered any more could not be removed", "folder", folder, "err", err)
			continue
		}
		b.slog.Info("a Blender that is not offered any more was removed", "root", e.Name())
	}
	return done
}

// told tells whether others were told of a Blender in folder.
func (b *builds) told(folder string) bool {
	return slices.ContainsFunc(b.can().Builds, func(l lease.Build) bool { return inFolder(l.Path, folder) })
}

func inFolder(path, folder string) bool {
	return strings.HasPrefix(path, folder+string(filepath.Separator))
}

// ask finds out what the machine can do with the Blenders that it has now.
func (b *builds) ask(ctx context.Context, v *authz.View) error {
	can, err := b.probe(ctx, programsOf(fetchedBuilds(b.dir, v)))
	if err != nil {
		return err
	}
	can.Fetches = true
	b.now.Store(&can)
	b.tell()
	return nil
}

// errUnfit tells that a Blender is here, and of no use.
var errUnfit = errors.New("it is not what the farm offers")

// next fetches what is wanted, one after the other. The error says that some of it
// should be tried again.
func (b *builds) next(ctx context.Context, v *authz.View) error {
	b.mu.Lock()
	var roots []string
	for root := range b.wanted {
		roots = append(roots, root)
	}
	b.mu.Unlock()
	slices.Sort(roots)
	var failed error
	for _, root := range roots {
		o, offered := v.Offered(root)
		b.mu.Lock()
		if !offered || b.told(filepath.Join(b.dir, root)) || b.refused[root] || b.probe == nil {
			delete(b.wanted, root) // it is asked for again where it should be
			offered = false
		}
		b.mu.Unlock()
		if !offered {
			continue
		}
		log := b.slog.With("root", root, "version", o.Version)
		var err error
		if fetchedBuilds(b.dir, v)[root] == "" {
			log.Info("fetching a Blender that the farm offers, as a job needs it", "bytes", o.Size)
			err = b.fetch(ctx, o)
		}
		if err == nil {
			err = b.try(ctx, o)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errUnfit):
			log.Warn("a Blender that the farm offers does not work here, so this machine does not offer it", "err", err)
			b.mu.Lock()
			b.refused[root] = true
			b.mu.Unlock()
		case err != nil:
			log.Warn("a Blender that the farm offers could not be fetched; it is tried again", "err", err)
			failed = err
		default:
			log.Info("this machine has a Blender from the farm")
		}
	}
	return failed
}

// fetch brings an offered Blender here and unpacks it.
func (b *builds) fetch(ctx context.Context, o authz.Offer) error {
	can := b.can()
	if o.OS != can.OS || o.Arch != can.Arch {
		return fmt.Errorf("%w: it is for %s/%s", errUnfit, o.OS, o.Arch)
	}
	root, err := blobs.ParseCID(o.Root)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	if err := b.store.Pin(ctx, root, buildPin(o.Root)); err != nil {
		return err
	}
	if err := b.bring(ctx, root); err != nil {
		if isFull(err) { // what came takes the room of what is of use
			return errors.Join(err, b.store.Unpin(ctx, root, buildPin(o.Root)))
		}
		return err
	}
	return b.unpack(ctx, root, o)
}

// try asks a Blender that is unpacked what it can do, and removes it where it is not
// what was offered.
func (b *builds) try(ctx context.Context, o authz.Offer) error {
	v := b.view()
	if _, still := v.Offered(o.Root); !still { // it was withdrawn meanwhile, and nobody runs it
		return nil
	}
	if err := b.ask(ctx, v); err != nil {
		return err
	}
	folder := filepath.Join(b.dir, o.Root)
	want, err := lease.BuildOf(o)
	if err == nil && slices.ContainsFunc(b.now.Load().Builds, func(l lease.Build) bool { return inFolder(l.Path, folder) && l.Same(want) }) {
		return nil
	}
	if err := portable.Remove(folder); err != nil {
		return err
	}
	return errors.Join(fmt.Errorf("%w: it does not answer as %s %s does", errUnfit, o.Name, o.Version), b.ask(ctx, v))
}

// unpack makes the folder of a Blender that is in the store. It appears whole or not at
// all.
func (b *builds) unpack(ctx context.Context, root cid.Cid, o authz.Offer) (err error) {
	sum, err := b.store.Size(ctx, root)
	if err != nil {
		return err
	}
	if sum.Files != o.Files || sum.Bytes != o.Size {
		return fmt.Errorf("%w: it has %d files and %d bytes, not %d and %d", errUnfit, sum.Files, sum.Bytes, o.Files, o.Size)
	}
	tmp, err := os.MkdirTemp(b.dir, unfinishedBuild)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, portable.Remove(tmp))
		}
	}()
	if err := b.store.Export(ctx, root, tmp); err != nil {
		return err
	}
	if _, err := portable.Restore(tmp); err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	folder := filepath.Join(b.dir, o.Root)
	if err := portable.Remove(folder); err != nil { // what is there is no Blender
		return err
	}
	return os.Rename(tmp, folder)
}
