package authz

import (
	"fmt"
	"strings"
	"time"
	"unicode"
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
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
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
