// Package blobs is the content store of one peer: it imports projects and
// frames, keeps them within a quota, and gives them back verified. Package swarm
// moves them between peers.
//
// Everything is named by its content. A file is cut into content-defined chunks
// (after FastCDC, 35 KiB on average), each a raw block named by its SHA-256; inner
// nodes are UnixFS dag-pb, so any IPFS tool can read a tree. The same bytes are
// stored once, however many projects hold them. The blocks lie end to end in large
// append-only files (package pack); a small Badger database knows where.
//
// What it promises:
//   - After Tree.Commit, ImportFile, Pin and Intake.Flush return nil, their effect
//     survives kill -9 and a power cut. A block is entered into the index only when
//     its bytes are durable, so a cut leaves garbage, never an entry for nothing.
//   - A block whose bytes no longer match its hash never leaves the store unnoticed:
//     every read but ReadBlock checks. It is dropped instead, so that the next
//     fetch repairs it.
//   - What was written and not durable yet is found again after kill -9, though not
//     after a power cut: a fetch that goes on needs next to nothing twice.
//   - GC and eviction never remove what a pin reaches, nor anything that an import
//     or a fetch running at the same time relies on.
//   - The folder never takes more of the disk than Config.Quota. What nobody pins
//     stays cached until its room is needed, the least recently used first.
//   - Where the disk is full whatever adds to the store fails with ErrDiskFull; what
//     is here can be read, and Unpin, Forget, GC and Evict still make room.
//   - Nothing is ever written outside the folder given to Export, whatever names
//     a directory node carries.
//   - Memory stays bounded however large the content (a few tens of MiB for each
//     import or fetch, plus about 100 bytes a file).
//
// What it does not do: it knows no jobs, members or rights, speaks to no peer, and
// keeps no modification times, permissions or symlinks, which do not change a frame.
//
// A Store may be used from any goroutine.
package blobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/shirou/gopsutil/v4/disk"

	"vizpeer/blobs/pack"
)

// MaxBlockSize is the largest block the store takes, in bytes.
const MaxBlockSize = 1 << 20

const minQuota = 64 << 20

// Config tunes a Store. The zero value works.
type Config struct {
	// Logger receives warnings about repairs and debug lines about GC; nil discards.
	Logger *slog.Logger
	// MinFree is how many bytes of the disk stay free; where cached roots cannot be
	// evicted, writes fail with ErrDiskFull below it. 0: 256 MiB; at least 64 MiB,
	// which the index needs. Negative: no check, and a full disk may end the process.
	MinFree int64
	// Grace is how long GC spares a root after its import or fetch, so that the
	// caller has time to pin it. 0: 10 minutes. Pinning ends it early.
	Grace time.Duration
	// MaxFiles is how many files and folders one tree may hold; 0: 1,000,000.
	MaxFiles int

	// Quota is how many bytes of the disk the folder may take, its index included;
	// at least 64 MiB. Writing evicts cached roots to stay within, and if that does
	// not help it fails with ErrNoRoom. 0: a fifth of the disk, between 10 and 500 GiB.
	Quota int64
	// High and Low are shares of Quota. Above High the least recently used roots
	// that no pin holds are evicted in the background until the folder is below
	// Low. 0: 0.95 and 0.85.
	High, Low float64

	// Dropped, if not nil, is called after any read has met a rotten block and
	// dropped it: pinned roots may lack something now, see Lacking. It may be called
	// from any goroutine and must not block.
	Dropped func()

	packs pack.Config // for tests
}

// Store keeps blocks and pins in one folder. Open makes it; Close ends it.
type Store struct {
	dir string
	id  string
	cfg Config
	log *slog.Logger

	index   *index
	packs   *pack.Files
	journal *journal
	commits commits

	space room
	usage usage

	// ctx ends, and running is waited for, at Close.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	// sweep excludes GC's removal of a batch (writer) from everybody who finds
	// out whether a block is held and relies on the answer (readers).
	sweep   sync.RWMutex
	grace   grace
	gcMu    sync.Mutex       // one GC at a time
	punched map[uint32]count // what each pack file held when its holes were made; gcMu is held

	pinning sync.Mutex // excludes pinning a root and forgetting it

	exporting sync.Map // temporary names that ExportFile writes now → chan struct{}, closed after
}

// Open opens the store in dir, creating it if need be. It fails if another
// process has it open.
func Open(dir string, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = 256 << 20
	}
	if cfg.MinFree > 0 {
		cfg.MinFree = max(cfg.MinFree, indexRoom)
	}
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Minute
	}
	if cfg.MaxFiles == 0 {
		cfg.MaxFiles = 1_000_000
	}
	if cfg.High == 0 {
		cfg.High = 0.95
	}
	if cfg.Low == 0 {
		cfg.Low = min(0.85, cfg.High)
	}
	if cfg.Low < 0 || cfg.Low > cfg.High || cfg.High > 1 {
		return nil, fmt.Errorf("content store: watermarks low %v and high %v must be shares of the quota, low first", cfg.Low, cfg.High)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, failed("content store", dir, err)
	}
	if cfg.Quota == 0 {
		cfg.Quota = defaultQuota(dir)
	}
	if cfg.Quota < minQuota {
		return nil, fmt.Errorf("content store: a quota of %d bytes is too small; give it at least %d MiB", cfg.Quota, minQuota>>20)
	}
	if _, err := os.Stat(filepath.Join(dir, "MANIFEST")); err == nil {
		return nil, fmt.Errorf("content store %s: it was written by a development version of vizpeer and cannot be read; remove the folder and start again, what it held is fetched or uploaded anew", dir)
	}
	if cfg.packs.FileSize == 0 {
		// A file is moved as a whole where holes cannot be made in it.
		cfg.packs.FileSize = min(max(cfg.Quota/64, 8<<20), 512<<20)
	}
	indexDir, held := filepath.Join(dir, "index"), min(max(cfg.Quota/16, leastBallast), mostBallast)
	if cfg.MinFree < 0 {
		held = 0
	}
	index, err := openIndex(indexDir, newBallast(indexDir, held, cfg.Logger))
	if err != nil {
		return nil, failed("open content store "+dir+" (is another vizpeer using it?)", dir, err)
	}
	packs, err := pack.Open(filepath.Join(dir, "packs"), cfg.packs)
	if err != nil {
		return nil, errors.Join(failed("open content store", dir, err), index.close())
	}
	s := &Store{dir: dir, cfg: cfg, log: cfg.Logger, index: index, packs: packs, punched: map[uint32]count{}}
	if err := s.identify(); err != nil {
		return nil, errors.Join(failed("open content store", dir, err), packs.Close(), index.close())
	}
	s.space.quota, s.space.high, s.space.low = cfg.Quota, cfg.High, cfg.Low
	s.commits.hurry = make(chan struct{}, 1)
	s.space.behind = make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.adopt()
	s.journal = openJournal(dir, s.log)
	return s, nil
}

// Close closes the store. Imports, fetches and readers must have ended.
func (s *Store) Close() error {
	s.cancel()
	s.running.Wait()
	s.journal.close()
	if err := errors.Join(s.packs.Close(), s.index.close()); err != nil {
		return failed("close content store", s.dir, err)
	}
	return nil
}

// digest is the SHA-256 of a block: with one hash function allowed, it is the
// block's whole identity, whatever its codec.
type digest [sha256.Size]byte

func (d digest) key() []byte { return append([]byte{blockPrefix}, d[:]...) }

func (d digest) cid(codec uint64) cid.Cid {
	h, err := mh.Encode(d[:], mh.SHA2_256)
	if err != nil {
		panic(err) // a known code cannot fail
	}
	return cid.NewCidV1(codec, h)
}

// emptyDigest names the empty block. Everybody knows what is in it, so the store
// always has it.
var emptyDigest = digest(sha256.Sum256(nil))

// digestOf accepts the CIDs this package makes (version 1, SHA-256, raw or
// dag-pb) and refuses all others: an identity CID would smuggle content past
// the store, a weak hash would let a peer forge it.
func digestOf(c cid.Cid) (digest, error) {
	if !c.Defined() {
		return digest{}, fmt.Errorf("%w: empty CID", ErrBadNode)
	}
	p := c.Prefix()
	if p.Version != 1 || p.MhType != mh.SHA2_256 || p.MhLength != sha256.Size || p.Codec != cid.Raw && p.Codec != cid.DagProtobuf {
		return digest{}, fmt.Errorf("%w: CID %s is not version 1, SHA-256, raw or dag-pb", ErrBadNode, c)
	}
	h := c.Hash()
	return digest(h[len(h)-sha256.Size:]), nil
}

// ParseCID parses a CID as people and other peers write it and refuses those
// that this package could not have made. Errors wrap ErrBadNode.
func ParseCID(text string) (cid.Cid, error) {
	c, err := cid.Decode(text)
	if err != nil {
		return cid.Undef, fmt.Errorf("%w: %q is not a CID: %w", ErrBadNode, text, err)
	}
	_, err = digestOf(c)
	return c, err
}

// has reports which of ds are stored. The caller holds sweep for reading if it
// means to rely on the answer.
func (s *Store) has(ds ...digest) ([]bool, error) {
	held := make([]bool, len(ds))
	for i, d := range ds {
		held[i] = d == emptyDigest
	}
	err := s.index.find(ds, func(i int, _ place) { held[i] = true })
	return held, err
}

// read appends the bytes of a block to buf, not verified. Errors: ErrNotFound,
// ErrCorrupt where the bytes are lost, the disk's.
func (s *Store) read(d digest, buf []byte) ([]byte, error) {
	for {
		p, err := s.index.where(d)
		if err != nil {
			return buf, err
		}
		n := len(buf)
		buf = slices.Grow(buf, p.length)[:n+p.length]
		err = s.packs.ReadAt(buf[n:], p.file, p.offset)
		if err == nil {
			return buf, nil
		}
		buf = buf[:n]
		if errors.Is(err, pack.ErrGone) {
			if now, werr := s.index.where(d); werr != nil || now != p {
				continue // GC has moved or removed it meanwhile
			}
		}
		if lost(err) {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return buf, err
	}
}

// lost: reading again will not help, as it would if, say, too many files were open.
func lost(err error) bool {
	return errors.Is(err, pack.ErrGone) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EIO)
}

var readPool = sync.Pool{New: func() any { return new([]byte) }}

// view calls f with the verified bytes of a block, which f must not keep.
func (s *Store) view(c cid.Cid, f func([]byte) error) error {
	buf := readPool.Get().(*[]byte)
	defer readPool.Put(buf)
	var err error
	if *buf, err = s.verified(c, (*buf)[:0]); err != nil {
		return err
	}
	return f(*buf)
}

// get returns the verified bytes of a block.
func (s *Store) get(c cid.Cid) ([]byte, error) {
	data, err := s.verified(c, nil)
	if err != nil {
		return nil, err
	}
	return data, nil
}

// verified puts the bytes of a block into buf, which is empty. One that has rotted
// is dropped.
func (s *Store) verified(c cid.Cid, buf []byte) ([]byte, error) {
	d, err := digestOf(c)
	if err != nil || d == emptyDigest {
		return buf, err
	}
	buf, err = s.read(d, buf)
	if err == nil && sha256.Sum256(buf) == d {
		return buf, nil
	}
	if err == nil || errors.Is(err, ErrCorrupt) {
		if buf, err = s.drop(c, d, buf[:0]); err == nil {
			return buf, nil
		}
	}
	return buf, fmt.Errorf("block %s: %w", c, err)
}

// drop removes a block found corrupt, so that it counts as missing from now on,
// and says ErrCorrupt. It looks again under the lock: if the block has been
// repaired meanwhile its bytes are appended to buf, if it has been removed the
// answer is ErrNotFound.
func (s *Store) drop(c cid.Cid, d digest, buf []byte) ([]byte, error) {
	dropped := false
	defer func() {
		if dropped && s.cfg.Dropped != nil {
			s.cfg.Dropped()
		}
	}()
	s.sweep.Lock()
	defer s.sweep.Unlock()
	n := len(buf)
	buf, err := s.read(d, buf)
	if err == nil && sha256.Sum256(buf[n:]) == d || err != nil && !errors.Is(err, ErrCorrupt) {
		return buf, err
	}
	err = s.index.update(freeing, func(c *change) error { _, err := c.remove(d); return err })
	dropped = err == nil
	s.log.Warn("dropped a corrupt block", "cid", c, "err", err)
	return buf[:n], fmt.Errorf("%w; it was dropped, fetch the content again", ErrCorrupt)
}

// checkFree says ErrDiskFull if writing need bytes into dir would use up the disk.
func (s *Store) checkFree(dir string, need int64) error {
	if s.cfg.MinFree < 0 {
		return nil
	}
	u, err := disk.Usage(dir)
	if err != nil {
		s.log.Debug("cannot tell the free space", "dir", dir, "err", err)
		return nil
	}
	keep := s.cfg.MinFree
	if otherDisk(dir, s.dir) {
		keep = min(keep, keepElsewhere)
	}
	if u.Free < uint64(keep)+uint64(need) {
		return &diskFullError{dir: dir, free: u.Free, need: uint64(need), keep: uint64(keep)}
	}
	return nil
}

// diskUse is what the folder really takes of the disk.
func (s *Store) diskUse() (int64, error) {
	index, err := diskUse(s.index.dir)
	return index + s.packs.Allocated() + s.journal.bytes(), err
}

// diskUse sums the allocated size of the files in dir: Badger truncates its logs
// far beyond what they hold, so their apparent size says nothing.
func diskUse(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return ignoreGone(err)
		}
		fi, err := e.Info()
		if err != nil {
			return ignoreGone(err)
		}
		sum += allocated(fi)
		return nil
	})
	return sum, err
}

// ignoreGone: Badger removes files while we walk.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
