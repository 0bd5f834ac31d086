package httpapi

import (
	"image"
	"image/color"
	"image/draw"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

func plain(w, h int, grey uint8) image.Image {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.Draw(img, img.Bounds(), image.NewUniform(color.RGBA{grey, grey, grey, 255}), image.Point{}, draw.Src)
	return img
}

func greyAt(t *testing.T, img image.Image, x, y int) uint8 {
	r, g, b, a := img.At(x, y).RGBA()
	require.True(t, r == g && g == b && a == 0xffff)
	return uint8(r >> 8)
}

func TestPicturesOfSamplesAreWeighted(t *testing.T) {
	split := lease.Split{By: lease.BySamples, Units: 100}
	require.Nil(t, assemble(split, nil))
	got := assemble(split, []part{
		{lease.Span{From: 0, To: 10}, plain(8, 4, 100)}, {lease.Span{From: 50, To: 80}, plain(8, 4, 200)}, {lease.Span{From: 80, To: 90}, plain(4, 4, 0)},
	})
	require.Equal(t, image.Rect(0, 0, 8, 4), got.Bounds())
	require.EqualValues(t, 175, greyAt(t, got, 3, 3), "one that has another size is left out")
}

func TestPicturesOfTilesHaveTheirPlaces(t *testing.T) {
	split := lease.Split{By: lease.ByTiles, Units: 6, Columns: 3, Rows: 2}
	got := assemble(split, []part{{lease.Span{From: 0, To: 1}, plain(10, 10, 255)}, {lease.Span{From: 5, To: 6}, plain(10, 10, 0)}})
	require.Equal(t, image.Rect(0, 0, 30, 20), got.Bounds())
	require.EqualValues(t, 255, greyAt(t, got, 2, 17), "the first tile is at the bottom left")
	require.EqualValues(t, 0, greyAt(t, got, 25, 3), "the last is at the top right")
	require.EqualValues(t, 64, greyAt(t, got, 15, 10), "what is not there is grey")
	require.LessOrEqual(t, assemble(lease.Split{By: lease.ByTiles, Units: 4096, Columns: 4096, Rows: 1}, []part{{lease.Span{From: 4095, To: 4096}, plain(2048, 2048, 9)}}).Bounds().Dx(), maxPreviewSide)
	// A machine that lies about the place of its tile must not end this one.
	require.NotNil(t, assemble(split, []part{{lease.Span{From: 4000, To: 4001}, plain(10, 10, 255)}}))
}
