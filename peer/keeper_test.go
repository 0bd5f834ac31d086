package peer

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/blobs"
	"vizpeer/blobs/swarm"
	"vizpeer/coord"
)

type fetched struct{}

func (fetched) Fetch(context.Context, swarm.Request) error { return nil }

// What is not what was reported, or no frame at all, is not kept, although it is
// here: a machine that renders could otherwise have anything kept for weeks.
func TestOnlyWhatWasReportedIsKept(t *testing.T) {
	s, err := blobs.Open(t.TempDir(), blobs.Config{MinFree: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	file, size, err := s.ImportFile(t.Context(), strings.NewReader("pixels"))
	require.NoError(t, err)
	tree := s.NewTree()
	_, err = tree.AddFile(t.Context(), "a", strings.NewReader("b"))
	require.NoError(t, err)
	folder, _, err := tree.Commit(t.Context())
	require.NoError(t, err)
	k := &keeper{store: s, fetch: fetched{}}
	keep := func(cid string, size int64) error {
		return k.hold(t.Context(), &keeping{}, coord.Keep{Job: "j", Frame: 1, CID: cid, Size: size, From: []coord.Addr{{Peer: "p"}}})
	}
	pins := func() (holders []string) {
		for pin, err := range s.Pins(t.Context()) {
			require.NoError(t, err)
			holders = append(holders, pin.Holder)
		}
		return holders
	}
	require.ErrorContains(t, keep(file.String(), size+1), "bytes where")
	require.Error(t, keep(folder.String(), 1))
	require.Empty(t, pins())
	require.NoError(t, keep(file.String(), size))
	require.Equal(t, []string{framePin("j")}, pins())
}
