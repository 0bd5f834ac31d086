package httpapi

import (
	"encoding/json"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// The documents of the HTTP API and of the command line's --json: the same
// types, so that the two cannot differ. Sizes are bytes, durations are seconds,
// times are RFC 3339 in UTC.

// Project is the answer to POST /v1/projects, whose body is a tar of the
// project (application/x-tar).
type Project struct {
	Project  string   `json:"project"` // root CID
	Files    int      `json:"files"`
	Size     int64    `json:"size"`
	NewBytes int64    `json:"new_bytes"` // what this machine did not hold yet
	Missing  []string `json:"missing"`
	// FileVersion is the Blender version that saved the .blend.
	FileVersion lease.Version `json:"file_version,omitzero"`
	// Receipts prove, file by file in the order sent, that this caller sent it: a
	// later upload may send the receipt instead of the bytes. They are for nobody
	// else, and for this machine alone.
	Receipts []string `json:"receipts,omitempty" doc:"with ?receipts=true: for each file in the order sent, what proves that the caller sent it"`
}

// Submission is the body of POST /v1/jobs.
type Submission struct {
	Name     string             `json:"name,omitempty" maxLength:"200"`
	Project  string             `json:"project" doc:"root CID that POST /v1/projects answered"`
	Frames   string             `json:"frames,omitempty" doc:"1-40,50,60-80x2; the scene's own range if absent"`
	Chunk    int                `json:"chunk,omitempty" minimum:"0"`
	Priority lease.Tier         `json:"priority,omitempty"`
	Order    lease.Order        `json:"order,omitempty" doc:"preview (the first, the middle and the last frames first) or linear"`
	After    []lease.JobID      `json:"after,omitempty" maxItems:"64" doc:"jobs that must be done before this one begins"`
	Needs    lease.Requirements `json:"needs,omitzero" doc:"what a machine must have: os is linux, windows or darwin; blender is 3.4 for every 3.4.x, 3.4.1 for itself, any for every one that is not older than the file, and absent for the release that saved the file"`
	Settings lease.Settings     `json:"settings,omitzero"`
	Split    lease.WishBy       `json:"split,omitempty" enum:"none,samples,tiles,auto" doc:"how each frame is divided among machines; auto, the default, divides a job of one frame where that is worth it and gives the same picture"`
	Tiles    string             `json:"tiles,omitempty" doc:"columns and rows of tiles, such as 3x2; a grid that suits the frame if absent"`
	Movie    string             `json:"movie,omitempty" enum:"mp4,mkv,webm,mov" doc:"also make a movie of the frames, of this kind"`
	Replicas int                `json:"replicas,omitempty" minimum:"0" maximum:"16"`
	// Output is an absolute folder on the machine that takes the submission.
	Output      string  `json:"output,omitempty"`
	TaskTimeout float64 `json:"task_timeout,omitempty" minimum:"0" doc:"seconds an attempt may take; 0 for a day a frame"`
	// Strict refuses a project with missing files.
	Strict bool `json:"strict,omitempty"`
}

// Submitted is the answer to POST /v1/jobs.
type Submitted struct {
	Job     lease.JobID `json:"job"`
	Project string      `json:"project"`
	Tasks   int         `json:"tasks"`
	Split   lease.Split `json:"split,omitzero" doc:"how each frame is divided among machines; absent where it is not"`
	Findings
	// Waiting tells that nobody leads the queue: the job is on this machine's disk, which
	// submits it by itself, once, when somebody does. Then Reason says so in words.
	Waiting bool   `json:"waiting,omitempty" doc:"nobody leads the queue: the job waits on this machine, which submits it by itself, once, when somebody does"`
	Reason  string `json:"reason,omitempty" doc:"why the job waits on this machine, in words"`
	// Replayed tells that the job was accepted before, under the same key: a header
	// says so.
	Replayed bool `json:"-"`
}

// Findings are what the machine that takes a submission saw in the project, and its
// author should know.
type Findings struct {
	Missing  []string `json:"missing"`
	Warnings []string `json:"warnings,omitempty" doc:"what of the scene will not be rendered as it says, in words"`
	Whole    string   `json:"whole,omitempty" doc:"why the one frame of the job is not divided, where that was left open, in words"`
}

// Verb is something that can be done to a job.
type Verb string

// What can be done to a job.
const (
	Cancel     Verb = "cancel"
	Pause      Verb = "pause"
	Resume     Verb = "resume"
	Retry      Verb = "retry"
	Prioritise Verb = "priority"
	AddMore    Verb = "more"
)

// Control is what somebody wants of a job.
type Control struct {
	Do      Verb
	Tier    lease.Tier   // to Prioritise
	Frames  lease.Frames // to Retry: only these, even where they are finished
	Samples int32        // to AddMore
	Once    *lease.Once  // to AddMore: not a second time
}

// Again is the body of POST /v1/jobs/{id}/retry, which may have none.
type Again struct {
	Frames string `json:"frames,omitempty" doc:"finished frames to render again, such as 3,7-9; all that is not finished, where it is empty"`
}

// More is the body of POST /v1/jobs/{id}/more.
type More struct {
	Samples int32 `json:"samples" minimum:"1" maximum:"16777216" doc:"samples to add to those that each pixel of every frame has or will have"`
}

// Priority is the body of POST /v1/jobs/{id}/priority.
type Priority struct {
	Priority lease.Tier `json:"priority" enum:"low,normal,high,urgent"`
}

// Why is GET /v1/jobs/{id}/why.
type Why struct {
	Job   lease.JobID `json:"job"`
	Task  *int32      `json:"task,omitempty"`
	State string      `json:"state"`
	Text  string      `json:"text"` // the answer, in words
	// Ahead counts the jobs with waiting tasks that are served first.
	Ahead int `json:"ahead"`
	// Nearest is the machine that comes nearest to what the job needs, where none
	// meets it.
	Nearest *Nearest `json:"nearest,omitempty"`
	// Last is the task's latest attempt, where that has ended.
	Last *lease.Attempt `json:"last,omitempty"`
}

// Nearest is a machine and what it lacks.
type Nearest struct {
	Peer  authz.PeerID `json:"peer"`
	Name  string       `json:"name"`
	Lacks []lease.Lack `json:"lacks"`
}

// TaskCounts counts a job's tasks by state.
type TaskCounts struct {
	Total     int `json:"total"`
	Queued    int `json:"queued"`
	Leased    int `json:"leased"`
	Rendered  int `json:"rendered"`
	Done      int `json:"done"`
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
}

// JobSummary is one line of GET /v1/jobs.
type JobSummary struct {
	ID     lease.JobID    `json:"id"`
	Name   string         `json:"name"`
	State  lease.JobState `json:"state"`
	Reason string         `json:"reason"` // why it is in that state, in words; "" where that is plain
	Tier   lease.Tier     `json:"tier"`
	After  []lease.JobID  `json:"after,omitempty"` // jobs that must be done first
	Owner  string         `json:"owner"`
	// Waiting is as in Submitted. A job that was refused when it was submitted at last is
	// there too, as failed.
	Waiting bool        `json:"waiting,omitempty" doc:"the job is on this machine alone, to be submitted when somebody leads the queue"`
	Split   lease.Split `json:"split,omitzero" doc:"how each frame is divided among machines; absent where it is not"`
	Tasks   TaskCounts  `json:"tasks"`
	// The tasks are as many as the frames were cut into so far; frames are what a job
	// is about.
	FramesTotal int        `json:"frames_total"`
	FramesDone  int        `json:"frames_done"`
	UnitsTotal  int        `json:"units_total,omitempty" doc:"samples or tiles of all frames, where those are divided; absent where they are not"`
	UnitsDone   int        `json:"units_done,omitempty" doc:"of units_total, those that are rendered and held by a machine"`
	CreatedAt   time.Time  `json:"created_at"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	EndedAt     *time.Time `json:"ended_at,omitempty"`
	// Replayed is as in Submitted, of what adds to a job.
	Replayed bool `json:"-"`
}

// JobList is GET /v1/jobs: the newest first, those that the caller may see.
type JobList struct {
	Jobs []JobSummary `json:"jobs"`
	Next string       `json:"next,omitempty" doc:"ask again with after set to this for older jobs; absent where there are none"`
}

// Job is GET /v1/jobs/{id}.
type Job struct {
	JobSummary
	Project     string       `json:"project"`
	FrameList   string       `json:"frame_list"`
	Submitter   authz.PeerID `json:"submitter"`
	Output      string       `json:"output,omitempty"`
	OutputError string       `json:"output_error,omitempty"` // why frames could not be written there
	Replicas    int          `json:"replicas"`
	// ProjectHolders counts the machines that hold all of the project: from two on
	// the submitter's may be switched off.
	ProjectHolders int                `json:"project_holders"`
	Needs          lease.Requirements `json:"needs,omitzero"`
	Frames         []Frame            `json:"frames"`
	Movie          *Frame             `json:"movie,omitempty" doc:"the movie of the frames, where the job makes one; its picture is that of frame 1048575"`
	// Failures counts the tries that failed, as far as the tasks remember them.
	Failures map[lease.FailKind]int `json:"failures,omitempty" doc:"tries that failed, by kind: crash, error, timeout, memory, image, machine"`
	// Log is the last words of Blender, where the job failed.
	Log string `json:"log,omitempty"`
	// Parting tells what of this job hangs on the machine that asks.
	Parting *lease.Parting `json:"parting,omitempty" doc:"whether the machine that asks may be switched off now without harm to this job"`
}

// Frame is one frame of a job.
type Frame struct {
	Frame   int32           `json:"frame"`
	State   lease.TaskState `json:"state"`
	CID     string          `json:"cid,omitempty"`
	Name    string          `json:"name,omitempty"` // file name in the output folder
	Size    int64           `json:"size,omitempty"`
	Peer    authz.PeerID    `json:"peer,omitempty"` // who rendered it
	Seconds float64         `json:"seconds,omitempty"`
	Holders int             `json:"holders,omitempty"` // machines that hold all of it
	Thumb   string          `json:"thumb,omitempty"`   // CID of a small JPEG of it
	// Extra is the CID of a folder with what Blender wrote beside the picture: other
	// views, what File Output nodes write.
	Extra      string `json:"extra,omitempty"`
	ExtraFiles int    `json:"extra_files,omitempty"` // in it
	ExtraSize  int64  `json:"extra_size,omitempty"`  // bytes of them
	// Split is how it is divided, and Previews are pictures of what is there while it is
	// not finished.
	Split    lease.Split `json:"split,omitzero"`
	Previews []Preview   `json:"previews,omitempty"`
	// UnitsDone is how many of its units are rendered, where it is divided.
	UnitsDone int32 `json:"units_done,omitempty"`
	// Delivered tells that the frame was written to the job's output folder.
	Delivered bool `json:"delivered,omitempty"`
}

// Preview is a small JPEG of units of a frame that is being rendered: of samples, or of
// one tile.
type Preview struct {
	CID string `json:"cid"`
	lease.Span
}

// Task is one line of GET /v1/jobs/{id}/tasks.
type Task struct {
	Index    int32           `json:"index"`
	Frames   string          `json:"frames"` // "movie" for the job's movie
	Units    *lease.Span     `json:"units,omitempty" doc:"which samples or tiles of its one frame, where that is split; the task without them merges"`
	State    lease.TaskState `json:"state"`
	Tries    int             `json:"tries"` // failures so far
	Peer     authz.PeerID    `json:"peer,omitempty"`
	Progress json.RawMessage `json:"progress,omitempty"` // of the attempt that runs now: see render.Progress
	Attempts []lease.Attempt `json:"attempts,omitempty"`
}

// TaskList is GET /v1/jobs/{id}/tasks.
type TaskList struct {
	Tasks []Task `json:"tasks"`
}

// Peer is one line of GET /v1/peers.
type Peer struct {
	ID         authz.PeerID      `json:"id"`
	Name       string            `json:"name"`
	Roles      []string          `json:"roles"` // worker, coordinator, submitter
	State      string            `json:"state"` // idle, busy, offline, draining
	Slots      int               `json:"slots" doc:"attempts at once, on the CPU and on each GPU that its Blender can use together"`
	Busy       int               `json:"busy"`
	TasksDone  int               `json:"tasks_done"`
	Full       string            `json:"full,omitempty" doc:"why it takes no more work, in words"`
	Drained    string            `json:"drained,omitempty" doc:"why it is drained, in words: an admin said so, or it failed too many jobs in a row"`
	Capability *lease.Capability `json:"capability" doc:"what the farm takes it to be able to do; its labels are those that it gives itself, where it may, and those that an admin granted"`
	Granted    []string          `json:"granted_labels,omitempty" doc:"the labels that an admin granted"`
	Addrs      []string          `json:"addrs,omitempty"`
	Via        authz.PeerID      `json:"via,omitempty" doc:"the machine through which the leader is connected with it; absent where they are connected directly, or not at all"`
	LastSeen   *time.Time        `json:"last_seen"`
}

// Labels is the body of PUT /v1/peers/{id}/labels.
type Labels struct {
	Labels []string `json:"labels" maxItems:"64" doc:"all labels that the machine is granted, in place of those before; lic:keyshot, or any other of 1 to 64 letters, digits and . _ : + -"`
}

// PeerList is GET /v1/peers.
type PeerList struct {
	Peers []Peer `json:"peers"`
}

// Farm is GET /v1/farm: what anyone admitted may know.
type Farm struct {
	Farm  string         `json:"farm"`
	Name  string         `json:"name"`
	Peers map[string]int `json:"peers"` // by state
	Jobs  map[string]int `json:"jobs"`  // by state, the caller's own unless an admin asks
	Coord Coordination   `json:"coord"`
	// Versions counts the machines that were heard from by the version of their vizpeer.
	Versions map[string]int `json:"versions" doc:"how many machines run which version, of those that were heard from"`
	CA       []string       `json:"ca_fingerprints" doc:"SHA-256, in hexadecimal, of the certificates of the farm's CA: pin one of them"`
	// Limits are of what one person may submit, as the leader's settings have them.
	Limits lease.Limits `json:"limits" doc:"the most that one person may have: tasks in one job, and open_jobs and open_tasks in jobs that have not ended"`
}

// Status is GET /v1/status: this machine, answered by itself even when no
// coordinator can be reached.
type Status struct {
	Peer     authz.PeerID `json:"peer"`
	Name     string       `json:"name"`
	Farm     string       `json:"farm"`
	FarmName string       `json:"farm_name"`
	Version  string       `json:"version"`
	CA       []string     `json:"ca_fingerprints" doc:"SHA-256, in hexadecimal, of the certificates of the farm's CA"`
	Roles    []string     `json:"roles"`
	Leader   authz.PeerID `json:"leader"` // "" while none can be reached
	// Epoch is the latest of the farm's that this machine has heard of.
	Epoch uint64 `json:"epoch" doc:"the farm's epoch that this machine goes by: it grows where the farm is recovered"`
	// LeaderVia relays to the leader; "" where no machine needs to.
	LeaderVia authz.PeerID `json:"leader_via,omitempty" doc:"the machine through which this one is connected with the leader; absent where they are connected directly"`
	// Leaderless tells about a time without a leader; absent while there is one.
	Leaderless *Leaderless `json:"leaderless,omitempty" doc:"about the time without a leader; absent while there is one"`
	Connected  int         `json:"connected"`
	Reach      Reach       `json:"reach"`
	Addrs      []string    `json:"addrs"`
	HTTPS      []string    `json:"https" doc:"where other machines reach the API, as URLs; none where nothing listens for them"`
	// CertificateUntil is when the certificate for HTTPS ends; absent where nothing shows one.
	CertificateUntil time.Time `json:"certificate_until,omitzero" doc:"when the certificate for HTTPS ends; it is renewed long before"`
	// ClockSkew is how far this machine's clock is ahead of the leader's, in seconds.
	ClockSkew float64 `json:"clock_skew" doc:"seconds by which this machine's clock is ahead of the leader's, as far as known"`

	Running    []RunningTask    `json:"running"`
	Capability lease.Capability `json:"capability"`
	Store      StoreStatus      `json:"store"`
	// Full says in words why this machine takes no more work; "" while it has room.
	Full string `json:"full,omitempty" doc:"why this machine takes no more work, in words"`
	// Drained says why this machine is drained, as the leader knows it; "" where it
	// is not, or while none can be asked.
	Drained string `json:"drained,omitempty" doc:"why this machine is drained, in words"`
	// Unkept is the number of finished frames that, as far as this machine knows,
	// only it holds.
	Unkept int `json:"unkept"`
	// Waiting is the number of jobs that wait on this machine to be submitted.
	Waiting int `json:"waiting" doc:"jobs that wait on this machine for somebody to lead the queue"`
	// Parting tells whether this machine may be switched off now, as the leader
	// knows it; absent while none can be asked.
	Parting *lease.Parting `json:"parting,omitempty" doc:"whether this machine may be switched off now without losing anything; absent while no coordinator can be asked"`
}

// OpenAPort says what to do where machines of other networks are to be reached and no
// member can be dialled from there.
const OpenAPort = "have the router of one machine forward port 8788 (TCP and UDP) to it, or run vizpeer on one machine with an address on the internet; it relays for the others"

// Reach is how machines of other networks reach this one.
type Reach struct {
	// From is "public" where they dial it, "nat" where they cannot, "" where nobody elsewhere could tell.
	From     string         `json:"from,omitempty" enum:"public,nat" doc:"public where machines of other networks dial this one, nat where they cannot; absent where nobody elsewhere could tell"`
	At       []string       `json:"at" doc:"addresses at which it was dialled from elsewhere"`
	Through  []authz.PeerID `json:"through" doc:"machines that relay to this one"`
	Relays   bool           `json:"relays" doc:"whether this machine relays to others"`
	Circuits int            `json:"circuits" doc:"connections of others that it relays now"`
	// Relayed are the machines that this one is connected with through another.
	Relayed int `json:"relayed" doc:"machines that this one is connected with through another"`
}

// Leaderless is what a machine knows, and does, while it reaches nobody who leads the
// queue.
type Leaderless struct {
	Since time.Time `json:"since"` // it lost the last leader, or began to look for one
	Tried []string  `json:"tried" doc:"the machines that are asked again and again who leads"`
	// Voters and Reaches are of a coordinator that votes, itself included.
	Voters    int    `json:"voters,omitempty" doc:"coordinators that vote, on one of them: more than half are needed"`
	Reaches   int    `json:"reaches,omitempty" doc:"of voters, those that this machine reaches, itself included"`
	Text      string `json:"text" doc:"all this in words"`
	Meanwhile string `json:"meanwhile" doc:"what this machine does meanwhile, in words"`
}

// RunningTask is an attempt that this machine makes now.
type RunningTask struct {
	Job      lease.JobID     `json:"job"`
	Task     int32           `json:"task"`
	Device   lease.Device    `json:"device,omitempty"` // what it renders on
	Progress json.RawMessage `json:"progress,omitempty"`
}

// StoreStatus is how full the content store is.
type StoreStatus struct {
	Bytes int64 `json:"bytes"` // on disk
	Quota int64 `json:"quota"` // what it may take there
	Free  int64 `json:"free"`  // on its disk
}

// Invitation is the body of POST /v1/tickets.
type Invitation struct {
	Role      authz.Role `json:"role,omitempty"` // node if absent
	Uses      int        `json:"uses,omitempty" minimum:"0" maximum:"10000"`
	ExpiresIn float64    `json:"expires_in,omitempty" doc:"seconds; 24 h if absent"`
	// Coordinator lets the machine hold the queue.
	Coordinator bool `json:"coordinator,omitempty" doc:"the machine also keeps the queue, so that it goes on without the others"`
}

// Invited is the answer to POST /v1/tickets.
type Invited struct {
	Ticket      string     `json:"ticket"`
	Role        authz.Role `json:"role"`
	Coordinator bool       `json:"coordinator,omitempty"`
	Uses        int        `json:"uses"`
	ExpiresAt   time.Time  `json:"expires_at"`
	ID          string     `json:"id" doc:"names the ticket; it is no part of its secret"`
}

// Whoami is GET /v1/auth/whoami.
type Whoami struct {
	authz.Principal
	Peer authz.PeerID `json:"peer"`
	Farm string       `json:"farm"`
}

// Health is GET /healthz and GET /readyz where all is well.
type Health struct {
	Status string `json:"status"` // ok
}

// Events about the stream itself, beside those of package lease. They carry no
// ID and a Reason in words.
const (
	// StreamMissed comes first where events after Last-Event-ID are no longer
	// kept: read the jobs anew.
	StreamMissed lease.EventType = "stream.missed"
	// StreamEnded comes last where the server ends the stream: connect again with
	// the last ID.
	StreamEnded lease.EventType = "stream.ended"
)

// Event is one line of GET /v1/events (server-sent events; the event's id is the
// SSE id, its type the SSE event name).
type Event struct {
	ID   uint64          `json:"id,omitempty"` // 0 for progress, which is not replayed
	Type lease.EventType `json:"type"`
	Time time.Time       `json:"time"`
	Job  lease.JobID     `json:"job,omitempty"`
	Task *int32          `json:"task,omitempty"`
	// Frame is set for frame events.
	Frame    *int32          `json:"frame,omitempty"`
	Peer     authz.PeerID    `json:"peer,omitempty"`
	PeerName string          `json:"peer_name,omitempty"`
	State    string          `json:"state,omitempty"` // the new state of what the event is about
	Reason   string          `json:"reason,omitempty"`
	CID      string          `json:"cid,omitempty"`
	Seconds  float64         `json:"seconds,omitempty"`
	Progress json.RawMessage `json:"progress,omitempty"`
	Thumb    string          `json:"thumb,omitempty"`   // CID of a small JPEG of a frame
	Frames   string          `json:"frames,omitempty"`  // of the task that the event is about, as in Task
	Units    *lease.Span     `json:"units,omitempty"`   // of a frame that is split, which the event is about
	Preview  *Preview        `json:"preview,omitempty"` // the latest picture of what is being rendered
	// UnitsDone and UnitsTotal are the job's as it now is, in events that may change
	// them: pieces take each other's place, so that adding them up would be wrong.
	UnitsDone  int `json:"units_done,omitempty"`
	UnitsTotal int `json:"units_total,omitempty"`
}
