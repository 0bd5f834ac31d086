package render

import (
	"bytes"
	"regexp"
	"strconv"
)

// frameBegins is the line that a log has where Blender begins a frame, before whatever
// Blender and the scene's own scripts say of it. Blender holds back its words until its
// next status line: what it said while it loaded the file may come after.
const frameBegins = "note: frame %d begins"

var (
	beginsText = regexp.MustCompile(`^note: frame (-?\d{1,9}) begins$`)
	statusText = regexp.MustCompile(`^Fra:(-?\d{1,9})\b`)
	cutText    = regexp.MustCompile(`^… \d+ bytes are left out here …$`)
)

// FrameLog cuts the lines that are about one frame out of the log of an attempt at
// several. A log that tells no frames apart, as of a Blender that crashed while it loaded
// the file, may be about any of them: it is answered whole. What was said before the
// first frame began is about none.
//
// A frame's lines are those from where it begins to where the next one does. The logs of
// older machines do not say that: there Blender's status lines, "Fra:7 …", name the frame
// under way, and what comes between "Saved:" with the time after it and the next status
// line is about the frame that follows, as when a script of the scene fails at it.
func FrameLog(log []byte, frame int32) []byte {
	var (
		marked  = false // it says where frames begin
		told    = false // something did
		known   = false // whether at is
		at      int64   // the frame under way
		saved   = false // and it has been saved
		out     bytes.Buffer
		between []byte // lines of which the frame is not known yet
	)
	for line := range bytes.Lines(log) {
		if beginsText.Match(bytes.TrimRight(line, "\r\n")) {
			marked = true
			break
		}
	}
	take := func(lines []byte) {
		if known && at == int64(frame) {
			out.Write(lines)
		}
	}
	for line := range bytes.Lines(log) {
		text := bytes.TrimRight(line, "\r\n")
		if m := beginsText.FindSubmatch(text); m != nil {
			at, _ = strconv.ParseInt(string(m[1]), 10, 64)
			known, told = true, true
		} else if m := statusText.FindSubmatch(text); m != nil && (!marked || !known) {
			at, _ = strconv.ParseInt(string(m[1]), 10, 64)
			known, told = true, true
			take(between)
			saved, between = false, nil
		} else if cutText.Match(text) {
			take(between)
			take(line)
			known, saved, between = false, false, nil
			continue
		} else if !marked && known {
			switch {
			case bytes.HasPrefix(text, []byte("Saved:")):
				saved = true
			case saved && !bytes.HasPrefix(text, []byte(" Time:")):
				between = append(between, line...)
				continue
			}
		}
		take(line)
	}
	take(between)
	if !told {
		return log
	}
	return out.Bytes()
}
