package swarm

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A source loses to others what it owes when nothing comes from it for a while,
// and is left when that goes on. Time in which this peer has yet to take what
// came does not count, nor is anything taken from an only source.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Exchange{up: newLimiter(), down: newLimiter(), cfg: Config{StallTimeout: time.Hour}}
		e.SetCaps(Caps{Down: 1_000})
		f := &fetch{e: e, sources: make(map[*source]struct{}), work: make(chan arrival), advanced: time.Now()}
		r := &round{picker: newTestPicker(10)}
		var left error
		s := &source{f: f, rate: initialRate, cancel: func(err error) { left = err }, supply: r.picker.join(true, nil, 5_000, initialRate)}
		f.sources[s] = struct{}{}
		in, out := io.Pipe()
		go func() { _, _ = io.Copy(io.Discard, &throttled{s: s, ctx: t.Context(), r: in}) }()
		defer out.Close()
		send := func(n int) {
			_, err := out.Write(make([]byte, n))
			require.NoError(t, err)
			synctest.Wait()
		}
		ask := func() {
			r.picker.pick(s.supply)
			s.asked = time.Now()
			require.Len(t, s.supply.owed, 5)
		}
		watch := func(after time.Duration, owed int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			require.NoError(t, f.watch(r, time.Now(), true))
			require.Len(t, s.supply.owed, owed)
		}
		send(1)
		ask()
		watch(3*silence, 5) // there is no other

		part := newBitset(10)
		part.set(2)
		r.picker.join(false, part, 0, 0)
		watch(0, 4)
		require.Equal(t, []uint32{2}, s.cancels)
		watch(3*silence, 4)
		require.NoError(t, left)

		r.picker.join(true, nil, 0, 0)
		send(1)
		watch(silence-time.Second, 4)
		watch(time.Second, 0)
		ask()
		send(1)
		watch(silence-time.Second, 5)
		watch(time.Second, 0) // something had come meanwhile
		require.NoError(t, left)

		// It is this peer that makes it wait, by its limit or because of its store.
		ask()
		go func() { _ = e.down.take(t.Context(), 2*slice) }() // others are first
		synctest.Wait()
		send(1)
		watch(3*silence, 5)
		watch(3*silence, 5)
		time.Sleep(3 * silence)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = s.hand(ctx, true, arrival{}) }()
		watch(3*silence, 5)
		cancel()
		watch(silence-time.Second, 5)
		watch(time.Second, 0)
		require.NoError(t, left)
		ask()
		watch(silence, 0)
		require.ErrorContains(t, left, "sent nothing")
	})
}
