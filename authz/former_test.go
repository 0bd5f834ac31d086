package authz

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz/level"
)

// record is for the release of a level: what its code writes is kept for the code that
// comes after it.
var record = flag.String("record", "", "write what this code writes into `folder`, such as testdata/level-3")

// TestViewOfAnotherLevel: an older peer that keeps a newer roster keeps what it knows of
// it. Once it is updated it takes the same roster again, whole.
func TestViewOfAnotherLevel(t *testing.T) {
	r, _ := founded(t)
	text, err := json.Marshal(r.View())
	require.NoError(t, err)
	read := func(text string) *View {
		v, err := ParseView([]byte(text), r.Farm())
		require.NoError(t, err)
		return v
	}
	mine := read(string(text))
	require.False(t, mine.Replaces(r.View()), "the same again")

	known := fmt.Sprintf(`,"level":%d`, level.Known)
	newer := read(strings.Replace(string(text), known, `,"level":99,"licences":["x"]`, 1))
	again, err := json.Marshal(newer)
	require.NoError(t, err)
	require.Contains(t, string(again), known, "it is what this program knows of it")

	older := read(strings.Replace(string(text), known, ``, 1)) // as one of level 2 writes it again
	require.True(t, mine.Replaces(older))
	require.False(t, older.Replaces(mine))

	label := Command{At: noon, Label: &Label{Peer: "founder", Labels: []string{"x"}}}
	_, err = r.Apply(label)
	require.NoError(t, err)
	later := r.View()
	later.level = 0
	require.True(t, later.Replaces(mine), "more changes count for more")
}

// TestFormerTickets reads tickets as earlier versions printed them.
func TestFormerTickets(t *testing.T) {
	if *record != "" {
		var text strings.Builder
		for _, made := range formerTickets(t) {
			fmt.Fprintln(&text, made)
		}
		require.NoError(t, os.MkdirAll(*record, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(*record, "tickets.txt"), []byte(text.String()), 0o644))
	}
	files, err := filepath.Glob("testdata/level-*/tickets.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		require.Len(t, lines, 3, name)
		for i, want := range formerTickets(t) {
			got, err := ParseTicket(lines[i])
			require.NoError(t, err)
			require.Equal(t, want, got, name)
			require.Equal(t, lines[i], got.String(), name)
		}
	}
}

// formerTickets are the tickets that each level recorded.
func formerTickets(t *testing.T) (all []Ticket) {
	key, err := NewFarmKey(zeros{})
	require.NoError(t, err)
	for _, of := range []struct {
		role        Role
		coordinator bool
		addrs       []string
	}{
		{Node, false, nil},
		{Operator, false, []string{"/ip4/192.0.2.1/tcp/8788/p2p/12D3KooWP3h5jsQidjhPmKchszi99aUB5AuDJcYFmYnwfhzqF4xj"}},
		{Admin, true, []string{
			"/ip4/192.0.2.1/tcp/8788/p2p/12D3KooWP3h5jsQidjhPmKchszi99aUB5AuDJcYFmYnwfhzqF4xj",
			"/ip4/192.0.2.1/udp/8788/quic-v1/p2p/12D3KooWP3h5jsQidjhPmKchszi99aUB5AuDJcYFmYnwfhzqF4xj",
		}},
	} {
		made, err := NewTicket(zeros{}, key.ID(), of.role, of.coordinator, of.addrs)
		require.NoError(t, err)
		all = append(all, made)
	}
	return all
}
