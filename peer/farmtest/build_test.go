package farmtest_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/portable"
	"vizpeer/peer/render"
)

var root = authz.Principal{User: "root", Role: authz.Admin}

// offer has an admin put the folder of a Blender on m and offer it.
func offer(t *testing.T, m *farmtest.Member, says string, change ...func(*httpapi.NewOffer)) httpapi.Blender {
	t.Helper()
	manifest, err := json.Marshal(portable.Manifest{Version: 1, Program: "bin/blender", Executable: []string{"bin/blender"}, Links: map[string]string{"blender": "bin/blender"}})
	require.NoError(t, err)
	blob, err := m.Local().AddBlob(t.Context(), root, func(yield func(httpapi.ProjectFile, error) bool) {
		for _, f := range []struct{ path, text string }{{"bin/blender", says}, {"lib/big", strings.Repeat("library", 10_000)}, {portable.ManifestName, string(manifest)}} {
			if !yield(httpapi.ProjectFile{Path: f.path, Size: int64(len(f.text)), Body: strings.NewReader(f.text)}, nil) {
				return
			}
		}
	}, false)
	require.NoError(t, err)
	o := httpapi.NewOffer{Root: blob.CID, Name: "Blender", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}, OS: "linux", Arch: "amd64", Files: blob.Files, Size: blob.Size}
	for _, c := range change {
		c(&o)
	}
	b, err := m.Queue().Offer(t.Context(), root, o)
	require.NoError(t, err)
	_, err = m.Local().UnpinBlob(t.Context(), root, blob.CID, "")
	require.NoError(t, err)
	return b
}

func has(m *farmtest.Member, version string) bool {
	for _, b := range m.Local().Status(context.Background()).Capability.Builds {
		if b.Version.String() == version {
			return true
		}
	}
	return false
}

// A job that asks for a Blender which no machine has is rendered by machines that fetch
// it because an admin offers it, and by no others.
func TestOfferedBlender(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs symlinks")
	}
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 3, func(i int, can *lease.Capability) {
			switch i {
			case 0:
				can.Slots, can.OS = 0, "windows" // the admin's
			case 2:
				can.Builds, can.Backends, can.Slots = nil, nil, 0 // a machine without any
			case 3:
				can.OS = "windows"
			}
		})
		admin, worker, bare, other := f.Peers[0], f.Peers[1], f.Peers[2], f.Peers[3]
		var mode fs.FileMode
		worker.Blender.Begin = func(a render.Attempt) {
			if info, err := os.Stat(a.Build.Path); err == nil {
				mode = info.Mode().Perm()
			}
		}
		needs := func(s *httpapi.Submission) { s.Needs.Blender, s.Chunk = "4.2", 1 }
		id := f.Submit(admin, "1-6", needs)
		time.Sleep(time.Minute)
		require.Equal(t, lease.JobQueued, f.Job(id).State)

		b := offer(t, admin, "Blender 4.2.3")
		require.Regexp(t, `^it waits until worker\d or worker\d has fetched Blender 4.2.3, which the farm offers$`, f.Job(id).Reason)
		f.Await(id, lease.JobDone, time.Minute)
		require.NotEmpty(t, worker.Blender.Rendered())
		require.NotEmpty(t, bare.Blender.Rendered(), "it became a worker by it")
		require.Empty(t, other.Blender.Rendered())
		require.True(t, has(worker, "4.2.3"))
		require.False(t, has(other, "4.2.3"))
		require.Equal(t, fs.FileMode(0o555), mode)
		tasks, err := admin.Queue().Tasks(t.Context(), farmtest.Operator, id)
		require.NoError(t, err)
		for _, task := range tasks {
			require.Len(t, task.Attempts, 1, "none was refused")
		}

		all, err := admin.Queue().Blenders(t.Context(), root)
		require.NoError(t, err)
		require.Len(t, all, 3, "3.4.1 of two systems, and the one that is offered")
		require.Equal(t, b.Offer, all[0].Offer)
		require.Equal(t, 2, all[0].Count)
		require.ElementsMatch(t, []string{"worker1", "worker2"}, all[0].Machines)
		mine, err := admin.Queue().Blenders(t.Context(), farmtest.Operator)
		require.NoError(t, err)
		require.Equal(t, 2, mine[0].Count)
		require.Empty(t, mine[0].Machines, "others' machines are not named")

		// It is there after a restart, without being fetched anew, and whoever has it
		// keeps it.
		folder := filepath.Join(worker.DataDir(), "blenders", b.Offer.Root)
		require.DirExists(t, folder)
		pins := 0
		for r, err := range worker.Local().Roots(t.Context(), root) {
			require.NoError(t, err)
			for _, p := range r.Pins {
				if p.Holder == "blender:"+b.Offer.Root {
					pins++
				}
			}
		}
		require.Equal(t, 1, pins)

		worker.Stop()
		bare.Stop()
		worker.Start()
		f.Online(3)
		id = f.Submit(admin, "1", needs)
		f.Await(id, lease.JobDone, time.Minute)
		bare.Start()
		f.Online(4)

		// Only an admin may offer or withdraw.
		_, err = admin.Queue().Offer(t.Context(), farmtest.Operator, httpapi.NewOffer{Root: b.Offer.Root})
		require.ErrorIs(t, err, httpapi.ErrDenied)
		_, err = admin.Queue().Withdraw(t.Context(), farmtest.Operator, b.Offer.Root)
		require.ErrorIs(t, err, httpapi.ErrDenied)

		// Withdrawn, it is gone: from the ads first, then from the disks.
		_, err = admin.Queue().Withdraw(t.Context(), root, b.Offer.Root)
		require.NoError(t, err)
		_, err = admin.Queue().Withdraw(t.Context(), root, b.Offer.Root)
		require.ErrorIs(t, err, httpapi.ErrNotFound)
		f.Within(time.Minute, "it is removed", func() bool {
			// Of the machine that was restarted nobody knew that it was still there.
			_, err := os.Stat(folder)
			return os.IsNotExist(err) && !has(worker, "4.2.3") && !has(bare, "4.2.3")
		})
		id = f.Submit(admin, "1", needs)
		time.Sleep(time.Minute)
		require.Equal(t, lease.JobQueued, f.Job(id).State)
	})
}

// What is not what the admin said is removed again, and its machine goes on with its own.
func TestOfferedBlenderThatIsAnother(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs symlinks")
	}
	for name, c := range map[string]struct {
		says   string
		change func(*httpapi.NewOffer)
	}{
		"another version":     {"Blender 4.2.4", func(*httpapi.NewOffer) {}},
		"another name":        {"Suite 4.2.3", func(*httpapi.NewOffer) {}},
		"no Blender":          {"hello", func(*httpapi.NewOffer) {}},
		"more than was said":  {"Blender 4.2.3", func(o *httpapi.NewOffer) { o.Size-- }},
		"a root of no folder": {"Blender 4.2.3", func(o *httpapi.NewOffer) { o.Root = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy" }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := farmtest.New(t, 1)
				worker := f.Peers[1]
				offer(t, f.Peers[0], c.says, c.change)
				id := f.Submit(f.Peers[0], "1", func(s *httpapi.Submission) { s.Needs.Blender = "4.2" })
				time.Sleep(5 * time.Minute)
				require.Equal(t, lease.JobQueued, f.Job(id).State)
				require.Empty(t, farmtest.Files(t, filepath.Join(worker.DataDir(), "blenders")))
				require.True(t, has(worker, "3.4.1"))
				id = f.Submit(f.Peers[0], "1")
				f.Await(id, lease.JobDone, time.Minute)
			})
		})
	}
}

// A machine whose owner wants no Blenders from the farm takes none.
func TestOfferedBlenderIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1)
		worker := f.Peers[1]
		worker.Stop()
		worker.TakeNoBlenders()
		worker.Start()
		f.Peers[0].Stop()
		f.Peers[0].TakeNoBlenders()
		f.Peers[0].Start()
		f.Within(time.Minute, "the founder leads", f.Peers[0].Leads)
		f.Online(2)
		offer(t, f.Peers[0], "Blender 4.2.3")
		id := f.Submit(f.Peers[0], "1", func(s *httpapi.Submission) { s.Needs.Blender = "4.2" })
		time.Sleep(time.Minute)
		require.Equal(t, lease.JobQueued, f.Job(id).State)
		require.Empty(t, farmtest.Files(t, filepath.Join(worker.DataDir(), "blenders")))
	})
}
