package probe

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2/maybe"

	"vizpeer/lease"
)

// script asks a Blender from inside.
//
//go:embed probe.py
var script []byte

// questions changes with what probe.py asks, so that Blenders are asked anew.
const questions = "2\n"

const (
	versionTime = 30 * time.Second
	scriptTime  = 2 * time.Minute // the first look at a GPU can be slow
	killGrace   = 2 * time.Second
)

// blender is what is known of one Blender: a line of probe.json.
type blender struct {
	Path        string    `json:"path"`
	Size        int64     `json:"size"`
	Modified    time.Time `json:"modified"`
	Fingerprint string    `json:"fingerprint"` // of the machine's GPUs when it was asked, and of the questions
	// Content is the SHA-256 of the program, where that tells it from all others: the
	// same Blender is known again wherever it lies, and whatever its times.
	Content string `json:"content,omitempty"`

	Name    string                     `json:"name"`
	Version lease.Version              `json:"version"`
	Hash    string                     `json:"hash"`
	Engines []string                   `json:"engines"`
	OIDN    bool                       `json:"oidn"`
	Devices map[lease.Backend][]device `json:"gpus"`
}

func (b blender) build() lease.Build {
	return lease.Build{Name: b.Name, Version: b.Version, Hash: b.Hash, Engines: b.Engines, OIDN: b.OIDN, Path: b.Path}
}

// same tells whether what is known of b still holds for the file as it is now.
func (b blender) same(now blender) bool {
	return b.Path == now.Path && b.Size == now.Size && b.Modified.Equal(now.Modified) && b.Fingerprint == now.Fingerprint
}

// moved tells whether what is known of b holds for the same program in another place.
func (b blender) moved(now blender) bool {
	return b.Content != "" && b.Content == now.Content && b.Fingerprint == now.Fingerprint
}

// minContent is the least size, in bytes, of a program whose content tells what it is: a
// script that starts one says nothing of that.
const minContent = 4 << 20

// content is the SHA-256 of a program; "" where that tells nothing.
func content(ctx context.Context, b blender) string {
	if b.Size < minContent {
		return ""
	}
	f, err := os.Open(b.Path)
	if err != nil {
		return ""
	}
	defer f.Close()
	hash, block := sha256.New(), make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := f.Read(block)
		hash.Write(block[:n])
		if err == io.EOF {
			return hex.EncodeToString(hash.Sum(nil))
		}
		if err != nil {
			break
		}
	}
	return ""
}

// maxKnown bounds what is remembered of Blenders that are not asked for now.
const maxKnown = 64

// blenders asks every Blender of the machine that it does not know yet.
func (p prober) blenders(ctx context.Context, g gpus) []blender {
	known := p.load()
	var found []blender
	named, others := p.candidates()
	for i, path := range append(named, others...) {
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		now := blender{Path: path, Size: st.Size(), Modified: st.ModTime().UTC(), Fingerprint: questions + g.fingerprint}
		if k := slices.IndexFunc(known, now.same); k >= 0 {
			found = append(found, known[k])
			continue
		}
		now.Content = content(ctx, now)
		if k := slices.IndexFunc(known, now.moved); k >= 0 {
			was := known[k]
			was.Path, was.Size, was.Modified = now.Path, now.Size, now.Modified
			found = append(found, was)
			continue
		}
		now, err = p.ask(ctx, now)
		switch {
		case ctx.Err() != nil: // it was the probe that ended, not the Blender
			return found
		case err != nil && i < len(named):
			p.cfg.Logger.Warn("the Blender that the owner names does not work, so this machine does not offer it: "+
				"try whether it runs by itself, or give another with --blender", "path", path, "err", err)
			continue
		case err != nil:
			p.cfg.Logger.Warn("a Blender was found but does not work, so this machine does not offer it", "path", path, "err", err)
			continue
		}
		found = append(found, now)
	}
	keeps := slices.Clone(found)
	for _, k := range known { // another command may know of more Blenders
		if len(keeps) < maxKnown && !slices.ContainsFunc(keeps, func(f blender) bool { return f.Path == k.Path }) {
			if st, err := os.Stat(k.Path); err == nil && st.Size() == k.Size && st.ModTime().Equal(k.Modified) {
				keeps = append(keeps, k)
			}
		}
	}
	if ctx.Err() == nil && !slices.EqualFunc(known, keeps, blender.same) {
		p.save(keeps)
	}
	return found
}

var versionLine = regexp.MustCompile(`(?m)^([^\r\n]{1,60}?) (\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)\b`)

// ask learns what the Blender at b.Path is and can do.
func (p prober) ask(ctx context.Context, b blender) (blender, error) {
	dir, err := os.MkdirTemp("", "vizpeer-probe-")
	if err != nil {
		return b, err
	}
	defer os.RemoveAll(dir)
	command := func(args ...string) (string, []string) {
		if p.confine && p.foreign(b.Path) {
			return p.confined(b.Path, dir, args)
		}
		return b.Path, args
	}
	path, args := command("--version")
	out, err := p.run(ctx, versionTime, path, args...)
	if err != nil {
		return b, fmt.Errorf("ask it for its version: %w", err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return b, errors.New("it does not say its version as Blender does")
	}
	b.Name = string(m[1])

	file, answer := filepath.Join(dir, "probe.py"), filepath.Join(dir, "answer.json")
	if err := os.WriteFile(file, script, 0o600); err != nil {
		return b, err
	}
	path, args = command("-b", "--factory-startup", "-noaudio", "--python-exit-code", "3", "-P", file, "--", answer)
	if _, err := p.run(ctx, scriptTime, path, args...); err != nil {
		return b, fmt.Errorf("ask it what it can do: %w", err)
	}
	text, err := os.ReadFile(answer)
	if err != nil {
		return b, fmt.Errorf("it left no answer: %w", err)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("its answer is damaged: %w", err)
	}
	return b, nil
}

func (p prober) run(ctx context.Context, limit time.Duration, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	out, err := p.sys.run(ctx, path, args...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok && len(e.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.ToValidUTF8(string(e.Stderr[max(0, len(e.Stderr)-300):]), "�"))
	}
	return out, err
}

// EnvBlender names the environment variable that lists more Blenders, separated
// as in PATH.
const EnvBlender = "VIZPEER_BLENDER"

// errSnap: a launcher that fits in no sandbox.
var errSnap = errors.New("it is snap's launcher: give the program below /snap/blender/current")

// One asks the Blender that a program, a folder or an application stands for, whatever
// is known of it.
func One(ctx context.Context, name string) (lease.Build, error) {
	path, err := program(name)
	if err != nil {
		return lease.Build{}, fmt.Errorf("there is no Blender: %w", err)
	}
	if path, err = filepath.EvalSymlinks(path); err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return lease.Build{}, err
	}
	b, err := prober{sys: thisMachine{}}.ask(ctx, blender{Path: path})
	return b.build(), err
}

// candidates lists the programs that may be Blenders, each once: those that the
// owner names, and those that are found by themselves.
func (p prober) candidates() (named, others []string) {
	var found []string
	add := func(path string) error {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			real, err = filepath.Abs(real)
		}
		if err == nil && strings.TrimSuffix(filepath.Base(real), ".exe") == "snap" {
			err = errSnap
		}
		if err == nil && !slices.Contains(found, real) {
			found = append(found, real)
		}
		return err
	}
	for _, name := range append(filepath.SplitList(os.Getenv(EnvBlender)), p.cfg.Blender...) {
		path, err := program(name)
		if err == nil {
			err = add(path)
		}
		if err != nil {
			p.cfg.Logger.Warn("there is no Blender where the owner says, so this machine does not offer it: "+
				"correct --blender or "+EnvBlender, "path", name, "err", err)
		}
	}
	count := len(found)
	if path, err := exec.LookPath("blender"); err == nil {
		add(path)
	}
	for _, pattern := range p.places {
		matches, _ := filepath.Glob(pattern)
		slices.Sort(matches)
		for _, path := range matches {
			if _, err := exec.LookPath(path); err == nil {
				add(path)
			}
		}
	}
	for _, path := range p.cfg.Fetched {
		if err := add(path); err != nil {
			p.cfg.Logger.Warn("a Blender that came from the farm is gone, so this machine does not offer it", "path", path, "err", err)
		}
	}
	return found[:count:count], found[count:]
}

// program finds the Blender that a program, a folder or an application stands for.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, inside := range append([]string{"blender"}, suites...) {
		for _, inside := range []string{inside, inside + ".exe", "Contents/MacOS/" + strings.ToUpper(inside[:1]) + inside[1:]} {
			if path, err := exec.LookPath(filepath.Join(name, filepath.FromSlash(inside))); err == nil {
				return path, nil
			}
		}
	}
	return "", err
}

// suites are the Blender-based suites that are looked for by themselves: each is a folder
// of its name, perhaps with a version, with a program of that name or of Blender's. Any
// other is found where the owner names it.
var suites = []string{"VIZidSuite", "bforartists", "upbge"}

// usualPlaces lists patterns of where Blender, and suites made of it, are
// installed.
func usualPlaces(goos string, getenv func(string) string) []string {
	var places []string
	switch goos {
	case "windows":
		for _, root := range []string{getenv("ProgramFiles"), getenv("ProgramW6432")} {
			if root != "" {
				places = append(places, root+`\Blender Foundation\Blender*\blender.exe`)
				for _, s := range suites {
					places = append(places, root+`\`+s+`*\blender.exe`, root+`\`+s+`*\`+s+`.exe`)
				}
			}
		}
		if root := getenv("ProgramFiles(x86)"); root != "" {
			places = append(places, root+`\Steam\steamapps\common\Blender\blender.exe`)
		}
	case "darwin":
		for _, root := range []string{"/Applications", filepath.Join(cmp.Or(getenv("HOME"), "/var/empty"), "Applications")} {
			places = append(places, root+"/Blender*.app/Contents/MacOS/Blender", root+"/Blender*/Blender.app/Contents/MacOS/Blender")
			for _, s := range suites {
				s = strings.ToUpper(s[:1]) + s[1:]
				places = append(places, root+"/"+s+"*.app/Contents/MacOS/Blender", root+"/"+s+"*.app/Contents/MacOS/"+s)
			}
		}
	default:
		places = []string{
			"/usr/bin/blender", "/usr/local/bin/blender", "/usr/local/blender*/blender", "/opt/blender*/blender",
			"/snap/blender/current/blender",
		}
		if home := getenv("HOME"); home != "" {
			places = append(places, home+"/blender*/blender", home+"/Applications/blender*/blender")
		}
		for _, s := range suites {
			places = append(places, "/usr/bin/"+s, "/usr/local/bin/"+s)
			for _, root := range []string{"/opt/", "/usr/local/"} {
				places = append(places, root+s+"*/blender", root+s+"*/"+s)
			}
			if home := getenv("HOME"); home != "" {
				places = append(places, home+"/"+s+"*/blender", home+"/"+s+"*/"+s)
			}
		}
	}
	return places
}

// load reads what earlier probes learnt; nothing is as good as a damaged file.
func (p prober) load() []blender {
	if p.cfg.DataDir == "" {
		return nil
	}
	var known []blender
	text, err := os.ReadFile(p.cache())
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.cfg.Logger.Warn("what was known of this machine's Blenders cannot be read: they are asked again", "err", err)
		return nil
	}
	return known
}

func (p prober) save(found []blender) {
	if p.cfg.DataDir == "" {
		return
	}
	text, err := json.MarshalIndent(found, "", "\t")
	if err == nil {
		err = maybe.WriteFile(p.cache(), text, 0o600)
	}
	if err != nil {
		p.cfg.Logger.Warn("what was learnt of this machine's Blenders cannot be kept: they will be asked again", "err", err)
	}
}

func (p prober) cache() string { return filepath.Join(p.cfg.DataDir, "probe.json") }
