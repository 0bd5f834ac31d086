package sched

import (
	"math"
	"time"

	"vizpeer/lease"
)

// unmeasured is the time of a frame or unit, in seconds, of a job of which none was measured:
// machines are then taken for equally fast.
const unmeasured = 1.0

// seconds is how long m is expected to take for a frame of j, or a unit where it splits
// them, on one of its devices.
func (m Machine) seconds(j *lease.Job, d lease.Device) float64 {
	if own := j.Pace(lease.Hand{Peer: m.Peer, Device: d}); own.Frames() > 0 {
		return max(own.Seconds(), shortest)
	}
	mean := unmeasured
	if all := j.MeanPace(); all.Frames() > 0 {
		mean = max(all.Seconds(), shortest)
	}
	if speed := m.Speeds[d]; speed > 0 {
		return max(mean/min(max(speed, 1/fastest), fastest), shortest)
	}
	return mean
}

// fastest bounds how many times as fast as others a machine is believed to be.
const fastest = 20

// shortest is the time of a frame that takes none, in seconds.
const shortest = 1e-3

// How much rendering is worth an attempt of its own, in seconds: smallChunk; less where an
// attempt is known to cost next to nothing, as with a Blender that is warm; more where it
// costs much. And worth many times what it takes to load the project.
const (
	smallChunk    = 10.0
	tinyChunk     = 1.0
	tinyByLoad    = 10.0
	smallByLoad   = 2.0
	desiredByLoad = 30.0
)

func small(pace lease.Pace) float64 {
	load, known := pace.Overhead()
	if !known {
		return smallChunk
	}
	return max(smallByLoad*load, min(max(tinyByLoad*load, tinyChunk), smallChunk))
}

// chunk is how many frames of j, or units where it splits them, to give to a device of a
// machine, while all that have a part in the job render rate of them a second. It aims
// at [lease.ChunkTarget], or more where loading takes long; at half of the device's
// share of what is left where that is less, so that all end together; and at the
// whole share rather than at crumbs. This is factoring (Hummel, Schonberg and Flynn,
// 1992), weighted by speed. Of the last task that waits, of which waits frames or units
// are to be rendered, it gives no more than the share, or a crumb: others will soon come
// for theirs. What was measured on a few frames is believed for a few: a scene may begin
// in the dark.
func chunk(j *lease.Job, m *Machine, d lease.Device, rate float64, waits int32) int32 {
	left, first, seconds := float64(j.Unrendered()), float64(lease.DefaultChunk), m.seconds(j, d)
	switch j.Spec.Split.By {
	case lease.BySamples:
		left, first = float64(j.Uncovered()), lease.DefaultSamples
	case lease.ByTiles:
		left, first = float64(j.Uncovered()), 1
	}
	share := left / seconds / rate
	all := j.MeanPace()
	if all.Frames() == 0 {
		return whole(min(share, first), j)
	}
	load, _ := all.Overhead()
	n := min(max(lease.ChunkTarget.Seconds(), desiredByLoad*load), lease.MaxChunkFor.Seconds()) / seconds
	if share < 0.99*left { // others have a part in it
		crumb := small(all) / seconds
		n = min(n, max(share/2, min(share, crumb)))
		if j.Waits() == 1 {
			n = min(n, max(float64(waits)/seconds/rate, crumb))
		}
	}
	own := j.Pace(lease.Hand{Peer: m.Peer, Device: d}).Frames()
	known := float64(growth * own)
	switch {
	case own > 0:
	case m.Speeds[d] > 0:
		known = growth
	case j.Tried(d):
		known = first
	default: // nobody knows how fast a GPU is by what a CPU does
		known = 1
	}
	return whole(min(n, known), j)
}

// growth is how many times as many frames as a device rendered of a job it may be
// given at once.
const growth = 8

// fewSamples is how many samples are worth an attempt of their own.
const fewSamples = 4

// whole rounds to what a task may have: at least 1 frame or tile or a few samples, and
// so many that the job does not get too many tasks.
func whole(n float64, j *lease.Job) int32 {
	count, least, most := len(j.Frames), 1, float64(lease.MaxChunk)
	if j.Splits() {
		count *= int(j.Units)
		most = lease.MaxSamples
		if j.Spec.Split.By == lease.BySamples {
			least = fewSamples
		}
	}
	least = max(least, (count-1)/max(j.MostTasks()/2, 1)+1)
	return int32(min(max(math.Ceil(n), float64(least)), most))
}

// How long an attempt must give no frame to be stuck: so many times the slowest frame
// of the job so far, or its own mean if that is less, for others may be far slower; and
// some time more, in which its project is fetched.
const (
	stuckFactor = 3
	stuckMean   = 8
	stuckAfter  = 15 * time.Second
	stuckFirst  = time.Minute // before the attempt's first frame
	stuckKnown  = 3           // frames must have been measured
)

// Running is an attempt under way.
type Running struct {
	lease.Report
	Device lease.Device
	Since  time.Time // it gave its last frame, or began
	First  bool      // it has given none yet
}

// Stuck tells from when on an attempt is so far behind its siblings that another
// machine should try the task as well; false where it has none, or another one does, or
// every frame is there.
func Stuck(j *lease.Job, r Running) (time.Time, bool) {
	pace, task := j.MeanPace(), &j.Tasks[r.Task.Index]
	if pace.Frames() < stuckKnown || j.State.Ended() || len(task.Lives()) != 1 || j.Left(task) == 0 {
		return time.Time{}, false
	}
	wait := stuckAfter
	if r.First {
		wait += stuckFirst
	}
	long := stuckFactor * pace.Slowest()
	if own := j.Pace(lease.Hand{Peer: r.Peer, Device: r.Device}); own.Frames() >= stuckKnown {
		long = min(long, stuckMean*own.Seconds())
	}
	load, _ := pace.Overhead()
	return r.Since.Add(wait + time.Duration((long+load)*float64(time.Second))), true
}
