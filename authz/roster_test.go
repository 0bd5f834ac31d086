package authz

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// genesis is a founding command with its secrets.
type genesis struct {
	farm                      FarmKey
	command                   Command
	ticket                    Ticket
	operatorToken, adminToken string
}

// cheapAccount skips the 0.2 s of a real password.
func cheapAccount(user string) Account {
	return Account{Person{User: user, Role: Admin}, Password{Salt: make([]byte, passwordSaltSize), Iterations: passwordIterations, Hash: Hash{1}}}
}

func newGenesis(t testing.TB, founder PeerID) genesis {
	t.Helper()
	g := genesis{farm: newFarm(t)}
	f := Found{
		Farm: g.farm.ID(), Name: "Studio", Charter: g.farm.SignCharter(founder, 1),
		Founder: founder, FounderName: "box-1", Admin: cheapAccount("admin"),
	}
	var err error
	g.ticket, err = NewTicket(rand.Reader, g.farm.ID(), Node, false, nil)
	require.NoError(t, err)
	f.NodeTicket = g.ticket.Record(1, noon.Add(24*time.Hour), "admin")
	g.operatorToken, f.OperatorKey, err = NewKey(rand.Reader, "operator", Operator, noon)
	require.NoError(t, err)
	g.adminToken, f.MachineKey, err = NewKey(rand.Reader, "admin", Admin, noon)
	require.NoError(t, err)
	g.command = Command{At: noon, Found: &f}
	return g
}

func founded(t testing.TB) (*Roster, genesis) {
	t.Helper()
	g, r := newGenesis(t, "founder"), NewRoster()
	events, err := r.Apply(g.command)
	require.NoError(t, err)
	require.Len(t, events, 2)
	return r, g
}

func snapshotOf(t rapid.TB, r *Roster) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// join redeems ticket for peer with a new key, and returns the key's token.
func join(t testing.TB, r *Roster, ticket Ticket, peer PeerID, name string) (string, error) {
	t.Helper()
	token, key, err := NewKey(rand.Reader, "anybody", Node, noon)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, Redeem: &Redeem{Ticket: ticket.Hash(), Peer: peer, Name: name, Worker: true, KeyID: key.ID, KeyHash: key.Hash}})
	return token, err
}

func mint(t testing.TB, r *Roster, role Role, coordinator bool, uses int) Ticket {
	t.Helper()
	ticket, err := NewTicket(rand.Reader, r.Farm(), role, coordinator, nil)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, Mint: &Mint{ticket.Record(uses, noon.Add(time.Hour), "admin")}})
	require.NoError(t, err)
	return ticket
}

func TestFound(t *testing.T) {
	r, g := founded(t)
	require.Equal(t, g.farm.ID(), r.Farm())
	require.Equal(t, "Studio", r.Name())
	require.Equal(t, []PeerID{"founder"}, r.Coordinators())
	require.True(t, r.IsCoordinator("founder"))
	require.False(t, r.IsCoordinator("stranger"))
	m, ok := r.Member("founder")
	require.True(t, ok)
	require.Equal(t, []string{"worker", "coordinator", "submitter"}, m.RoleNames())
	require.Equal(t, Admin, r.Account("admin").Role)
	require.Zero(t, r.Account("nobody"))

	p, err := r.Authenticate(g.adminToken, noon)
	require.NoError(t, err)
	require.Equal(t, Admin, p.Role)
	require.Equal(t, "admin", p.User)
	p, err = r.Authenticate(g.operatorToken, noon)
	require.NoError(t, err)
	require.Equal(t, Operator, p.Role)
	require.Equal(t, "operator", p.User)

	before := snapshotOf(t, r)
	events, err := r.Apply(g.command)
	require.NoError(t, err, "the same founding again")
	require.Empty(t, events)
	_, err = r.Apply(newGenesis(t, "founder").command)
	require.ErrorIs(t, err, ErrOtherFarm)
	require.Equal(t, before, snapshotOf(t, r))
}

func TestFoundRefuses(t *testing.T) {
	other := newFarm(t)
	for name, change := range map[string]func(*Command){
		"no time":              func(c *Command) { c.At = time.Time{} },
		"a time beyond JSON":   func(c *Command) { c.At = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"two changes":          func(c *Command) { c.Mint = &Mint{} },
		"other farm":           func(c *Command) { c.Found.Farm = other.ID() },
		"other founder":        func(c *Command) { c.Found.Founder = "rival" },
		"no farm name":         func(c *Command) { c.Found.Name = "" },
		"bad machine name":     func(c *Command) { c.Found.FounderName = "a\x1b[2Jb" },
		"weak password":        func(c *Command) { c.Found.Admin.Iterations = 1000 },
		"admin no admin":       func(c *Command) { c.Found.Admin.Role = Viewer },
		"operator is admin":    func(c *Command) { c.Found.OperatorKey.Role = Admin },
		"operator acts as one": func(c *Command) { c.Found.OperatorKey.User = "admin" },
		"admin ticket":         func(c *Command) { c.Found.NodeTicket.Role = Admin },
		"coordinator ticket":   func(c *Command) { c.Found.NodeTicket.Coordinator = true },
		"ticket of no use":     func(c *Command) { c.Found.NodeTicket.Uses = 0 },
		"key without hash":     func(c *Command) { c.Found.MachineKey.Hash = Hash{} },
	} {
		t.Run(name, func(t *testing.T) {
			g, r := newGenesis(t, "founder"), NewRoster()
			change(&g.command)
			_, err := r.Apply(g.command)
			require.Error(t, err)
			require.Equal(t, snapshotOf(t, NewRoster()), snapshotOf(t, r), "a refused command changes nothing")
		})
	}
	_, err := NewRoster().Apply(Command{At: noon, Mint: &Mint{}})
	require.ErrorIs(t, err, ErrNotFounded)
}

func TestRedeem(t *testing.T) {
	r, g := founded(t)
	token, err := join(t, r, g.ticket, "worker1", "box-2")
	require.NoError(t, err)
	m, _ := r.Member("worker1")
	require.Equal(t, Node, m.Role)
	require.False(t, m.Coordinator)
	p, err := r.Authenticate(token, noon)
	require.NoError(t, err)
	require.Equal(t, Principal{User: "box-2", Role: Node, Key: m.Key, Machine: "worker1"}, p)

	_, err = join(t, r, g.ticket, "worker2", "box-3")
	require.ErrorIs(t, err, ErrTicketUsed)
	_, err = join(t, r, newTicket(t), "worker2", "box-3")
	require.ErrorIs(t, err, ErrTicketUnknown)

	// A join that was cut off is run again: the new key replaces the lost one.
	again, err := join(t, r, g.ticket, "worker1", "box-2")
	require.NoError(t, err)
	_, err = r.Authenticate(token, noon)
	require.ErrorIs(t, err, ErrToken)
	_, err = r.Authenticate(again, noon)
	require.NoError(t, err)

	two := mint(t, r, Node, false, 2)
	for range 3 {
		_, err = join(t, r, two, "worker3", "box-3")
		require.NoError(t, err, "a repeated join is one use")
	}
	_, err = join(t, r, two, "worker4", "box-4")
	require.NoError(t, err)
	_, err = join(t, r, two, "worker5", "box-5")
	require.ErrorIs(t, err, ErrTicketUsed)
}

func TestRedeemExpiry(t *testing.T) {
	r, g := founded(t)
	expires := g.command.Found.NodeTicket.ExpiresAt
	try := func(at time.Time, peer PeerID) error {
		_, err := r.Apply(Command{At: at, Redeem: &Redeem{Ticket: g.ticket.Hash(), Peer: peer, Name: "box"}})
		return err
	}
	require.ErrorIs(t, try(expires, "late"), ErrTicketExpired)
	require.NoError(t, try(expires.Add(-1), "intime"))
	require.NoError(t, try(expires, "intime"), "what was granted stays granted")

	// Minting forgets what has expired.
	ticket, err := NewTicket(rand.Reader, r.Farm(), Node, false, nil)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: expires, Mint: &Mint{ticket.Record(1, expires, "admin")}})
	require.ErrorContains(t, err, "expired at once")
	require.Len(t, r.tickets, 1)
	_, err = r.Apply(Command{At: expires, Mint: &Mint{ticket.Record(1, expires.Add(time.Hour), "admin")}})
	require.NoError(t, err)
	require.Len(t, r.tickets, 1)
	require.ErrorIs(t, try(expires, "late"), ErrTicketUnknown)
}

func TestATicketAddsRightsAndTakesNone(t *testing.T) {
	r, _ := founded(t)
	_, err := join(t, r, mint(t, r, Operator, true, 1), "ann", "ann-pc")
	require.NoError(t, err)
	token, err := join(t, r, mint(t, r, Viewer, false, 1), "ann", "ann-laptop")
	require.NoError(t, err)
	m, _ := r.Member("ann")
	require.True(t, m.Coordinator)
	require.Equal(t, Operator, m.Role)
	require.Equal(t, "ann-pc", m.User, "her jobs stay hers")
	require.Equal(t, "ann-laptop", m.Name)
	p, err := r.Authenticate(token, noon)
	require.NoError(t, err)
	require.Equal(t, Operator, p.Role)
}

func TestAMachineCannotBecomeSomebody(t *testing.T) {
	r, _ := founded(t)
	ticket := mint(t, r, Operator, false, 10)
	long := strings.Repeat("é", MaxName/2)
	for i, want := range []struct{ name, user string }{
		{"admin", "admin-2"}, {"admin", "admin-3"}, {"operator", "operator-2"}, {"ann", "ann"}, {"ann", "ann-2"},
		{long, long}, {long, strings.Repeat("é", MaxName/2-1) + "-2"},
	} {
		_, err := join(t, r, ticket, PeerID(fmt.Sprint("peer", i)), want.name)
		require.NoError(t, err)
		m, _ := r.Member(PeerID(fmt.Sprint("peer", i)))
		require.Equal(t, want.user, m.User)
		require.Equal(t, want.name, m.Name)
	}
}

func TestRedeemRefuses(t *testing.T) {
	r, g := founded(t)
	operator := mint(t, r, Operator, false, 5)
	_, key, err := NewKey(rand.Reader, "x", Node, noon)
	require.NoError(t, err)
	good := Redeem{Ticket: operator.Hash(), Peer: "ann", Name: "ann-pc", KeyID: key.ID, KeyHash: key.Hash}
	before := snapshotOf(t, r)
	for name, change := range map[string]func(*Redeem){
		"no peer":       func(c *Redeem) { c.Peer = "" },
		"odd peer":      func(c *Redeem) { c.Peer = "../x" },
		"no name":       func(c *Redeem) { c.Name = "" },
		"long name":     func(c *Redeem) { c.Name = strings.Repeat("x", MaxName+1) },
		"no key":        func(c *Redeem) { c.KeyID = "" },
		"no key hash":   func(c *Redeem) { c.KeyHash = Hash{} },
		"odd key":       func(c *Redeem) { c.KeyID = "A" },
		"another's key": func(c *Redeem) { c.KeyID = g.command.Found.OperatorKey.ID },
	} {
		c := good
		change(&c)
		_, err := r.Apply(Command{At: noon, Redeem: &c})
		require.Error(t, err, name)
		require.Equal(t, before, snapshotOf(t, r), name)
	}
	_, err = r.Apply(Command{At: noon, Redeem: &good})
	require.NoError(t, err)
}

func TestAuthenticateDenies(t *testing.T) {
	r, g := founded(t)
	stranger, _, err := NewKey(rand.Reader, "admin", Admin, noon)
	require.NoError(t, err)
	_, err = r.Authenticate(stranger, noon)
	require.ErrorIs(t, err, ErrToken)
	mixed := g.operatorToken[:len(tokenPrefix)+13] + g.adminToken[len(tokenPrefix)+13:]
	_, err = r.Authenticate(mixed, noon)
	require.ErrorIs(t, err, ErrToken)
	_, err = r.Authenticate("vzk_", noon)
	require.ErrorIs(t, err, ErrTokenText)
	_, err = r.Authenticate(g.ticket.String(), noon)
	require.ErrorIs(t, err, ErrTokenText)
}

func TestView(t *testing.T) {
	r, g := founded(t)
	old := r.View()
	_, err := join(t, r, mint(t, r, Viewer, true, 1), "ann", "ann-pc")
	require.NoError(t, err)
	require.Len(t, old.Members(), 1, "a view does not change with its roster")
	ticket := mint(t, r, Viewer, true, 1)
	_, err = join(t, r, ticket, "bob", "bob-pc")
	require.NoError(t, err)
	before := r.View()
	_, err = join(t, r, ticket, "bob", "bob-laptop")
	require.NoError(t, err)
	bob, _ := before.Member("bob")
	require.Equal(t, "bob-pc", bob.Name, "nor when a member changes")
	now := r.View()

	data, err := json.Marshal(now)
	require.NoError(t, err)
	require.NotContains(t, string(data), "salt", "no accounts")
	require.NotContains(t, string(data), "expires", "no tickets")
	got, err := ParseView(data, g.farm.ID())
	require.NoError(t, err)
	require.Equal(t, now, got)
	require.Equal(t, r.Members(), got.Members())
	require.Equal(t, []PeerID{"ann", "bob", "founder"}, got.Coordinators())
	p, err := got.Authenticate(g.operatorToken, noon)
	require.NoError(t, err)
	require.Equal(t, "operator", p.User)

	require.True(t, old.Replaces(nil))
	require.True(t, now.Replaces(old))
	require.False(t, old.Replaces(now))
	require.False(t, now.Replaces(got))

	_, err = ParseView(data, newFarm(t).ID())
	require.ErrorContains(t, err, "it is of farm")
	empty, err := json.Marshal(NewRoster().View())
	require.NoError(t, err)
	_, err = ParseView(empty, g.farm.ID())
	require.Error(t, err)
	for from, to := range map[string]string{
		`"epoch":1`:         `"epoch":2`,
		`"role":"operator"`: `"role":"god"`,
		`"id":"ann"`:        `"id":"zzz"`,
		`"name":"Studio"`:   `"name":""`,
	} {
		bad := strings.Replace(string(data), from, to, 1)
		require.NotEqual(t, string(data), bad)
		_, err := ParseView([]byte(bad), g.farm.ID())
		require.Error(t, err, to)
	}
}

func TestRestoreRefuses(t *testing.T) {
	r, _ := founded(t)
	good := string(snapshotOf(t, r))
	for from, to := range map[string]string{
		`"format":1`: `"format":2`,
		`"uses":1`:   `"uses":-1`,
		`"salt":"`:   `"salt":"AAAA`,
	} {
		bad := strings.Replace(good, from, to, 1)
		require.NotEqual(t, good, bad)
		_, err := Restore(strings.NewReader(bad))
		require.Error(t, err, to)
	}
	_, err := Restore(strings.NewReader(good[:len(good)/2]))
	require.Error(t, err)
}

func TestLabel(t *testing.T) {
	r, g := founded(t)
	_, err := join(t, r, g.ticket, "box", "box-2")
	require.NoError(t, err)
	label := func(p PeerID, labels ...string) ([]Event, error) {
		return r.Apply(Command{At: noon, Label: &Label{Peer: p, Labels: labels}})
	}
	granted := func() []string {
		m, _ := r.Member("box")
		return m.Labels
	}
	old := r.View()
	events, err := label("box", "lic:keyshot", "fast", "lic:keyshot")
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: PeerLabelled, Peer: "box", User: "box-2", Role: Node}}, events)
	require.Equal(t, []string{"fast", "lic:keyshot"}, granted())
	require.True(t, r.View().Replaces(old), "every peer hears of it")
	m, _ := old.Member("box")
	require.Empty(t, m.Labels, "a view does not change with its roster")
	version := r.Version()
	events, err = label("box", "fast", "lic:keyshot")
	require.NoError(t, err)
	require.Empty(t, events, "nothing is new")
	require.Equal(t, version, r.Version())

	_, err = join(t, r, mint(t, r, Viewer, false, 1), "box", "box-3")
	require.NoError(t, err)
	require.Equal(t, []string{"fast", "lic:keyshot"}, granted(), "a ticket takes nothing away")
	back, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, r.Members(), back.Members())
	good := string(snapshotOf(t, r))
	for _, bad := range []string{`["lic:keyshot","fast"]`, `["fast","fast"]`, `["two words"]`} {
		text := strings.Replace(good, `["fast","lic:keyshot"]`, bad, 1)
		require.NotEqual(t, good, text)
		_, err := Restore(strings.NewReader(text))
		require.Error(t, err, bad)
	}

	before := snapshotOf(t, r)
	_, err = label("nobody", "fast")
	require.ErrorIs(t, err, ErrNotMember)
	for _, bad := range [][]string{{""}, {"two words"}, {"fast", "é"}, {strings.Repeat("x", 65)}, slices.Repeat([]string{"x"}, MaxLabels+1)} {
		_, err = label("box", bad...)
		require.Error(t, err)
	}
	require.Equal(t, before, snapshotOf(t, r), "a refused command changes nothing")

	_, err = label("box")
	require.NoError(t, err)
	require.Empty(t, granted())
	require.NotContains(t, string(snapshotOf(t, r)), "labels")
}

func TestOnlyGranted(t *testing.T) {
	for label, want := range map[string]bool{"calibrated": true, "lic:keyshot": true, ":": true, "fast": false, "Calibrated": false, "calibrated-2": false, "": false} {
		require.Equal(t, want, OnlyGranted(label), label)
	}
}

// TestRosterModel drives a roster with random joins and checks it against a few
// lines that say what a ticket is; and that a snapshot taken anywhere, restored
// and played on, gives the same bytes.
func TestRosterModel(t *testing.T) {
	type model struct {
		uses    int
		expires time.Time
		used    map[PeerID]bool
	}
	g := newGenesis(t, "founder")
	rapid.Check(t, func(t *rapid.T) {
		r, twin := NewRoster(), NewRoster()
		now := noon
		tickets := map[Hash]*model{g.ticket.Hash(): {1, noon.Add(24 * time.Hour), map[PeerID]bool{}}}
		admitted := map[PeerID]bool{"founder": true}
		apply := func(c Command) error {
			_, err := r.Apply(c)
			// The twin gets the command as it comes out of the log.
			wire, _ := json.Marshal(c)
			var read Command
			if err := json.Unmarshal(wire, &read); err != nil {
				t.Fatal(err)
			}
			if _, twinErr := twin.Apply(read); (err == nil) != (twinErr == nil) {
				t.Fatalf("%v, but after the log %v", err, twinErr)
			}
			return err
		}
		if err := apply(g.command); err != nil {
			t.Fatal(err)
		}
		hashOf := func(n int) Hash { return sha256.Sum256([]byte{byte(n)}) }
		t.Repeat(map[string]func(*rapid.T){
			"mint": func(t *rapid.T) {
				h := hashOf(rapid.IntRange(0, 5).Draw(t, "ticket"))
				m := &model{rapid.IntRange(1, 3).Draw(t, "uses"), now.Add(time.Duration(rapid.IntRange(1, 5).Draw(t, "hours")) * time.Hour), map[PeerID]bool{}}
				old, open := tickets[h]
				open = open && now.Before(old.expires)
				err := apply(Command{At: now, Mint: &Mint{TicketRecord{Hash: h, Role: Node, Uses: m.uses, ExpiresAt: m.expires, By: "admin"}}})
				if open != (err != nil) {
					t.Fatalf("open %v: %v", open, err)
				}
				if err == nil {
					maps.DeleteFunc(tickets, func(_ Hash, m *model) bool { return !now.Before(m.expires) })
					tickets[h] = m
				}
			},
			"redeem": func(t *rapid.T) {
				h := hashOf(rapid.IntRange(0, 6).Draw(t, "ticket"))
				peer := PeerID(fmt.Sprint("peer", rapid.IntRange(0, 5).Draw(t, "peer")))
				worker := rapid.Bool().Draw(t, "worker")
				old, _ := r.Member(peer)
				err := apply(Command{At: now, Redeem: &Redeem{Ticket: h, Peer: peer, Name: "box", Worker: worker}})
				m, known := tickets[h]
				var want error
				switch {
				case !known:
					want = ErrTicketUnknown
				case m.used[peer] && admitted[peer] && old.Worker == worker: // nothing to change
				case m.used[peer] && !admitted[peer]:
					want = ErrTicketBefore
				case !now.Before(m.expires):
					want = ErrTicketExpired
				case !m.used[peer] && len(m.used) >= m.uses:
					want = ErrTicketUsed
				}
				if err != want {
					t.Fatalf("%v, not %v", err, want)
				}
				if err == nil {
					m.used[peer], admitted[peer] = true, true
				}
			},
			"label": func(t *rapid.T) {
				peer := PeerID(fmt.Sprint("peer", rapid.IntRange(0, 5).Draw(t, "peer")))
				labels := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "lic:b", "c", "no label"}), 0, 3).Draw(t, "labels")
				err := apply(Command{At: now, Label: &Label{Peer: peer, Labels: labels}})
				if possible := admitted[peer] && !slices.Contains(labels, "no label"); possible != (err == nil) {
					t.Fatalf("labelling %v %q: %v", peer, labels, err)
				}
			},
			"revoke": func(t *rapid.T) {
				peer := PeerID(fmt.Sprint("peer", rapid.IntRange(0, 5).Draw(t, "peer")))
				err := apply(Command{At: now, Revoke: &Revoke{Peer: peer, By: "admin"}})
				if admitted[peer] != (err == nil) {
					t.Fatalf("revoking %v: %v", peer, err)
				}
				delete(admitted, peer)
			},
			"roll": func(t *rapid.T) {
				here := PeerID(fmt.Sprint("peer", rapid.IntRange(0, 5).Draw(t, "peer")))
				seen, expire, _ := r.Roll(now, func(id PeerID) bool { return id == here || id == "founder" })
				if seen != nil {
					if err := apply(Command{At: now, Seen: seen}); err != nil {
						t.Fatal(err)
					}
				}
				if expire == nil {
					return
				}
				if err := apply(Command{At: now, Expire: expire}); err != nil {
					t.Fatal(err)
				}
				for _, id := range expire.Peers {
					delete(admitted, id)
				}
			},
			"weeks": func(*rapid.T) { now = now.Add(8 * 24 * time.Hour) },
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "minutes")) * time.Minute)
			},
			"restart": func(t *rapid.T) {
				var err error
				if twin, err = Restore(bytes.NewReader(snapshotOf(t, twin))); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				if got, want := snapshotOf(t, twin), snapshotOf(t, r); !bytes.Equal(got, want) {
					t.Fatalf("the twin differs:\n%s\n%s", got, want)
				}
				var ids []PeerID
				users := map[string]bool{}
				for _, m := range r.Members() {
					ids, users[m.User] = append(ids, m.ID), true
				}
				if want := slices.Sorted(maps.Keys(admitted)); !slices.Equal(ids, want) {
					t.Fatalf("members %v, not %v", ids, want)
				}
				if len(users) != len(ids) {
					t.Fatalf("two members are one user: %v", users)
				}
			},
		})
	})
}

// TestRosterLimits fills a roster: ten thousand members join, and one more does
// not.
func TestRosterLimits(t *testing.T) {
	r, _ := founded(t)
	ticket := mint(t, r, Node, false, MaxMembers)
	redeem := func(n int) error {
		_, err := r.Apply(Command{At: noon, Redeem: &Redeem{Ticket: ticket.Hash(), Peer: PeerID(fmt.Sprintf("peer%05d", n)), Name: fmt.Sprintf("box-%d", n)}})
		return err
	}
	// Joins near the limit are what matters; those before are put there at once.
	for n := range MaxMembers - 3 {
		id := PeerID(fmt.Sprintf("peer%05d", n))
		r.members = append(r.members, Member{ID: id, Name: "box", Role: Node, User: string(id), JoinedAt: noon})
	}
	slices.SortFunc(r.members, func(a, b Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	require.NoError(t, redeem(MaxMembers-2))
	require.NoError(t, redeem(MaxMembers-1))
	require.ErrorIs(t, redeem(MaxMembers), ErrFull)
	back, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, r.Members(), back.Members())

	for n := range MaxTickets - len(r.tickets) {
		r.tickets = append(r.tickets, TicketRecord{Hash: sha256.Sum256(fmt.Append(nil, n)), Role: Node, Uses: 1, ExpiresAt: noon.Add(time.Minute), By: "admin"})
	}
	slices.SortFunc(r.tickets, func(a, b TicketRecord) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
	one, err := NewTicket(rand.Reader, r.Farm(), Node, false, nil)
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon, Mint: &Mint{one.Record(1, noon.Add(time.Hour), "admin")}})
	require.ErrorIs(t, err, ErrFull)
	_, err = r.Apply(Command{At: noon.Add(time.Minute), Mint: &Mint{one.Record(1, noon.Add(time.Hour), "admin")}})
	require.NoError(t, err, "the others have expired")
}
