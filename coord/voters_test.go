package coord

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// A coordinator in words: a name; v(oter), s(tandby) or n(ot in the log); then + for up or
// - for away, and for how many seconds; and h(eld), l(eaving), b(ehind), t(rusted) or
// x (no coordinator any more) or o(ld).
func standingsOf(t *testing.T, now time.Time, text string) (all []standing) {
	for word := range strings.FieldsSeq(text) {
		var s standing
		var seconds int
		var kind, up rune
		rest := ""
		n, _ := fmt.Sscanf(word[1:], "%c%c%d%s", &kind, &up, &seconds, &rest)
		require.GreaterOrEqual(t, n, 3, word)
		s.id, s.server, s.voter, s.up = authz.PeerID(word[:1]), kind != 'n', kind == 'v', up == '+'
		s.since, s.current, s.coordinator = now.Add(-time.Duration(seconds)*time.Second), up == '+', true
		for _, r := range rest {
			switch r {
			case 'h':
				s.held = true
			case 'l':
				s.leaving = true
			case 'b':
				s.current = false
			case 't':
				s.trusted = true
			case 'x':
				s.coordinator = false
			case 'o':
				s.old = true
			}
		}
		all = append(all, s)
	}
	return all
}

func TestNextMove(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		all, want string
		next      time.Duration // 0: never
	}{
		{"av+500", "", 0},
		{"av+500 bn+0", "add b", 0},
		{"av+500 bn-9", "", 0},
		{"av+500 bn+9o", "", 0}, // it would stop at the first thing that it does not know
		{"av+500 bn+9o cn+0", "add c", 0},
		{"av+500 bs+99", "", 0}, // one alone: two voters are no better
		{"av+500 bs+99 cs+30", "", 30 * time.Second},
		{"av+500 bs+99 cs+60", "promote b", 0},
		{"av+500 bs+99 cs+60b", "", 0},
		{"av+500 bs+99 cs+60h", "", 0},
		{"av+500 bs+99 cs+1t", "promote b", 0},
		{"av+500 bv+99 cs+60", "promote c", 0},
		{"av+500 bv+99", "demote b", 0},
		{"av+0 bv-0l", "demote b", 0},    // a hand-over's second half
		{"av+500 bv+99l", "demote b", 0}, // that of a follower
		{"av+500 bv+500 cv+500", "", 0},
		{"av+500 bv+500 cv-599", "", time.Second},
		{"av+500 bv+500 cv-600", "", 0}, // nobody to replace it: still on two disks
		{"av+500 bv+500 cv-600 ds+60", "promote d", 0},
		{"av+500 bv+500 cv-600 dv+70", "demote c", 0},
		{"av+500 bv+500 cv+9 ds+60", "", 0},
		{"av+500 bv+500 cv+9 ds+60 es+60", "promote d", 0},
		{"av+500 bv+500 cv+9 dv+60 es+60", "promote e", 0},
		{"av+500 bv+500 cv+9 dv+60 ev+60 fs+60 gs+60", "", 0}, // five are enough
		{"av+500 bv+500 cv-9 dv+60 ev-700", "", 591 * time.Second},
		{"av+500 bv+500 cv-800 dv+60 ev-700", "demote c", 0},
		{"av+500 bv+500 dv+60 ev-700", "demote e", 0},
		{"av+500 bv+500 dv+60 ev+20", "demote e", 0},
		{"av+5 bv-5 dv-5 ev-5", "", 55 * time.Second}, // a new leader waits for word of them
		{"av+500 bv+500h cv+500", "demote b", 0},
		{"av+500h bv+500 cv+500", "yield a", 0},
		{"av+500h bs+99", "", 0},
		{"av+500 bs+99x", "remove b", 0},
		{"av+500 bv-99x cv+500", "remove b", 0},
	} {
		m, next := nextMove("a", now, standingsOf(t, now, c.all), patience{time.Minute, 10 * time.Minute})
		require.Equal(t, c.want, strings.TrimSpace(string(m.kind)+" "+string(m.who)), c.all)
		if c.next == 0 && m.kind == "" {
			require.Zero(t, next, c.all)
		} else if m.kind == "" {
			require.Equal(t, now.Add(c.next), next, c.all)
		}
	}
}

// Whatever comes and goes, what is done settles, keeps the number of voters odd where all
// are up, and never leaves fewer voters that are up than a majority of those there are.
func TestMovesSettle(t *testing.T) {
	for seed := range uint64(2000) {
		dice := rand.New(rand.NewPCG(seed, 7))
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		all := []standing{{id: "a", coordinator: true, server: true, voter: true, up: true, current: true, since: now}}
		for i := range 1 + dice.IntN(6) {
			all = append(all, standing{id: authz.PeerID('b' + rune(i)), coordinator: true, up: dice.IntN(3) > 0, since: now})
		}
		for range 20 {
			now = now.Add(time.Duration(dice.IntN(900)) * time.Second)
			// One at a time comes or goes, as long as the voters that are left can decide.
			i := 1 + dice.IntN(len(all)-1)
			all[i].up, all[i].since = !all[i].up, now
			if !decides(all) {
				all[i].up = true
			}
			for moves := 0; ; moves++ {
				require.Less(t, moves, 12, "it does not settle (seed %d)", seed)
				for i := range all {
					all[i].current = all[i].up
				}
				m, _ := nextMove("a", now, all, patience{time.Minute, 10 * time.Minute})
				if m.kind == "" {
					break
				}
				i := slices.IndexFunc(all, func(s standing) bool { return s.id == m.who })
				switch m.kind {
				case moveAdd:
					all[i].server = true
				case movePromote:
					all[i].voter = true
				case moveDemote:
					all[i].voter = false
				default:
					require.Fail(t, "not asked for", "%s (seed %d)", m.kind, seed)
				}
				require.True(t, decides(all), "%+v after %v (seed %d)", all, m, seed)
			}
		}
	}
}

func decides(all []standing) bool {
	voters, up := 0, 0
	for _, s := range all {
		if s.voter {
			voters++
			if s.up {
				up++
			}
		}
	}
	return up > voters/2
}
