package lease

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"vizpeer/authz"
)

// A job that makes a movie has one frame more than its frames, [MovieFrame]: the movie,
// made of the others by a task of its own, which nobody is granted before they are all
// there. It is held, kept and written as they are.

// MovieFrame is the number that stands for the movie of a job: no frame of Blender's has
// it.
const MovieFrame = MaxFrame + 1

// MaxMovieFrames bounds the frames of a movie: their names must fit into one order.
const MaxMovieFrames = 20_000

// Movies are the kinds of movie that a job can end with, as the endings of file names.
var Movies = []string{"mp4", "mkv", "webm", "mov"}

// checkMovie reports what is wrong with the movie that was asked for.
func (s Spec) checkMovie() error {
	switch {
	case s.Movie == "":
		return nil
	case !slices.Contains(Movies, s.Movie):
		return fmt.Errorf("unknown kind of movie %.20q: use one of %s", s.Movie, strings.Join(Movies, ", "))
	}
	if n := len(s.Frames.Expand()); n < 2 || n > MaxMovieFrames {
		return fmt.Errorf("a movie is made of 2 to %d frames, and these are %d", MaxMovieFrames, n)
	}
	return nil
}

// places lists the numbers of the frames, and of the movie.
func (s Spec) places() []int32 {
	numbers := s.Frames.Expand()
	if s.Movie != "" {
		numbers = append(numbers, MovieFrame)
	}
	return numbers
}

// movie is the place of the job's movie; -1 where it makes none.
func (j *Job) movie() int {
	if j.Spec.Movie == "" {
		return -1
	}
	return len(j.Frames) - 1
}

// Makes tells whether a task is to make the job's movie.
func (j *Job) Makes(t *Task) bool { return int(t.Lo) == j.movie() && !t.Part() }

// Pictures is how many frames the job has, its movie not counted.
func (j *Job) Pictures() int {
	if j.Spec.Movie != "" {
		return len(j.Frames) - 1
	}
	return len(j.Frames)
}

// unfinished is how many frames are to be rendered before the movie can be made.
func (j *Job) unfinished() int {
	n := j.Unrendered()
	if at := j.movie(); at >= 0 && j.open(int32(at)) {
		n--
	}
	return n
}

// releaseMovie lets the task of the movie be granted, or keeps it back, by what is rendered.
func (j *Job) releaseMovie() {
	at := j.movie()
	if at < 0 {
		return
	}
	i := j.tasks[at]
	t := &j.Tasks[i]
	waits := j.unfinished() > 0
	if waits != j.early {
		j.tally(t, -1)
		j.early = waits
		j.tally(t, 1)
	}
	j.offer(i)
}

// movieName tells whether a movie may be written into a folder of pictures under this
// name, on every system.
func movieName(n string) bool {
	return len(n) <= 255 && len(n) > 1 && !strings.HasPrefix(n, ".") && !strings.ContainsAny(n, "/\\:\x00\n\r") &&
		slices.Contains(Movies, strings.TrimPrefix(strings.ToLower(path.Ext(n)), "."))
}

// makesMovie tells whether a machine holds a lease on the job's movie.
func (j *Job) makesMovie(p authz.PeerID) bool {
	at := j.movie()
	return at >= 0 && slices.ContainsFunc(j.Tasks[j.tasks[at]].Lives(), func(a Attempt) bool { return a.Peer == p })
}
