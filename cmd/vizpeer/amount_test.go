package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAmounts(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "0 B": 0, "20 GiB": 20 << 30, "1.5GiB": 3 << 29, "500 MB": 500e6, " 2 tib ": 2 << 40, "7 B": 7,
	} {
		var s size
		require.NoError(t, s.Set(text), text)
		require.EqualValues(t, want, s, text)
	}
	for text, want := range map[string]int64{"2 MB/s": 2e6, "16 Mbit/s": 2e6, "1.5 MiB/s": 3 << 19, "0": 0, "100kbit/s": 12500} {
		var r rate
		require.NoError(t, r.Set(text), text)
		require.EqualValues(t, want, r, text)
	}
	// What a person could have meant otherwise is refused, not guessed.
	for _, text := range []string{"", "20", "0,5 GiB", "1,000 MB", "-1 GiB", "GiB", "1 G", "1e3 MB", "1.2.3 MB", "NaN B", "9000000000 TiB", "٣ MB", "1 Mbit", "2 MB/s"} {
		var s size
		require.Error(t, s.Set(text), text)
	}
	for _, text := range []string{"2 MB", "2/s", "MB/s", "2 MB/h"} {
		var r rate
		require.Error(t, r.Set(text), text)
	}
	var s share
	require.NoError(t, s.Set("95 %"))
	require.InDelta(t, 0.95, float64(s), 1e-9)
	require.Equal(t, "95%", s.String())
	for _, text := range []string{"95", "0%", "101%", "9.5%", "", "%"} {
		require.Error(t, s.Set(text), text)
	}
}
