package render

import (
	"bufio"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	_ "image/png" // a format that is read
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/image/draw"
	_ "golang.org/x/image/tiff" // a format that is read
)

// Small pictures of frames, for people. Those of PNG, JPEG and TIFF files are made here,
// because their pixels are what is shown. Of others only Blender knows what they look
// like: it gives a JPEG in full size, see pictures.py.
const (
	thumbSide    = 512 // pixels, the longer side at most
	thumbQuality = 85
	// maxThumbSource bounds the memory that a picture may take while it is made small:
	// 4 bytes for each pixel, or 8.
	maxThumbSource = 36 << 20
	maxPreview     = 1 << 20 // bytes
)

// thumb makes the small picture of the frame at path, or that of a movie which path
// stands for, and answers where it is, or "". It
// fails no frame.
func (w *watch) thumb(ev event, path string) string {
	stem := filepath.Join(w.dir.frames(), strconv.Itoa(int(ev.Frame)))
	if ev.Thumb != "" {
		shown := stem + "_shown.jpg"
		if err := w.takeOut(ev.Thumb, shown); err != nil {
			w.tail.add("note: no small picture: " + err.Error())
			return ""
		}
		defer os.Remove(shown)
		path = shown
	}
	to := stem + "_thumb.jpg"
	if err := makeThumb(path, to); err != nil {
		w.tail.add("note: no small picture: " + err.Error())
		return ""
	}
	return to
}

// takeOut moves what Blender wrote out of its reach, if it is a regular file. The name
// is Blender's word.
func (w *watch) takeOut(name, to string) error {
	if name == "" || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return errors.New("it is outside Blender's folder")
	}
	if err := os.Rename(filepath.Join(w.out, name), to); err != nil {
		return errors.New("Blender wrote no image")
	}
	if st, err := os.Lstat(to); err != nil || !st.Mode().IsRegular() {
		os.Remove(to)
		return errors.New("the image is not a regular file")
	}
	return nil
}

// makeThumb writes a JPEG of the picture at from, whose content may be hostile.
func makeThumb(from, to string) (err error) {
	defer func() {
		if r := recover(); r != nil { // a decoder that was led astray
			err = fmt.Errorf("the image cannot be read: %v", r)
		}
	}()
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	conf, _, err := image.DecodeConfig(bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("the image cannot be read: %w", err)
	}
	if conf.Width < 1 || conf.Height < 1 || conf.Width > maxThumbSource/conf.Height {
		return fmt.Errorf("the image has %d × %d pixels", conf.Width, conf.Height)
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	whole, _, err := image.Decode(bufio.NewReaderSize(f, 64<<10))
	if err != nil {
		return fmt.Errorf("the image cannot be read: %w", err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = jpeg.Encode(out, shrink(whole), &jpeg.Options{Quality: thumbQuality})
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(to)
	}
	return err
}

// shrink makes the picture fit thumbSide in both directions, on black.
func shrink(whole image.Image) image.Image {
	size := whole.Bounds().Size()
	width, height := size.X, size.Y
	if longer := max(width, height); longer > thumbSide {
		width, height = max(1, (width*thumbSide+longer/2)/longer), max(1, (height*thumbSide+longer/2)/longer)
	}
	small := image.NewRGBA(image.Rect(0, 0, width, height))
	draw.Draw(small, small.Bounds(), image.NewUniform(color.Black), image.Point{}, draw.Src)
	// It looks at a few pixels for each of its own: a tenth of the time of looking at all.
	draw.ApproxBiLinear.Scale(small, small.Bounds(), whole, whole.Bounds(), draw.Over, nil)
	return small
}

// checkPreview tells what keeps the file at path from being shown.
func checkPreview(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxPreview {
		return fmt.Errorf("it has %d bytes", st.Size())
	}
	conf, err := jpeg.DecodeConfig(f)
	if err != nil {
		return err
	}
	if conf.Width > thumbSide || conf.Height > thumbSide {
		return fmt.Errorf("it has %d × %d pixels", conf.Width, conf.Height)
	}
	return checkJPEG(f, st.Size())
}
