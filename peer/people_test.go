package peer

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer/httpapi"
)

// However many passwords are tried, few are checked at once, few wait, and the rest
// are told to come again.
func TestPasswordsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPasswords()
		var at, most, done, refused atomic.Int32
		const tries = 200
		for range tries {
			go func() {
				err := p.do(t.Context(), func() {
					n := at.Add(1)
					for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
					}
					time.Sleep(200 * time.Millisecond) // what it costs
					at.Add(-1)
					done.Add(1)
				})
				if errors.Is(err, httpapi.ErrUnavailable) {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait() // nobody else is admitted any more
		require.EqualValues(t, tries-maxDeriving, refused.Load())
		require.LessOrEqual(t, most.Load(), int32(2))
		time.Sleep(maxDeriving * 200 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, maxDeriving, done.Load())
		require.NoError(t, p.do(t.Context(), func() {}), "there is room again")
	})
}

// Who has gone away is not worked for.
func TestPasswordsOfThoseWhoLeft(t *testing.T) {
	p := newPasswords()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for p.slots.TryAcquire(1) { // somebody else has them all
	}
	require.ErrorIs(t, p.check(ctx, authz.Account{}, "x"), context.Canceled)
	require.Zero(t, p.waiting.Load())
}
