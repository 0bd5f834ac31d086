package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/probe"
)

// userPin is the pin of what a person keeps on this machine by hand.
func userPin(user string) string { return "user:" + user }

// maxReceipts is how many files an upload may have to get receipts.
const maxReceipts = 100_000

// take puts the files of an upload into a tree: their bytes, or for a receipt
// what is here already. It answers the last file, and receipts in the order of
// the files.
func (l local) take(ctx context.Context, p authz.Principal, tree *blobs.Tree, files iter.Seq2[httpapi.ProjectFile, error]) (last blobs.Entry, receipts []string, err error) {
	var lacking httpapi.Lacking
	n := 0
	for f, err := range files {
		if err != nil {
			return last, nil, err
		}
		switch {
		case f.Receipt != "":
			c, ok := l.receipts.accept(p, f.Receipt)
			if ok {
				last, err = tree.AddHeld(ctx, f.Path, c)
			}
			if !ok || errors.Is(err, blobs.ErrNotFound) {
				if lacking.Paths = append(lacking.Paths, f.Path); len(lacking.Paths) == httpapi.MaxLacking {
					return last, nil, &lacking
				}
				continue
			}
		case len(lacking.Paths) > 0 && f.Size > 0: // the receipts are over
			return last, nil, &lacking
		default:
			last, err = tree.AddFile(ctx, f.Path, f.Body)
		}
		if err != nil {
			return last, nil, err
		}
		if n++; n <= maxReceipts {
			receipts = append(receipts, l.receipts.issue(p, last.CID))
		} else {
			receipts = nil
		}
	}
	if len(lacking.Paths) > 0 {
		return last, nil, &lacking
	}
	return last, receipts, nil
}

// AddBlob stores what a person wants to keep.
func (l local) AddBlob(ctx context.Context, p authz.Principal, files iter.Seq2[httpapi.ProjectFile, error], alone bool) (httpapi.Blob, error) {
	tree := l.store.NewTree()
	defer tree.Abort()
	file, receipts, err := l.take(ctx, p, tree, files)
	if err != nil {
		return httpapi.Blob{}, err
	}
	root, sum, err := tree.Commit(ctx)
	if err != nil {
		return httpapi.Blob{}, err
	}
	if alone && sum.Files != 1 {
		return httpapi.Blob{}, fmt.Errorf("%w: one file was promised and %d came", httpapi.ErrInvalid, sum.Files)
	}
	folder := root
	if alone {
		root = file.CID
	}
	if err := l.store.Pin(ctx, root, userPin(p.User)); err != nil {
		return httpapi.Blob{}, err
	}
	if alone { // nobody wants the folder around it
		if _, err := l.store.Forget(ctx, folder); err != nil {
			return httpapi.Blob{}, err
		}
	}
	return httpapi.Blob{CID: root.String(), Files: sum.Files, Size: sum.Bytes, NewBytes: sum.NewBytes, Receipts: receipts}, nil
}

// root describes one root with its pins.
func (l local) root(ctx context.Context, c cid.Cid, pins []httpapi.Pin) (httpapi.Root, error) {
	r := httpapi.Root{CID: c.String(), Pins: pins}
	var err error
	if r.Whole, err = l.store.Has(ctx, c); err != nil || !r.Whole {
		return r, err
	}
	// A file is what can be opened as one.
	f, _, err := l.store.OpenFile(ctx, c)
	switch {
	case err == nil:
		err = f.Close()
	case errors.Is(err, blobs.ErrBadNode):
		r.Folder, err = true, nil
	}
	if err != nil {
		return r, err
	}
	sum, err := l.store.Size(ctx, c)
	r.Files, r.Size = sum.Files, sum.Bytes
	return r, err
}

// visiblePins are those of pins that p may know of, and whether p may know of the
// root at all.
func visiblePins(p authz.Principal, pins []httpapi.Pin) ([]httpapi.Pin, bool) {
	if p.Role == authz.Admin {
		return pins, true
	}
	for _, pin := range pins {
		if pin.Holder == userPin(p.User) {
			return []httpapi.Pin{pin}, true
		}
	}
	return nil, false
}

// Roots lists what this machine holds or is to hold, the latest used first.
func (l local) Roots(ctx context.Context, p authz.Principal) iter.Seq2[httpapi.Root, error] {
	return func(yield func(httpapi.Root, error) bool) {
		roots, err := l.store.Roots(ctx)
		if err != nil {
			yield(httpapi.Root{}, err)
			return
		}
		// Pins are read before roots are looked at: a damaged block met then is
		// dropped, which the store does not do while its pins are being read.
		pins := make(map[cid.Cid][]httpapi.Pin)
		for pin, err := range l.store.Pins(ctx) {
			if err != nil {
				yield(httpapi.Root{}, err)
				return
			}
			pins[pin.Root] = append(pins[pin.Root], apiPin(pin))
		}
		for _, known := range slices.Backward(roots) {
			visible, ok := visiblePins(p, pins[known.CID])
			if !ok {
				continue
			}
			r, err := l.root(ctx, known.CID, visible)
			if used := known.Used.UTC(); !known.Used.IsZero() {
				r.LastUsed = &used
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func apiPin(p blobs.Pin) httpapi.Pin { return httpapi.Pin{Holder: p.Holder, Since: p.At.UTC()} }

// own finds a root that p may know of; any other does not exist.
func (l local) own(ctx context.Context, p authz.Principal, text string) (cid.Cid, []httpapi.Pin, error) {
	c, err := blobs.ParseCID(text)
	if err != nil {
		return c, nil, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	var all []httpapi.Pin
	for pin, err := range l.store.Pins(ctx) {
		if err != nil {
			return c, nil, err
		}
		if pin.Root == c {
			all = append(all, apiPin(pin))
		}
	}
	pins, ok := visiblePins(p, all)
	if !ok {
		return c, nil, httpapi.ErrNotFound
	}
	return c, pins, nil
}

// known are those of the roots that p may know of.
func (l local) known(ctx context.Context, p authz.Principal, roots []string) []string {
	return slices.DeleteFunc(roots, func(text string) bool {
		_, _, err := l.own(ctx, p, text)
		return err != nil
	})
}

// RootOf describes one root.
func (l local) RootOf(ctx context.Context, p authz.Principal, text string) (httpapi.Root, error) {
	c, pins, err := l.own(ctx, p, text)
	if err != nil {
		return httpapi.Root{}, err
	}
	return l.root(ctx, c, pins)
}

// FetchBlob brings a root here, all of it.
func (l local) FetchBlob(ctx context.Context, p authz.Principal, text string, progress func(done, total int64)) (httpapi.Root, error) {
	c, pins, err := l.own(ctx, p, text)
	if err != nil {
		return httpapi.Root{}, err
	}
	if err := l.bring(ctx, c, lease.Scope{}, 0, progress); err != nil {
		return httpapi.Root{}, err
	}
	return l.root(ctx, c, pins)
}

// bring fetches what this machine lacks of a root: from those who the farm says
// have it by that right or, where it names nobody, from any member that would give
// it. size is how many bytes it has, where that is known, else 0.
func (p *Peer) bring(ctx context.Context, c cid.Cid, by lease.Scope, size int64, progress func(done, total int64)) error {
	if whole, err := p.store.Has(ctx, c); err != nil {
		return err
	} else if whole {
		return p.store.Use(c)
	}
	var from []peer.AddrInfo
	if by != (lease.Scope{}) {
		if known, err := p.link.Find(ctx, c, by); err == nil {
			from = infos(known)
		}
	}
	if len(from) == 0 {
		from = p.everybody()
	}
	if err := p.exchange.Fetch(ctx, swarm.Request{Root: c, Scope: by.String(), From: from, Size: size, Progress: progress}); err != nil {
		if errors.Is(err, swarm.ErrNoSource) { // they may be away, or this machine have no right to it
			err = fmt.Errorf("%w: %w", httpapi.ErrUnavailable, err)
		}
		return fmt.Errorf("fetch it from the machines that hold it: %w", err)
	}
	return nil
}

// repair fetches again what damaged content has lost. What it cannot have now, by
// what this machine knows of its right to it, the farm is told of: it asks for a
// new copy where one is due. What is here only because it was fetched ahead is left
// to whoever needs it.
func (p *Peer) repair(ctx context.Context, damaged []cid.Cid) (repaired, lacking []string) {
	if len(damaged) == 0 {
		return nil, nil
	}
	by, ahead, needed := make(map[cid.Cid]lease.Scope), make(map[cid.Cid]bool), make(map[cid.Cid]bool)
	for pin, err := range p.store.Pins(ctx) {
		if err != nil {
			break // the fetch says what is wrong, if it matters
		}
		if job, ok := strings.CutPrefix(pin.Holder, jobPin("")); ok {
			by[pin.Root] = lease.ProjectOf(lease.JobID(job))
		}
		if strings.HasPrefix(pin.Holder, nextPin("")) {
			ahead[pin.Root] = true
		} else {
			needed[pin.Root] = true
		}
	}
	lost := make(map[cid.Cid]bool)
	for _, c := range damaged {
		if ahead[c] && !needed[c] {
			continue
		}
		if err := p.bring(ctx, c, by[c], 0, nil); err != nil {
			p.slog.Warn("damaged content could not be fetched again", "root", c, "err", err)
			lost[c], lacking = true, append(lacking, c.String())
			continue
		}
		p.slog.Info("damaged content was fetched again", "root", c)
		repaired = append(repaired, c.String())
	}
	if len(lost) > 0 {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := p.keeper.lost(ctx, lost); err != nil {
			p.slog.Warn("the farm could not be told of damaged content; it is tried again", "err", err)
			p.hurt()
		}
	}
	return repaired, lacking
}

// Files reads a folder that is here.
func (l local) Files(ctx context.Context, p authz.Principal, text string) iter.Seq2[httpapi.ProjectFile, error] {
	return func(yield func(httpapi.ProjectFile, error) bool) {
		c, _, err := l.own(ctx, p, text)
		if err != nil {
			yield(httpapi.ProjectFile{}, err)
			return
		}
		l.files(ctx, c)(yield)
	}
}

// files reads the files of a folder, one after another.
func (l local) files(ctx context.Context, c cid.Cid) iter.Seq2[httpapi.ProjectFile, error] {
	return func(yield func(httpapi.ProjectFile, error) bool) {
		for e, err := range l.store.List(ctx, c) {
			if err != nil {
				yield(httpapi.ProjectFile{}, err)
				return
			}
			r, size, err := l.store.OpenFile(ctx, e.CID)
			if err != nil {
				yield(httpapi.ProjectFile{}, err)
				return
			}
			more := yield(httpapi.ProjectFile{Path: e.Path, Size: size, Body: r}, nil)
			if err := r.Close(); err != nil || !more {
				return
			}
		}
	}
}

// OpenBlob opens a file that is here.
func (l local) OpenBlob(ctx context.Context, p authz.Principal, text string) (io.ReadSeekCloser, int64, error) {
	c, _, err := l.own(ctx, p, text)
	if err != nil {
		return nil, 0, err
	}
	return l.store.OpenFile(ctx, c)
}

// PinBlob keeps a root for a person.
func (l local) PinBlob(ctx context.Context, p authz.Principal, text string) (httpapi.Root, error) {
	c, _, err := l.own(ctx, p, text)
	if err != nil {
		return httpapi.Root{}, err
	}
	// The pin comes first: what is here then stays.
	if err := l.store.Pin(ctx, c, userPin(p.User)); err != nil {
		return httpapi.Root{}, err
	}
	if whole, err := l.store.Has(ctx, c); err != nil || !whole {
		return httpapi.Root{}, errors.Join(cmp.Or(err, fmt.Errorf("%w: this machine does not hold all of %s: fetch it first, as `vizpeer blob pin` does", httpapi.ErrConflict, c)),
			l.store.Unpin(ctx, c, userPin(p.User)))
	}
	return l.RootOf(ctx, p, text)
}

// UnpinBlob lets a root go that a person kept.
func (l local) UnpinBlob(ctx context.Context, p authz.Principal, text, user string) (httpapi.Root, error) {
	c, pins, err := l.own(ctx, p, text)
	if err != nil {
		return httpapi.Root{}, err
	}
	holder := userPin(cmp.Or(user, p.User))
	if !slices.ContainsFunc(pins, func(pin httpapi.Pin) bool { return pin.Holder == holder }) {
		return httpapi.Root{}, fmt.Errorf("%w: %s has no pin on it", httpapi.ErrConflict, cmp.Or(user, p.User))
	}
	if err := l.store.Unpin(ctx, c, holder); err != nil {
		return httpapi.Root{}, err
	}
	l.letGo()
	pins = slices.DeleteFunc(pins, func(pin httpapi.Pin) bool { return pin.Holder == holder })
	return l.root(ctx, c, pins)
}

// inHand is how long a root is left alone after its last use, as that is noted to
// the minute: whoever stored it may be about to pin it.
const inHand = 2 * time.Minute

// CollectBlobs removes what nothing needs and, with all, what is only cached.
func (l local) CollectBlobs(ctx context.Context, all bool) (httpapi.Collected, error) {
	if all {
		roots, err := l.store.Roots(ctx)
		if err != nil {
			return httpapi.Collected{}, err
		}
		for _, r := range roots {
			if r.Pinned || time.Since(r.Used) < inHand {
				continue
			}
			if _, err := l.store.Forget(ctx, r.CID); err != nil {
				return httpapi.Collected{}, err
			}
		}
	}
	freed, err := l.store.GC(ctx)
	l.ads.Nudge()
	return httpapi.Collected{Blocks: freed.Blocks, Bytes: freed.Bytes, Disk: freed.Disk}, err
}

// StoreStat tells how full the store is, and of what.
func (l local) StoreStat(ctx context.Context) (httpapi.StoreStat, error) {
	st, err := l.store.Measure(ctx)
	if err != nil {
		return httpapi.StoreStat{}, err
	}
	can := l.ads.Can()
	if free, err := probe.FreeDisk(l.cfg.DataDir); err == nil {
		can.FreeDisk = free
	}
	can.Room = l.holdings.room(ctx)
	return httpapi.StoreStat{
		Disk: st.Disk, Quota: st.Quota, Reserved: st.Reserved, Pinned: st.Pinned, Cached: st.Cached, Garbage: st.Garbage,
		Free: can.FreeDisk, MinFree: l.cfg.MinFree, Blocks: st.Blocks, Roots: st.Pins,
		Full: httpapi.Full(&can), Caps: l.caps(time.Now()),
	}, nil
}

// caps tells what this machine may send and take.
func (l local) caps(now time.Time) httpapi.Caps {
	c := l.cfg.Caps
	up, down := c.At(now)
	out := httpapi.Caps{Upload: c.Up, Download: c.Down, Active: up > 0 || down > 0}
	for _, h := range c.Hours {
		out.Hours = append(out.Hours, h.String())
		out.Upload, out.Download = max(out.Upload, h.Up), max(out.Download, h.Down)
	}
	return out
}

// VerifyBlobs reads what is here, drops what is damaged and fetches it again.
func (l local) VerifyBlobs(ctx context.Context, p authz.Principal, text string, progress func(done, total int64)) (v httpapi.Verified, err error) {
	if text == "" {
		found, err := l.scrubber.Now(ctx, progress)
		v.Blocks, v.Bytes, v.Dropped = found.Blocks, found.Bytes, found.Dropped
		if err != nil {
			return v, err
		}
		repaired, lacking := l.repair(ctx, found.Lost)
		v.Repaired, v.Lacking = l.known(ctx, p, repaired), l.known(ctx, p, lacking)
		return v, ctx.Err()
	}
	c, _, err := l.own(ctx, p, text)
	if err != nil {
		return v, err
	}
	found, err := l.store.Verify(ctx, c, progress)
	v.Blocks, v.Bytes, v.Dropped = found.Blocks, found.Bytes, found.Corrupt
	if err != nil || found.Whole() {
		return v, err
	}
	v.Repaired, v.Lacking = l.repair(ctx, []cid.Cid{c})
	return v, ctx.Err()
}
