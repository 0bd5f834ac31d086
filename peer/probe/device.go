package probe

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"vizpeer/lease"
)

// device is a GPU as a Blender sees it, for one backend.
type device struct {
	ID   string `json:"id"` // as "CUDA_NVIDIA GeForce RTX 3090_0000:01:00_OptiX"; no two of a Blender have the same
	Name string `json:"name"`
}

var pciAddress = regexp.MustCompile(`([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?(?:_OptiX)?$`)

// busOf finds the PCI address at the end of what a tool or a Blender says of a device,
// and writes it as Blender does: "0000:01:00". It is "" where there is none.
func busOf(text string) string {
	for line := range strings.Lines(text) {
		m := pciAddress.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		domain, err := strconv.ParseUint(m[1], 16, 32)
		if err == nil {
			return strings.ToLower(fmt.Sprintf("%04x:%s:%s", domain, m[2], m[3]))
		}
	}
	return ""
}

// makerOf is who made a device that a Blender sees for backend b.
func makerOf(b lease.Backend, d device) lease.Vendor {
	switch {
	case b == lease.HIP, strings.Contains(d.Name, "AMD"), strings.Contains(d.Name, "Radeon"):
		return lease.AMD
	case b == lease.OneAPI, strings.Contains(d.Name, "Intel"):
		return lease.Intel
	case b == lease.Metal:
		return lease.Apple
	}
	return lease.NVIDIA
}

// likenesses tell whether a card and a Blender's device of backend b are the same, the
// surest first. What has another address is another card, however equal.
var likenesses = []func(c card, b lease.Backend, d device) bool{
	func(c card, _ lease.Backend, d device) bool { return c.bus != "" && c.bus == busOf(d.ID) },
	func(c card, b lease.Backend, d device) bool {
		return ofOneMaker(c, b, d) && c.Model == strings.TrimSuffix(d.Name, " (Display)")
	},
	ofOneMaker,
}

func ofOneMaker(c card, b lease.Backend, d device) bool {
	bus := busOf(d.ID)
	return c.Vendor == makerOf(b, d) && (c.bus == "" || bus == "" || c.bus == bus)
}

// attach finds the card of each device that a Blender sees. It answers that Blender's
// IDs of each card, and the cards, with those at the end that only this Blender knows
// of.
func attach(cards []card, seen map[lease.Backend][]device) ([]card, []map[lease.Backend]string) {
	cards = slices.Clone(cards)
	ids := make([]map[lease.Backend]string, len(cards))
	for _, b := range lease.Backends() {
		rest := slices.Clone(seen[b])
		put := func(i int, d device) {
			if ids[i] == nil {
				ids[i] = make(map[lease.Backend]string)
			}
			ids[i][b] = d.ID
		}
		for _, alike := range likenesses {
			rest = slices.DeleteFunc(rest, func(d device) bool {
				for i, c := range cards {
					if _, taken := ids[i][b]; !taken && alike(c, b, d) {
						put(i, d)
						return true
					}
				}
				return false
			})
		}
		for _, d := range rest {
			cards, ids = append(cards, card{GPU: lease.GPU{Vendor: makerOf(b, d), Model: d.Name}, bus: busOf(d.ID)}), append(ids, nil)
			put(len(cards)-1, d)
		}
	}
	return cards, ids
}

// describe writes into c its GPUs, with what the Blenders can do with them, and the
// Blenders.
func describe(c *lease.Capability, cards []card, found []blender) {
	for _, b := range found {
		build := b.build()
		cards, build.GPUs = attach(cards, b.Devices)
		build.Backends = backends(func(want lease.Backend) bool { return want == lease.CPU || len(b.Devices[want]) > 0 })
		c.Builds = append(c.Builds, build)
	}
	for i, card := range cards {
		g := card.GPU
		g.Backends = backends(func(want lease.Backend) bool {
			return slices.ContainsFunc(c.Builds, func(b lease.Build) bool { return i < len(b.GPUs) && b.GPUs[i][want] != "" })
		})
		c.GPUs = append(c.GPUs, g)
	}
	c.Backends = backends(func(want lease.Backend) bool {
		return slices.ContainsFunc(c.Builds, func(b lease.Build) bool { return slices.Contains(b.Backends, want) })
	})
}

// backends lists those that are there, best first; nil where there is none.
func backends(there func(lease.Backend) bool) (list []lease.Backend) {
	for _, b := range lease.Backends() {
		if there(b) {
			list = append(list, b)
		}
	}
	return list
}
