package peer_test

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/farmtest"
)

// without is the roster after a member was removed.
func without(t *testing.T, v *authz.View, id authz.PeerID) *authz.View {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	var doc map[string]any
	require.NoError(t, json.Unmarshal(b, &doc))
	doc["version"] = v.Version() + 1
	doc["members"] = slices.DeleteFunc(doc["members"].([]any), func(m any) bool { return m.(map[string]any)["id"] == string(id) })
	b, err = json.Marshal(doc)
	require.NoError(t, err)
	out, err := authz.ParseView(b, v.Farm())
	require.NoError(t, err)
	return out
}

// Who is no member any more is cut off in mid-transfer, and does not come back.
func TestRevokedInMidTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 2)
		holder, reader := f.Peers[1], f.Peers[0]
		admin := authz.Principal{User: "admin", Role: authz.Admin}
		const size = 32 << 20
		project := f.Upload(holder, 1, size)
		var revoke sync.Once
		var got int64
		_, err := reader.Local().FetchBlob(t.Context(), admin, project, func(done, total int64) {
			got = done
			if done > size/8 {
				revoke.Do(func() { holder.Revise(without(t, holder.Roster(), reader.ID)) })
			}
		})
		require.Error(t, err)
		require.Greater(t, got, int64(size/8))
		require.Less(t, got, int64(size), "it was cut off on the way")
		time.Sleep(time.Minute)
		_, err = reader.Local().FetchBlob(t.Context(), admin, project, nil)
		require.Error(t, err)
	})
}
