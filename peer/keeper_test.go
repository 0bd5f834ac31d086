package peer

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
)

type fetched struct{}

func (fetched) Fetch(context.Context, swarm.Request) error { return nil }

// What is not what was reported, or no frame at all, is not kept, although it is
// here: a machine that renders could otherwise have anything kept for weeks.
func TestOnlyWhatWasReportedIsKept(t *testing.T) {
	s, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	file, size, err := s.ImportFile(t.Context(), strings.NewReader("pixels"))
	require.NoError(t, err)
	tree := s.NewTree()
	_, err = tree.AddFile(t.Context(), "a", strings.NewReader("b"))
	require.NoError(t, err)
	folder, _, err := tree.Commit(t.Context())
	require.NoError(t, err)
	k := &keeper{store: s, fetch: fetched{}}
	keep := func(cid string, size int64) error {
		return k.hold(t.Context(), &keeping{}, coord.Keep{Job: "j", Frame: 1, CID: cid, Size: size, From: []coord.Addr{{Peer: "p"}}})
	}
	pins := func() (holders []string) {
		for pin, err := range s.Pins(t.Context()) {
			require.NoError(t, err)
			holders = append(holders, pin.Holder)
		}
		return holders
	}
	require.ErrorContains(t, keep(file.String(), size+1), "bytes where")
	require.Error(t, keep(folder.String(), 1))
	require.Empty(t, pins())
	require.NoError(t, keep(file.String(), size))
	require.Equal(t, []string{framePin("j")}, pins())
}

// What a machine says is beside a frame is kept only where it is that, and is written
// below the output folder and nowhere else.
func TestFilesBesideAFrame(t *testing.T) {
	s, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	picture, size, err := s.ImportFile(t.Context(), strings.NewReader("pixels"))
	require.NoError(t, err)
	folder := func(paths ...string) (order coord.Keep) {
		tree := s.NewTree()
		for _, p := range paths {
			_, err := tree.AddFile(t.Context(), p, strings.NewReader("beside"))
			require.NoError(t, err)
		}
		root, sum, err := tree.Commit(t.Context())
		require.NoError(t, err)
		return coord.Keep{
			Job: "j", Frame: 1, CID: picture.String(), Name: "0001.png", Size: size, Extra: root.String(), ExtraFiles: sum.Files, ExtraSize: sum.Bytes,
			Dir: filepath.Join(t.TempDir(), "out"), From: []coord.Addr{{Peer: "p"}},
		}
	}
	k := &keeper{store: s, fetch: fetched{}}
	hold := func(order coord.Keep) error { return k.hold(t.Context(), &keeping{}, order) }
	good := folder("passes/image0001.png", "0001_R.png")
	for why, bad := range map[string]coord.Keep{
		"has its place":  folder(".ssh/0001.png"),
		"another's name": folder("passes/0002.png"),
		"no picture":     folder("passes/0001.sh"),
		"other files":    folder("0001_R.png", "0001_L.png", "passes/0001.png"),
		"a file":         good,
	} {
		switch why {
		case "other files":
			bad.ExtraFiles--
		case "a file":
			bad.Extra = bad.CID
		}
		require.Error(t, hold(bad), why)
		for range s.Pins(t.Context()) {
			require.Fail(t, "it is pinned", why)
		}
	}
	require.NoError(t, hold(good))
	require.NoError(t, k.write(t.Context(), good))
	for _, name := range []string{"0001.png", "0001_R.png", "passes/image0001.png"} {
		require.FileExists(t, filepath.Join(good.Dir, name))
	}
	require.NoError(t, k.write(t.Context(), good), "once more")
	if runtime.GOOS == "windows" {
		return // where whoever runs tests may make no symlink
	}
	elsewhere := t.TempDir()
	require.NoError(t, os.RemoveAll(filepath.Join(good.Dir, "passes")))
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(good.Dir, "passes")))
	require.ErrorContains(t, k.write(t.Context(), good), "not a folder")
	left, err := os.ReadDir(elsewhere)
	require.NoError(t, err)
	require.Empty(t, left)
}
