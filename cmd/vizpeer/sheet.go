package main

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"

	"vizpeer/peer/httpapi"
)

// The contact sheet's measures, in pixels.
const (
	thumbWidth   = 240
	sheetColumns = 6
	sheetGap     = 8
	captionSpace = 18
	maxThumb     = 480 // height: a tall frame is made narrower instead
)

var (
	sheetGround  = color.RGBA{0x1d, 0x1f, 0x23, 0xff}
	sheetCaption = color.RGBA{0xb8, 0xbd, 0xc6, 0xff}
)

// contactSheet writes one picture of all frames, each with its number, to path.
// The frames are PNG files in dir.
func contactSheet(path, dir string, frames []httpapi.Frame) (err error) {
	if len(frames) == 0 {
		return errors.New("the contact sheet has no frames")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the frames' folder cannot be opened: %w", err)
	}
	defer root.Close()
	var sheet *image.RGBA
	var cell image.Point
	for i, f := range frames {
		picture, err := readPNG(root, f.Name)
		if err != nil {
			return fmt.Errorf("frame %d: %w", f.Frame, err)
		}
		if sheet == nil {
			cell = thumbSize(picture.Bounds().Size())
			columns := min(sheetColumns, len(frames))
			rows := (len(frames) + columns - 1) / columns
			sheet = image.NewRGBA(image.Rect(0, 0, sheetGap+columns*(cell.X+sheetGap), sheetGap+rows*(cell.Y+captionSpace+sheetGap)))
			draw.Draw(sheet, sheet.Bounds(), image.NewUniform(sheetGround), image.Point{}, draw.Src)
		}
		at := image.Pt(sheetGap+i%sheetColumns*(cell.X+sheetGap), sheetGap+i/sheetColumns*(cell.Y+captionSpace+sheetGap))
		draw.CatmullRom.Scale(sheet, image.Rectangle{at, at.Add(cell)}, picture, picture.Bounds(), draw.Over, nil)
		caption := font.Drawer{Dst: sheet, Src: image.NewUniform(sheetCaption), Face: basicfont.Face7x13,
			Dot: fixed.P(at.X+1, at.Y+cell.Y+captionSpace-5)}
		caption.DrawString(strconv.Itoa(int(f.Frame)))
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("the contact sheet cannot be written: %w", err)
	}
	if err := errors.Join(png.Encode(out, sheet), out.Close()); err != nil {
		return fmt.Errorf("the contact sheet %s cannot be written: %w", filepath.Base(path), err)
	}
	return nil
}

func thumbSize(frame image.Point) image.Point {
	size := image.Pt(thumbWidth, max(1, frame.Y*thumbWidth/max(1, frame.X)))
	if size.Y > maxThumb {
		size = image.Pt(max(1, frame.X*maxThumb/frame.Y), maxThumb)
	}
	return size
}

func readPNG(root *os.Root, name string) (image.Image, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return png.Decode(f)
}
