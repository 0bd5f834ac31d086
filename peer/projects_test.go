package peer

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
)

// A project stays unpacked for the next attempt, as long as it is as it was, and makes
// room for another.
func TestProjectsWaitForTheNextAttempt(t *testing.T) {
	store, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	project := func(text string) cid.Cid {
		tree := store.NewTree()
		_, err := tree.AddFile(t.Context(), "files/shot.blend", strings.NewReader(text))
		require.NoError(t, err)
		root, _, err := tree.Commit(t.Context())
		require.NoError(t, err)
		return root
	}
	one, two := project("one"), project("two")
	work := t.TempDir()
	p, err := newProjects(work, store, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	open := func(root cid.Cid, want string) (dir string, release func()) {
		t.Helper()
		o, err := p.open(t.Context(), root, false)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(o.dir, "files", "shot.blend"))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
		return o.dir, o.release
	}
	unpacked := func() int {
		dirs, err := os.ReadDir(work)
		require.NoError(t, err)
		return len(dirs)
	}
	first, release := open(one, "one")
	beside, releaseBeside := open(one, "one")
	require.Equal(t, first, beside)
	release()
	require.True(t, p.has(one))
	releaseBeside()
	require.True(t, p.has(one))
	again, release := open(one, "one")
	require.Equal(t, first, again)
	release()

	// A script of Blender's may write where it should not.
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(filepath.Join(first, "files", "cache"), nil, 0o600) },
		func() error { return os.WriteFile(filepath.Join(first, "files", "shot.blend"), []byte("0ne"), 0o600) },
		func() error { return os.Remove(filepath.Join(first, "files", "shot.blend")) },
	} {
		require.NoError(t, spoil())
		next, release := open(one, "one")
		require.NotEqual(t, first, next)
		require.Equal(t, 1, unpacked())
		first = next
		release()
	}

	require.NoError(t, os.WriteFile(filepath.Join(first, "files", "cache"), nil, 0o600))
	trusted, err := p.open(t.Context(), one, true)
	require.NoError(t, err)
	require.Equal(t, first, trusted.dir, "nobody looks where Blender cannot write")
	trusted.release()

	other, release := open(two, "two")
	require.False(t, p.has(one))
	require.True(t, p.has(two))
	require.Equal(t, 1, unpacked())
	_, releaseOne := open(one, "one")
	require.Equal(t, 2, unpacked(), "both are in use")
	release()
	releaseOne()
	require.Equal(t, 1, unpacked(), "the last one waits")
	require.True(t, p.has(one))
	require.NoDirExists(t, other)
	p.rest(p.idle) // as after projectIdle
	require.Zero(t, unpacked())
	_, release = open(two, "two")
	release()
	p.close()
	require.Zero(t, unpacked())
}

// What holds a project keeps its folder longer than its attempt, for the next one too,
// as long as nothing was written there.
func TestProjectsAreHeld(t *testing.T) {
	store, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	tree := store.NewTree()
	_, err = tree.AddFile(t.Context(), "files/shot.blend", strings.NewReader("one"))
	require.NoError(t, err)
	root, _, err := tree.Commit(t.Context())
	require.NoError(t, err)
	p, err := newProjects(t.TempDir(), store, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(p.close)
	open := func(confined bool) opened {
		t.Helper()
		o, err := p.open(t.Context(), root, confined)
		require.NoError(t, err)
		return o
	}
	first := open(false)
	letGo := first.hold()
	first.release()
	require.Nil(t, p.idle, "it is in use")
	require.True(t, p.has(root))
	again := open(false)
	require.Equal(t, first.dir, again.dir)
	letGo()
	letGo()
	require.DirExists(t, first.dir, "the attempt has it still")
	letGo = again.hold()
	again.release()

	running := open(false)
	require.NoError(t, os.WriteFile(filepath.Join(first.dir, "files", "cache"), nil, 0o600))
	trusted := open(true)
	require.Equal(t, first.dir, trusted.dir, "nobody looks where Blender cannot write")
	trusted.release()
	clean := open(false)
	require.NotEqual(t, first.dir, clean.dir)
	require.DirExists(t, first.dir, "what holds it may keep it")
	late := running.hold()
	running.release()
	letGo()
	require.DirExists(t, first.dir)
	late()
	require.NoDirExists(t, first.dir)
	clean.release()
	require.True(t, p.has(root))
	require.DirExists(t, clean.dir)
}
