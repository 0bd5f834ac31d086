package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"vizpeer/peer"
)

// configName is the settings file in the data folder.
const configName = "config.toml"

// settings are what a peer can be told. Each is a flag of `up`, a key of
// config.toml (p2p_listen for --p2p-listen) and a variable (VIZPEER_P2P_LISTEN):
// the flag wins over the variable, the variable over the file.
type settings struct {
	p2pListen []string
	apiListen []string
	apiNames  []string
	proxies   []string
	apiRate   int
	blender   []string
	labels    []string
	slots     int
	noWork    bool
	noFetch   bool
	noMDNS    bool
	relay     string
	announce  []string
	noPortMap bool

	spotNotice string

	cacheQuota          size
	cacheHigh, cacheLow share
	minFree             size
	upload, download    rate
	capHours            []string

	maxTasks, maxOpenJobs, maxOpenTasks int

	voteAfter time.Duration
}

func (s *settings) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	f.StringSliceVar(&s.p2pListen, "p2p-listen", nil, "multiaddr to speak with peers on, repeatable (default port 8788, TCP and QUIC)")
	f.StringSliceVar(&s.apiListen, "api-listen", []string{peer.DefaultAPI}, "address of the HTTP API, repeatable; port 0 picks a free one; HTTPS where other machines reach it, such as 0.0.0.0:8787")
	f.StringSliceVar(&s.apiNames, "api-name", nil, "name or address that others call this machine by over HTTPS, beside its own, repeatable; an admin allows it: vizpeer peer label MACHINE name:NAME")
	f.StringSliceVar(&s.proxies, "trusted-proxy", nil, "address or network, such as 10.0.0.5/32, of a proxy whose X-Forwarded-For is believed, repeatable")
	f.IntVar(&s.apiRate, "api-rate", 0, "requests a second that one address may make, in bursts of twice as many (default 50)")
	f.StringSliceVar(&s.blender, "blender", nil, "Blender program, or a folder of them, repeatable (default: the ones found on this machine)")
	f.StringSliceVar(&s.labels, "label", nil, "label that jobs may ask for, repeatable; one with a colon is an admin's to grant: vizpeer peer label")
	f.IntVar(&s.slots, "slots", 0, "tasks to render at once on the CPU, beside one on each GPU (default: one where a Blender is found)")
	f.StringVar(&s.spotNotice, "spot-notice", "", "who says that this machine will be taken away: aws, gcp, azure, a URL or a file that appears; then it takes no more work and saves what it has")
	f.BoolVar(&s.noWork, "no-work", false, "do not render on this machine")
	f.BoolVar(&s.noFetch, "no-fetch-blender", false, "do not take Blenders that an admin offers to the farm's machines")
	f.BoolVar(&s.noMDNS, "no-mdns", false, "do not look for peers on the local network")
	f.StringVar(&s.relay, "relay", string(peer.RelayAuto), "pass on what machines behind a NAT say to each other: auto (where others reach this machine from anywhere), on or off")
	f.StringSliceVar(&s.announce, "p2p-announce", nil, "multiaddr that other machines reach this one by, such as /dns4/render.example.org/tcp/8788, repeatable; what it finds out itself needs none")
	f.BoolVar(&s.noPortMap, "no-port-mapping", false, "do not ask the router to forward the peer port (UPnP, NAT-PMP)")
	f.Var(&s.cacheQuota, "cache-quota", "room for scenes and frames, such as \"200 GiB\" (default: 20 % of the disk, between 10 and 500 GiB)")
	f.Var(&s.cacheHigh, "cache-high", "share of the quota from which the least recently used is let go (default 95%)")
	f.Var(&s.cacheLow, "cache-low", "share of the quota down to which it is let go (default 85%)")
	f.Var(&s.minFree, "min-free", "room on the disk that is never used, such as \"20 GiB\" (default 256 MiB)")
	f.Var(&s.upload, "upload-cap", "what this machine sends to others at most, such as \"2 MB/s\" or \"16 Mbit/s\" (default: no cap)")
	f.Var(&s.download, "download-cap", "what it takes from others at most (default: no cap)")
	f.StringSliceVar(&s.capHours, "cap-hours", nil, "when the caps hold, such as \"mon-fri 08:00-19:00\", repeatable (default: always)")
	f.IntVar(&s.maxTasks, "max-tasks", 0, "where this machine leads the queue: tasks that one job may have (default 100000)")
	f.IntVar(&s.maxOpenJobs, "max-open-jobs", 0, "there: jobs of one person that have not ended (default 1000)")
	f.IntVar(&s.maxOpenTasks, "max-open-tasks", 0, "there: tasks in such jobs of one person (default 1000000)")
	f.DurationVar(&s.voteAfter, "vote-after", 0, "how long a coordinator must be up before it votes (default 1m)")
	_ = f.MarkHidden("vote-after") // for tests
	return f
}

// fill gives every setting that no flag gave the value of its variable or, where
// there is none, of dir's config.toml. It answers where those came from, by the
// flag's name.
func fill(f *pflag.FlagSet, dir string, getenv func(string) string) (origin map[string]string, problem error) {
	file, err := readConfig(f, dir)
	if err != nil {
		return nil, err
	}
	origin = make(map[string]string)
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed || problem != nil {
			return
		}
		key := strings.ReplaceAll(flag.Name, "-", "_")
		variable := "VIZPEER_" + strings.ToUpper(key)
		if v := getenv(variable); v != "" {
			origin[flag.Name] = "$" + variable
			if err := flag.Value.Set(v); err != nil {
				problem = usagef("$%s is %q, which is not possible: %s", variable, v, wanted(flag.Value))
			}
		} else if v, ok := file.values[key]; ok {
			origin[flag.Name] = file.place(key)
			if err := setFromTOML(flag.Value, v); err != nil {
				problem = usagef("%s: %s = %v is not possible: %w", file.place(key), key, v, err)
			}
		}
	})
	return origin, problem
}

// configFile is a config.toml that was read; the zero one says nothing.
type configFile struct {
	path   string
	lines  []string
	values map[string]any
}

// place is where key stands, for people. The parser knows no positions of what
// it accepted; a key that is quoted in an odd way is named without its line.
func (c configFile) place(key string) string {
	for i, line := range c.lines {
		name, _, found := strings.Cut(line, "=")
		name = strings.Trim(strings.TrimSpace(name), `"'`)
		if found && name == key || !found && strings.Trim(name, "[] ") == key {
			return fmt.Sprintf("%s line %d", c.path, i+1)
		}
	}
	return c.path
}

// readConfig returns what config.toml says; none is as good as an empty one. A
// key that no setting has is an error, so that a slip of the pen never passes
// for a setting.
func readConfig(f *pflag.FlagSet, dir string) (configFile, error) {
	c := configFile{path: filepath.Join(dir, configName)}
	text, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("the settings could not be read: %w: run this as the person who owns them, or name another folder with --data-dir", err)
	}
	if err := toml.Unmarshal(text, &c.values); err != nil {
		if bad, ok := errors.AsType[toml.ParseError](err); ok {
			return c, usagef("%s line %d is not valid TOML: %s", c.path, bad.Position.Line, bad.Message)
		}
		return c, usagef("%s is not valid TOML: %w", c.path, err)
	}
	c.lines = strings.Split(string(text), "\n")
	var known []string
	f.VisitAll(func(flag *pflag.Flag) { known = append(known, strings.ReplaceAll(flag.Name, "-", "_")) })
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		if !slices.Contains(known, key) {
			return c, usagef("%s: unknown key %q: did you mean %q? Known keys: %s", c.place(key), key, nearest(key, known), strings.Join(known, ", "))
		}
	}
	return c, nil
}

func setFromTOML(value pflag.Value, v any) error {
	list, isList := value.(pflag.SliceValue)
	items, gotList := v.([]any)
	switch {
	case isList && gotList:
		words := make([]string, len(items))
		for i, item := range items {
			word, ok := item.(string)
			if !ok {
				return fmt.Errorf("item %d is not a string", i+1)
			}
			words[i] = word
		}
		return list.Replace(words)
	case isList:
		word, ok := v.(string)
		if !ok {
			return errors.New("it takes a list of strings")
		}
		return list.Replace([]string{word})
	case gotList:
		return errors.New("it takes one value, not a list")
	}
	if value.Set(fmt.Sprint(v)) != nil {
		return errors.New(wanted(value))
	}
	return nil
}

// nearest is the candidate with the fewest edits to word; candidates is not
// empty.
func nearest(word string, candidates []string) string {
	return slices.MinFunc(candidates, func(a, b string) int { return edits(word, a) - edits(word, b) })
}

// edits is the Levenshtein distance, in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
