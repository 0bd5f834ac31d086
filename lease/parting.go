package lease

import (
	"fmt"
	"slices"

	"vizpeer/authz"
)

// Presence is who is there: what a decision about copies needs to know beside
// the queue. It is the leader's own sight and not in the log.
type Presence struct {
	// Here tells whether a machine is connected, or was less than a lease's TTL
	// ago. It is required.
	Here func(authz.PeerID) bool
	// Voters are the machines of which a majority keeps the queue going.
	Voters []authz.PeerID
}

// Parting answers whether a machine may be switched off now without losing
// anything and without holding anybody up.
type Parting struct {
	// Safe is true where no reason is Grave.
	Safe    bool     `json:"safe"`
	Reasons []Reason `json:"reasons"`
}

// Reason is one thing that hangs on a machine.
type Reason struct {
	Kind  ReasonKind `json:"kind"`
	Count int        `json:"count"` // of what Text counts; at least 1
	// Grave tells that the machine should stay. A reason that is not is for people
	// to know: the farm mends it by itself.
	Grave bool `json:"grave"`
	// Text is a clause for people, of the machine as "it": "it holds the only copy
	// of 3 finished frames".
	Text string `json:"text"`
}

// ReasonKind tells reasons apart for programs.
type ReasonKind string

// The kinds of reasons, in the order in which they are given.
const (
	ReasonAttempts  ReasonKind = "attempts"  // tasks that it renders now begin anew elsewhere
	ReasonUnkept    ReasonKind = "unkept"    // frames that nobody else there holds would be rendered again
	ReasonPieces    ReasonKind = "pieces"    // parts of frames that nobody else there holds would be rendered again
	ReasonOnlyCopy  ReasonKind = "only_copy" // finished frames that nobody else there could give
	ReasonProject   ReasonKind = "project"   // open jobs would wait for it
	ReasonQueue     ReasonKind = "queue"     // too few others are left to keep the queue
	ReasonUnwritten ReasonKind = "unwritten" // frames for its own folder are written when it is back
	ReasonWaiting   ReasonKind = "waiting"   // jobs that it is still to submit, as no leader had been there
	ReasonThin      ReasonKind = "thin"      // frames that would have fewer copies than asked for
)

// Parting tells what hangs on machine m, over all jobs. It looks at every frame
// that is remembered.
func (s *State) Parting(m authz.PeerID, there Presence) Parting {
	var h hanging
	for _, j := range s.list {
		h.add(j, m, there)
	}
	h.queue = stands(m, there)
	return h.parting()
}

// Parting tells what of this job hangs on machine m.
func (j *Job) Parting(m authz.PeerID, there Presence) Parting {
	var h hanging
	h.add(j, m, there)
	return h.parting()
}

// hanging counts what hangs on a machine.
type hanging struct {
	attempts, unkept, pieces, onlyCopy, projects, unwritten, thin int
	queue                                                         bool
}

func (h *hanging) add(j *Job, m authz.PeerID, there Presence) {
	// others counts who else holds something and is there.
	others := func(holders []authz.PeerID) (n int) {
		for _, p := range holders {
			if p != m && there.Here(p) {
				n++
			}
		}
		return n
	}
	if !j.State.Ended() {
		h.attempts += j.leased[m]
		// A job of which everything is rendered needs its project no more.
		if j.rendered < len(j.Frames) && slices.Contains(j.Holders, m) && others(j.Holders) == 0 {
			h.projects++
		}
	}
	for at, f := range j.Frames {
		for _, p := range j.PiecesOf(int32(at)) {
			if j.open(int32(at)) && slices.Contains(p.Holders, m) && others(p.Holders) == 0 {
				h.pieces++
			}
		}
		if f == nil {
			continue
		}
		if j.Spec.Output.Dir != "" && j.Spec.Output.Peer == m && !f.Delivered {
			h.unwritten++
		}
		if !slices.Contains(f.Holders, m) {
			continue
		}
		switch n := others(f.Holders); {
		case n >= j.Spec.Replicas || j.State.Ended() && !f.Done:
		case n > 0:
			h.thin++
		case !f.Done:
			h.unkept++
		case f.Delivered:
			h.thin++ // whoever asked for it has it
		default:
			h.onlyCopy++
		}
	}
}

// stands tells whether the queue would stand still without m.
func stands(m authz.PeerID, there Presence) bool {
	if !slices.Contains(there.Voters, m) {
		return false
	}
	left := 0
	for _, p := range there.Voters {
		if p != m && there.Here(p) {
			left++
		}
	}
	return left <= len(there.Voters)/2
}

func (h *hanging) parting() Parting {
	p := Parting{Safe: true, Reasons: []Reason{}}
	tell := func(kind ReasonKind, n int, grave bool, one, many string) {
		if n == 0 {
			return
		}
		text := one
		if n > 1 {
			text = fmt.Sprintf(many, n)
		}
		p.Reasons = append(p.Reasons, Reason{Kind: kind, Count: n, Grave: grave, Text: text})
		p.Safe = p.Safe && !grave
	}
	tell(ReasonAttempts, h.attempts, true, "it renders a task, which would begin anew elsewhere", "it renders %d tasks, which would begin anew elsewhere")
	tell(ReasonUnkept, h.unkept, true, "no other machine holds a frame that it rendered yet", "no other machine holds %d frames that it rendered yet")
	tell(ReasonPieces, h.pieces, true, "no other machine holds a part of a frame that it holds yet", "no other machine holds %d parts of frames that it holds yet")
	tell(ReasonOnlyCopy, h.onlyCopy, true, "it holds the only copy of a finished frame that is in no folder yet", "it holds the only copy of %d finished frames that are in no folder yet")
	tell(ReasonProject, h.projects, true, "a job would wait for it: no other machine there holds its project", "%d jobs would wait for it: no other machine there holds their projects")
	if h.queue {
		tell(ReasonQueue, 1, true, "the queue would stand still: too few other coordinators are there", "")
	}
	tell(ReasonUnwritten, h.unwritten, false, "a frame will be written to its folder only when it is back", "%d frames will be written to its folder only when it is back")
	tell(ReasonThin, h.thin, false, "a frame would have fewer copies than asked for, until the farm has made others", "%d frames would have fewer copies than asked for, until the farm has made others")
	return p
}
