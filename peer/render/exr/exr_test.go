package exr

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// write makes a piece in which channel c of pixel (x, y), y from the top, has the value
// v(c, x, y).
func write(t *testing.T, width, height int, channels []string, v func(c, x, y int) float32) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "piece.exr")
	w, err := create(path, header{version: version, channels: channels, width: width, height: height, others: []attribute{
		{"cycles.Layer.samples", "string", []byte("4")}, {"pixelAspectRatio", "float", []byte{0, 0, 128, 63}},
	}})
	require.NoError(t, err)
	for y := range height {
		var line []byte
		for c := range channels {
			for x := range width {
				line = binary.LittleEndian.AppendUint32(line, math.Float32bits(v(c, x, y)))
			}
		}
		w.writeLine(line)
	}
	require.NoError(t, w.close(nil))
	return path
}

// read answers the values of a file by channel, line and column.
func read(t *testing.T, path string) (header, [][][]float32) {
	t.Helper()
	f, err := open(path)
	require.NoError(t, err)
	defer f.Close()
	out := make([][][]float32, len(f.channels))
	room := make([]byte, 8+f.line())
	for y := range f.height {
		line, err := f.readLine(y, room)
		require.NoError(t, err)
		for c := range f.channels {
			row := make([]float32, f.width)
			for x := range row {
				row[x] = float32(value(line, c*f.width+x))
			}
			out[c] = append(out[c], row)
		}
	}
	return f.header, out
}

func TestMean(t *testing.T) {
	channels := []string{
		"Lay.er.Combined.R", "Lay.er.Depth.Z", "Lay.er.DiffCol.R", "Lay.er.DiffDir.R", "Lay.er.GlossDir.R",
	}
	a := write(t, 3, 2, channels, func(c, x, y int) float32 { return []float32{1, 10, 0.5, 8, 3}[c] })
	b := write(t, 3, 2, channels, func(c, x, y int) float32 {
		if c == 2 && x == 2 {
			return -0.5 // both together have no colour
		}
		return []float32{4, 99, 0.25, 2, 6}[c]
	})
	to := filepath.Join(t.TempDir(), "mean.exr")
	require.NoError(t, Mean(to, []Weighted{{a, 4}, {b, 4}}))
	h, v := read(t, to)
	require.Equal(t, channels, h.channels)
	require.Equal(t, []string{"pixelAspectRatio"}, names(h.others))
	require.Equal(t, float32(2.5), v[0][1][1])
	require.Equal(t, float32(10), v[1][1][1], "the first piece's depth")
	require.Equal(t, float32(0.375), v[2][1][1])
	require.Equal(t, float32(6), v[3][1][1], "(8 × 0.5 + 2 × 0.25) / 0.75")
	require.Equal(t, float32(5), v[3][0][2], "no colour: the plain mean")
	require.Equal(t, float32(4.5), v[4][1][1], "its colour is not there: the plain mean")

	again := filepath.Join(t.TempDir(), "mean.exr")
	require.NoError(t, Mean(again, []Weighted{{b, 1}, {a, 3}}))
	_, v = read(t, again)
	require.Equal(t, float32(1.75), v[0][0][0])
	require.Equal(t, float32(99), v[1][0][0])

	require.ErrorContains(t, Mean(filepath.Join(t.TempDir(), "x"), nil), "there are no samples")
	wide := write(t, 4, 2, channels, func(c, x, y int) float32 { return 0 })
	err := Mean(filepath.Join(t.TempDir(), "x"), []Weighted{{a, 4}, {wide, 4}})
	require.Equal(t, &PieceError{1, malformed("its size or its passes are not those of the first piece")}, err)
	crypto := write(t, 1, 1, []string{"Layer.CryptoObject00.r"}, func(c, x, y int) float32 { return 0 })
	require.ErrorContains(t, Mean(filepath.Join(t.TempDir(), "x"), []Weighted{{crypto, 4}}), "Cryptomatte")
}

func names(attributes []attribute) (names []string) {
	for _, a := range attributes {
		names = append(names, a.name)
	}
	return names
}

func TestGrid(t *testing.T) {
	const width, height, columns, rows = 11, 7, 3, 2
	whole := func(c, x, y int) float32 { return float32(10000*c + 100*y + x) }
	var tiles []string
	for r := range rows {
		for c := range columns {
			x0, x1 := c*width/columns, (c+1)*width/columns
			y0, y1 := r*height/rows, (r+1)*height/rows // from the bottom
			tiles = append(tiles, write(t, x1-x0, y1-y0, []string{"a", "b"}, func(ch, x, y int) float32 { return whole(ch, x0+x, height-y1+y) }))
		}
	}
	to := filepath.Join(t.TempDir(), "grid.exr")
	require.NoError(t, Grid(to, columns, rows, tiles))
	h, v := read(t, to)
	require.Equal(t, []int{width, height}, []int{h.width, h.height})
	for c := range 2 {
		for y := range height {
			for x := range width {
				require.Equal(t, whole(c, x, y), v[c][y][x])
			}
		}
	}
	to = filepath.Join(t.TempDir(), "grid.exr")
	tiles[4], tiles[5] = tiles[5], tiles[1]
	require.ErrorContains(t, Grid(to, columns, rows, tiles), "piece 5: not a whole piece of a frame: it has 4 × 3 pixels where 4 × 4 belong")
	require.NoFileExists(t, to, "what is not whole is removed")
	require.ErrorIs(t, Grid(to, columns, rows, tiles[1:]), ErrFormat)
}

func TestCut(t *testing.T) {
	v := func(c, x, y int) float32 { return float32(100*c + 10*y + x) }
	path := write(t, 6, 5, []string{"a", "b"}, v)
	to := filepath.Join(t.TempDir(), "cut.exr")
	require.NoError(t, Cut(to, path, Margin{1, 2, 3, 0}))
	require.NoError(t, Check(to))
	h, got := read(t, to)
	require.Equal(t, []int{2, 3}, []int{h.width, h.height})
	require.Equal(t, []string{"cycles.Layer.samples", "pixelAspectRatio"}, names(h.others))
	for c := range 2 {
		for y := range 3 {
			for x := range 2 {
				require.Equal(t, v(c, 1+x, y), got[c][y][x], "the rows at the bottom are the last")
			}
		}
	}
	for _, m := range []Margin{{3, 0, 3, 0}, {0, 5, 0, 0}, {0, 0, 0, -1}, {1 << 62, 0, 1 << 62, 0}} {
		to := filepath.Join(t.TempDir(), "cut.exr")
		require.ErrorIs(t, Cut(to, path, m), ErrFormat)
		require.NoFileExists(t, to)
	}
}

func TestDamagedPieces(t *testing.T) {
	path := write(t, 5, 4, []string{"A", "B"}, func(c, x, y int) float32 { return 1 })
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, Check(path))
	for n := range good {
		require.NoError(t, os.WriteFile(path, good[:n], 0o600))
		require.ErrorIs(t, Check(path), ErrFormat, "%d bytes of %d", n, len(good))
	}
	require.Error(t, Check(filepath.Dir(path)))
}

func FuzzPiece(f *testing.F) {
	dir := f.TempDir()
	w, err := create(filepath.Join(dir, "seed"), header{version: version, channels: []string{"A", "B"}, width: 2, height: 2})
	require.NoError(f, err)
	for range 2 {
		w.writeLine(make([]byte, 16))
	}
	require.NoError(f, w.close(nil))
	seed, err := os.ReadFile(filepath.Join(dir, "seed"))
	require.NoError(f, err)
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "piece")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		if Check(path) != nil {
			return
		}
		// A line that lies elsewhere than its table says is seen when it is read.
		if Mean(filepath.Join(dir, "mean"), []Weighted{{path, 1}, {path, 2}}) == nil {
			require.NoError(t, Check(filepath.Join(dir, "mean")))
		}
		if Grid(filepath.Join(dir, "grid"), 1, 2, []string{path, path}) == nil {
			require.NoError(t, Check(filepath.Join(dir, "grid")))
		}
	})
}
