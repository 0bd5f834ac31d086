package exr

import "fmt"

// Grid lays tiles out to one picture in a new file, bit for bit. The tiles are counted
// by rows from the bottom left. Tile (c, r) of a picture that is w pixels wide and h
// high covers the columns from c*w/columns up to (c+1)*w/columns, rounded down, and the
// rows likewise.
func Grid(to string, columns, rows int, tiles []string) (err error) {
	if columns < 1 || rows < 1 || len(tiles) != columns*rows {
		return fmt.Errorf("%w: %d tiles for a grid of %d × %d", ErrFormat, len(tiles), columns, rows)
	}
	width, height, h, err := measure(columns, rows, tiles)
	if err != nil {
		return err
	}
	h.width, h.height = width, height
	if width > maxSide || height > maxSide || h.line() > maxLine {
		return malformed("all tiles together have %d × %d pixels in %d channels", width, height, len(h.channels))
	}
	out, err := create(to, h)
	if err != nil {
		return err
	}
	defer func() { err = out.close(err) }()
	line := make([]byte, h.line())
	for r := rows - 1; r >= 0; r-- { // lines begin at the top
		if err := band(out, line, tiles[r*columns:(r+1)*columns], r, rows); err != nil {
			return err
		}
	}
	return nil
}

// measure sums up the sizes of the lowest row and the leftmost column.
func measure(columns, rows int, tiles []string) (width, height int, h header, err error) {
	for i, path := range tiles {
		if i >= columns && i%columns != 0 {
			continue
		}
		f, err := open(path)
		if err != nil {
			return 0, 0, h, &PieceError{i, err}
		}
		if i < columns {
			width += f.width
		}
		if i%columns == 0 {
			height += f.height
		}
		if i == 0 {
			h = f.header
		}
		f.Close()
	}
	return width, height, h, nil
}

// band writes the lines of one row of tiles.
func band(out *writer, line []byte, tiles []string, r, rows int) error {
	height := (r+1)*out.height/rows - r*out.height/rows
	in := make([]*file, 0, len(tiles))
	defer func() {
		for _, f := range in {
			f.Close()
		}
	}()
	var room []byte
	for c, path := range tiles {
		f, err := open(path)
		if err != nil {
			return &PieceError{r*len(tiles) + c, err}
		}
		in = append(in, f)
		width := (c+1)*out.width/len(tiles) - c*out.width/len(tiles)
		if f.width != width || f.height != height || !f.like(&out.header) {
			return &PieceError{r*len(tiles) + c, malformed("it has %d × %d pixels where %d × %d belong, or not the passes of the first tile", f.width, f.height, width, height)}
		}
		room = append(room, make([]byte, max(0, 8+f.line()-len(room)))...)
	}
	for y := range height {
		x := 0
		for i, f := range in {
			got, err := f.readLine(y, room)
			if err != nil {
				return &PieceError{r*len(tiles) + i, err}
			}
			for c := range out.channels {
				copy(line[4*(c*out.width+x):], got[4*c*f.width:4*(c+1)*f.width])
			}
			x += f.width
		}
		out.writeLine(line)
	}
	return nil
}
