package probe

import (
	"encoding/json"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// TestRecordedMachines looks at machines of which it is written down what their tools and
// kernels say, after what their owners have published. In each archive of testdata/gpu a file "run COMMAND" is what a command
// prints, "fail COMMAND" what it prints before it exits with an error, "want" what is to
// be found, and all others are the machine's own. The numbers that tell cards apart
// are made up.
func TestRecordedMachines(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: other systems add what they see themselves")
	}
	archives, err := filepath.Glob("testdata/gpu/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, archives)
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			require.NoError(t, err)
			sys := &recorded{tools: map[string]string{}, fails: map[string]string{}, tree: fstest.MapFS{}}
			var want []struct {
				lease.GPU
				Bus string `json:"bus"`
			}
			for _, f := range a.Files {
				run, runs := strings.CutPrefix(f.Name, "run ")
				fail, fails := strings.CutPrefix(f.Name, "fail ")
				switch {
				case runs:
					sys.tools[run] = string(f.Data)
				case fails:
					sys.fails[fail] = string(f.Data)
				case f.Name == "want":
					require.NoError(t, json.Unmarshal(f.Data, &want))
				default:
					sys.tree[f.Name] = &fstest.MapFile{Data: f.Data}
				}
			}
			found := proberOf(t, sys).gpus(t.Context(), lease.Capability{})
			require.Len(t, found.list, len(want))
			for i, w := range want {
				require.Equal(t, card{w.GPU, w.Bus}, found.list[i])
			}
		})
	}
}
