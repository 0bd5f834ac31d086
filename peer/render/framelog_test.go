package render

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFrameLog(t *testing.T) {
	const marked = "Blender 3.4.1\nRead blend: x\nnote: frame 7 begins\nhandler of 7\nFra:7 Mem:1M\nwarning\nSaved: '7.png'\n Time: 00:01\n\n" +
		"note: frame 8 begins\nhandler of 8\r\nFra:8 Mem:1M\nFra:7 is what somebody prints\nSaved: '8.png'\n Time: 00:01\n\n\nBlender quit\n"
	const plain = "Blender 3.4.1\nRead blend: x\nFra:-1 Mem:1M\nwarning\nSaved: 'x.png'\n Time: 00:01\n\nhandler of 10\nFra:10 Mem:1M\nSaved: '10.png'\n Time: 00:02\nBlender quit\n"
	const cut = "note: frame 1 begins\nFra:1 a\n\n… 99 bytes are left out here …\nMem:1M\nFra:3 b\nwarning\nnote: frame 4 begins\nFra:4 c"
	for name, tc := range map[string]struct {
		log   string
		frame int32
		want  string
	}{
		"where it begins":          {marked, 7, "note: frame 7 begins\nhandler of 7\nFra:7 Mem:1M\nwarning\nSaved: '7.png'\n Time: 00:01\n\n"},
		"the last":                 {marked, 8, marked[strings.Index(marked, "note: frame 8"):]},
		"another":                  {marked, 9, ""},
		"by status lines":          {plain, -1, "Fra:-1 Mem:1M\nwarning\nSaved: 'x.png'\n Time: 00:01\n"},
		"what comes before":        {plain, 10, "\nhandler of 10\nFra:10 Mem:1M\nSaved: '10.png'\n Time: 00:02\nBlender quit\n"},
		"no number begins another": {plain, 1, ""},
		"before a cut":             {cut, 1, "note: frame 1 begins\nFra:1 a\n\n… 99 bytes are left out here …\n"},
		"after a cut":              {cut, 3, "Fra:3 b\nwarning\n"},
		"without a last line end":  {cut, 4, "note: frame 4 begins\nFra:4 c"},
		"tells none apart":         {"Blender 3.4.1\nsegmentation fault\n", 5, "Blender 3.4.1\nsegmentation fault\n"},
		"failed before the next":   {"Fra:1 a\nSaved: '1'\n Time: 1\nTraceback\n", 1, "Fra:1 a\nSaved: '1'\n Time: 1\nTraceback\n"},
		"empty":                    {"", 5, ""},
	} {
		require.Equal(t, tc.want, string(FrameLog([]byte(tc.log), tc.frame)), name)
	}
}

// A log's lines are each about one frame at most, and come in order.
func FuzzFrameLog(f *testing.F) {
	f.Add([]byte("Fra:1 a\nSaved: '1'\n Time: 1\nx\nFra:2 b\nnote: frame 1 begins\n… 9 bytes are left out here …\ny"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if text := FrameLog(log, 3); string(text) == string(log) {
			return // it tells none apart, or of this frame alone
		}
		n := 0
		for frame := range int32(4) {
			n += len(FrameLog(log, frame))
		}
		require.LessOrEqual(t, n, len(log))
	})
}
