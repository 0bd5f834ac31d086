package lease

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A key makes one job of many tries, for a day, for its user alone; and the state is the
// same wherever a snapshot was taken.
func TestKeysModel(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	spec := Spec{
		Name: "shot", Owner: "ann", Project: "bafy", Blend: "files/shot.blend", Frames: Frames{{First: 1, Last: 2, Step: 1}},
		Chunk: 1, Tier: Normal, Replicas: 1, Submitter: "pc",
	}
	rapid.Check(t, func(t *rapid.T) {
		type key struct{ user, key string }
		type made struct {
			job     JobID
			request string
			at      time.Time
		}
		known := map[key]made{}
		s, at := NewState(), noon
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "hours")) * time.Hour)
			k := key{rapid.SampledFrom([]string{"ann", "bob"}).Draw(t, "user"), rapid.SampledFrom([]string{"k1", "k2", "k3"}).Draw(t, "key")}
			request := rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "request")
			id := JobID(fmt.Sprint("j", i))
			before := len(s.Jobs())
			events, err := s.Apply(Command{At: at, Submit: &Submit{Job: id, Spec: spec, Once: &Once{User: k.user, Key: k.key, Request: request}}})
			was, repeated := known[k]
			repeated = repeated && at.Before(was.at.Add(24*time.Hour))
			switch {
			case repeated && was.request != request:
				require.ErrorIs(t, err, ErrKeyReused)
			case repeated:
				var again *Repeated
				require.ErrorAs(t, err, &again)
				require.Equal(t, Repeated{was.job, 2}, *again)
			default:
				require.NoError(t, err)
				require.NotEmpty(t, events)
				known[k] = made{id, request, at}
				before++
			}
			require.Len(t, s.Jobs(), before)
			if rapid.Bool().Draw(t, "restart") {
				var b, c bytes.Buffer
				require.NoError(t, s.Freeze().Write(&b))
				var err error
				s, err = Restore(bytes.NewReader(b.Bytes()))
				require.NoError(t, err)
				require.NoError(t, s.Freeze().Write(&c))
				require.Equal(t, b.String(), c.String())
			}
		}
	})
}

// A user's keys are bounded: the oldest are forgotten, and nobody else's.
func TestKeysAreBounded(t *testing.T) {
	s, at := NewState(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := applying{State: s, at: at}
	j := &Job{ID: "j1"}
	a.remember(&Once{"bob", "k", "r"}, j)
	for i := range maxKeys + 5 {
		a.remember(&Once{"ann", fmt.Sprint("k", i), "r"}, j)
	}
	require.Len(t, s.once, 1+maxKeys)
	var again *Repeated
	require.ErrorAs(t, a.repeats(&Once{"bob", "k", "r"}), &again)
	require.NoError(t, a.repeats(&Once{"ann", "k4", "r"}))
	require.ErrorAs(t, a.repeats(&Once{"ann", "k5", "r"}), &again)
	a.at = at.Add(keepKeys)
	a.remember(&Once{"carl", "k", "r"}, j)
	require.Len(t, s.once, 1, "what is too old goes, whoever's it is")

	for _, bad := range []string{"", "a b", "ä", "a\n", strings.Repeat("x", MaxKey+1)} {
		require.ErrorIs(t, a.repeats(&Once{"ann", bad, "r"}), ErrInvalid, bad)
	}
	require.NoError(t, a.repeats(&Once{"ann", strings.Repeat("~", MaxKey), "r"}))
}

// Samples are added once, too.
func TestMoreOnce(t *testing.T) {
	s, at := NewState(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	spec := Spec{
		Name: "shot", Owner: "ann", Project: "bafy", Blend: "files/shot.blend", Frames: Frames{{First: 1, Last: 1, Step: 1}},
		Tier: Normal, Replicas: 1, Submitter: "pc", Split: Split{By: BySamples, Units: 100},
	}
	_, err := s.Apply(Command{At: at, Submit: &Submit{Job: "j1", Spec: spec}})
	require.NoError(t, err)
	more := Command{At: at, More: &More{Job: "j1", Samples: 50, Once: &Once{"ann", "k", "r"}}}
	_, err = s.Apply(more)
	require.NoError(t, err)
	var again *Repeated
	_, err = s.Apply(more)
	require.ErrorAs(t, err, &again)
	j, _ := s.Job("j1")
	require.EqualValues(t, 150, j.Units)
}

// The same job under the same ID is accepted once, however long ago that was; another one
// is not.
func TestSameIDOnce(t *testing.T) {
	s, at := NewState(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	spec := Spec{
		Name: "shot", Owner: "ann", Project: "bafy", Blend: "files/shot.blend", Frames: Frames{{First: 1, Last: 9, Step: 1}},
		Chunk: 3, Tier: Normal, Replicas: 1, Submitter: "pc", Needs: Requirements{Labels: []string{"fast"}},
	}
	submit := func(at time.Time, spec Spec, once *Once) error {
		_, err := s.Apply(Command{At: at, Submit: &Submit{Job: "j1", Spec: spec, Once: once}})
		return err
	}
	require.NoError(t, submit(at, spec, nil))
	_, err := s.Apply(Command{At: at, Cancel: &Cancel{Job: "j1", Reason: "cancelled by ann"}})
	require.NoError(t, err)
	for _, once := range []*Once{nil, {"ann", "k", "r"}} {
		var again *Repeated
		require.ErrorAs(t, submit(at.Add(1000*time.Hour), spec, once), &again)
		require.Equal(t, Repeated{"j1", 3}, *again)
	}
	for _, change := range []func(*Spec){
		func(s *Spec) { s.Owner = "bob" }, func(s *Spec) { s.Submitter = "mac" }, func(s *Spec) { s.Needs.Labels = nil }, func(s *Spec) { s.Chunk = 4 },
	} {
		other := spec
		change(&other)
		require.ErrorIs(t, submit(at, other, nil), ErrExists)
	}
	require.Len(t, s.Jobs(), 1)
	require.Equal(t, JobCancelled, s.Jobs()[0].State, "it is not begun again")
}
