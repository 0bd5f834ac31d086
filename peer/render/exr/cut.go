package exr

// Margin is how many pixels a picture has around what counts: columns on the left, rows
// at the bottom, columns on the right, rows at the top.
type Margin [4]int

// Cut makes a new file of the picture at from without its margin, bit for bit.
func Cut(to, from string, m Margin) (err error) {
	f, err := open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	left, bottom, right, top := m[0], m[1], m[2], m[3]
	for i, n := range m {
		if side := []int{f.width, f.height}[i%2]; n < 0 || n >= side {
			return malformed("it has %d × %d pixels, less than the margin of its tile", f.width, f.height)
		}
	}
	h := f.header
	h.width, h.height = f.width-left-right, f.height-bottom-top
	if h.width < 1 || h.height < 1 {
		return malformed("it has %d × %d pixels, less than the margin of its tile", f.width, f.height)
	}
	out, err := create(to, h)
	if err != nil {
		return err
	}
	defer func() { err = out.close(err) }()
	room, line := make([]byte, 8+f.line()), make([]byte, 0, h.line())
	for y := range h.height { // lines begin at the top
		got, err := f.readLine(top+y, room)
		if err != nil {
			return err
		}
		line = line[:0]
		for c := range f.channels {
			at := 4 * (c*f.width + left)
			line = append(line, got[at:at+4*h.width]...)
		}
		out.writeLine(line)
	}
	return nil
}
