package farmtest_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
)

// effective is how soon every machine goes by a change of the roster.
const effective = 2 * time.Second

// admits tells whether a machine, asked alone, lets in whoever shows the token, and
// who that is.
func admits(m *farmtest.Member, token string) (authz.Principal, error) {
	return m.Local().Authenticate(context.Background(), token)
}

// People log in by the leader, and every machine knows them at once, and knows as soon
// when they log out, change their password, are disabled, or become somebody else.
func TestPeopleEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		queue, ctx := f.Peers[0].Queue(), t.Context()
		admin := authz.Principal{User: "admin", Role: authz.Admin}
		var secrets []string
		secret := func(s string) string { secrets = append(secrets, s); return s }
		everywhere := func(what string, holds func(m *farmtest.Member) bool) {
			t.Helper()
			f.Within(effective, what, func() bool {
				for _, m := range f.Peers {
					if !holds(m) {
						return false
					}
				}
				return true
			})
		}
		refuses := func(token string) func(*farmtest.Member) bool {
			return func(m *farmtest.Member) bool { _, err := admits(m, token); return err != nil }
		}
		is := func(token string, role authz.Role, first bool) func(*farmtest.Member) bool {
			return func(m *farmtest.Member) bool {
				p, err := admits(m, token)
				return err == nil && p.User == "ann" && p.Role == role && p.MustChange == first
			}
		}
		login := func(password string) (httpapi.Session, error) {
			return queue.Login(ctx, httpapi.Credentials{Username: "ann", Password: password})
		}

		ann, err := queue.AddUser(ctx, admin, httpapi.NewUser{Username: "ann", Role: authz.Operator})
		require.NoError(t, err)
		once := secret(ann.Password)
		_, err = login("a wrong password")
		require.ErrorIs(t, err, authz.ErrPassword)
		for name, onRecord := range map[string]string{"ann": "ann", "a password typed as a name": "an unknown user"} {
			doing := &authz.Doing{}
			_, err = queue.Login(authz.WithDoing(ctx, doing), httpapi.Credentials{Username: name, Password: "a wrong password"})
			require.ErrorIs(t, err, authz.ErrPassword)
			require.Equal(t, onRecord, doing.Object)
			require.Empty(t, doing.Detail)
		}
		s, err := login(once)
		require.NoError(t, err)
		require.True(t, s.MustChange)
		everywhere("ann has a one-time password", is(secret(s.Token), authz.Operator, true))

		// Her own password ends the session that began with the one-time one.
		p, err := admits(f.Peers[2], s.Token)
		require.NoError(t, err)
		own := secret("a password of ann's own")
		_, err = queue.ChangePassword(ctx, p, httpapi.PasswordChange{Old: "not " + once, New: own})
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = queue.ChangePassword(ctx, p, httpapi.PasswordChange{Old: once, New: once})
		require.ErrorIs(t, err, httpapi.ErrInvalid)
		changed, err := queue.ChangePassword(ctx, p, httpapi.PasswordChange{Old: once, New: own})
		require.NoError(t, err)
		everywhere("the new session is known", is(secret(changed.Token), authz.Operator, false))
		everywhere("the old session is over", refuses(s.Token))
		_, err = login(once)
		require.ErrorIs(t, err, authz.ErrPassword)

		// Without the leader a session is verified all the same.
		f.Peers[0].Stop()
		require.True(t, is(changed.Token, authz.Operator, false)(f.Peers[2]))
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		queue = f.Peers[0].Queue()
		f.Online(3)

		_, err = queue.SetRole(ctx, admin, "ann", authz.Viewer)
		require.NoError(t, err)
		everywhere("ann is a viewer", is(changed.Token, authz.Viewer, false))

		p, err = admits(f.Peers[1], changed.Token)
		require.NoError(t, err)
		require.NoError(t, queue.Logout(ctx, p))
		everywhere("ann has logged out", refuses(changed.Token))

		// A disabled person's sessions and keys are refused everywhere.
		s, err = login(own)
		require.NoError(t, err)
		key, err := queue.CreateKey(ctx, admin, httpapi.NewKey{Role: authz.Viewer, Username: "ann"})
		require.NoError(t, err)
		everywhere("ann is back", is(secret(s.Token), authz.Viewer, false))
		everywhere("ann has a key", is(secret(key.Key), authz.Viewer, false))
		_, err = queue.DisableUser(ctx, admin, "ann", true)
		require.NoError(t, err)
		everywhere("the session is refused", refuses(s.Token))
		everywhere("the key is refused", refuses(key.Key))
		_, err = login(own)
		require.ErrorIs(t, err, authz.ErrDisabled)
		_, err = login("a wrong password")
		require.ErrorIs(t, err, authz.ErrPassword, "a stranger does not learn that she is disabled")
		_, err = queue.DisableUser(ctx, admin, "ann", false)
		require.NoError(t, err)
		everywhere("the key is good again", is(key.Key, authz.Viewer, false))
		everywhere("the session is not", refuses(s.Token))
		_, err = queue.RevokeKey(ctx, admin, key.ID)
		require.NoError(t, err)
		everywhere("the key is revoked", refuses(key.Key))

		// Only an admin decides, and another machine does not.
		for _, by := range []authz.Principal{farmtest.Operator, {User: "v", Role: authz.Viewer}, {User: "n", Role: authz.Node}} {
			_, err = queue.AddUser(ctx, by, httpapi.NewUser{Username: "eve", Role: authz.Admin})
			require.ErrorIs(t, err, authz.ErrNotAdmin)
			_, err = queue.Keys(ctx, by)
			require.ErrorIs(t, err, authz.ErrNotAdmin)
			_, err = queue.Users(ctx, by)
			require.ErrorIs(t, err, authz.ErrNotAdmin)
		}
		_, err = f.Peers[1].Queue().Login(ctx, httpapi.Credentials{Username: "ann", Password: own})
		require.ErrorIs(t, err, httpapi.ErrNoLeader)

		// What the farm remembers survives its coordinator.
		f.Peers[0].Stop()
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		queue = f.Peers[0].Queue()
		f.Online(3)
		everywhere("the session is still over", refuses(changed.Token))
		s, err = login(own)
		require.NoError(t, err)
		secret(s.Token)

		for _, m := range f.Peers {
			m.Stop()
			holdsNone(t, m.DataDir(), secrets)
			if m == f.Peers[0] {
				require.True(t, holds(t, filepath.Join(m.DataDir(), "queue"), ann.Username+"\",\"role"), "a search of the log finds what is there")
			}
		}
	})
}

// holdsNone looks for secrets in all files below dir: whoever steals a machine's disk
// must find none.
func holdsNone(t *testing.T, dir string, secrets []string) {
	t.Helper()
	for i, s := range secrets {
		require.False(t, holds(t, dir, s), "the secret %d stands in %s", i, dir)
	}
}

// holds tells whether a text stands in any file below dir.
func holds(t *testing.T, dir, text string) (found bool) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		found = found || bytes.Contains(content, []byte(text))
		return err
	}))
	return found
}
