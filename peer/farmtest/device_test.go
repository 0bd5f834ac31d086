package farmtest_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/farmtest"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// A machine's CPU and its GPUs render side by side, one attempt each, and what asks
// for one of them gets it.
func TestDevicesRenderSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := farmtest.New(t, 1, func(i int, can *lease.Capability) {
			if i == 0 {
				can.Slots = 0
				return
			}
			gpu := lease.GPU{Vendor: lease.NVIDIA, Model: "RTX A4000", VRAM: 16 << 30, Backends: []lease.Backend{lease.CUDA}}
			can.GPUs = []lease.GPU{gpu, {Vendor: lease.Intel, Model: "UHD 770"}, gpu}
			can.Backends = []lease.Backend{lease.CUDA, lease.CPU}
			can.Builds[0].Backends = can.Backends
		})
		box := f.Peers[1]
		box.Blender.PerFrame = 10 * time.Second
		attempts := make(chan render.Attempt, 100)
		box.Blender.Begin = func(a render.Attempt) { attempts <- a }
		chunked := func(s *httpapi.Submission) { s.Chunk = 1 }
		running := func() (devices []lease.Device) {
			for _, r := range box.Local().Status(t.Context()).Running {
				devices = append(devices, r.Device)
			}
			slices.Sort(devices)
			return devices
		}

		id := f.Submit(f.Peers[0], "1-6", chunked)
		f.Within(time.Minute, "all of it renders", func() bool { return len(running()) == 3 })
		require.Equal(t, []lease.Device{"cpu", "gpu0", "gpu2"}, running())
		peers, err := f.Peers[0].Queue().Peers(t.Context(), authz.Principal{User: "admin", Role: authz.Admin})
		require.NoError(t, err)
		at := slices.IndexFunc(peers, func(p httpapi.Peer) bool { return p.ID == box.ID })
		require.Equal(t, 3, peers[at].Slots)
		require.Equal(t, 3, peers[at].Busy)
		f.Await(id, lease.JobDone, 2*time.Minute)
		rendered := map[lease.Device]int{}
		for len(attempts) > 0 {
			rendered[(<-attempts).Device]++
		}
		require.Equal(t, map[lease.Device]int{"cpu": 2, "gpu0": 2, "gpu2": 2}, rendered)

		// Both wait for nothing but their own kind of device.
		onGPU := f.Submit(f.Peers[0], "1-4", chunked, func(s *httpapi.Submission) { s.Needs.GPUVendor = lease.NVIDIA })
		onCPU := f.Submit(f.Peers[0], "7-8", chunked, func(s *httpapi.Submission) { s.Needs.Backend = lease.CPU })
		f.Within(time.Minute, "all of it renders", func() bool { return len(running()) == 3 })
		f.Await(onGPU, lease.JobDone, 2*time.Minute)
		f.Await(onCPU, lease.JobDone, 2*time.Minute)
		for len(attempts) > 0 {
			a := <-attempts
			require.Equal(t, a.Needs.Backend == lease.CPU, a.Device == lease.CPUDevice, "frame %d on %s", a.Frames[0], a.Device)
		}
	})
}
