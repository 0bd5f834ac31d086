package lease

import "vizpeer/authz"

// EventType names what happened.
type EventType string

// The events that Apply answers with; they are what people and programs watch.
const (
	JobSubmitted EventType = "job.submitted"
	JobStarted   EventType = "job.started"
	JobEnded     EventType = "job.ended" // State says how
	JobHeld      EventType = "job.paused"
	JobResumed   EventType = "job.resumed"
	// State names the new tier.
	JobPrioritised EventType = "job.prioritised"
	TaskGranted    EventType = "task.granted"
	TaskRequeued   EventType = "task.requeued" // Reason says why
	TaskEnded      EventType = "task.ended"    // State says how: rendered, done, failed, cancelled
	LeaseRevoked   EventType = "lease.revoked" // the holder must stop
	LeaseEnded     EventType = "lease.ended"   // and another machine has the task still; Reason says why
	FrameResult    EventType = "frame.rendered"
	FrameKept      EventType = "frame.done"      // enough machines hold it
	FrameWritten   EventType = "frame.delivered" // it is in the output folder
	FrameLost      EventType = "frame.lost"      // its only holder is gone
	FrameShort     EventType = "frame.short"     // a machine's copy of it is gone
	PieceRendered  EventType = "piece.rendered"  // of a frame that is split: Span says which units
	PieceKept      EventType = "piece.kept"      // enough machines hold it
	PieceGone      EventType = "piece.gone"      // a larger one holds it, or nobody does; Reason says which
	ProjectShort   EventType = "project.short"   // a machine's copy of the project is gone
	PeerDrained    EventType = "peer.drained"    // a machine is granted nothing more; Reason says why
	PeerUndrained  EventType = "peer.undrained"  // it takes work again
	TaskProgress   EventType = "task.progress"   // never in the log: sent by the leader
	PeerChanged    EventType = "peer.changed"    // never in the log: sent by the leader
)

// SameAgain is the State of a [FrameResult] that is the same to the byte as the frame
// that was to be rendered again.
const SameAgain = "again"

// Event is one consequence of a command.
type Event struct {
	Type   EventType
	Job    JobID
	Task   int32 // -1 where the event is about the whole job
	Frame  *int32
	Lease  ID
	Peer   authz.PeerID
	State  string
	Reason string
	Result *Result
	Span   Span // of pieces
}
