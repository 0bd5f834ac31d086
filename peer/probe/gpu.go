package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"vizpeer/lease"
)

// toolTime bounds a vendor's tool: one that waits for a broken driver never
// answers.
const toolTime = 20 * time.Second

// card is a GPU as the machine's own tools see it.
type card struct {
	lease.GPU
	bus string // see [busOf]; "" where no tool tells
}

// gpus is the machine's graphics devices, and a text that changes with them and
// their drivers.
type gpus struct {
	list        []card
	fingerprint string
}

// gpus asks the vendors' tools, which know names and memory, and the kernel for
// what they do not see.
func (p prober) gpus(ctx context.Context, c lease.Capability) gpus {
	var found gpus
	add := func(list []card, fingerprint []byte) {
		found.list = append(found.list, list...)
		found.fingerprint += string(fingerprint)
	}
	nvidia, text := p.nvidia(ctx)
	add(nvidia, text)
	amd, text := p.rocm(ctx)
	add(amd, text)
	for _, c := range p.cards() {
		if c.Vendor == lease.NVIDIA && len(nvidia) > 0 || c.Vendor == lease.AMD && len(amd) > 0 {
			continue
		}
		add([]card{c}, []byte(c.Model+" "+c.bus+"\n"))
	}
	switch {
	case runtime.GOOS == "darwin" && runtime.GOARCH == "arm64":
		// The memory is shared; macOS lets the GPU use about two thirds of it.
		add([]card{{GPU: lease.GPU{Vendor: lease.Apple, Model: cmp.Or(c.CPU, "Apple"), VRAM: c.RAM / 3 * 2}}}, []byte(c.CPU))
	case runtime.GOOS == "windows":
		for _, g := range p.windowsCards() {
			if g.Vendor != lease.NVIDIA || len(nvidia) == 0 {
				add([]card{{GPU: g}}, []byte(g.Model+"\n"))
			}
		}
	}
	return found
}

func (p prober) tool(ctx context.Context, name string, args ...string) []byte {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	out, err := p.sys.run(ctx, name, args...)
	if err != nil {
		p.cfg.Logger.Debug("a GPU tool did not answer", "tool", name, "err", err)
		return nil
	}
	return out
}

// nvidia reads lines like "NVIDIA RTX A4000, 16376, GPU-…, 535.104.05,
// 00000000:01:00.0"; memory is in MiB.
func (p prober) nvidia(ctx context.Context) ([]card, []byte) {
	out := p.tool(ctx, "nvidia-smi", "--query-gpu=name,memory.total,uuid,driver_version,pci.bus_id", "--format=csv,noheader,nounits")
	r := csv.NewReader(bytes.NewReader(out))
	r.FieldsPerRecord, r.TrimLeadingSpace, r.LazyQuotes = -1, true, true
	var list []card
	for {
		fields, err := r.Read()
		if err != nil {
			break
		}
		if len(fields) < 4 || !strings.HasPrefix(fields[2], "GPU-") {
			continue // "NVIDIA-SMI has failed because …" comes on standard output too
		}
		mib, _ := strconv.ParseInt(fields[1], 10, 64) // "[N/A]" where memory is shared
		list = append(list, card{GPU: lease.GPU{Vendor: lease.NVIDIA, Model: fields[0], VRAM: mib << 20}, bus: busOf(strings.Join(fields[4:], ""))})
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, out
}

// rocm reads a document of {"card0": {"Card Series": …, "VRAM Total Memory (B)": …,
// "PCI Bus": "0000:03:00.0"}}, whose keys have changed their case over the years.
func (p prober) rocm(ctx context.Context) ([]card, []byte) {
	out := p.tool(ctx, "rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--json")
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:] // warnings come first
	}
	var cards map[string]map[string]any
	if json.Unmarshal(out, &cards) != nil {
		return nil, nil
	}
	var list []card
	for _, name := range slices.Sorted(maps.Keys(cards)) {
		if !strings.HasPrefix(name, "card") {
			continue
		}
		values := map[string]string{}
		for key, value := range cards[name] {
			if s, ok := value.(string); ok {
				values[strings.ToLower(key)] = s
			}
		}
		vram, _ := strconv.ParseInt(values["vram total memory (b)"], 10, 64)
		list = append(list, card{bus: busOf(values["pci bus"]), GPU: lease.GPU{
			Vendor: lease.AMD,
			Model:  cmp.Or(values["card series"], values["card model"], "AMD GPU"),
			VRAM:   max(0, vram),
		}})
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, out
}

// pciVendors are the makers of GPUs that render; virtual ones do not.
var pciVendors = map[string]lease.Vendor{"0x10de": lease.NVIDIA, "0x1002": lease.AMD, "0x8086": lease.Intel}

// cards lists what the Linux kernel says of the graphics cards.
func (p prober) cards() []card {
	files := p.sys.files()
	found, _ := fs.Glob(files, "sys/class/drm/card[0-9]*/device/vendor")
	var list []card
	for _, file := range found {
		if strings.Contains(path.Base(path.Dir(path.Dir(file))), "-") {
			continue // a connector: card0-HDMI-A-1
		}
		read := func(name string) string {
			b, err := fs.ReadFile(files, path.Join(path.Dir(file), name))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(b))
		}
		vendor, ok := pciVendors[read("vendor")]
		if !ok {
			continue
		}
		vram, _ := strconv.ParseInt(read("mem_info_vram_total"), 10, 64)
		device := read("device")
		list = append(list, card{bus: busOf(read("uevent")), GPU: lease.GPU{ // PCI_SLOT_NAME=0000:03:00.0
			Vendor: vendor,
			Model:  cmp.Or(read("product_name"), pciName(files, read("vendor"), device), string(vendor)+" "+device),
			VRAM:   max(0, vram),
		}})
	}
	return list
}

// pciName looks a device up in the list that most systems carry.
func pciName(files fs.FS, vendor, device string) string {
	for _, name := range []string{"usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"} {
		f, err := files.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		vendor, device = strings.TrimPrefix(vendor, "0x")+"  ", "\t"+strings.TrimPrefix(device, "0x")+"  "
		ours := false
		for lines := bufio.NewScanner(f); lines.Scan(); {
			line := lines.Text()
			switch {
			case line == "" || line[0] == '#':
			case line[0] != '\t':
				ours = strings.HasPrefix(line, vendor)
			case ours && strings.HasPrefix(line, device):
				return strings.TrimPrefix(line, device)
			}
		}
		return ""
	}
	return ""
}
