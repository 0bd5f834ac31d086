package lease

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Device is what of a machine an attempt renders on: [CPUDevice], or one of its GPUs
// as [GPUDevice] names it. "" leaves the choice to the machine.
type Device string

// CPUDevice is a machine's processor.
const CPUDevice Device = "cpu"

const gpuPrefix = "gpu"

// GPUDevice is the GPU at place i of [Capability.GPUs]: "gpu0" is the first.
func GPUDevice(i int) Device { return Device(gpuPrefix + strconv.Itoa(i)) }

// GPU is the place in [Capability.GPUs] of a GPU; false for any other device.
func (d Device) GPU() (int, bool) {
	digits, ok := strings.CutPrefix(string(d), gpuPrefix)
	if !ok || digits == "" || digits[0] < '0' || digits[0] > '9' || digits[0] == '0' && digits != "0" {
		return 0, false
	}
	i, err := strconv.Atoi(digits)
	if err != nil {
		return 0, false
	}
	return i, true
}

// Validate reports a device that no machine has. "" is valid.
func (d Device) Validate() error {
	if i, ok := d.GPU(); d == "" || d == CPUDevice || ok && i < maxList {
		return nil
	}
	return fmt.Errorf("%q is no device: use %s, or gpu0 to %s", string(d[:min(len(d), 32)]), CPUDevice, GPUDevice(maxList-1))
}

// MaxTotalSlots bounds [Capability.TotalSlots].
const MaxTotalSlots = MaxSlots + maxList

// DeviceSlots is how many attempts a device makes at once.
type DeviceSlots struct {
	Device Device `json:"device"`
	Slots  int    `json:"slots"`
}

// Devices lists what c renders on, all of it side by side: the CPU with as many slots
// as its owner gave it, and each GPU that a Blender can use with one. A machine that
// does not render has none.
func (c Capability) Devices() []DeviceSlots {
	if c.Slots < 1 {
		return nil
	}
	list := []DeviceSlots{{CPUDevice, c.Slots}}
	for i, g := range c.GPUs {
		if len(g.Backends) > 0 {
			list = append(list, DeviceSlots{GPUDevice(i), 1})
		}
	}
	return list
}

// SlotsOn is how many attempts c makes at once on d; 0 where it has no such device.
func (c Capability) SlotsOn(d Device) int {
	i, isGPU := d.GPU()
	switch {
	case c.Slots < 1:
		return 0
	case d == CPUDevice:
		return c.Slots
	case isGPU && i < len(c.GPUs) && len(c.GPUs[i].Backends) > 0:
		return 1
	}
	return 0
}

// TotalSlots is how many attempts c makes at once, on all of its devices together.
func (c Capability) TotalSlots() (n int) {
	for _, d := range c.Devices() {
		n += d.Slots
	}
	return n
}

// WantsGPU tells whether only a GPU can serve r.
func (r Requirements) WantsGPU() bool {
	return r.RequireGPU || r.GPUVendor != "" || r.MinVRAM > 0 || r.Backend != "" && r.Backend != CPU
}

// Fits tells whether the device d of c serves r, as far as that hangs on the device:
// [Requirements.Match] says whether the machine does, and where it does, a device
// fits. What r leaves open, every device serves.
func (r Requirements) Fits(c Capability, d Device) bool {
	i, isGPU := d.GPU()
	switch {
	case c.SlotsOn(d) == 0:
		return false
	case isGPU:
		build, _ := r.Build(c)
		return r.uses(build, c.GPUs[i])
	}
	// A GPU without backends has no slot of its own: who draws on it takes the CPU's.
	return !r.WantsGPU() || slices.ContainsFunc(c.GPUs, func(g GPU) bool { return len(g.Backends) == 0 && r.uses(Build{}, g) })
}

// drawn tells that no backend is needed to render on a GPU: Blender's own engines but
// Cycles draw with what draws its windows. "" is one of them, or not known.
func (r Requirements) drawn() bool { return r.Engine == "" || strings.HasPrefix(r.Engine, "BLENDER_") }

// uses tells whether r may be rendered on g by b. A Blender that does not tell its
// backends is believed to have every one of the GPU's.
func (r Requirements) uses(b Build, g GPU) bool {
	return r.Backend != CPU && r.gpuFits(g) && (r.drawn() || slices.ContainsFunc(g.Backends, func(offered Backend) bool {
		return (r.Backend == "" || r.Backend == offered) && (len(b.Backends) == 0 || slices.Contains(b.Backends, offered))
	}))
}

// gpuLack says why no GPU of c serves r; false where one does, or r asks for none.
func (r Requirements) gpuLack(c Capability) (Lack, bool) {
	build, _ := r.Build(c)
	if !r.WantsGPU() || slices.ContainsFunc(c.GPUs, func(g GPU) bool { return r.uses(build, g) }) {
		return Lack{}, false
	}
	return Lack{Need: r.gpuNeed(), Has: cmp.Or(join(c.GPUs, ", ", func(g GPU) string {
		text := fmt.Sprintf("%s with %s", g.Model, Gigabytes(g.VRAM))
		switch {
		case len(g.Backends) == 0:
			text += ", of no use to its Blenders"
		case r.uses(Build{}, g): // so the Blender is what fails it
			text += ", of no use to its Blender " + build.Version.String()
		}
		return text
	}), "none")}, true
}

// Memory is what an attempt on d fills: that of the GPU, or the machine's.
func (c Capability) Memory(d Device) (m Memory) {
	if i, ok := d.GPU(); ok && i < len(c.GPUs) {
		m.VRAM = c.GPUs[i].VRAM
	} else {
		m.RAM = c.RAM
	}
	return m
}

// More is the larger of each of two memories.
func (m Memory) More(n Memory) Memory {
	return Memory{RAM: max(m.RAM, n.RAM), VRAM: max(m.VRAM, n.VRAM)}
}

// Serves tells whether d fits, and has more memory than what was too little.
func (r Requirements) Serves(c Capability, d Device, above Memory) bool {
	has := c.Memory(d)
	if _, gpu := d.GPU(); gpu {
		return r.Fits(c, d) && (above.VRAM == 0 || has.VRAM > above.VRAM)
	}
	return r.Fits(c, d) && (above.RAM == 0 || has.RAM > above.RAM)
}

// ServedBy tells whether any device of c serves r.
func (r Requirements) ServedBy(c Capability, above Memory) bool {
	return slices.ContainsFunc(c.Devices(), func(d DeviceSlots) bool { return r.Serves(c, d.Device, above) })
}
