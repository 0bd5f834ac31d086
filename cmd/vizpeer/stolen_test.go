package main

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

// lowerBase32 is how tickets, keys and sessions are written.
var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// forms are the ways in which a secret might stand in a file: its text, and the bytes
// behind it, as they are, in hexadecimal and in base64.
func forms(secret string) (list [][]byte) {
	list = append(list, []byte(secret))
	text := secret[strings.LastIndex(secret, "_")+1:]
	text = strings.TrimPrefix(text, "vzt1")
	raw, err := lowerBase32.DecodeString(text)
	if err != nil || len(raw) < 16 {
		return list
	}
	switch {
	case strings.HasPrefix(secret, "vzs_"): // who is who may be on disk, a signature not
		raw = raw[len(raw)-64:]
	case strings.HasPrefix(secret, "vzt"): // size, farm, secret
		raw = raw[22:38]
	}
	return append(list, []byte(text), raw, []byte(hex.EncodeToString(raw)), []byte(base64.StdEncoding.EncodeToString(raw)), []byte(base64.RawURLEncoding.EncodeToString(raw)))
}

// Whoever steals the folders of all machines finds no password, key, ticket or session
// there. The one key that a machine must have of its own counts on no other machine, and
// not at all once the machine was removed.
func TestStolenStoreGivesNothingAway(t *testing.T) {
	f := startRightsFarm(t)
	desk := filepath.Join(f.dir, "desk")
	secrets := map[string]string{}
	vizpeer := func(stdin string, into any, args ...string) {
		t.Helper()
		cmd := exec.Command(f.program, append(args, "--json")...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		require.NoError(t, err, "%s", args)
		if into != nil {
			require.NoError(t, json.Unmarshal(out, into))
		}
	}
	for _, c := range f.callers {
		if c.token != "" && c.name != "admin" {
			secrets["key of "+c.name] = c.token
		}
	}
	var made struct{ Password, Token, Ticket, Key string }
	var box httpapi.Invited
	vizpeer("", &box, "invite", "--role", "operator", "--data-dir", desk)
	secrets["a ticket that was used"] = box.Ticket
	vizpeer(box.Ticket, nil, "join", "-", "--name", "box", "--data-dir", filepath.Join(f.dir, "box"))
	require.NoError(t, f.farm.up(t.Context(), "box", nil))
	vizpeer("", &made, "invite", "--role", "admin", "--data-dir", desk)
	secrets["an open ticket"] = made.Ticket
	vizpeer("", &made, "user", "add", "eva", "--role", "admin", "--data-dir", desk)
	secrets["a one-time password"] = made.Password
	vizpeer(made.Password, &made, "login", "eva", "--data-dir", filepath.Join(f.dir, "box"))
	secrets["a session"] = made.Token
	own := "a password that only eva knows"
	secrets["a password"] = own
	session := filepath.Join(t.TempDir(), "session")
	require.NoError(t, os.WriteFile(session, []byte(made.Token), 0o600))
	vizpeer(secrets["a one-time password"]+"\n"+own+"\n", &made, "user", "passwd", "--token-file", session, "--data-dir", desk)
	secrets["a later session"] = made.Token
	admin := f.caller("admin")
	for _, wrong := range []string{"a wrong password of eva", own + "!"} {
		got := f.ask(rightsCaller{}, http.MethodPost, "/v1/auth/login", []byte(`{"username": "eva", "password": "`+wrong+`"}`))
		require.Equal(t, http.StatusUnauthorized, got.status, got.body)
		secrets["a password that somebody tried: "+wrong] = wrong
	}
	require.Equal(t, http.StatusOK, f.ask(rightsCaller{token: made.Token}, http.MethodGet, "/v1/auth/whoami", nil).status)

	// The machine's own key, as a thief would use it.
	stolen := f.tokenOf("box")
	require.Equal(t, http.StatusUnauthorized, f.ask(rightsCaller{token: stolen}, http.MethodGet, "/v1/jobs", nil).status)
	at := *f
	at.api = f.farm.peers[1].api
	require.Equal(t, http.StatusOK, at.ask(rightsCaller{token: stolen}, http.MethodGet, "/v1/jobs", nil).status)
	require.Equal(t, http.StatusUnauthorized, at.ask(admin, http.MethodGet, "/v1/jobs", nil).status)

	f.farm.stop()
	keys := map[string]string{"desk": admin.token, "box": stolen}
	files := 0
	require.NoError(t, filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for what, secret := range secrets {
			for _, form := range forms(secret) {
				if bytes.Contains(b, form) {
					t.Errorf("%s is in %s, as %.80q", what, path, form)
				}
			}
		}
		for machine, key := range keys {
			inPlace := path == filepath.Join(f.dir, machine, tokenFile)
			found := slices.ContainsFunc(forms(key), func(form []byte) bool { return bytes.Contains(b, form) })
			require.Equal(t, inPlace, found, "the key of %s and %s", machine, path)
			if info, err := d.Info(); inPlace && err == nil {
				require.Zero(t, info.Mode().Perm()&0o077, path)
			}
		}
		return nil
	}))
	t.Logf("%d secrets were looked for in %d files", len(secrets), files)
	require.Greater(t, files, 20)
}

// A test that finds nothing must be able to find something.
func TestFormsOfSecrets(t *testing.T) {
	raw := bytes.Repeat([]byte{7, 1, 200}, 20)[:32]
	key := "vzk_abcdefghijkln_" + lowerBase32.EncodeToString(raw)
	require.Contains(t, forms(key), raw)
	require.Contains(t, forms("plain password"), []byte("plain password"))
}
