package blobs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs/pack"
)

// requireSound opens the store anew and checks that it holds all of durable, and
// nothing in its index that is not there.
func requireSound(t *testing.T, dir string, durable []cid.Cid) {
	t.Helper()
	s, err := Open(dir, Config{})
	require.NoError(t, err)
	defer s.Close()
	found, err := s.Scrub(t.Context(), 0, nil)
	require.NoError(t, err)
	require.Zero(t, found.Dropped, "an index entry points at something else")
	for i, c := range durable {
		v, err := s.Verify(t.Context(), c, nil)
		require.NoError(t, err)
		require.True(t, v.Whole(), "root %d of %d was durable: %+v", i, len(durable), v)
	}
	var files, all count
	require.NoError(t, s.index.each(t.Context(), digest{}, func(_ digest, p place) error { all.add(1, p.length); return nil }))
	for _, f := range s.packs.List() {
		n := s.index.fileCount(f.File)
		files.add(n.blocks, int(n.bytes))
	}
	require.Equal(t, all, files, "the counts of the files")
	require.Equal(t, all, s.index.counts())

	// What the cut left behind is given back, and the store goes on.
	before := s.packs.Allocated()
	_, err = s.GC(t.Context())
	require.NoError(t, err)
	require.LessOrEqual(t, s.packs.Allocated(), before+bookkeeping(s))
	c, err := content(s, 250, 3<<20)
	require.NoError(t, err)
	requireHas(t, s, true, append(durable, c)...)
}

const crashDir = "VIZPEER_CRASH_DIR"

// TestKilledWriter is the process that TestKill kills: it says what is durable.
func TestKilledWriter(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("the other half of TestKill")
	}
	s, err := Open(dir, Config{})
	require.NoError(t, err)
	var wg sync.WaitGroup
	var out sync.Mutex
	start := rand.IntN(1 << 20)
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				data := noise(byte(start+i*3+w), 1<<20+rand.IntN(4<<20))
				tree := s.NewTree()
				if _, err := tree.AddFile(context.Background(), "f", readerOf(data)); err != nil {
					panic(err)
				}
				root, _, err := tree.Commit(context.Background())
				if err != nil {
					panic(err)
				}
				out.Lock()
				fmt.Printf("durable %s\n", root)
				out.Unlock()
				if i%3 == w {
					out.Lock()
					fmt.Printf("forgotten %s\n", root) // before: another's GC may remove it at once
					out.Unlock()
					if _, err := s.Forget(context.Background(), root); err != nil {
						panic(err)
					}
					if _, err := s.GC(context.Background()); err != nil {
						panic(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A process killed with -9 in the middle of imports and collections loses nothing
// that it had called durable.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var durable []cid.Cid
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$", "-test.v")
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stdout)
		for left := 3 + rand.IntN(12); left > 0 && lines.Scan(); left-- {
			durable = told(t, durable, lines.Text())
		}
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // said before it died
			durable = told(t, durable, lines.Text())
		}
		_ = cmd.Wait()
		requireSound(t, dir, durable)
	}
	t.Logf("%d roots survived", len(durable))
	require.NotEmpty(t, durable)
}

func told(t *testing.T, durable []cid.Cid, line string) []cid.Cid {
	if text, ok := strings.CutPrefix(line, "durable "); ok {
		c, err := ParseCID(text)
		require.NoError(t, err)
		return append(durable, c)
	}
	if text, ok := strings.CutPrefix(line, "forgotten "); ok {
		return slices.DeleteFunc(durable, func(c cid.Cid) bool { return c.String() == text })
	}
	return durable
}

// plug is a disk that loses, when it is pulled, what was not synced.
type plug struct {
	mu       sync.Mutex
	left     int // changes until it is pulled
	unsynced map[uint32][]pack.Op
}

var errPulled = errors.New("the plug has been pulled")

func (p *plug) before(op pack.Op) error {
	if op.Kind == "read" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left--; p.left < 0 {
		return errPulled
	}
	switch op.Kind {
	case "write":
		p.unsynced[op.File] = append(p.unsynced[op.File], op)
	case "sync":
		delete(p.unsynced, op.File) // what is being written just now is not waited for by anybody
	}
	return nil
}

// cut does to the files what a power cut may: of what was not synced some is
// zeros, some was never there, some arrived.
func (p *plug) cut(t *testing.T, dir string) {
	for id, ops := range p.unsynced {
		path := filepath.Join(dir, "packs", fmt.Sprintf("%08d.pack", id))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		for i, op := range ops {
			switch (i + int(id)) % 3 {
			case 0:
				_, err = f.WriteAt(make([]byte, op.Length), op.Offset)
			case 1:
				_, err = f.WriteAt(make([]byte, op.Length/2), op.Offset)
			}
			require.NoError(t, err)
		}
		if fi, err := f.Stat(); err == nil && len(ops) > 0 && id%2 == 0 && fi.Size() == ops[len(ops)-1].Offset+ops[len(ops)-1].Length {
			require.NoError(t, f.Truncate(ops[len(ops)-1].Offset+1234))
		}
		require.NoError(t, f.Close())
	}
}

// The plug is pulled at every change to the pack files, one after the other.
func TestPowerCut(t *testing.T) {
	t.Run("holes", func(t *testing.T) { pullEverywhere(t, pack.Config{FileSize: 4 << 20}) })
	t.Run("no holes", func(t *testing.T) { pullEverywhere(t, pack.Config{FileSize: 4 << 20, NoHoles: true}) })
}

func pullEverywhere(t *testing.T, cfg pack.Config) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for at := 0; ; at += step {
		dir := t.TempDir()
		p := &plug{left: at, unsynced: map[uint32][]pack.Op{}}
		cfg.Before = p.before
		s, err := Open(dir, Config{Grace: time.Nanosecond, packs: cfg})
		require.NoError(t, err)
		durable, err := workUntilCut(s)
		require.NoError(t, s.Close())
		p.cut(t, dir)
		requireSound(t, dir, durable)
		if err == nil {
			t.Logf("%d changes, each the last in its turn", at)
			require.Greater(t, at, 20)
			return
		}
		require.ErrorIs(t, err, errPulled)
	}
}

// workUntilCut imports, gives up and collects until an error; it returns the roots
// that were durable by then.
func workUntilCut(s *Store) (durable []cid.Cid, err error) {
	ctx := context.Background()
	for i := range 4 {
		root, err := content(s, byte(i), 3<<20)
		if err != nil {
			return durable, err
		}
		durable = append(durable, root)
	}
	frame, _, err := s.ImportFile(ctx, io.LimitReader(rand.NewChaCha8([32]byte{77}), 900_000))
	if err != nil {
		return durable, err
	}
	durable = append(durable, frame)
	pinned, err := s.BeginImport(ctx, io.LimitReader(rand.NewChaCha8([32]byte{78}), 2_500_000), "frames:j")
	if err == nil {
		err = pinned.Wait(ctx)
	}
	if err != nil {
		return durable, err
	}
	durable = append(durable, pinned.CID)
	for _, i := range []int{0, 1} {
		root := durable[0]
		durable = durable[1:]
		if _, err := s.Forget(ctx, root); err != nil {
			return durable, err
		}
		if _, err := s.GC(ctx); err != nil {
			return durable, err
		}
		if root, err = content(s, byte(10+i), 1<<20); err != nil {
			return durable, err
		}
		durable = append(durable, root)
	}
	return durable, nil
}

// A process may be killed between the making of one of the index's files and its sizing.
func TestIndexOpensAfterAKillBetweenTwoSystemCalls(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Config{})
	require.NoError(t, err)
	c, err := content(s, 1, 1<<20)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	for _, name := range []string{"000099.vlog", "00099.mem"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "index", name), nil, 0o600))
		requireSound(t, dir, []cid.Cid{c})
	}
}
