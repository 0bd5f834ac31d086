//go:build !linux && !darwin

package render

import (
	"errors"
	"os"
	"runtime"
)

func trySandbox() (kind, reason string) {
	if runtime.GOOS == "windows" {
		return "", "Windows gives vizpeer limits on Blender's processes and memory alone: files and network are not confined"
	}
	return "", "there is no sandbox for " + runtime.GOOS
}

// sandbox is never made here.
type sandbox struct {
	files []*os.File
	view  view
}

func newSandbox(string, sessionDir, project, int) (*sandbox, error) {
	return nil, errors.New("there is no sandbox on this system")
}

func (*sandbox) prefix() []string { return nil }
func (*sandbox) env() []string    { return nil }

func confinements(string) []Confinement {
	list := []Confinement{
		{"writing files elsewhere", guarded},
		{"reading this machine's files", ""},
		{"using the network", ""},
		{"taking the disk", "a look every few seconds"},
	}
	if runtime.GOOS == "windows" {
		return append(list,
			Confinement{"taking the memory", "a job object's limit"},
			Confinement{"starting processes", "a job object's limit"},
			Confinement{"outliving the attempt or vizpeer", "a job object, which ends with its handle"},
			Confinement{"using the clipboard, changing settings, shutting down", "a job object's limits"})
	}
	return append(list,
		Confinement{"taking the memory", "a look every second"},
		Confinement{"starting processes", "a look every second"})
}
