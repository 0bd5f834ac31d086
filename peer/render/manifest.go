package render

import (
	"cmp"
	"path"
	"strings"

	"vizpeer/lease"
)

// Manifest describes a project. It is the file [ManifestName] at the project's
// root, written by whoever collected the project: the command line or the
// add-on. The project's files stand below "files/" at their original absolute
// paths ("files/home/ann/shot.blend", "files/C/work/shot.blend",
// "files/UNC/server/share/shot.blend"), so that relative paths between them
// hold by themselves.
type Manifest struct {
	Version int    `json:"version"` // 1
	Blend   string `json:"blend"`   // path of the .blend inside the project, "files/…"
	Origin  string `json:"origin"`  // the GOOS where the paths come from: linux, darwin, windows
	// Absolute tells whether anything refers to a file by an absolute path, so
	// that the worker must make the original paths valid.
	Absolute bool `json:"absolute"`
	// Missing lists files that the .blend refers to and that were not there.
	Missing []string `json:"missing,omitempty"`
	Scene   Scene    `json:"scene,omitzero"`
	// Complete is false where no Blender was there to look for dependencies: the
	// project then holds the .blend alone.
	Complete bool `json:"complete"`
}

// ManifestName is the name of the manifest at a project's root.
const ManifestName = "vizpeer.json"

// filesDir is the folder of a project below which its files stand.
const filesDir = "files"

// Scene is what the collector read from the .blend's active scene.
type Scene struct {
	Name       string `json:"name,omitempty"`
	FrameStart int32  `json:"frame_start"`
	FrameEnd   int32  `json:"frame_end"`
	FrameStep  int32  `json:"frame_step,omitempty"`
	Current    int32  `json:"frame_current"`
	Engine     string `json:"engine,omitempty"`
	Filepath   string `json:"filepath,omitempty"` // the scene's output path as it stands
	Format     string `json:"format,omitempty"`
	// Denoises tells whether the scene's own layers need OpenImageDenoise where
	// Cycles renders them, DenoisesAlways whether anything else does: a node of the
	// compositor, or another scene that is rendered for this one.
	Denoises       bool `json:"denoises,omitempty"`
	DenoisesAlways bool `json:"denoises_always,omitempty"`
	// Picture is nil where the collector was older, or found no Cycles.
	Picture *lease.Picture `json:"picture,omitempty"`
}

// PictureFor is what decides how a frame may be divided that is rendered with these
// settings; nil where nobody looked at the scene that they name.
func (s Scene) PictureFor(set lease.Settings) *lease.Picture {
	if s.Picture == nil || set.Scene != "" && set.Scene != s.Name {
		return nil
	}
	p := *s.Picture
	p.Engine, p.Format = s.Engine, s.Format
	return &p
}

// Denoise tells whether rendering with these settings needs OpenImageDenoise, as
// far as the collector looked: it knows of no scene but this one.
func (s Scene) Denoise(set lease.Settings) bool {
	if set.Scene != "" && set.Scene != s.Name {
		return false
	}
	return s.DenoisesAlways || s.Denoises && cmp.Or(set.Engine, s.Engine) == "CYCLES"
}

// ProjectPath is the place inside a project of a file whose absolute path on a
// machine of the given GOOS is osPath: "/home/a/x.blend" is
// "files/home/a/x.blend", `C:\a` is "files/C/a" and `\\server\share\x` is
// "files/UNC/server/share/x". It never leads out of "files/".
func ProjectPath(osPath, goos string) string {
	if goos == "windows" {
		p := strings.ReplaceAll(osPath, "/", `\`)
		if rest, ok := cutPrefixFold(p, `\\?\UNC\`); ok {
			p = `\\` + rest
		} else if rest, ok := cutPrefixFold(p, `\\?\`); ok {
			p = rest
		}
		if rest, ok := strings.CutPrefix(p, `\\`); ok {
			p = `UNC\` + rest
		} else if len(p) >= 2 && p[1] == ':' {
			p = strings.ToUpper(p[:1]) + `\` + p[2:]
		}
		osPath = strings.ReplaceAll(p, `\`, "/")
	}
	return filesDir + strings.TrimSuffix(path.Clean("/"+osPath), "/")
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
