package coord

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// submission is a command that accepts a job of one frame, of an owner of its own.
func submission(id string) Entry {
	return Entry{Queue: &lease.Command{At: noon, Submit: &lease.Submit{Job: lease.JobID(id), Spec: lease.Spec{
		Name: "shot", Owner: id, Project: "bafy", Blend: "files/shot.blend", Frames: lease.Frames{{First: 1, Last: 1, Step: 1}},
		Tier: lease.Normal, Replicas: 1, Submitter: "ann-pc",
	}}}}
}

// foundation is a command that founds a farm with the founder as its member.
func foundation(t testing.TB, founder authz.PeerID) Entry {
	t.Helper()
	random := rngOf(string(founder))
	key, err := authz.NewFarmKey(random)
	require.NoError(t, err)
	admin, err := authz.NewAccount(random, "admin", authz.Admin, "correct horse battery")
	require.NoError(t, err)
	ticket, err := authz.NewTicket(random, key.ID(), authz.Node, false, nil)
	require.NoError(t, err)
	_, operator, err := authz.NewKey(random, "operator", authz.Operator, noon)
	require.NoError(t, err)
	_, machine, err := authz.NewKey(random, "admin", authz.Admin, noon)
	require.NoError(t, err)
	return Entry{Roster: &authz.Command{At: noon, Found: &authz.Found{
		Farm: key.ID(), Name: "Studio", Charter: key.SignCharter(founder, 1), Founder: founder, FounderName: "box-1",
		Admin: admin, NodeTicket: ticket.Record(1, noon.Add(time.Hour), "admin"), OperatorKey: operator, MachineKey: machine,
	}}}
}

// rngOf is an endless stream of bytes that depend on seed alone.
func rngOf(seed string) io.Reader { return &rng{seed: seed} }

type rng struct {
	seed string
	n    byte
}

func (r *rng) Read(p []byte) (int, error) {
	for i := range p {
		r.n++
		p[i] = r.n ^ r.seed[int(r.n)%len(r.seed)]
	}
	return len(p), nil
}

func (e Entry) at(t testing.TB, index uint64) *raft.Log {
	t.Helper()
	data, err := e.encode()
	require.NoError(t, err)
	return &raft.Log{Index: index, Data: data}
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "memory" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }

func snapshotBytes(t testing.TB, f *fsm) []byte {
	t.Helper()
	s, err := f.Snapshot()
	require.NoError(t, err)
	defer s.Release()
	var sink memorySink
	require.NoError(t, s.Persist(&sink))
	return sink.Bytes()
}

// TestSnapshotAnywhere takes a snapshot after every entry and plays the rest of
// the log on it: the state is the same bytes wherever it was cut.
func TestSnapshotAnywhere(t *testing.T) {
	log := []*raft.Log{foundation(t, "founder").at(t, 3)}
	for i := range 6 {
		log = append(log, submission(fmt.Sprint("j", i%5)).at(t, uint64(5+2*i))) // the sixth is refused
	}
	log = append(log, Entry{Queue: &lease.Command{At: noon, Grant: &lease.Grant{Lease: "l1", Task: lease.TaskID{Job: "j1"}, Peer: "box"}}}.at(t, 30))

	var told []Applied
	whole := newFSM(func(err error) { t.Error(err) })
	whole.subscribe(func(a Applied) { told = append(told, a) })
	var cuts [][]byte
	for _, l := range log {
		whole.Apply(l)
		cuts = append(cuts, snapshotBytes(t, whole))
	}
	require.Len(t, told, len(log)-1, "the refused command is not told")
	require.EqualValues(t, 3, told[0].Index)
	require.NotEmpty(t, told[0].Roster)
	require.EqualValues(t, 30, told[len(told)-1].Index)
	require.True(t, noon.Equal(told[1].At))

	for i, cut := range cuts {
		f := newFSM(func(err error) { t.Error(err) })
		f.Apply(submission("other").at(t, 1))
		var restored []Applied
		stop := f.subscribe(func(a Applied) { restored = append(restored, a) })
		require.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(cut))))
		require.Equal(t, []Applied{{Index: log[i].Index, Restored: true}}, restored)
		stop()
		for _, l := range log[i+1:] {
			f.Apply(l)
		}
		require.Len(t, restored, 1, "nothing is told after stop")
		require.Equal(t, string(cuts[len(cuts)-1]), string(snapshotBytes(t, f)), "cut after entry %d", log[i].Index)
	}
}

func TestRefusalsAreTheQueuesOwn(t *testing.T) {
	f := newFSM(func(err error) { t.Error(err) })
	require.NoError(t, f.Apply(submission("j1").at(t, 1)).(outcome).err)
	require.ErrorAs(t, f.Apply(submission("j1").at(t, 2)).(outcome).err, new(*lease.Repeated))
	redeem := Entry{Roster: &authz.Command{At: noon, Redeem: &authz.Redeem{Peer: "p", Name: "n"}}}
	require.ErrorIs(t, f.Apply(redeem.at(t, 3)).(outcome).err, authz.ErrNotFounded)
}

// TestUnreadableEntryStopsTheMachine: to skip what it cannot read would make its
// queue differ from the others'.
func TestUnreadableEntryStopsTheMachine(t *testing.T) {
	for name, data := range map[string]string{
		"newer version": `{"v":99,"queue":{}}`,
		"newer command": `{"v":99,"freeze":{"at":"2026-03-01T12:00:00Z"}}`,
		"unsaid field":  `{"v":1,"queue":{"at":"2026-03-01T12:00:00Z","cancel":{"job":"j1","gently":true}}}`,
		"one of a kind": `{"v":2,"roster":{"at":"2026-03-01T12:00:00Z","freeze":{}}}`,
		"more behind":   `{"v":1,"queue":{"at":"2026-03-01T12:00:00Z","pause":{"job":"j1"}}}{}`,
		"no version":    `{"queue":{}}`,
		"no command":    `{"v":1}`,
		"two commands":  `{"v":1,"queue":{},"roster":{}}`,
		"no JSON":       `vizpeer`,
	} {
		t.Run(name, func(t *testing.T) {
			var broken error
			f := newFSM(func(err error) {
				require.NoError(t, broken, "told once")
				broken = err
			})
			f.Apply(submission("j1").at(t, 1))
			before := f.read(func(*lease.State, *authz.Roster) {})
			err := f.Apply(&raft.Log{Index: 2, Data: []byte(data)}).(outcome).err
			require.ErrorContains(t, err, "cannot go on with the queue at entry 2")
			require.Equal(t, broken, err)
			require.Equal(t, broken, f.Apply(submission("j2").at(t, 3)).(outcome).err, "nothing is applied after it")
			require.Equal(t, before, f.read(func(s *lease.State, _ *authz.Roster) { require.Len(t, s.Jobs(), 1) }))
			_, err = f.Snapshot()
			require.Equal(t, broken, err, "the log must keep what a newer vizpeer will read")
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, bad := range []Entry{{}, {Queue: &lease.Command{}, Roster: &authz.Command{}}, {Seal: &authz.Seal{}, Audit: &authz.Note{}}} {
		_, err := bad.encode()
		require.ErrorContains(t, err, "one command")
	}
	big := submission("j1")
	big.Queue.Submit.Spec.Name = strings.Repeat("x", MaxEntry)
	_, err := big.encode()
	require.ErrorContains(t, err, "more than the")
}

func TestRestoreRefuses(t *testing.T) {
	f := newFSM(nil)
	f.Apply(submission("j1").at(t, 1))
	good := snapshotBytes(t, f)
	for name, bad := range map[string][]byte{
		"empty":         nil,
		"no header":     []byte("hello\n"),
		"other format":  bytes.Replace(good, []byte("queue 3 "), []byte("queue 5 "), 1),
		"higher level":  bytes.Replace(good, []byte("queue 3 "), []byte("queue 4 99 "), 1),
		"unknown field": bytes.Replace(good, []byte(`"tier":"normal"`), []byte(`"tear":"normal"`), 1),
		"cut":           good[:len(good)-2],
		"too long":      append(bytes.Clone(good), 'x'),
		"negative size": []byte("vizpeer queue 3 1 -1 0\n"),
		"huge size":     []byte("vizpeer queue 3 1 0 9000000000000000000\n"),
		"endless":       bytes.Repeat([]byte("x"), 1<<20),
	} {
		require.ErrorContains(t, f.Restore(io.NopCloser(bytes.NewReader(bad))), "restoring the queue", name)
		require.Equal(t, good, snapshotBytes(t, f), "a refused snapshot changes nothing")
	}
	require.Error(t, f.Restore(io.NopCloser(io.MultiReader(bytes.NewReader(good[:10]), failing{}))))
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func FuzzReadSnapshot(f *testing.F) {
	s := newFSM(nil)
	s.Apply(submission("j1").at(f, 1))
	f.Add(snapshotBytes(f, s))
	f.Add([]byte("vizpeer queue 1 1 2 3\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readSnapshot(bytes.NewReader(data))
		if err == nil && (s.queue == nil || s.roster == nil || s.trail == nil) {
			t.Fatal("no error and no state")
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(submission("j1").at(f, 1).Data)
	f.Add([]byte(`{"v":1,"roster":{"at":"2026-03-01T12:00:00Z","redeem":{}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := decodeEntry(data); err == nil {
			// Whatever can be read can be applied without a panic.
			newFSM(func(error) {}).Apply(&raft.Log{Index: 1, Data: data})
			_ = e
		}
	})
}
