package authz

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var admin = Principal{User: "admin", Role: Admin}

// signer makes a machine with a real key.
func signer(t testing.TB) (PeerID, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return peerIDOf(public), private
}

// peopled is a farm whose founder can sign, with the operator ann.
func peopled(t testing.TB) (*Roster, genesis, ed25519.PrivateKey) {
	t.Helper()
	id, key := signer(t)
	g, r := newGenesis(t, id), NewRoster()
	_, err := r.Apply(g.command)
	require.NoError(t, err)
	addUser(t, r, "ann", Operator)
	return r, g, key
}

func account(user string, role Role) Account {
	a := cheapAccount(user)
	a.Role, a.MustChange = role, true
	return a
}

func addUser(t testing.TB, r *Roster, user string, role Role) {
	t.Helper()
	_, err := r.Apply(Command{At: noon, AddUser: &AddUser{Account: account(user, role), By: admin}})
	require.NoError(t, err)
}

// login makes a session for user without asking for a password.
func login(t testing.TB, r *Roster, key ed25519.PrivateKey, user string, at time.Time) (string, Session) {
	t.Helper()
	p, ok := r.Person(user)
	require.True(t, ok)
	s, err := NewSession(rand.Reader, p, peerIDOf(key.Public().(ed25519.PublicKey)), at)
	require.NoError(t, err)
	text, err := s.Sign(r.Farm(), func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil })
	require.NoError(t, err)
	return text, s
}

func TestSession(t *testing.T) {
	r, _, key := peopled(t)
	text, s := login(t, r, key, "ann", noon)
	want := Principal{User: "ann", Role: Operator, Session: s.ID, Expires: noon.Add(SessionLife), MustChange: true}
	for _, who := range []interface {
		Authenticate(string, time.Time) (Principal, error)
	}{r, r.View()} {
		p, err := who.Authenticate(text, noon.Add(SessionLife-1))
		require.NoError(t, err)
		require.Equal(t, want, p)
		_, err = who.Authenticate(text, noon.Add(SessionLife))
		require.ErrorIs(t, err, ErrSession, "it ends by itself")
		_, err = who.Authenticate(text, noon.Add(-sessionSkew-1))
		require.ErrorIs(t, err, ErrSession, "it is from the future")
	}

	// The role is the roster's, not the session's.
	_, err := r.Apply(Command{At: noon, SetRole: &SetRole{User: "ann", Role: Viewer, By: admin}})
	require.NoError(t, err)
	p, err := r.Authenticate(text, noon)
	require.NoError(t, err)
	require.Equal(t, Viewer, p.Role)
}

func TestSessionRefuses(t *testing.T) {
	r, _, key := peopled(t)
	text, s := login(t, r, key, "ann", noon)
	_, err := r.Authenticate(text, noon)
	require.NoError(t, err)
	for i := range len(text) {
		for _, c := range "a7" {
			bad := text[:i] + string(c) + text[i+1:]
			if bad == text || i == len(text)-1 { // the last character holds bits that count for nothing
				continue
			}
			_, err := r.Authenticate(bad, noon)
			require.Error(t, err, "a character was changed")
		}
		_, err := r.Authenticate(text[:i], noon)
		require.Error(t, err, "it was cut short")
	}
	_, err = r.Authenticate(text+"aa", noon)
	require.ErrorIs(t, err, ErrSession)

	// A member that is no coordinator, and a stranger, sign no sessions.
	box, boxKey := signer(t)
	_, err = join(t, r, mint(t, r, Operator, false, 1), box, "box")
	require.NoError(t, err)
	_, strangerKey := signer(t)
	for _, k := range []ed25519.PrivateKey{boxKey, strangerKey} {
		forged, _ := login(t, r, k, "ann", noon)
		_, err = r.Authenticate(forged, noon)
		require.ErrorIs(t, err, ErrSession)
	}
	// The name of a coordinator does not help whoever lacks its key.
	_, err = s.Sign(r.Farm(), func(b []byte) ([]byte, error) { return nil, nil })
	require.Error(t, err)
	forged, err := s.Sign(r.Farm(), func(b []byte) ([]byte, error) { return ed25519.Sign(boxKey, b), nil })
	require.NoError(t, err)
	_, err = r.Authenticate(forged, noon)
	require.ErrorIs(t, err, ErrSession)
	// Nor does a session of another farm, or one for ever.
	other, err := s.Sign(newFarm(t).ID(), func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil })
	require.NoError(t, err)
	_, err = r.Authenticate(other, noon)
	require.ErrorIs(t, err, ErrSession)
	long := s
	long.Expires = noon.Add(maxSession + time.Second)
	forever, err := long.Sign(r.Farm(), func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil })
	require.NoError(t, err)
	_, err = r.Authenticate(forever, noon)
	require.ErrorIs(t, err, ErrSession)
	// Nor one for somebody without an account.
	nobody := s
	nobody.User = "operator"
	text, err = nobody.Sign(r.Farm(), func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil })
	require.NoError(t, err)
	_, err = r.Authenticate(text, noon)
	require.ErrorIs(t, err, ErrSession)
}

func FuzzSession(f *testing.F) {
	r, _, key := peopled(f)
	text, _ := login(f, r, key, "ann", noon)
	f.Add(text)
	f.Add(sessionPrefix)
	f.Add(text[:len(text)-4])
	f.Fuzz(func(t *testing.T, s string) {
		p, err := r.Authenticate(s, noon)
		if err != nil {
			require.Zero(t, p)
			return
		}
		require.Equal(t, text[:len(text)-1], s[:len(text)-1], "nobody else's signature is good")
	})
}

func TestLogout(t *testing.T) {
	r, _, key := peopled(t)
	text, s := login(t, r, key, "ann", noon)
	other, _ := login(t, r, key, "ann", noon)
	end := Command{At: noon, EndSession: &EndSession{ID: s.ID, User: "ann", Until: s.Expires}}
	events, err := r.Apply(end)
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: SessionEnded, User: "ann", Role: Operator}}, events)
	v := r.View()
	_, err = v.Authenticate(text, noon)
	require.ErrorIs(t, err, ErrSession)
	_, err = v.Authenticate(other, noon)
	require.NoError(t, err, "another session goes on")
	events, err = r.Apply(end)
	require.NoError(t, err)
	require.Empty(t, events, "once is enough")

	// What would be over anyway is forgotten.
	later := s.Expires.Add(sessionSkew)
	_, err = r.Apply(Command{At: later, Disable: &Disable{User: "ann", On: true, By: admin}})
	require.NoError(t, err)
	require.Empty(t, r.ended)
	events, err = r.Apply(Command{At: later, EndSession: end.EndSession})
	require.NoError(t, err)
	require.Empty(t, events)

	for name, bad := range map[string]EndSession{
		"no ID":       {User: "ann", Until: noon},
		"nobody":      {ID: s.ID, User: "nobody", Until: noon.Add(time.Minute)},
		"never over":  {ID: s.ID, User: "ann", Until: noon.Add(48 * time.Hour)},
		"no end":      {ID: s.ID, User: "ann"},
		"no user":     {ID: s.ID, Until: noon},
		"an odd ID":   {ID: strings.ToUpper(s.ID), User: "ann", Until: noon},
		"another key": {ID: s.ID + "a", User: "ann", Until: noon},
	} {
		_, err := r.Apply(Command{At: noon, EndSession: &bad})
		require.Error(t, err, name)
	}
}

func TestTooManyLogoutsEndAllSessions(t *testing.T) {
	r, _, key := peopled(t)
	other, _ := login(t, r, key, "ann", noon)
	for range maxEnded + 1 {
		_, err := r.Authenticate(other, noon)
		require.NoError(t, err)
		_, s := login(t, r, key, "ann", noon)
		_, err = r.Apply(Command{At: noon.Add(time.Second), EndSession: &EndSession{ID: s.ID, User: "ann", Until: s.Expires}})
		require.NoError(t, err)
		require.LessOrEqual(t, len(r.ended), maxEnded)
	}
	require.Empty(t, r.ended)
	_, err := r.Authenticate(other, noon)
	require.ErrorIs(t, err, ErrSession)
}

func TestDisable(t *testing.T) {
	r, g, key := peopled(t)
	text, _ := login(t, r, key, "ann", noon)
	token, k, err := NewKey(rand.Reader, "ann", Operator, noon)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, CreateKey: &CreateKey{Key: k, By: admin}})
	require.NoError(t, err)
	disable := func(user string, on bool, by Principal) ([]Event, error) {
		return r.Apply(Command{At: noon.Add(time.Minute), Disable: &Disable{User: user, On: on, By: by}})
	}
	events, err := disable("ann", true, admin)
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: UserDisabled, User: "ann", Role: Operator}}, events)
	v := r.View()
	for _, secret := range []string{text, token} {
		_, err = v.Authenticate(secret, noon)
		require.ErrorIs(t, err, ErrDisabled)
	}
	_, err = v.Authenticate(g.operatorToken, noon)
	require.NoError(t, err, "others are not concerned")
	events, err = disable("ann", true, admin)
	require.NoError(t, err)
	require.Empty(t, events)

	events, err = disable("ann", false, admin)
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: UserEnabled, User: "ann", Role: Operator}}, events)
	_, err = r.Authenticate(token, noon)
	require.NoError(t, err)
	_, err = r.Authenticate(text, noon)
	require.ErrorIs(t, err, ErrSession, "a session from before does not come back")
	fresh, _ := login(t, r, key, "ann", noon)
	_, err = r.Authenticate(fresh, noon.Add(time.Minute))
	require.NoError(t, err, "the clock of another leader may be behind")

	_, err = disable("nobody", true, admin)
	require.ErrorIs(t, err, ErrUserUnknown)
}

// TestTheLastAdmin: whoever cannot be replaced stays.
func TestTheLastAdmin(t *testing.T) {
	r, _, _ := peopled(t)
	before := snapshotOf(t, r)
	disable := Command{At: noon, Disable: &Disable{User: "admin", On: true, By: admin}}
	demote := Command{At: noon, SetRole: &SetRole{User: "admin", Role: Viewer, By: admin}}
	refused := func() {
		t.Helper()
		for _, c := range []Command{disable, demote} {
			_, err := r.Apply(c)
			require.ErrorIs(t, err, ErrLastAdmin)
		}
	}
	refused()
	require.Equal(t, before, snapshotOf(t, r))
	addUser(t, r, "eve", Admin)
	eve := Principal{User: "eve", Role: Admin}
	_, err := r.Apply(Command{At: noon, Disable: &Disable{User: "eve", On: true, By: admin}})
	require.NoError(t, err)
	refused() // an admin who cannot log in is none
	_, err = r.Apply(Command{At: noon, Disable: &Disable{User: "eve", By: admin}})
	require.NoError(t, err)
	_, err = r.Apply(demote)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, SetRole: &SetRole{User: "admin", Role: Admin, By: admin}})
	require.ErrorIs(t, err, ErrNotAdmin, "who was demoted does not promote himself, whatever his token said when he asked")
	_, err = r.Apply(Command{At: noon, SetRole: &SetRole{User: "admin", Role: Admin, By: eve}})
	require.NoError(t, err)
}

func TestSetPassword(t *testing.T) {
	r, _, key := peopled(t)
	text, _ := login(t, r, key, "ann", noon)
	other := cheapAccount("").Password
	other.Hash = Hash{2}
	set := func(c SetPassword) error {
		_, err := r.Apply(Command{At: noon.Add(time.Minute), SetPassword: &c})
		return err
	}
	ann := Principal{User: "ann", Role: Operator}
	require.ErrorIs(t, set(SetPassword{User: "ann", Password: other, By: ann}), ErrNotAdmin, "without the old one")
	require.ErrorIs(t, set(SetPassword{User: "ann", Password: other, Was: Hash{9}, By: ann}), ErrPasswordChanged)
	require.ErrorIs(t, set(SetPassword{User: "admin", Password: other, Was: Hash{1}, By: ann}), ErrNotAdmin)
	require.ErrorIs(t, set(SetPassword{User: "nobody", Password: other, By: admin}), ErrUserUnknown)
	weak := other
	weak.Iterations = 1000
	require.Error(t, set(SetPassword{User: "ann", Password: weak, Was: Hash{1}, By: ann}))

	require.NoError(t, set(SetPassword{User: "ann", Password: other, Was: Hash{1}, By: ann}))
	p, _ := r.Person("ann")
	require.Equal(t, Person{User: "ann", Role: Operator, ValidAfter: noon.Add(time.Minute)}, p, "it is a lasting one")
	_, err := r.Authenticate(text, noon)
	require.ErrorIs(t, err, ErrSession, "a session of the old password")

	other.Hash = Hash{3}
	require.NoError(t, set(SetPassword{User: "ann", Password: other, By: admin}))
	p, _ = r.Person("ann")
	require.True(t, p.MustChange, "an admin gives one-time passwords only")
	_, err = r.Apply(Command{At: noon, Disable: &Disable{User: "ann", On: true, By: admin}})
	require.NoError(t, err)
	require.ErrorIs(t, set(SetPassword{User: "ann", Password: other, Was: Hash{3}, By: ann}), ErrDisabled)
}

func TestAddUser(t *testing.T) {
	r, _, _ := peopled(t)
	before := snapshotOf(t, r)
	for name, c := range map[string]AddUser{
		"by an operator":                 {Account: account("bob", Operator), By: Principal{User: "ann", Role: Operator}},
		"by one who says he is an admin": {Account: account("bob", Operator), By: Principal{User: "ann", Role: Admin}},
		"again":                          {Account: account("ann", Viewer), By: admin},
		"a node":                         {Account: account("bob", Node), By: admin},
		"no role":                        {Account: account("bob", ""), By: admin},
		"no name":                        {Account: account("", Viewer), By: admin},
		"a path":                         {Account: account("../bob", Viewer), By: admin},
		"a long name":                    {Account: account(strings.Repeat("x", MaxName+1), Viewer), By: admin},
		"no password":                    {Account: Account{Person: Person{User: "bob", Role: Viewer}}, By: admin},
	} {
		_, err := r.Apply(Command{At: noon, AddUser: &c})
		require.Error(t, err, name)
		require.Equal(t, before, snapshotOf(t, r), name)
	}
	events, err := r.Apply(Command{At: noon, AddUser: &AddUser{Account: account("bob@studio", Viewer), By: admin}})
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: UserAdded, User: "bob@studio", Role: Viewer}}, events)
}

func TestKeys(t *testing.T) {
	r, g, _ := peopled(t)
	create := func(user string, role Role, by Principal) (string, Key, error) {
		token, key, err := NewKey(rand.Reader, user, role, noon)
		require.NoError(t, err)
		key.Name = "the nightly build"
		_, err = r.Apply(Command{At: noon, CreateKey: &CreateKey{Key: key, By: by}})
		return token, key, err
	}
	token, key, err := create("pipeline", Viewer, admin)
	require.NoError(t, err)
	p, err := r.View().Authenticate(token, noon)
	require.NoError(t, err)
	require.Equal(t, Principal{User: "pipeline", Role: Viewer, Key: key.ID}, p)
	kept, ok := r.Key(key.ID)
	require.True(t, ok)
	require.Equal(t, "admin", kept.By)

	_, _, err = create("ann", Operator, Principal{User: "ann", Role: Operator})
	require.ErrorIs(t, err, ErrNotAdmin)
	_, _, err = create("ann", Admin, admin)
	require.ErrorContains(t, err, "can do no more", "than the person can")
	_, err = r.Apply(Command{At: noon, CreateKey: &CreateKey{Key: kept, By: admin}})
	require.ErrorContains(t, err, "has this ID")

	// A person's role bounds that of the person's keys, at once.
	token, _, err = create("ann", Operator, admin)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, SetRole: &SetRole{User: "ann", Role: Viewer, By: admin}})
	require.NoError(t, err)
	p, err = r.Authenticate(token, noon)
	require.NoError(t, err)
	require.Equal(t, Viewer, p.Role)

	revoke := func(id string, by Principal) ([]Event, error) {
		return r.Apply(Command{At: noon, RevokeKey: &RevokeKey{ID: id, By: by}})
	}
	_, err = revoke(key.ID, Principal{User: "pipeline", Role: Viewer})
	require.ErrorIs(t, err, ErrNotAdmin)
	events, err := revoke(key.ID, admin)
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: KeyRevoked, User: "pipeline", Role: Viewer, Key: key.ID}}, events)
	_, err = revoke(key.ID, admin)
	require.ErrorIs(t, err, ErrKeyUnknown)

	// A machine's key is one of them.
	machine := g.command.Found.MachineKey.ID
	_, err = revoke(machine, admin)
	require.NoError(t, err)
	_, err = r.Authenticate(g.adminToken, noon)
	require.ErrorIs(t, err, ErrToken)
	m, _ := r.Member(g.command.Found.Founder)
	require.Empty(t, m.Key)
	require.Len(t, r.Keys(), 2)

	// Nor does the ticket that it joined with give it another.
	ticket := mint(t, r, Operator, false, 2)
	_, err = join(t, r, ticket, "bobpc", "bob-pc")
	require.NoError(t, err)
	m, _ = r.Member("bobpc")
	_, err = revoke(m.Key, admin)
	require.NoError(t, err)
	_, err = join(t, r, ticket, "bobpc", "bob-pc")
	require.ErrorIs(t, err, ErrTicketUnknown)
}

// TestActing: a machine has no more rights than its person has now.
func TestActing(t *testing.T) {
	r, g, _ := peopled(t)
	addUser(t, r, "eve", Admin)
	founder := g.command.Found.Founder
	acts := func(want Role) {
		t.Helper()
		m, ok := r.View().Acting(founder)
		require.True(t, ok)
		require.Equal(t, want, m.Role)
		kept, _ := r.Member(founder)
		require.Equal(t, Admin, kept.Role, "what its ticket gave it stays")
	}
	acts(Admin)
	eve := Principal{User: "eve", Role: Admin}
	_, err := r.Apply(Command{At: noon, SetRole: &SetRole{User: "admin", Role: Viewer, By: eve}})
	require.NoError(t, err)
	acts(Viewer)
	_, err = r.Apply(Command{At: noon, Disable: &Disable{User: "admin", On: true, By: eve}})
	require.NoError(t, err)
	acts(Node)
	_, err = join(t, r, mint(t, r, Operator, false, 1), "bobpc", "bob-pc")
	require.NoError(t, err)
	m, _ := r.Acting("bobpc")
	require.Equal(t, Operator, m.Role, "nobody with an account")
	_, ok := r.Acting("nobody")
	require.False(t, ok)
}

// TestTheViewHoldsNoPassword: what every peer holds is of no use to who steals it.
func TestTheViewHoldsNoPassword(t *testing.T) {
	r, g, key := peopled(t)
	_, s := login(t, r, key, "ann", noon)
	_, err := r.Apply(Command{At: noon, EndSession: &EndSession{ID: s.ID, User: "ann", Until: s.Expires}})
	require.NoError(t, err)
	data, err := json.Marshal(r.View())
	require.NoError(t, err)
	for _, word := range []string{"salt", "iterations", "secret", "expires"} {
		require.NotContains(t, string(data), word)
	}
	got, err := ParseView(data, g.farm.ID())
	require.NoError(t, err)
	require.Equal(t, r.View(), got)
	require.Equal(t, []Person{{User: "admin", Role: Admin}, {User: "ann", Role: Operator, MustChange: true}}, got.People())
	for from, to := range map[string]string{
		`"user":"admin","role":"admin"}`: `"user":"admin","role":"node"}`,
		`{"user":"ann"`:                  `{"user":"aaa"`,
		s.ID:                             "short",
	} {
		bad := strings.Replace(string(data), from, to, 1)
		require.NotEqual(t, string(data), bad)
		_, err := ParseView([]byte(bad), g.farm.ID())
		require.Error(t, err, to)
	}

	// A snapshot, and one of before there were people to speak of.
	back, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, r, back)
	old := founderOnly(t)
	require.Equal(t, []Person{{User: "admin", Role: Admin}}, old.People())
}

// founderOnly restores what a vizpeer wrote that knew no people.
func founderOnly(t *testing.T) *Roster {
	r, _ := founded(t)
	text := snapshotOf(t, r)
	require.NotContains(t, string(text), "people")
	back, err := Restore(bytes.NewReader(text))
	require.NoError(t, err)
	return back
}

// TestPeopleModel drives accounts, sessions and keys at random, and checks after every
// step who is let in; and that a restored snapshot goes on the same way.
func TestPeopleModel(t *testing.T) {
	id, key := signer(t)
	g := newGenesis(t, id)
	type model struct {
		role     Role
		disabled bool
	}
	type session struct {
		text, user string
		id         string
		until      time.Time
		over       bool
	}
	rapid.Check(t, func(t *rapid.T) {
		r := NewRoster()
		if _, err := r.Apply(g.command); err != nil {
			t.Fatal(err)
		}
		now := noon
		people := map[string]*model{"admin": {role: Admin}}
		var sessions []*session
		users := []string{"admin", "ann", "bob"}
		pick := func(t *rapid.T) string { return rapid.SampledFrom(users).Draw(t, "user") }
		roles := rapid.SampledFrom([]Role{Admin, Operator, Viewer})
		// The role that the token of one without an account has stands.
		may := func(by string) bool { p := people[by]; return p == nil || p.role == Admin && !p.disabled }
		last := func(user string) bool {
			for u, p := range people {
				if u != user && p.role == Admin && !p.disabled {
					return false
				}
			}
			return people[user] != nil && may(user)
		}
		apply := func(t *rapid.T, c Command, want bool) {
			now = now.Add(time.Second)
			c.At = now
			if _, err := r.Apply(c); (err == nil) != want {
				t.Fatalf("%+v: %v", c, err)
			}
		}
		endAll := func(user string) {
			for _, s := range sessions {
				s.over = s.over || s.user == user
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				user, by, role := pick(t), pick(t), roles.Draw(t, "role")
				ok := may(by) && people[user] == nil
				apply(t, Command{AddUser: &AddUser{Account: account(user, role), By: Principal{User: by, Role: Admin}}}, ok)
				if ok {
					people[user] = &model{role: role}
				}
			},
			"disable": func(t *rapid.T) {
				user, by, on := pick(t), pick(t), rapid.Bool().Draw(t, "on")
				p := people[user]
				ok := may(by) && p != nil && !(on && !p.disabled && last(user))
				apply(t, Command{Disable: &Disable{User: user, On: on, By: Principal{User: by, Role: Admin}}}, ok)
				if ok {
					if on && !p.disabled {
						endAll(user)
					}
					p.disabled = on
				}
			},
			"role": func(t *rapid.T) {
				user, by, role := pick(t), pick(t), roles.Draw(t, "role")
				p := people[user]
				ok := may(by) && p != nil && (p.role == role || !last(user))
				apply(t, Command{SetRole: &SetRole{User: user, Role: role, By: Principal{User: by, Role: Admin}}}, ok)
				if ok {
					p.role = role
				}
			},
			"login": func(t *rapid.T) {
				user := pick(t)
				p, known := r.Person(user)
				if known != (people[user] != nil) {
					t.Fatalf("%s is known: %v", user, known)
				}
				if !known {
					return
				}
				now = now.Add(time.Second)
				s, err := NewSession(bytes.NewReader(fmt.Appendf(nil, "%016d", len(sessions))), p, id, now)
				if err != nil {
					t.Fatal(err)
				}
				text, err := s.Sign(r.Farm(), func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil })
				if err != nil {
					t.Fatal(err)
				}
				sessions = append(sessions, &session{text: text, user: user, id: s.ID, until: s.Expires})
			},
			"logout": func(t *rapid.T) {
				if len(sessions) == 0 {
					return
				}
				s := sessions[rapid.IntRange(0, len(sessions)-1).Draw(t, "session")]
				apply(t, Command{EndSession: &EndSession{ID: s.id, User: s.user, Until: s.until}}, true)
				s.over = true
			},
			"wait": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "minutes")) * time.Minute) },
			"restart": func(t *rapid.T) {
				back, err := Restore(bytes.NewReader(snapshotOf(t, r)))
				if err != nil {
					t.Fatal(err)
				}
				r = back
			},
			"": func(t *rapid.T) {
				v := r.View()
				for _, s := range sessions {
					p, err := v.Authenticate(s.text, now)
					is := people[s.user]
					if in := !s.over && !is.disabled && now.Before(s.until); in != (err == nil) || in && p.Role != is.role {
						t.Fatalf("the session %+v: %+v, %v", s, p, err)
					}
				}
			},
		})
	})
}
