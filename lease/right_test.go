package lease_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/lease"
)

func TestScopes(t *testing.T) {
	for text, want := range map[string]lease.Scope{
		"": {}, "j1": lease.ProjectOf("j1"), "j1/-4": lease.FrameOf("j1", -4), "j1/log/7": lease.LogOf(lease.TaskID{Job: "j1", Index: 7}),
	} {
		got, ok := lease.ParseScope(text)
		require.True(t, ok, text)
		require.Equal(t, want, got)
		require.Equal(t, text, got.String())
	}
	for _, text := range []string{"/1", "j/", "j/x", "j/1/2", "j/01", "j/+1", "j/log/", "j/log/x", "j/99999999999", string(make([]byte, 65))} {
		_, ok := lease.ParseScope(text)
		require.False(t, ok, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		if s, ok := lease.ParseScope(rapid.String().Draw(t, "text")); ok {
			again, ok := lease.ParseScope(s.String())
			require.True(t, ok)
			require.Equal(t, s, again)
		}
	})
}

func TestMayHave(t *testing.T) {
	s := lease.NewState()
	apply := func(c lease.Command) {
		t.Helper()
		_, err := s.Apply(c)
		require.NoError(t, err)
	}
	j := spec(lease.Frames{{First: 1, Last: 4, Step: 1}})
	j.Submitter, j.Output.Peer, j.Owner = "desk", "desk", "ann"
	apply(lease.Command{Submit: &lease.Submit{Job: "j", Spec: j}})
	r := lease.Report{Lease: "l", Task: lease.TaskID{Job: "j"}, Peer: "box"}
	apply(lease.Command{Grant: &lease.Grant{Lease: "l", Task: r.Task, Peer: "box"}})
	apply(lease.Command{Record: &lease.Record{Report: r, Frames: []lease.Result{{Frame: 1, CID: "f1", Name: "0001.png", Size: 1}}, Machines: 3}})

	project, frame := lease.ProjectOf("j"), lease.FrameOf("j", 1)
	may := func(m authz.Member, root string, by lease.Scope) bool { return s.MayHave(m, root, by) }
	node := func(id string) authz.Member {
		return authz.Member{ID: authz.PeerID(id), Role: authz.Node, User: id + "'s"}
	}
	for who, m := range map[string]authz.Member{
		"the submitter": node("desk"), "its owner's other machine": {ID: "x", Role: authz.Operator, User: "ann"},
		"an admin's": {ID: "x", Role: authz.Admin, User: "root"}, "a coordinator": {ID: "x", Role: authz.Node, Coordinator: true, User: "x"},
	} {
		require.True(t, may(m, "bafy", project), who)
		require.True(t, may(m, "f1", frame), who)
	}
	require.True(t, may(node("box"), "bafy", project), "it holds a lease")
	require.False(t, may(node("box"), "f1", frame), "it said that it rendered it, and could have said so of anything")
	for who, m := range map[string]authz.Member{
		"a node": node("x"), "another operator": {ID: "x", Role: authz.Operator, User: "bob"}, "nobody": {}, "a node of the owner's name": {ID: "x", Role: authz.Node, User: "ann"},
	} {
		require.False(t, may(m, "bafy", project), who)
		require.False(t, may(m, "f1", frame), who)
	}
	require.False(t, may(node("desk"), "other", project))
	require.False(t, may(node("desk"), "f1", lease.FrameOf("j", 2)), "not rendered yet")
	require.False(t, may(node("desk"), "f1", lease.FrameOf("j", 99)))
	require.False(t, may(node("desk"), "bafy", lease.ProjectOf("k")))
	require.False(t, may(node("desk"), "log", lease.LogOf(lease.TaskID{Job: "j", Index: -1})))

	apply(lease.Command{Fail: &lease.Fail{Report: r, Reason: "crash", Log: "log"}})
	require.False(t, may(node("box"), "bafy", project), "its lease has ended")
	require.True(t, may(node("desk"), "log", lease.LogOf(r.Task)))
	require.False(t, may(node("box"), "log", lease.LogOf(r.Task)))
	require.False(t, may(node("x"), "log", lease.LogOf(r.Task)))
	apply(lease.Command{Stock: &lease.Stock{Job: "j", Peer: "box"}})
	require.True(t, may(node("box"), "bafy", project), "it holds the project")
	apply(lease.Command{Cancel: &lease.Cancel{Job: "j"}})
	require.False(t, may(node("box"), "bafy", project), "the job has ended")
	require.True(t, may(node("desk"), "bafy", project))
}
