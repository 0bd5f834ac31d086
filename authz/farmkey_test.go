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

func newFarm(t testing.TB) FarmKey {
	t.Helper()
	k, err := NewFarmKey(rand.Reader)
	require.NoError(t, err)
	return k
}

func TestRecoveryFileRoundTrip(t *testing.T) {
	k := newFarm(t)
	got, err := DecodeRecovery(k.EncodeRecovery())
	require.NoError(t, err)
	require.Equal(t, k.ID(), got.ID())
	require.NoError(t, got.SignCharter("peer", 1).Verify(k.ID()))

	id, err := ParseFarmID(string(k.ID()))
	require.NoError(t, err)
	require.Equal(t, k.ID(), id)
}

func TestRecoveryFileDamage(t *testing.T) {
	file, other := newFarm(t).EncodeRecovery(), newFarm(t)
	seed := strings.Split(string(file), "\n\n")[2]
	for name, bad := range map[string]string{
		"empty":       "",
		"cut short":   string(file[:len(file)-30]),
		"other block": strings.ReplaceAll(string(file), recoveryBlock, "PRIVATE KEY"),
		"other farm":  strings.ReplaceAll(string(file), string(file[bytes.Index(file, []byte("vf")):][:34]), string(other.ID())),
		"two keys":    string(file) + string(file),
		"too long":    strings.Repeat("x", maxRecoveryFile+1),
		"short seed":  strings.Replace(string(file), seed[:8], "", 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeRecovery([]byte(bad))
			require.Error(t, err)
			require.NotContains(t, err.Error(), seed[:16], "an error must not quote the key")
		})
	}
}

func TestFarmKeyIsNeverPrinted(t *testing.T) {
	k := newFarm(t)
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("key", "key", k)
	fmt.Fprintf(&out, "%v %+v %#v %s", k, k, k, k)
	secret := fmt.Sprint([]byte(k.private)[:4])
	require.NotContains(t, out.String(), secret[1:len(secret)-1])
	require.Contains(t, out.String(), string(k.ID()))
	require.Equal(t, "no farm key", FarmKey{}.String())
}

func TestCharterVerify(t *testing.T) {
	k, other := newFarm(t), newFarm(t)
	good := k.SignCharter("12D3KooWpeer", 7)
	require.NoError(t, good.Verify(k.ID()))

	for name, change := range map[string]func(*Charter){
		"other coordinator": func(c *Charter) { c.Coordinator = "12D3KooWrival" },
		"no coordinator":    func(c *Charter) { *c = k.SignCharter("", 7) },
		"later epoch":       func(c *Charter) { c.Epoch = 8 },
		"no epoch":          func(c *Charter) { *c = k.SignCharter("12D3KooWpeer", 0) },
		"other farm":        func(c *Charter) { *c = other.SignCharter("12D3KooWpeer", 7) },
		"other farm's key":  func(c *Charter) { c.Farm = other.Public() },
		"short key":         func(c *Charter) { c.Farm = c.Farm[:31] },
		"no signature":      func(c *Charter) { c.Signature = nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			require.ErrorIs(t, c.Verify(k.ID()), ErrCharter)
		})
	}
}

func TestParseFarmID(t *testing.T) {
	for _, bad := range []string{"", "vf", "vf" + strings.Repeat("a", 31), "vf" + strings.Repeat("a", 33), "xx" + strings.Repeat("a", 32), "vf" + strings.Repeat("A", 32), "vf" + strings.Repeat("1", 32)} {
		_, err := ParseFarmID(bad)
		require.Error(t, err, bad)
	}
}
