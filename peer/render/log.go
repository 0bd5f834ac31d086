package render

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// The bounds of what is kept of Blender's output: both ends of the log, because a
// cause stands at the beginning or at the end, and a few last words.
const (
	logHead   = 2 << 20
	logTail   = 2 << 20
	tailLines = 40
	tailBytes = 4 << 10
)

// boundedLog is a log file that keeps the first logHead and the last logTail
// bytes of what is written to it.
type boundedLog struct {
	f    *os.File
	head int64  // bytes written to f
	ring []byte // the last bytes after the head; full once cut > 0
	next int    // where in a full ring the oldest byte stands
	cut  int64  // bytes that are gone
	err  error
}

func newBoundedLog(path string) (*boundedLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &boundedLog{f: f}, nil
}

// Write never fails: a full disk must not stop Blender for its log. Close tells.
func (l *boundedLog) Write(p []byte) (int, error) {
	n := len(p)
	if room := logHead - l.head; room > 0 {
		part := p[:min(int64(len(p)), room)]
		if l.err == nil {
			_, l.err = l.f.Write(part)
		}
		l.head += int64(len(part))
		p = p[len(part):]
	}
	for len(p) > 0 {
		if len(l.ring) < logTail {
			part := p[:min(len(p), logTail-len(l.ring))]
			l.ring = append(l.ring, part...)
			p = p[len(part):]
			continue
		}
		k := copy(l.ring[l.next:], p)
		l.next = (l.next + k) % logTail
		l.cut += int64(k)
		p = p[k:]
	}
	return n, nil
}

// Close writes the end of the log and closes the file.
func (l *boundedLog) Close() error {
	var end bytes.Buffer
	if l.cut > 0 {
		fmt.Fprintf(&end, "\n… %d bytes are left out here …\n", l.cut)
	}
	end.Write(l.ring[l.next:])
	end.Write(l.ring[:l.next])
	if _, err := l.f.Write(end.Bytes()); l.err == nil {
		l.err = err
	}
	if err := l.f.Close(); l.err == nil {
		l.err = err
	}
	return l.err
}

// ownWords takes the driver's events, which are for this program, out of Blender's
// output. The driver ends whatever line Blender was in before it speaks: that line
// end goes too, so that what is left reads as Blender printed it.
type ownWords struct {
	w    io.Writer
	held []byte // the latest line end, which may be the driver's
	mid  bool   // w ends within a line
}

// add takes one piece of the output: see pieces.
func (o *ownWords) add(piece []byte) {
	o.flush()
	line := bytes.TrimRight(piece, "\r\n")
	if len(line) > 0 {
		o.w.Write(line)
		o.mid = true
	}
	o.held = append(o.held, piece[len(line):]...)
}

// event keeps of an event what is for people.
func (o *ownWords) event(ev event) {
	o.held = o.held[:0]
	text := ""
	switch ev.Ev {
	case "note":
		text = "note: " + ev.Text
	case "fail":
		text = "error: " + ev.Reason
	case "start":
		text = fmt.Sprintf(frameBegins, ev.Frame)
	case "device":
		text = "note: Cycles renders on " + ev.Name
	default:
		return
	}
	if o.mid {
		text = "\n" + text
	}
	io.WriteString(o.w, text+"\n")
	o.mid = false
}

func (o *ownWords) flush() {
	if len(o.held) > 0 {
		o.w.Write(o.held)
		o.held, o.mid = o.held[:0], false
	}
}

// tail keeps Blender's last words for people.
type tail struct{ lines []string }

// add takes one line. Of the status lines that Cycles prints by the thousand, only
// the latest of a run is kept, so that they do not push out what matters.
func (t *tail) add(line string) {
	line = strings.TrimSpace(strings.ToValidUTF8(line, "�"))
	if line == "" {
		return
	}
	if n := len(t.lines); n > 0 && isStatus(line) && isStatus(t.lines[n-1]) {
		t.lines[n-1] = line
		return
	}
	if len(t.lines) == tailLines {
		t.lines = append(t.lines[:0], t.lines[1:]...)
	}
	t.lines = append(t.lines, line)
}

func isStatus(line string) bool { return strings.HasPrefix(line, "Fra:") }

// last is the latest line that is not a status line, or "".
func (t *tail) last() string {
	for i := len(t.lines) - 1; i >= 0; i-- {
		if !isStatus(t.lines[i]) && t.lines[i] != "Blender quit" {
			return clip(t.lines[i], 300)
		}
	}
	return ""
}

func (t *tail) String() string {
	s := strings.Join(t.lines, "\n")
	if len(s) <= tailBytes {
		return s
	}
	s = s[len(s)-tailBytes:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// clip shortens s to at most n bytes, on a character's edge.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
