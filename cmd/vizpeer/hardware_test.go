package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func TestHardwareInWords(t *testing.T) {
	require.Equal(t, "RTX 3090, 24.0 GiB, driver 550.54.15 (OPTIX, CUDA); Arc, driver i915", gpusText([]lease.GPU{
		{Model: "RTX 3090", VRAM: 24 << 30, Driver: "550.54.15", Backends: []lease.Backend{lease.OptiX, lease.CUDA}}, {Model: "Arc", Driver: "i915"},
	}))
	b := lease.Build{Name: "VIZidSuite", Version: lease.Version{Major: 4, Minor: 2, Patch: 3}}
	require.Equal(t, "VIZidSuite 4.2.3", buildText(b))
	b.Hash, b.Engines, b.Backends, b.OIDN = "0e22e4fcea03", []string{"CYCLES"}, []lease.Backend{lease.CPU}, true
	require.Equal(t, "VIZidSuite 4.2.3 (build 0e22e4fcea03, CYCLES, CPU, OpenImageDenoise)", buildText(b))
	_, blender := capabilityText(&lease.Capability{Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}, b}})
	require.Equal(t, "3.4.1, VIZidSuite 4.2.3", blender)
}

// doctor says which GPU no Blender can use.
func TestGPUCheck(t *testing.T) {
	look := func(can lease.Capability) (string, error) { return gpuCheck{&blenderCheck{can: can}}.Run(t.Context()) }
	said, err := look(lease.Capability{})
	require.NoError(t, err)
	require.Contains(t, said, "none found")
	can := lease.Capability{GPUs: []lease.GPU{{Model: "RTX 3090", Driver: "550.54.15", Backends: []lease.Backend{lease.CUDA}}}, Builds: []lease.Build{{Name: "Blender"}}}
	said, err = look(can)
	require.NoError(t, err)
	require.Equal(t, "RTX 3090, driver 550.54.15 (CUDA)", said)
	can.GPUs = append(can.GPUs, lease.GPU{Model: "RTX 2080"})
	_, err = look(can)
	require.ErrorAs(t, err, &concern{})
	require.ErrorContains(t, err, "no Blender here can use RTX 2080")
	can.Builds = nil
	_, err = look(can)
	require.NoError(t, err, "it is not the GPU's fault")
}
