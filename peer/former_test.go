package peer

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
)

// record is for the release of a level: what its code writes is kept for the code that
// comes after it.
var record = flag.String("record", "", "write what this code writes into `folder`, such as testdata/level-3")

// spoken is one of each document that peers send each other beside the work stream, with
// something in every field that level 2 had.
func spoken() map[string]any {
	room := int64(7)
	return map[string]any{
		"ask.json": &joinRequest{
			Ask: askAdmission, Ticket: "vzt1aaaa", Name: "desk", Worker: true, KeyID: "aaaaaaaaaaaaa", KeyHash: &authz.Hash{1}, Bound: []byte{2}, Nonce: []byte{3},
		},
		"answer.json": &joinAnswer{
			Code: codeWaiting, Reason: "so", Leader: &coord.Addr{Peer: "12D3KooWx", Addrs: []string{"/ip4/192.0.2.1/tcp/8788"}}, Roster: json.RawMessage(`{"version":1}`),
			Version: 4, Nonce: []byte{5}, Farm: "attic",
		},
		"cert-ask.json":    &certRequest{CA: true, Request: []byte{1}},
		"cert-answer.json": &certAnswer{Chain: [][]byte{{1}, {2}}, Refused: []string{"box: not yours"}, Reason: "so"},
		"ad.json": &ad{
			Capability: lease.Capability{
				OS: "linux", Arch: "amd64", CPU: "Xeon", Cores: 8, RAM: 1 << 34, Backends: []lease.Backend{lease.CPU, lease.OptiX}, Labels: []string{"fast"}, Slots: 2,
				GPUs: []lease.GPU{{Vendor: lease.NVIDIA, Model: "RTX", VRAM: 1 << 33, Driver: "550", Backends: []lease.Backend{lease.OptiX}}},
				Builds: []lease.Build{{
					Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 1}, Hash: "abc", Engines: []string{"CYCLES"}, OIDN: true, Backends: []lease.Backend{lease.OptiX},
				}},
				FreeDisk: 1 << 40, Room: &room, Sandbox: "bubblewrap", Version: "0.2", Draining: true, Fetches: true,
			},
			Holds: lease.Holdings{{Project: "bafyabc", Eighths: 8}},
		},
	}
}

// TestFormerWords reads what peers of earlier versions say when one joins, in their ads
// and about certificates: nothing of it is lost.
func TestFormerWords(t *testing.T) {
	for name, now := range spoken() {
		if *record != "" {
			text, err := json.Marshal(now)
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(*record, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(*record, name), append(text, '\n'), 0o644))
		}
		files, err := filepath.Glob("testdata/level-*/" + name)
		require.NoError(t, err)
		require.NotEmpty(t, files, name)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			got := emptied(now)
			require.NoError(t, d.Decode(got), file)
			require.Equal(t, now, got, file)
		}
	}
}

// emptied is a new value of what v points to.
func emptied(v any) any {
	switch v.(type) {
	case *joinRequest:
		return new(joinRequest)
	case *joinAnswer:
		return new(joinAnswer)
	case *certRequest:
		return new(certRequest)
	case *certAnswer:
		return new(certAnswer)
	}
	return new(ad)
}

// TestWordsOfNewerPeers: what a newer peer says beyond what this one knows is passed over,
// for every document that is read by peers of any version.
func TestWordsOfNewerPeers(t *testing.T) {
	for name, v := range spoken() {
		text, err := json.Marshal(v)
		require.NoError(t, err)
		newer := append(bytes.TrimSuffix(text, []byte("}")), []byte(`,"mood":{"good":true}}`)...)
		got := emptied(v)
		require.NoError(t, json.Unmarshal(newer, got), name)
		require.Equal(t, v, got, name)
	}
}
