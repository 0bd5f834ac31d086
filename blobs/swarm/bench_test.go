package swarm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"vizpeer/blobs"
	"vizpeer/blobs/pack"
)

// The benchmarks behind the promises of `make bench`: each run measures both
// sides of a comparison once and reports them as metrics. Those that need
// processes of their own start this test binary again, in a role.

const (
	envRole = "VIZPEER_SWARM_ROLE" // source or fetcher
	envDir  = "VIZPEER_SWARM_DIR"  // of its store
	envFile = "VIZPEER_SWARM_FILE" // for a source: what it sends raw
	envRoot = "VIZPEER_SWARM_ROOT" // for a fetcher
	envFrom = "VIZPEER_SWARM_FROM" // for a fetcher: a source's address
	envTell = "VIZPEER_SWARM_TELL" // for a fetcher: if set, it prints what it holds, in bytes

	raw protocol.ID = "/vizpeer/bench/raw"
)

func TestMain(m *testing.M) {
	play := map[string]func() error{"source": playSource, "fetcher": playFetcher}[os.Getenv(envRole)]
	if play == nil {
		os.Exit(m.Run())
	}
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tcpHost is a host that speaks TCP with TLS, as peers on real machines prefer.
func tcpHost() (host.Host, error) {
	var limits rcmgr.PartialLimitConfig
	RaiseLimits(&limits)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		return nil, err
	}
	return libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Security(tls.ID, tls.New), libp2p.ResourceManager(rm), libp2p.DisableRelay())
}

// openRole opens the store and the exchange of a process that plays a role.
func openRole() (host.Host, *blobs.Store, *Exchange, error) {
	s, err := blobs.Open(os.Getenv(envDir), blobs.Config{})
	if err != nil {
		return nil, nil, nil, err
	}
	h, err := tcpHost()
	if err != nil {
		return nil, nil, nil, err
	}
	e, err := New(h, s, Config{Allow: anyone})
	return h, s, e, err
}

// playSource serves a store, and a file raw, until its standard input is closed.
func playSource() error {
	h, s, e, err := openRole()
	if err != nil {
		return err
	}
	defer s.Close()
	defer h.Close()
	defer e.Close()
	h.SetStreamHandler(raw, func(stream network.Stream) {
		defer stream.Close()
		f, err := os.Open(os.Getenv(envFile))
		if err != nil {
			_ = stream.Reset()
			return
		}
		defer f.Close()
		_, _ = io.CopyBuffer(struct{ io.Writer }{stream}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	})
	fmt.Printf("%s/p2p/%s\n", h.Addrs()[0], h.ID())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// playFetcher fetches a root and ends.
func playFetcher() error {
	h, s, e, err := openRole()
	if err != nil {
		return err
	}
	defer s.Close()
	defer h.Close()
	defer e.Close()
	from, err := peer.AddrInfoFromString(os.Getenv(envFrom))
	if err != nil {
		return err
	}
	root, err := cid.Decode(os.Getenv(envRoot))
	if err != nil {
		return err
	}
	req := Request{Root: root, From: []peer.AddrInfo{*from}}
	if os.Getenv(envTell) != "" {
		req.Progress = func(done, _ int64) { fmt.Println(done) }
	}
	return e.Fetch(context.Background(), req)
}

func role(name string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), envRole+"="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// startSource starts a process that serves the store in dir, and returns its
// address.
func startSource(b testing.TB, dir, file string) string {
	cmd := role("source", envDir+"="+dir, envFile+"="+file)
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		require.NoError(b, in.Close())
		require.NoError(b, cmd.Wait())
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	return strings.TrimSpace(addr)
}

// imported imports what r yields into a new store in dir.
func imported(b testing.TB, dir string, r io.Reader) cid.Cid {
	s, err := blobs.Open(dir, blobs.Config{})
	require.NoError(b, err)
	defer func() { require.NoError(b, s.Close()) }()
	tree := s.NewTree()
	_, err = tree.AddFile(b.Context(), "scene.blend", r)
	require.NoError(b, err)
	root, _, err := tree.Commit(b.Context())
	require.NoError(b, err)
	return root
}

// BenchmarkStoreToStore fetches 1 GiB from another process into a store, and
// receives and hashes the same bytes over one plain stream of the same transport. What
// that takes where the bytes are written durably as well, and nothing else is done,
// stands beside.
func BenchmarkStoreToStore(b *testing.B) {
	const size = 1 << 30
	dir := b.TempDir()
	file := filepath.Join(dir, "noise")
	f, err := os.Create(file)
	require.NoError(b, err)
	defer f.Close()
	root := imported(b, filepath.Join(dir, "source"), io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), f))
	require.NoError(b, f.Sync()) // else the disk is still busy with it while others are measured
	from, err := peer.AddrInfoFromString(startSource(b, filepath.Join(dir, "source"), file))
	require.NoError(b, err)
	h, err := tcpHost()
	require.NoError(b, err)
	defer h.Close()
	require.NoError(b, h.Connect(b.Context(), *from))
	fetch := func() time.Duration {
		s, err := blobs.Open(b.TempDir(), blobs.Config{})
		require.NoError(b, err)
		e, err := New(h, s, Config{Allow: anyone})
		require.NoError(b, err)
		start := time.Now()
		require.NoError(b, e.Fetch(b.Context(), Request{Root: root, From: []peer.AddrInfo{*from}}))
		took := time.Since(start)
		require.NoError(b, e.Close())
		require.NoError(b, s.Close())
		return took
	}
	receive := func(w io.Writer) {
		stream, err := h.NewStream(b.Context(), from.ID, raw)
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{stream}, make([]byte, 256<<10))
		require.NoError(b, err)
		require.EqualValues(b, size, n)
	}
	fetch() // now the source has both in memory, the file and the store's
	for b.Loop() {
		start := time.Now()
		receive(sha256.New())
		b.ReportMetric(time.Since(start).Seconds(), "raw-s")
		b.ReportMetric(fetch().Seconds(), "fetch-s")

		start = time.Now()
		d := newDurable(b)
		receive(io.MultiWriter(sha256.New(), d))
		d.end()
		b.ReportMetric(time.Since(start).Seconds(), "raw-to-disk-s")
	}
}

// durable writes what it is given into pack files, as a store does, a few batches at
// once, and without knowing what it is.
type durable struct {
	b       *testing.B
	files   *pack.Files
	batch   []byte
	used    int
	writing errgroup.Group
	mu      sync.Mutex
	extents []*pack.Extent
}

const durableBatch = 2 << 20

func newDurable(b *testing.B) *durable {
	files, err := pack.Open(b.TempDir(), pack.Config{})
	require.NoError(b, err)
	d := &durable{b: b, files: files, batch: pack.NewBuffer(durableBatch)}
	d.writing.SetLimit(4)
	return d
}

func (d *durable) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := copy(d.batch[d.used:], rest)
		rest, d.used = rest[n:], d.used+n
		if d.used == len(d.batch) {
			batch := d.batch
			d.batch, d.used = pack.NewBuffer(durableBatch), 0
			d.writing.Go(func() error {
				e, err := d.files.Append(batch)
				d.mu.Lock()
				defer d.mu.Unlock()
				d.extents = append(d.extents, e)
				return err
			})
		}
	}
	return len(p), nil
}

func (d *durable) end() {
	require.NoError(d.b, d.writing.Wait())
	require.NoError(d.b, d.files.Sync(d.extents...))
	for _, e := range d.extents {
		e.Settle()
	}
	require.NoError(d.b, d.files.Close())
}

// BenchmarkFetchMemory measures a process that fetches 4 GiB and nothing else.
func BenchmarkFetchMemory(b *testing.B) {
	dir := b.TempDir()
	root := imported(b, filepath.Join(dir, "source"), io.LimitReader(rand.NewChaCha8([32]byte{2}), 4<<30))
	addr := startSource(b, filepath.Join(dir, "source"), "")
	for b.Loop() {
		cmd := role("fetcher", envDir+"="+b.TempDir(), envFrom+"="+addr, envRoot+"="+root.String())
		require.NoError(b, cmd.Run())
		b.ReportMetric(peakRSS(cmd), "peak-B")
	}
}

// BenchmarkSwarm has 8 peers fetch the same 256 MiB from one holder at the same
// time, with uplinks of 20 MB/s, and measures what the holder sends and the time
// until all have it.
func BenchmarkSwarm(b *testing.B) {
	const size, uplink, n = 256 << 20, 20_000_000, 8
	holder := newPeer(b, Config{Caps: Caps{Up: uplink}})
	root, _ := importFiles(b, holder.s, map[string][]byte{"scene.blend": noise(1, size)})
	for b.Loop() {
		before := holder.e.Stats().Sent
		var peers []*testPeer
		from := info(holder.h)
		for range n {
			p := newPeer(b, Config{Caps: Caps{Up: uplink}})
			peers = append(peers, p)
			from = append(from, info(p.h)...)
		}
		start := time.Now()
		var g errgroup.Group
		for _, p := range peers {
			g.Go(func() error { return p.e.Fetch(b.Context(), Request{Root: root, From: from}) })
		}
		require.NoError(b, g.Wait())
		b.ReportMetric(time.Since(start).Seconds(), "swarm-s")
		b.ReportMetric(float64(size)/uplink, "one-uplink-s")
		b.ReportMetric(float64(holder.e.Stats().Sent-before), "holder-sent-B")
		b.ReportMetric(size, "file-B")
	}
}
