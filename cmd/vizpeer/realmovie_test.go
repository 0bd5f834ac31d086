package main

import (
	"bytes"
	"fmt"
	"image/jpeg"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// An animation that asks for it ends with its movie, beside its frames.
func TestRealFarmMakesAMovie(t *testing.T) {
	f := startRealFarm(t, "desk", "box1")
	blend := sampleScene(t)
	out := t.TempDir()
	var sent httpapi.Submitted
	f.peers[0].run(&sent, "render", blend, "--frames", "1-10", "--movie", "--output", out)
	f.peers[0].run(nil, "job", "wait", string(sent.Job))
	var movies []string
	f.within(10*time.Second, "the movie is in the folder", func() bool {
		var err error
		movies, err = filepath.Glob(filepath.Join(out, "*.mp4"))
		require.NoError(t, err)
		return len(movies) == 1
	})
	frames := pictures(t, out)
	require.Len(t, frames, 10)
	entries, err := os.ReadDir(out)
	require.NoError(t, err)
	require.Len(t, entries, 11, "nothing but frames and the movie: %v", entries)
	require.Regexp(t, `0001-0010\.mp4$`, movies[0])
	movie, err := os.ReadFile(movies[0])
	require.NoError(t, err)
	require.True(t, bytes.Contains(movie[:16], []byte("ftyp")))

	// What Blender sees of it.
	said := blenderSays(t, fmt.Sprintf(`c = bpy.data.movieclips.load(%q); print("MOVIE", c.frame_duration, c.size[:])`, movies[0]))
	require.Contains(t, said, "MOVIE 10 (320, 180)\n")

	j := f.peers[0].job(sent.Job)
	require.Equal(t, lease.JobDone, j.State)
	require.NotNil(t, j.Movie)
	require.Equal(t, filepath.Base(movies[0]), j.Movie.Name)
	status, thumb := f.peers[0].get(fmt.Sprintf("/v1/jobs/%s/frames/%d?size=thumb", sent.Job, lease.MovieFrame))
	require.Equal(t, http.StatusOK, status, "%s", thumb)
	img, err := jpeg.Decode(bytes.NewReader(thumb))
	require.NoError(t, err)
	require.Equal(t, 320, img.Bounds().Dx())
}

// blenderSays answers what a line of Python prints in Blender.
func blenderSays(t *testing.T, python string) string {
	t.Helper()
	out, err := exec.Command("blender", "-b", "--factory-startup", "-noaudio", "--python-exit-code", "3", "--python-expr", "import bpy; "+python).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}
