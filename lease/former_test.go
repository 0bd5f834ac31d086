package lease_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/lease"
)

// record is for the release of a level: its logs and snapshots are kept for the code
// that comes after it.
var record = flag.String("record", "", "write what this code does into `folder`, such as testdata/level-3")

// recorded is a line of a log: what was proposed, and whether the queue refused it.
type recorded struct {
	Command lease.Command `json:"command"`
	Refused bool          `json:"refused,omitempty"`
}

// TestFormerLevels plays the logs that earlier versions wrote: coordinators of two
// versions must make the same of each of them, to the byte, or their queues differ.
func TestFormerLevels(t *testing.T) {
	if *record != "" {
		long := rapid.Custom(func(t *rapid.T) *model {
			m := newModel(1000)
			m.run(t, 800)
			return m
		})
		for n := range 6 {
			recordLog(t, *record, n, long.Example(n).log)
		}
	}
	logs, err := filepath.Glob("testdata/level-*/log-*.jsonl")
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	for _, name := range logs {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			s := lease.NewState()
			for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
				var r recorded
				require.NoError(t, json.Unmarshal(lines.Bytes(), &r))
				_, err := s.Apply(r.Command)
				require.Equal(t, r.Refused, err != nil, "%s: %v", lines.Text(), err)
			}
			want, err := os.ReadFile(name[:len(name)-len("log-0.jsonl")] + "snapshot-" + name[len(name)-len("0.jsonl"):])
			require.NoError(t, err)
			require.Equal(t, string(want), string(written(t, s.Freeze())), "the log led to another state than it did")
			back, err := lease.Restore(bytes.NewReader(want))
			require.NoError(t, err)
			require.Equal(t, string(want), string(written(t, back.Freeze())), "the snapshot is read as another state")
		})
	}
}

func recordLog(t *testing.T, dir string, n int, log []lease.Command) {
	require.NoError(t, os.MkdirAll(dir, 0o755))
	var text bytes.Buffer
	s := lease.NewState()
	for _, c := range log {
		_, err := s.Apply(c)
		require.NoError(t, json.NewEncoder(&text).Encode(recorded{c, err != nil}))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("log-%d.jsonl", n)), text.Bytes(), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("snapshot-%d.jsonl", n)), written(t, s.Freeze()), 0o644))
}
