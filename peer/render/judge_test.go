package render

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// Lines of Blender, Cycles, their libraries and the drivers, as their sources and
// programs hold them.
func TestMemoryIsKnownByItsWords(t *testing.T) {
	const machine, gpu = "Blender ran out of memory while loading the file", "the GPU ran out of memory while loading the file"
	for line, reason := range map[string]string{
		"Error: run out of memory!":                    machine,
		"Out of memory":                                machine,
		"Failed allocate render result, out of memory": machine,
		"Malloc returns null: len=100663328 in Cycles Alloc, total 1633465316": machine,
		"Calloc returns null: len=14400000000 in Combined, total 10731124":     machine,
		"Calloc array aborted due to integer overflow: len=4x99 in x, total 5": machine,
		"Malloc array aborted due to integer overflow: len=4x99 in x, total 5": machine,
		"terminate called after throwing an instance of 'std::bad_alloc'":      machine,
		"bad allocation": machine,
		"MemoryError":    machine,
		"OSError: [Errno 12] Cannot allocate memory":                                                  machine,
		"Couldn't allocate memory for PNG image":                                                      machine,
		"imb_savepng: Cannot allocate pixels array of 9x9, 4 bytes per pixel for file: 'x'":           machine,
		"Image save failed: not enough free memory":                                                   machine,
		"Embree: Out of memory":                                                                       machine,
		"Not enough memory resources are available to process this command.":                          machine,
		"System is out of GPU memory":                                                                 gpu,
		"Error: System is out of GPU and shared host memory":                                          gpu,
		"Out of memory in cuMemAlloc(&device_pointer, size) (device_impl.cpp:533) CUDA":               gpu,
		"CUDA error: Out of memory in cuLaunchKernel":                                                 gpu,
		"OPTIX_ERROR_HOST_OUT_OF_MEMORY in optixAccelBuild (OptiX)":                                   gpu,
		"Failed to allocate scratch buffer for BLAS":                                                  gpu,
		"Out of memory - couldn't allocate integrator state":                                          gpu,
		"Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory) Metal":            gpu,
		`oneAPI memory operation error: got runtime exception "40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)`: gpu,
		"Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)":                               gpu,
		"Error: Could not allocate shadow atlas. Most likely out of GPU memory.":                      gpu,
		"Error: Could not allocate 3D texture for volume.":                                            gpu,
		"GPUTexture: Texture allocation failed.":                                                      gpu,
		"GPUTexture: texture alloc failed. Likely not enough Video Memory.":                           gpu,
		"VK_ERROR_OUT_OF_DEVICE_MEMORY in vkAllocateMemory":                                           gpu,
		"GL_OUT_OF_MEMORY": gpu,
	} {
		w := &watch{attempt: Attempt{Frames: []int32{1}}, now: Progress{Phase: phaseLoading}}
		w.tail.add(line)
		for _, exit := range []int{1, 3, 128 + 6, 128 + 11} {
			e := w.judge(exit, false)
			require.Equal(t, reason, e.Reason, line)
			require.Equal(t, lease.FailMemory, e.Kind, line)
		}
	}
	for _, line := range []string{
		"Fra:1 Mem:9.94M (Peak 10.19M) | Time:00:00.13 | Mem:0.76M, Peak:0.76M | Scene, ViewLayer | Sample 3/64",
		"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES in cuLaunchKernel",
		"Error: Python: the camera looks out of the room",
		"Warning: not enough data for the memory of old",
		"Read blend: /shots/memory/allocate.blend",
	} {
		w := &watch{attempt: Attempt{Frames: []int32{1}}}
		w.tail.add(line)
		require.Equal(t, lease.FailError, w.judge(3, false).Kind, line)
		require.False(t, spoils([]byte(line)), line)
	}
}

func TestExitCodesOfASystemWithoutSignals(t *testing.T) {
	for code, kind := range map[uint32]lease.FailKind{
		0xC0000005: lease.FailCrash, 0xC0000409: lease.FailCrash, 0xC00000FD: lease.FailCrash,
		0xC0000017: lease.FailMemory, 0xC000012D: lease.FailMemory, 3: lease.FailError,
	} {
		w := &watch{attempt: Attempt{Frames: []int32{1}}}
		require.Equal(t, kind, w.judge(int(code), false).Kind, "%#x", code)
	}
}

func TestKilledForMemory(t *testing.T) {
	w := &watch{attempt: Attempt{Frames: []int32{1}}, now: Progress{Phase: phaseRendering, Frame: 1, Memory: 3 << 29}}
	e := w.judge(128+9, true)
	require.Equal(t, lease.FailMemory, e.Kind)
	require.Equal(t, "the system killed Blender at frame 1 because the machine ran out of memory (it used 1.5 GiB)", e.Reason)
	require.Equal(t, lease.FailCrash, w.judge(128+9, false).Kind)
}
