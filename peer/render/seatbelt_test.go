package render

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSeatbeltProfile(t *testing.T) {
	t.Parallel()
	got := belt{
		write:   []string{"/private/var/vizpeer/attempt-1/out", "/private/var/vizpeer/attempt-1/tmp"},
		read:    []string{`/Users/ann/a "b" \c`},
		hidden:  []string{"/Users", "/private/var/vizpeer"},
		program: "/Applications/Blender.app",
	}.profile()
	// The last rule that matches counts: the order is the meaning.
	require.Equal(t, `(version 1)
(allow default)
(deny network*)
(deny appleevent-send)
(deny lsopen)
(deny signal)
(allow signal (target same-sandbox))
(deny process-info*)
(allow process-info* (target same-sandbox))
(deny mach-lookup
  (global-name "com.apple.pasteboard.1")
  (global-name "com.apple.SecurityServer")
  (global-name "com.apple.securityd.xpc"))
(deny process-exec*)
(allow process-exec*
  (subpath "/Applications/Blender.app"))
(deny file-write*)
(allow file-write-data
  (literal "/dev/null")
  (literal "/dev/zero")
  (literal "/dev/dtracehelper"))
(deny file-read-data
  (subpath "/Users")
  (subpath "/private/var/vizpeer"))
(deny file-read-xattr
  (subpath "/Users")
  (subpath "/private/var/vizpeer"))
(allow file-read*
  (subpath "/Applications/Blender.app")
  (subpath "/Users/ann/a \"b\" \\c")
  (subpath "/private/var/vizpeer/attempt-1/out")
  (subpath "/private/var/vizpeer/attempt-1/tmp"))
(allow file-write*
  (subpath "/private/var/vizpeer/attempt-1/out")
  (subpath "/private/var/vizpeer/attempt-1/tmp"))
(deny file-write-setugid)
`, got)
	require.Equal(t, strings.Count(got, "("), strings.Count(got, ")"))
	// A list without paths would be a rule for everything.
	require.NotContains(t, belt{program: "/a"}.profile(), "(allow file-write*")
	require.NotContains(t, belt{program: "/a"}.profile(), "(deny file-read-data")
}
