package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const apiDoc = "../../docs/api.md"

// The examples of docs/api.md run as they stand, one after another, against a real
// peer.
func TestExamplesOfTheAPI(t *testing.T) {
	if testing.Short() {
		t.Skip("renders with real Blender")
	}
	for _, needed := range []string{"blender", "curl", "jq"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("the examples need %s", needed)
		}
	}
	program, err := exec.LookPath("vizpeer")
	require.NoError(t, err)
	dir := t.TempDir()
	data := filepath.Join(dir, "farm")
	runTimed(t, program, "init", "--data-dir", data, "--name", "attic", "--json")
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	t.Cleanup(farm.stop)
	require.NoError(t, farm.up(t.Context(), "farm", nil))

	work := t.TempDir()
	script := "set -eu\n"
	for _, block := range examples(t) {
		first, _, _ := strings.Cut(block, "\n")
		script += "echo '---' " + shellQuote(first) + "\n" + block
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "API="+farm.peers[0].api, "VIZPEER_DATA_DIR="+data)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "the examples of %s:\n%s", apiDoc, out)
	require.FileExists(t, filepath.Join(work, "out", "0001.png"))
	for _, picture := range []string{"0001.png", "small.jpg", "now.jpg"} {
		b, err := os.ReadFile(filepath.Join(work, picture))
		require.NoError(t, err)
		require.Contains(t, http.DetectContentType(b), "image/", picture)
	}
	token, err := os.ReadFile(filepath.Join(data, tokenFile))
	require.NoError(t, err)
	require.NotContains(t, string(out), strings.TrimSpace(string(token)), "the examples show no secret")
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// examples are the blocks of shell in docs/api.md.
func examples(t *testing.T) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(apiDoc)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(m[1]))
	}
	require.NotEmpty(t, blocks)
	return blocks
}

// Every route of the API is on its page.
func TestAPIDocHasEveryRoute(t *testing.T) {
	program, err := exec.LookPath("vizpeer")
	require.NoError(t, err)
	dir := t.TempDir()
	data := filepath.Join(dir, "farm")
	runTimed(t, program, "init", "--data-dir", data, "--name", "attic", "--json")
	farm := &brood{cli: &cli{errOut: os.Stderr}, data: dir, self: func() (string, error) { return program, nil }}
	t.Cleanup(farm.stop)
	require.NoError(t, farm.up(t.Context(), "farm", nil))
	resp, err := http.Get(farm.peers[0].api + "/openapi.json")
	require.NoError(t, err)
	defer resp.Body.Close()
	var doc struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&doc))
	require.Greater(t, len(doc.Paths), 20)

	// Each line, with what a path of it may have in place of a parameter.
	text, err := os.ReadFile(apiDoc)
	require.NoError(t, err)
	for path, methods := range doc.Paths {
		pattern := regexp.MustCompile(`(^|[^\w/])` + regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), `(\{\w+\}|\$?\w+)`) + `([^\w/]|$)`)
		for method := range methods {
			method = strings.ToUpper(method)
			found := false
			for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan() && !found; {
				found = pattern.MatchString(strings.ReplaceAll(lines.Text(), "$API", " ")) && method == methodOf(lines.Text())
			}
			require.True(t, found, "%s has no %s %s", apiDoc, method, path)
		}
	}
}

// methodOf is the method of the request that a line of docs/api.md makes, or names.
func methodOf(line string) string {
	if m := regexp.MustCompile(`\b(GET|PUT|POST|DELETE)\b`).FindString(line); m != "" {
		return m
	}
	if regexp.MustCompile(`\bpost `).MatchString(line) {
		return http.MethodPost
	}
	return http.MethodGet
}

// Every test that docs/security.md names is there.
func TestSecurityDocNamesTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	there := map[string]bool{}
	require.NoError(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
		return err
	}))
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(text, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		require.True(t, there[string(m[1])], "there is no %s", m[1])
	}
}
