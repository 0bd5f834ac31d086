package authz

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTrust(t *testing.T) {
	g, r := newGenesis(t, "founder"), NewRoster()
	g.command.Found.CA = []byte("first")
	_, err := r.Apply(g.command)
	require.NoError(t, err)
	require.Equal(t, [][]byte{[]byte("first")}, r.CA())

	trust := func(ca string) ([]Event, error) {
		return r.Apply(Command{At: noon, Trust: &Trust{CA: []byte(ca)}})
	}
	before := r.Version()
	events, err := trust("second")
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: CATrusted}}, events)
	require.Equal(t, before+1, r.Version())
	events, err = trust("second")
	require.NoError(t, err)
	require.Empty(t, events, "it is there already")

	again, err := Restore(bytes.NewReader(snapshotOf(t, r)))
	require.NoError(t, err)
	require.Equal(t, r.CA(), again.CA())
	text, err := json.Marshal(r.View())
	require.NoError(t, err)
	v, err := ParseView(text, r.Farm())
	require.NoError(t, err)
	require.Equal(t, r.CA(), v.CA())

	_, err = trust("")
	require.ErrorContains(t, err, "0 bytes is not possible")
	_, err = trust(string(make([]byte, maxCABytes+1)))
	require.ErrorContains(t, err, "is not possible")
	for i := range MaxCA - 2 {
		_, err = trust("more" + string(rune('a'+i)))
		require.NoError(t, err)
	}
	_, err = trust("one too many")
	require.ErrorContains(t, err, "no room for more")
	require.Len(t, r.CA(), MaxCA)
	require.Equal(t, []byte("first"), r.CA()[0], "what was pinned stays good")
}

// A farm of an earlier version has no CA, and gets one.
func TestFarmWithoutCA(t *testing.T) {
	r, _ := founded(t)
	require.Empty(t, r.CA())
	require.NotContains(t, string(snapshotOf(t, r)), `"ca"`)
	_, err := r.Apply(Command{At: noon, Trust: &Trust{CA: []byte("late")}})
	require.NoError(t, err)
	require.Len(t, r.CA(), 1)
}

func TestCertNames(t *testing.T) {
	r, _ := founded(t) // the founder, box-1, is an admin's
	ticket := mint(t, r, Node, false, 9)
	for i, m := range []struct{ peer, name string }{{"early", "Attic"}, {"later", "attic"}, {"dots", "www.example.org"}, {"odd", "two words"}} {
		c := Redeem{Ticket: ticket.Hash(), Peer: PeerID(m.peer), Name: m.name, Worker: true}
		_, err := r.Apply(Command{At: noon.Add(time.Duration(i) * time.Second), Redeem: &c})
		require.NoError(t, err)
	}
	lan := netip.MustParseAddr("10.0.0.7")
	ask := func(id string, names ...string) []string {
		granted, refused := r.CertNames(PeerID(id), names, []netip.Addr{lan})
		require.Len(t, refused, len(names)-len(granted), "every name is answered")
		return granted
	}
	always := []string{"localhost", "127.0.0.1", "::1", "127.8.9.10"}
	require.Equal(t, always, ask("early", always...))
	require.Equal(t, []string{"attic"}, ask("early", "ATTIC"))
	require.Empty(t, ask("later", "attic"), "an older machine has that name")
	require.Empty(t, ask("dots", "www.example.org"), "a name in the world is an admin's to allow")
	require.Empty(t, ask("odd", "two words"))
	require.Empty(t, ask("early", "box-1"), "it is another's")
	require.Equal(t, []string{"10.0.0.7"}, ask("early", "10.0.0.7", "10.0.0.8", "::ffff:10.0.0.9"))
	require.Empty(t, ask("early", "*.example.org", "*", "", "a..b", "-a", "a_b", "ex ample", "127.1", "0.0.0.0", "224.0.0.1", "fe80::1%eth0", "bücher"))
	require.Equal(t, []string{"render.example.org", "10.9.9.9"}, ask("founder", "render.example.org", "10.9.9.9", "*.example.org"))

	_, err := r.Apply(Command{At: noon, Label: &Label{Peer: "dots", Labels: []string{"name:www.Example.org", "name:10.1.1.1"}}})
	require.NoError(t, err)
	require.Equal(t, []string{"www.example.org", "10.1.1.1"}, ask("dots", "www.example.org", "10.1.1.1", "mail.example.org"))

	granted, refused := r.CertNames("stranger", []string{"localhost"}, nil)
	require.Empty(t, granted)
	require.ErrorIs(t, refused[0], ErrNotMember)
	many := make([]string, 1000)
	for i := range many {
		many[i] = "localhost"
	}
	granted, refused = r.CertNames("early", many, nil)
	require.Equal(t, []string{"localhost"}, granted)
	require.Len(t, refused, 1)
}

// Every machine gives itself its name, at any time: that makes none another's.
func TestCertNameOfAnother(t *testing.T) {
	r, _ := founded(t)
	ticket := mint(t, r, Node, false, 2)
	join := func(after time.Duration, peer PeerID, name string) {
		_, err := r.Apply(Command{At: noon.Add(after), Redeem: &Redeem{Ticket: ticket.Hash(), Peer: peer, Name: name, Worker: true}})
		require.NoError(t, err)
	}
	join(1*time.Second, "rogue", "rogue")
	join(2*time.Second, "honest", "fileserver")
	join(3*time.Second, "rogue", "FileServer")
	granted, _ := r.CertNames("rogue", []string{"fileserver"}, nil)
	require.Empty(t, granted, "it took the name after another")
	granted, _ = r.CertNames("honest", []string{"fileserver"}, nil)
	require.Equal(t, []string{"fileserver"}, granted, "nor may it take it away")

	var b bytes.Buffer
	require.NoError(t, r.Snapshot(&b))
	again, err := Restore(&b)
	require.NoError(t, err)
	granted, _ = again.CertNames("rogue", []string{"fileserver"}, nil)
	require.Empty(t, granted)
	join(4*time.Second, "rogue", "rogue")
	granted, _ = r.CertNames("rogue", []string{"rogue"}, nil)
	require.Equal(t, []string{"rogue"}, granted)
}

func TestRecoveryFileWithCA(t *testing.T) {
	k := newFarm(t)
	file := AppendCA(k.EncodeRecovery(), []byte("the key of the CA"))
	got, err := DecodeRecovery(file)
	require.NoError(t, err)
	require.Equal(t, k.ID(), got.ID())
	require.Equal(t, "the key of the CA", string(RecoveredCA(file)))
	require.Nil(t, RecoveredCA(k.EncodeRecovery()))
	_, err = DecodeRecovery(append(file, "rubbish"...))
	require.Error(t, err)
	_, err = DecodeRecovery(AppendCA(file, []byte("another")))
	require.Error(t, err)
}
