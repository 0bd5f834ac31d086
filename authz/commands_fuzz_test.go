package authz

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// FuzzCommands gives a roster any command that the log can hold: it answers, and what it
// is then can be written, and read back as the same.
func FuzzCommands(f *testing.F) {
	seed, g := founded(f)
	ticket := mint(f, seed, Node, false, 2)
	if _, err := join(f, seed, ticket, "box", "box"); err != nil {
		f.Fatal(err)
	}
	before := snapshotOf(f, seed)
	_, key, err := NewKey(zeros{}, "desk", Operator, noon)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range []Command{
		g.command,
		{Mint: &Mint{ticket.Record(1, noon.Add(time.Hour), "admin")}},
		{Redeem: &Redeem{Ticket: ticket.Hash(), Peer: "desk", Name: "desk", KeyID: key.ID, KeyHash: key.Hash}},
		{Approve: &Approve{Peer: "desk", Name: "desk", Role: Operator, By: "admin", KeyID: key.ID, KeyHash: key.Hash}},
		{Revoke: &Revoke{Peer: "box", By: "admin"}},
		{Seen: &Seen{Peers: []PeerID{"box", "nobody"}}},
		{Expire: &Expire{Peers: []PeerID{"box", "founder"}, Before: noon}},
		{RevokeTicket: &RevokeTicket{ticket.Hash()}},
		{Label: &Label{Peer: "box", Labels: []string{"lic:x"}}},
	} {
		if c.At.IsZero() {
			c.At = noon
		}
		text, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Command
		if json.Unmarshal(data, &c) != nil {
			return
		}
		r, err := Restore(bytes.NewReader(before))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = r.Apply(c); err != nil {
			if !bytes.Equal(before, snapshotOf(t, r)) {
				t.Fatalf("it was refused, and changed something: %v", err)
			}
			return
		}
		after := snapshotOf(t, r)
		back, err := Restore(bytes.NewReader(after))
		if err != nil {
			t.Fatalf("what was applied cannot be read back: %v", err)
		}
		if !bytes.Equal(after, snapshotOf(t, back)) {
			t.Fatal("read back, it is another")
		}
	})
}
