package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), Config{MinFree: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// importFiles imports files given by path and returns the root.
func importFiles(t testing.TB, s *Store, files map[string][]byte) (cid.Cid, Summary) {
	t.Helper()
	tree := s.NewTree()
	defer tree.Abort()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		e, err := tree.AddFile(context.Background(), p, bytes.NewReader(files[p]))
		require.NoError(t, err)
		require.Equal(t, int64(len(files[p])), e.Size)
	}
	root, sum, err := tree.Commit(context.Background())
	require.NoError(t, err)
	return root, sum
}

// readDir reads back what an export wrote.
func readDir(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	got := map[string][]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		got[filepath.ToSlash(rel)] = data
		return err
	}))
	return got
}

func requireSame(t testing.TB, want, got map[string][]byte) {
	t.Helper()
	require.ElementsMatch(t, slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(got)))
	for p := range want {
		require.True(t, bytes.Equal(want[p], got[p]), "content of %q", p)
	}
}

var paths = []struct {
	path string
	ok   bool
}{
	{"scene.blend", true},
	{"textures/wood 01.png", true},
	{"Größe/木/テクスチャ.exr", true},
	{".hidden/..still/…", true},
	{strings.Repeat("a", 255), true},
	{strings.Repeat(strings.Repeat("d", 100)+"/", 40) + "f", true},
	{"CONsole/nullify.txt", true},
	{"", false},
	{"/etc/passwd", false},
	{"../up", false},
	{"a/../b", false},
	{"a/..", false},
	{".", false},
	{"./a", false},
	{"a//b", false},
	{"a/", false},
	{"a\\b", false},
	{"..\\up", false},
	{"C:/Windows", false},
	{"C:", false},
	{"a/C:evil", false},
	{"c:scene.blend", false},
	{`C:\Users\me\scene.blend`, false},
	{`\\server\share\scene.blend`, false},
	{"//server/share/scene.blend", false},
	{`\\?\C:\scene.blend`, false},
	{"//?/C:/scene.blend", false},
	{"~/scene.blend", true},
	{"a/ leading space", true},
	{"aux .txt", false},
	{"CONIN$", false},
	{"a/prn.tar.gz", false},
	{"com10", true},
	{"\u202egnp.exe", true},
	{"line\u2028break", true},
	{"\x7f", false},
	{"\u009b2J", false}, // clears some terminals
	{"file:stream", false},
	{"a\x00b", false},
	{"a\nb", false},
	{"NUL", false},
	{"a/com1.txt", false},
	{"lpt9", false},
	{"COM¹", false},
	{"trailing.", false},
	{"trailing /x", false},
	{"what?.png", false},
	{"bad\xffutf8", false},
	{strings.Repeat("a", 256), false},
	{strings.Repeat("a/", 2050) + "f", false},
}

func TestCheckPath(t *testing.T) {
	for _, c := range paths {
		err := CheckPath(c.path)
		if c.ok {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ErrBadPath, "%q", c.path)
		}
	}
}

func FuzzCheckPath(f *testing.F) {
	for _, c := range paths {
		f.Add(c.path)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if CheckPath(p) != nil {
			return
		}
		// Whatever passes stays inside, means the same when cleaned, and is not
		// taken apart differently by Windows.
		require.True(t, filepath.IsLocal(p))
		require.Equal(t, p, filepath.ToSlash(filepath.Clean(p)))
		require.NotContains(t, p, `\`)
		require.NotContains(t, p, ":")
		require.Equal(t, foldName(p), foldName(foldName(p)))
	})
}

func TestTreeRefusesClashes(t *testing.T) {
	s := open(t)
	for _, c := range [][2]string{
		{"a.png", "a.png"},
		{"Wood.png", "wood.PNG"},
		{"tex/a", "Tex/b"},
		{"a", "a/b"},
		{"a/b", "a"},
		{"caf\u00e9.png", "cafe\u0301.png"},
		{"\u212bngstr\u00f6m", "\u00e5NGSTRO\u0308M"}, // Å as a sign and as a letter
		{"\u03a3\u03a3", "\u03c3\u03c2"},
		{"tex/木/a", "TEX/木/A"},
	} {
		tree := s.NewTree()
		_, err := tree.AddFile(t.Context(), c[0], strings.NewReader("1"))
		require.NoError(t, err)
		_, err = tree.AddFile(t.Context(), c[1], strings.NewReader("2"))
		require.ErrorIs(t, err, ErrBadPath, "%q", c)
		tree.Abort()
	}
}

func TestTreeSurvivesAFailedFile(t *testing.T) {
	s := open(t)
	tree := s.NewTree()
	broken := io.MultiReader(bytes.NewReader(noise(1, 3<<20)), readerFunc(func([]byte) (int, error) { return 0, errors.New("the upload broke") }))
	_, err := tree.AddFile(t.Context(), "a", broken)
	require.ErrorContains(t, err, "the upload broke")
	_, err = tree.AddFile(t.Context(), "a", strings.NewReader("whole"))
	require.NoError(t, err)
	root, sum, err := tree.Commit(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, sum.Files)
	_, _, err = tree.Commit(t.Context())
	require.Error(t, err)
	c, err := s.Lookup(t.Context(), root, "a")
	require.NoError(t, err)
	r, size, err := s.OpenFile(t.Context(), c)
	require.NoError(t, err)
	require.EqualValues(t, 5, size)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "whole", string(data))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestRoundTripOfAnyTree(t *testing.T) {
	s := open(t)
	names := rapid.SampledFrom([]string{"a", "b c", "Ü", "木.png", "sub", "x.blend", "d.1"})
	// Around every size at which the shape of a file changes.
	sizes := rapid.SampledFrom([]int{0, 1, minChunk - 1, minChunk, minChunk + 1, maxChunk, maxChunk + 1, 1 << 20, 3<<20 + 7})
	rapid.Check(t, func(rt *rapid.T) {
		want := map[string][]byte{}
		tree := s.NewTree()
		defer tree.Abort()
		for range rapid.IntRange(0, 6).Draw(rt, "files") {
			p := strings.Join(rapid.SliceOfN(names, 1, 4).Draw(rt, "path"), "/")
			data := noise(rapid.Byte().Draw(rt, "seed"), sizes.Draw(rt, "size"))
			if _, err := tree.AddFile(context.Background(), p, bytes.NewReader(data)); err == nil {
				want[p] = data
			} else if !errors.Is(err, ErrBadPath) {
				rt.Fatal(err)
			}
		}
		root, sum, err := tree.Commit(context.Background())
		if err != nil || sum.Files != len(want) {
			rt.Fatal(err, sum, len(want))
		}
		dir, err := os.MkdirTemp(t.TempDir(), "")
		require.NoError(t, err)
		require.NoError(t, s.Export(context.Background(), root, dir))
		requireSame(t, want, readDir(t, dir))
		again, _, err := s.ImportDir(context.Background(), dir, nil)
		require.NoError(t, err)
		require.Equal(t, root, again)
		back, err := s.Size(context.Background(), root)
		require.NoError(t, err)
		require.Equal(t, sum.Files, back.Files)
		require.Equal(t, sum.Bytes, back.Bytes)
		has, err := s.Has(context.Background(), root)
		require.NoError(t, err)
		require.True(t, has)
	})
}

func TestHugeFolderAndList(t *testing.T) {
	s := open(t)
	want := map[string][]byte{}
	for i := range 6000 {
		want["cache/frame_"+strings.Repeat("0", i%3)+string(rune('a'+i%26))+strings.Repeat("x", i/26)[:min(i/26, 200)]+".vdb"+string(rune(0x4e00+i))] = []byte{byte(i), byte(i >> 8)}
	}
	root, sum := importFiles(t, s, want)
	require.Equal(t, len(want), sum.Files)
	last, n := "", 0
	for e, err := range s.List(t.Context(), root) {
		require.NoError(t, err)
		require.Greater(t, e.Path, last)
		require.EqualValues(t, 2, e.Size)
		require.NotNil(t, want[e.Path], e.Path)
		last, n = e.Path, n+1
	}
	require.Equal(t, len(want), n)
	c, err := s.Lookup(t.Context(), root, last)
	require.NoError(t, err)
	dst := filepath.Join(t.TempDir(), "one")
	require.NoError(t, s.ExportFile(t.Context(), c, dst))
	data, err := os.ReadFile(dst)
	require.NoError(t, err)
	require.Equal(t, want[last], data)
	_, err = s.Lookup(t.Context(), root, "cache/none")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestImportDirAndSymlinks(t *testing.T) {
	s := open(t)
	outside := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(outside, []byte("secret"), 0o600))
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "lib/empty"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lib/tex.png"), noise(1, 200_000), 0o600))
	if err := os.Symlink("lib/tex.png", filepath.Join(dir, "link.png")); err != nil {
		t.Skip("no symlinks here:", err)
	}
	require.NoError(t, os.Symlink("lib", filepath.Join(dir, "lib2")))
	var done, total int64
	var mu sync.Mutex
	root, sum, err := s.ImportDir(t.Context(), dir, func(d, n int64) { mu.Lock(); done, total = max(done, d), n; mu.Unlock() })
	require.NoError(t, err)
	require.Equal(t, 3, sum.Files)
	require.EqualValues(t, 600_000, done)
	require.EqualValues(t, 600_000, total)
	require.Less(t, sum.NewBytes, int64(202_000))
	out := t.TempDir()
	require.NoError(t, s.Export(t.Context(), root, out))
	require.Len(t, readDir(t, out), 3)
	require.DirExists(t, filepath.Join(out, "lib/empty"))

	for name, target := range map[string]string{"rel": "../" + filepath.Base(filepath.Dir(outside)) + "/secret", "abs": outside, "loop": ".", "dangling": "nowhere"} {
		p := filepath.Join(dir, name)
		require.NoError(t, os.Symlink(target, p))
		_, _, err = s.ImportDir(t.Context(), dir, nil)
		require.ErrorIs(t, err, ErrBadPath, name)
		require.NoError(t, os.Remove(p))
	}
}

func TestDedupe(t *testing.T) {
	s := open(t)
	data := noise(7, 32<<20)
	root, sum := importFiles(t, s, map[string][]byte{"a.blend": data})
	require.Greater(t, sum.NewBytes, int64(len(data)))
	require.Less(t, sum.NewBytes, int64(len(data))*1005/1000)

	again, sum := importFiles(t, s, map[string][]byte{"a.blend": data})
	require.Equal(t, root, again)
	require.Zero(t, sum.NewBytes)

	_, sum = importFiles(t, s, map[string][]byte{"a.blend": append(noise(8, 1000), data...)})
	t.Logf("1,000 bytes in front of 32 MiB: %d new bytes", sum.NewBytes)
	require.Less(t, sum.NewBytes, int64(600<<10))
	require.Positive(t, sum.NewBytes)
}

func TestImportFileIsOneBlock(t *testing.T) {
	s := open(t)
	for _, size := range []int{0, 1, MaxBlockSize, MaxBlockSize + 1, 5 << 20} {
		data := noise(3, size)
		c, n, err := s.ImportFile(t.Context(), bytes.NewReader(data))
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		require.Equal(t, size <= MaxBlockSize, c.Type() == cid.Raw)
		r, n, err := s.OpenFile(t.Context(), c)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
		if size > 0 {
			_, err = r.Seek(int64(-size/2-1), io.SeekEnd)
			require.NoError(t, err)
			got, err = io.ReadAll(r)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data[size-size/2-1:], got))
		}
		require.NoError(t, r.Close())
	}
	require.ErrorIs(t, write(s, block{digest: digest{1}, codec: cid.Raw, data: make([]byte, MaxBlockSize+1)}), ErrTooLarge)
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Config{})
	require.NoError(t, err)
	_, err = Open(dir, Config{})
	require.ErrorContains(t, err, "another vizpeer")
	want := map[string][]byte{"a": noise(1, 3<<20), "b/c": nil}
	root, _ := importFiles(t, s, want)
	require.NoError(t, s.Pin(t.Context(), root, "job:1"))
	require.NoError(t, s.Close())
	s, err = Open(dir, Config{})
	require.NoError(t, err)
	defer s.Close()
	_, err = s.GC(t.Context())
	require.NoError(t, err)
	out := t.TempDir()
	require.NoError(t, s.Export(t.Context(), root, out))
	requireSame(t, want, readDir(t, out))
}

func TestDiskFull(t *testing.T) {
	s, err := Open(t.TempDir(), Config{MinFree: 1 << 60})
	require.NoError(t, err)
	defer s.Close()
	_, _, err = s.ImportFile(t.Context(), strings.NewReader("x"))
	require.ErrorIs(t, err, ErrDiskFull)
	require.Regexp(t, `^disk is full: .* has \d+ MiB free and needs \d+ MiB \(1 MiB to be written, the rest stays free\); make room there and try again$`, err)

	dir := t.TempDir()
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		err := failed("write it", dir, &fs.PathError{Op: "write", Path: dir + "/.x.vizpeer-part", Err: cause})
		require.ErrorIs(t, err, ErrDiskFull)
		require.ErrorIs(t, err, cause)
		require.Contains(t, err.Error(), dir)
		require.Contains(t, err.Error(), "make room there")
		require.NotContains(t, err.Error(), "part")
		require.Equal(t, err, failed("import", "elsewhere", fmt.Errorf("and so on: %w", err)), "nothing stands before it")
	}
}

// What the store leaves free it leaves free of its own disk: a frame that fits on
// another one is written there.
func TestExportToAnotherDisk(t *testing.T) {
	home := t.TempDir()
	other, err := os.MkdirTemp("/dev/shm", "blobs-")
	if err != nil || !otherDisk(home, other) {
		t.Skip("no other file system is known on this machine")
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	s, err := Open(home, Config{MinFree: 1})
	require.NoError(t, err)
	root, _ := importFiles(t, s, map[string][]byte{"frame.png": noise(1, 100_000)})
	require.NoError(t, s.Close())
	s, err = Open(home, Config{MinFree: 1 << 60})
	require.NoError(t, err)
	defer s.Close()
	frame, err := s.Lookup(t.Context(), root, "frame.png")
	require.NoError(t, err)
	require.NoError(t, s.ExportFile(t.Context(), frame, filepath.Join(other, "frame.png")))
	require.NoError(t, s.Export(t.Context(), root, filepath.Join(other, "all")))
	require.ErrorIs(t, s.ExportFile(t.Context(), frame, filepath.Join(home, "frame.png")), ErrDiskFull)
	require.ErrorIs(t, s.checkFree(other, 1<<60), ErrDiskFull)
}

func TestExportFileReplacesWhatAKilledProcessLeft(t *testing.T) {
	s := open(t)
	data := noise(1, 3<<20)
	c, _, err := s.ImportFile(t.Context(), bytes.NewReader(data))
	require.NoError(t, err)
	for _, name := range []string{"shot_0001.png", strings.Repeat("x", maxName)} {
		dir := t.TempDir()
		dst, part := filepath.Join(dir, name), filepath.Join(dir, partName(name))
		require.NoError(t, os.WriteFile(part, []byte("half"), 0o600))
		require.NoError(t, s.ExportFile(t.Context(), c, dst))
		requireSame(t, map[string][]byte{name: data}, readDir(t, dir))

		// A link in its place leads nowhere.
		other := filepath.Join(t.TempDir(), "precious")
		require.NoError(t, os.WriteFile(other, []byte("precious"), 0o600))
		if os.Symlink(other, part) == nil {
			require.NoError(t, s.ExportFile(t.Context(), c, dst))
			requireSame(t, map[string][]byte{name: data}, readDir(t, dir))
			kept, err := os.ReadFile(other)
			require.NoError(t, err)
			require.Equal(t, "precious", string(kept))
		}
	}
	files := map[string][]byte{"a/0001.png": data, "0002.png": data}
	root, _ := importFiles(t, s, files)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "a"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a", partName("0001.png")), []byte("half"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "0002.png"), []byte("the one before"), 0o600))
	require.NoError(t, s.ExportDurably(t.Context(), root, dir))
	requireSame(t, files, readDir(t, dir))

	err = s.ExportFile(t.Context(), c, filepath.Join(t.TempDir(), "none", "a.png"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NotContains(t, err.Error(), "vizpeer-part")
}

func TestExportFileToOneNameAtOnce(t *testing.T) {
	s := open(t)
	dst := filepath.Join(t.TempDir(), "a.png")
	var wg sync.WaitGroup
	files := map[string]bool{}
	for i := range 8 {
		data := noise(byte(i), 2<<20)
		files[string(data)] = true
		c, _, err := s.ImportFile(t.Context(), bytes.NewReader(data))
		require.NoError(t, err)
		wg.Go(func() { assert.NoError(t, s.ExportFile(t.Context(), c, dst)) })
	}
	wg.Wait()
	got, err := os.ReadFile(dst)
	require.NoError(t, err)
	require.True(t, files[string(got)], "one of them, whole")
	require.Len(t, readDir(t, filepath.Dir(dst)), 1)
}

func write(s *Store, bs ...block) error {
	w := s.newWriter()
	defer w.close()
	if _, err := w.add(bs...); err != nil {
		return err
	}
	return w.flush()
}

// put stores a node as a peer could send it.
func put(t testing.TB, s *Store, nd ipld.Node) *ipld.Link {
	t.Helper()
	raw := nd.RawData()
	d := digest(sha256.Sum256(raw))
	require.NoError(t, write(s, block{digest: d, codec: nd.Cid().Type(), data: raw}))
	return &ipld.Link{Cid: d.cid(nd.Cid().Type()), Size: uint64(len(raw))}
}

func dirNode(links ...*ipld.Link) *merkledag.ProtoNode {
	nd := unixfs.EmptyDirNode()
	_ = nd.SetCidBuilder(merkledag.V1CidPrefix())
	nd.SetLinks(links)
	return nd
}

func named(name string, l *ipld.Link) *ipld.Link {
	return &ipld.Link{Name: name, Cid: l.Cid, Size: l.Size}
}

func TestHostileNodes(t *testing.T) {
	s, err := Open(t.TempDir(), Config{MinFree: 1, MaxFiles: 10_000})
	require.NoError(t, err)
	defer s.Close()
	leaf := put(t, s, merkledag.NewRawNode([]byte("pwned")))
	parent := t.TempDir()
	dir := filepath.Join(parent, "out")
	for _, name := range []string{"..", ".", "../evil", "a/b", "/evil", "", "a\x00b", `..\evil`, "C:evil", "NUL"} {
		root := put(t, s, dirNode(named(name, leaf)))
		require.ErrorIs(t, s.Export(t.Context(), root.Cid, dir), ErrBadPath, "%q", name)
		nested := put(t, s, dirNode(named("ok", put(t, s, dirNode(named(name, leaf))))))
		require.ErrorIs(t, s.Export(t.Context(), nested.Cid, dir), ErrBadPath, "%q", name)
	}
	for _, twins := range [][2]string{{"a", "a"}, {"a", "A"}} {
		root := put(t, s, dirNode(named(twins[0], leaf), named(twins[1], leaf)))
		require.ErrorIs(t, s.Export(t.Context(), root.Cid, dir), ErrBadPath)
	}
	node := func(data []byte, links ...*ipld.Link) *ipld.Link {
		nd := merkledag.NodeWithData(data)
		_ = nd.SetCidBuilder(merkledag.V1CidPrefix())
		nd.SetLinks(links)
		return put(t, s, nd)
	}
	fileOf := func(sizes ...uint64) []byte {
		n := unixfs.NewFSNode(unixfs.TFile)
		for _, size := range sizes {
			n.AddBlockSize(size)
		}
		b, err := n.GetBytes()
		require.NoError(t, err)
		return b
	}
	symlink, err := unixfs.SymlinkData("../../etc/passwd")
	require.NoError(t, err)
	for what, l := range map[string]*ipld.Link{
		"symlink":      node(symlink),
		"wrong size":   node(fileOf(4), leaf),
		"sizes only":   node(fileOf(5)),
		"overflow":     node(fileOf(1<<63, 1<<63), leaf, leaf),
		"not UnixFS":   node([]byte("garbage")),
		"file of dirs": node(fileOf(5), put(t, s, dirNode())),
	} {
		root := put(t, s, dirNode(named("f", l)))
		require.ErrorIs(t, s.Export(t.Context(), root.Cid, dir), ErrBadNode, what)
	}

	// 2^40 folders in 40 nodes; a file of 32^8 times 1 MiB in 8.
	bomb := put(t, s, dirNode())
	for range 40 {
		bomb = put(t, s, dirNode(named("a", bomb), named("b", bomb)))
	}
	require.ErrorIs(t, s.Export(t.Context(), bomb.Cid, dir), ErrTooLarge)
	has, err := s.Has(t.Context(), bomb.Cid)
	require.NoError(t, err)
	require.True(t, has)
	big, size := put(t, s, merkledag.NewRawNode(noise(1, MaxBlockSize))), uint64(MaxBlockSize)
	for range 8 {
		big = node(fileOf(slices.Repeat([]uint64{size}, 32)...), slices.Repeat([]*ipld.Link{big}, 32)...)
		size *= 32
	}
	err = s.Export(t.Context(), put(t, s, dirNode(named("f", big))).Cid, dir)
	require.ErrorIs(t, err, ErrDiskFull)
	err = s.ExportFile(t.Context(), big.Cid, filepath.Join(parent, "f"))
	require.ErrorIs(t, err, ErrDiskFull)

	// A symlink already in the folder does not lead out either.
	if os.Symlink(parent, filepath.Join(dir, "sub")) == nil {
		root, _ := importFiles(t, s, map[string][]byte{"sub/evil": []byte("pwned")})
		require.Error(t, s.Export(t.Context(), root, dir))
		require.NoError(t, os.Remove(filepath.Join(dir, "sub")))
	}
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something escaped")
	for p, data := range readDir(t, dir) {
		t.Fatalf("left behind: %q (%d bytes)", p, len(data))
	}
}

func TestParseCID(t *testing.T) {
	s := open(t)
	root, _ := importFiles(t, s, map[string][]byte{"a": []byte("a")})
	c, err := ParseCID(root.String())
	require.NoError(t, err)
	require.Equal(t, root, c)
	for _, bad := range []string{"", "x", "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn", "bafkqaaa"} {
		_, err := ParseCID(bad)
		require.ErrorIs(t, err, ErrBadNode, bad)
	}
}

// corrupt overwrites the beginning of a stored block on the disk.
func corrupt(t testing.TB, s *Store, c cid.Cid) {
	t.Helper()
	d, err := digestOf(c)
	require.NoError(t, err)
	p, err := s.index.where(d)
	require.NoError(t, err)
	f, err := os.OpenFile(filepath.Join(s.dir, "packs", fmt.Sprintf("%08d.pack", p.file)), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("rotten"[:min(6, p.length)]), p.offset)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestCorruptBlockIsDroppedAndMissing(t *testing.T) {
	s := open(t)
	files := map[string][]byte{"a": noise(1, 1000)}
	root, _ := importFiles(t, s, files)
	leaf, err := s.Lookup(t.Context(), root, "a")
	require.NoError(t, err)
	corrupt(t, s, leaf)
	out := t.TempDir()
	require.ErrorIs(t, s.Export(t.Context(), root, out), ErrCorrupt)
	require.Empty(t, readDir(t, out))
	has, err := s.Has(t.Context(), root)
	require.NoError(t, err)
	require.False(t, has)
	_, err = s.ReadBlock(leaf, nil)
	require.ErrorIs(t, err, ErrNotFound)
	_, sum := importFiles(t, s, files)
	require.EqualValues(t, 1000, sum.NewBytes)
	require.NoError(t, s.Export(t.Context(), root, out))
}

func TestPins(t *testing.T) {
	s := open(t)
	a, _ := importFiles(t, s, map[string][]byte{"a": []byte("a")})
	b, _ := importFiles(t, s, map[string][]byte{"b": []byte("b")})
	require.Error(t, s.Pin(t.Context(), a, ""))
	require.Error(t, s.Pin(t.Context(), a, "x\x00y"))
	require.Error(t, s.Pin(t.Context(), cid.Undef, "x"))
	for _, p := range []Pin{{Root: a, Holder: "job:1"}, {Root: a, Holder: "job:10"}, {Root: b, Holder: "job:1"}, {Root: b, Holder: "job:1"}} {
		require.NoError(t, s.Pin(t.Context(), p.Root, p.Holder))
	}
	list := func() (got []string) {
		for p, err := range s.Pins(t.Context()) {
			require.NoError(t, err)
			require.WithinDuration(t, time.Now(), p.At, time.Minute)
			got = append(got, p.Root.String()+" "+p.Holder)
		}
		return got
	}
	require.ElementsMatch(t, []string{a.String() + " job:1", a.String() + " job:10", b.String() + " job:1"}, list())
	st, err := s.Stat(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, st.Roots)
	require.Equal(t, 2, st.Pins)
	require.Equal(t, 4, st.Blocks)
	require.Positive(t, st.Disk)
	n, err := s.UnpinAll(t.Context(), "job:1")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, []string{a.String() + " job:10"}, list())
	require.NoError(t, s.Unpin(t.Context(), a, "job:10"))
	require.NoError(t, s.Unpin(t.Context(), a, "job:10"))
	require.Empty(t, list())
}

func TestGC(t *testing.T) {
	s := open(t)
	shared := noise(1, 2<<20)
	keep, _ := importFiles(t, s, map[string][]byte{"shared": shared, "keep": noise(2, 1<<20)})
	require.NoError(t, s.Pin(t.Context(), keep, "job:keep"))
	goes, sum := importFiles(t, s, map[string][]byte{"shared": shared, "goes": noise(3, 40<<20)})

	freed, err := s.GC(t.Context())
	require.NoError(t, err)
	require.Zero(t, freed.Blocks, "the second root is in its grace time")

	require.NoError(t, s.Pin(t.Context(), goes, "job:goes"))
	require.NoError(t, s.Unpin(t.Context(), goes, "job:goes"))
	freed, err = s.GC(t.Context())
	require.NoError(t, err)
	require.Zero(t, freed.Blocks, "the second root is cached")

	gone, err := s.Forget(t.Context(), keep)
	require.NoError(t, err)
	require.False(t, gone, "it is pinned")
	gone, err = s.Forget(t.Context(), goes)
	require.NoError(t, err)
	require.True(t, gone)
	freed, err = s.GC(t.Context())
	require.NoError(t, err)
	require.InEpsilon(t, sum.NewBytes, freed.Bytes, 0.01)
	t.Logf("freed %+v", freed)
	require.InEpsilon(t, freed.Bytes, freed.Disk, 0.05)
	has, err := s.Has(t.Context(), keep)
	require.NoError(t, err)
	require.True(t, has)
	has, err = s.Has(t.Context(), goes)
	require.NoError(t, err)
	require.False(t, has)
	require.NoError(t, s.Export(t.Context(), keep, t.TempDir()))
}

// A tree imported while GC runs over and over, most of it out of unpinned blocks
// that GC wants, must be whole in the end.
func TestGCDuringImport(t *testing.T) {
	s, err := Open(t.TempDir(), Config{MinFree: 1, Grace: time.Nanosecond})
	require.NoError(t, err)
	defer s.Close()
	old := noise(1, 4<<20)
	for round := range 2 {
		importFiles(t, s, map[string][]byte{"old": old}) // garbage at once
		stop := make(chan struct{})
		gone := make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					gone <- nil
					return
				default:
					if _, err := s.GC(context.Background()); err != nil {
						gone <- err
						return
					}
				}
			}
		}()
		tree := s.NewTree()
		for i := range 4 {
			_, err := tree.AddFile(t.Context(), string(rune('a'+i)), bytes.NewReader(old[:len(old)-i<<17]))
			require.NoError(t, err)
		}
		// Pin before Commit ends the tree's own protection: with no grace time
		// nothing else would bridge the gap.
		tree.mu.Lock()
		link, err := tree.commitFolder(t.Context(), tree.root)
		require.NoError(t, err)
		require.NoError(t, tree.w.flush())
		tree.mu.Unlock()
		require.NoError(t, s.Pin(t.Context(), link.Cid, "job"))
		tree.Abort()
		close(stop)
		require.NoError(t, <-gone)
		_, err = s.GC(t.Context())
		require.NoError(t, err)
		require.NoError(t, s.Export(t.Context(), link.Cid, t.TempDir()), "round %d", round)
		require.NoError(t, s.Unpin(t.Context(), link.Cid, "job"))
	}
}

func readerOf(data []byte) io.Reader { return bytes.NewReader(data) }
