package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/portable"
)

// outfit is a machine's part of the farm's Blenders, with nobody around.
type outfit struct {
	*builds
	offers  []authz.Offer
	brought []cid.Cid // that it asked others for
	broken  error     // what bringing fails with
}

func newOutfit(t *testing.T, dir string) *outfit {
	if runtime.GOOS == "windows" {
		t.Skip("needs symlinks")
	}
	key, err := authz.NewFarmKey(rand.Reader)
	require.NoError(t, err)
	founder := authz.PeerID(aPeer(t).String())
	b := &outfit{}
	b.builds, err = openBuilds(filepath.Join(dir, "blenders"))
	require.NoError(t, err)
	b.store, err = blobs.Open(filepath.Join(dir, "store"), blobs.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { b.store.Close() })
	b.view = func() *authz.View {
		doc, err := json.Marshal(map[string]any{"version": 1, "name": "attic", "charter": key.SignCharter(founder, 1), "members": []authz.Member{}, "keys": []authz.Key{}, "offers": b.offers})
		require.NoError(t, err)
		v, err := authz.ParseView(doc, key.ID())
		require.NoError(t, err)
		return v
	}
	b.bring = func(_ context.Context, c cid.Cid) error { b.brought = append(b.brought, c); return b.broken }
	b.probe = func(_ context.Context, paths []string) (can lease.Capability, err error) {
		for _, p := range paths {
			can.Builds = append(can.Builds, lease.Build{Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}, Path: p})
		}
		return can, nil
	}
	b.can = func() lease.Capability {
		c := lease.Capability{OS: "linux", Arch: "amd64"}
		if now := b.now.Load(); now != nil {
			c.Builds = now.Builds
		}
		return c
	}
	b.uses = func(string) bool { return false }
	b.tell, b.letGo, b.slog = func() {}, func() {}, slog.New(slog.DiscardHandler)
	return b
}

// put stores a folder and offers it.
func (b *outfit) put(t *testing.T, files map[string]string) string {
	tree := b.store.NewTree()
	defer tree.Abort()
	for name, text := range files {
		_, err := tree.AddFile(t.Context(), name, strings.NewReader(text))
		require.NoError(t, err)
	}
	root, sum, err := tree.Commit(t.Context())
	require.NoError(t, err)
	b.offers = []authz.Offer{{Root: root.String(), Name: "Blender", Version: "4.2.3", OS: "linux", Arch: "amd64", Files: sum.Files, Size: sum.Bytes, By: "root"}}
	return root.String()
}

func (b *outfit) pins(t *testing.T) (roots []string) {
	for pin, err := range b.store.Pins(t.Context()) {
		require.NoError(t, err)
		roots = append(roots, pin.Root.String())
	}
	return roots
}

const aManifest = `{"version": 1, "program": "blender", "executable": ["blender"]}`

func TestBuildsGoByTheRoster(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "blenders", ".part-1", "lib"), 0o755))
	b := newOutfit(t, dir)
	require.NoDirExists(t, filepath.Join(b.dir, ".part-1"), "what was not finished is gone")
	files := map[string]string{"blender": "a program", portable.ManifestName: aManifest}
	root := b.put(t, files)
	offers := b.offers

	// Nobody's word but the roster's counts.
	b.offers = nil
	b.want(root)
	require.NoError(t, b.next(t.Context(), b.view()))
	require.Empty(t, b.brought)
	require.Empty(t, b.wanted)
	require.Empty(t, b.pins(t))

	// Nor is one fetched that is for others.
	b.offers = offers
	b.offers[0].Arch = "arm64"
	b.want(root)
	require.NoError(t, b.next(t.Context(), b.view()))
	require.Empty(t, b.brought)
	require.True(t, b.refused[root])
	b.offers[0].Arch, b.refused = "amd64", map[string]bool{}

	// What fails is tried again; where there is no room, nothing is kept of it.
	b.broken = errors.New("nobody has it")
	b.want(root)
	require.Error(t, b.next(t.Context(), b.view()))
	require.Equal(t, []string{root}, b.pins(t))
	b.broken = blobs.ErrNoRoom
	require.Error(t, b.next(t.Context(), b.view()))
	require.Empty(t, b.pins(t))
	b.broken = nil
	require.NoError(t, b.next(t.Context(), b.view()))
	require.FileExists(t, filepath.Join(b.dir, root, "blender"))
	require.True(t, b.told(filepath.Join(b.dir, root)))
	require.NoError(t, b.next(t.Context(), b.view()))
	require.Empty(t, b.wanted)
	require.Len(t, b.brought, 3)

	// In use it stays although it is offered no more; then it goes.
	b.offers = nil
	used := true
	b.uses = func(folder string) bool { return used && folder == filepath.Join(b.dir, root) }
	require.False(t, b.drop(t.Context(), b.view()), "others must hear of it first")
	require.False(t, b.told(filepath.Join(b.dir, root)))
	require.False(t, b.drop(t.Context(), b.view()))
	require.DirExists(t, filepath.Join(b.dir, root))
	used = false
	require.True(t, b.drop(t.Context(), b.view()))
	require.NoDirExists(t, filepath.Join(b.dir, root))
	b.keep(t.Context(), b.view())
	require.Empty(t, b.pins(t))
}

// A folder whose manifest would do harm is not unpacked, and not tried again.
func TestBuildsRefuseHostileFolders(t *testing.T) {
	for name, manifest := range map[string]string{
		"none":               "",
		"a link outside":     `{"version": 1, "program": "blender", "executable": ["blender"], "links": {"x": "../../token"}}`,
		"a program outside":  `{"version": 1, "program": "../../token", "executable": ["../../token"]}`,
		"an absolute target": `{"version": 1, "program": "blender", "executable": ["blender"], "links": {"x": "/etc/passwd"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newOutfit(t, t.TempDir())
			files := map[string]string{"blender": "a program", portable.ManifestName: manifest}
			if manifest == "" {
				delete(files, portable.ManifestName)
			}
			root := b.put(t, files)
			b.want(root)
			require.NoError(t, b.next(t.Context(), b.view()))
			require.True(t, b.refused[root])
			left, err := os.ReadDir(b.dir)
			require.NoError(t, err)
			require.Empty(t, left)
			require.Nil(t, b.now.Load(), "it was not even asked")
		})
	}
}
