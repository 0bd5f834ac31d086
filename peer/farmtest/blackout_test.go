package farmtest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// A farm that was switched off whole comes back in any order, with minutes between, and
// with other addresses for all machines but one, whichever that is; what was under way
// goes on without a hand.
func TestFarmThatWasSwitchedOff(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes long under the race detector")
	}
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 7))
				f := NewOf(t, 3, 3)
				f.Vote(3)
				job := f.Submit(f.Peers[4], "1-120")
				f.Within(time.Minute, "some frames are done", func() bool { return f.done(job) >= 10 })
				for _, i := range rng.Perm(len(f.Peers)) {
					if rng.IntN(2) == 0 {
						f.Peers[i].Crash()
					} else {
						f.Peers[i].Stop()
					}
					time.Sleep(time.Duration(rng.IntN(60)) * time.Second)
				}
				time.Sleep(8 * time.Hour) // nobody runs: it costs nothing
				stays := rng.IntN(len(f.Peers))
				t.Logf("%s stays where it is", f.Peers[stays].Name)
				for i, m := range f.Peers {
					if i != stays {
						m.Move()
					}
				}
				for _, i := range rng.Perm(len(f.Peers)) {
					t.Logf("%s is switched on", f.Peers[i].Name)
					f.Peers[i].Start()
					time.Sleep(time.Duration(rng.IntN(200)) * time.Second)
				}
				began := time.Now()
				f.Led(3 * time.Minute)
				f.Within(3*time.Minute, "all are back", func() bool { return f.online() == len(f.Peers) })
				t.Logf("all are back %v after the last one was switched on", time.Since(began))
				require.Len(t, f.Await(job, lease.JobDone, 10*time.Minute).Frames, 120)
			})
		})
	}
}
