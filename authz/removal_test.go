package authz

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRevoke(t *testing.T) {
	r, _ := founded(t)
	ticket := mint(t, r, Operator, false, 3)
	token, err := join(t, r, ticket, "desk", "desk")
	require.NoError(t, err)
	_, err = r.Authenticate(token, noon)
	require.NoError(t, err)
	// Its person made another key with it.
	spare, key, err := NewKey(zeros{}, "desk", Operator, noon)
	require.NoError(t, err)
	r.putKey(key)
	version := r.Version()

	revoke := func(id PeerID) ([]Event, error) {
		return r.Apply(Command{At: noon, Revoke: &Revoke{Peer: id, By: "admin"}})
	}
	events, err := revoke("desk")
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: PeerRevoked, Peer: "desk", User: "desk", Role: Operator, Reason: "admin removed it"}}, events)
	require.Equal(t, version+1, r.Version(), "others hear of it")
	_, ok := r.Member("desk")
	require.False(t, ok)
	for _, dead := range []string{token, spare} {
		_, err = r.View().Authenticate(dead, noon)
		require.ErrorIs(t, err, ErrToken)
	}
	_, err = revoke("desk")
	require.ErrorIs(t, err, ErrNotMember)
	_, err = revoke("founder")
	require.ErrorIs(t, err, ErrLastCoordinator)

	// What is left of its ticket is no way back, and its name no way to its jobs.
	_, err = join(t, r, ticket, "desk", "desk")
	require.ErrorIs(t, err, ErrTicketBefore)
	_, err = join(t, r, ticket, "other", "desk")
	require.NoError(t, err)
	other, _ := r.Member("other")
	require.Equal(t, "desk-2", other.User)

	// All of that survives a snapshot.
	r, err = Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	f, ok := r.Former("desk")
	require.True(t, ok)
	require.Equal(t, Former{Peer: "desk", User: "desk", At: noon, Reason: "admin removed it"}, f)

	// Another ticket lets it in again, as who it was.
	again, err := join(t, r, mint(t, r, Node, false, 1), "desk", "desk")
	require.NoError(t, err)
	m, ok := r.Member("desk")
	require.True(t, ok)
	require.Equal(t, "desk", m.User)
	require.Equal(t, Node, m.Role, "with no right that it had before")
	_, err = r.Authenticate(again, noon)
	require.NoError(t, err)
	_, ok = r.Former("desk")
	require.False(t, ok)
}

// zeros is a source of bytes for a key that no test makes twice.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestApprove(t *testing.T) {
	r, _ := founded(t)
	ask := Approve{Peer: "desk", Name: "desk", Worker: true, Role: Operator, By: "admin"}
	_, err := r.Apply(Command{At: noon, Approve: &ask})
	require.ErrorContains(t, err, "brings an API key")
	token, key, err := NewKey(zeros{}, "anybody", Node, noon)
	require.NoError(t, err)
	ask.KeyID, ask.KeyHash = key.ID, key.Hash
	events, err := r.Apply(Command{At: noon, Approve: &ask})
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: PeerAdmitted, Peer: "desk", User: "desk", Role: Operator}}, events)
	p, err := r.Authenticate(token, noon)
	require.NoError(t, err)
	require.Equal(t, Principal{User: "desk", Role: Operator, Key: key.ID, Machine: "desk"}, p)
	require.False(t, r.IsCoordinator("desk"))

	for name, change := range map[string]func(*Approve){
		"no role":   func(a *Approve) { a.Role = "" },
		"no name":   func(a *Approve) { a.Name = "" },
		"no peer":   func(a *Approve) { a.Peer = "" },
		"nobody":    func(a *Approve) { a.By = "" },
		"bad key":   func(a *Approve) { a.KeyID = "short" },
		"other key": func(a *Approve) { a.Peer = "box" }, // it has desk's
	} {
		before, c := snapshotOf(t, r), ask
		change(&c)
		_, err := r.Apply(Command{At: noon, Approve: &c})
		require.Error(t, err, name)
		require.Equal(t, before, snapshotOf(t, r), name)
	}
}

func TestOpenTickets(t *testing.T) {
	r, g := founded(t)
	used, twice := mint(t, r, Node, false, 1), mint(t, r, Viewer, false, 2)
	for i, ticket := range []Ticket{used, twice} {
		_, err := join(t, r, ticket, PeerID(fmt.Sprint("box", i)), "box")
		require.NoError(t, err)
	}
	open := r.OpenTickets(noon)
	require.Len(t, open, 2, "not the one that is used up")
	require.Equal(t, twice.Hash(), open[0].Hash, "it expires before the farm's first")
	require.Equal(t, g.ticket.Hash(), open[1].Hash)
	require.Equal(t, 1, open[0].Left())
	require.Len(t, open[0].ID(), 8)
	require.NotContains(t, twice.String(), open[0].ID())

	_, err := r.Apply(Command{At: noon, RevokeTicket: &RevokeTicket{twice.Hash()}})
	require.NoError(t, err)
	_, err = join(t, r, twice, "late", "late")
	require.ErrorIs(t, err, ErrTicketUnknown)
	_, ok := r.Member("box1")
	require.True(t, ok, "whom it admitted stays")
	for _, gone := range []Ticket{twice, used} {
		_, err = r.Apply(Command{At: noon, RevokeTicket: &RevokeTicket{gone.Hash()}})
		require.ErrorIs(t, err, ErrTicketUnknown)
	}
	require.Empty(t, r.OpenTickets(noon.Add(24*time.Hour)), "all have expired")
}

func TestRoll(t *testing.T) {
	r, _ := founded(t)
	ticket := mint(t, r, Node, false, 9)
	for _, id := range []PeerID{"away", "here"} {
		_, err := join(t, r, ticket, id, string(id))
		require.NoError(t, err)
	}
	present := func(id PeerID) bool { return id != "away" }
	// roll does what is due, as the leader does.
	roll := func(now time.Time) (seen, gone []PeerID, next time.Time) {
		s, e, next := r.Roll(now, present)
		if s != nil {
			version := r.Version()
			events, err := r.Apply(Command{At: now, Seen: s})
			require.NoError(t, err)
			require.Empty(t, events)
			require.Equal(t, version, r.Version(), "nobody else needs to hear")
			seen = s.Peers
		}
		if e != nil {
			_, err := r.Apply(Command{At: now, Expire: e})
			require.NoError(t, err)
			gone = e.Peers
		}
		return seen, gone, next
	}

	// A roster of before is counted from now on, whenever its members joined.
	now := noon.Add(90 * 24 * time.Hour)
	seen, gone, next := roll(now)
	require.Equal(t, []PeerID{"away", "founder", "here"}, seen)
	require.Empty(t, gone)
	require.Equal(t, now.Add(SeenPause), next)
	first := now
	seen, _, next = roll(now.Add(SeenPause - time.Second))
	require.Empty(t, seen, "at most once a day")
	require.Equal(t, now.Add(SeenPause), next)

	for now = now.Add(SeenPause); now.Before(first.Add(AwayLimit + SeenPause)); now = now.Add(SeenPause) {
		seen, gone, _ = roll(now)
		require.Equal(t, []PeerID{"founder", "here"}, seen)
		require.Empty(t, gone)
	}
	// Restarts change nothing of that.
	var err error
	r, err = Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)

	// An Expire that comes after the machine was seen is too late.
	_, err = r.Apply(Command{At: now, Expire: &Expire{Peers: []PeerID{"away"}, Before: first.Add(-time.Second)}})
	require.NoError(t, err)
	_, ok := r.Member("away")
	require.True(t, ok)

	_, gone, _ = roll(now)
	require.Equal(t, []PeerID{"away"}, gone)
	f, ok := r.Former("away")
	require.True(t, ok)
	require.Equal(t, "it was away for 30 days", f.Reason)

	// The whole farm was off for a summer: nobody is to blame.
	present = func(PeerID) bool { return false }
	seen, gone, _ = roll(now.Add(100 * 24 * time.Hour))
	require.Equal(t, []PeerID{"founder", "here"}, seen)
	require.Empty(t, gone)
	// Nor does the only coordinator expire, whatever is proposed.
	now = now.Add(200 * 24 * time.Hour)
	events, err := r.Apply(Command{At: now, Expire: &Expire{Peers: []PeerID{"founder", "here", "nobody"}, Before: now}})
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: PeerExpired, Peer: "here", User: "here", Role: Node, Reason: "it was away for 30 days"}}, events)
}

func TestFormerAreBounded(t *testing.T) {
	r, _ := founded(t)
	for n := range maxFormer {
		r.former = append(r.former, Former{Peer: PeerID(fmt.Sprintf("gone%05d", n)), User: fmt.Sprint("u", n), At: noon.Add(time.Duration(n) * time.Second)})
	}
	_, err := join(t, r, mint(t, r, Node, false, 1), "box", "box")
	require.NoError(t, err)
	_, err = r.Apply(Command{At: noon.Add(24 * time.Hour), Revoke: &Revoke{Peer: "box", By: "admin"}})
	require.NoError(t, err)
	require.Len(t, r.former, maxFormer)
	_, ok := r.Former("gone00000")
	require.False(t, ok, "the oldest is forgotten")
	_, ok = r.Former("box")
	require.True(t, ok)
}

func TestRestoreRefusesWhatCannotBe(t *testing.T) {
	r, _ := founded(t)
	for name, change := range map[string]func(map[string]any){
		"a stranger was seen":   func(d map[string]any) { d["seen"] = map[string]any{"who": noon} },
		"removed and member":    func(d map[string]any) { d["former"] = []any{map[string]any{"peer": "founder", "user": "admin"}} },
		"a former without user": func(d map[string]any) { d["former"] = []any{map[string]any{"peer": "x"}} },
		"former not in order": func(d map[string]any) {
			d["former"] = []any{map[string]any{"peer": "y", "user": "y"}, map[string]any{"peer": "x", "user": "x"}}
		},
	} {
		var doc map[string]any
		require.NoError(t, json.Unmarshal(snapshotOf(t, r), &doc))
		change(doc)
		b, err := json.Marshal(doc)
		require.NoError(t, err)
		_, err = Restore(bytes.NewReader(b))
		require.Error(t, err, name)
	}
}

// Whoever was noted by a clock that was years ahead is noted anew, and expires in its time.
func TestSeenByAClockThatWasAhead(t *testing.T) {
	r, _ := founded(t)
	_, err := join(t, r, mint(t, r, Node, false, 1), "gone", "gone")
	require.NoError(t, err)
	apply := func(at time.Time, seen *Seen) {
		t.Helper()
		_, err := r.Apply(Command{At: at, Seen: seen})
		require.NoError(t, err)
	}
	founder := func(p PeerID) bool { return p == "founder" }
	apply(noon.Add(1000*24*time.Hour), &Seen{Peers: []PeerID{"founder", "gone"}})
	seen, expire, _ := r.Roll(noon, founder)
	require.Nil(t, expire)
	require.ElementsMatch(t, []PeerID{"founder", "gone"}, seen.Peers)
	apply(noon, seen)
	require.True(t, noon.Equal(r.LastSeen("gone")))
	apply(noon.Add(20*24*time.Hour), &Seen{Peers: []PeerID{"founder"}})
	_, expire, _ = r.Roll(noon.Add(AwayLimit+SeenPause), founder)
	require.Equal(t, []PeerID{"gone"}, expire.Peers)
}
