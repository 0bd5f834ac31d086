package httpapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func TestBlenders(t *testing.T) {
	_, ms := newFarm(t, 2, Config{})
	good := NewOffer{Root: someCID, Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}, OS: "linux", Arch: "amd64", Files: 3, Size: 9}
	for _, m := range ms { // the leader, and a peer that forwards
		require.JSONEq(t, `{"blenders":[]}`, string(m.do(t, "vic", "GET", "/v1/blenders", nil).body))
		require.JSONEq(t, `{"blenders":[{"name":"Blender","version":"4.2.3","os":"linux","arch":"amd64","oidn":false,"count":0,"machines":[]}]}`,
			string(m.do(t, "ann", "GET", "/v1/blenders", nil).body))

		r := m.do(t, "root", "POST", "/v1/blenders", good)
		require.Equal(t, 201, r.StatusCode, "%s", r.body)
		var b Blender
		require.NoError(t, json.Unmarshal(r.body, &b))
		require.Equal(t, someCID, b.Offer.Root)
		require.Equal(t, good.Version, b.Version)
		for name, change := range map[string]func(*NewOffer){
			"a path for a CID":  func(o *NewOffer) { o.Root = "../" + someCID },
			"an unknown system": func(o *NewOffer) { o.OS = "plan9" },
			"no files":          func(o *NewOffer) { o.Files = 0 },
			"no size":           func(o *NewOffer) { o.Size = 0 },
			"many engines":      func(o *NewOffer) { o.Engines = make([]string, 65) },
		} {
			bad := good
			change(&bad)
			require.Equal(t, 422, m.do(t, "root", "POST", "/v1/blenders", bad).StatusCode, name)
		}
		require.Equal(t, 403, m.do(t, "ann", "POST", "/v1/blenders", good).StatusCode)

		require.Equal(t, 200, m.do(t, "root", "POST", "/v1/blenders/"+someCID+"/withdraw", nil).StatusCode)
		require.Equal(t, 404, m.do(t, "root", "POST", "/v1/blenders/bafyother/withdraw", nil).StatusCode)
		require.Equal(t, 403, m.do(t, "ann", "POST", "/v1/blenders/"+someCID+"/withdraw", nil).StatusCode)
	}
}
