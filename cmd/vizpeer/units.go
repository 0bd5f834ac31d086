package main

import (
	"fmt"
	"strings"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// movieWord stands for the frames of the task that makes a job's movie, and in lists for
// the movie's number.
const movieWord = "movie"

// frameText names a frame, or the movie, which has a number as frames do.
func frameText(frame int32) string {
	if frame == lease.MovieFrame {
		return "the movie"
	}
	return fmt.Sprintf("frame %d", frame)
}

// frameCell is a frame in a column of frames.
func frameCell(frame int32) string {
	if frame == lease.MovieFrame {
		return movieWord
	}
	return fmt.Sprint(frame)
}

// unitNoun is what one unit of a frame is called.
func unitNoun(by lease.SplitBy) string {
	if by == lease.ByTiles {
		return "tile"
	}
	return "sample"
}

// unitsText names a range of units: "samples 100-199".
func unitsText(s lease.Span, by lease.SplitBy) string {
	if s.Len() == 1 {
		return fmt.Sprintf("%s %d", unitNoun(by), s.From)
	}
	return fmt.Sprintf("%ss %d-%d", unitNoun(by), s.From, s.To-1)
}

// workText says what a task is about: "frames 1-5", "frame 7, samples 100-199",
// "merging frame 7", "making the movie".
func workText(frames string, units *lease.Span, by lease.SplitBy) string {
	noun := "frame"
	if strings.ContainsAny(strings.TrimPrefix(frames, "-"), "-,") {
		noun = "frames"
	}
	switch {
	case frames == movieWord:
		return "making the movie"
	case units != nil:
		return fmt.Sprintf("%s %s, %s", noun, frames, unitsText(*units, by))
	case by != "":
		return fmt.Sprintf("merging %s %s", noun, frames)
	}
	return noun + " " + frames
}

// progressText says how much of a job is there: "3 of 24 frames", and where it splits
// them "312 of 512 samples".
func progressText(job httpapi.JobSummary, frames, total int, units float64) string {
	text := fmt.Sprintf("%d of %s", frames, count(total, "frame"))
	if job.UnitsTotal == 0 {
		return text
	}
	parts := fmt.Sprintf("%d of %s", int(units), count(job.UnitsTotal, unitNoun(job.Split.By)))
	if total == 1 {
		return parts
	}
	return text + ", " + parts
}

// summaryText is progressText of what the list of jobs tells.
func summaryText(job httpapi.JobSummary) string {
	return progressText(job, job.FramesDone, job.FramesTotal, float64(job.UnitsDone))
}

// nowText names what is being done with the job's parts: "merging", "making the movie".
func (f *follower) nowText() string {
	var merged []string
	for _, id := range f.order {
		switch w := f.peers[id]; {
		case w.task >= 0 && w.list == movieWord:
			return "making the movie"
		case w.merges():
			merged = append(merged, w.list)
		}
	}
	switch {
	case len(merged) == 0:
		return ""
	case len(f.frames) == 1:
		return "merging"
	}
	return "merging frame " + strings.Join(merged, ", ")
}
