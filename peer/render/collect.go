package render

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"vizpeer/lease"
)

// Collected is what a .blend needs to render on another machine.
type Collected struct {
	// Manifest is to be written as [ManifestName] at the project's root.
	Manifest Manifest
	// Files lists the .blend first and then what it refers to.
	Files []File
	// Version is the Blender that saved the .blend.
	Version lease.Version
}

// File is one file of a project.
type File struct {
	Source string `json:"source"` // on this machine
	Path   string `json:"path"`   // in the project, "files/…"
}

// Collect lists what the .blend file needs, by asking the Blender at the path
// blender. It is for the artist's own machine: it runs unconfined, because the
// files may be anywhere, but with scripts off. Without a Blender ("") it answers
// the .blend alone and a manifest that is not Complete. The error wraps
// fs.ErrNotExist, [ErrNotBlend], [ErrNewer] or [ErrDamaged] where that is the
// cause, and an [*Error] with Blender's words where Blender failed.
func Collect(ctx context.Context, blender, blend string) (Collected, error) {
	blend, err := filepath.Abs(blend)
	if err != nil {
		return Collected{}, fmt.Errorf("find %s: %w", blend, err)
	}
	version, err := HeaderOf(blend)
	if err != nil {
		return Collected{}, err
	}
	if blender == "" {
		place := ProjectPath(blend, runtime.GOOS)
		return Collected{
			Manifest: Manifest{Version: 1, Blend: place, Origin: runtime.GOOS, Absolute: true},
			Files:    []File{{Source: blend, Path: place}},
			Version:  version,
		}, nil
	}
	var c struct {
		Manifest Manifest `json:"manifest"`
		Files    []File   `json:"files"`
	}
	name := filepath.Base(blend)
	asked, err := ask(ctx, blender, "collect.py", &c, blend)
	failed, isBlenders := errors.AsType[*Error](err)
	switch {
	// An older Blender that opens the file all the same loses what it does not know.
	case asked != (lease.Version{}) && asked.Less(version.Release()) && (err == nil || isBlenders):
		return Collected{}, &causedError{ErrNewer, err, fmt.Sprintf("%s was saved by Blender %d.%d, which Blender %s cannot read: use Blender %d.%d or newer",
			name, version.Major, version.Minor, asked, version.Major, version.Minor)}
	case isBlenders && failed.Kind == lease.FailError && unreadable.MatchString(failed.Tail) && !strings.Contains(failed.Tail, "Traceback"):
		return Collected{}, &causedError{ErrDamaged, err, fmt.Sprintf("%s is damaged or cut short: Blender cannot read it; save it again (%s)", name, failed.Reason)}
	case err != nil:
		return Collected{}, fmt.Errorf("list what %s needs: %w", name, err)
	}
	return Collected{Manifest: c.Manifest, Files: c.Files, Version: version}, nil
}

// The causes for which a Blender cannot list what a .blend needs.
var (
	// ErrNewer: a newer Blender saved the .blend than the one that was to read it.
	ErrNewer = errors.New("the file was saved by a newer Blender")
	// ErrDamaged: the .blend begins as one does and is not whole.
	ErrDamaged = errors.New("the file is damaged or cut short")
)

// unreadable finds in Blender's words that it could not open a file.
var unreadable = regexp.MustCompile(`(?m)^(?:Error: )?(?:Failed to read (?:blend )?file|File format is not supported|Loading .* failed)|Missing DNA block`)

// causedError is a sentence for people that is one of the causes above and the
// error that led there, if any.
type causedError struct {
	cause, detail error
	text          string
}

func (e *causedError) Error() string   { return e.text }
func (e *causedError) Unwrap() []error { return []error{e.cause, e.detail} }

// HeaderOf is [Header] for a file.
func HeaderOf(blend string) (lease.Version, error) {
	st, err := os.Stat(blend)
	if errors.Is(err, fs.ErrNotExist) {
		return lease.Version{}, fmt.Errorf("there is no file %s: %w", blend, fs.ErrNotExist)
	} else if err != nil {
		return lease.Version{}, fmt.Errorf("read %s: %w", blend, err)
	}
	if !st.Mode().IsRegular() {
		return lease.Version{}, fmt.Errorf("%s: %w: it is not a regular file", blend, ErrNotBlend)
	}
	f, err := os.Open(blend)
	if err != nil {
		return lease.Version{}, fmt.Errorf("read %s: %w", blend, err)
	}
	defer f.Close()
	v, err := Header(f)
	if err != nil {
		return v, fmt.Errorf("%s: %w", blend, err)
	}
	return v, nil
}

// ask runs a script of ours in an unconfined Blender of this machine, with file
// open, and decodes the JSON document that the script writes to its argument. It
// answers the version of that Blender, or none if it did not say it.
func ask(ctx context.Context, blender, script string, answer any, file ...string) (v lease.Version, err error) {
	dir, err := os.MkdirTemp("", "vizpeer-")
	if err != nil {
		return v, fmt.Errorf("make a temporary folder: %w", err)
	}
	defer os.RemoveAll(dir)
	text, err := scripts.ReadFile(script)
	if err != nil {
		return v, err
	}
	path, out := filepath.Join(dir, script), filepath.Join(dir, "answer.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return v, fmt.Errorf("write to the temporary folder: %w", err)
	}
	v, ended := runScript(ctx, blender, dir, path, []string{out}, file...)
	if e, ok := errors.AsType[*Error](ended); ended != nil && (!ok || e.Kind != lease.FailCrash) {
		return v, ended
	}
	// A Blender that crashes while it quits has answered all the same.
	b, err := os.ReadFile(out)
	if err == nil {
		err = json.Unmarshal(b, answer)
	}
	if err != nil && ended != nil {
		return v, ended
	}
	if err != nil {
		return v, fmt.Errorf("Blender ended well but left no whole answer: %w", err)
	}
	return v, nil
}

// versionLine is what Blender says first: its name and version.
var versionLine = regexp.MustCompile(`^[A-Za-z][A-Za-z ]{0,40} (\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)\b`)

// runScript runs one script in a Blender, with its temporary files below dir. It
// answers the version that this Blender says it is.
func runScript(ctx context.Context, blender, dir, script string, args []string, file ...string) (v lease.Version, _ error) {
	line := append([]string{"-b", "--factory-startup", "-noaudio", "-Y", "--python-exit-code", "3"}, file...)
	line = append(append(line, "-P", script, "--"), args...)
	cmd := exec.Command(blender, line...)
	cmd.Env = environment(dir)
	var words tail
	exit, err := supervise(ctx, cmd, dir, func(r io.Reader) error {
		return lines(r, func(line []byte) error {
			if m := versionLine.FindSubmatch(line); m != nil && v == (lease.Version{}) {
				v, _ = lease.ParseVersion(string(m[1]))
			}
			words.add(string(bytes.ToValidUTF8(line, nil)))
			return nil
		})
	})
	switch {
	case ctx.Err() != nil:
		return v, fmt.Errorf("%w: %w", ErrStopped, context.Cause(ctx))
	case err != nil:
		return v, &Error{Kind: lease.FailMachine, Reason: fmt.Sprintf("Blender could not be started: %v", err)}
	case exit > 128:
		return v, &Error{Kind: lease.FailCrash, Reason: "Blender crashed (" + signalName(exit-128) + ")", Tail: words.String()}
	case exit != 0:
		return v, &Error{Kind: lease.FailError, Reason: fmt.Sprintf("Blender ended with exit code %d: %s", exit, orSilent(words.last())), Tail: words.String()}
	}
	return v, nil
}
