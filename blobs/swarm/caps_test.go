package swarm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCapsAt(t *testing.T) {
	work := []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday}
	c := Caps{Up: 100, Down: -5, Hours: []Hours{
		{Days: work, From: 8 * time.Hour, To: 18 * time.Hour, Up: 1, Down: 2},
		{Days: []time.Weekday{time.Friday}, From: 22 * time.Hour, To: 6 * time.Hour, Up: 3},
		{Days: []time.Weekday{time.Sunday}, Up: 4},
	}}
	at := func(day, hour, minute int) time.Time {
		return time.Date(2026, time.November, day, hour, minute, 0, 0, time.UTC)
	} // the 2nd is a Monday
	for _, x := range []struct {
		t        time.Time
		up, down int64
	}{
		{at(2, 7, 59), 100, 0},
		{at(2, 8, 0), 1, 2},
		{at(2, 17, 59), 1, 2},
		{at(2, 18, 0), 100, 0},
		{at(6, 21, 59), 100, 0},
		{at(6, 22, 0), 3, 0},
		{at(7, 5, 59), 3, 0}, // the night from Friday to Saturday
		{at(7, 6, 0), 100, 0},
		{at(7, 23, 0), 100, 0},
		{at(8, 0, 0), 4, 0},
		{at(8, 23, 59), 4, 0},
		{at(9, 0, 0), 100, 0},
	} {
		up, down := c.At(x.t)
		require.Equal(t, x.up, up, x.t)
		require.Equal(t, x.down, down, x.t)
	}
	require.Equal(t, "mon,tue,wed,thu,fri 08:00-18:00", c.Hours[0].String())
	require.Equal(t, "22:30-24:00", Hours{From: 22*time.Hour + 30*time.Minute}.String())
}

// A limit that begins while a large read is under way holds from the next turn on;
// the read is not lost.
func TestLimitBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Exchange{up: newLimiter(), down: newLimiter()}
		e.SetCaps(Caps{})
		r := &throttled{s: &source{f: &fetch{e: e}}, ctx: t.Context(), r: readerFunc(func(b []byte) (int, error) {
			e.SetCaps(Caps{Down: 100_000})
			return len(b), nil
		})}
		start := time.Now()
		n, err := r.Read(make([]byte, 1<<20))
		require.NoError(t, err)
		require.Equal(t, 1<<20, n)
		require.InDelta(t, 10, time.Since(start).Seconds(), 1)
		n, err = r.Read(make([]byte, 1<<20))
		require.NoError(t, err)
		require.Equal(t, 5_000, n)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
