package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, configName), []byte(text), 0o600))
	return dir
}

func TestFlagBeatsVariableBeatsFile(t *testing.T) {
	dir := writeConfig(t, "api_listen = \"127.0.0.1:1\"\nlabels = 3\n")
	var s settings
	_, err := fill(s.flags(), dir, func(string) string { return "" })
	require.ErrorContains(t, err, `line 2: unknown key "labels": did you mean "label"?`)

	dir = writeConfig(t, `
api_listen = "127.0.0.1:1"
slots = 3
label = ["gpu", "with,comma"]
no_work = true
`)
	env := map[string]string{"VIZPEER_API_LISTEN": "127.0.0.1:2", "VIZPEER_SLOTS": "4", "VIZPEER_BLENDER": "/a,/b"}
	s = settings{}
	flags := s.flags()
	require.NoError(t, flags.Parse([]string{"--slots", "5"}))
	origin, err := fill(flags, dir, func(name string) string { return env[name] })
	require.NoError(t, err)
	require.Equal(t, map[string]string{"api-listen": "$VIZPEER_API_LISTEN", "blender": "$VIZPEER_BLENDER",
		"label": filepath.Join(dir, configName) + " line 4", "no-work": filepath.Join(dir, configName) + " line 5"}, origin)
	require.Equal(t, settings{apiListen: []string{"127.0.0.1:2"}, slots: 5, labels: []string{"gpu", "with,comma"},
		noWork: true, blender: []string{"/a", "/b"}, p2pListen: s.p2pListen, relay: "auto"}, s)
	require.Empty(t, s.p2pListen)
}

func TestConfigRefusesWhatItDoesNotMean(t *testing.T) {
	for text, want := range map[string]string{
		`p2p_listn = ["/ip4/0.0.0.0/tcp/1"]`: `unknown key "p2p_listn": did you mean "p2p_listen"?`,
		`slots = "many"`:                     `slots = many is not possible`,
		`slots = [1]`:                        `it takes one value`,
		`label = [1]`:                        `item 1 is not a string`,
		`label = true`:                       `it takes a list of strings`,
		`slots = `:                           `is not valid TOML`,
		"[peer]\nslots = 1":                  `unknown key "peer"`,
	} {
		var s settings
		_, err := fill(s.flags(), writeConfig(t, text), func(string) string { return "" })
		require.ErrorContains(t, err, want, text)
		require.Equal(t, exitUsage, exitCode(err), text)
	}
}

func TestNoConfigIsFine(t *testing.T) {
	var s settings
	_, err := fill(s.flags(), t.TempDir(), func(string) string { return "" })
	require.NoError(t, err)
}

func TestNearest(t *testing.T) {
	require.Equal(t, "api_listen", nearest("apilisten", []string{"slots", "api_listen", "p2p_listen"}))
	require.Equal(t, 3, edits("kitten", "sitting"))
	require.Equal(t, 2, edits("", "ab"))
}
