package blobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
)

// Entry is one file of a tree.
type Entry struct {
	Path     string // slash-separated, relative to the root; "" if the root is the file
	CID      cid.Cid
	Size     int64 // bytes of the file
	NewBytes int64 // bytes that were not in the store before, inner nodes included; only set by imports
}

// Summary is what an import, or a tree, comes to.
type Summary struct {
	Files    int
	Bytes    int64 // of all files
	NewBytes int64 // bytes that were not in the store before; only set by imports
}

// Tree imports a folder file by file, in any order. Nothing is durable before
// Commit. A Tree not committed must be ended with Abort; calling Abort after
// Commit does no harm, so defer it. AddFile may be called from several
// goroutines at once, the other methods when no AddFile is running.
type Tree struct {
	s *Store
	w *writer

	mu    sync.Mutex
	root  *folder
	sum   Summary
	left  int // files and folders that may still be added
	ended bool
}

type folder struct {
	names   map[string]string // folded name → name
	folders map[string]*folder
	files   map[string]Entry // CID undefined while it is being imported
}

func newFolder() *folder {
	return &folder{map[string]string{}, map[string]*folder{}, map[string]Entry{}}
}

// NewTree starts a tree.
func (s *Store) NewTree() *Tree {
	return &Tree{s: s, w: s.newWriter(), root: newFolder(), left: s.cfg.MaxFiles}
}

// AddFile imports r under the given path: see CheckPath. A path already added,
// one that runs through a file, and one that differs from another only in case
// or Unicode composition are refused with ErrBadPath, since on some machines of
// the farm one would overwrite the other. It reads r to its end, in about 20 MiB
// of memory. After an error of r the tree can go on without that file.
func (t *Tree) AddFile(ctx context.Context, path string, r io.Reader) (Entry, error) {
	dir, name, err := t.reserve(path)
	if err != nil {
		return Entry{}, err
	}
	e, err := importFile(ctx, t.w, r, byContent)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(dir.files, name)
		delete(dir.names, foldName(name))
		return Entry{}, failed(fmt.Sprintf("import %q", path), t.s.dir, err)
	}
	e.Path = path
	dir.files[name] = e
	t.sum.Files++
	t.sum.Bytes += e.Size
	t.sum.NewBytes += e.NewBytes
	return e, nil
}

// AddHeld adds a file that is in the store already, whole, without reading its
// content: what an earlier AddFile or fetch has named. Until Commit or Abort GC
// spares it. Errors: ErrNotFound if any of it is missing, so that the caller adds
// its bytes instead; ErrBadNode if it is no file; ErrBadPath as AddFile.
func (t *Tree) AddHeld(ctx context.Context, path string, file cid.Cid) (Entry, error) {
	e, err := t.held(ctx, file)
	if err != nil {
		return Entry{}, failed(fmt.Sprintf("add %q", path), t.s.dir, err)
	}
	dir, name, err := t.reserve(path)
	if err != nil {
		return Entry{}, err
	}
	e.Path = path
	t.mu.Lock()
	defer t.mu.Unlock()
	dir.files[name] = e
	t.sum.Files++
	t.sum.Bytes += e.Size
	return e, nil
}

// held claims a file.
func (t *Tree) held(ctx context.Context, file cid.Cid) (Entry, error) {
	if _, err := digestOf(file); err != nil {
		return Entry{}, err
	}
	var asked []digest
	check := func() error {
		held, err := t.w.claim(asked...)
		asked = asked[:0]
		if err == nil && slices.Contains(held, false) {
			err = fmt.Errorf("file %s: %w", file, ErrNotFound)
		}
		return err
	}
	err := t.s.walk(ctx, file, map[digest]struct{}{}, func(d digest, _ int64) error {
		if asked = append(asked, d); len(asked) < 1024 {
			return nil
		}
		return check()
	})
	if err == nil {
		err = check()
	}
	if err != nil {
		return Entry{}, err
	}
	if file.Type() == cid.Raw {
		size, err := t.s.leafSize(file)
		return Entry{CID: file, Size: size}, err
	}
	n, err := t.s.node(file)
	if err != nil {
		return Entry{}, err
	}
	if n.kind != fileKind {
		return Entry{}, fmt.Errorf("%w: %s is a folder", ErrBadNode, file)
	}
	return Entry{CID: file, Size: n.size}, nil
}

// AddDir adds a folder, which only an empty one needs.
func (t *Tree) AddDir(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.descend(strings.Split(path, "/"))
	return err
}

// reserve takes the name, so that of two calls with one path only one imports.
func (t *Tree) reserve(path string) (*folder, string, error) {
	if err := CheckPath(path); err != nil {
		return nil, "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	parts := strings.Split(path, "/")
	name := parts[len(parts)-1]
	dir, err := t.descend(parts[:len(parts)-1])
	if err != nil {
		return nil, "", err
	}
	if err := t.take(dir, name); err != nil {
		return nil, "", fmt.Errorf("%w (adding %q)", err, path)
	}
	dir.files[name] = Entry{}
	return dir, name, nil
}

func (t *Tree) descend(parts []string) (*folder, error) {
	if t.ended {
		return nil, errors.New("the tree has been committed or aborted")
	}
	dir := t.root
	for i, name := range parts {
		sub, ok := dir.folders[name]
		if !ok {
			if err := t.take(dir, name); err != nil {
				return nil, fmt.Errorf("%w (adding folder %q)", err, strings.Join(parts[:i+1], "/"))
			}
			sub = newFolder()
			dir.folders[name] = sub
		}
		dir = sub
	}
	return dir, nil
}

func (t *Tree) take(dir *folder, name string) error {
	f := foldName(name)
	if other, dup := dir.names[f]; dup {
		return clash(other, name)
	}
	if t.left--; t.left < 0 {
		return fmt.Errorf("%w: more than %d files and folders", ErrTooLarge, t.s.cfg.MaxFiles)
	}
	dir.names[f] = name
	return nil
}

// Commit writes the folders and returns the root, durably. GC spares the root
// for Config.Grace or until it is pinned.
func (t *Tree) Commit(ctx context.Context) (cid.Cid, Summary, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return cid.Undef, Summary{}, errors.New("the tree has been committed or aborted")
	}
	root, err := t.commitFolder(ctx, t.root)
	if err == nil {
		err = t.w.flush()
	}
	if err == nil {
		err = t.s.keep(root.Cid)
	}
	t.end()
	if err != nil {
		return cid.Undef, Summary{}, failed("import the folders", t.s.dir, err)
	}
	return root.Cid, t.sum, nil
}

// Abort ends the tree; blocks already stored are left to GC.
func (t *Tree) Abort() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
}

func (t *Tree) end() {
	if !t.ended {
		t.ended = true
		t.w.close()
	}
}

// A folder whose node would be larger becomes a hash tree of small nodes, so
// that a folder of 100,000 textures stays under MaxBlockSize.
const (
	maxFolderNode = 256 << 10
	shardFanout   = 256
)

func (t *Tree) commitFolder(ctx context.Context, dir *folder) (*ipld.Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var links []*ipld.Link
	size := 0
	for _, name := range slices.Sorted(maps.Keys(dir.folders)) {
		l, err := t.commitFolder(ctx, dir.folders[name])
		if err != nil {
			return nil, err
		}
		l.Name = name
		links = append(links, l)
		size += len(name) + cidBytes + 16
	}
	for _, name := range slices.Sorted(maps.Keys(dir.files)) {
		e := dir.files[name]
		if !e.CID.Defined() {
			return nil, fmt.Errorf("commit while %q is being imported", name)
		}
		links = append(links, &ipld.Link{Name: name, Cid: e.CID, Size: uint64(e.Size)})
		size += len(name) + cidBytes + 16
	}
	sink := nodeSink{t: t}
	if size > maxFolderNode {
		shard, err := hamt.NewShard(sink, shardFanout)
		if err != nil {
			return nil, err
		}
		shard.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256})
		for _, l := range links {
			if err := shard.SetLink(ctx, l.Name, l); err != nil {
				return nil, fmt.Errorf("folder with %q: %w", l.Name, err)
			}
		}
		nd, err := shard.Node() // adds itself and all below to sink
		if err != nil {
			return nil, err
		}
		return ipld.MakeLink(nd)
	}
	nd := unixfs.EmptyDirNode()
	if err := nd.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256}); err != nil {
		return nil, err
	}
	for _, l := range links {
		if err := nd.AddRawLink(l.Name, l); err != nil {
			return nil, err
		}
	}
	if err := sink.Add(ctx, nd); err != nil {
		return nil, err
	}
	return ipld.MakeLink(nd)
}

// nodeSink lets boxo's shards add their nodes; they ask for nothing else.
type nodeSink struct {
	ipld.DAGService
	t *Tree
}

func (k nodeSink) Add(_ context.Context, nd ipld.Node) error {
	raw := nd.RawData()
	n, err := k.t.w.add(block{digest: sha256.Sum256(raw), codec: cid.DagProtobuf, data: raw})
	k.t.sum.NewBytes += n
	return err
}
