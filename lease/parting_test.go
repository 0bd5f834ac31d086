package lease_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

func TestParting(t *testing.T) {
	s := lease.NewState()
	apply := func(c lease.Command) {
		t.Helper()
		_, err := s.Apply(c)
		require.NoError(t, err)
	}
	there := func(here ...authz.PeerID) lease.Presence {
		return lease.Presence{Here: func(p authz.PeerID) bool { return slices.Contains(here, p) }, Voters: []authz.PeerID{"chief"}}
	}
	kinds := func(p lease.Parting) (out []lease.ReasonKind) {
		safe := true
		for _, r := range p.Reasons {
			require.NotEmpty(t, r.Text)
			require.Positive(t, r.Count)
			out = append(out, r.Kind)
			safe = safe && !r.Grave
		}
		require.Equal(t, safe, p.Safe)
		return out
	}
	all := there("desk", "box", "chief")

	require.Empty(t, kinds(s.Parting("box", all)))
	require.Equal(t, []lease.ReasonKind{lease.ReasonQueue}, kinds(s.Parting("chief", all)))
	three := all
	three.Voters = []authz.PeerID{"box", "chief", "desk"}
	require.Empty(t, kinds(s.Parting("chief", three)))
	three.Here = there("chief", "box").Here
	require.Equal(t, []lease.ReasonKind{lease.ReasonQueue}, kinds(s.Parting("chief", three)), "one of three is away already")

	j := spec(lease.Frames{{First: 1, Last: 2, Step: 1}})
	j.Submitter, j.Output.Peer = "desk", "desk"
	apply(lease.Command{Submit: &lease.Submit{Job: "j", Spec: j}})
	require.Equal(t, []lease.ReasonKind{lease.ReasonProject}, kinds(s.Parting("desk", all)))
	apply(lease.Command{Stock: &lease.Stock{Job: "j", Peer: "chief"}})
	require.True(t, s.Parting("desk", all).Safe)
	require.False(t, s.Parting("desk", there("desk", "box")).Safe, "who else holds the project is away")

	r := lease.Report{Lease: "l", Task: lease.TaskID{Job: "j"}, Peer: "box"}
	apply(lease.Command{Grant: &lease.Grant{Lease: "l", Task: r.Task, Peer: "box"}})
	apply(lease.Command{Record: &lease.Record{Report: r, Frames: []lease.Result{{Frame: 1, CID: "f1", Name: "0001.png", Size: 1}}, Machines: 3}})
	require.Equal(t, []lease.ReasonKind{lease.ReasonAttempts, lease.ReasonUnkept}, kinds(s.Parting("box", all)))
	apply(lease.Command{Complete: &lease.Complete{Report: r, Frames: []lease.Result{{Frame: 2, CID: "f2", Name: "0002.png", Size: 1}}, Machines: 3}})
	p := s.Parting("box", all)
	require.Equal(t, []lease.ReasonKind{lease.ReasonUnkept}, kinds(p))
	require.Equal(t, "no other machine holds 2 frames that it rendered yet", p.Reasons[0].Text)
	require.Equal(t, []lease.ReasonKind{lease.ReasonUnwritten}, kinds(s.Parting("desk", all)), "its project is needed no more")

	hold := func(p authz.PeerID, frame int32, cid string, delivered bool) {
		t.Helper()
		apply(lease.Command{Hold: &lease.Hold{Job: "j", Frame: frame, CID: cid, Peer: p, Delivered: delivered, Machines: 3}})
	}
	hold("chief", 1, "f1", false)
	hold("chief", 2, "f2", false)
	job, _ := s.Job("j")
	require.Equal(t, lease.JobDone, job.State)
	require.Equal(t, []lease.ReasonKind{lease.ReasonThin}, kinds(s.Parting("box", all)))
	require.Equal(t, []lease.ReasonKind{lease.ReasonOnlyCopy}, kinds(job.Parting("box", there("box", "desk"))), "the chief is away")
	hold("desk", 1, "f1", true)
	hold("desk", 2, "f2", true)
	require.Empty(t, kinds(s.Parting("box", all)))
	require.Equal(t, []lease.ReasonKind{lease.ReasonThin}, kinds(job.Parting("box", there("box"))), "who asked for them has them in a folder")
}

// A copy that is gone is counted no more; a frame that nobody holds is rendered
// again while its job is open, and is only missed when it has ended.
func TestUnhold(t *testing.T) {
	s := lease.NewState()
	apply := func(c lease.Command) (types []lease.EventType) {
		t.Helper()
		events, err := s.Apply(c)
		require.NoError(t, err)
		for _, e := range events {
			types = append(types, e.Type)
		}
		return types
	}
	apply(lease.Command{Submit: &lease.Submit{Job: "j", Spec: spec(lease.Frames{{First: 1, Last: 4, Step: 1}})}})
	for i, peer := range []authz.PeerID{"bob", "cyd"} {
		r := lease.Report{Lease: lease.ID(peer), Task: lease.TaskID{Job: "j", Index: int32(i)}, Peer: peer}
		apply(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: peer}})
		first := int32(2*i + 1)
		apply(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: []lease.Result{
			{Frame: first, CID: "black", Name: "0001.0003.png", Size: 1}, {Frame: first + 1, CID: string(peer), Name: "0002.0004.png", Size: 1},
		}}})
		if i == 0 {
			// Done, then gone: two frames may have the same content.
			require.Equal(t, []lease.EventType{lease.FrameLost, lease.TaskRequeued}, apply(lease.Command{Unhold: &lease.Unhold{Job: "j", CID: "black", Peer: "bob"}}))
			j, task, _ := s.Task(r.Task)
			require.Equal(t, lease.TaskQueued, task.State)
			require.Equal(t, []int32{1}, j.Remaining(task))
			r.Lease = "again"
			apply(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: peer}})
			apply(lease.Command{Complete: &lease.Complete{Report: r, Machines: 1, Frames: []lease.Result{{Frame: 1, CID: "black", Name: "0001.png", Size: 1}}}})
		}
	}
	j, _ := s.Job("j")
	require.Equal(t, lease.JobDone, j.State)
	require.Equal(t, []lease.EventType{lease.FrameShort}, apply(lease.Command{Unhold: &lease.Unhold{Job: "j", CID: "black", Peer: "cyd"}}))
	require.Empty(t, j.Frames[2].Holders)
	require.True(t, j.Frames[2].Done)
	require.Equal(t, []authz.PeerID{"bob"}, j.Frames[0].Holders)
	require.Empty(t, apply(lease.Command{Unhold: &lease.Unhold{Job: "j", CID: "black", Peer: "cyd"}}))
	_, err := s.Apply(lease.Command{Unhold: &lease.Unhold{Job: "k", CID: "black", Peer: "cyd"}})
	require.ErrorIs(t, err, lease.ErrUnknownJob)

	apply(lease.Command{Lose: &lease.Lose{Peer: "bob"}})
	require.Equal(t, []authz.PeerID{"bob"}, j.Frames[0].Holders, "it may come back")
	apply(lease.Command{Lose: &lease.Lose{Peer: "bob", Removed: true}})
	require.Empty(t, j.Frames[0].Holders)
}

// What a machine held in a store that is gone counts no more; the first store that
// it tells of takes nothing back, nor does the same one again.
func TestStoreReplaced(t *testing.T) {
	s := lease.NewState()
	apply := func(c lease.Command) (types []lease.EventType) {
		t.Helper()
		events, err := s.Apply(c)
		require.NoError(t, err)
		for _, e := range events {
			types = append(types, e.Type)
		}
		return types
	}
	store := func(p authz.PeerID, id string) []lease.EventType {
		t.Helper()
		return apply(lease.Command{Store: &lease.Store{Peer: p, ID: id}})
	}
	for _, id := range []lease.JobID{"done", "open"} {
		apply(lease.Command{Submit: &lease.Submit{Job: id, Spec: spec(lease.Frames{{First: 1, Last: 2, Step: 1}})}})
		r := lease.Report{Lease: lease.ID(id), Task: lease.TaskID{Job: id}, Peer: "bob"}
		apply(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: "bob"}})
		apply(lease.Command{Stock: &lease.Stock{Job: id, Peer: "bob"}})
		apply(lease.Command{Record: &lease.Record{Report: r, Machines: 3, Frames: []lease.Result{
			{Frame: 1, CID: "a", Name: "0001.png", Size: 1}, {Frame: 2, CID: "b", Name: "0002.png", Size: 1},
		}}})
		apply(lease.Command{Hold: &lease.Hold{Job: id, Frame: 1, CID: "a", Peer: "ann", Machines: 3}})
		if id == "done" {
			apply(lease.Command{Hold: &lease.Hold{Job: id, Frame: 2, CID: "b", Peer: "ann", Machines: 3}})
			apply(lease.Command{Complete: &lease.Complete{Report: r, Machines: 3}})
		}
	}
	done, _ := s.Job("done")
	require.Equal(t, lease.JobDone, done.State)
	require.Empty(t, store("bob", "first"))
	require.Empty(t, store("bob", "first"))
	require.Equal(t, "first", s.Machine("bob").Store)
	require.Equal(t, []authz.PeerID{"bob", "ann"}, done.Frames[1].Holders)

	require.Equal(t, []lease.EventType{lease.FrameLost}, store("bob", "second"), "ann has the others")
	open, _ := s.Job("open")
	require.Equal(t, []authz.PeerID{"ann"}, open.Frames[0].Holders)
	require.Nil(t, open.Frames[1])
	for _, j := range s.Jobs() {
		require.Equal(t, []authz.PeerID{"ann"}, j.Holders)
	}
	for _, f := range done.Frames {
		require.Equal(t, []authz.PeerID{"ann"}, f.Holders)
		require.True(t, f.Done)
	}
	for _, c := range []lease.Store{{ID: "x"}, {Peer: "bob"}, {Peer: "bob", ID: strings.Repeat("x", lease.MaxStoreID+1)}} {
		_, err := s.Apply(lease.Command{Store: &c})
		require.ErrorIs(t, err, lease.ErrInvalid)
	}
	apply(lease.Command{Lose: &lease.Lose{Peer: "bob", Removed: true}})
	require.Empty(t, s.Machine("bob").Store)
}
