package lease

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vizpeer/authz"
	"vizpeer/authz/level"
)

// Backend is a way of rendering that a device offers, by Blender's name for it.
type Backend string

// The backends vizpeer knows.
const (
	OptiX  Backend = "OPTIX"
	CUDA   Backend = "CUDA"
	HIP    Backend = "HIP"
	OneAPI Backend = "ONEAPI"
	Metal  Backend = "METAL"
	CPU    Backend = "CPU"
)

// Backends lists every backend.
func Backends() []Backend { return []Backend{OptiX, CUDA, HIP, OneAPI, Metal, CPU} }

// Vendor is a maker of GPUs.
type Vendor string

// The vendors a job may ask for.
const (
	NVIDIA Vendor = "NVIDIA"
	AMD    Vendor = "AMD"
	Intel  Vendor = "INTEL"
	Apple  Vendor = "APPLE"
)

// osNames are the operating systems that a job may ask for, by GOOS, with their
// names for people.
var osNames = map[string]string{"linux": "Linux", "windows": "Windows", "darwin": "macOS"}

// AnyBlender is the version to ask for where every Blender will do that can open
// the file.
const AnyBlender = "any"

// GPU is one graphics device of a machine.
type GPU struct {
	Vendor   Vendor    `json:"vendor"`
	Model    string    `json:"model"`
	VRAM     int64     `json:"vram"`             // bytes; 0 where no tool could tell
	Driver   string    `json:"driver,omitempty"` // its driver's version, or name and version
	Backends []Backend `json:"backends,omitempty"`
}

// Build is one Blender, or Blender-based suite, installed on a machine.
type Build struct {
	Name    string   `json:"name"` // "Blender"
	Version Version  `json:"version"`
	Hash    string   `json:"hash,omitempty"` // the build hash it prints, to tell equal versions apart
	Engines []string `json:"engines,omitempty"`
	OIDN    bool     `json:"oidn"` // can denoise with OpenImageDenoise, as far as it tells
	// Backends are those that it finds a device for; empty where the machine's vizpeer
	// is too old to tell.
	Backends []Backend `json:"backends,omitempty"`
	// Path is where the machine found it. It is for the machine itself and is
	// never sent to others.
	Path string `json:"-"`
	// GPUs has Blender's own name, by backend, of each GPU in the order of
	// [Capability.GPUs]; it tells equal cards apart. It is not sent either.
	GPUs []map[Backend]string `json:"-"`
}

// Capability is what a machine can do: the content of its ad.
type Capability struct {
	OS       string    `json:"os"`   // GOOS
	Arch     string    `json:"arch"` // GOARCH
	CPU      string    `json:"cpu"`  // model name
	Cores    int       `json:"cores"`
	RAM      int64     `json:"ram"` // bytes installed
	GPUs     []GPU     `json:"gpus,omitempty"`
	Backends []Backend `json:"backends,omitempty"` // what any device of it offers; CPU where a Blender is there
	Builds   []Build   `json:"builds,omitempty"`
	Labels   []string  `json:"labels,omitempty"`
	Slots    int       `json:"slots"`              // attempts at once on the CPU; 0 where the machine does not render. See Devices
	FreeDisk int64     `json:"free_disk"`          // bytes free for projects and frames
	Room     *int64    `json:"room,omitempty"`     // bytes that its store may take, counting what it may evict; nil where only the disk bounds it
	Sandbox  string    `json:"sandbox,omitempty"`  // "bubblewrap", or "" where Blender runs unconfined
	Version  string    `json:"version,omitempty"`  // vizpeer's
	Draining bool      `json:"draining,omitempty"` // finishes what it has, takes no more
	// Fetches tells that it fetches a Blender that the farm offers where a job needs it.
	Fetches bool `json:"fetches,omitempty"`
	// Level is the highest that its vizpeer knows; 0 where it does not say: see Knows.
	Level int `json:"level,omitempty" since:"3,ignored"`
	// Reach tells how machines of other networks reach it: [ReachPublic] where they dial
	// it, [ReachNAT] where they cannot, "" where nobody elsewhere could tell. Relays tells that it
	// passes on what such machines say.
	Reach  string `json:"reach,omitempty" since:"3,ignored"`
	Relays bool   `json:"relays,omitempty" since:"3,ignored"`
}

// Knows is the highest level that the machine's vizpeer knows.
func (c Capability) Knows() int { return level.Said(c.Level) }

// How machines of other networks reach a machine: see Capability.
const (
	ReachPublic = "public"
	ReachNAT    = "nat"
)

// Limits of what a machine may say of itself.
const (
	MaxSlots = 64
	maxList  = 64
	maxText  = 256 // bytes
)

// Validate reports what no honest machine says of itself.
func (c Capability) Validate() error {
	if c.Slots < 0 || c.Slots > MaxSlots {
		return fmt.Errorf("%d slots are not possible: use 0 to %d", c.Slots, MaxSlots)
	}
	if max(len(c.GPUs), len(c.Backends), len(c.Builds), len(c.Labels)) > maxList {
		return fmt.Errorf("more than %d GPUs, Blender builds or labels", maxList)
	}
	texts := append([]string{c.OS, c.Arch, c.CPU, c.Sandbox, c.Version, c.Reach}, c.Labels...)
	backends := slices.Clone(c.Backends)
	for _, g := range c.GPUs {
		if len(g.Backends) > maxList {
			return fmt.Errorf("a GPU with more than %d backends", maxList)
		}
		texts, backends = append(texts, g.Model, g.Driver, string(g.Vendor)), append(backends, g.Backends...)
	}
	for _, b := range c.Builds {
		if max(len(b.Engines), len(b.Backends)) > maxList {
			return fmt.Errorf("a Blender with more than %d engines or backends", maxList)
		}
		texts, backends = append(append(texts, b.Name, b.Hash), b.Engines...), append(backends, b.Backends...)
	}
	for _, b := range backends {
		texts = append(texts, string(b))
	}
	for _, t := range texts {
		if len(t) > maxText {
			return fmt.Errorf("a text of more than %d bytes", maxText)
		}
	}
	return nil
}

// Believed is c as the farm takes it: with the labels that an admin granted the
// machine, and without those that it gives itself and may not; see
// [authz.OnlyGranted].
func (c Capability) Believed(granted []string) Capability {
	labels := slices.DeleteFunc(slices.Clone(c.Labels), authz.OnlyGranted)
	labels = append(labels, granted...)
	slices.Sort(labels)
	c.Labels = slices.Compact(labels)
	return c
}

// Requirements are what a job needs of a machine. The zero value is satisfied by
// every machine with a Blender.
type Requirements struct {
	Backend    Backend  `json:"backend,omitempty"`
	RequireGPU bool     `json:"require_gpu,omitempty"`
	GPUVendor  Vendor   `json:"gpu_vendor,omitempty"`
	MinVRAM    int64    `json:"min_vram,omitempty"` // bytes, of one GPU
	MinRAM     int64    `json:"min_ram,omitempty"`  // bytes
	OS         string   `json:"os,omitempty"`       // GOOS: linux, windows or darwin
	Labels     []string `json:"labels,omitempty"`   // the machine must carry all of them
	// Blender is the version the artist asked for: "3.4" matches every 3.4.x,
	// "3.4.1" only itself, [AnyBlender] every one that is not older than the file.
	// "" matches those of the release that saved the file, where that is known:
	// another renders, but not always the same picture.
	Blender string `json:"blender,omitempty"`
	// FileVersion is the version that saved the .blend. An older Blender cannot
	// be trusted with it, whatever is asked for: it may crash.
	FileVersion Version `json:"file_version,omitzero"`
	Engine      string  `json:"engine,omitempty"` // Blender's identifier, or "" for the file's own
	// Denoise tells that the render denoises with OpenImageDenoise: a Blender
	// without it fails, or renders black or noisy frames without a word.
	Denoise bool `json:"denoise,omitempty"`
	// Disk is the bytes a machine needs free for the project, in its store and
	// unpacked for Blender.
	Disk int64 `json:"disk,omitempty"`
	// Store is the part of Disk that goes into the store, whose quota must allow it.
	Store int64 `json:"store,omitempty"`
}

// Holding is r for a machine that holds the project already.
func (r Requirements) Holding() Requirements {
	r.Disk, r.Store = max(0, r.Disk-r.Store), 0
	return r
}

// Anywhere is r for a project that takes no room.
func (r Requirements) Anywhere() Requirements {
	r.Disk, r.Store = 0, 0
	return r
}

// Validate reports a requirement that no machine could ever meet.
func (r Requirements) Validate() error {
	switch {
	case r.Backend != "" && !slices.Contains(Backends(), r.Backend):
		return fmt.Errorf("unknown backend %q: use one of OPTIX, CUDA, HIP, ONEAPI, METAL, CPU", r.Backend)
	case r.GPUVendor != "" && !slices.Contains([]Vendor{NVIDIA, AMD, Intel, Apple}, r.GPUVendor):
		return fmt.Errorf("unknown GPU vendor %q: use one of NVIDIA, AMD, INTEL, APPLE", r.GPUVendor)
	case r.OS != "" && osNames[r.OS] == "":
		return fmt.Errorf("unknown operating system %q: use one of linux, windows, darwin (macOS)", r.OS)
	case r.MinRAM < 0 || r.MinVRAM < 0 || r.Disk < 0 || r.Store < 0:
		return fmt.Errorf("a memory requirement is negative: use 0 for none")
	case r.Backend == CPU && (r.RequireGPU || r.GPUVendor != "" || r.MinVRAM > 0):
		return fmt.Errorf("the CPU backend cannot be combined with GPU requirements: drop one of them")
	case len(r.Labels) > 64:
		return fmt.Errorf("%d labels are more than the 64 allowed", len(r.Labels))
	}
	for _, l := range r.Labels {
		if len(l) > maxText {
			return fmt.Errorf("a label is longer than %d bytes", maxText)
		}
	}
	if r.Blender != "" && r.Blender != AnyBlender {
		if _, err := ParseVersion(r.Blender); err != nil {
			return err
		}
	}
	return nil
}

// Lack is one requirement that a machine does not meet, in words: what is
// needed, what the machine has and, where that is not plain, what to do.
type Lack struct {
	Need string `json:"need"`
	Has  string `json:"has"`
	Next string `json:"next,omitempty"`
}

func (l Lack) String() string {
	if l.Next != "" {
		return fmt.Sprintf("needs %s, has %s: %s", l.Need, l.Has, l.Next)
	}
	return fmt.Sprintf("needs %s, has %s", l.Need, l.Has)
}

// Match lists what c lacks of r; an empty list means that the machine fits. The
// leader and the worker both ask it, so that a grant never rests on one side's
// word.
func (r Requirements) Match(c Capability) []Lack {
	var lacks []Lack
	lack := func(need, has string) { lacks = append(lacks, Lack{Need: need, Has: cmp.Or(has, "none")}) }
	if c.Slots < 1 {
		lack("a machine that renders", "no render slots")
	}
	if r.OS != "" && c.OS != r.OS {
		lack(osNames[r.OS], cmp.Or(osNames[c.OS], c.OS))
	}
	if _, ok := r.Build(c); !ok {
		lacks = append(lacks, r.blenderLack(c.Builds))
	}
	offered := r.Backend == "" || slices.Contains(c.Backends, r.Backend)
	if !offered {
		lack("backend "+string(r.Backend), join(c.Backends, ", ", func(b Backend) string { return string(b) }))
	}
	if offered || r.RequireGPU || r.GPUVendor != "" || r.MinVRAM > 0 {
		if l, short := r.gpuLack(c); short {
			lacks = append(lacks, l)
		}
	}
	if c.RAM < r.MinRAM {
		lack(Gigabytes(r.MinRAM)+" RAM", Gigabytes(c.RAM))
	}
	for _, l := range r.Labels {
		if !slices.Contains(c.Labels, l) {
			lack("label "+strconv.Quote(l), join(c.Labels, ", ", strconv.Quote))
		}
	}
	if c.FreeDisk < r.Disk {
		lack(Gigabytes(r.Disk)+" of free disk", Gigabytes(c.FreeDisk))
	}
	if c.Room != nil && *c.Room < r.Store {
		lack(Gigabytes(r.Store)+" of room in its store", Gigabytes(*c.Room))
	}
	return lacks
}

// Build picks the Blender of c that should render: of those that fit, the oldest
// release that can open the file, so that the result is nearest to what the
// artist saw. It is the same on all of c's devices; where r wants a GPU, one that can
// use it goes first.
func (r Requirements) Build(c Capability) (Build, bool) {
	var best Build
	found, able := false, false
	for _, b := range c.Builds {
		if !r.meets(wantVersion, b) || !r.meets(wantFile, b) || !r.meets(wantEngine, b) || !r.meets(wantDenoiser, b) {
			continue
		}
		can := !r.WantsGPU() || slices.ContainsFunc(c.GPUs, func(g GPU) bool { return r.uses(b, g) })
		if !found || can && !able || can == able && b.Version.Less(best.Version) {
			best, found, able = b, true, can
		}
	}
	return best, found
}

// want is a thing that a job may want of a Blender.
type want int

const (
	wantVersion want = iota
	wantFile
	wantEngine
	wantDenoiser
	wants // how many there are
)

// meets tells whether b has w, or r does not want it.
func (r Requirements) meets(w want, b Build) bool {
	switch w {
	case wantVersion:
		switch r.Blender {
		case AnyBlender:
			return true
		case "":
			return r.FileVersion == (Version{}) || b.Version.Release() == r.FileVersion.Release()
		}
		return b.Version.Matches(r.Blender)
	case wantFile:
		return !b.Version.Less(r.FileVersion.Release())
	case wantEngine:
		return r.Engine == "" || len(b.Engines) == 0 || slices.Contains(b.Engines, r.Engine)
	}
	return !r.Denoise || b.OIDN
}

// need is w in words, "" where r does not want it.
func (r Requirements) need(w want) string {
	saved := r.FileVersion != (Version{})
	switch {
	case w == wantVersion && r.Blender == "" && saved:
		return "Blender " + r.FileVersion.Series() + " (the file was saved with it)"
	case w == wantVersion && r.Blender != "" && r.Blender != AnyBlender:
		return "Blender " + r.Blender
	case w == wantFile && r.Blender != "" && saved: // or the one above says more
		return "Blender " + r.FileVersion.Series() + " or newer (the file was saved with it)"
	case w == wantEngine && r.Engine != "":
		return "the engine " + r.Engine
	case w == wantDenoiser && r.Denoise:
		return "a Blender with OpenImageDenoise (the scene denoises)"
	}
	return ""
}

// blenderLack says why none of builds should render: it names what no build has
// or, where there is a build for each want and none for all of them, all.
func (r Requirements) blenderLack(builds []Build) Lack {
	var all, unmet []want
	for w := range wants {
		if r.need(w) == "" {
			continue
		}
		all = append(all, w)
		if !slices.ContainsFunc(builds, func(b Build) bool { return r.meets(w, b) }) {
			unmet = append(unmet, w)
		}
	}
	if len(unmet) == 0 {
		unmet = all
	}
	engine, denoiser := slices.Contains(unmet, wantEngine), slices.Contains(unmet, wantDenoiser)
	l := Lack{Need: cmp.Or(join(unmet, " and ", r.need), "a Blender")}
	l.Has = cmp.Or(join(builds, ", ", func(b Build) string {
		text := b.Name + " " + b.Version.String()
		if engine && len(b.Engines) > 0 {
			text += " (" + strings.Join(b.Engines, ", ") + ")"
		}
		if denoiser && !b.OIDN {
			text += " without it"
		}
		return text
	}), "none")
	if len(builds) == 0 {
		return l
	}
	var next []string
	if r.Blender == "" && slices.Contains(unmet, wantVersion) {
		next = append(next, fmt.Sprintf("install Blender %s on a machine, or submit with --blender-version any to let a newer one render it", r.FileVersion.Series()))
	}
	if denoiser {
		next = append(next, "switch denoising off in the scene, or install a Blender from blender.org on a machine")
	}
	l.Next = strings.Join(next, "; ")
	return l
}

// VRAM is the memory of the largest GPU, in bytes; 0 where there is none or no tool
// could tell.
func (c Capability) VRAM() int64 {
	var most int64
	for _, g := range c.GPUs {
		most = max(most, g.VRAM)
	}
	return most
}

func (r Requirements) gpuFits(g GPU) bool {
	return (r.GPUVendor == "" || g.Vendor == r.GPUVendor) && g.VRAM >= r.MinVRAM &&
		(r.Backend == "" || slices.Contains(g.Backends, r.Backend))
}

func (r Requirements) gpuNeed() string {
	need := "a GPU"
	if r.GPUVendor != "" {
		need = "a GPU of " + string(r.GPUVendor)
	}
	if r.MinVRAM > 0 {
		need += " with " + Gigabytes(r.MinVRAM) + " VRAM"
	}
	if r.Backend != "" {
		need += " that does " + string(r.Backend)
	}
	return need
}

// Gigabytes writes a number of bytes for people.
func Gigabytes(n int64) string {
	if 0 < n && n < 1<<30 {
		return strconv.FormatInt((n+1<<20-1)>>20, 10) + " MiB"
	}
	return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) + " GiB"
}

func join[T any](list []T, between string, text func(T) string) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = text(v)
	}
	return strings.Join(words, between)
}

// Version is a Blender version. The zero value means unknown.
type Version struct{ Major, Minor, Patch int }

// ParseVersion reads "3.4", "3.4.1" or "4.2.1 LTS".
func ParseVersion(s string) (Version, error) {
	number, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	parts := strings.Split(number, ".")
	var n [3]int
	if len(parts) < 2 || len(parts) > 3 {
		return Version{}, fmt.Errorf("%q is not a Blender version: write it like 3.4 or 3.4.1", s)
	}
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil || v < 0 || v > 999 {
			return Version{}, fmt.Errorf("%q is not a Blender version: write it like 3.4 or 3.4.1", s)
		}
		n[i] = v
	}
	return Version{n[0], n[1], n[2]}, nil
}

// Less tells whether v is older than w.
func (v Version) Less(w Version) bool {
	if v.Major != w.Major {
		return v.Major < w.Major
	}
	if v.Minor != w.Minor {
		return v.Minor < w.Minor
	}
	return v.Patch < w.Patch
}

// Release is v without its patch level: releases that share it read each other's
// files.
func (v Version) Release() Version { return Version{Major: v.Major, Minor: v.Minor} }

// Series names v's release as people do: "3.4".
func (v Version) Series() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Matches tells whether v is the version that want names, to the precision that
// want has.
func (v Version) Matches(want string) bool {
	w, err := ParseVersion(want)
	if err != nil {
		return false
	}
	if strings.Count(want, ".") < 2 {
		return v.Release() == w
	}
	return v == w
}

// String writes "3.4.1", or "" for the zero value.
func (v Version) String() string {
	if v == (Version{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// MarshalText writes [Version.String].
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what [Version.MarshalText] wrote.
func (v *Version) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*v = Version{}
		return nil
	}
	w, err := ParseVersion(string(b))
	*v = w
	return err
}
