package probe

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// seenBy lists devices of one backend by their IDs, each with the name in it.
func seenBy(name string, ids ...string) (list []device) {
	for _, id := range ids {
		list = append(list, device{ID: id, Name: name})
	}
	return list
}

func TestCardsAreFoundInBlender(t *testing.T) {
	const cuda0, cuda1 = "CUDA_NVIDIA RTX A4000_0000:01:00", "CUDA_NVIDIA RTX A4000_0000:41:00"
	nvidia := lease.GPU{Vendor: lease.NVIDIA, Model: "NVIDIA RTX A4000", VRAM: 16 << 30}
	amd := lease.GPU{Vendor: lease.AMD, Model: "Navi 31 [Radeon RX 7900 XT]", VRAM: 20 << 30}
	onboard := lease.GPU{Vendor: lease.AMD, Model: "Raphael"}
	arc := lease.GPU{Vendor: lease.Intel, Model: "DG2 [Arc A770]"}
	with := func(g lease.GPU, b ...lease.Backend) lease.GPU { g.Backends = b; return g }
	type seen = map[lease.Backend][]device
	for name, c := range map[string]struct {
		cards []card
		seen  []seen // by each Blender
		gpus  []lease.GPU
		ids   [][]map[lease.Backend]string // by each Blender
	}{
		// CUDA lists a card that drives a display last, the tool by its place.
		"equal cards, in another order": {
			[]card{{nvidia, "0000:01:00"}, {nvidia, "0000:41:00"}},
			[]seen{{lease.CUDA: seenBy("NVIDIA RTX A4000", cuda1, cuda0), lease.OptiX: seenBy("NVIDIA RTX A4000", cuda1+"_OptiX", cuda0+"_OptiX")}},
			[]lease.GPU{with(nvidia, lease.OptiX, lease.CUDA), with(nvidia, lease.OptiX, lease.CUDA)},
			[][]map[lease.Backend]string{{{lease.CUDA: cuda0, lease.OptiX: cuda0 + "_OptiX"}, {lease.CUDA: cuda1, lease.OptiX: cuda1 + "_OptiX"}}},
		},
		"equal cards, one of them hidden": {
			[]card{{nvidia, "0000:01:00"}, {nvidia, "0000:41:00"}},
			[]seen{{lease.CUDA: seenBy("NVIDIA RTX A4000", cuda1)}},
			[]lease.GPU{nvidia, with(nvidia, lease.CUDA)},
			[][]map[lease.Backend]string{{nil, {lease.CUDA: cuda1}}},
		},
		"only the one that HIP can use": {
			[]card{{onboard, "0000:10:00"}, {amd, "0000:03:00"}},
			[]seen{{lease.HIP: seenBy("AMD Radeon RX 7900 XT", "HIP_AMD Radeon RX 7900 XT_0000:03:00")}},
			[]lease.GPU{onboard, with(amd, lease.HIP)},
			[][]map[lease.Backend]string{{nil, {lease.HIP: "HIP_AMD Radeon RX 7900 XT_0000:03:00"}}},
		},
		"by name, where no tool tells addresses": {
			[]card{{GPU: lease.GPU{Vendor: lease.AMD, Model: "AMD Radeon(TM) Graphics"}}, {GPU: lease.GPU{Vendor: lease.AMD, Model: "AMD Radeon RX 6800"}}},
			[]seen{{lease.HIP: seenBy("AMD Radeon RX 6800", "HIP_AMD Radeon RX 6800_0000:03:00")}},
			[]lease.GPU{{Vendor: lease.AMD, Model: "AMD Radeon(TM) Graphics"}, {Vendor: lease.AMD, Model: "AMD Radeon RX 6800", Backends: []lease.Backend{lease.HIP}}},
			[][]map[lease.Backend]string{{nil, {lease.HIP: "HIP_AMD Radeon RX 6800_0000:03:00"}}},
		},
		"by its maker, where no address and no name is the same": {
			[]card{{arc, ""}, {GPU: lease.GPU{Vendor: lease.Apple, Model: "Apple M1"}}},
			[]seen{{lease.OneAPI: seenBy("Intel(R) Arc(TM) A770 Graphics", "ONEAPI_Level-Zero_Intel(R) Arc(TM) A770 Graphics_0000:03:00.0"), lease.Metal: seenBy("Apple M1 (GPU - 8 cores)", "METAL_Apple M1 (GPU - 8 cores)")}},
			[]lease.GPU{with(arc, lease.OneAPI), {Vendor: lease.Apple, Model: "Apple M1", Backends: []lease.Backend{lease.Metal}}},
			[][]map[lease.Backend]string{{{lease.OneAPI: "ONEAPI_Level-Zero_Intel(R) Arc(TM) A770 Graphics_0000:03:00.0"}, {lease.Metal: "METAL_Apple M1 (GPU - 8 cores)"}}},
		},
		"those that only Blender knows of": {
			nil,
			[]seen{{
				lease.CUDA: seenBy("NVIDIA RTX A4000", cuda0, cuda1), lease.OptiX: seenBy("NVIDIA RTX A4000", cuda1+"_OptiX"),
				lease.Metal: seenBy("AMD Radeon Pro 580", "METAL_AMD Radeon Pro 580", "METAL_AMD Radeon Pro 580_ID_1"),
			}},
			[]lease.GPU{
				{Vendor: lease.NVIDIA, Model: "NVIDIA RTX A4000", Backends: []lease.Backend{lease.OptiX, lease.CUDA}}, {Vendor: lease.NVIDIA, Model: "NVIDIA RTX A4000", Backends: []lease.Backend{lease.CUDA}},
				{Vendor: lease.AMD, Model: "AMD Radeon Pro 580", Backends: []lease.Backend{lease.Metal}}, {Vendor: lease.AMD, Model: "AMD Radeon Pro 580", Backends: []lease.Backend{lease.Metal}},
			},
			[][]map[lease.Backend]string{{
				{lease.CUDA: cuda1, lease.OptiX: cuda1 + "_OptiX"}, {lease.CUDA: cuda0}, {lease.Metal: "METAL_AMD Radeon Pro 580"}, {lease.Metal: "METAL_AMD Radeon Pro 580_ID_1"},
			}},
		},
		"two Blenders": {
			[]card{{nvidia, "0000:01:00"}},
			[]seen{
				{lease.CUDA: seenBy("NVIDIA RTX A4000", cuda0)},
				{lease.CUDA: seenBy("NVIDIA RTX A4000", cuda0), lease.OptiX: seenBy("NVIDIA RTX A4000", cuda0+"_OptiX"), lease.HIP: seenBy("AMD Radeon RX 6800", "HIP_AMD Radeon RX 6800_0000:03:00")},
				{},
			},
			[]lease.GPU{with(nvidia, lease.OptiX, lease.CUDA), {Vendor: lease.AMD, Model: "AMD Radeon RX 6800", Backends: []lease.Backend{lease.HIP}}},
			[][]map[lease.Backend]string{
				{{lease.CUDA: cuda0}}, {{lease.CUDA: cuda0, lease.OptiX: cuda0 + "_OptiX"}, {lease.HIP: "HIP_AMD Radeon RX 6800_0000:03:00"}}, {nil, nil},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var found []blender
			for _, s := range c.seen {
				found = append(found, blender{Devices: s})
			}
			var can lease.Capability
			describe(&can, c.cards, found)
			require.Equal(t, c.gpus, can.GPUs)
			require.Contains(t, can.Backends, lease.CPU)
			for i, ids := range c.ids {
				require.Equal(t, ids, can.Builds[i].GPUs)
				for b := range c.seen[i] {
					require.Contains(t, can.Builds[i].Backends, b)
				}
				require.Len(t, can.Builds[i].Backends, len(c.seen[i])+1)
			}
			can.Slots = 1
			require.NoError(t, can.Validate())
		})
	}
	var none lease.Capability
	describe(&none, []card{{nvidia, "0000:01:00"}}, nil)
	require.Equal(t, lease.Capability{GPUs: []lease.GPU{nvidia}}, none, "without a Blender it renders nothing")
}

func TestBusOf(t *testing.T) {
	for text, want := range map[string]string{
		"00000000:01:00.0": "0000:01:00", "0000:C1:00.0": "0000:c1:00", "00010000:01:00.0": "10000:01:00", "PCI_SLOT_NAME=0000:03:00.0": "0000:03:00",
		"DRIVER=x\nPCI_ID=10DE:2204\nPCI_SLOT_NAME=0000:03:00.0\nMODALIAS=pci:v0": "0000:03:00",
		"CUDA_NVIDIA GeForce RTX 3090_0000:01:00_OptiX":                           "0000:01:00", "METAL_Apple M1": "", "": "", "[N/A]": "",
	} {
		require.Equal(t, want, busOf(text), text)
	}
}
