package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/peer"
)

func TestHours(t *testing.T) {
	week := []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday}
	for text, want := range map[string]peer.Hours{
		"mon-fri 08:00-19:00":     {Days: week, From: 8 * time.Hour, To: 19 * time.Hour},
		"22:00-06:30":             {From: 22 * time.Hour, To: 6*time.Hour + 30*time.Minute},
		"  Sat,SUN  10:00-24:00 ": {Days: []time.Weekday{time.Saturday, time.Sunday}, From: 10 * time.Hour},
		"fri-mon,mon 00:00-12:00": {Days: []time.Weekday{time.Friday, time.Saturday, time.Sunday, time.Monday}, To: 12 * time.Hour},
	} {
		got, err := parseHours(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "mon", "mon-fry 08:00-19:00", "8-19", "8:00-19:00", "08:00-25:00", "08:00", "08:00-08:00", "24:00-08:00", "mon 08:00-19:00 x", "mon, tue 08:00-09:00", "00:00-24:00-"} {
		_, err := parseHours(text)
		require.ErrorIs(t, err, errHours, text)
	}
}

func TestCaps(t *testing.T) {
	caps, err := (&settings{upload: 2e6}).caps()
	require.NoError(t, err)
	require.Equal(t, peer.Caps{Up: 2e6}, caps)

	caps, err = (&settings{upload: 2e6, capHours: []string{"mon-fri 08:00-19:00"}}).caps()
	require.NoError(t, err)
	monday := time.Date(2026, 6, 1, 8, 0, 0, 0, time.Local)
	up, down := caps.At(monday)
	require.EqualValues(t, 2e6, up)
	require.Zero(t, down)
	up, _ = caps.At(monday.Add(-time.Minute))
	require.Zero(t, up, "outside of the hours there is no cap")
}
