package blobs

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	maxPath = 4096 // bytes of a whole slash path
	maxName = 255  // bytes of one component: the limit of ext4, APFS and (in UTF-16 units, so laxer) NTFS
)

// CheckPath reports whether p may name a file in a tree. A farm mixes operating
// systems and a tree made on one is unpacked on all of them, so the rule is the
// intersection: relative, slash-separated, valid UTF-8, no empty, "." or ".."
// component, nothing Windows reserves, at most 4,096 bytes and 255 a component.
// Errors wrap ErrBadPath. Pure; safe from any goroutine.
func CheckPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("%w: empty", ErrBadPath)
	case len(p) > maxPath:
		return fmt.Errorf("%w: %d bytes long, at most %d", ErrBadPath, len(p), maxPath)
	case p[0] == '/':
		return fmt.Errorf("%w: %q is absolute; make it relative to the project folder", ErrBadPath, p)
	}
	for name := range strings.SplitSeq(p, "/") {
		if err := checkName(name); err != nil {
			return fmt.Errorf("%w (in %q)", err, p)
		}
	}
	return nil
}

// checkName is CheckPath for one component. Export calls it again on names that
// come from other peers' directory nodes.
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: empty component", ErrBadPath)
	case name == "." || name == "..":
		return fmt.Errorf("%w: component %q", ErrBadPath, name)
	case len(name) > maxName:
		return fmt.Errorf("%w: component of %d bytes, at most %d", ErrBadPath, len(name), maxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: %q is not UTF-8", ErrBadPath, name)
	case name[len(name)-1] == '.' || name[len(name)-1] == ' ':
		return fmt.Errorf("%w: %q ends with a dot or a space, which Windows drops; rename it", ErrBadPath, name)
	}
	for _, r := range name {
		if unicode.IsControl(r) || strings.ContainsRune(`/\:<>"|?*`, r) {
			return fmt.Errorf("%w: %q contains %q, which not every machine can store; rename it", ErrBadPath, name, r)
		}
	}
	if reserved(name) {
		return fmt.Errorf("%w: %q is a device name on Windows; rename it", ErrBadPath, name)
	}
	return nil
}

// reserved: Windows opens a device for these names whatever the extension and
// whatever spaces stand before it.
func reserved(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	if digit, ok := strings.CutPrefix(base, "COM"); ok || strings.HasPrefix(base, "LPT") {
		if !ok {
			digit = base[3:]
		}
		switch digit {
		case "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "¹", "²", "³":
			return true
		}
	}
	return false
}

// foldName maps names that macOS or Windows would take for the same file to the
// same key: composed Unicode, one case.
func foldName(name string) string {
	return norm.NFC.String(strings.ToLower(strings.ToUpper(norm.NFC.String(name))))
}
