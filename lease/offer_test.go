package lease

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/authz"
)

// offered is a Blender for the machines of these tests.
func offered(root, version string, change ...func(*authz.Offer)) authz.Offer {
	o := authz.Offer{Root: root, Name: "Blender", Version: version, Hash: "h" + version, OS: "linux", Arch: "amd64", Engines: []string{"CYCLES"}, OIDN: true}
	for _, c := range change {
		c(&o)
	}
	return o
}

func TestLacking(t *testing.T) {
	machine := func(change ...func(*Capability)) Capability {
		c := Capability{OS: "linux", Arch: "amd64", RAM: 8 << 30, Slots: 1, FreeDisk: 1 << 40, Fetches: true, Backends: []Backend{CPU},
			Builds: []Build{{Name: "Blender", Version: Version{3, 4, 1}, Engines: []string{"CYCLES"}, Backends: []Backend{CPU}}}}
		for _, f := range change {
			f(&c)
		}
		return c
	}
	offers := []authz.Offer{offered("r4", "4.3.2"), offered("r2", "4.2.3"), offered("r1", "4.2.1"),
		offered("w", "4.2.0", func(o *authz.Offer) { o.OS = "windows" }), offered("odd", "none")}
	for name, c := range map[string]struct {
		needs Requirements
		can   Capability
		want  string
	}{
		"the release that it asks for":     {Requirements{Blender: "4.2"}, machine(), "r1"},
		"the version that it asks for":     {Requirements{Blender: "4.2.3"}, machine(), "r2"},
		"of the file's release":            {Requirements{FileVersion: Version{4, 3, 0}}, machine(), "r4"},
		"that it has":                      {Requirements{Blender: "3.4"}, machine(), ""},
		"that nobody offers":               {Requirements{Blender: "4.1"}, machine(), ""},
		"for another system":               {Requirements{Blender: "4.2"}, machine(func(c *Capability) { c.OS = "darwin" }), ""},
		"for another processor":            {Requirements{Blender: "4.2"}, machine(func(c *Capability) { c.Arch = "arm64" }), ""},
		"on a machine that takes none":     {Requirements{Blender: "4.2"}, machine(func(c *Capability) { c.Fetches = false }), ""},
		"on a machine that takes no work":  {Requirements{Blender: "4.2"}, machine(func(c *Capability) { c.Draining = true }), ""},
		"on a machine without any Blender": {Requirements{Blender: "4.2"}, machine(func(c *Capability) { c.Slots, c.Builds, c.Backends = 0, nil, nil }), "r1"},
		"with an engine that it lacks":     {Requirements{Blender: "4.2", Engine: "LUXCORE"}, machine(), ""},
		"with a label that it lacks":       {Requirements{Blender: "4.2", Labels: []string{"fast"}}, machine(), ""},
		"to denoise":                       {Requirements{Blender: AnyBlender, Denoise: true}, machine(), "r1"},
		"for its CPU":                      {Requirements{Blender: "4.2", Backend: CPU}, machine(), "r1"},
		"for a GPU that it lacks":          {Requirements{Blender: "4.2", Backend: CUDA}, machine(), ""},
		"for its GPU": {Requirements{Blender: "4.2", Backend: CUDA},
			machine(func(c *Capability) { c.GPUs = []GPU{{Vendor: NVIDIA, VRAM: 8 << 30}} }), "r1"},
		"for a card of another maker": {Requirements{Blender: "4.2", Backend: CUDA},
			machine(func(c *Capability) { c.GPUs = []GPU{{Vendor: AMD, VRAM: 8 << 30}} }), ""},
		"for a GPU that is too small": {Requirements{Blender: "4.2", MinVRAM: 16 << 30},
			machine(func(c *Capability) { c.GPUs = []GPU{{Vendor: NVIDIA, VRAM: 8 << 30}} }), ""},
		"because its own cannot use the GPU": {Requirements{Blender: AnyBlender, RequireGPU: true, Engine: "CYCLES"},
			machine(func(c *Capability) { c.GPUs = []GPU{{Vendor: NVIDIA, VRAM: 8 << 30}} }), "r1"},
		"which it has and which does not help": {Requirements{Blender: "4.2.1", Backend: CUDA}, machine(func(c *Capability) {
			c.GPUs = []GPU{{Vendor: NVIDIA, VRAM: 8 << 30}}
			c.Builds = append(c.Builds, Build{Name: "Blender", Version: Version{4, 2, 1}, Hash: "h4.2.1", Engines: []string{"CYCLES"}, Backends: []Backend{CPU}})
		}), ""},
		"whatever the room for the project": {Requirements{Blender: "4.2", Disk: 1 << 50, Store: 1 << 50}, machine(), "r1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := c.needs.Lacking(c.can, offers)
			require.Equal(t, c.want != "", ok)
			require.Equal(t, c.want, got.Root)
		})
	}
}
