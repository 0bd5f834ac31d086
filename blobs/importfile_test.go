package blobs

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is imported with a pin has both once it has been waited for, whether it was
// here before or not, and needs no time of grace.
func TestImportWithPin(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Config{Grace: 1})
	require.NoError(t, err)
	small, large := []byte("a small frame"), noise(3, 5<<20+17)
	for _, data := range [][]byte{small, large, small, nil} {
		for _, wait := range []func(*Import) error{
			func(i *Import) error { return i.Wait(t.Context()) },
			func(i *Import) error { return i.Settle(t.Context()) },
		} {
			i, err := s.BeginImport(t.Context(), bytes.NewReader(data), "frames:j1")
			require.NoError(t, err)
			require.EqualValues(t, len(data), i.Size)
			require.NoError(t, wait(i))
			want, size, err := s.ImportFile(t.Context(), bytes.NewReader(data))
			require.NoError(t, err)
			require.Equal(t, want, i.CID)
			require.Equal(t, size, i.Size)
		}
	}
	other, err := s.BeginImport(t.Context(), bytes.NewReader(small), "frames:j2")
	require.NoError(t, err)
	require.NoError(t, other.Wait(t.Context()))
	_, err = s.BeginImport(t.Context(), strings.NewReader("x"), "")
	require.ErrorContains(t, err, "holder")
	require.NoError(t, s.Close())

	s, err = Open(dir, Config{})
	require.NoError(t, err)
	defer s.Close()
	holders := map[string]int{}
	for pin, err := range s.Pins(t.Context()) {
		require.NoError(t, err)
		holders[pin.Holder]++
		whole, err := s.Has(t.Context(), pin.Root)
		require.NoError(t, err)
		require.True(t, whole)
	}
	require.Equal(t, map[string]int{"frames:j1": 3, "frames:j2": 1}, holders)
	roots, err := s.Roots(t.Context())
	require.NoError(t, err)
	require.Len(t, roots, 3, "they are cached, too")
	n, err := s.UnpinAll(t.Context(), "frames:j1")
	require.NoError(t, err)
	require.Equal(t, 3, n)
}
