package swarm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// sim runs f with n peers on a simulated network and clock, whose links carry
// 100 Mbit/s. What f does to a peer's exchange or host, it cleans up after.
func sim(t *testing.T, n int, cfg func(i int) Config, f func(t *testing.T, ps []*testPeer)) {
	simLine(t, n, 1e8, cfg, f)
}

// simLine is sim with links that carry so many bits a second.
func simLine(t *testing.T, n, line int, cfg func(i int) Config, f func(t *testing.T, ps []*testPeer)) {
	synctest.Test(t, func(t *testing.T) {
		link := simnet.LinkSettings{BitsPerSecond: line}
		net, meta, err := simlibp2p.SimpleLibp2pNetwork([]simlibp2p.NodeLinkSettingsAndCount{{
			LinkSettings: simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}, Count: n,
		}}, simnet.StaticLatency(2*time.Millisecond), simlibp2p.NetworkSettings{})
		require.NoError(t, err)
		net.Start()
		defer net.Close()
		var ps []*testPeer
		for i, h := range meta.Nodes {
			dir := t.TempDir()
			s, err := blobs.Open(dir, blobs.Config{MinFree: -1})
			require.NoError(t, err)
			p := &testPeer{h: h, s: s, dir: dir}
			p.start(t, cfg(i))
			defer func() {
				require.NoError(t, p.e.Close())
				require.NoError(t, h.Close())
				require.NoError(t, p.s.Close())
			}()
			ps = append(ps, p)
		}
		f(t, ps)
	})
}

func plain(int) Config { return Config{} }

// Everybody fetches from one holder, some later than others, and some machines die
// on the way.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes long under the race detector")
	}
	sim(t, 7, plain, func(t *testing.T, ps []*testPeer) {
		want := map[string][]byte{"scene.blend": noise(1, 24<<20)}
		root, _ := importFiles(t, ps[0].s, want)
		var wg sync.WaitGroup
		for i, p := range ps[1:] {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 400 * time.Millisecond) // of simulated time: they come one by one
				err := p.fetch(t, root, ps...)
				if i >= 4 {
					require.Error(t, err) // they died
					return
				}
				require.NoError(t, err)
			})
		}
		wg.Go(func() {
			time.Sleep(2500 * time.Millisecond)
			require.NoError(t, ps[5].h.Close())
			require.NoError(t, ps[6].h.Close())
		})
		wg.Wait()
		for _, p := range ps[1:5] {
			requireContent(t, p.s, root, want)
			st := p.e.Stats()
			require.Less(t, st.Wasted, st.Received/20)
		}
	})
}

// The only holder dies in the middle and comes back; what is held is not fetched
// again.
func TestSourceComesBack(t *testing.T) {
	sim(t, 2, plain, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		want := map[string][]byte{"scene.blend": noise(1, 24<<20)}
		root, sum := importFiles(t, a.s, want)
		half := make(chan struct{})
		var once sync.Once
		done := make(chan error)
		go func() {
			done <- b.e.Fetch(t.Context(), Request{Root: root, From: info(a.h), Progress: func(d, n int64) {
				if d > n/2 {
					once.Do(func() { close(half) })
				}
			}})
		}()
		<-half
		require.NoError(t, a.e.Close())
		time.Sleep(3 * time.Second) // it is away
		a.start(t, Config{})
		require.NoError(t, <-done)
		requireContent(t, b.s, root, want)
		require.Less(t, b.e.Stats().Received, sum.Bytes*105/100)
	})
}

// A fetch that was given up goes on with what is missing, in another process too.
func TestResume(t *testing.T) {
	sim(t, 2, plain, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		want := map[string][]byte{"scene.blend": noise(1, 24<<20)}
		root, sum := importFiles(t, a.s, want)
		ctx, cancel := context.WithCancel(t.Context())
		err := b.e.Fetch(ctx, Request{Root: root, From: info(a.h), Progress: func(d, n int64) {
			if d > n/2 {
				cancel()
			}
		}})
		require.ErrorIs(t, err, context.Canceled)
		before := b.e.Stats().Received
		require.NoError(t, b.e.Close())
		b.start(t, Config{})
		require.NoError(t, b.fetch(t, root, a))
		require.Less(t, before+b.e.Stats().Received, sum.Bytes*105/100)
		require.Greater(t, before, sum.Bytes/2)
	})
}

// answers collects all that a source sends to a fetcher of root until it hangs up.
func answers(t *testing.T, from, to *testPeer, root cid.Cid) []byte {
	require.NoError(t, to.h.Connect(t.Context(), info(from.h)[0]))
	s, err := to.h.NewStream(t.Context(), from.h.ID(), Protocol)
	require.NoError(t, err)
	defer s.Reset()
	buf := hello{root: root}.append(nil)
	buf = digestFrame(buf, kindNodes, digestOf(root))
	buf = spansFrame(buf, kindPieces, []uint32{0})
	_, err = s.Write(buf)
	require.NoError(t, err)
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	var all []byte
	var b [4096]byte
	for {
		n, err := s.Read(b[:])
		all = append(all, b[:n]...)
		if err != nil {
			return all
		}
	}
}

// Who may not have something hears what one hears who asks for nothing that is
// here, and gets nothing.
func TestDeniedLooksLikeAbsent(t *testing.T) {
	var asked atomic.Int64
	sim(t, 2, func(i int) Config {
		return Config{Allow: func(_ context.Context, _ peer.ID, _ cid.Cid, scope string) (bool, error) {
			asked.Add(1)
			if scope == "error" {
				return true, errors.New("nobody knows")
			}
			return scope == "yes", nil
		}}
	}, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		root, _ := importFiles(t, a.s, map[string][]byte{"secret": noise(1, 300_000)})
		denied := answers(t, a, b, root)
		absent := answers(t, a, b, digest{1, 2, 3}.cid(root.Type()))
		require.Equal(t, absent, denied)
		require.Len(t, denied, frameHeader)
		require.EqualValues(t, 2, asked.Load())

		for _, scope := range []string{"", "no", "error"} {
			err := b.e.Fetch(t.Context(), Request{Root: root, Scope: scope, From: info(a.h)})
			require.ErrorIs(t, err, ErrNoSource)
			require.ErrorContains(t, err, a.h.ID().String())
			require.ErrorContains(t, err, "may not give it")
		}
		require.Zero(t, b.e.Stats().Received)
		require.NoError(t, b.e.Fetch(t.Context(), Request{Root: root, Scope: "yes", From: info(a.h)}))
	})
}

// Nothing but the root asked for can be read on a stream.
func TestStreamStaysInItsRoot(t *testing.T) {
	sim(t, 2, func(int) Config { return Config{} }, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		mine, _ := importFiles(t, a.s, map[string][]byte{"mine": noise(1, 300_000)})
		other, _ := importFiles(t, a.s, map[string][]byte{"secret": noise(2, 300_000)})
		require.NoError(t, b.h.Connect(t.Context(), info(a.h)[0]))
		s, err := b.h.NewStream(t.Context(), a.h.ID(), Protocol)
		require.NoError(t, err)
		defer s.Reset()
		links, err := a.s.Links(other)
		require.NoError(t, err)
		buf := hello{root: mine}.append(nil)
		buf = digestFrame(buf, kindNodes, digestOf(other), digestOf(links[0].CID), digestOf(mine))
		_, err = s.Write(buf)
		require.NoError(t, err)
		r := newFrameReader(s, 4096, maxFrame)
		var got []kind
		for len(got) < 5 {
			k, n, err := r.next()
			require.NoError(t, err)
			_, err = r.body(nil, n)
			require.NoError(t, err)
			got = append(got, k)
		}
		require.ElementsMatch(t, []kind{kindWelcome, kindMap, kindNoNode, kindNoNode, kindNode}, got)
	})
}

// A member that is revoked is cut off in the middle of a block's way.
func TestRevoked(t *testing.T) {
	for _, how := range []string{"Drop", "Recheck"} {
		t.Run(how, func(t *testing.T) {
			var revoked atomic.Bool
			sim(t, 2, func(int) Config {
				return Config{Allow: func(context.Context, peer.ID, cid.Cid, string) (bool, error) { return !revoked.Load(), nil }}
			}, func(t *testing.T, ps []*testPeer) {
				a, b := ps[0], ps[1]
				root, sum := importFiles(t, a.s, map[string][]byte{"scene.blend": noise(1, 24<<20)})
				var once sync.Once
				start := time.Now()
				err := b.e.Fetch(t.Context(), Request{Root: root, From: info(a.h), Progress: func(d, n int64) {
					if d > n/4 {
						once.Do(func() {
							revoked.Store(true)
							if how == "Drop" {
								a.e.Drop(b.h.ID())
							} else {
								a.e.Recheck()
							}
						})
					}
				}})
				require.ErrorIs(t, err, ErrNoSource)
				require.Less(t, b.e.Stats().Received, sum.Bytes*3/4)
				require.Less(t, time.Since(start), 5*time.Second)
			})
		})
	}
}

// rot changes a byte of a block that a closed store keeps.
func rot(t *testing.T, dir string, block []byte) {
	t.Helper()
	found := false
	require.NoError(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(data, block)
		if at < 0 {
			return nil
		}
		found = true
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte{data[at] ^ 1}, int64(at))
		return err
	}))
	require.True(t, found, "the block is not in the store's files")
}

// rotten makes a block of p's store differ from its hash.
func rotten(t *testing.T, p *testPeer, block []byte) {
	require.NoError(t, p.e.Close())
	require.NoError(t, p.s.Close())
	rot(t, p.dir, block)
	s, err := blobs.Open(p.dir, blobs.Config{MinFree: -1})
	require.NoError(t, err)
	p.s = s
	p.start(t, Config{})
}

// A source whose copy has rotted learns of it; the fetch completes from another,
// or says who sent what.
func TestRottenSource(t *testing.T) {
	sim(t, 3, plain, func(t *testing.T, ps []*testPeer) {
		a, b, c := ps[0], ps[1], ps[2]
		data := noise(1, 8<<20)
		root, _ := importFiles(t, a.s, map[string][]byte{"scene.blend": data})
		require.NoError(t, b.fetch(t, root, a))
		rotten(t, b, data[4<<20:4<<20+32])
		err := c.fetch(t, root, b)
		require.ErrorIs(t, err, blobs.ErrStalled)
		require.ErrorContains(t, err, b.h.ID().String())
		require.ErrorContains(t, err, "another hash")
		t.Log(err)
		whole, err := b.s.Has(t.Context(), root)
		require.NoError(t, err)
		require.False(t, whole, "b still believes in its copy")
		require.NoError(t, c.fetch(t, root, b, a))
		requireContent(t, c.s, root, map[string][]byte{"scene.blend": data})

		// b repairs itself.
		require.NoError(t, b.fetch(t, root, c))
		requireContent(t, b.s, root, map[string][]byte{"scene.blend": data})
	})
}

// liar answers the protocol with what it is given.
func liar(t *testing.T, p *testPeer, answer func(s network.Stream, h hello) error) {
	require.NoError(t, p.e.Close())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	p.h.SetStreamHandler(Protocol, func(s network.Stream) {
		wg.Add(1)
		defer wg.Done()
		defer s.Reset()
		r := newFrameReader(s, 4096, maxFrame)
		_, n, err := r.next()
		if err != nil {
			return
		}
		body, err := r.body(nil, n)
		if err != nil {
			return
		}
		h, err := parseHello(body)
		if err != nil {
			return
		}
		if err := answer(s, h); err != nil {
			t.Log("the liar was cut off:", err)
		}
	})
}

// What hostile sources do ends with a dropped stream and an error that names them,
// or with the fetch completed from an honest one.
func TestHostileSources(t *testing.T) {
	welcome := end(begin(nil, kindWelcome), 0)
	all := func(n uint32) []byte {
		held := newBitset(n)
		held.fill(n)
		return mapFrame(nil, n, held)
	}
	wait := func(s network.Stream) error { // until the other side hangs up
		_, err := s.Read(make([]byte, 1))
		for err == nil {
			_, err = s.Read(make([]byte, 4096))
		}
		return err
	}
	cases := map[string]func(s network.Stream, h hello) error{
		"a huge frame": func(s network.Stream, _ hello) error {
			_, _ = s.Write(append(welcome, 0xff, 0xff, 0xff, 0xff, byte(kindPiece)))
			return wait(s)
		},
		"an unknown message": func(s network.Stream, _ hello) error {
			_, _ = s.Write(append(welcome, 0, 0, 0, 1, 99))
			return wait(s)
		},
		"no welcome": func(s network.Stream, _ hello) error {
			_, _ = s.Write(all(5))
			return wait(s)
		},
		"another number of pieces": func(s network.Stream, _ hello) error {
			_, _ = s.Write(append(welcome, all(1<<20)...))
			return wait(s)
		},
		"a map of too many pieces": func(s network.Stream, _ hello) error {
			_, _ = s.Write(append(welcome, end(append(begin(nil, kindMap), 0xff, 0xff, 0xff, 0xff, 0x0f), 0)...))
			return wait(s)
		},
		"nodes with another hash": func(s network.Stream, h hello) error {
			buf := append(welcome, all(5)...)
			d := digestOf(h.root)
			for range 3 {
				start := len(buf)
				buf = end(append(append(begin(buf, kindNode), d[:]...), "forged"...), start)
			}
			_, _ = s.Write(buf)
			return wait(s)
		},
		"a number out of range": func(s network.Stream, _ hello) error {
			buf := append(welcome, all(5)...)
			start := len(buf)
			_, _ = s.Write(end(append(begin(buf, kindPiece), 0xff, 0xff, 0xff, 0x7f, 'x'), start))
			return wait(s)
		},
		"endless news": func(s network.Stream, _ hello) error {
			_, _ = s.Write(append(welcome, all(1<<22)...))
			have := end(append(begin(nil, kindHave), 0, 0x80, 0x80, 0x80, 0x02), 0)
			for {
				if _, err := s.Write(have); err != nil {
					return err
				}
			}
		},
		"blocks that nobody asked for": func(s network.Stream, h hello) error {
			buf := append(welcome, all(5)...)
			if _, err := s.Write(buf); err != nil {
				return err
			}
			other := digest{1}
			node := append(append(begin(nil, kindNode), other[:]...), make([]byte, 1<<20)...)
			for {
				if _, err := s.Write(end(node, 0)); err != nil {
					return err
				}
			}
		},
		"silence":               func(s network.Stream, _ hello) error { return wait(s) },
		"silence after welcome": func(s network.Stream, _ hello) error { _, _ = s.Write(append(welcome, all(5)...)); return wait(s) },
		"a byte now and then": func(s network.Stream, _ hello) error {
			buf := append(welcome, all(5)...)
			buf = append(buf, 0, 1, 0, 0, byte(kindNode))
			_, _ = s.Write(buf)
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range tick.C {
				if _, err := s.Write([]byte{1}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for name, answer := range cases {
		t.Run(name, func(t *testing.T) {
			sim(t, 3, plain, func(t *testing.T, ps []*testPeer) {
				bad, good, b := ps[0], ps[1], ps[2]
				want := map[string][]byte{"scene.blend": noise(1, 2<<20)}
				root, _ := importFiles(t, good.s, want)
				liar(t, bad, answer)
				start := time.Now()
				err := b.fetch(t, root, bad)
				t.Log(err)
				require.True(t, errors.Is(err, ErrNoSource) || errors.Is(err, blobs.ErrStalled), err)
				require.ErrorContains(t, err, bad.h.ID().String())
				require.Less(t, time.Since(start), 45*time.Second)
				start = time.Now()
				require.NoError(t, b.fetch(t, root, bad, good))
				require.Less(t, time.Since(start), 15*time.Second)
				requireContent(t, b.s, root, want)
			})
		})
	}
}

// A source that is far slower than the rest does not hold up the fetch.
func TestSlowSource(t *testing.T) {
	sim(t, 3, func(i int) Config {
		if i == 0 {
			return Config{Caps: Caps{Up: 20_000}}
		}
		return Config{}
	}, func(t *testing.T, ps []*testPeer) {
		slow, fast, b := ps[0], ps[1], ps[2]
		want := map[string][]byte{"scene.blend": noise(1, 16<<20)}
		root, _ := importFiles(t, slow.s, want)
		require.NoError(t, fast.fetch(t, root, slow, fast))
		_ = fast
		start := time.Now()
		require.NoError(t, b.fetch(t, root, slow, fast))
		require.Less(t, time.Since(start), 10*time.Second)
		st := b.e.Stats()
		require.Less(t, st.Wasted, st.Received/20)
	})
}

// A hostile fetcher is cut off; it costs little.
func TestHostileFetchers(t *testing.T) {
	sim(t, 2, plain, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		root, _ := importFiles(t, a.s, map[string][]byte{"scene.blend": noise(1, 4<<20)})
		require.NoError(t, b.h.Connect(t.Context(), info(a.h)[0]))
		open := func() network.Stream {
			s, err := b.h.NewStream(t.Context(), a.h.ID(), Protocol)
			require.NoError(t, err)
			return s
		}
		cutOff := func(s network.Stream, within time.Duration) {
			t.Helper()
			_ = s.SetReadDeadline(time.Now().Add(within))
			var err error
			for b := make([]byte, 4096); err == nil; {
				_, err = s.Read(b)
			}
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			var timeout interface{ Timeout() bool }
			require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "still served: %v", err)
			_ = s.Reset()
		}
		pieces := []uint32{}
		for range 5 * maxQueue {
			pieces = append(pieces, 3)
		}
		for name, message := range map[string][]byte{
			"no hello":         spansFrame(nil, kindPieces, []uint32{0}),
			"a huge frame":     {0x7f, 0xff, 0xff, 0xff, byte(kindHello)},
			"a bad root":       end(append(begin(nil, kindHello), 3, 1, 2, 3), 0),
			"unknown message":  append(hello{root: root}.append(nil), 0, 0, 0, 1, 77),
			"out of range":     spansFrame(hello{root: root}.append(nil), kindPieces, []uint32{1 << 21}),
			"too many pieces":  spansFrame(hello{root: root}.append(nil), kindPieces, pieces),
			"half a digest":    append(hello{root: root}.append(nil), 0, 0, 0, 3, byte(kindNodes), 1, 2),
			"two hellos":       hello{root: root}.append(hello{root: root}.append(nil)),
			"nothing at all":   {},
			"half of a hello":  {0, 0, 0, 40, byte(kindHello), 36, 1},
			"an empty message": append(hello{root: root}.append(nil), 0, 0, 0, 0, 0),
		} {
			t.Log(name)
			s := open()
			_, err := s.Write(message)
			require.NoError(t, err)
			cutOff(s, time.Minute)
		}

		// Streams beyond those that one peer may have are refused.
		var open64 []network.Stream
		for range maxStreamsPeer {
			s := open()
			_, err := s.Write(hello{root: root}.append(nil))
			require.NoError(t, err)
			open64 = append(open64, s)
		}
		for _, s := range open64 { // they are all served
			_, err := s.Read(make([]byte, 1))
			require.NoError(t, err)
		}
		s := open()
		_, err := s.Write(hello{root: root}.append(nil))
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		require.Error(t, err)
		for _, s := range open64 {
			_ = s.Reset()
		}
	})
}

// Who fetches the same at the same time without knowing of each other shares one
// fetch in a process, and finds each other between machines.
func TestTogether(t *testing.T) {
	sim(t, 2, plain, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		root, sum := importFiles(t, a.s, map[string][]byte{"scene.blend": noise(1, 8<<20)})
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				called := false
				require.NoError(t, b.e.Fetch(t.Context(), Request{Root: root, From: info(a.h), Background: i%2 == 0, Progress: func(d, n int64) { called = true }}))
				require.True(t, called)
			})
		}
		wg.Wait()
		require.Less(t, b.e.Stats().Received, sum.Bytes*102/100)
	})
}

// A partial holder gives what it has, and tells of what it gets.
func TestPartialSources(t *testing.T) {
	sim(t, 3, func(i int) Config { return Config{StallTimeout: 5 * time.Second} }, func(t *testing.T, ps []*testPeer) {
		a, b, c := ps[0], ps[1], ps[2]
		want := map[string][]byte{"scene.blend": noise(1, 16<<20)}
		root, _ := importFiles(t, a.s, want)
		// b gets a part.
		ctx, cancel := context.WithCancel(t.Context())
		err := b.e.Fetch(ctx, Request{Root: root, From: info(a.h), Progress: func(d, n int64) {
			if d > n/2 {
				cancel()
			}
		}})
		require.Error(t, err)
		// From b alone, c gets that part and says what is missing.
		err = c.fetch(t, root, b)
		require.ErrorIs(t, err, blobs.ErrStalled)
		require.ErrorContains(t, err, "blocks missing")
		t.Log(err)
		got := c.e.Stats().Received
		require.Greater(t, got, int64(8<<20))
		// c knows only b, which goes on with a: c gets it all through b.
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, b.fetch(t, root, a)) })
		wg.Go(func() {
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, c.fetch(t, root, b))
		})
		wg.Wait()
		requireContent(t, c.s, root, want)
	})
}

// Limits hold for all streams together.
func TestCaps(t *testing.T) {
	sim(t, 3, func(i int) Config {
		switch i {
		case 0:
			return Config{Caps: Caps{Up: 1_000_000}}
		case 2:
			return Config{Caps: Caps{Down: 500_000}}
		}
		return Config{}
	}, func(t *testing.T, ps []*testPeer) {
		root, sum := importFiles(t, ps[0].s, map[string][]byte{"scene.blend": noise(1, 8<<20)})
		start := time.Now()
		require.NoError(t, ps[1].fetch(t, root, ps[0]))
		require.InDelta(t, float64(sum.Bytes)/1e6, time.Since(start).Seconds(), 1.2)
		start = time.Now()
		require.NoError(t, ps[2].fetch(t, root, ps[1]))
		require.InDelta(t, float64(sum.Bytes)/0.5e6, time.Since(start).Seconds(), 2.4)
	})
}

// Frames that share a thin line come side by side, each byte once, as fast as the
// line carries them.
func TestThinLine(t *testing.T) {
	const frames, size = 8, 1 << 20
	for name, x := range map[string]struct{ up, down, line int64 }{
		"the fetcher's limit": {down: 60_000},
		"the holder's limit":  {up: 60_000},
		"the line itself":     {line: 125_000},
	} {
		t.Run(name, func(t *testing.T) {
			line := cmp.Or(x.line, 12_500_000)
			simLine(t, 2, int(8*line), func(i int) Config {
				return []Config{{Caps: Caps{Up: x.up}}, {Caps: Caps{Down: x.down}}}[i]
			}, func(t *testing.T, ps []*testPeer) {
				a, b := ps[0], ps[1]
				start := time.Now()
				var wg sync.WaitGroup
				for i := range frames {
					root, _, err := a.s.ImportFile(t.Context(), bytes.NewReader(noise(byte(i), size)))
					require.NoError(t, err)
					wg.Go(func() { assert.NoError(t, b.fetch(t, root, a)) })
				}
				wg.Wait()
				ideal := float64(frames*size) / float64(cmp.Or(x.up, x.down, x.line))
				t.Log(time.Since(start), ideal, a.e.Stats(), b.e.Stats())
				require.Less(t, time.Since(start).Seconds(), 1.1*ideal)
				require.EqualValues(t, frames*size, b.e.Stats().Received)
				require.Less(t, a.e.Stats().Sent, int64(frames*(size+1<<10)))
			})
		})
	}
}

// A frame of one block comes with the answer to the hello.
func TestOneBlock(t *testing.T) {
	sim(t, 2, plain, func(t *testing.T, ps []*testPeer) {
		a, b := ps[0], ps[1]
		first, _, err := a.s.ImportFile(t.Context(), bytes.NewReader(noise(1, 10_000)))
		require.NoError(t, err)
		second, _, err := a.s.ImportFile(t.Context(), bytes.NewReader(noise(2, 10_000)))
		require.NoError(t, err)
		require.NoError(t, b.fetch(t, first, a)) // they know each other now
		start := time.Now()
		require.NoError(t, b.fetch(t, second, a))
		const roundTrip = 4 * time.Millisecond
		require.Less(t, time.Since(start), 2*roundTrip+2*time.Millisecond)
	})
}

func TestTooLarge(t *testing.T) {
	sim(t, 2, func(i int) Config {
		if i == 1 {
			return Config{MaxBytes: 1 << 20}
		}
		return Config{}
	}, func(t *testing.T, ps []*testPeer) {
		root, _ := importFiles(t, ps[0].s, map[string][]byte{"scene": noise(1, 2<<20)})
		require.ErrorIs(t, ps[1].fetch(t, root, ps[0]), blobs.ErrTooLarge)
	})
}
