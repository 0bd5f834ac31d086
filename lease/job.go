package lease

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"vizpeer/authz"
)

// Limits that hold for every job, from the design's table of numbers. The first
// three are defaults; see [Limits].
const (
	MaxTasks       = 100_000   // tasks in one job
	MaxOpenJobs    = 1_000     // jobs of one person that have not ended
	MaxOpenTasks   = 1_000_000 // tasks of one person in such jobs
	DefaultChunk   = 5         // frames in one task, until frame times are known
	DefaultSamples = 100       // samples in one task, likewise
	DefaultReplica = 2         // machines that must hold a frame before it is done
	MaxTries       = 3         // failures of a task before its job fails
	MaxChunk       = 10_000    // frames in one task: its order and its report must fit into a message
	maxAfter       = 64        // jobs that one job comes after
	maxLogTail     = 4 << 10   // bytes of Blender's last words kept in the queue
	maxReason      = 1000      // bytes of a reason
	maxCID         = 128       // bytes of a CID's text
)

// JobID names a job: "j" and random letters, so that it cannot be guessed.
type JobID string

// ID names a lease, and is the fencing token of an attempt: whoever shows it had
// the right to try, and only while it lives may its result be counted.
type ID string

// TaskID names a task: its job and its place in it.
type TaskID struct {
	Job   JobID `json:"job"`
	Index int32 `json:"index"`
}

func (t TaskID) String() string { return fmt.Sprintf("%s/%d", t.Job, t.Index) }

// Tier is how urgent a job is. Eligible work of a higher tier always goes first.
type Tier string

// The four tiers.
const (
	Low    Tier = "low"
	Normal Tier = "normal"
	High   Tier = "high"
	Urgent Tier = "urgent"
)

// Rank orders tiers: higher goes first. It is -1 for an unknown tier.
func (t Tier) Rank() int {
	switch t {
	case Low:
		return 0
	case Normal:
		return 1
	case High:
		return 2
	case Urgent:
		return 3
	}
	return -1
}

// Order is in which order the tasks of a job are granted.
type Order string

// The orders. Preview, the first, is for "" as well.
const (
	Preview Order = "preview" // first, middle and last, then by frame
	Linear  Order = "linear"  // by frame
)

// Settings override what the .blend says; the zero value changes nothing.
type Settings struct {
	Engine            string `json:"engine,omitempty"`             // CYCLES, BLENDER_EEVEE, BLENDER_WORKBENCH …
	Samples           int    `json:"samples,omitempty"`            // 0: the file's
	ResolutionPercent int    `json:"resolution_percent,omitempty"` // 0: the file's
	Format            string `json:"format,omitempty"`             // PNG, OPEN_EXR … "": the file's
	Scene             string `json:"scene,omitempty"`              // "": the file's active scene
}

// Output is where finished frames are written: a folder of one machine.
type Output struct {
	Peer authz.PeerID `json:"peer"`
	Dir  string       `json:"dir"` // absolute, in that machine's own notation
}

// Spec is what was asked for. It never changes once the job is accepted.
type Spec struct {
	Name     string       `json:"name"`
	Owner    string       `json:"owner"` // the user who submitted it
	Project  string       `json:"project"`
	Blend    string       `json:"blend"` // the .blend's path inside the project
	Frames   Frames       `json:"frames"`
	Chunk    int          `json:"chunk"` // frames in a task; 0: the farm chooses
	Order    Order        `json:"order,omitempty"`
	Tier     Tier         `json:"tier"`
	Needs    Requirements `json:"needs,omitzero"`
	Settings Settings     `json:"settings,omitzero"`
	Split    Split        `json:"split,omitzero" since:"2"`  // of each frame; the zero value: none
	Movie    string       `json:"movie,omitempty" since:"2"` // made of the frames, one of [Movies]; "": none
	Replicas int          `json:"replicas"`
	// Submitter is the machine whose user asked: it keeps every frame.
	Submitter   authz.PeerID  `json:"submitter"`
	Output      Output        `json:"output,omitzero"`
	TaskTimeout time.Duration `json:"task_timeout,omitempty"` // 0: a frame may take a day
	// After are jobs that must be done before this one begins; where one fails or is
	// cancelled, so is this one.
	After []JobID `json:"after,omitempty"`
}

// Validate reports the first thing wrong with s, in a sentence for its author.
func (s Spec) Validate() error {
	switch {
	case s.Name == "" || len(s.Name) > 200 || strings.ContainsAny(s.Name, "\x00\n\r"):
		return fmt.Errorf("the job's name must be one line of 1 to 200 bytes")
	case s.Owner == "":
		return fmt.Errorf("the job has no owner")
	case s.Project == "" || s.Blend == "":
		return fmt.Errorf("the job names no project: upload one first")
	case !inside(s.Blend):
		return fmt.Errorf("the .blend %q is not a path inside the project", s.Blend)
	case s.Submitter == "":
		return fmt.Errorf("the job names no machine that submitted it")
	case s.Tier.Rank() < 0:
		return fmt.Errorf("unknown priority %q: use low, normal, high or urgent", s.Tier)
	case s.Chunk != 0 && s.Split.On():
		return fmt.Errorf("frames that are split are tasks of their own: use --chunk or --split")
	case s.Chunk < 0 || s.Chunk > MaxChunk:
		return fmt.Errorf("a chunk of %d frames is not possible: use 1 to %d, or 0 for the farm to choose", s.Chunk, MaxChunk)
	case s.Replicas < 1 || s.Replicas > 16:
		return fmt.Errorf("%d replicas are not possible: use 1 to 16", s.Replicas)
	case s.Settings.Samples < 0 || s.Settings.Samples > MaxSamples:
		return fmt.Errorf("%d samples are not possible: use 1 to %d", s.Settings.Samples, MaxSamples)
	case s.Settings.ResolutionPercent < 0 || s.Settings.ResolutionPercent > 32767:
		return fmt.Errorf("a resolution of %d%% is not possible: use 1 to 32767", s.Settings.ResolutionPercent)
	case s.Order != "" && s.Order != Preview && s.Order != Linear:
		return fmt.Errorf("unknown order %q: use preview or linear", s.Order)
	case len(s.After) > maxAfter:
		return fmt.Errorf("%d jobs to come after are more than the %d allowed", len(s.After), maxAfter)
	case s.TaskTimeout < 0:
		return fmt.Errorf("a negative task time-out is not possible")
	}
	if err := s.Frames.Validate(); err != nil {
		return err
	}
	if err := s.Split.Validate(); err != nil {
		return err
	}
	if err := s.checkMovie(); err != nil {
		return err
	}
	for what, text := range map[string]string{
		"owner": s.Owner, "project": s.Project, "engine": s.Settings.Engine, "format": s.Settings.Format, "scene": s.Settings.Scene, "engine's": s.Needs.Engine,
	} {
		if len(text) > maxText {
			return fmt.Errorf("the %s name is longer than %d bytes", what, maxText)
		}
	}
	if len(s.Output.Dir) > 4096 {
		return fmt.Errorf("the output folder's path is longer than 4096 bytes")
	}
	return s.Needs.Validate()
}

// same tells whether two specs ask for the same in every word.
func (s Spec) same(o Spec) bool {
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// inside tells whether a slash path stays below the folder it starts from.
func inside(p string) bool {
	return len(p) <= 4096 && !strings.ContainsAny(p, "\\\x00") && path.Clean(p) == p && !path.IsAbs(p) && p != ".." && !strings.HasPrefix(p, "../")
}

// JobState is where a job is in its life.
type JobState string

// The states of a job. The last three are final.
const (
	JobQueued    JobState = "queued"  // no task of it was granted yet
	JobRunning   JobState = "running" // at least one was
	JobPaused    JobState = "paused"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Ended tells whether the state is final.
func (s JobState) Ended() bool { return s == JobDone || s == JobFailed || s == JobCancelled }

// TaskState is where a task is in its life.
type TaskState string

// The states of a task. A task is rendered when an attempt gave all its frames,
// and done when enough machines hold them.
const (
	TaskQueued    TaskState = "queued"
	TaskLeased    TaskState = "leased"
	TaskRendered  TaskState = "rendered"
	TaskDone      TaskState = "done"
	TaskFailed    TaskState = "failed"
	TaskCancelled TaskState = "cancelled"
)

// Result is one finished frame, as the machine that rendered it reports it.
type Result struct {
	Frame   int32   `json:"frame"`
	CID     string  `json:"cid"`
	Name    string  `json:"name"` // the file name that Blender gives it, without a folder
	Size    int64   `json:"size"` // bytes
	Seconds float64 `json:"seconds"`
	Thumb   string  `json:"thumb,omitempty"` // CID of a small JPEG of it, where there is one
	// Extra is the root CID of a folder with what Blender wrote beside the picture, as it
	// belongs below the job's output folder; "" where there is nothing. Whoever holds the
	// frame holds that too.
	Extra      string `json:"extra,omitempty"`
	ExtraFiles int    `json:"extra_files,omitempty"` // in it, [MaxExtra] at most
	ExtraSize  int64  `json:"extra_size,omitempty"`  // bytes of them
}

// MaxExtra is how many files a frame may have beside its picture.
const MaxExtra = 256

// same tells whether two results are the same to the byte.
func (r Result) same(o Result) bool { return r.CID == o.CID && r.Extra == o.Extra }

// Outcome is how an attempt ended.
type Outcome string

// The outcomes of an attempt.
const (
	OutcomeRendered Outcome = "rendered"
	OutcomeFailed   Outcome = "failed"
	OutcomeExpired  Outcome = "expired"  // the machine was not heard from for a lease's TTL
	OutcomeReleased Outcome = "released" // handed back unfinished, by no fault of the task
	OutcomeRevoked  Outcome = "revoked"  // the job ended first
)

// Attempt is one try at a task.
type Attempt struct {
	Lease   ID           `json:"lease"`
	Peer    authz.PeerID `json:"peer"`
	Device  Device       `json:"device,omitempty"` // what it renders on; "" where the machine chose
	Granted time.Time    `json:"granted"`
	Units   int32        `json:"units,omitempty"` // of which a frame that is split was to be merged
	Ended   time.Time    `json:"ended,omitzero"`
	Outcome Outcome      `json:"outcome,omitempty"` // "" while the lease lives
	Reason  string       `json:"reason,omitempty"`
	Kind    FailKind     `json:"kind,omitempty"` // of one that failed
	Log     string       `json:"log,omitempty"`  // CID of Blender's log
}
