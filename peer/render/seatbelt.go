package render

import (
	"fmt"
	"strings"
)

// belt is what an attempt may touch on macOS. All paths are absolute and without
// symlinks, as the kernel compares them.
type belt struct {
	write   []string // folders that may be written
	read    []string // folders that may be read although they lie below hidden ones
	hidden  []string // folders of which nothing may be read: the users', vizpeer's own
	program string   // the folder of Blender, the one program that may be started
}

// profile is b in the language of sandbox-exec.
//
// What may be written is listed, and nothing of the network is there; what may be read
// is all but the hidden folders. A profile that denies reading by default would have to
// name each service and file that Metal, AppKit and Python use, which differ from one
// release to the next: that cannot be kept right without running each. The last rule
// that matches counts.
func (b belt) profile() string {
	var s strings.Builder
	s.WriteString("(version 1)\n(allow default)\n")
	rule := func(rule string, paths ...string) {
		if len(paths) == 0 {
			return
		}
		fmt.Fprintf(&s, "(%s", rule)
		for _, p := range paths {
			fmt.Fprintf(&s, "\n  (subpath %s)", beltString(p))
		}
		s.WriteString(")\n")
	}
	// The network, the services through which a program has others act for it, and
	// other processes.
	s.WriteString("(deny network*)\n")
	s.WriteString("(deny appleevent-send)\n(deny lsopen)\n")
	s.WriteString("(deny signal)\n(allow signal (target same-sandbox))\n")
	s.WriteString("(deny process-info*)\n(allow process-info* (target same-sandbox))\n")
	s.WriteString("(deny mach-lookup\n  (global-name \"com.apple.pasteboard.1\")\n  (global-name \"com.apple.SecurityServer\")\n  (global-name \"com.apple.securityd.xpc\"))\n")
	// Programs: Blender, and no shell.
	s.WriteString("(deny process-exec*)\n")
	rule("allow process-exec*", b.program)
	// Files.
	s.WriteString("(deny file-write*)\n")
	s.WriteString("(allow file-write-data\n  (literal \"/dev/null\")\n  (literal \"/dev/zero\")\n  (literal \"/dev/dtracehelper\"))\n")
	rule("deny file-read-data", b.hidden...)
	rule("deny file-read-xattr", b.hidden...)
	rule("allow file-read*", append(append([]string{b.program}, b.read...), b.write...)...)
	rule("allow file-write*", b.write...)
	s.WriteString("(deny file-write-setugid)\n")
	return s.String()
}

// beltString is p as the language quotes it.
func beltString(p string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(p) + `"`
}
