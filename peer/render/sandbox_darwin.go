package render

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// What is in this file its authors have built and vetted, and not run: they have no
// Mac. sandbox-exec is deprecated and there in every release; Apple's own programs
// and other builders of software are confined by it.

const sandboxExec = "/usr/bin/sandbox-exec"

func trySandbox() (kind, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	profile := belt{hidden: hiddenFolders(), program: "/usr/bin"}.profile()
	if out, err := exec.CommandContext(ctx, sandboxExec, "-p", profile, "/usr/bin/true").CombinedOutput(); err != nil {
		return "", fmt.Sprintf("sandbox-exec does not work here: %v: %s", err, clip(string(bytes.TrimSpace(out)), 200))
	}
	return seatbelt, ""
}

// hiddenFolders are where people and services keep what is theirs.
func hiddenFolders() []string {
	return []string{"/Users", "/Volumes", "/private/var/root", "/private/var/db", "/private/var/folders", "/private/tmp", "/private/etc/ssh", "/Library/Keychains"}
}

// sandbox is a profile of sandbox-exec. Inside, paths are the machine's own.
type sandbox struct {
	profile string
	files   []*os.File
	view    view
}

// newSandbox confines the Blender exe to an attempt.
func newSandbox(exe string, dir sessionDir, p project, _ int) (*sandbox, error) {
	at, err := filepath.EvalSymlinks(dir.root)
	if err != nil {
		return nil, fmt.Errorf("this machine cannot prepare the attempt: %w", err)
	}
	real := sessionDir{at}
	root, err := filepath.EvalSymlinks(p.root)
	if err != nil {
		return nil, fmt.Errorf("this machine cannot find the project: %w", err)
	}
	program, err := filepath.EvalSymlinks(exe)
	if err != nil {
		return nil, fmt.Errorf("this machine's Blender is gone: %w", err)
	}
	folder := filepath.Dir(program)
	if i := strings.Index(program, ".app/"); i > 0 { // its scripts and libraries lie beside
		folder = program[:i+len(".app")]
	}
	if strings.HasPrefix(at, folder+"/") {
		return nil, fmt.Errorf("this machine's Blender lies in a folder above vizpeer's data: move it to a folder of its own")
	}
	b := belt{
		write:   []string{real.out(), real.tmp()},
		read:    []string{root, real.driver()},
		hidden:  append(hiddenFolders(), filepath.Dir(at)),
		program: folder,
	}
	// What Metal has compiled for Blender: without it each attempt would compile for
	// minutes. A hostile file can spoil it for the next, no more.
	if cache := metalCache(); cache != "" {
		b.write = append(b.write, filepath.Join(cache, "org.blenderfoundation.blender"))
	}
	p.root = root
	return &sandbox{profile: b.profile(), view: outside(real, p)}, nil
}

// metalCache is the user's folder for what programs can make again, or "".
var metalCache = sync.OnceValue(func() string {
	out, err := exec.Command("/usr/bin/getconf", "DARWIN_USER_CACHE_DIR").Output()
	if err != nil {
		return ""
	}
	dir, err := filepath.EvalSymlinks(strings.TrimSpace(string(out)))
	if err != nil {
		return ""
	}
	return dir
})

func (s *sandbox) prefix() []string { return []string{sandboxExec, "-p", s.profile} }

func (s *sandbox) env() []string { return environment(s.view.tmp) }

func confinements(kind string) []Confinement {
	const look = "a look every second"
	list := []Confinement{
		{"taking the memory", look},
		{"starting processes", look},
		{"taking the disk", "a look every few seconds"},
	}
	if kind == "" {
		return append(list,
			Confinement{"writing files elsewhere", guarded},
			Confinement{"reading this machine's files", ""},
			Confinement{"using the network", ""})
	}
	return append(list,
		Confinement{"writing files elsewhere", "the sandbox's profile: only the attempt's folder can be written, and Metal's cache of Blender"},
		Confinement{"reading this machine's files", "the sandbox's profile, for the folders of people and services: the system's own files can be read"},
		Confinement{"using the network", "the sandbox's profile"})
}
