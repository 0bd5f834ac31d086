package lease

import (
	"cmp"
	"slices"

	"vizpeer/authz"
)

// BuildOf is an offered Blender as a machine would have it, as far as the offer
// tells: what it can do with a machine's GPUs shows when it is there.
func BuildOf(o authz.Offer) (Build, error) {
	v, err := ParseVersion(o.Version)
	return Build{Name: o.Name, Version: v, Hash: o.Hash, Engines: o.Engines, OIDN: o.OIDN}, err
}

// Same tells whether b and o are one Blender, by all that they say of themselves.
func (b Build) Same(o Build) bool {
	return b.Name == o.Name && b.Version == o.Version && b.Hash == o.Hash
}

// makers are whose GPUs a backend needs.
var makers = map[Backend]Vendor{OptiX: NVIDIA, CUDA: NVIDIA, HIP: AMD, OneAPI: Intel, Metal: Apple}

// Lacking picks the offer that a machine should fetch for r: one that is for it, with
// which it would serve r as it does not now. Of several it is the one that
// [Requirements.Build] would choose. A machine that takes no Blenders from the farm, or
// no work, should fetch none.
func (r Requirements) Lacking(c Capability, offers []authz.Offer) (authz.Offer, bool) {
	needs := r.Anywhere()
	if !c.Fetches || c.Draining || len(needs.Match(c)) == 0 {
		return authz.Offer{}, false
	}
	with := c
	with.Slots, with.Builds = max(1, c.Slots), nil // it may have no slots for want of a Blender
	for _, o := range offers {
		b, err := BuildOf(o)
		if err != nil || o.OS != c.OS || o.Arch != c.Arch || slices.ContainsFunc(c.Builds, b.Same) {
			continue
		}
		b.Path = o.Root // to find the offer again
		with.Builds = append(with.Builds, b)
	}
	// Which backends it offers there shows when it is there. Without a card of that
	// maker it never will.
	if maker, ok := makers[needs.Backend]; ok {
		needs.RequireGPU, needs.GPUVendor = true, cmp.Or(needs.GPUVendor, maker)
	}
	needs.Backend, with.GPUs = "", slices.Clone(c.GPUs)
	for i := range with.GPUs {
		with.GPUs[i].Backends = Backends()
	}
	best, ok := needs.Build(with)
	if !ok || len(needs.Match(with)) > 0 {
		return authz.Offer{}, false
	}
	i := slices.IndexFunc(offers, func(o authz.Offer) bool { return o.Root == best.Path })
	return offers[i], true
}
