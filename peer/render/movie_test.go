//go:build unix

package render

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// filming is what a stand-in for Blender knows of movies.
const filming = `
box() { printf '\000\000\000\014%sabcd' $1; }
film() { say "{\"ev\":\"frame\",\"frame\":1048575,\"file\":\"$1\",\"name\":\"$2\",\"seconds\":2}"; }
folder() { folder=$(expr "$request" : '.*"folder":"\([^"]*\)"'); }
folder; loaded; start 1048575
`

// movieAttempt is an attempt at a movie of three frames, the middle one wider than the
// others.
func movieAttempt(t *testing.T, body, kind string) Attempt {
	t.Helper()
	a := fakeAttempt(t, filming+body, lease.MovieFrame)
	a.Movie = &Movie{Kind: kind}
	dir := t.TempDir()
	for i, width := range []int{8, 16, 8} {
		var b bytes.Buffer
		require.NoError(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, width, 8))))
		p := Picture{Frame: int32(3 + 2*i), Path: filepath.Join(dir, fmt.Sprintf("f%d.png", i))}
		require.NoError(t, os.WriteFile(p.Path, b.Bytes(), 0o600))
		a.Movie.Frames = append(a.Movie.Frames, p)
	}
	return a
}

func TestMovieOfFinishedFrames(t *testing.T) {
	require.Equal(t, 1048575, lease.MovieFrame, "as the stand-in for Blender has it")
	b := keeping(t, Config{MaxDisk: 1 << 20})
	a := movieAttempt(t, `while :; do
ls $folder; cat $folder/000001.png > $here/second; echo "$request" > $here/asked
echo "Rendering 2 / 3 frames of the movie"
(box ftyp; box moov; box mdat) > $out/a.mp4; film a.mp4 shot_0003-0007.mp4; end; ask; folder; done`, "mp4")
	a.Owner, a.Content = "ann", "bafyproject"
	here := filepath.Dir(a.Build.Path)
	for range 2 {
		log, sink, err := run(t, b, a)
		require.NoError(t, err)
		require.Contains(t, log, "000000.png\n000001.png\n000002.png\n")
		require.Len(t, sink.frames, 1)
		f := sink.frames[0]
		require.Equal(t, "shot_0003-0007.mp4", f.Name)
		require.Equal(t, ".mp4", filepath.Ext(f.Path))
		require.EqualValues(t, lease.MovieFrame, f.Frame)
		require.Equal(t, 2.0, f.Seconds)
		require.NotEmpty(t, f.Thumb)
		want, err := os.ReadFile(a.Movie.Frames[1].Path)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(here, "second"))
		require.NoError(t, err)
		require.Equal(t, want, got)
		asked, err := os.ReadFile(filepath.Join(here, "asked"))
		require.NoError(t, err)
		require.Contains(t, string(asked), `"do":"movie"`)
		require.Contains(t, string(asked), `"movie":{"kind":"mp4",`)
		require.Contains(t, string(asked), `"ending":".png","numbers":[3,5,7]}`)
		require.True(t, slices.ContainsFunc(sink.progress, func(p Progress) bool { return p.Sample == 2 && p.Samples == 3 }))
		shown, err := filepath.Glob(filepath.Join(b.cfg.Dir, "*", "driver", picturesName))
		require.NoError(t, err)
		require.Empty(t, shown, "while Blender waits it has nothing of them")
	}
	// Of frames that take more disk than an attempt may, nothing is the attempt's.
	for _, p := range a.Movie.Frames {
		f, err := os.OpenFile(p.Path, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	a.Build = fakeBlender(t, filming+`sleep 0.5; (box ftyp; box moov) > $out/a.mp4; film a.mp4 x.mp4; end; ask`)
	_, _, err := run(t, b, a)
	require.NoError(t, err)
}

func TestThumbOfAMovieIsItsMiddle(t *testing.T) {
	a := movieAttempt(t, `(box ftyp; box moov) > $out/a.mov; film a.mov x.mov`, "mov")
	sink := &partSink{keep: t.TempDir()}
	_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, sink)
	defer cleanup()
	require.NoError(t, err)
	conf, err := jpeg.DecodeConfig(bytes.NewReader(sink.thumb))
	require.NoError(t, err)
	require.Equal(t, 16, conf.Width)
}

func TestNamesOfMovies(t *testing.T) {
	m := &Movie{Kind: "mkv", Frames: []Picture{{Frame: 1}, {Frame: 40}}}
	for name, want := range map[string]string{
		"shot_0001-0040.mkv": "shot_0001-0040.mkv", "Ä b.mkv": "Ä b.mkv",
		"": "0001-0040.mkv", "../x.mkv": "0001-0040.mkv", "a/b.mkv": "0001-0040.mkv", "x.mp4": "0001-0040.mkv", ".mkv": "0001-0040.mkv",
		".x.mkv": "0001-0040.mkv", "a:b.mkv": "0001-0040.mkv", "a\nb.mkv": "0001-0040.mkv", strings.Repeat("x", 300) + ".mkv": "0001-0040.mkv",
	} {
		require.Equal(t, want, m.name(event{Name: name, Frame: lease.MovieFrame}), name)
	}
}

func TestMoviesAreChecked(t *testing.T) {
	const cut = "the file is no whole movie of the kind "
	for name, c := range map[string]struct {
		kind, body, reason string
		fail               lease.FailKind
	}{
		"none":            {"mp4", "film a.mp4 x.mp4", "Blender wrote no movie", lease.FailImage},
		"empty":           {"mp4", ": > $out/a.mp4; film a.mp4 x.mp4", "the movie is empty", lease.FailImage},
		"a link":          {"mp4", "ln -s $here/good.png $out/a.mp4; film a.mp4 x.mp4", "the movie is not a regular file", lease.FailImage},
		"a picture":       {"mp4", "cp $here/good.png $out/a.mp4; film a.mp4 x.mp4", cut + "mp4: it does not begin as one", lease.FailImage},
		"without an end":  {"mov", "(box ftyp; box mdat) > $out/a.mov; film a.mov x.mov", cut + "mov: it was not written to its end", lease.FailImage},
		"cut short":       {"mp4", "(box ftyp; box moov) | head -c 20 > $out/a.mp4; film a.mp4 x.mp4", cut + "mp4: it is cut short or damaged", lease.FailImage},
		"cut in a head":   {"mp4", "(box ftyp; box moov) | head -c 14 > $out/a.mp4; film a.mp4 x.mp4", cut + "mp4: it ends within a box", lease.FailImage},
		"a box of zero":   {"mp4", "(box ftyp; printf '\\000\\000\\000\\000moov') > $out/a.mp4; film a.mp4 x.mp4", cut + "mp4: it is cut short or damaged", lease.FailImage},
		"of another kind": {"mkv", "(box ftyp; box moov) > $out/a.mkv; film a.mkv x.mkv", cut + "mkv: it does not begin as one", lease.FailImage},
		"webm, not mkv":   {"mkv", `printf '\032\105\337\243\237\102\202\204webm' > $out/a.mkv; film a.mkv x.mkv`, cut + "mkv: it does not begin as one", lease.FailImage},
		"webm":            {"webm", `printf '\032\105\337\243\237\102\202\204webm' > $out/a.webm; film a.webm x.webm`, "", ""},
		"another frame":   {"mp4", "(box ftyp; box moov) > $out/a.mp4; frame 3 a.mp4 x.mp4", "Blender reports frame 3, which this attempt does not wait for", lease.FailError},
		"nothing":         {"mp4", "exit 0", "Blender ended without an error but wrote nothing for the movie", lease.FailImage},
		"a crash":         {"mp4", "kill -SEGV $$", "Blender crashed while it made the movie (segmentation fault)", lease.FailCrash},
	} {
		t.Run(name, func(t *testing.T) {
			_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), movieAttempt(t, c.body, c.kind), &collectorSink{})
			defer cleanup()
			if c.reason == "" {
				require.NoError(t, err)
				return
			}
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, c.fail, e.Kind)
		})
	}
}

func TestFramesOfMoviesAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, a *Attempt)
		reason string
		fail   lease.FailKind
	}{
		"damaged": {func(t *testing.T, a *Attempt) { require.NoError(t, os.Truncate(a.Movie.Frames[1].Path, 40)) },
			"the movie cannot be made of frame 5: the image is cut short or damaged: it ends before its IEND chunk", lease.FailImage},
		"gone": {func(t *testing.T, a *Attempt) { require.NoError(t, os.Remove(a.Movie.Frames[2].Path)) },
			"the movie cannot be made of frame 7: Blender wrote no image", lease.FailImage},
		"another format": {func(t *testing.T, a *Attempt) {
			require.NoError(t, os.Rename(a.Movie.Frames[1].Path, a.Movie.Frames[1].Path+".jpg"))
			a.Movie.Frames[1].Path += ".jpg"
		}, "a movie is made of frames of one format, and frame 5 is not of that of frame 3", lease.FailError},
		"a name that is a pattern": {func(_ *testing.T, a *Attempt) { a.Movie.Frames[0].Path += ".%d" },
			"frame 3 has no name by which Blender knows its format", lease.FailError},
		"order":   {func(_ *testing.T, a *Attempt) { a.Movie.Frames[1].Frame = 3 }, "the movie's frames are out of order at frame 3", lease.FailError},
		"no kind": {func(_ *testing.T, a *Attempt) { a.Movie.Kind = "gif" }, `unknown kind of movie "gif": use one of mp4, mkv, webm, mov`, lease.FailError},
		"none":    {func(_ *testing.T, a *Attempt) { a.Movie.Frames = nil }, "a movie is made of up to 20000 frames, and these are 0", lease.FailError},
		"parts":   {func(_ *testing.T, a *Attempt) { a.Part = &Part{tenSamples, []lease.Span{{To: 1}}} }, "an attempt at a movie is about the movie alone", lease.FailError},
	} {
		t.Run(name, func(t *testing.T) {
			a := movieAttempt(t, "exit 0", "mp4")
			c.change(t, &a)
			_, cleanup, err := NewBlender(Config{Dir: t.TempDir(), Sandbox: SandboxOff}).Run(t.Context(), a, &collectorSink{})
			defer cleanup()
			e, ok := errors.AsType[*Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.reason, e.Reason)
			require.Equal(t, c.fail, e.Kind)
		})
	}
}
