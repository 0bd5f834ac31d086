package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-msgio"

	"vizpeer/authz"
	"vizpeer/lease"
)

// The work protocol: one long-lived stream from every member to the leader. The
// member sends a [Hello] and then reports; the leader answers with a [Welcome]
// or a [Redirect] and then sends orders. Messages are JSON documents, each
// behind its length as a varint. A side sends nothing that the other does not know,
// and passes over what it does not know itself: see package level.
const (
	WorkProtocol = "/vizpeer/work/1"

	// MaxMessage bounds one message, in bytes.
	MaxMessage = 4 << 20

	// LeaseTTL is how long a lease lives without renewal, Renewal how often a
	// member renews all of its leases. Rendering may take any time: liveness is
	// separate from it.
	LeaseTTL = 15 * time.Second
	Renewal  = 3 * time.Second

	// Silence is how long a leader that answers no renewal is waited for, by a member. It
	// must leave time to find the next one, who gives every lease a TTL from when it leads.
	Silence = 3 * Renewal
)

// Addr is where a member can be reached.
type Addr struct {
	Peer  authz.PeerID `json:"peer"`
	Addrs []string     `json:"addrs"` // multiaddrs without the peer ID
}

// Up is a message from a member: exactly one of the pointers is set.
type Up struct {
	Hello *Hello `json:"hello,omitempty"`
	Renew *Renew `json:"renew,omitempty"`
	// Seq numbers the reports below, each of which is answered by an [Ack] once
	// its command is committed or refused.
	Seq      uint64          `json:"seq,omitempty"`
	Record   *lease.Record   `json:"record,omitempty"`
	Complete *lease.Complete `json:"complete,omitempty"`
	Fail     *lease.Fail     `json:"fail,omitempty"`
	Release  *lease.Release  `json:"release,omitempty"`
	Hold     *lease.Hold     `json:"hold,omitempty"`
	Stock    *lease.Stock    `json:"stock,omitempty"`
	Unhold   *lease.Unhold   `json:"unhold,omitempty"`
	// NoRoom says, with Release, that the store cannot take the project: the member
	// is offered the job again once its ad tells of more room.
	NoRoom bool `json:"no_room,omitempty"`
	// The questions are numbered and answered as reports are, and change nothing.
	May    *May    `json:"may,omitempty"`
	Find   *Find   `json:"find,omitempty"`
	Part   *Part   `json:"part,omitempty"`
	Recall *Recall `json:"recall,omitempty"`
	// Trouble says why this machine could not keep or write a frame yet; it goes
	// on trying. It is for people and is not answered.
	Trouble *Trouble `json:"trouble,omitempty"`
	// Offered says that all is reported that Hello's Offers spoke of, to a leader that
	// waits for it; it is not answered.
	Offered bool `json:"offered,omitempty" since:"3"`
}

// Hello opens the stream: what the member can do and what it is doing.
type Hello struct {
	Can    lease.Capability `json:"can"`
	Leases []lease.Report   `json:"leases"` // attempts under way
	Addrs  []string         `json:"addrs"`  // where it listens
	Holds  lease.Holdings   `json:"holds"`  // projects in its store
	// Store names its content store: where it is not the one that it had before, what
	// it held counts no more. "" does not say.
	Store string `json:"store,omitempty"`
	// At is what the member's clock shows; zero of an earlier version.
	At time.Time `json:"at,omitzero" since:"3,ignored"`
	// Coordinating is what a coordinator says of itself; nil for any other member.
	Coordinating *Coordinating `json:"coordinating,omitempty" since:"3,ignored"`
	// Offers tells that the member has results of attempts that do not run any more, and
	// is about to report them: it should be granted nothing before, or it may be granted
	// what it has rendered.
	Offers bool `json:"offers,omitempty" since:"3,ignored"`
}

// May asks whether another member, which asks the sender for content, has a right
// to it. The answer's code is "" or [CodeDenied].
type May struct {
	Peer authz.PeerID `json:"peer"`
	Root string       `json:"root"`
	By   string       `json:"by"` // a [lease.Scope], as the other member said it
}

// Find asks who has content that the sender itself has a right to. The answer's
// From tells; its code is [CodeDenied] where there is no such right.
type Find struct {
	Root string `json:"root"`
	By   string `json:"by"` // a [lease.Scope]
}

// Part asks what would be lost if the sender's machine were switched off now, which
// the answer's Parting tells, and whether it is drained: Drained tells why.
type Part struct{}

// Recall asks which of some jobs the farm remembers: those that are open, and those
// whose frames are still to be kept. The answer's Known lists them.
type Recall struct {
	Jobs []lease.JobID `json:"jobs"`
}

// Renew keeps leases alive and tells how the attempts go.
type Renew struct {
	Leases []Running `json:"leases"`
	// Addrs are where the member listens where that has changed since it said so last.
	Addrs        []string      `json:"addrs,omitempty" since:"3,ignored"`
	Coordinating *Coordinating `json:"coordinating,omitempty" since:"3,ignored"` // as in Hello
	At           time.Time     `json:"at,omitzero" since:"3,ignored"`            // likewise
}

// Running is an attempt under way.
type Running struct {
	Lease    lease.ID        `json:"lease"`
	Progress json.RawMessage `json:"progress,omitempty"`
	// Over tells that the attempt has ended and its report is under way: it takes no
	// slot any more.
	Over bool `json:"over,omitempty"`
	// Previews are the latest pictures of what the attempt has of its frame.
	Previews []Preview `json:"previews,omitempty"`
}

// MaxPreviews bounds the pictures that are told of with one renewal of a lease.
const MaxPreviews = 16

// Preview is a small JPEG of units of a frame that is being rendered: of the samples of
// a part so far, or of one tile.
type Preview struct {
	Frame int32  `json:"frame"`
	CID   string `json:"cid"`
	lease.Span
}

// Trouble is why a frame could not be kept or written to its folder.
type Trouble struct {
	Job     lease.JobID `json:"job"`
	Writing bool        `json:"writing,omitempty"` // it is here, but not in the output folder
	Reason  string      `json:"reason"`
}

// Down is a message from the leader: exactly one of the pointers is set.
type Down struct {
	Welcome  *Welcome    `json:"welcome,omitempty"`
	Redirect *Redirect   `json:"redirect,omitempty"`
	Roster   *authz.View `json:"roster,omitempty"`
	Grant    *Order      `json:"grant,omitempty"`
	Revoke   *Revoke     `json:"revoke,omitempty"`
	Keep     *Keep       `json:"keep,omitempty"`
	Drop     *Drop       `json:"drop,omitempty"`
	Kept     *Kept       `json:"kept,omitempty"`
	Ended    *Ended      `json:"ended,omitempty"`
	Prefetch *Prefetch   `json:"prefetch,omitempty"`
	Equip    *Equip      `json:"equip,omitempty"`
	Ack      *Ack        `json:"ack,omitempty"`
}

// Welcome says that the sender leads.
type Welcome struct {
	Term   uint64      `json:"term"`
	At     time.Time   `json:"at,omitzero"` // the farm's time
	Roster *authz.View `json:"roster"`
	// Level is the highest that the leader's vizpeer knows; 0 where it does not say. The
	// member's own is in its capability.
	Level int `json:"level,omitempty" since:"3,ignored"`
	// Open lists the jobs that have not ended: whatever the member holds for
	// others it may let go.
	Open []lease.JobID `json:"open"`
	// Awaits tells that the leader waits for Offered.
	Awaits bool `json:"awaits,omitempty" since:"3,ignored"`
}

// Redirect says who leads instead, as far as the sender knows.
type Redirect struct {
	Leader Addr `json:"leader"` // Peer is "" while there is none
}

// Order grants a lease and says all that an attempt needs.
type Order struct {
	lease.Report
	Spec   lease.Spec `json:"spec"`
	Frames []int32    `json:"frames"` // those of the task that nobody has rendered
	// Split is how the task's one frame is divided, where it is. Spans are then the units
	// that nobody has rendered, or Pieces what is to be merged: all units, each once.
	Split  lease.Split  `json:"split,omitzero"`
	Spans  []lease.Span `json:"spans,omitempty"`
	Pieces []Piece      `json:"pieces,omitempty"`
	// Movie are the frames that a movie is to be made of, in order, and of their names
	// the endings.
	Movie []lease.Result `json:"movie,omitempty"`
	// Device is what the member shall render on; "" leaves the choice to it.
	Device lease.Device `json:"device,omitempty"`
	From   []Addr       `json:"from"` // who has the project, or is fetching it; the most of it first
	// Stocked tells that the queue knows the member to hold the project.
	Stocked bool `json:"stocked,omitempty"`

	until time.Time // the leader's own: when it ends for good
}

// Piece is a piece of a frame that is to be merged, and who has it.
type Piece struct {
	lease.Span
	CID     string `json:"cid"`
	Size    int64  `json:"size"`
	Sources []Addr `json:"sources"`
}

// Revoke takes a lease back: the attempt must stop, and nothing more of it is wanted.
type Revoke struct {
	Lease  lease.ID `json:"lease"`
	Reason string   `json:"reason"`
	// Offer tells that frames which the attempt has given may be wanted still.
	Offer bool `json:"offer,omitempty"`
}

// Keep asks the member to hold a frame for good, and to write it to a folder
// where Dir is set; or, where Project is set, to hold the job's project until
// the job ends.
type Keep struct {
	Job     lease.JobID `json:"job"`
	Project bool        `json:"project,omitempty"`
	Frame   int32       `json:"frame"`
	CID     string      `json:"cid"`
	Name    string      `json:"name"`
	Size    int64       `json:"size"`
	// Extra is the folder of what belongs beside the frame; see [lease.Result].
	Extra      string `json:"extra,omitempty"`
	ExtraFiles int    `json:"extra_files,omitempty"`
	ExtraSize  int64  `json:"extra_size,omitempty"`
	Dir        string `json:"dir,omitempty"`
	Piece      bool   `json:"piece,omitempty"` // it is a piece of the frame
	From       []Addr `json:"from"`
}

// Drop takes back orders to keep a frame: its content is lost, and the frame will
// be rendered again. A piece of a frame is of no use any more.
type Drop struct {
	Piece bool        `json:"piece,omitempty"`
	Job   lease.JobID `json:"job"`
	Frame int32       `json:"frame"`
	CID   string      `json:"cid"`
}

// KeepID tells orders to keep apart: an order to hold a frame and one to write
// it as well are two.
type KeepID struct {
	Job     lease.JobID
	Frame   int32
	CID     string
	Extra   string
	Write   bool
	Project bool
}

// ID is what makes the order the same as another.
func (k Keep) ID() KeepID {
	return KeepID{Job: k.Job, Frame: k.Frame, CID: k.CID, Extra: k.Extra, Write: k.Dir != "", Project: k.Project}
}

// Kept says that enough machines hold all that an attempt rendered, or one frame or
// piece of it: the member may be switched off without a loss.
type Kept struct {
	Lease lease.ID `json:"lease,omitempty"`
	CID   string   `json:"cid,omitempty"`
}

// Ended says that a job has ended.
type Ended struct {
	Job lease.JobID `json:"job"`
}

// Prefetch names the project that the member is likely to need next. It replaces
// the one before: a member fetches one ahead at a time, and only while nothing
// else waits for its line.
type Prefetch struct {
	Job  lease.JobID `json:"job"`
	CID  string      `json:"cid"`
	From []Addr      `json:"from"`
}

// Equip asks the member to fetch a Blender that the farm offers: a job waits for it. The
// member goes by its own roster, and may decline.
type Equip struct {
	Root string `json:"root"`
}

// Ack answers a report or a question. Code is "" when the report's command was
// committed, or the question's answer is yes.
type Ack struct {
	Seq     uint64         `json:"seq"`
	Code    string         `json:"code,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	From    []Addr         `json:"from,omitempty"`    // of [Find]
	Parting *lease.Parting `json:"parting,omitempty"` // of [Part]
	Drained string         `json:"drained,omitempty"` // of [Part]
	Known   []lease.JobID  `json:"known,omitempty"`   // of [Recall]
}

// The codes of an [Ack] that is a refusal. Any other means that the report was
// malformed.
const (
	CodeStale   = "stale"   // somebody else may have the task now
	CodeEnded   = "ended"   // the job has ended
	CodeUnknown = "unknown" // no such job or task
	CodeDenied  = "denied"  // no right to that content, or there is none
	CodeUpdate  = "update"  // the leader's vizpeer is older and does not know that: report again when it was updated
	CodeLeader  = "leader"  // leadership was lost before the command was committed: report again to the new leader
)

func ackOf(seq uint64, err error) *Ack {
	a := &Ack{Seq: seq}
	if err == nil {
		return a
	}
	a.Reason = err.Error()
	switch {
	case errors.Is(err, lease.ErrStale), errors.Is(err, lease.ErrNotQueued):
		a.Code = CodeStale
	case errors.Is(err, lease.ErrEnded):
		a.Code = CodeEnded
	case errors.Is(err, lease.ErrUnknownJob), errors.Is(err, lease.ErrUnknownTask):
		a.Code = CodeUnknown
	case Refused(err):
		a.Code = "invalid"
	default:
		a.Code = CodeLeader
	}
	return a
}

// Refused tells that the farm said no to a command: proposing it again gives the
// same answer. Any other error is the log's, and may pass.
func Refused(err error) bool {
	var elsewhere ErrNotLeader
	var later *LevelError
	return err != nil && !errors.As(err, &elsewhere) && !errors.As(err, &later) && !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrClosed) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// ErrTooLarge is returned by [Conn.Send] for a message that no receiver takes.
var ErrTooLarge = errors.New("the message is too large")

// Conn sends and receives the messages of the work protocol. One goroutine may
// receive while others send.
type Conn struct {
	rwc io.ReadWriteCloser
	// Patience is how long Receive waits: [LeaseTTL] by default. It may be set where
	// nobody receives.
	Patience time.Duration
	r        msgio.Reader
	mu       sync.Mutex
	w        msgio.Writer
}

// NewConn speaks the work protocol over rwc.
func NewConn(rwc io.ReadWriteCloser) *Conn {
	return &Conn{rwc: rwc, Patience: LeaseTTL, r: msgio.NewVarintReaderSize(rwc, MaxMessage), w: msgio.NewVarintWriter(rwc)}
}

// Send writes one message.
func (c *Conn) Send(m any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %d bytes are more than the %d allowed", ErrTooLarge, len(b), MaxMessage)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.rwc.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Now().Add(LeaseTTL))
	}
	return c.w.WriteMsg(b)
}

// Receive reads one message into m, waiting for it as long as Patience says: both sides
// speak at least once every [Renewal].
func (c *Conn) Receive(m any) error {
	if d, ok := c.rwc.(interface{ SetReadDeadline(time.Time) error }); ok {
		_ = d.SetReadDeadline(time.Now().Add(c.Patience))
	}
	b, err := c.r.ReadMsg()
	if err != nil {
		return err
	}
	defer c.r.ReleaseMsg(b)
	if err := json.Unmarshal(b, m); err != nil {
		return fmt.Errorf("malformed message: %w", err)
	}
	return nil
}

// Close ends the stream at once.
func (c *Conn) Close() error {
	if s, ok := c.rwc.(interface{ Reset() error }); ok {
		return s.Reset()
	}
	return c.rwc.Close()
}
