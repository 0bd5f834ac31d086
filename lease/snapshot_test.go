package lease_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// What a damaged or hostile snapshot says of a job is refused where a later command
// would trip over it.
func TestRestoreRefusesAJobThatCannotBe(t *testing.T) {
	f := newFarm(t)
	f.submit("j", "1-2", func(s *lease.Spec) { s.Replicas = 1 })
	f.do(lease.Command{Record: &lease.Record{Report: f.grant("j", 0, "bob"), Frames: results(1, 2), Machines: 1}})
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "j"}})
	good := string(written(t, f.Freeze()))
	_, err := lease.Restore(strings.NewReader(good))
	require.NoError(t, err)
	between := func(from, to string) string {
		_, rest, ok := strings.Cut(good, from)
		require.True(t, ok)
		part, _, ok := strings.Cut(rest, to)
		require.True(t, ok)
		return from + part
	}
	for why, bad := range map[string]string{
		"frames without an attempt": strings.Replace(good, between(`,"attempts":[`, `}],"frames"`), "", 1),
		"unknown state":             strings.Replace(good, `"state":"cancelled","tier"`, `"state":"gone","tier"`, 1),
	} {
		_, err := lease.Restore(strings.NewReader(bad))
		require.ErrorContains(t, err, why)
	}
}
