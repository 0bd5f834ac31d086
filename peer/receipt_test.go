package peer

import (
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

func TestReceiptsAreForOnePersonAndOneFile(t *testing.T) {
	d := dataDir(t.TempDir())
	r, err := openReceipts(d)
	require.NoError(t, err)
	file := cid.MustParse("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
	ann, bob := authz.Principal{User: "ann"}, authz.Principal{User: "bob"}

	text := r.issue(ann, file)
	got, ok := r.accept(ann, text)
	require.True(t, ok)
	require.Equal(t, file, got)

	_, ok = r.accept(bob, text)
	require.False(t, ok, "another's receipt")
	for i := range text { // every character counts
		broken := []byte(text)
		if broken[i]++; broken[i] == '{' || broken[i] == '[' || broken[i] == ':' {
			broken[i] = 'A'
		}
		got, ok := r.accept(ann, string(broken))
		require.False(t, ok && got != file, "character %d", i)
	}
	for _, bad := range []string{"", file.String(), "AAAA", text + text, text[:40]} {
		_, ok := r.accept(ann, bad)
		require.False(t, ok, bad)
	}

	again, err := openReceipts(d)
	require.NoError(t, err)
	_, ok = again.accept(ann, text)
	require.True(t, ok, "after a restart")
	other, err := openReceipts(dataDir(t.TempDir()))
	require.NoError(t, err)
	_, ok = other.accept(ann, text)
	require.False(t, ok, "another machine's")
}
