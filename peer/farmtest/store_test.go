package farmtest

import (
	"context"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

var (
	owner = authz.Principal{User: "admin", Role: authz.Admin}
	other = authz.Principal{User: "other", Role: authz.Operator}
)

// files are an upload; a text that begins with "receipt " stands for one.
func files(list ...string) iter.Seq2[httpapi.ProjectFile, error] {
	return func(yield func(httpapi.ProjectFile, error) bool) {
		for i := 0; i < len(list); i += 2 {
			f := httpapi.ProjectFile{Path: list[i], Size: int64(len(list[i+1])), Body: strings.NewReader(list[i+1])}
			if receipt, ok := strings.CutPrefix(list[i+1], "receipt "); ok {
				f = httpapi.ProjectFile{Path: list[i], Receipt: receipt, Body: strings.NewReader("")}
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

const manifest = `{"version": 1, "blend": "files/shot.blend", "origin": "linux", "complete": true, "scene": {"frame_start": 1, "frame_end": 1}}`

// A file that was sent is not sent again by who sent it; nobody else gets at it by
// its name.
func TestReceiptsStandForFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 0)
		m := f.Peers[0].Local()
		blend, wood := "BLENDER-v304", strings.Repeat("wood", 100_000)
		first, err := m.ImportProject(t.Context(), Operator, files("vizpeer.json", manifest, "files/shot.blend", blend, "files/wood.png", wood))
		require.NoError(t, err)
		require.Len(t, first.Receipts, 3)
		again := files("vizpeer.json", manifest, "files/wood.png", "receipt "+first.Receipts[2], "files/shot.blend", blend)
		second, err := m.ImportProject(t.Context(), Operator, again)
		require.NoError(t, err)
		require.Equal(t, first.Project, second.Project)
		require.Equal(t, first.Size, second.Size)
		require.Zero(t, second.NewBytes)

		// Neither another's receipt nor a bare CID is good, and both look the same.
		var lacking *httpapi.Lacking
		for who, receipt := range map[authz.Principal]string{
			other: first.Receipts[2], owner: first.Receipts[2], Operator: first.Project,
		} {
			_, err = m.ImportProject(t.Context(), who, files("vizpeer.json", manifest, "files/wood.png", "receipt "+receipt, "files/shot.blend", blend))
			require.ErrorAs(t, err, &lacking, who.User)
			require.Equal(t, []string{"files/wood.png"}, lacking.Paths)
		}

		// What was let go must be sent, however good the receipt.
		blob, err := m.AddBlob(t.Context(), Operator, files("moss.png", "moss"), true)
		require.NoError(t, err)
		again = files("moss.png", "receipt "+blob.Receipts[0])
		_, err = m.AddBlob(t.Context(), Operator, again, true)
		require.NoError(t, err)
		_, err = m.UnpinBlob(t.Context(), Operator, blob.CID, "")
		require.NoError(t, err)
		_, err = m.CollectBlobs(t.Context(), true)
		require.NoError(t, err)
		root, err := m.RootOf(t.Context(), owner, blob.CID)
		require.NoError(t, err)
		require.True(t, root.Whole, "it was used just now")
		<-time.After(3 * time.Minute)
		freed, err := m.CollectBlobs(t.Context(), true)
		require.NoError(t, err)
		require.Positive(t, freed.Bytes)
		_, err = m.AddBlob(t.Context(), Operator, again, true)
		require.ErrorAs(t, err, &lacking)
	})
}

// What a person keeps is for that person and the admin.
func TestContentHasItsPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		m := f.Peers[1].Local()
		blob, err := m.AddBlob(t.Context(), Operator, files("wood.png", "wood", "deep/stone.png", "stone"), false)
		require.NoError(t, err)
		roots := func(p authz.Principal) (n int) {
			for _, err := range m.Roots(t.Context(), p) {
				require.NoError(t, err)
				n++
			}
			return n
		}
		require.Equal(t, 1, roots(Operator))
		require.Equal(t, 1, roots(owner))
		require.Equal(t, 0, roots(other))
		for _, try := range []func() error{
			func() error { _, err := m.RootOf(t.Context(), other, blob.CID); return err },
			func() error { _, err := m.FetchBlob(t.Context(), other, blob.CID, nil); return err },
			func() error { _, err := m.PinBlob(t.Context(), other, blob.CID); return err },
			func() error { _, err := m.UnpinBlob(t.Context(), other, blob.CID, Operator.User); return err },
			func() error { _, err := m.VerifyBlobs(t.Context(), other, blob.CID, nil); return err },
			func() error { _, _, err := m.OpenBlob(t.Context(), other, blob.CID); return err },
			func() error {
				for _, err := range m.Files(t.Context(), other, blob.CID) {
					return err
				}
				return nil
			},
		} {
			require.ErrorIs(t, try(), httpapi.ErrNotFound)
		}
		var names []string
		for file, err := range m.Files(t.Context(), Operator, blob.CID) {
			require.NoError(t, err)
			names = append(names, file.Path)
		}
		require.Equal(t, []string{"deep/stone.png", "wood.png"}, names)
		root, err := m.UnpinBlob(t.Context(), Operator, blob.CID, "")
		require.NoError(t, err)
		require.Empty(t, root.Pins)
		_, err = m.RootOf(t.Context(), Operator, blob.CID)
		require.ErrorIs(t, err, httpapi.ErrNotFound, "what is only cached is the admin's to see")
		_, err = m.RootOf(t.Context(), owner, blob.CID)
		require.NoError(t, err)
	})
}

// What rots on a disk is found, dropped and fetched again from who has it.
func TestDamageIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		founder, worker := f.Peers[0], f.Peers[1]
		id := f.Submit(founder, "1-2")
		f.Within(time.Minute, "the worker holds the project", func() bool { return f.Job(id).ProjectHolders == 2 })
		f.Await(id, lease.JobDone, time.Minute)
		worker.Stop()
		require.Positive(t, rot(t, filepath.Join(worker.cfg.DataDir, "store")))
		worker.Start()
		f.Online(2)
		v, err := worker.Local().VerifyBlobs(t.Context(), other, "", func(int64, int64) {})
		require.NoError(t, err)
		require.Positive(t, v.Dropped)
		require.Empty(t, slices.Concat(v.Repaired, v.Lacking), "others' content has no name")
		// What this machine may not ask for by itself, the farm asks it to keep again.
		f.Within(10*time.Minute, "everything is whole again", func() bool {
			for root, err := range worker.Local().Roots(t.Context(), owner) {
				require.NoError(t, err)
				if !root.Whole && len(root.Pins) > 0 {
					return false
				}
			}
			return true
		})
		v, err = worker.Local().VerifyBlobs(t.Context(), owner, "", func(int64, int64) {})
		require.NoError(t, err)
		require.Zero(t, v.Dropped)
	})
}

// Damage that a reader meets is mended without anybody's asking, and the farm does
// not count on what was lost. A frame that rots before it is written to its folder
// is fetched again and written.
func TestDamageMetByAReaderIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2, func(i int, can *lease.Capability) {
			if i != 2 {
				can.Slots = 0
			}
		})
		submitter, worker := f.Peers[1], f.Peers[2]
		worker.Blender.Extra = true
		dir := filepath.Join(t.TempDir(), "out")
		id := f.Submit(submitter, "1-4", func(s *httpapi.Submission) { s.Output = dir })
		require.NoError(t, os.Remove(dir))
		require.NoError(t, os.WriteFile(dir, nil, 0o600)) // nothing can be written there yet
		j := f.Await(id, lease.JobDone, time.Minute)
		f.Within(time.Minute, "all three hold it", func() bool { return f.Job(id).Frames[0].Holders == 3 })
		for _, m := range []*Member{submitter, worker} {
			spoil(t, m, "frame 1 of")
			spoil(t, m, "beside frame 2")
		}
		frame := j.Frames[0]
		_, _, err := worker.Local().Open(t.Context(), frame.CID, lease.FrameOf(id, 1), 0)
		require.ErrorIs(t, err, blobs.ErrCorrupt)
		require.False(t, has(t, worker, frame.CID))
		f.Within(time.Minute, "the farm knows", func() bool { return f.Job(id).Frames[0].Holders == 2 })

		// Its own folder is the submitter's reader.
		require.NoError(t, os.Remove(dir))
		f.Within(time.Minute, "all frames are written", func() bool {
			j := f.Job(id)
			return !slices.ContainsFunc(j.Frames, func(f httpapi.Frame) bool { return !f.Delivered })
		})
		require.Len(t, Files(t, dir), 2*4)
		beside, err := os.ReadFile(filepath.Join(dir, ExtraName(2)))
		require.NoError(t, err)
		require.Equal(t, "beside frame 2", string(beside))
		require.True(t, has(t, submitter, frame.CID))
	})
}

// spoil damages the first block in m's store that holds text, while m runs.
func spoil(t *testing.T, m *Member, text string) {
	packs, err := filepath.Glob(filepath.Join(m.cfg.DataDir, "store", "packs", "*"))
	require.NoError(t, err)
	for _, path := range packs {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		if at := strings.Index(string(data), text); at >= 0 {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("rot"), int64(at))
			require.NoError(t, err)
			require.NoError(t, f.Close())
			return
		}
	}
	require.Fail(t, "nothing to spoil", text)
}

// rot flips a byte in each page of the blocks below dir, and answers in how many
// files.
func rot(t *testing.T, dir string) (n int) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(filepath.Dir(path), "packs") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := 2048; i < len(data); i += 4096 {
			data[i] ^= 1
		}
		n++
		return os.WriteFile(path, data, 0o600)
	}))
	return n
}

// A store that is full of what is kept says so, and says when there is room again.
func TestFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		worker := f.Peers[1]
		worker.Stop()
		worker.cfg.Quota = 64 << 20
		worker.Start()
		f.Online(2)
		full := func() string {
			peers, err := f.leader().Queue().Peers(t.Context(), owner)
			require.NoError(t, err)
			for _, p := range peers {
				if p.ID == worker.ID {
					return p.Full
				}
			}
			return "unknown"
		}
		require.Empty(t, full())
		random := make([]byte, 36<<20)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
		blob, err := worker.Local().AddBlob(t.Context(), Operator, files("a", string(random)), true)
		require.NoError(t, err)
		f.Within(2*time.Hour, "the farm knows that it is full", func() bool { return strings.HasPrefix(full(), "its store is full: ") })
		require.Equal(t, full(), worker.Local().Status(context.Background()).Full)
		// What comes now is the founder's to render.
		f.Await(f.Submit(f.Peers[0], "1-4"), lease.JobDone, time.Minute)
		require.Empty(t, worker.Blender.Rendered())
		_, err = worker.Local().UnpinBlob(t.Context(), Operator, blob.CID, "")
		require.NoError(t, err)
		f.Within(time.Minute, "it takes work again", func() bool { return full() == "" })
	})
}

// Who knows the name of another's project cannot have it rendered: it looks like
// one that is not here.
func TestProjectsAreTheirUploaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1)
		m := f.Peers[1]
		s := httpapi.Submission{Project: f.Upload(m, 1, 1000), Frames: "1"}
		absent := httpapi.Submission{Project: strings.Replace(s.Project, s.Project[20:24], "aaaa", 1), Frames: "1"}
		_, _, err := m.Local().Prepare(t.Context(), other, s)
		require.ErrorIs(t, err, httpapi.ErrInvalid)
		_, _, none := m.Local().Prepare(t.Context(), other, absent)
		require.Equal(t, strings.ReplaceAll(err.Error(), s.Project, absent.Project), none.Error())
		for _, p := range []authz.Principal{Operator, owner} {
			_, _, err = m.Local().Prepare(t.Context(), p, s)
			require.NoError(t, err)
		}
		_, err = m.Local().ImportProject(t.Context(), other, Project(1, 1000))
		require.NoError(t, err)
		_, _, err = m.Local().Prepare(t.Context(), other, s)
		require.NoError(t, err, "whoever has the files may say so by sending them")
	})
}

// A machine whose store is gone, by a new disk or a hand that emptied it, says so by
// itself: what it held is copied again, and nobody counts on it meanwhile.
func TestReplacedStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 2, func(i int, can *lease.Capability) {
			if i != 2 {
				can.Slots = 0
			}
		})
		founder, submitter, worker := f.Peers[0], f.Peers[1], f.Peers[2]
		id := f.Submit(submitter, "1-4")
		j := f.Await(id, lease.JobDone, time.Minute)
		f.Within(time.Minute, "all three hold all", func() bool {
			return !slices.ContainsFunc(f.Job(id).Frames, func(f httpapi.Frame) bool { return f.Holders != 3 })
		})
		wipe := func(m *Member) {
			m.Stop()
			require.NoError(t, os.RemoveAll(filepath.Join(m.cfg.DataDir, "store")))
			m.Start()
		}
		worker.Stop() // it is away for a while: the founder alone can give anything
		wipe(submitter)
		f.Within(time.Minute, "the founder must stay", func() bool {
			reasons := founder.Local().Status(t.Context()).Parting.Reasons
			return slices.ContainsFunc(reasons, func(r lease.Reason) bool { return r.Kind == lease.ReasonOnlyCopy })
		})
		worker.Start()
		wipe(worker)
		f.Online(3)
		f.Within(10*time.Minute, "there are copies again", func() bool {
			for _, frame := range j.Frames {
				copies := 0
				for _, m := range f.Peers {
					if has(t, m, frame.CID) {
						copies++
					}
				}
				if copies < 2 {
					return false
				}
			}
			return true
		})
		f.Within(time.Minute, "and the farm knows", func() bool {
			return !slices.ContainsFunc(f.Job(id).Frames, func(f httpapi.Frame) bool { return f.Holders < 2 })
		})
	})
}

// What a machine has rendered and lost with its store is not offered when it is
// back: it is rendered again.
func TestReplacedStoreOffersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1, func(i int, can *lease.Capability) {
			if i != 1 {
				can.Slots = 0
			}
		})
		founder, worker := f.Peers[0], f.Peers[1]
		worker.Blender.PerFrame = 10 * time.Second
		begun, second := make(chan struct{}, 8), make(chan struct{}, 8)
		worker.Blender.Begin = func(render.Attempt) { begun <- struct{}{} }
		worker.Blender.Fail = func(frame int32) *render.Error {
			if frame == 2 {
				second <- struct{}{}
			}
			return nil
		}
		id := f.Submit(founder, "1-3", func(s *httpapi.Submission) { s.Chunk = 3 })
		<-begun
		founder.Crash()
		<-second // the first is here and nowhere else
		worker.Crash()
		require.NoError(t, os.RemoveAll(filepath.Join(worker.cfg.DataDir, "store")))
		founder.Start()
		f.Within(10*time.Second, "the founder leads again", founder.Leads)
		worker.Blender.PerFrame = time.Minute
		left, err := os.ReadFile(filepath.Join(worker.cfg.DataDir, "results", "journal"))
		require.NoError(t, err)
		require.Contains(t, string(left), `"frame":1`)
		worker.Start()
		f.Online(2)
		f.Within(40*time.Second, "there is nothing to offer", func() bool { return worker.Local().Status(t.Context()).Unkept == 0 })
		require.Empty(t, f.Job(id).Frames[0].CID)
		f.Await(id, lease.JobDone, 5*time.Minute)
		require.Equal(t, 2, worker.Blender.Rendered()[1])
	})
}

// What denoises goes where a Blender can, whatever is free elsewhere; where there is
// none it waits and says what to do.
func TestDenoisingGoesWhereItCan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(t, 1, func(i int, can *lease.Capability) { can.Builds[0].OIDN = i == 1 })
		p, err := f.Peers[0].Local().ImportProject(t.Context(), Operator, files("vizpeer.json", strings.Replace(manifest, `"frame_start"`, `"engine": "CYCLES", "denoises": true, "frame_start"`, 1), "files/shot.blend", "BLENDER-v304"))
		require.NoError(t, err)
		denoising := func(s *httpapi.Submission) { s.Project, s.Chunk = p.Project, 1 }
		j := f.Await(f.Submit(f.Peers[0], "1-4", denoising), lease.JobDone, time.Minute)
		require.True(t, j.Needs.Denoise)
		require.Empty(t, f.Peers[0].Blender.Rendered())
		require.Len(t, f.Peers[1].Blender.Rendered(), 4)

		f.Peers[1].Stop()
		f.Online(1)
		id := f.Submit(f.Peers[0], "1-4", denoising)
		f.Within(time.Minute, "it is known who is nearest", func() bool { return f.Job(id).Reason != "" })
		require.Equal(t, "it waits: no machine meets its requirements; the nearest is founder: needs a Blender with OpenImageDenoise (the scene denoises), "+
			"has Blender 3.4.1 without it: switch denoising off in the scene, or install a Blender from blender.org on a machine", f.Job(id).Reason)
		f.Await(f.Submit(f.Peers[0], "1-4", denoising, func(s *httpapi.Submission) { s.Settings.Engine = "BLENDER_EEVEE" }), lease.JobDone, time.Minute)
	})
}
