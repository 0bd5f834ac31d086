package lease

import (
	"time"

	"vizpeer/authz"
)

// Command is one entry of the replicated log: the time it was proposed and
// exactly one of the pointers. The leader sets At; it never runs backwards by
// more than the leaders' clocks differ, and nothing here depends on its order.
type Command struct {
	At       time.Time `json:"at"`
	Submit   *Submit   `json:"submit,omitempty"`
	Grant    *Grant    `json:"grant,omitempty"`
	Record   *Record   `json:"record,omitempty"`
	Complete *Complete `json:"complete,omitempty"`
	Fail     *Fail     `json:"fail,omitempty"`
	Release  *Release  `json:"release,omitempty"`
	Expire   *Expire   `json:"expire,omitempty"`
	Hold     *Hold     `json:"hold,omitempty"`
	Stock    *Stock    `json:"stock,omitempty"`
	Unhold   *Unhold   `json:"unhold,omitempty"`
	Store    *Store    `json:"store,omitempty"`
	Lose     *Lose     `json:"lose,omitempty"`
	Cancel   *Cancel   `json:"cancel,omitempty"`
	Forget   *Forget   `json:"forget,omitempty"`

	Pause      *Pause      `json:"pause,omitempty"`
	Resume     *Resume     `json:"resume,omitempty"`
	Prioritise *Prioritise `json:"prioritise,omitempty"`
	Retry      *Retry      `json:"retry,omitempty"`
	Drain      *Drain      `json:"drain,omitempty"`
	Forgive    *Forgive    `json:"forgive,omitempty"`
	More       *More       `json:"more,omitempty"`
}

// Submit accepts a job under an ID that was drawn at random, by its proposer or by the
// machine that it was posted at: one that was accepted before is not accepted again.
type Submit struct {
	Job  JobID `json:"job"`
	Spec Spec  `json:"spec"`
	// Limits are set by the leader, from its settings.
	Limits Limits `json:"limits,omitzero"`
	// Once, unless nil, makes the job one however often it is submitted.
	Once *Once `json:"once,omitempty"`
}

// Grant leases a queued task to a machine, on one of its devices.
type Grant struct {
	Lease  ID           `json:"lease"`
	Task   TaskID       `json:"task"`
	Peer   authz.PeerID `json:"peer"`
	Device Device       `json:"device,omitempty"`
	// Frames, unless it is 0 or all that are left of the task, cuts a task off its
	// beginning that has so many to be rendered, and leases that, which the event names.
	Frames int32 `json:"frames,omitempty"`
	// Units does the same with the units of a part of a frame.
	Units int32 `json:"units,omitempty"`
	// Second leases a task that is stuck on one machine to another as well. Whichever
	// renders it first ends the other's lease.
	Second bool `json:"second,omitempty"`
}

// Report is what every message about an attempt names: the task, the lease that
// gave the right to try it, and who tried.
type Report struct {
	Lease ID           `json:"lease"`
	Task  TaskID       `json:"task"`
	Peer  authz.PeerID `json:"peer"`
}

// Record takes finished frames of an attempt that goes on, so that they survive
// its loss and reach the artist early. Under a lease that has ended it is a late
// result: frames that nobody has given yet are taken, the others ignored. Whoever
// has the task now goes on; what it then gives twice is ignored.
type Record struct {
	Report
	Frames []Result      `json:"frames"`
	Pieces []PieceResult `json:"pieces,omitempty" since:"2"` // of its part of a frame, or all of it merged
	// Machines is how many machines there are to hold frames: a frame is done
	// when that many, or the job's replicas if fewer, hold it.
	Machines int `json:"machines"`
}

// Complete ends an attempt that gave all frames, or units, that it was asked for, or of
// units as many as it could before it was to stop. Where others of the task were lost
// meanwhile, or are missing, the task is queued again for those.
type Complete struct {
	Report
	Frames   []Result      `json:"frames,omitempty"`           // those not recorded yet
	Pieces   []PieceResult `json:"pieces,omitempty" since:"2"` // likewise
	Log      string        `json:"log,omitempty"`              // CID of Blender's log
	Machines int           `json:"machines"`
}

// Fail ends an attempt that did not. The third failure of a task fails its job,
// unless all three were one machine's and another could try.
type Fail struct {
	Report
	Reason string `json:"reason"`
	Tail   string `json:"tail,omitempty"` // Blender's last lines
	Log    string `json:"log,omitempty"`
	// Kind is what went wrong. [FailMachine] blames the machine and not the task: the
	// try does not count.
	Kind FailKind `json:"kind,omitempty"`
	// Had is the memory with which the machine ran out, of [FailMemory].
	Had Memory `json:"had,omitzero"`
	// Others is how many other machines could try the task: with more memory than Had.
	Others int `json:"others,omitempty"`
}

// Memory is a machine's, in bytes; 0 for what does not matter.
type Memory struct {
	RAM  int64 `json:"ram,omitempty"`
	VRAM int64 `json:"vram,omitempty"` // of one GPU
}

// Release hands a lease back unfinished; the try does not count.
type Release struct {
	Report
	Reason string `json:"reason"`
}

// Expire ends a lease that was not renewed in time by a machine that is there.
type Expire struct {
	Lease ID     `json:"lease"`
	Task  TaskID `json:"task"`
}

// Hold says that a machine holds all of a frame, or of a piece of it, and, of the submitter's
// machine, that it wrote the frame to the job's output folder.
type Hold struct {
	Job       JobID        `json:"job"`
	Frame     int32        `json:"frame"`
	CID       string       `json:"cid"`
	Extra     string       `json:"extra,omitempty"` // of the frame that it holds, likewise
	Peer      authz.PeerID `json:"peer"`
	Delivered bool         `json:"delivered,omitempty"`
	Machines  int          `json:"machines"`
}

// Stock says that a machine holds all of a job's project, so that the job does
// not depend on the submitter's.
type Stock struct {
	Job  JobID        `json:"job"`
	Peer authz.PeerID `json:"peer"`
}

// Unhold takes back what [Hold] and [Stock] said: a machine's copy of some
// content of a job, its project or frames, is gone or rotten. A frame of an open
// job that nobody holds any more, although it was done, must be rendered again.
type Unhold struct {
	Job      JobID        `json:"job"`
	CID      string       `json:"cid"`
	Peer     authz.PeerID `json:"peer"`
	Machines int          `json:"machines"`
}

// Store says which content store a machine has. Where it had another before, all
// that [Hold] and [Stock] said of it is taken back as [Unhold] does, at once: it was
// in the one that is gone.
type Store struct {
	Peer authz.PeerID `json:"peer"`
	ID   string       `json:"id"`
}

// Lose says that a machine was not heard from for a lease's TTL. Its leases
// expire. Frames that are not done and that only it holds must be rendered
// again; those that were waiting for one machine more than there now are may be
// done.
type Lose struct {
	Peer     authz.PeerID `json:"peer"`
	Machines int          `json:"machines"`
	// Removed tells that the machine is no member any more: its copies of done
	// frames, and of the projects that it submitted, count no more either.
	Removed bool `json:"removed,omitempty"`
}

// Forget drops the jobs that ended before a time.
type Forget struct {
	Before time.Time `json:"before"`
}

// Cancel ends a job at its owner's wish.
type Cancel struct {
	Job    JobID  `json:"job"`
	Reason string `json:"reason"`
}
