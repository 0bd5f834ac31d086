package peer_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/farmtest"
)

// A coordinator that joins gets its own part of the farm's CA.
func TestCoordinatorIsCertified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		second := f.Newcomer("second")
		_, err := second.Join(f.Peers[0].Mint(t, authz.Node, true))
		require.NoError(t, err)
		second.Start()
		exists := func(m *farmtest.Member) bool {
			_, err := os.Stat(filepath.Join(m.DataDir(), "ca.key"))
			return err == nil
		}
		f.Within(time.Minute, "it can issue certificates", func() bool { return exists(second) })
		require.False(t, exists(f.Peers[1]), "a node cannot")
	})
}
