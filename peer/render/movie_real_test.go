package render

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// filmScene is an animation of 97 × 61 pixels, 24,000 frames in 1,001 seconds, whose
// pictures are clear in places.
const filmScene = `
import bpy
bpy.ops.wm.read_factory_settings()
s = bpy.context.scene
s.render.engine = "BLENDER_WORKBENCH"
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 97, 61, 100
s.render.fps, s.render.fps_base = 24, 1.001
s.render.film_transparent = True
s.render.image_settings.file_format, s.render.image_settings.color_mode = "PNG", "RGBA"
s.render.filepath = "//frames/shot_"
s.view_settings.exposure = 0.5
s.display.shading.color_type, s.display.shading.single_color = "SINGLE", (0.8, 0.2, 0.1)
cube = bpy.data.objects["Cube"]
for frame, x in ((5, -3), (14, 3)):
    cube.location.x = x
    cube.keyframe_insert("location", frame=frame)
%s
bpy.ops.wm.save_as_mainfile(filepath=%q)
`

// filmFrames makes a project and, with plain Blender, its frames 5 to 14.
func filmFrames(t *testing.T, build lease.Build, python, setup string) (root string, frames []Picture) {
	t.Helper()
	root, dir := t.TempDir(), t.TempDir()
	blend := filepath.Join(root, "a.blend")
	script(t, build, fmt.Sprintf(filmScene, python, blend))
	plain(t, build, blend, setup, dir+"/", "5", "14")
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	for i, f := range files {
		frames = append(frames, Picture{Frame: int32(5 + i), Path: filepath.Join(dir, f.Name())})
	}
	require.Len(t, frames, 10)
	return root, frames
}

// readMovie is Python that says what Blender sees of the movies named after "--", and
// how far the one picture is from another, where they have pairs of them.
const readMovie = `
import bpy, sys
s = bpy.context.scene
def film(path):
    c = bpy.data.movieclips.load(path)
    try:
        sound = bpy.data.sounds.load(path).channels
    except RuntimeError:
        sound = "INVALID"
    print("MOVIE", c.frame_duration, c.size[0], c.size[1], round(c.fps, 2), sound)
def picture(path, frame):
    """Frame of a movie, or a picture, as its pixels are."""
    a = bpy.data.scenes.new("a")
    a.render.resolution_x, a.render.resolution_y, a.render.fps, a.render.fps_base = 98, 62, 24, 1.001
    a.render.image_settings.file_format, a.render.image_settings.color_mode = "PNG", "RGB"
    a.render.filepath = path + ".seen.####.png"
    a.view_settings.view_transform = "Standard"
    a.frame_start, a.frame_end = 1, frame
    e = a.sequence_editor_create()
    if path.endswith(".png"):
        strip = e.sequences.new_image("x", path, 1, frame)
        strip.transform.offset_x, strip.transform.offset_y, strip.transform.filter = -0.5, 0.5, "NEAREST"
    else:
        strip = e.sequences.new_movie("x", path, 1, 1)
    strip.blend_type = "REPLACE"
    bpy.ops.render.render(animation=True, scene=a.name)
    i = bpy.data.images.load(a.render.frame_path(frame=frame))
    return list(i.pixels)
def apart(movie, frame, shown):
    a, b = picture(movie, frame), picture(shown, 1)
    d = [abs(x - y) for x, y in zip(a, b)]
    print("APART", len(a) == len(b), sum(d) / len(d) < 0.01)
%s
`

// seeMovie answers what Blender sees of a movie, whose last frame it compares.
func seeMovie(t *testing.T, build lease.Build, movie []byte, kind, last string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "movie."+kind)
	require.NoError(t, os.WriteFile(path, movie, 0o600))
	shown := filepath.Join(t.TempDir(), "last.png") // pictures of it are written beside it
	b, err := os.ReadFile(last)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(shown, b, 0o600))
	out := script(t, build, fmt.Sprintf(readMovie, fmt.Sprintf("film(%q)\napart(%q, 10, %q)", path, path, shown)))
	var said []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "MOVIE") || strings.HasPrefix(line, "APART") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	return strings.Join(said, "; ")
}

func runMovie(t *testing.T, b *Blender, build lease.Build, root string, m Movie) (log string, sink *partSink, err error) {
	t.Helper()
	sink = &partSink{keep: t.TempDir()}
	path, cleanup, err := b.Run(t.Context(), Attempt{
		Owner: "ann", Content: root, Project: root, Blend: "a.blend", Build: build, Frames: []int32{lease.MovieFrame}, Movie: &m,
	}, sink)
	defer cleanup()
	text, _ := os.ReadFile(path)
	return string(text), sink, err
}

func TestMoviesHoldTheirFrames(t *testing.T) {
	t.Parallel() // a Blender that starts keeps one core busy
	build := realBlender(t)
	root, frames := filmFrames(t, build, "", "")
	last := frames[9].Path
	b := NewBlender(Config{Dir: t.TempDir()})
	defer b.Close()
	_, err := exec.LookPath("ffmpeg")
	own := err != nil
	if own {
		t.Log("without the program ffmpeg every movie is made by Blender's own encoder")
	}
	for _, kind := range lease.Movies {
		log, sink, err := runMovie(t, b, build, root, Movie{Kind: kind, Frames: frames})
		require.NoError(t, err, "%s", log)
		require.Equal(t, own, strings.Contains(log, "Blender's own encoder makes the movie"), "%s", log)
		require.Contains(t, log, "97 × 61 pixels, and a movie has even numbers of them: it has a black line more on the right and at the bottom")
		require.Equal(t, "shot_0005-0014."+kind, sink.frames[0].Name)
		require.NotEmpty(t, sink.thumb)
		require.Equal(t, "MOVIE 10 98 62 23.98 INVALID; APART True True", seeMovie(t, build, sink.images[lease.MovieFrame], kind, last))
	}
	// Steps leave no gaps.
	log, sink, err := runMovie(t, b, build, root, Movie{Kind: "mp4", Frames: []Picture{frames[0], frames[2], frames[4]}})
	require.NoError(t, err, "%s", log)
	require.Equal(t, "shot_0005-0009.mp4", sink.frames[0].Name)
	require.Contains(t, seeMovie(t, build, sink.images[lease.MovieFrame], "mp4", last), "MOVIE 3 98 62 23.98")
	// What cannot be read says so, whatever its end looks like.
	whole, err := os.ReadFile(frames[3].Path)
	require.NoError(t, err)
	bad := filepath.Join(t.TempDir(), "bad.png")
	at := strings.Index(string(whole), "IDAT")
	require.NoError(t, os.WriteFile(bad, append(append(whole[:at+4:at+4], make([]byte, 40)...), whole[at+44:]...), 0o600))
	damaged := append([]Picture{}, frames...)
	damaged[3].Path = bad
	_, _, err = runMovie(t, b, build, root, Movie{Kind: "mp4", Frames: damaged})
	require.ErrorContains(t, err, map[bool]string{true: "frame 8 cannot be read", false: "ffmpeg could not make the movie: "}[own])
}

// Frames of light go through the scene's view transform, which only Blender knows, and
// its Blender renders as before when the movie is made.
func TestMoviesOfLight(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	root, shown := filmFrames(t, build, "s.render.film_transparent = False", "")
	b := NewBlender(Config{Dir: t.TempDir()})
	defer b.Close()
	for format, colours := range map[string]string{"OPEN_EXR": "RGBA", "OPEN_EXR_MULTILAYER": "RGBA"} {
		dir := t.TempDir()
		plain(t, build, filepath.Join(root, "a.blend"), fmt.Sprintf("s.render.image_settings.file_format = %q; s.render.image_settings.color_mode = %q", format, colours), dir+"/", "5", "14")
		var frames []Picture
		for i := range int32(10) {
			frames = append(frames, Picture{Frame: 5 + i, Path: filepath.Join(dir, fmt.Sprintf("%04d.exr", 5+i))})
		}
		log, sink, err := runMovie(t, b, build, root, Movie{Kind: "mp4", Frames: frames})
		require.NoError(t, err, "%s", log)
		require.Contains(t, log, "Blender's own encoder makes the movie")
		if format == "OPEN_EXR" {
			require.NotEmpty(t, sink.thumb)
			require.Equal(t, "MOVIE 10 98 62 23.98 INVALID; APART True True", seeMovie(t, build, sink.images[lease.MovieFrame], "mp4", shown[9].Path))
		} else {
			require.Contains(t, seeMovie(t, build, sink.images[lease.MovieFrame], "mp4", shown[9].Path), "MOVIE 10 98 62 23.98")
		}
	}
	sink := &collectorSink{}
	path, cleanup, err := b.Run(t.Context(), Attempt{Owner: "ann", Content: root, Project: root, Blend: "a.blend", Build: build, Frames: []int32{14}}, sink)
	defer cleanup()
	require.NoError(t, err)
	log, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(log), "this Blender has the file open since an earlier attempt")
	want, err := os.ReadFile(shown[9].Path)
	require.NoError(t, err)
	requireSamePixels(t, want, sink.images[14])
	require.Equal(t, "shot_0014.png", sink.frames[0].Name)
}

// ownEncoder makes movies with a Blender that finds no ffmpeg, and prints which of the
// scene's settings are not as they were.
const ownEncoder = `
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, %q)
import bpy, movie
movie.shutil.which = lambda name: None
s = bpy.context.scene
def settings():
    found = {"data": [len(getattr(bpy.data, n)) for n in ("scenes", "images", "actions", "sounds", "node_groups")]}
    for name, owner in (("scene", s), ("render", s.render), ("image", s.render.image_settings), ("ffmpeg", s.render.ffmpeg), ("view", s.view_settings), ("display", s.display_settings)):
        for p in owner.bl_rna.properties:
            if p.type in ("BOOLEAN", "INT", "FLOAT", "STRING", "ENUM"):
                v = getattr(owner, p.identifier)
                found[name + "." + p.identifier] = v[:] if getattr(p, "is_array", False) else v
    return found
before = settings()
folder, out = %q, %q
def make(numbers, kind="mp4"):
    notes = []
    file, thumb = movie.make(bpy, s, numbers, kind, ".png", folder, out, lambda ev, **rest: notes.append(rest["text"]))
    os.replace(os.path.join(out, file), os.path.join(out, "%%d.%%s" %% (len(numbers), kind)))
    print("MADE", file, repr(thumb), [n for n in notes if "pixels" not in n])
make(list(range(5, 15)))
make(list(range(5, 15)), "webm")
make([5, 7, 9])
for name, change in (("cut", lambda b: b[:len(b) // 2]), ("none", lambda b: b"nothing")):
    path = os.path.join(folder, "000001.png")
    whole = open(path, "rb").read()
    open(path, "wb").write(change(whole))
    try:
        make([5, 6, 7])
    except movie.Refused as e:
        print("REFUSED", name, e.kind, e)
    open(path, "wb").write(whole)
movie.KINDS["mp4"] = ("NOTHING",) + movie.KINDS["mp4"][1:]
try:
    make([5, 6, 7])
except movie.Refused as e:
    print("REFUSED", "kind", e.kind, e)
for name, value in settings().items():
    if before[name] != value:
        print("CHANGED", name, before[name], value)
`

func TestBlendersOwnMovies(t *testing.T) {
	t.Parallel()
	build := realBlender(t)
	wav := filepath.Join(t.TempDir(), "tone.wav")
	root, frames := filmFrames(t, build, fmt.Sprintf(`
import wave
with wave.open(%q, "wb") as f:
    f.setnchannels(1); f.setsampwidth(2); f.setframerate(8000); f.writeframes(bytes((i * 7) %% 251 for i in range(16000)))
e = s.sequence_editor_create()
e.sequences.new_sound("tone", %[1]q, 1, 5).sound.pack()
picture = e.sequences.new_effect("red", "COLOR", 2, 1, frame_end=20)
picture.color = (1, 0, 0)
e.sequences_all["tone"].volume = 0.5
e.sequences_all["tone"].keyframe_insert("volume", frame=5)
s.view_settings.keyframe_insert("exposure", frame=5)
`, wav), "s.render.use_sequencer = False")
	here, err := filepath.Abs(".")
	require.NoError(t, err)
	b := NewBlender(Config{Dir: t.TempDir()})
	defer b.Close()
	log, sink, err := runMovie(t, b, build, root, Movie{Kind: "mov", Frames: frames})
	require.NoError(t, err, "%s", log)
	require.Contains(t, log, "Blender's own encoder makes the movie", "it mixes the sound")
	require.Equal(t, "MOVIE 10 98 62 23.98 STEREO; APART True True", seeMovie(t, build, sink.images[lease.MovieFrame], "mov", frames[9].Path))

	folder, out := t.TempDir(), t.TempDir()
	for i, p := range frames {
		require.NoError(t, os.Rename(p.Path, filepath.Join(folder, fmt.Sprintf("%06d.png", i))))
	}
	said := script(t, build, fmt.Sprintf(ownEncoder, here, folder, out), filepath.Join(root, "a.blend"))
	for _, line := range []string{
		"MADE movie.mp4 '' [\"Blender's own encoder makes the movie\"]\n",
		"MADE movie.webm '' [\"Blender's own encoder makes the movie\"]\n",
		"MADE movie.mp4 '' ['the movie has no sound: there is not a frame for each number from its first to its last', \"Blender's own encoder makes the movie\"]\n",
		"REFUSED none image frame 6 cannot be read, and the movie is not made without it\n",
		"REFUSED kind machine this machine's Blender writes no mp4 movies\n",
	} {
		require.Contains(t, said, line)
	}
	require.NotContains(t, said, "CHANGED")
	for file, want := range map[string]string{
		"10.mp4": "MOVIE 10 98 62 23.98 STEREO; APART True True", "10.webm": "MOVIE 10 98 62 23.98 STEREO; APART True True", "3.mp4": "MOVIE 3 98 62 23.98 INVALID",
	} {
		b, err := os.ReadFile(filepath.Join(out, file))
		require.NoError(t, err)
		require.Contains(t, seeMovie(t, build, b, strings.TrimPrefix(filepath.Ext(file), "."), filepath.Join(folder, "000009.png")), want, file)
	}
}
