package authz

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestTokenText(t *testing.T) {
	token, key, err := NewKey(rand.Reader, "ann", Operator, noon)
	require.NoError(t, err)
	id, secret, err := parseToken(token)
	require.NoError(t, err)
	require.Equal(t, key.ID, id)
	require.True(t, key.Hash.matches(secret))
	require.Equal(t, []any{"ann", Operator}, []any{key.User, key.Role})

	for bad, want := range map[string]string{
		"":                               "empty",
		"hello":                          "begins with",
		"vzt1abc":                        "a ticket",
		token[:len(token)-1]:             "cut short",
		token + "a":                      "1 characters too many",
		strings.ToUpper(token):           "begins with",
		token[:20] + "!" + token[21:]:    "mistyped",
		token[:17] + "a" + token[18:]:    "mistyped", // no second "_"
		token[:len(token)-1] + "b":       "mistyped", // bits beyond the secret
		"vzk_" + strings.Repeat("_", 66): "mistyped",
	} {
		_, _, err := parseToken(bad)
		require.ErrorIs(t, err, ErrTokenText, bad)
		require.ErrorContains(t, err, want)
	}
}

func TestNewKeyRefuses(t *testing.T) {
	for _, try := range []struct {
		user string
		role Role
	}{{"", Admin}, {"ann", "king"}, {" ann", Admin}, {"a\nb", Admin}, {strings.Repeat("x", MaxName+1), Admin}, {"\xff", Admin}} {
		_, _, err := NewKey(rand.Reader, try.user, try.role, noon)
		require.Error(t, err, "%q %q", try.user, try.role)
	}
}

func FuzzParseToken(f *testing.F) {
	token, _, err := NewKey(rand.Reader, "ann", Operator, noon)
	require.NoError(f, err)
	f.Add(token)
	f.Add(token[:40])
	f.Add("vzk__")
	r := NewRoster()
	f.Fuzz(func(t *testing.T, s string) {
		id, secret, err := parseToken(s)
		_, denied := r.Authenticate(s, noon)
		require.Error(t, denied, "an empty roster knows nobody")
		if err != nil {
			require.ErrorIs(t, err, ErrTokenText)
			return
		}
		require.Equal(t, s, tokenPrefix+id+"_"+base32Text.EncodeToString(secret), "a key has one text")
	})
}

func TestCheckPassword(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: hashing takes long under the race detector")
	}
	a, err := NewAccount(rand.Reader, "ann", Admin, "correct horse battery")
	require.NoError(t, err)
	require.True(t, a.CheckPassword("correct horse battery"))
	require.False(t, a.CheckPassword("correct horse batterz"))
	require.False(t, a.CheckPassword(strings.Repeat("x", maxPassword+1)))
	require.False(t, Account{}.CheckPassword(""), "the zero account lets nobody in")

	for _, bad := range []string{"", "short", strings.Repeat("x", maxPassword+1)} {
		_, err := NewAccount(rand.Reader, "ann", Admin, bad)
		require.Error(t, err)
	}
}
