package lease_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

func withExtra(r lease.Result, extra string) lease.Result {
	r.Extra, r.ExtraFiles, r.ExtraSize = extra, 2, 20
	return r
}

// Whoever holds a frame holds what is beside it, or does not hold the frame.
func TestWhatIsBesideAFrameGoesWithIt(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	r := f.grant("j", 0, "bob")
	f.do(lease.Command{Record: &lease.Record{Report: r, Frames: []lease.Result{withExtra(results(1)[0], "extra1")}, Machines: 3}})
	hold := lease.Hold{Job: "j", Frame: 1, CID: "cid1", Peer: "peer-ann", Machines: 3}
	for _, extra := range []string{"", "other"} {
		hold.Extra = extra
		f.refuse(lease.ErrInvalid, lease.Command{Hold: &hold})
	}
	hold.Extra = "extra1"
	f.do(lease.Command{Hold: &hold})
	require.True(t, j.Frames[0].Done)

	ann := authz.Member{ID: "peer-ann", Coordinator: true}
	require.True(t, f.MayHave(ann, "extra1", lease.FrameOf("j", 1)))
	require.False(t, f.MayHave(ann, "extra1", lease.FrameOf("j", 2)))
	require.False(t, f.MayHave(authz.Member{ID: "peer-cyd"}, "extra1", lease.FrameOf("j", 1)))

	f.do(lease.Command{Unhold: &lease.Unhold{Job: "j", CID: "extra1", Peer: "peer-ann", Machines: 3}})
	require.Equal(t, []authz.PeerID{"peer-bob"}, j.Frames[0].Holders)
	f.do(lease.Command{Unhold: &lease.Unhold{Job: "j", CID: "extra1", Peer: "peer-bob", Machines: 3}})
	require.Nil(t, j.Frames[0], "nobody holds all of it")
}

// A frame that is the same but for what is beside it is another frame.
func TestAFrameWithOtherFilesBesideItIsAnother(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	render := func(extra string) {
		r := f.grant("j", 0, "bob")
		f.do(lease.Command{Complete: &lease.Complete{Report: r, Frames: []lease.Result{withExtra(results(1)[0], extra)}, Machines: 3}})
	}
	render("extra1")
	f.do(lease.Command{Retry: &lease.Retry{Job: "j", Frames: lease.Frames{{First: 1, Last: 1, Step: 1}}}})
	f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 1, CID: "cid1", Extra: "extra1", Peer: "peer-ann", Machines: 3}})
	render("extra2")
	require.Equal(t, "extra2", j.Frames[0].Extra)
	require.Equal(t, []authz.PeerID{"peer-bob"}, j.Frames[0].Holders, "what the others hold is the one before")
}

func TestPlacesBesideAFrame(t *testing.T) {
	for _, good := range []string{"0012.png", "a/b c/image0012_L.exr", "shot_0012_R.jpg", "0012.webp"} {
		require.NoError(t, lease.CheckExtra(good, 12), good)
	}
	for _, bad := range []string{
		"", ".", "/etc/0012.png", "../0012.png", "a/../../0012.png", "a/./0012.png", "a//0012.png", "a/", ".ssh/0012.png", "a/.git/0012.png", "a/.0012.png",
		"a/0012.sh", "a/0012", "a/0013.png", `a\0012.png`, "c:/0012.png", "a/0012.png\x00", "a\n/0012.png", strings.Repeat("a/", 13) + "0012.png",
	} {
		require.Error(t, lease.CheckExtra(bad, 12), bad)
	}
}
