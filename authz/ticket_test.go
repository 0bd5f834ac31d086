package authz

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func newTicket(t testing.TB, addrs ...string) Ticket {
	t.Helper()
	k, err := NewTicket(rand.Reader, newFarm(t).ID(), Operator, true, addrs)
	require.NoError(t, err)
	return k
}

const someAddr = "/ip4/192.168.1.10/udp/8788/quic-v1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"

func TestTicketRoundTrip(t *testing.T) {
	long := "/" + strings.Repeat("x", MaxTicketAddrSize-1)
	for _, addrs := range [][]string{nil, {someAddr}, {long, long, long, long, long, long, long, long}} {
		want := newTicket(t, addrs...)
		text := want.String()
		got, err := ParseTicket(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.True(t, got.Proves(want.Hash()))
		require.False(t, got.Proves(newTicket(t).Hash()))

		wrapped := " " + text[:20] + "\r\n  " + text[20:] + "\n"
		got, err = ParseTicket(wrapped)
		require.NoError(t, err, "a wrapped line is still the ticket")
		require.Equal(t, want, got)
	}
}

func TestTicketDamage(t *testing.T) {
	ticket := newTicket(t, someAddr)
	text := ticket.String()
	// Every cut is called a cut, and every single wrong character is noticed.
	for n := 1; n < len(text); n++ {
		_, err := ParseTicket(text[:n])
		require.ErrorIs(t, err, ErrTicketText)
		require.ErrorContains(t, err, "cut short", "first %d characters", n)
	}
	for n := len(ticketPrefix); n < len(text); n++ {
		_, err := ParseTicket(text[:n] + flip(text[n]) + text[n+1:])
		require.ErrorIs(t, err, ErrTicketText, "character %d", n)
	}
	for bad, want := range map[string]string{
		"":                                     "empty",
		"hello":                                "begins with",
		text + "abc":                           "3 characters too many",
		strings.ToUpper(text):                  "begins with",
		text[:40] + "!" + text[41:]:            "characters that no ticket has",
		"vzt2" + text[4:]:                      "another version",
		text[:60] + flip(text[60]) + text[61:]: "check sum",
		"vzk_abc":                              "an API key",
		strings.Repeat(text, 40):               "more than any ticket",
		"vzt1" + strings.Repeat("a", 9):        "near its beginning",
	} {
		_, err := ParseTicket(bad)
		require.ErrorIs(t, err, ErrTicketText)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), text[30:40], "an error must not quote the ticket")
	}
}

// flip is another character than c.
func flip(c byte) string {
	if c == 'a' {
		return "b"
	}
	return "a"
}

func TestNewTicketRefuses(t *testing.T) {
	farm := newFarm(t).ID()
	for name, try := range map[string]Ticket{
		"no farm":       {Role: Node},
		"no role":       {Farm: farm},
		"nine addrs":    {Farm: farm, Role: Node, Addrs: strings.Split(strings.Repeat("/x ", 9), " ")[:9]},
		"long address":  {Farm: farm, Role: Node, Addrs: []string{"/" + strings.Repeat("x", MaxTicketAddrSize)}},
		"odd address":   {Farm: farm, Role: Node, Addrs: []string{"/ip4/\x00"}},
		"not multiaddr": {Farm: farm, Role: Node, Addrs: []string{"10.0.0.1:8788"}},
	} {
		_, err := NewTicket(rand.Reader, try.Farm, try.Role, false, try.Addrs)
		require.Error(t, err, name)
	}
	_, err := NewTicket(bytes.NewReader([]byte("short")), farm, Node, false, nil)
	require.Error(t, err, "too little randomness")
}

func TestTicketIsNotLogged(t *testing.T) {
	ticket := newTicket(t)
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("ticket", "ticket", ticket)
	fmt.Fprintf(&out, "%#v", ticket)
	require.NotContains(t, out.String(), ticketPrefix)
	require.NotContains(t, out.String(), fmt.Sprintf("%#v", ticket.secret[0])+",")
}

func FuzzParseTicket(f *testing.F) {
	text := newTicket(f, someAddr).String()
	f.Add(text)
	f.Add(text[:len(text)-3])
	f.Add("vzt1aaaaaaaaaaaa")
	f.Add("vzt1 \n" + text[4:])
	f.Fuzz(func(t *testing.T, s string) {
		ticket, err := ParseTicket(s)
		if err != nil {
			require.ErrorIs(t, err, ErrTicketText)
			return
		}
		require.Equal(t, strings.Join(strings.Fields(s), ""), ticket.String(), "a ticket has one text")
		require.NoError(t, ticket.validate())
	})
}
