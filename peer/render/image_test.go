package render

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// everyFormat saves one render in the formats that Blender has.
const everyFormat = `
import bpy, os
s = bpy.context.scene
s.render.engine = "CYCLES"
s.cycles.samples, s.cycles.use_denoising = 1, False
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 90, 70, 100
s.view_layers[0].use_pass_normal = True
image = s.render.image_settings
def save(name, format, **more):
    image.file_format = format
    for k, v in more.items():
        setattr(image, k, v)
    s.render.filepath = os.path.join(os.environ["FORMATS"], name)
    bpy.ops.render.render(write_still=True)
save("png8", "PNG", color_depth="8")
save("png16", "PNG", color_depth="16")
save("jpg", "JPEG")
for codec in ("NONE", "ZIP", "ZIPS", "PIZ", "RLE", "DWAA", "DWAB", "PXR24", "B44A"):
    save("exr " + codec, "OPEN_EXR", color_depth="16" if codec == "B44A" else "32", exr_codec=codec)
save("layers", "OPEN_EXR_MULTILAYER", exr_codec="ZIP")
save("tif", "TIFF")
save("bmp", "BMP")
try:
    save("webp", "WEBP")
except TypeError:
    pass  # 3.2 and later
save("tga", "TARGA")
save("hdr", "HDR")
save("dpx", "DPX")
`

func TestWholeImagesPassAndCutOnesDoNot(t *testing.T) {
	build := realBlender(t)
	dir := t.TempDir()
	t.Setenv("FORMATS", dir)
	script(t, build, everyFormat)
	images, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(images), 18)
	endless := map[string]bool{".tga": true, ".hdr": true, ".dpx": true} // their ends say nothing
	for _, path := range images {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, checkImage(path), path)
		if endless[filepath.Ext(path)] {
			continue
		}
		for _, size := range []int{9, len(b) / 3, len(b) * 9 / 10, len(b) - 1} {
			require.Error(t, checkContent(bytes.NewReader(b[:size]), int64(size)), "%s cut to %d of %d bytes", filepath.Base(path), size, len(b))
		}
	}
}

func TestCheckImageOfWhatIsNone(t *testing.T) {
	dir := t.TempDir()
	require.EqualError(t, checkImage(filepath.Join(dir, "none.png")), "Blender wrote no image")
	require.EqualError(t, checkImage(dir), "the image is not a regular file")
	empty := filepath.Join(dir, "empty.png")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	require.EqualError(t, checkImage(empty), "the image is empty")
	require.NoError(t, os.WriteFile(empty, make([]byte, 4096), 0o600))
	require.EqualError(t, checkImage(empty), "the image is cut short or damaged: it begins with zeros")
}

func FuzzCheckContent(f *testing.F) {
	f.Add([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00IEND\xaeB`\x82"))
	f.Add([]byte("\x76\x2f\x31\x01\x02\x00\x00\x00compression\x00compression\x00\x01\x00\x00\x00\x03dataWindow\x00box2i\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0f\x00\x00\x00\x0f\x00\x00\x00\x00"))
	f.Add([]byte("II*\x00\x08\x00\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xd8\xff\xd9"))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkContent(bytes.NewReader(b), int64(len(b)))
	})
}
