package sched_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/authz"
	"vizpeer/coord/sched"
	"vizpeer/lease"
)

func submit(t require.TestingT, s *lease.State, id string, frames int32, change func(*lease.Spec)) {
	spec := lease.Spec{
		Name: id, Owner: "ann", Project: "bafy", Blend: "files/a.blend", Frames: lease.Frames{{First: 1, Last: frames, Step: 1}}, Chunk: 1,
		Tier: lease.Normal, Replicas: 1, Submitter: "ann",
	}
	change(&spec)
	_, err := s.Apply(lease.Command{At: time.Unix(1, 0), Submit: &lease.Submit{Job: lease.JobID(id), Spec: spec}})
	require.NoError(t, err)
}

func machine(peer string, free int, ram int64, gpus ...lease.GPU) sched.Machine {
	c := lease.Capability{Slots: free, RAM: ram << 30, Cores: 8, GPUs: gpus, FreeDisk: 1 << 40, Backends: []lease.Backend{lease.CPU},
		Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4}}}}
	return sched.Machine{Peer: authz.PeerID(peer), Can: c, Free: slices.Repeat([]lease.Device{lease.CPUDevice}, free)}
}

func gpu(vram int64) lease.GPU {
	return lease.GPU{Vendor: lease.NVIDIA, Model: "RTX", VRAM: vram << 30}
}

// place is a turn of a leader that knows of no task that is stuck.
func place(s *lease.State, machines []sched.Machine) []sched.Placement {
	return sched.Place(s.Waiting(time.Unix(1, 0), nil), machines, nil)
}

func text(placed []sched.Placement) (out []string) {
	for _, p := range placed {
		out = append(out, fmt.Sprintf("%s %s", p.Task, p.Peer))
	}
	return out
}

func TestPlace(t *testing.T) {
	same := func(*lease.Spec) {}
	wants := func(vram int64) func(*lease.Spec) {
		return func(s *lease.Spec) { s.Needs.MinVRAM = vram << 30 }
	}
	tier := func(tier lease.Tier) func(*lease.Spec) { return func(s *lease.Spec) { s.Tier = tier } }

	t.Run("higher tiers first, then the older", func(t *testing.T) {
		s := lease.NewState()
		submit(t, s, "old", 1, same)
		submit(t, s, "urgent", 1, tier(lease.Urgent))
		submit(t, s, "low", 1, tier(lease.Low))
		submit(t, s, "high", 1, tier(lease.High))
		require.Equal(t, []string{"urgent/0 a", "high/0 a", "old/0 a"}, text(place(s, []sched.Machine{machine("a", 3, 16)})))
	})
	t.Run("the smallest machine that fits", func(t *testing.T) {
		s := lease.NewState()
		submit(t, s, "plain", 1, same)
		submit(t, s, "large", 1, wants(20))
		submit(t, s, "small", 1, wants(8))
		machines := []sched.Machine{machine("big", 1, 64, gpu(24)), machine("mid", 1, 64, gpu(12)), machine("cpu", 1, 128)}
		require.Equal(t, []string{"plain/0 cpu", "large/0 big", "small/0 mid"}, text(place(s, machines)))
	})
	t.Run("nothing where nobody fits", func(t *testing.T) {
		s := lease.NewState()
		submit(t, s, "large", 1, wants(48))
		require.Empty(t, place(s, []sched.Machine{machine("big", 1, 64, gpu(24))}))
		draining := machine("a", 1, 64, gpu(48))
		draining.Can.Draining = true
		require.Empty(t, place(s, []sched.Machine{draining, machine("b", 0, 64, gpu(48))}))
		m, lacks := sched.Nearest(s.Waiting(time.Unix(1, 0), nil)[0], []sched.Machine{machine("cpu", 1, 64), machine("big", 1, 64, gpu(24))})
		require.Equal(t, authz.PeerID("cpu"), m.Peer, "both lack one thing: the smaller is named")
		require.Len(t, lacks, 1)
	})
	t.Run("a failed task goes to another machine first", func(t *testing.T) {
		s := lease.NewState()
		submit(t, s, "j", 1, same)
		r := lease.Report{Lease: "l", Task: lease.TaskID{Job: "j"}, Peer: "a"}
		for _, c := range []lease.Command{
			{Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer}}, {Fail: &lease.Fail{Report: r, Reason: "crash"}},
		} {
			_, err := s.Apply(c)
			require.NoError(t, err)
		}
		require.Equal(t, []string{"j/0 b"}, text(place(s, []sched.Machine{machine("a", 1, 8), machine("b", 1, 64)})))
		require.Equal(t, []string{"j/0 a"}, text(place(s, []sched.Machine{machine("a", 1, 8)})))
	})
}

func TestLocality(t *testing.T) {
	holds := func(m sched.Machine, eighths int) sched.Machine {
		m.Holds = map[string]int{lease.ShortCID("bafy"): eighths}
		return m
	}
	s := lease.NewState()
	submit(t, s, "j", 2, func(s *lease.Spec) { s.Needs.Disk, s.Needs.Store = 3<<30, 2<<30 })
	place := func(machines ...sched.Machine) []string {
		return text(place(s, machines))
	}

	require.Equal(t, []string{"j/0 d", "j/1 c"}, place(machine("a", 1, 16), holds(machine("b", 1, 16), 1), holds(machine("c", 1, 16), 5), holds(machine("d", 1, 16), 8)))
	require.Equal(t, []string{"j/0 a", "j/1 b"}, place(holds(machine("z", 1, 32), 8), machine("a", 1, 16), machine("b", 1, 16)), "the smaller machine goes first all the same")
	require.Equal(t, []string{"j/0 b", "j/1 a"}, place(machine("a", 8, 16), holds(machine("b", 1, 16), 8)), "before the number of free slots")

	small := machine("a", 2, 16)
	small.Can.FreeDisk = 2 << 30
	require.Empty(t, place(small))
	require.Equal(t, []string{"j/0 a", "j/1 a"}, place(holds(small, 8)), "what is there needs no room again")
	require.Empty(t, place(holds(small, 7)))
	room := int64(1 << 30)
	quota := machine("a", 2, 16)
	quota.Can.Room = &room
	require.Empty(t, place(quota))
	_, lacks := sched.Nearest(s.Waiting(time.Unix(1, 0), nil)[0], []sched.Machine{quota})
	require.Equal(t, "needs 2.0 GiB of room in its store, has 1.0 GiB", lacks[0].String())
	require.Len(t, place(holds(quota, 8)), 2)
	full := machine("a", 2, 16)
	full.NoRoom = map[lease.JobID]bool{"j": true}
	require.Empty(t, place(full))
	require.Equal(t, []string{"j/0 b"}, place(full, machine("b", 1, 64)))
}

func TestAhead(t *testing.T) {
	s := lease.NewState()
	project := func(p string) func(*lease.Spec) { return func(s *lease.Spec) { s.Project = p } }
	submit(t, s, "now", 9, project("p1"))
	submit(t, s, "same", 9, project("p1"))
	submit(t, s, "large", 9, func(s *lease.Spec) { s.Project, s.Needs.MinRAM = "p2", 64<<30 })
	submit(t, s, "next", 1, project("p3"))
	submit(t, s, "later", 1, func(s *lease.Spec) { s.Project, s.Needs.Disk, s.Needs.Store = "p4", 3<<30, 2<<30 })
	m := machine("a", 0, 16)
	m.Can.Slots = 1
	rendering := map[string]bool{"p1": true}
	require.Equal(t, lease.JobID("next"), sched.Ahead(s.Waiting(time.Unix(1, 0), nil), m, rendering).ID)
	_, err := s.Apply(lease.Command{Grant: &lease.Grant{Lease: "l", Task: lease.TaskID{Job: "next"}, Peer: "b"}})
	require.NoError(t, err)
	require.Equal(t, lease.JobID("later"), sched.Ahead(s.Waiting(time.Unix(1, 0), nil), m, rendering).ID, "nothing of the next is left")
	for _, free := range []struct {
		disk, room int64
		ahead      bool
	}{{4 << 30, 3 << 30, true}, {4<<30 - 1, 3 << 30, false}, {4 << 30, 3<<30 - 1, false}} {
		tight := m
		tight.Can.FreeDisk, tight.Can.Room = free.disk, &free.room
		require.Equal(t, free.ahead, sched.Ahead(s.Waiting(time.Unix(1, 0), nil), tight, rendering) != nil, "what is rendered now needs room too: %v", free)
	}
	m.Holds = map[string]int{"p4": 8}
	require.Nil(t, sched.Ahead(s.Waiting(time.Unix(1, 0), nil), m, rendering))
	m.Can.Draining = true
	require.Nil(t, sched.Ahead(s.Waiting(time.Unix(1, 0), nil), m, nil))
}

// What needs no GPU takes one where it is idle, and the CPU beside it; what wants the
// CPU leaves it alone.
func TestDevices(t *testing.T) {
	card := gpu(8)
	card.Backends = []lease.Backend{lease.CUDA}
	m := machine("a", 1, 16, card, card, gpu(2))
	m.Can.Backends = append(m.Can.Backends, lease.CUDA)
	m.Free = []lease.Device{lease.CPUDevice, lease.GPUDevice(0), lease.GPUDevice(1)}
	on := func(tasks int32, needs lease.Requirements) (devices []lease.Device) {
		s := lease.NewState()
		submit(t, s, "j", tasks, func(s *lease.Spec) { s.Needs = needs })
		for _, p := range place(s, []sched.Machine{m}) {
			devices = append(devices, p.Device)
		}
		return devices
	}
	require.Equal(t, []lease.Device{"gpu0"}, on(1, lease.Requirements{}))
	require.Equal(t, []lease.Device{"gpu0", "gpu1", "cpu"}, on(5, lease.Requirements{}))
	require.Equal(t, []lease.Device{"cpu"}, on(5, lease.Requirements{Backend: lease.CPU}))
	require.Equal(t, []lease.Device{"gpu0", "gpu1"}, on(5, lease.Requirements{RequireGPU: true, Engine: "CYCLES"}))
	require.Equal(t, []lease.Device{"gpu0", "gpu1"}, on(5, lease.Requirements{Backend: lease.CUDA}))
	require.Len(t, m.Free, 3, "its argument is left alone")
}

// No machine stays free while a task that it could do waits, no slot is used
// twice, and no machine gets what it cannot do.
func TestPlaceConservesWork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := lease.NewState()
		for i := range rapid.IntRange(0, 6).Draw(t, "jobs") {
			submit(t, s, fmt.Sprint("j", i), rapid.Int32Range(1, 5).Draw(t, "tasks"), func(s *lease.Spec) {
				s.Tier = rapid.SampledFrom([]lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent}).Draw(t, "tier")
				s.Needs.MinVRAM = rapid.SampledFrom([]int64{0, 0, 8, 24}).Draw(t, "vram") << 30
				s.Chunk = rapid.IntRange(0, 2).Draw(t, "chunk")
				s.Needs.MinRAM = rapid.SampledFrom([]int64{0, 32}).Draw(t, "ram") << 30
				if s.Needs.MinVRAM == 0 {
					s.Needs.Backend = rapid.SampledFrom([]lease.Backend{"", "", lease.CPU, lease.CUDA}).Draw(t, "backend")
				}
			})
		}
		var machines []sched.Machine
		for i := range rapid.IntRange(0, 5).Draw(t, "machines") {
			m := machine(fmt.Sprint("m", i), rapid.IntRange(0, 3).Draw(t, "free"), rapid.SampledFrom([]int64{16, 64}).Draw(t, "ram"))
			if rapid.Bool().Draw(t, "gpu") {
				m.Can.GPUs = []lease.GPU{gpu(rapid.SampledFrom([]int64{8, 24}).Draw(t, "vram")), gpu(8)}
				if m.Can.Slots > 0 && rapid.Bool().Draw(t, "cuda") {
					m.Can.GPUs[0].Backends = []lease.Backend{lease.CUDA}
					m.Can.Backends = append(m.Can.Backends, lease.CUDA)
					if rapid.Bool().Draw(t, "idle") {
						m.Free = append(m.Free, lease.GPUDevice(0))
					}
				}
			}
			m.Holds = map[string]int{"bafy": rapid.IntRange(0, 8).Draw(t, "eighths")}
			machines = append(machines, m)
		}
		placed := place(s, machines)
		free, taken := map[authz.PeerID][]lease.Device{}, map[lease.TaskID]bool{}
		for _, m := range machines {
			free[m.Peer] = slices.Clone(m.Free)
		}
		for i, p := range placed {
			require.False(t, taken[p.Task], "placed twice")
			at := slices.Index(free[p.Peer], p.Device)
			require.GreaterOrEqual(t, at, 0, "a slot is used twice")
			free[p.Peer] = slices.Delete(free[p.Peer], at, at+1)
			g := lease.Command{At: time.Unix(2, 0), Grant: &lease.Grant{Lease: lease.ID(fmt.Sprint("l", i)), Task: p.Task, Peer: p.Peer, Device: p.Device, Frames: p.Frames}}
			_, err := s.Apply(g)
			require.NoError(t, err)
			_, task, err := s.Task(p.Task)
			require.NoError(t, err)
			taken[p.Task] = len(task.Lives()) > 0 // else a part of it was cut off
		}
		for _, m := range machines {
			for _, j := range s.Waiting(time.Unix(1, 0), nil) {
				if len(j.Spec.Needs.Match(m.Can)) > 0 {
					continue
				}
				for _, d := range free[m.Peer] {
					require.False(t, j.Spec.Needs.Fits(m.Can, d), "%s of %s is free and %s waits", d, m.Peer, j.ID)
				}
			}
		}
		for _, p := range placed {
			j, _ := s.Job(p.Task.Job)
			for _, m := range machines {
				if m.Peer == p.Peer {
					require.Empty(t, j.Spec.Needs.Match(m.Can))
					require.True(t, j.Spec.Needs.Fits(m.Can, p.Device))
				}
			}
		}
	})
}

func TestBarred(t *testing.T) {
	s := lease.NewState()
	submit(t, s, "j", 1, func(*lease.Spec) {})
	j, _ := s.Job("j")
	fail := func(peer authz.PeerID, f lease.Fail) {
		r := lease.Report{Lease: lease.ID(fmt.Sprint(peer, len(j.Tasks[0].Attempts))), Task: lease.TaskID{Job: "j"}, Peer: peer}
		_, err := s.Apply(lease.Command{At: time.Unix(2, 0), Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: peer, Device: lease.CPUDevice}})
		require.NoError(t, err)
		f.Report = r
		_, err = s.Apply(lease.Command{At: time.Unix(3, 0), Fail: &f})
		require.NoError(t, err)
	}
	a, b := machine("a", 1, 16), machine("b", 1, 32)
	require.False(t, sched.Barred(j, []sched.Machine{a}))
	for range lease.MaxTries {
		require.False(t, sched.Barred(j, []sched.Machine{a}))
		fail("a", lease.Fail{Kind: lease.FailMachine})
	}
	require.True(t, sched.Barred(j, []sched.Machine{a}))
	require.False(t, sched.Barred(j, []sched.Machine{a, b}), "there is another")
	fail("b", lease.Fail{Kind: lease.FailMemory, Had: lease.Memory{RAM: 32 << 30}, Others: 1})
	require.True(t, sched.Barred(j, []sched.Machine{a, b}))
	a.Can.Draining, b.Can.Draining = true, true
	require.False(t, sched.Barred(j, []sched.Machine{a, b}), "they would not be asked")
	a.Can.Draining = false
	_, err := s.Apply(lease.Command{At: time.Unix(4, 0), Forgive: &lease.Forgive{Job: "j"}})
	require.NoError(t, err)
	require.Len(t, place(s, []sched.Machine{a}), 1)
}

// TestOldMachineGetsWhatItKnows: what a job asks for and a machine's vizpeer does not know
// would be left out of its frames without a word.
func TestOldMachineGetsWhatItKnows(t *testing.T) {
	s := lease.NewState()
	submit(t, s, "movie", 2, func(s *lease.Spec) { s.Movie, s.Chunk = "mp4", 2 })
	submit(t, s, "plain", 1, func(*lease.Spec) {})
	old, silent, young := machine("old", 2, 8), machine("silent", 1, 16), machine("young", 1, 32)
	old.Can.Level, old.Can.Version = 1, "0.1.0"
	young.Can.Level = 3
	require.Equal(t, []string{"plain/0 old"}, text(place(s, []sched.Machine{old})))
	require.Equal(t, []string{"movie/0 silent", "plain/0 old"}, text(place(s, []sched.Machine{old, silent, young})), "one that does not say knows what the first knew that do")
	require.Equal(t, []string{"movie/0 young", "plain/0 old"}, text(place(s, []sched.Machine{young, old})))

	movie, _ := s.Job("movie")
	plain, _ := s.Job("plain")
	require.Equal(t, 2, movie.Level())
	require.Equal(t, 1, plain.Level())
	require.NotEqual(t, movie.Kind(), plain.Kind(), "a machine that cannot do the one may do the other")
	_, lacks := sched.Nearest(movie, []sched.Machine{old})
	require.Len(t, lacks, 1)
	require.Equal(t, "needs a vizpeer of level 2, has one of level 1 (0.1.0): update it", lacks[0].String())
	require.Nil(t, sched.Ahead([]*lease.Job{movie}, old, nil), "nor is its project fetched ahead")
	require.Equal(t, movie, sched.Ahead([]*lease.Job{movie}, silent, nil))
}
