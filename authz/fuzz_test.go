package authz

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// What comes from outside is refused or understood, and says the same again.

func FuzzParseView(f *testing.F) {
	r, g := founded(f)
	b, err := json.Marshal(r.View())
	require.NoError(f, err)
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"role":"admin"`), []byte(`"role":"root"`), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseView(data, g.command.Found.Farm)
		if err != nil {
			return
		}
		again, err := json.Marshal(v)
		require.NoError(t, err)
		w, err := ParseView(again, v.Farm())
		require.NoError(t, err)
		require.Equal(t, v.Members(), w.Members())
	})
}

func FuzzRestoreRoster(f *testing.F) {
	r, _ := founded(f)
	var b bytes.Buffer
	require.NoError(f, r.Snapshot(&b))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Restore(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		require.NoError(t, r.Snapshot(&again))
		_, err = Restore(&again)
		require.NoError(t, err)
	})
}

func FuzzDecodeRecovery(f *testing.F) {
	k, err := NewFarmKey(zeros{})
	require.NoError(f, err)
	f.Add(k.EncodeRecovery())
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := DecodeRecovery(file)
		if err != nil {
			return
		}
		again, err := DecodeRecovery(k.EncodeRecovery())
		require.NoError(t, err)
		require.Equal(t, k.ID(), again.ID())
	})
}

func FuzzRestoreTrail(f *testing.F) {
	f.Add([]byte(`{"stored": {"seq": 0}, "tail": [{"seq": 1, "action": "login", "outcome": "ok"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s TrailState
		if json.Unmarshal(data, &s) != nil {
			return
		}
		trail, err := RestoreTrail(s)
		if err != nil {
			return
		}
		_, err = RestoreTrail(trail.State())
		require.NoError(t, err)
	})
}

func FuzzPeerKey(f *testing.F) {
	f.Add("12D3KooWHW4upeeehYxBofmQaGeZ2PnXAY9jFAVCLDXTE18PevNC")
	f.Fuzz(func(t *testing.T, text string) {
		if key, err := PeerID(text).PublicKey(); err == nil {
			require.Equal(t, PeerID(text), peerIDOf(key))
		}
	})
}
