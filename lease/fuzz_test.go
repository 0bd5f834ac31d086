package lease_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/lease/leasetest"
)

// lives are logs of a model and the states that they led to, to begin from.
var lives = rapid.Custom(func(t *rapid.T) *model {
	m := newModel(1000)
	m.run(t, 80)
	return m
})

// FuzzModel lets the fuzzer choose what the model does.
func FuzzModel(f *testing.F) {
	for seed := range uint64(8) { // the fuzzer's bytes are the model's random numbers
		r := rand.NewChaCha8([32]byte{byte(seed)})
		text := make([]byte, 32<<10)
		_, _ = r.Read(text)
		f.Add(text)
	}
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		m := newModel(10)
		m.run(t, 50)
		m.end(t)
	}))
}

// FuzzApply applies commands as they stand in a log, one a line. Each is refused, and
// changes nothing, or leaves a state that can be stored.
func FuzzApply(f *testing.F) {
	for seed := range 8 {
		m := lives.Example(seed)
		f.Add(commands(f, m.log), uint64(0))
		f.Add(commands(f, m.log), uint64(seed+1))
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		s := lease.NewState()
		r := rand.New(rand.NewPCG(seed, 0))
		for i, line := range bytes.Split(text, []byte("\n")) {
			if i > 200 {
				break
			}
			if seed != 0 && r.IntN(4) == 0 {
				line = spoil(line, r.IntN)
			}
			var c lease.Command
			if json.Unmarshal(line, &c) != nil || large(c) {
				continue
			}
			before := written(t, s.Freeze())
			if events, err := s.Apply(c); err != nil {
				require.Empty(t, events)
				leasetest.Same(t, before, written(t, s.Freeze()), "a refused command changed the state")
			}
		}
		survives(t, s, seed)
	})
}

// FuzzRestore reads snapshots that were damaged, or made by somebody hostile. What can
// be read at all is a state like any other.
func FuzzRestore(f *testing.F) {
	for seed := range 8 {
		text := written(f, lives.Example(seed).s.Freeze())
		f.Add(text, uint64(0))
		f.Add(text, uint64(seed+1))
	}
	f.Add([]byte(`{"version":2,"seq":1,"jobs":1,"finished":null} {"id":"j"}`), uint64(0))
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		if seed != 0 {
			docs := bytes.Split(text, []byte("\n"))
			for range 1 + r.IntN(3) {
				i := r.IntN(len(docs))
				docs[i] = spoil(docs[i], r.IntN)
			}
			text = bytes.Join(docs, []byte("\n"))
		}
		s, err := lease.Restore(bytes.NewReader(text))
		if err != nil {
			return
		}
		survives(t, s, seed)
	})
}

// survives requires that a state can be stored and read again, before and after
// commands about everything that is in it.
func survives(t *testing.T, s *lease.State, seed uint64) {
	twin := leasetest.Restored(t, s)
	for i, c := range about(s, rand.New(rand.NewPCG(seed, 2))) {
		c.At = time.Unix(2e9, 0).Add(time.Duration(i) * time.Minute)
		events, err := s.Apply(c)
		same, because := twin.Apply(c)
		require.Equal(t, err, because)
		require.Equal(t, events, same)
	}
	leasetest.Same(t, written(t, s.Freeze()), written(t, twin.Freeze()), "a restored state went another way")
	leasetest.Restored(t, s)
	for _, j := range s.Jobs() {
		j.Next(3)
		j.Undelivered()
		require.NotNil(t, j.Parting("ann", lease.Presence{Here: func(authz.PeerID) bool { return true }}).Reasons)
	}
	s.Waiting(time.Unix(2e9, 0), nil)
}

// about makes commands about all that is in a state, in a random order.
func about(s *lease.State, r *rand.Rand) (all []lease.Command) {
	all = []lease.Command{{Lose: &lease.Lose{Peer: "ann", Machines: 1}}, {Lose: &lease.Lose{Peer: "bob", Removed: true}}, {Store: &lease.Store{Peer: "cyd", ID: "new"}}}
	for _, j := range s.Jobs() {
		all = append(all, lease.Command{Pause: &lease.Pause{Job: j.ID}}, lease.Command{Resume: &lease.Resume{Job: j.ID}}, lease.Command{Resume: &lease.Resume{Job: j.ID}},
			lease.Command{Prioritise: &lease.Prioritise{Job: j.ID, Tier: lease.High}}, lease.Command{Retry: &lease.Retry{Job: j.ID}},
			lease.Command{Retry: &lease.Retry{Job: j.ID}}, lease.Command{Stock: &lease.Stock{Job: j.ID, Peer: "cyd"}})
		if r.IntN(3) == 0 {
			all = append(all, lease.Command{Cancel: &lease.Cancel{Job: j.ID}})
		}
		for i := range j.Tasks {
			all = append(all, aboutTask(j, int32(i), r)...)
		}
		for at, f := range j.Frames {
			n := j.Numbers()[at]
			again := lease.Command{Retry: &lease.Retry{Job: j.ID, Frames: lease.Frames{{First: n, Last: n, Step: 1}}}}
			if f != nil {
				hold := lease.Hold{Job: j.ID, Frame: n, CID: f.CID, Extra: f.Extra, Peer: "dan", Machines: 2, Delivered: true}
				all = append(all, again, lease.Command{Hold: &hold}, lease.Command{Unhold: &lease.Unhold{Job: j.ID, CID: f.CID, Peer: f.Peer}})
			}
		}
		if len(all) > 5000 {
			break
		}
	}
	r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return append(all, lease.Command{Forget: &lease.Forget{Before: time.Unix(1e9, 0)}})
}

func aboutTask(j *lease.Job, i int32, r *rand.Rand) (all []lease.Command) {
	t := &j.Tasks[i]
	report := lease.Report{Lease: lease.ID(fmt.Sprint("new", i)), Task: lease.TaskID{Job: j.ID, Index: i}, Peer: "dan"}
	all = append(all, lease.Command{Grant: &lease.Grant{Lease: report.Lease, Task: report.Task, Peer: report.Peer, Frames: r.Int32N(3)}},
		lease.Command{Grant: &lease.Grant{Lease: "second", Task: report.Task, Peer: "eve", Second: true}})
	for _, a := range append([]lease.Attempt{{Lease: report.Lease, Peer: report.Peer}}, t.Attempts...) {
		report.Lease, report.Peer = a.Lease, a.Peer
		var frames []lease.Result
		for _, f := range j.TaskFrames(t) {
			frames = append(frames, lease.Result{Frame: f, CID: fmt.Sprint("cid", f), Name: fmt.Sprintf("%04d.png", f), Size: 1, Seconds: 3})
		}
		half := frames[:len(frames)/2]
		all = append(all, lease.Command{Record: &lease.Record{Report: report, Frames: half}}, lease.Command{Complete: &lease.Complete{Report: report, Frames: half}},
			lease.Command{Complete: &lease.Complete{Report: report, Frames: frames, Machines: 2}}, lease.Command{Release: &lease.Release{Report: report}},
			lease.Command{Fail: &lease.Fail{Report: report, Kind: lease.FailKinds()[r.IntN(6)]}}, lease.Command{Expire: &lease.Expire{Lease: report.Lease, Task: report.Task}})
	}
	return all
}

// large tells of a job that is allowed and only slow.
func large(c lease.Command) bool {
	return c.Submit != nil && c.Submit.Spec.Frames.Validate() == nil && len(c.Submit.Spec.Frames.Expand()) > 1000
}

func commands(t require.TestingT, log []lease.Command) []byte {
	var b bytes.Buffer
	for _, c := range log {
		require.NoError(t, json.NewEncoder(&b).Encode(c))
	}
	return b.Bytes()
}
