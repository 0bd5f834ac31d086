package main

import (
	"slices"
	"strings"
)

// imageFormats are Blender's names for the images that a frame can be.
var imageFormats = []string{"PNG", "JPEG", "JPEG2000", "OPEN_EXR", "OPEN_EXR_MULTILAYER", "TIFF", "TARGA", "TARGA_RAW",
	"BMP", "IRIS", "CINEON", "DPX", "HDR", "WEBP", "AVIF"}

// movieFormats are its names for films. A film is no set of frames that several
// machines could write.
var movieFormats = []string{"FFMPEG", "AVI_JPEG", "AVI_RAW", "AVI_CODEC", "FRAMESERVER", "XVID", "H264", "THEORA"}

func isMovie(format string) bool { return slices.Contains(movieFormats, format) }

// checkFormat refuses what no frame can be; "" is the file's own format.
func checkFormat(format string) error {
	switch {
	case format == "" || slices.Contains(imageFormats, format):
		return nil
	case isMovie(format):
		return usagef("--format %s is a movie, and the farm renders frames: use PNG or another image format, and make the movie of them afterwards", format)
	}
	meant := nearest(format, imageFormats)
	if i := slices.IndexFunc(imageFormats, func(known string) bool { return strings.Contains(known, format) }); i >= 0 {
		meant = imageFormats[i] // EXR
	}
	return usagef("--format %q is not known: did you mean %s? Known formats: %s", format, meant, strings.Join(imageFormats, ", "))
}

// looksLikeEngine tells whether a name could be a render engine's: an identifier
// of Python.
func looksLikeEngine(name string) bool {
	return len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) && (name[0] < '0' || name[0] > '9')
}
