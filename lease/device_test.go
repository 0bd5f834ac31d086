package lease_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vizpeer/lease"
)

func TestDevices(t *testing.T) {
	for text, want := range map[lease.Device]struct {
		gpu   int
		isGPU bool
		valid bool
	}{
		"": {valid: true}, "cpu": {valid: true}, "gpu0": {0, true, true}, "gpu7": {7, true, true}, "gpu63": {63, true, true}, "gpu64": {64, true, false},
		"gpu": {}, "gpu-1": {}, "gpu+1": {}, "gpu01": {}, "gpu1 ": {}, "gpu99999999999999999999": {}, "tpu0": {}, "CPU": {},
	} {
		i, isGPU := text.GPU()
		require.Equal(t, want.isGPU, isGPU, text)
		require.Equal(t, want.gpu, i, text)
		require.Equal(t, want.valid, text.Validate() == nil, text)
		if isGPU {
			require.Equal(t, text, lease.GPUDevice(i))
		}
	}

	nvidia := lease.GPU{Vendor: lease.NVIDIA, Model: "RTX 3060", VRAM: 12 << 30, Backends: []lease.Backend{lease.OptiX, lease.CUDA}}
	onboard := lease.GPU{Vendor: lease.Intel, Model: "UHD 770"}
	box := lease.Capability{Slots: 3, GPUs: []lease.GPU{onboard, nvidia, nvidia}}
	require.Equal(t, []lease.DeviceSlots{{Device: lease.CPUDevice, Slots: 3}, {Device: "gpu1", Slots: 1}, {Device: "gpu2", Slots: 1}}, box.Devices())
	require.Equal(t, 5, box.TotalSlots())
	for _, d := range box.Devices() {
		require.Equal(t, d.Slots, box.SlotsOn(d.Device))
	}
	require.Zero(t, box.SlotsOn("gpu0"), "no backend")
	require.Zero(t, box.SlotsOn("gpu3"))
	require.Zero(t, box.SlotsOn(""))
	box.Slots = 0
	require.Empty(t, box.Devices(), "a machine that does not render")
	require.Zero(t, box.TotalSlots()+box.SlotsOn("gpu1")+box.SlotsOn("cpu"))
}

func TestGrantsNameADevice(t *testing.T) {
	f := newFarm(t)
	j := f.submit("j", "1-40")
	f.do(lease.Command{Grant: &lease.Grant{Lease: "l1", Task: lease.TaskID{Job: "j"}, Peer: "bob", Device: "gpu1"}})
	require.Equal(t, lease.GPUDevice(1), j.Tasks[0].Attempts[0].Device)
	_, err := f.try(lease.Command{Grant: &lease.Grant{Lease: "l2", Task: lease.TaskID{Job: "j", Index: 1}, Peer: "bob", Device: lease.Device(strings.Repeat("x", 1<<20))}})
	require.ErrorIs(t, err, lease.ErrInvalid)
	require.Less(t, len(err.Error()), 200)
}

func TestFits(t *testing.T) {
	box := lease.Capability{
		Slots: 1, Backends: []lease.Backend{lease.OptiX, lease.CUDA, lease.OneAPI, lease.CPU},
		GPUs: []lease.GPU{
			{Vendor: lease.NVIDIA, Model: "RTX 3060", VRAM: 12 << 30, Backends: []lease.Backend{lease.OptiX, lease.CUDA}},
			{Vendor: lease.NVIDIA, Model: "RTX 3090", VRAM: 24 << 30, Backends: []lease.Backend{lease.OptiX, lease.CUDA}},
			{Vendor: lease.Intel, Model: "Arc A770", VRAM: 16 << 30, Backends: []lease.Backend{lease.OneAPI}},
			{Vendor: lease.AMD, Model: "RX 7900", VRAM: 20 << 30},
		},
		Builds: []lease.Build{
			{Name: "Blender", Version: v(3, 4, 1), Backends: []lease.Backend{lease.CUDA, lease.CPU}},
			{Name: "Blender", Version: v(4, 2, 0), Backends: []lease.Backend{lease.OptiX, lease.CUDA, lease.OneAPI, lease.CPU}},
		},
	}
	devices := []lease.Device{"cpu", "gpu0", "gpu1", "gpu2", "gpu3"}
	for name, c := range map[string]struct {
		needs lease.Requirements
		fit   []lease.Device
	}{
		"nothing":           {lease.Requirements{Engine: "CYCLES", FileVersion: v(4, 0, 0), Blender: "any"}, []lease.Device{"cpu", "gpu0", "gpu1", "gpu2"}},
		"the oldest build":  {lease.Requirements{Engine: "CYCLES"}, []lease.Device{"cpu", "gpu0", "gpu1"}}, // 3.4.1 renders it, and has no oneAPI
		"the CPU":           {lease.Requirements{Engine: "CYCLES", Backend: lease.CPU}, []lease.Device{"cpu"}},
		"a GPU":             {lease.Requirements{Engine: "CYCLES", RequireGPU: true}, []lease.Device{"gpu0", "gpu1"}},
		"a backend":         {lease.Requirements{Engine: "CYCLES", Backend: lease.OptiX}, []lease.Device{"gpu0", "gpu1"}}, // by 4.2
		"a vendor":          {lease.Requirements{Engine: "CYCLES", GPUVendor: lease.Intel}, []lease.Device{"gpu2"}},
		"memory":            {lease.Requirements{Engine: "CYCLES", MinVRAM: 13 << 30, FileVersion: v(4, 0, 0), Blender: "any"}, []lease.Device{"gpu1", "gpu2"}},
		"vendor and memory": {lease.Requirements{Engine: "CYCLES", GPUVendor: lease.NVIDIA, MinVRAM: 13 << 30}, []lease.Device{"gpu1"}},
		"a build without":   {lease.Requirements{Engine: "CYCLES", Backend: lease.OneAPI, Blender: "3.4"}, nil},
		"too much memory":   {lease.Requirements{Engine: "CYCLES", MinVRAM: 99 << 30}, nil},
		"a GPU of no use":   {lease.Requirements{Engine: "CYCLES", GPUVendor: lease.AMD}, nil},
		// Eevee needs no backend, only what draws.
		"Eevee, a GPU":                {lease.Requirements{Engine: "BLENDER_EEVEE", GPUVendor: lease.NVIDIA}, []lease.Device{"gpu0", "gpu1"}},
		"Eevee, a GPU without a slot": {lease.Requirements{Engine: "BLENDER_EEVEE", GPUVendor: lease.AMD}, []lease.Device{"cpu"}},
	} {
		t.Run(name, func(t *testing.T) {
			var fit []lease.Device
			for _, d := range devices {
				if c.needs.Fits(box, d) {
					fit = append(fit, d)
				}
			}
			require.Equal(t, c.fit, fit)
			require.Equal(t, len(fit) > 0, len(c.needs.Match(box)) == 0)
			require.False(t, c.needs.Fits(box, ""))
		})
	}
	build, _ := lease.Requirements{Engine: "CYCLES", Backend: lease.OptiX}.Build(box)
	require.Equal(t, v(4, 2, 0), build.Version, "a Blender that can use the GPU goes before an older one")

	lacks := lease.Requirements{Engine: "CYCLES", Backend: lease.OneAPI, Blender: "3.4"}.Match(box)
	require.Len(t, lacks, 1)
	require.Equal(t, "needs a GPU that does ONEAPI, has RTX 3060 with 12.0 GiB, RTX 3090 with 24.0 GiB, Arc A770 with 16.0 GiB, of no use to its Blender 3.4.1, RX 7900 with 20.0 GiB, of no use to its Blenders", lacks[0].String())
}

// Whatever a machine is and a job needs: a machine that lacks nothing has a device
// for it, and one without such a device says what it lacks.
func TestMachineThatFitsHasADevice(t *testing.T) {
	backends := rapid.SliceOfNDistinct(rapid.SampledFrom(lease.Backends()[:5]), 0, 2, rapid.ID[lease.Backend])
	vendors := rapid.SampledFrom([]lease.Vendor{lease.NVIDIA, lease.AMD})
	rapid.Check(t, func(t *rapid.T) {
		box := lease.Capability{Slots: rapid.IntRange(0, 2).Draw(t, "slots"), Backends: append(backends.Draw(t, "offered"), lease.CPU)}
		for range rapid.IntRange(0, 3).Draw(t, "GPUs") {
			box.GPUs = append(box.GPUs, lease.GPU{Vendor: vendors.Draw(t, "vendor"), VRAM: rapid.Int64Range(0, 3).Draw(t, "VRAM"), Backends: backends.Draw(t, "backends")})
		}
		for range rapid.IntRange(0, 3).Draw(t, "builds") {
			box.Builds = append(box.Builds, lease.Build{Version: v(rapid.IntRange(2, 4).Draw(t, "major"), 0, 0), Backends: append(backends.Draw(t, "built in"), lease.CPU)})
		}
		needs := lease.Requirements{
			RequireGPU: rapid.Bool().Draw(t, "GPU"), MinVRAM: rapid.Int64Range(0, 3).Draw(t, "memory"), FileVersion: v(rapid.IntRange(2, 4).Draw(t, "file"), 0, 0),
			Backend: rapid.SampledFrom(append(lease.Backends(), "", "")).Draw(t, "backend"), Engine: rapid.SampledFrom([]string{"", "CYCLES", "BLENDER_EEVEE"}).Draw(t, "engine"),
		}
		if rapid.Bool().Draw(t, "of a vendor") {
			needs.GPUVendor = vendors.Draw(t, "maker")
		}
		if needs.Validate() != nil {
			t.Skip("no such job")
		}
		fits := false
		for _, d := range box.Devices() {
			fits = fits || needs.Fits(box, d.Device)
			i, isGPU := d.Device.GPU()
			if isGPU && needs.Fits(box, d.Device) {
				require.GreaterOrEqual(t, box.GPUs[i].VRAM, needs.MinVRAM)
			}
		}
		if lacks := needs.Match(box); len(lacks) == 0 {
			require.True(t, fits, "a machine that lacks nothing has no device for the job")
		}
	})
}
