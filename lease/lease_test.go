package lease_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

func TestParseFrames(t *testing.T) {
	for text, want := range map[string][]int32{
		"1":                 {1},
		"1-4":               {1, 2, 3, 4},
		"1-9x4":             {1, 5, 9},
		"5,1-3,2":           {1, 2, 3, 5},
		"-3--1":             {-3, -2, -1},
		"-1-1":              {-1, 0, 1},
		" 1-2 , 4 ":         {1, 2, 4},
		"1048574":           {lease.MaxFrame},
		"-1048574--1048574": {lease.MinFrame},
	} {
		frames, err := lease.ParseFrames(text)
		require.NoError(t, err, text)
		require.Equal(t, want, frames.Expand(), text)
		again, err := lease.ParseFrames(frames.String())
		require.NoError(t, err, text)
		require.Equal(t, frames, again, text)
	}
	for text, want := range map[string]string{
		"":                     "empty",
		"  ":                   "empty",
		"10-1":                 "inverted: write 1-10",
		"1-9x99999999":         "step of 99999999",
		"1-10x0":               "step of 0",
		"1-":                   `"1-" is not a frame`,
		"a":                    `"a" is not a frame`,
		"1,,2":                 "is not a frame",
		"1-9999999":            "beyond Blender's limits",
		"99999999999999999999": "is not a frame",
		strings.Repeat("1,", lease.MaxRanges+1) + "1":   "more than the 10000",
		strings.Repeat("-1048574-1048574,", 9000) + "1": "more frames than Blender has",
	} {
		_, err := lease.ParseFrames(text)
		require.ErrorContains(t, err, want)
	}
}

func FuzzParseFrames(f *testing.F) {
	for _, s := range []string{"1-40,50,60-80x2", "-5--1", "1-10x3", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		frames, err := lease.ParseFrames(s)
		if err != nil {
			return
		}
		list := frames.Expand()
		for i := 1; i < len(list); i++ {
			if list[i-1] >= list[i] {
				t.Fatalf("%q: frames out of order", s)
			}
		}
		again, err := lease.ParseFrames(frames.String())
		if err != nil || again.String() != frames.String() {
			t.Fatalf("%q does not survive its own text: %v", s, err)
		}
	})
}

func TestMatch(t *testing.T) {
	box := lease.Capability{
		OS: "linux", Slots: 1, RAM: 16 << 30, FreeDisk: 100 << 30, Labels: []string{"calibrated"}, Backends: []lease.Backend{lease.CPU, lease.CUDA},
		GPUs:   []lease.GPU{{Vendor: lease.NVIDIA, Model: "RTX 3060", VRAM: 12 << 30, Backends: []lease.Backend{lease.CUDA}}},
		Builds: []lease.Build{{Name: "Blender", Version: v(4, 3, 2)}, {Name: "Blender", Version: v(3, 4, 1), Engines: []string{"CYCLES"}}},
	}
	for name, c := range map[string]struct {
		needs lease.Requirements
		lacks []string
	}{
		"nothing":          {lease.Requirements{}, nil},
		"all it has":       {lease.Requirements{Backend: lease.CUDA, RequireGPU: true, GPUVendor: lease.NVIDIA, MinVRAM: 12 << 30, MinRAM: 16 << 30, OS: "linux", Labels: []string{"calibrated"}, Blender: "3.4", FileVersion: v(2, 80, 0), Engine: "CYCLES", Disk: 1 << 30}, nil},
		"backend":          {lease.Requirements{Backend: lease.OptiX}, []string{"needs backend OPTIX, has CPU, CUDA"}},
		"vendor":           {lease.Requirements{GPUVendor: lease.AMD}, []string{"needs a GPU of AMD, has RTX 3060 with 12.0 GiB"}},
		"VRAM":             {lease.Requirements{MinVRAM: 24 << 30}, []string{"needs a GPU with 24.0 GiB VRAM, has RTX 3060 with 12.0 GiB"}},
		"RAM and a label":  {lease.Requirements{MinRAM: 32 << 30, Labels: []string{"lic:x"}}, []string{"needs 32.0 GiB RAM, has 16.0 GiB", `needs label "lic:x", has "calibrated"`}},
		"system":           {lease.Requirements{OS: "darwin"}, []string{"needs macOS, has Linux"}},
		"newer file":       {lease.Requirements{FileVersion: v(4, 4, 0), Blender: lease.AnyBlender}, []string{"needs Blender 4.4 or newer (the file was saved with it), has Blender 4.3.2, Blender 3.4.1"}},
		"file's release":   {lease.Requirements{FileVersion: v(3, 4, 5)}, nil},
		"older file":       {lease.Requirements{FileVersion: v(3, 3, 0)}, []string{"needs Blender 3.3 (the file was saved with it), has Blender 4.3.2, Blender 3.4.1: install Blender 3.3 on a machine, or submit with --blender-version any to let a newer one render it"}},
		"older file, any":  {lease.Requirements{FileVersion: v(3, 3, 0), Blender: lease.AnyBlender}, nil},
		"old for the file": {lease.Requirements{FileVersion: v(4, 2, 0), Blender: "3.4"}, []string{"needs Blender 3.4 and Blender 4.2 or newer (the file was saved with it), has Blender 4.3.2, Blender 3.4.1"}},
		"exact version":    {lease.Requirements{Blender: "3.4.2"}, []string{"needs Blender 3.4.2, has Blender 4.3.2, Blender 3.4.1"}},
		"engine":           {lease.Requirements{Engine: "LUX", Blender: "3.4"}, []string{"needs Blender 3.4 and the engine LUX, has Blender 4.3.2, Blender 3.4.1 (CYCLES)"}},
		"disk":             {lease.Requirements{Disk: 200 << 30}, []string{"needs 200.0 GiB of free disk, has 100.0 GiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.needs.Validate())
			var got []string
			for _, l := range c.needs.Match(box) {
				got = append(got, l.String())
			}
			require.Equal(t, c.lacks, got)
		})
	}
	require.NotEmpty(t, lease.Requirements{}.Match(lease.Capability{}), "a machine that does not render fits nothing")

	// Only what no Blender of the machine has is named.
	debian := lease.Build{Name: "Blender", Version: v(3, 4, 1), Engines: []string{"CYCLES", "BLENDER_EEVEE"}}
	official := lease.Build{Name: "Blender", Version: v(4, 2, 0), Engines: []string{"CYCLES", "BLENDER_EEVEE_NEXT"}, OIDN: true}
	const next = ": switch denoising off in the scene, or install a Blender from blender.org on a machine"
	for name, c := range map[string]struct {
		needs  lease.Requirements
		builds []lease.Build
		lack   string
	}{
		"an engine":             {lease.Requirements{Engine: "FOO", FileVersion: v(3, 4, 0)}, []lease.Build{debian}, "needs the engine FOO, has Blender 3.4.1 (CYCLES, BLENDER_EEVEE)"},
		"a version":             {lease.Requirements{Engine: "CYCLES", FileVersion: v(3, 4, 0), Blender: "4.2"}, []lease.Build{debian}, "needs Blender 4.2, has Blender 3.4.1"},
		"a denoiser":            {lease.Requirements{Engine: "CYCLES", FileVersion: v(3, 4, 0), Denoise: true}, []lease.Build{debian}, "needs a Blender with OpenImageDenoise (the scene denoises), has Blender 3.4.1 without it" + next},
		"engine and denoiser":   {lease.Requirements{Engine: "FOO", Denoise: true}, []lease.Build{debian}, "needs the engine FOO and a Blender with OpenImageDenoise (the scene denoises), has Blender 3.4.1 (CYCLES, BLENDER_EEVEE) without it" + next},
		"another Blender's":     {lease.Requirements{Blender: "3.4", Denoise: true}, []lease.Build{debian, official}, "needs Blender 3.4 and a Blender with OpenImageDenoise (the scene denoises), has Blender 3.4.1 without it, Blender 4.2.0" + next},
		"no Blender":            {lease.Requirements{Engine: "CYCLES", Denoise: true}, nil, "needs the engine CYCLES and a Blender with OpenImageDenoise (the scene denoises), has none"},
		"no Blender, any would": {lease.Requirements{}, nil, "needs a Blender, has none"},
	} {
		lacks := c.needs.Match(lease.Capability{Slots: 1, Builds: c.builds})
		require.Len(t, lacks, 1, name)
		require.Equal(t, c.lack, lacks[0].String(), name)
	}
	both := lease.Capability{Slots: 1, Builds: []lease.Build{debian, official}}
	b, _ := lease.Requirements{}.Build(both)
	require.Equal(t, debian, b)
	b, _ = lease.Requirements{Denoise: true}.Build(both)
	require.Equal(t, official, b)

	b, ok := lease.Requirements{FileVersion: v(3, 4, 5)}.Build(box)
	require.True(t, ok)
	require.Equal(t, v(3, 4, 1), b.Version, "the release that saved the file")
	b, _ = lease.Requirements{FileVersion: v(3, 3, 0), Blender: lease.AnyBlender}.Build(box)
	require.Equal(t, v(3, 4, 1), b.Version, "the oldest release that reads the file")
	b, _ = lease.Requirements{FileVersion: v(3, 5, 0), Blender: lease.AnyBlender}.Build(box)
	require.Equal(t, v(4, 3, 2), b.Version)
	_, ok = lease.Requirements{FileVersion: v(3, 5, 0)}.Build(box)
	require.False(t, ok)
}

func TestBelieved(t *testing.T) {
	said := lease.Capability{Slots: 1, Labels: []string{"night", "lic:keyshot", "calibrated", "fast"}}
	require.Equal(t, []string{"fast", "night"}, said.Believed(nil).Labels)
	can := said.Believed([]string{"fast", "lic:nuke"})
	require.Equal(t, []string{"fast", "lic:nuke", "night"}, can.Labels)
	require.Equal(t, 1, can.Slots)
	require.Equal(t, []string{"night", "lic:keyshot", "calibrated", "fast"}, said.Labels, "what it said stays")
	require.Empty(t, lease.Capability{}.Believed(nil).Labels)
}

func v(major, minor, patch int) lease.Version {
	return lease.Version{Major: major, Minor: minor, Patch: patch}
}

func TestRequirementsValidate(t *testing.T) {
	for want, r := range map[string]lease.Requirements{
		"unknown backend":    {Backend: "VULKAN"},
		"unknown GPU vendor": {GPUVendor: "MATROX"},
		"negative":           {MinRAM: -1},
		"cannot be combined": {Backend: lease.CPU, RequireGPU: true},
		"not a Blender":      {Blender: "new"},
		"unknown operating":  {OS: "macos"},
		"more than the 64":   {Labels: make([]string, 65)},
	} {
		require.ErrorContains(t, r.Validate(), want)
	}
}

func TestVersion(t *testing.T) {
	for _, bad := range []string{"", "3", "3.4.1.2", "a.b", "-1.2", "3.99999"} {
		_, err := lease.ParseVersion(bad)
		require.Error(t, err, bad)
	}
	lts, err := lease.ParseVersion("4.2.1 LTS")
	require.NoError(t, err)
	require.Equal(t, v(4, 2, 1), lts)
	require.True(t, lts.Matches("4.2"))
	require.True(t, lts.Matches("4.2.1"))
	require.False(t, lts.Matches("4.2.2"))
	require.False(t, lts.Matches("nonsense"))
}

// farm is a State with helpers for tests that tell a story.
type farm struct {
	*lease.State
	t     helping
	n     int
	later time.Duration // that the clock was put on
}

// helping is what tests and properties have in common.
type helping interface {
	require.TestingT
	Helper()
}

func newFarm(t helping) *farm { return &farm{State: lease.NewState(), t: t} }

func (f *farm) do(c lease.Command) []lease.Event {
	f.t.Helper()
	events, err := f.try(c)
	require.NoError(f.t, err)
	return events
}

func (f *farm) try(c lease.Command) ([]lease.Event, error) {
	f.n++
	c.At = f.now()
	return f.Apply(c)
}

func (f *farm) now() time.Time { return time.Unix(int64(f.n), 0).Add(f.later) }

func (f *farm) submit(id lease.JobID, frames string, change ...func(*lease.Spec)) *lease.Job {
	f.t.Helper()
	list, err := lease.ParseFrames(frames)
	require.NoError(f.t, err)
	s := spec(list)
	for _, c := range change {
		c(&s)
	}
	f.do(lease.Command{Submit: &lease.Submit{Job: id, Spec: s}})
	j, _ := f.Job(id)
	return j
}

func (f *farm) grant(j lease.JobID, task int32, p string) lease.Report {
	f.t.Helper()
	r := lease.Report{Lease: lease.ID(fmt.Sprint("l", f.n)), Task: lease.TaskID{Job: j, Index: task}, Peer: authz.PeerID("peer-" + p)}
	f.do(lease.Command{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer}})
	return r
}

func results(frames ...int32) []lease.Result {
	var out []lease.Result
	for _, f := range frames {
		out = append(out, lease.Result{Frame: f, CID: fmt.Sprint("cid", f), Name: fmt.Sprintf("%04d.png", f), Size: 10})
	}
	return out
}

func TestSubmitLimits(t *testing.T) {
	f := newFarm(t)
	_, err := f.try(lease.Command{Submit: &lease.Submit{Job: "j", Spec: spec(lease.Frames{{First: 1, Last: 200_002, Step: 1}})}})
	require.ErrorIs(t, err, lease.ErrLimit)
	require.ErrorContains(t, err, "100001 tasks, more than the 100000")
	_, err = f.try(lease.Command{Submit: &lease.Submit{Job: "j", Spec: spec(lease.Frames{{First: 2, Last: 1, Step: 1}})}})
	require.ErrorIs(t, err, lease.ErrInvalid)
	j := f.submit("j", "1-200000")
	require.Len(t, j.Tasks, 100_000)
	_, err = f.try(lease.Command{Submit: &lease.Submit{Job: "j", Spec: spec(lease.Frames{{First: 1, Last: 1, Step: 1}})}})
	require.ErrorIs(t, err, lease.ErrExists)
	for i := range lease.MaxOpenJobs - 1 {
		f.submit(lease.JobID(fmt.Sprint("j", i)), "1")
	}
	_, err = f.try(lease.Command{Submit: &lease.Submit{Job: "more", Spec: spec(lease.Frames{{First: 1, Last: 1, Step: 1}})}})
	require.ErrorIs(t, err, lease.ErrLimit)
	f.submit("other", "1", func(s *lease.Spec) { s.Owner = "bob" })
	_, err = f.try(lease.Command{})
	require.ErrorIs(t, err, lease.ErrInvalid)
}

// The limits that a command carries count, for the person whose job it is.
func TestLimits(t *testing.T) {
	f := newFarm(t)
	limits := lease.Limits{Tasks: 4, OpenJobs: 2, OpenTasks: 6}
	submit := func(id lease.JobID, owner string, frames int32) error {
		s := spec(lease.Frames{{First: 1, Last: frames, Step: 1}})
		s.Owner, s.Chunk = owner, 1
		_, err := f.try(lease.Command{Submit: &lease.Submit{Job: id, Spec: s, Limits: limits}})
		return err
	}
	require.ErrorIs(t, submit("j", "ann", 5), lease.ErrLimit)
	require.ErrorContains(t, submit("j", "ann", 5), "5 tasks, more than the 4 allowed")
	require.NoError(t, submit("a", "ann", 4))
	err := submit("b", "ann", 3)
	require.ErrorIs(t, err, lease.ErrLimit)
	require.ErrorContains(t, err, "ann would have 7 tasks in jobs that have not ended, more than the 6 allowed")
	require.NoError(t, submit("b", "bob", 3), "another person")
	require.NoError(t, submit("c", "ann", 2))
	require.ErrorContains(t, submit("d", "ann", 1), "ann has 2 jobs that have not ended, the most allowed")
	retry := lease.Command{Retry: &lease.Retry{Job: "a", Limits: limits}}
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "a"}})
	require.NoError(t, submit("d", "ann", 3))
	f.refuse(lease.ErrLimit, retry)
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "d"}})
	f.do(retry)

	require.Equal(t, lease.Limits{Tasks: lease.MaxTasks, OpenJobs: lease.MaxOpenJobs, OpenTasks: lease.MaxOpenTasks}, lease.Limits{OpenJobs: -1}.OrDefault())
	limits = lease.Limits{}
	for i := range 10 {
		require.NoError(t, submit(lease.JobID(fmt.Sprint("e", i)), "eve", lease.MaxTasks))
	}
	require.ErrorContains(t, submit("e", "eve", 1), "eve would have 1000001 tasks")
}

// A job whose tasks the farm cuts has no more of them than its limit.
func TestLimitOfCuts(t *testing.T) {
	f := newFarm(t)
	s := spec(lease.Frames{{First: 1, Last: 100, Step: 1}})
	s.Chunk, s.Order = 0, lease.Linear
	f.do(lease.Command{Submit: &lease.Submit{Job: "j", Spec: s, Limits: lease.Limits{Tasks: 3}}})
	again, err := lease.Restore(bytes.NewReader(written(t, f.Freeze())))
	require.NoError(t, err)
	f.State = again
	j, _ := f.Job("j")
	for i := range 5 {
		task := lease.TaskID{Job: "j", Index: 0}
		_, _ = f.try(lease.Command{Grant: &lease.Grant{Lease: lease.ID(fmt.Sprint("l", i)), Task: task, Peer: "bob", Frames: 10}})
	}
	require.Len(t, j.Tasks, 3)
}

// A time that no snapshot could hold is refused, whatever the command.
func TestAbsurdTime(t *testing.T) {
	s := lease.NewState()
	for _, at := range []time.Time{time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)), time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))} {
		_, err := s.Apply(lease.Command{At: at, Submit: &lease.Submit{Job: "j", Spec: spec(lease.Frames{{First: 1, Last: 1, Step: 1}})}})
		require.ErrorIs(t, err, lease.ErrInvalid, at)
	}
}

func TestFrameIsDoneWhenEnoughMachinesHoldIt(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	r := f.grant("j", 0, "bob")
	f.do(lease.Command{Record: &lease.Record{Report: r, Frames: results(1), Machines: 3}})
	f.do(lease.Command{Complete: &lease.Complete{Report: r, Frames: results(2), Machines: 3}})
	require.Equal(t, lease.TaskRendered, j.Tasks[0].State)
	require.False(t, j.Frames[0].Done, "one holder of two")
	hold := func(frame int32, peer string, delivered bool) {
		f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: frame, CID: fmt.Sprint("cid", frame), Peer: authz.PeerID("peer-" + peer), Machines: 3, Delivered: delivered}})
	}
	hold(1, "bob", false)
	require.False(t, j.Frames[0].Done, "the same holder twice")
	hold(1, "ann", false)
	require.True(t, j.Frames[0].Done)
	require.Equal(t, lease.JobRunning, j.State)
	hold(2, "ann", false)
	require.Equal(t, lease.JobDone, j.State)
	require.True(t, j.Undelivered())
	_, err := f.try(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 1, CID: "other", Peer: "peer-cyd"}})
	require.ErrorIs(t, err, lease.ErrInvalid)
}

func TestOneMachineIsAFarm(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 0, "bob"), Frames: results(1, 2), Machines: 1}})
	require.Equal(t, lease.JobDone, j.State)
}

func TestThirdFailureFailsTheJob(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-6")
	other := f.grant("j", 2, "cyd")
	for i := range 3 {
		require.Equal(t, lease.JobRunning, j.State, "try %d", i)
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "bob"), Reason: "Blender crashed", Tail: strings.Repeat("é", 5000)}})
	}
	require.Equal(t, lease.JobFailed, j.State)
	require.Contains(t, j.Reason, "failed 3 times")
	require.LessOrEqual(t, len(j.Tail), 4<<10)
	require.Equal(t, lease.TaskFailed, j.Tasks[0].State)
	require.Equal(t, lease.TaskCancelled, j.Tasks[1].State)
	_, err := f.try(lease.Command{Complete: &lease.Complete{Report: other, Frames: results(5, 6)}})
	require.ErrorIs(t, err, lease.ErrEnded)
	_, err = f.try(lease.Command{Cancel: &lease.Cancel{Job: "j"}})
	require.ErrorIs(t, err, lease.ErrEnded)
}

func TestMachineFaultsDoNotFailTheTask(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	for range 3 {
		require.False(t, j.KeptOff("peer-bob"))
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "bob"), Reason: "disk full", Kind: lease.FailMachine}})
	}
	require.True(t, j.KeptOff("peer-bob"))
	require.Equal(t, lease.TaskQueued, j.Tasks[0].State)
	require.Zero(t, j.Tasks[0].Fails)
}

func TestLateResults(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2")
	first := f.grant("j", 0, "bob")
	f.do(lease.Command{Expire: &lease.Expire{Lease: first.Lease, Task: first.Task}})
	second := f.grant("j", 0, "cyd")
	_, err := f.try(lease.Command{Complete: &lease.Complete{Report: first, Frames: results(1, 2)}})
	require.ErrorIs(t, err, lease.ErrStale, "somebody else has the task")
	f.do(lease.Command{Record: &lease.Record{Report: first, Frames: results(1)}})
	require.Equal(t, []int32{2}, j.Remaining(&j.Tasks[0]), "a frame that nobody has given is taken all the same")
	f.do(lease.Command{Release: &lease.Release{Report: second, Reason: "stopped"}})
	f.do(lease.Command{Complete: &lease.Complete{Report: first, Frames: results(1, 2), Machines: 1}})
	require.Equal(t, lease.JobDone, j.State, "a late result of an open task is taken")
	_, err = f.try(lease.Command{Complete: &lease.Complete{Report: second, Frames: results(1, 2)}})
	require.True(t, errors.Is(err, lease.ErrEnded))
}

func TestLostMachineTakesItsFramesWithIt(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-4")
	a := f.grant("j", 0, "bob")
	f.do(lease.Command{Complete: &lease.Complete{Report: a, Frames: results(1, 2), Machines: 3}})
	f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: 1, CID: "cid1", Peer: "peer-ann", Machines: 3}})
	b := f.grant("j", 1, "bob")
	f.do(lease.Command{Record: &lease.Record{Report: b, Frames: results(3), Machines: 3}})
	f.do(lease.Command{Lose: &lease.Lose{Peer: "peer-bob", Machines: 2}})
	require.Equal(t, []int32{2}, j.Remaining(&j.Tasks[0]))
	require.Equal(t, []int32{3, 4}, j.Remaining(&j.Tasks[1]))
	require.Equal(t, lease.TaskQueued, j.Tasks[0].State)
	require.Equal(t, lease.TaskQueued, j.Tasks[1].State, "its lease went with it")
	f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", 0, "cyd"), Frames: results(2), Machines: 1}})
	require.Equal(t, lease.TaskDone, j.Tasks[0].State)
}

func TestBadResultsAreRefused(t *testing.T) {
	f := newFarm(t)
	f.submit("j", "1-2")
	r := f.grant("j", 0, "bob")
	for _, bad := range []lease.Result{
		{Frame: 3, CID: "c", Name: "a.png", Size: 1}, {Frame: 1, Name: "a.png", Size: 1}, {Frame: 1, CID: "c", Name: "a.png"},
		{Frame: 1, CID: "c", Name: "../a.png", Size: 1}, {Frame: 1, CID: "c", Name: "..", Size: 1}, {Frame: 1, CID: "c", Name: `a\b`, Size: 1},
		{Frame: 1, CID: "c", Name: "C:a.png", Size: 1}, {Frame: 1, CID: "c", Name: "", Size: 1},
		{Frame: 1, CID: "c", Name: "0001.png", Size: 1 << 40},
		{Frame: 1, CID: "c", Name: ".bashrc1", Size: 1}, {Frame: 1, CID: "c", Name: "0001.sh", Size: 1}, {Frame: 1, CID: "c", Name: "0002.png", Size: 1},
		{Frame: 1, CID: "c", Name: "0001.png", Size: 1, Extra: "e"}, {Frame: 1, CID: "c", Name: "0001.png", Size: 1, ExtraFiles: 1, ExtraSize: 1},
		{Frame: 1, CID: "c", Name: "0001.png", Size: 1, Extra: "e", ExtraFiles: lease.MaxExtra + 1, ExtraSize: 1},
		{Frame: 1, CID: "c", Name: "0001.png", Size: 1, Extra: "e", ExtraFiles: 1, ExtraSize: lease.MaxFrameSize + 1},
		{Frame: 1, CID: "c", Name: "0001.png", Size: 1, Extra: "e", ExtraFiles: 1, ExtraSize: -1},
	} {
		_, err := f.try(lease.Command{Record: &lease.Record{Report: r, Frames: []lease.Result{bad}}})
		require.ErrorIs(t, err, lease.ErrInvalid, bad)
	}
	forged := r
	forged.Peer = "peer-eve"
	_, err := f.try(lease.Command{Complete: &lease.Complete{Report: forged, Frames: results(1, 2)}})
	require.ErrorIs(t, err, lease.ErrStale)
}

func TestForget(t *testing.T) {
	f := newFarm(t)
	f.submit("old", "1")
	f.submit("open", "1")
	f.do(lease.Command{Cancel: &lease.Cancel{Job: "old"}})
	f.do(lease.Command{Forget: &lease.Forget{Before: time.Unix(3, 0)}})
	require.Len(t, f.Jobs(), 2, "it has only just ended")
	f.do(lease.Command{Forget: &lease.Forget{Before: time.Unix(4, 0)}})
	require.Len(t, f.Jobs(), 1)
	_, ok := f.Job("old")
	require.False(t, ok)
}

func TestRestoreRefusesWhatCannotBe(t *testing.T) {
	for _, bad := range []string{
		"", "{}", `{"version": 4}`, `{"version": 2} 1`, `{"version": 2, "jobs": 1}`, `{"version": 2, "jobs": 1} null`, `{"version": 2, "jobs": 1} {"id": "j"}`,
		`{"version":2,"jobs":1}{"id":"j","spec":{"name":"a","owner":"a","project":"p","blend":"b","frames":[{"first":1,"last":2,"step":0}],"chunk":1,"tier":"normal","replicas":1,"submitter":"s"}}`,
		`{"version":2,"jobs":1}{"id":"j","spec":{"name":"a","owner":"a","project":"p","blend":"b","frames":[{"first":1,"last":2,"step":1}],"chunk":1,"tier":"normal","replicas":1,"submitter":"s"},"tasks":[]}`,
	} {
		_, err := lease.Restore(strings.NewReader(bad))
		require.Error(t, err, bad)
	}
}

// One machine that fails everything must not fail a job that others could do.
func TestOneMachineCannotFailAJob(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1")
	for range 3 {
		f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "eve"), Reason: "no", Others: 1}})
	}
	require.Equal(t, lease.JobRunning, j.State)
	require.True(t, j.KeptOff("peer-eve"))
	f.do(lease.Command{Fail: &lease.Fail{Report: f.grant("j", 0, "bob"), Reason: "no", Others: 1}})
	require.Equal(t, lease.JobFailed, j.State, "two machines agree")
}

// A frame that was written and then lost is to be written again.
func TestDeliveredThenLost(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-2", func(s *lease.Spec) { s.Chunk = 1 })
	hold := func(frame int32, cid, peer string, delivered bool) {
		f.do(lease.Command{Hold: &lease.Hold{Job: "j", Frame: frame, CID: cid, Peer: authz.PeerID(peer), Delivered: delivered, Machines: 3}})
	}
	first := lease.Report{Lease: "first", Task: lease.TaskID{Job: "j"}, Peer: "ann"}
	f.do(lease.Command{Grant: &lease.Grant{Lease: first.Lease, Task: first.Task, Peer: first.Peer}})
	f.do(lease.Command{Record: &lease.Record{Report: first, Frames: results(1), Machines: 3}})
	hold(1, "cid1", "ann", true)
	f.do(lease.Command{Lose: &lease.Lose{Peer: "ann", Machines: 2}})
	for i := range int32(2) {
		f.do(lease.Command{Complete: &lease.Complete{Report: f.grant("j", i, "bob"), Frames: results(i + 1), Machines: 3}})
		hold(i+1, results(i + 1)[0].CID, "cyd", false)
	}
	hold(1, "cid1", "ann", true)
	require.Equal(t, lease.JobDone, j.State)
	require.True(t, j.Undelivered(), "frame 2 is not in the output folder")
}
