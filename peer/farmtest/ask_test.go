package farmtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/peer"
	"vizpeer/peer/httpapi"
)

// asking is a machine that asks to be let in.
type asking struct {
	*Member
	shown  chan peer.Waiting
	joined peer.Joined
	ended  chan error
	giveUp context.CancelFunc
}

func (f *Farm) ask(name string) *asking {
	ctx, cancel := context.WithCancel(f.t.Context())
	a := &asking{Member: f.Newcomer(name), shown: make(chan peer.Waiting, 9), ended: make(chan error, 1), giveUp: cancel}
	go func() {
		var err error
		a.joined, err = a.Ask(ctx, func(w peer.Waiting) { a.shown <- w })
		a.ended <- err
	}()
	// The simulated network takes one machine at a time.
	select {
	case w := <-a.shown:
		a.shown <- w
	case err := <-a.ended:
		a.ended <- err
	}
	return a
}

func (f *Farm) pending() []httpapi.Applicant {
	list, err := f.leader().Queue().Pending(f.t.Context(), Admin)
	require.NoError(f.t, err)
	return list
}

// A machine without a ticket waits until an admin, who sees the words that it shows,
// lets it in. It then is what a ticket would have made of it.
func TestAskToBeLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 0)
		q := f.Peers[0].Queue()
		desk, other := f.ask("desk"), f.ask("other")
		f.Within(10*time.Second, "both wait", func() bool { return len(f.pending()) == 2 })
		w := <-desk.shown
		require.Equal(t, "attic", w.Name)
		require.Regexp(t, `^[a-z]+-[a-z]+-[a-z]+-[a-z]+$`, w.Words)
		// Longer than a stranger may stay who asks for nothing.
		time.Sleep(5 * time.Minute)
		byWords := make(map[string]httpapi.Applicant)
		for _, a := range f.pending() {
			byWords[a.Words] = a
			require.NotEmpty(t, a.Addr)
			require.WithinDuration(t, time.Now().Add(-5*time.Minute), a.Since, 15*time.Second)
		}
		require.Len(t, byWords, 2)
		waits := byWords[w.Words]
		require.Equal(t, "desk", waits.Name)

		_, err := q.Pending(t.Context(), Operator)
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = q.Approve(t.Context(), Operator, waits.ID, authz.Admin)
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = q.Approve(t.Context(), Admin, waits.ID, "king")
		require.ErrorIs(t, err, httpapi.ErrInvalid)
		_, err = q.Approve(t.Context(), Admin, "12D3KooNobody", authz.Node)
		require.ErrorIs(t, err, httpapi.ErrNotFound)

		p, err := q.Approve(t.Context(), Admin, waits.ID, authz.Operator)
		require.NoError(t, err)
		require.Equal(t, "desk", p.Name)
		require.NoError(t, <-desk.ended)
		require.Equal(t, authz.Operator, desk.joined.Role)
		require.Equal(t, waits.ID, desk.joined.Peer)
		desk.Start()
		f.Online(2)
		key := desk.key()
		who, err := f.Peers[0].Local().Authenticate(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, authz.Operator, who.Role)

		_, err = q.Deny(t.Context(), Admin, f.pending()[0].ID)
		require.NoError(t, err)
		err = <-other.ended
		require.ErrorIs(t, err, peer.ErrRefused)
		require.ErrorContains(t, err, "an admin denied it")
		f.Within(time.Minute, "nobody waits", func() bool { return len(f.pending()) == 0 })
		require.ErrorIs(t, other.Revived(), peer.ErrNotMember)
	})
}

// Who gives up, or loses its connection, waits no more; who waits while the leader is
// started anew asks again by itself.
func TestWhoWaitsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 0)
		a := f.ask("desk")
		first := <-a.shown
		a.giveUp()
		require.ErrorIs(t, <-a.ended, context.Canceled)
		f.Within(time.Minute, "nobody waits", func() bool { return len(f.pending()) == 0 })

		b := f.ask("box")
		<-b.shown
		f.Peers[0].Stop()
		time.Sleep(2 * time.Minute)
		f.Peers[0].Start()
		f.Within(10*time.Second, "the founder leads again", f.Peers[0].Leads)
		again := <-b.shown
		require.NotEqual(t, first.Words, again.Words)
		f.Within(time.Minute, "it waits again", func() bool { return len(f.pending()) == 1 && f.pending()[0].Words == again.Words })
		_, err := f.Peers[0].Queue().Approve(t.Context(), Admin, f.pending()[0].ID, "")
		require.NoError(t, err)
		require.NoError(t, <-b.ended)
		require.Equal(t, authz.Node, b.joined.Role)
	})
}

// A machine that was removed may ask as any other, and is who it was; but not another farm.
func TestAskAfterRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := New(t, 1), New(t, 0)
		box, was := f.Peers[1], f.Peers[1].ID
		_, err := f.Peers[0].Queue().Revoke(t.Context(), Admin, was, f.Peers[0].ID)
		require.NoError(t, err)
		require.ErrorIs(t, box.Ended(time.Minute), peer.ErrRemoved)

		shown, joined := make(chan peer.Waiting, 9), make(chan error, 1)
		go func() {
			_, err := box.Ask(t.Context(), func(w peer.Waiting) { shown <- w })
			joined <- err
		}()
		w := <-shown
		require.Equal(t, w.Words, f.pending()[0].Words)
		_, err = f.Peers[0].Queue().Approve(t.Context(), Admin, f.pending()[0].ID, "")
		require.NoError(t, err)
		require.NoError(t, <-joined)
		require.Equal(t, was, box.ID)
		box.Start()
		f.Online(2)

		_, err = f.Peers[0].Queue().Revoke(t.Context(), Admin, was, f.Peers[0].ID)
		require.NoError(t, err)
		require.ErrorIs(t, box.Ended(time.Minute), peer.ErrRemoved)
		invited, err := g.Peers[0].Queue().Invite(t.Context(), Admin, httpapi.Invitation{})
		require.NoError(t, err)
		_, err = box.Join(invited.Ticket)
		require.ErrorIs(t, err, peer.ErrOtherFarm)
	})
}

// key is the API key in the machine's token file.
func (m *Member) key() string { return read(m.farm.t, m.DataDir(), "token") }

func read(t *testing.T, path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}
