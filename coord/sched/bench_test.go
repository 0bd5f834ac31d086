package sched

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// jobTasks is how many tasks the benches put into a job: the most that one may have.
const jobTasks = lease.MaxTasks

// queueOf is a queue with so many tasks of one frame waiting, in jobs with different
// needs.
func queueOf(b testing.TB, tasks int) *lease.State {
	b.Helper()
	s := lease.NewState()
	needs := []lease.Requirements{{}, {MinRAM: 16 << 30}, {RequireGPU: true}, {Backend: lease.OptiX, MinVRAM: 8 << 30}, {Labels: []string{"studio"}}}
	for n := 0; tasks > 0; n++ {
		size := min(tasks, jobTasks)
		tasks -= size
		_, err := s.Apply(lease.Command{At: benchNoon, Submit: &lease.Submit{Job: lease.JobID(fmt.Sprint("j", n)), Spec: lease.Spec{
			Name: "shot", Owner: "ann", Project: fmt.Sprint("bafy", n), Blend: "files/shot.blend", Frames: lease.Frames{{First: 1, Last: int32(size), Step: 1}},
			Chunk: 1, Tier: lease.Normal, Replicas: 1, Submitter: "ann-pc", Needs: needs[n%len(needs)],
		}}})
		require.NoError(b, err)
	}
	return s
}

var benchNoon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// farmOf is so many machines, of five kinds, with a free slot each.
func farmOf(n int) []Machine {
	machines := make([]Machine, n)
	for i := range machines {
		can := lease.Capability{
			OS: "linux", Cores: 8 << (i % 3), RAM: int64(8+8*(i%5)) << 30, Slots: 1, FreeDisk: 1 << 40, Backends: []lease.Backend{lease.CPU},
			Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}}, Labels: []string{"studio"},
		}
		if i%5 > 1 {
			can.GPUs = []lease.GPU{{Vendor: lease.NVIDIA, VRAM: int64(i%5) << 32, Backends: []lease.Backend{lease.OptiX, lease.CUDA}}}
			can.Backends = append(can.Backends, lease.OptiX, lease.CUDA)
		}
		devices := can.Devices()
		machines[i] = Machine{Peer: authz.PeerID(fmt.Sprintf("box%04d", i)), Can: can, Free: []lease.Device{devices[len(devices)-1].Device}}
	}
	return machines
}

// grantAll places tasks on the machines and grants them.
func grantAll(b testing.TB, s *lease.State, machines []Machine, n *int) []lease.Report {
	var reports []lease.Report
	for _, p := range Place(s.Waiting(benchNoon, nil), machines, nil) {
		*n++
		r := lease.Report{Lease: lease.ID(fmt.Sprint("l", *n)), Task: p.Task, Peer: p.Peer}
		reports = append(reports, r)
		_, err := s.Apply(lease.Command{At: benchNoon, Grant: &lease.Grant{Lease: r.Lease, Task: r.Task, Peer: r.Peer, Device: p.Device}})
		require.NoError(b, err)
	}
	return reports
}

// BenchmarkPlace has a farm of 1,000 machines with 1,000,000 tasks waiting, of which
// now one slot is free, now ten, now all, and reports how long it takes to find the
// tasks for them, for each task.
func BenchmarkPlace(b *testing.B) {
	s, machines := queueOf(b, 1_000_000), farmOf(1000)
	n := 0
	for b.Loop() {
		var took []time.Duration // for each grant
		for round := range 600 {
			free := machines[round%len(machines) : round%len(machines)+1]
			switch {
			case round%100 == 99:
				free = machines
			case round%10 == 9:
				free = machines[10*(round%50) : 10*(round%50)+10]
			}
			began := time.Now()
			placed := len(Place(s.Waiting(benchNoon, nil), free, nil))
			each := time.Since(began) / time.Duration(placed)
			for range placed {
				took = append(took, each)
			}
			require.Len(b, grantAll(b, s, free, &n), placed) // so that every round finds others
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e6, "place-p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e6, "place-p99-ms")
	}
}

// BenchmarkCostPerTask grants and completes tasks where 10,000, 100,000 and 1,000,000
// are waiting, a thousand here and a thousand there, and reports what one costs.
func BenchmarkCostPerTask(b *testing.B) {
	const passes, tasks = 9, 1000 // so that the smallest queue is nearly done in the end
	machines := farmOf(20)
	for b.Loop() {
		n := 0
		sizes := []int{10_000, 100_000, 1_000_000}
		var queues []*lease.State
		for _, size := range sizes {
			queues = append(queues, queueOf(b, size))
		}
		costs := make([][]float64, len(sizes))
		for range passes {
			for i, s := range queues {
				began := time.Now()
				for range tasks / len(machines) {
					reports := grantAll(b, s, machines, &n)
					require.Len(b, reports, len(machines))
					for _, r := range reports {
						f := lease.Result{Frame: r.Task.Index + 1, CID: "bafyframe", Name: fmt.Sprintf("%04d.png", r.Task.Index+1), Size: 1, Seconds: 1}
						_, err := s.Apply(lease.Command{At: benchNoon, Complete: &lease.Complete{Report: r, Frames: []lease.Result{f}, Machines: 20}})
						require.NoError(b, err)
					}
				}
				costs[i] = append(costs[i], float64(time.Since(began).Microseconds())/tasks)
			}
		}
		for i, name := range []string{"us-at-1e4", "us-at-1e5", "us-at-1e6"} {
			slices.Sort(costs[i])
			b.ReportMetric(costs[i][passes/2], name)
		}
	}
}
