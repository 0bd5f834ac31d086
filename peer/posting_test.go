package peer

import (
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

func aPosting() posting {
	return posting{
		Job: "jabcdefghijklmno", Posted: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Key: "k", Tasks: 2, State: lease.JobQueued,
		Spec: lease.Spec{
			Name: "shot", Owner: "ann", Project: "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", Blend: "files/s.blend", Tier: lease.Normal,
			Replicas: 2, Submitter: "desk", Frames: lease.Frames{{First: 1, Last: 2, Step: 1}},
		},
	}
}

func FuzzReadPosting(f *testing.F) {
	whole, err := json.Marshal(aPosting())
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"job": "../../etc/passwd", "state": "queued"}`))
	f.Add([]byte(`{"job": "jabcdefghijklmno", "state": "done", "tasks": -1, "once": {}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPosting(data)
		if err != nil {
			return
		}
		require.True(t, isJobID(p.Job))
		require.NoError(t, p.Spec.Validate())
		require.Empty(t, p.token, "no file has a credential")
		// What it reads, it writes so that it reads the same.
		again, err := json.Marshal(p)
		require.NoError(t, err)
		q, err := readPosting(again)
		require.NoError(t, err)
		require.True(t, p.Posted.Equal(q.Posted))
		require.Equal(t, p.summary().Name, q.summary().Name)
	})
}

// What a crash or a bad disk left in the folder keeps nothing from starting.
func TestOpenOutbox(t *testing.T) {
	store, err := blobs.Open(filepath.Join(t.TempDir(), "store"), blobs.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	dir := t.TempDir()
	whole, err := json.Marshal(aPosting())
	require.NoError(t, err)
	for name, text := range map[string]string{
		"jabcdefghijklmno.json":            string(whole),
		"jabcdefghijklmnp.json":            string(whole), // of another job
		"jabcdefghijklmnq.json":            string(whole[:100]),
		"jabcdefghijklmnr.json":            "",
		"jabcdefghijklmns.json":            strings.Repeat(" ", maxPosting+1),
		".jabcdefghijklmnt.json-123456789": string(whole[:100]),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	o, err := openOutbox(dir, store, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Len(t, o.all, 1)
	require.Equal(t, lease.JobID("jabcdefghijklmno"), o.all[0].Job)
	require.EqualValues(t, 1, o.orphans.Load())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{
		"jabcdefghijklmno.json", "jabcdefghijklmnp.json.damaged", "jabcdefghijklmnq.json.damaged", "jabcdefghijklmnr.json.damaged", "jabcdefghijklmns.json.damaged",
	}, names)
}

// A posting goes with its own key, or a session of the same person that began under the
// same password, and with nothing else.
func TestPostingGoesWith(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	id, err := libp2ppeer.IDFromPrivateKey(key)
	require.NoError(t, err)
	r, at, founder := founded(t, authz.PeerID(id.String())), time.Now(), authz.Principal{User: "admin", Role: authz.Admin}
	ann := func(change authz.Command) {
		change.At = at.Add(time.Hour)
		_, err := r.Apply(change)
		require.NoError(t, err)
	}
	password, err := authz.NewPassword(rand.Reader, "a long password of ann's")
	require.NoError(t, err)
	ann(authz.Command{AddUser: &authz.AddUser{Account: authz.Account{Person: authz.Person{User: "ann", Role: authz.Operator}, Password: password}, By: founder}})
	p := aPosting()
	p.Posted = at.Add(2 * time.Hour)
	v := r.View()
	mine := authz.Principal{User: "ann", Role: authz.Operator, Key: "k"}
	require.True(t, p.goesWith(mine, v))
	for why, who := range map[string]authz.Principal{
		"another key": {User: "ann", Role: authz.Operator, Key: "l"}, "a session": {User: "ann", Role: authz.Operator, Session: "s"},
		"a viewer now": {User: "ann", Role: authz.Viewer, Key: "k"}, "a node": {User: "ann", Role: authz.Node, Key: "k"},
		"an admin": {User: "root", Role: authz.Admin, Key: "m"}, "another person": {User: "bob", Role: authz.Operator, Key: "k"},
	} {
		require.False(t, p.goesWith(who, v), why)
	}
	p.Key, p.Session = "", "s"
	later := authz.Principal{User: "ann", Role: authz.Operator, Session: "t"}
	require.True(t, p.goesWith(later, v))
	require.False(t, p.goesWith(mine, v), "a key")
	later.MustChange = true
	require.False(t, p.goesWith(later, v), "with a one-time password")
	later.MustChange = false
	require.Empty(t, p.hopeless(v))

	p.Posted = at
	ann(authz.Command{SetPassword: &authz.SetPassword{User: "ann", Password: password, By: founder}})
	require.False(t, p.goesWith(later, r.View()), "the password was changed since")
	require.Contains(t, p.hopeless(r.View()), "the password of ann was changed")
	p.Posted = at.Add(3 * time.Hour)
	ann(authz.Command{Disable: &authz.Disable{User: "ann", On: true, By: founder}})
	require.Contains(t, p.hopeless(r.View()), "the account of ann is disabled")
	p.Key, p.Session, p.Spec.Owner = "k", "", "nobody"
	require.Contains(t, p.hopeless(r.View()), "was revoked")
}

// What cannot be written is not kept, and the error says why.
func TestOutboxThatCannotWrite(t *testing.T) {
	store, err := blobs.Open(filepath.Join(t.TempDir(), "store"), blobs.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	dir := filepath.Join(t.TempDir(), "outbox")
	o, err := openOutbox(dir, store, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	p := aPosting()
	in := httpapi.Posted{Submit: lease.Submit{Job: p.Job, Spec: p.Spec}, By: authz.Principal{User: "ann", Role: authz.Operator, Key: "k"}, Token: "secret"}
	pins := func() (n int) {
		for _, err := range store.Pins(t.Context()) {
			require.NoError(t, err)
			n++
		}
		return n
	}
	require.NoError(t, os.Remove(dir))
	_, err = o.Keep(t.Context(), in)
	require.ErrorContains(t, err, "jabcdefghijklmno.json")
	require.False(t, o.Holds(p.Job))
	require.Zero(t, o.Count())
	require.Zero(t, pins())

	require.NoError(t, os.Mkdir(dir, 0o700))
	large := in
	large.Spec.After = make([]lease.JobID, 64)
	for i := range large.Spec.After {
		large.Spec.After[i] = lease.JobID(strings.Repeat("x", maxPosting/64))
	}
	_, err = o.Keep(t.Context(), large)
	require.ErrorIs(t, err, httpapi.ErrTooLarge)
	require.Zero(t, pins())

	out, err := o.Keep(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, p.Job, out.Job)
	require.Equal(t, 1, pins(), "its project stays here")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	text, err := os.ReadFile(filepath.Join(dir, entries[0].Name()))
	require.NoError(t, err)
	require.NotContains(t, string(text), "secret")

	// That it is cancelled is on the disk as well, before anybody hears of it.
	require.NoError(t, os.RemoveAll(dir))
	who := authz.Principal{User: "ann", Role: authz.Operator}
	_, err = o.Withdraw(who, p.Job)
	require.Error(t, err)
	require.Equal(t, 1, o.Count())
	require.NoError(t, os.Mkdir(dir, 0o700))
	for _, other := range []authz.Principal{{User: "bob", Role: authz.Operator}, {User: "ann", Role: authz.Node}} {
		_, err = o.Withdraw(other, p.Job)
		require.ErrorIs(t, err, httpapi.ErrNotFound)
	}
	_, err = o.Withdraw(authz.Principal{User: "ann", Role: authz.Viewer}, p.Job)
	require.ErrorIs(t, err, httpapi.ErrDenied)
	_, err = o.Withdraw(who, p.Job)
	require.NoError(t, err)
	require.Zero(t, o.Count())
	require.Zero(t, pins())
}
