package probe

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/render"
)

// A Blender from the farm that looks around when it is asked sees nothing of this
// machine's own, and can write and reach nothing.
func TestBlenderFromTheFarmIsConfined(t *testing.T) {
	if kind, why := render.SandboxKind(); kind == "" {
		t.Skip("needs bubblewrap: ", why)
	}
	p := proberOf(t, &recorded{tree: fstest.MapFS{}})
	p.sys = thisMachine{}
	p.cfg.DataDir = t.TempDir()
	token := filepath.Join(p.cfg.DataDir, "token")
	require.NoError(t, os.WriteFile(token, []byte("secret"), 0o600))
	path := filepath.Join(p.cfg.DataDir, "blenders", "bafy", "blender")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	script := fmt.Sprintf(`#!/bin/sh
if [ "$1" = --version ]; then echo 'Blender 4.2.1'; exit; fi
for out; do :; done
[ -e %[1]s ] && exit 9
touch %[2]s/mine /usr/mine && exit 8
[ $(wc -l </proc/net/dev) -gt 3 ] && exit 7
printf '%%s\n' '%[3]s' >"$out"
`, token, p.cfg.DataDir, fakeAnswer)
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))

	p.cfg.Blender = []string{path}
	p.confine = true
	for _, b := range p.blenders(t.Context(), gpus{}) {
		require.NotEqual(t, path, b.Path, "the owner's own is asked as it is, and sees the token")
	}
	p.cfg.Blender, p.cfg.Fetched = nil, []string{path}
	found := p.blenders(t.Context(), gpus{})
	require.NotEmpty(t, found)
	last := found[len(found)-1]
	require.Equal(t, path, last.Path)
	require.Equal(t, "4.2.1", last.Version.String())
	require.NoFileExists(t, filepath.Join(p.cfg.DataDir, "mine"))
}

// The real one works in there as it does outside.
func TestRealBlenderIsAskedConfined(t *testing.T) {
	if kind, why := render.SandboxKind(); kind == "" {
		t.Skip("needs bubblewrap: ", why)
	}
	own, err := program(cmp.Or(os.Getenv(EnvBlender), "blender"))
	if err != nil {
		t.Skip("needs Blender: install it (apt-get install blender), or set VIZPEER_BLENDER")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "blenders", "bafy", "blender")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nexec "+own+" \"$@\"\n"), 0o755))
	c, err := Probe(t.Context(), Config{DataDir: dir, Fetched: []string{path}})
	require.NoError(t, err)
	last := c.Builds[len(c.Builds)-1]
	require.Equal(t, path, last.Path)
	require.True(t, last.Same(c.Builds[0]))
	require.Equal(t, c.Builds[0].Engines, last.Engines)
}
