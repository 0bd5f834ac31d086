package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os/exec"
	"path"
	"regexp"
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
	intel, text := p.xpu(ctx)
	add(intel, text)
	told := map[lease.Vendor]bool{lease.NVIDIA: len(nvidia) > 0, lease.AMD: len(amd) > 0, lease.Intel: len(intel) > 0}
	for _, c := range p.cards() {
		// A tool may not know all cards of its maker: xpu-smi not those in processors,
		// and nvidia-smi none that has fallen off the bus.
		if told[c.Vendor] && (c.bus == "" || slices.ContainsFunc(found.list, func(f card) bool { return f.Vendor == c.Vendor && (f.bus == "" || f.bus == c.bus) })) {
			continue
		}
		add([]card{c}, []byte(c.Model+" "+c.bus+" "+c.Driver+"\n"))
	}
	switch {
	case runtime.GOOS == "darwin" && runtime.GOARCH == "arm64":
		// The memory is shared; macOS lets the GPU use about two thirds of it.
		add([]card{{GPU: lease.GPU{Vendor: lease.Apple, Model: cmp.Or(c.CPU, "Apple"), VRAM: c.RAM / 3 * 2}}}, []byte(c.CPU))
	case runtime.GOOS == "windows":
		for _, g := range p.windowsCards() {
			if !told[g.Vendor] {
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
	switch {
	case errors.Is(err, exec.ErrNotFound):
		p.cfg.Logger.Debug("a GPU tool is not there", "tool", name)
	case bytes.Contains(out, unknownField): // it is asked again
	case err != nil:
		said := strings.ToValidUTF8(strings.TrimSpace(string(out[:min(len(out), 300)])), "\uFFFD")
		p.cfg.Logger.Warn("a GPU tool failed, so less is known of this machine's GPUs: see whether their driver works", "tool", name, "err", err, "said", said)
	}
	return out
}

// unknownField is what nvidia-smi says of a question that it is too old for.
var unknownField = []byte("is not a valid field")

// nvidiaFields are what nvidia-smi is asked; drivers of before 2020 do not know the last.
const nvidiaFields = "name,memory.total,uuid,driver_version,pci.bus_id"

// nvidia reads lines like "NVIDIA RTX A4000, 16376, GPU-…, 535.104.05,
// 00000000:01:00.0, [N/A]"; memory is in MiB. The last tells whether the card is cut into
// instances (MIG).
func (p prober) nvidia(ctx context.Context) ([]card, []byte) {
	ask := func(fields string) []byte {
		return p.tool(ctx, "nvidia-smi", "--query-gpu="+fields, "--format=csv,noheader,nounits")
	}
	out := ask(nvidiaFields + ",mig.mode.current")
	if bytes.Contains(out, unknownField) {
		out = ask(nvidiaFields)
	}
	r := csv.NewReader(bytes.NewReader(out))
	r.FieldsPerRecord, r.TrimLeadingSpace, r.LazyQuotes = -1, true, true
	var list []card
	var instances map[string]int64
	for {
		fields, err := r.Read()
		if err != nil {
			break
		}
		for i, f := range fields {
			if fields[i] = strings.TrimSpace(f); strings.HasPrefix(fields[i], "[") { // [N/A], [Unknown Error], [GPU requires reset]
				fields[i] = ""
			}
		}
		if len(fields) < 4 || !strings.HasPrefix(fields[2], "GPU-") {
			continue // "NVIDIA-SMI has failed because …" comes on standard output too
		}
		mib, _ := strconv.ParseInt(fields[1], 10, 64) // [N/A] where memory is shared
		c := card{GPU: lease.GPU{Vendor: lease.NVIDIA, Model: cmp.Or(fields[0], "NVIDIA GPU"), VRAM: max(0, mib) << 20, Driver: fields[3]}}
		if len(fields) > 4 {
			c.bus = busOf(fields[4])
		}
		if len(fields) > 5 && fields[5] == "Enabled" {
			if instances == nil {
				text := p.tool(ctx, "nvidia-smi", "-L")
				instances, out = migMemory(text), append(out, text...)
			}
			c.VRAM = instances[fields[2]]
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, out
}

var (
	migCard     = regexp.MustCompile(`^GPU \d+: .*\(UUID: (GPU-[^)]+)\)`)
	migInstance = regexp.MustCompile(`^\s+MIG \d+[cg]\.(?:\d+g\.)?(\d+)gb`)
)

// migMemory reads, from "nvidia-smi -L", how much memory a program has on each card that
// is cut into instances: that of the first, as a process sees no other. Memory is in the
// instance's name: "MIG 3g.40gb".
func migMemory(text []byte) map[string]int64 {
	memory := make(map[string]int64)
	at := ""
	for line := range strings.Lines(string(text)) {
		if m := migCard.FindStringSubmatch(line); m != nil {
			at = m[1]
		} else if m := migInstance.FindStringSubmatch(line); m != nil && at != "" {
			gb, _ := strconv.ParseInt(m[1], 10, 32)
			if _, known := memory[at]; !known {
				memory[at] = gb << 30
			}
		}
	}
	return memory
}

// rocm reads a document of {"card0": {"Card Series": …, "VRAM Total Memory (B)": …,
// "PCI Bus": "0000:03:00.0"}}, whose keys have changed their case over the years.
func (p prober) rocm(ctx context.Context) ([]card, []byte) {
	out := p.tool(ctx, "rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--showdriverversion", "--json")
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:] // warnings come first
	}
	var cards map[string]map[string]any
	if json.Unmarshal(out, &cards) != nil {
		return nil, nil
	}
	values := func(name string) map[string]string {
		values := map[string]string{}
		for key, value := range cards[name] {
			if s, ok := value.(string); ok && s != "N/A" {
				values[strings.ToLower(key)] = s
			}
		}
		return values
	}
	driver := values("system")["driver version"]
	var list []card
	for _, name := range slices.Sorted(maps.Keys(cards)) {
		if !strings.HasPrefix(name, "card") {
			continue
		}
		values := values(name)
		vram, _ := strconv.ParseInt(values["vram total memory (b)"], 10, 64)
		list = append(list, card{bus: busOf(values["pci bus"]), GPU: lease.GPU{
			Vendor: lease.AMD,
			Model:  cmp.Or(named(values["card series"]), named(values["card model"]), named(values["device name"]), pciName(p.sys.files(), "0x1002", cmp.Or(values["card model"], values["device id"])), "AMD GPU"),
			VRAM:   max(0, vram),
			Driver: driver,
		}})
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, out
}

// named is a card's name, "" where it is only a number.
func named(text string) string {
	if strings.HasPrefix(text, "0x") {
		return ""
	}
	return text
}

// xpu asks Intel's tool: first for a list of devices, then for each.
func (p prober) xpu(ctx context.Context) ([]card, []byte) {
	out := p.tool(ctx, "xpu-smi", "discovery", "-j")
	var all struct {
		Devices []struct {
			ID   int    `json:"device_id"`
			Type string `json:"device_type"`
		} `json:"device_list"`
	}
	if json.Unmarshal(out, &all) != nil {
		return nil, nil
	}
	var list []card
	for _, d := range all.Devices[:min(len(all.Devices), maxDevices)] {
		text := p.tool(ctx, "xpu-smi", "discovery", "-d", strconv.Itoa(d.ID), "-j")
		var is struct {
			Name   string          `json:"device_name"`
			Bus    string          `json:"pci_bdf_address"`
			Driver string          `json:"driver_version"`
			Memory json.RawMessage `json:"memory_physical_size_byte"`
		}
		if json.Unmarshal(text, &is) != nil || is.Name == "" {
			continue
		}
		vram, _ := strconv.ParseInt(strings.Trim(string(is.Memory), `"`), 10, 64) // a number or a text, "N/A" where it is shared
		list = append(list, card{bus: busOf(is.Bus), GPU: lease.GPU{Vendor: lease.Intel, Model: is.Name, VRAM: max(0, vram), Driver: is.Driver}})
		out = append(out, text...)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, out
}

// maxDevices bounds the devices that a tool is asked about one by one.
const maxDevices = 16

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
		vram, _ := strconv.ParseInt(cmp.Or(read("mem_info_vram_total"), read("../lmem_total_bytes")), 10, 64) // of AMD; of Intel
		device := read("device")
		list = append(list, card{bus: busOf(read("uevent")), GPU: lease.GPU{ // PCI_SLOT_NAME=0000:03:00.0
			Vendor: vendor,
			Model:  cmp.Or(read("product_name"), pciName(files, read("vendor"), device), string(vendor)+" "+device),
			VRAM:   max(0, vram),
			Driver: kernelDriver(files, read("uevent")),
		}})
	}
	return list
}

// kernelDriver names what of the kernel drives a card, by its uevent: "nvidia 550.54.15",
// or "i915 (Linux 6.8.0)" for what comes with the kernel.
func kernelDriver(files fs.FS, uevent string) string {
	read := func(name string) string {
		b, _ := fs.ReadFile(files, name)
		return strings.TrimSpace(string(b))
	}
	for line := range strings.Lines(uevent) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "DRIVER=")
		if !ok || !fs.ValidPath(name) {
			continue
		}
		if version := read("sys/module/" + name + "/version"); version != "" {
			return name + " " + version
		}
		if linux := read("proc/sys/kernel/osrelease"); linux != "" {
			return name + " (Linux " + linux + ")"
		}
		return name
	}
	return ""
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
