package authz

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxName is the length in bytes of the longest name of a farm, machine or user.
const MaxName = 64

// checkName says what is wrong with the name of a farm, machine or user.
func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the %s has no name", what)
	case len(name) > MaxName:
		return fmt.Errorf("the name of the %s has %d bytes: use %d at most", what, len(name), MaxName)
	case !printable(name) || strings.TrimSpace(name) != name:
		return fmt.Errorf("the name of the %s is %q: use printable characters, without spaces around them", what, name)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !shows(r) })
}

// shows tells what may stand in names and records: no controls of terminals or of the
// direction of writing, no space but the plain one, nothing that cannot be seen. It asks no
// table of Unicode, which grows from release to release: coordinators of two releases must
// come to the same end.
func shows(r rune) bool {
	switch {
	case r < ' ', r >= 0x7f && r <= 0xa0, r == 0xad, r == 0x61c, r == 0x1680, r == 0x180e,
		r >= 0x2000 && r <= 0x200f, r >= 0x2028 && r <= 0x202f, r >= 0x205f && r <= 0x206f, r == 0x3000,
		r >= 0xe000 && r <= 0xf8ff, r == 0xfeff, r >= 0xfff0 && r <= 0xfffb, r >= 0xe0000:
		return false
	}
	return true
}

// checkPeer refuses what no peer ID can be. That it is somebody's key is proved
// by the connection, not here.
func checkPeer(id PeerID) error {
	if id == "" || len(id) > 128 || strings.ContainsFunc(string(id), func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return fmt.Errorf("%.64q is not a peer's ID", string(id))
	}
	return nil
}

// canonical is t as it is written to the log and read back, so that a command
// gives the same bytes whether or not it travelled.
func canonical(t time.Time) time.Time { return t.UTC().Round(0) }
