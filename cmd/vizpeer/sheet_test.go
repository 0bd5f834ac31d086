package main

import (
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/peer/httpapi"
)

func writePNG(t *testing.T, path string, size image.Point, c color.Color) {
	t.Helper()
	m := image.NewRGBA(image.Rectangle{Max: size})
	for y := range size.Y {
		for x := range size.X {
			m.Set(x, y, c)
		}
	}
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, png.Encode(f, m))
}

func TestContactSheet(t *testing.T) {
	dir := t.TempDir()
	var frames []httpapi.Frame
	for i := range 8 {
		name := strconv.Itoa(i) + ".png"
		writePNG(t, filepath.Join(dir, name), image.Pt(320, 180), color.RGBA{uint8(i * 30), 200, 40, 255})
		frames = append(frames, httpapi.Frame{Frame: int32(i + 1), Name: name})
	}
	path := filepath.Join(dir, "sheet.png")
	require.NoError(t, contactSheet(path, dir, frames))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	m, err := png.Decode(f)
	require.NoError(t, err)
	require.Equal(t, image.Pt(8+6*248, 8+2*(135+18+8)), m.Bounds().Size())
	// The second frame of the second row is the eighth.
	r, g, b, _ := m.At(8+248+120, 8+161+60).RGBA()
	require.Equal(t, []uint32{210, 200, 40}, []uint32{r >> 8, g >> 8, b >> 8})

	require.ErrorContains(t, contactSheet(path, dir, []httpapi.Frame{{Frame: 7, Name: "../escape.png"}}), "frame 7")
	require.Error(t, contactSheet(path, dir, nil))
}

func TestThumbSize(t *testing.T) {
	require.Equal(t, image.Pt(240, 135), thumbSize(image.Pt(1920, 1080)))
	require.Equal(t, image.Pt(187, 480), thumbSize(image.Pt(1600, 4096)))
}
