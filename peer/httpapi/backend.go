package httpapi

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Queue is the farm as its leader knows it. The methods are called on the peer
// that leads, with the principal that the leader itself authenticated; each
// applies the rules to that principal, and answers [ErrNotFound] for a job that
// it may not see. On a peer that has stopped leading they answer a
// [NotLeaderError]. Safe for concurrent use.
type Queue interface {
	// Submit accepts a job. The spec was prepared by the machine that took the
	// submission; its Owner, Submitter and Output.Peer are proven, and it is
	// valid by its own account; the ID is drawn where there is none, and the limits are
	// the farm's. Submitted.Findings are left to the caller. What was accepted before,
	// under the same ID or in.Once, is answered again and not done again.
	Submit(ctx context.Context, p authz.Principal, in lease.Submit) (Submitted, error)
	Jobs(context.Context, authz.Principal, JobQuery) (JobList, error)
	// Job answers with what of it hangs on the machine from, which asks.
	Job(ctx context.Context, p authz.Principal, id lease.JobID, from authz.PeerID) (Job, error)
	// Frame is one of Job's frames, so that reading a picture does not cost the
	// reading of the whole job.
	Frame(context.Context, authz.Principal, lease.JobID, int32) (Frame, error)
	Tasks(context.Context, authz.Principal, lease.JobID) ([]Task, error)
	// TasksOf lists those of Tasks that are about a frame.
	TasksOf(context.Context, authz.Principal, lease.JobID, int32) ([]Task, error)
	// Task is one of Tasks, by its index.
	Task(context.Context, authz.Principal, lease.JobID, int32) (Task, error)
	// Control does to a job what its owner or an admin wants, and answers what it is
	// now. What a job cannot be in its state is an [ErrConflict].
	Control(context.Context, authz.Principal, lease.JobID, Control) (JobSummary, error)
	// Why tells why a job, or one of its tasks where task is not negative, is where
	// it is.
	Why(ctx context.Context, p authz.Principal, id lease.JobID, task int32) (Why, error)
	Peers(context.Context, authz.Principal) ([]Peer, error)
	// Drain begins or ends a drain of a machine, and answers what it is now. It is an
	// admin's.
	Drain(ctx context.Context, p authz.Principal, id authz.PeerID, on bool) (Peer, error)
	// Label sets the labels that a machine is granted, and answers what it is now. It
	// is an admin's.
	Label(ctx context.Context, p authz.Principal, id authz.PeerID, labels []string) (Peer, error)
	// Blenders lists those that machines have or may fetch, the latest first.
	Blenders(context.Context, authz.Principal) ([]Blender, error)
	// Offer lets all machines fetch and run a Blender, and Withdraw ends that. They are
	// an admin's; the first offer of a root stands until it is withdrawn.
	Offer(context.Context, authz.Principal, NewOffer) (Blender, error)
	Withdraw(ctx context.Context, p authz.Principal, root string) (Blender, error)
	Farm(context.Context, authz.Principal) (Farm, error)
	// Coordinate changes who votes, or who leads, and answers who does then. It is an
	// admin's.
	Coordinate(ctx context.Context, p authz.Principal, id authz.PeerID, what CoordinatorChange) (Coordination, error)
	Invite(context.Context, authz.Principal, Invitation) (Invited, error)
	// Audit reads who did what, and VerifyAudit checks that all of it stands as it was
	// written, and tells how many records of how many it has checked. They are an
	// admin's.
	Audit(context.Context, authz.Principal, AuditQuery) (AuditPage, error)
	VerifyAudit(ctx context.Context, p authz.Principal, progress func(done, total int64)) (AuditVerified, error)
	// Backup writes the farm's state to w, while it goes on, and puts on record that it
	// did. It is an admin's.
	Backup(ctx context.Context, p authz.Principal, w io.Writer) (BackupMade, error)
	// Note puts on record what was done where no other method did: see
	// [authz.WithDoing]. Refused puts there, soon, that something was refused, and
	// counts what comes often. On a peer that does not lead it does nothing.
	Note(context.Context, authz.Deed) error
	Refused(d authz.Deed, outcome string)
	// Tickets lists those that would admit a machine now, and RevokeTicket makes one of
	// them admit nobody any more. They are an admin's, as all that follow.
	Tickets(context.Context, authz.Principal) ([]OpenTicket, error)
	RevokeTicket(ctx context.Context, p authz.Principal, id string) (OpenTicket, error)
	// Revoke removes a machine, and answers what it was. What it cannot do without is an
	// [ErrConflict]: the queue's last keeper, and the machine from, which asks.
	Revoke(ctx context.Context, p authz.Principal, id, from authz.PeerID) (Revoked, error)
	// Pending lists the machines without a ticket that wait to be let in. Approve lets
	// one in, with a role, "" for a node; Deny sends it away.
	Pending(context.Context, authz.Principal) ([]Applicant, error)
	Approve(ctx context.Context, p authz.Principal, id authz.PeerID, role authz.Role) (Peer, error)
	Deny(ctx context.Context, p authz.Principal, id authz.PeerID) (Applicant, error)
	// Events follows what the principal may see. It never blocks the leader: a
	// reader that falls behind is dropped.
	Events(context.Context, authz.Principal, EventQuery) (*Subscription, error)
	People
}

// JobQuery is what a reader of jobs asks for. Each filter that is set must fit.
type JobQuery struct {
	State lease.JobState
	Owner string
	Name  string    // a part of the job's name, in upper or lower case
	Since time.Time // submitted then or later
	After string    // JobList.Next of the page before; "" begins with the newest
	Limit int       // jobs on a page
}

// EventQuery is what a reader of events asks for.
type EventQuery struct {
	Job lease.JobID // this job's events only; "" for all
	// Resume asks for the events after the one numbered After first, as far back
	// as the leader keeps them. IDs rise, and mean the same under every leader.
	// Without Resume the events begin now.
	Resume bool
	After  uint64
}

// Subscription is a reader's place in the stream of events. It ends with the
// context that it was made with.
type Subscription struct {
	// Events is closed when the subscription ends.
	Events <-chan Event
	// Missed tells that events between After and the first one here are no longer
	// kept: the reader should read the jobs anew.
	Missed bool
	// Err tells, once Events is closed, why: nil when the context ended, an error
	// that wraps [ErrSlowReader], or a [NotLeaderError].
	Err func() error
}

// Local is this machine: what it can tell or do without a leader. Safe for
// concurrent use.
type Local interface {
	// Authenticate answers whose token this is, or [ErrUnauthorised]. A
	// coordinator knows every token of the farm; another machine at least those
	// in its own token file. A token that this machine does not know is put to
	// the leader.
	Authenticate(ctx context.Context, token string) (authz.Principal, error)
	// ImportProject stores a project. The sequence yields the files of an upload
	// in order, or one last error, which ImportProject returns (wrapped) and
	// after which it keeps nothing. A file's Body is valid until the next one.
	// Paths come as the uploader wrote them, slashes and all: check them. A file
	// with a receipt that is not, or no longer, good for this caller makes it
	// answer a [Lacking] with all such files, once a file with bytes or the end
	// comes.
	ImportProject(context.Context, authz.Principal, iter.Seq2[ProjectFile, error]) (Project, error)
	// Prepare turns a submission into what the queue needs to know: it reads the
	// project's manifest and the version of the file from this machine's own
	// store, decides how the frames are divided, and makes sure that the output
	// folder can be written. Files that the project lacks are findings; with
	// Submission.Strict they are an error. The caller sets Owner, Submitter and
	// Output.Peer.
	Prepare(context.Context, authz.Principal, Submission) (lease.Spec, Findings, error)
	// Open reads a frame or a log by its CID, fetching it from its holders where
	// this machine lacks it, and answers its size in bytes. by says what it is of:
	// other machines give it only where this one has a right to that. size is how many
	// bytes it has, where that is known, else 0: what claims to be much larger is not
	// fetched. Whoever calls has checked that the caller may see it.
	Open(ctx context.Context, cid string, by lease.Scope, size int64) (io.ReadSeekCloser, int64, error)
	// OpenFolder does the same with what is beside a frame. A file's Body is valid until
	// the next one.
	OpenFolder(ctx context.Context, cid string, by lease.Scope) (iter.Seq2[ProjectFile, error], error)
	Status(context.Context) Status
	// Identity is this machine's ID and its farm's; it costs nothing.
	Identity() (authz.PeerID, authz.FarmID)
	// CA is the certificates of the farm's CA in PEM; they are no secret.
	CA() []byte
	// Ready lists the checks that must pass before this peer is of use.
	Ready(context.Context) []Check
	Blobs
	Outbox
}

// ProjectFile is one file of an upload.
type ProjectFile struct {
	Path string // relative, slash-separated, unchecked
	Size int64  // bytes
	Body io.Reader
	// Receipt, if not "", stands for the bytes: see [Project].Receipts.
	Receipt string
}

// Check is one condition of readiness.
type Check struct {
	Name string // one lower-case word: it is shown to anyone who asks
	Err  error  // nil where it passes; logged, never sent
	Say  string // more about it in words, for anyone who asks; "" where there is nothing
}

// Leader finds the peer that leads the queue.
type Leader interface {
	// Find answers who leads now, and whether that is this peer. While an
	// election goes on it waits for its end or for ctx; where nobody can be
	// found the error wraps [ErrNoLeader] and says what was tried.
	Find(ctx context.Context) (id peer.ID, local bool, err error)
	// While is ctx for as long as nobody but id is known to lead. Release it.
	While(ctx context.Context, id peer.ID) (_ context.Context, release func())
}
