package render

import "sync"

// The kinds of sandbox there are.
const (
	bubblewrap = "bubblewrap"   // Linux
	seatbelt   = "sandbox-exec" // macOS
)

var sandboxKind = sync.OnceValues(trySandbox)

// SandboxKind tells how this machine can confine Blender: "bubblewrap" on Linux,
// "sandbox-exec" on macOS, or "" and the reason in words. It knows from having run a
// program in the sandbox, once in the life of the process. A kind means that nothing
// outside the attempt's folder can be written and that there is no network; what
// else it holds, [Confinements] lists.
func SandboxKind() (kind, reason string) { return sandboxKind() }

// Confinement is one thing that a hostile file may try, and what stops it here.
type Confinement struct {
	Against string // what it is that is stopped, or is not
	By      string // what stops it; "" where nothing does
}

// Confinements lists what this machine's kind of sandbox ("" is none) stops and what
// it does not, in words for people.
func Confinements(kind string) []Confinement {
	return append([]Confinement{
		{"running code in the file", "Blender's -Y and the guard"},
	}, confinements(kind)...)
}

// guarded is what can be said of writing where nothing but the guard confines Blender.
const guarded = "the guard, with no wall behind it"
