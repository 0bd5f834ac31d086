package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A member that says ever more of itself is heard as often as an honest one, and
// does not keep others from being heard.
func TestAdsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pace{rate: adRate, burst: adBurst}
		loud, quiet := aPeer(t), aPeer(t)
		heard := 0
		for range 1000 {
			if c.may(loud, 1) {
				heard++
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.InDelta(t, adBurst+10*adRate, heard, 1)
		require.True(t, c.may(quiet, 1))
		for range 60 { // as often as an honest one
			time.Sleep(adPause)
			require.True(t, c.may(quiet, 1))
		}
	})
}
