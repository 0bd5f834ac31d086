package httpapi

import (
	"context"
	"time"

	"vizpeer/authz"
)

// Coordination is who leads the queue: GET /v1/farm holds it, and `vizpeer coord
// status` prints it.
type Coordination struct {
	Leader       authz.PeerID   `json:"leader"`
	Term         uint64         `json:"term"`
	Voters       []authz.PeerID `json:"voters"`
	Standbys     []authz.PeerID `json:"standbys"`
	AppliedIndex uint64         `json:"applied_index"`
	// Level tells how far the update of the farm's machines has come.
	Level int `json:"level" doc:"the farm's level: what the vizpeer of every machine that holds the queue knows; it is raised as they are updated, and never lowered. 0 where that of the leader is older than levels"`
	// Coordinators are all machines that may hold the queue, by name.
	Coordinators []CoordinatorInfo `json:"coordinators"`
}

// CoordinatorInfo is one machine that may hold the queue.
type CoordinatorInfo struct {
	Peer    authz.PeerID `json:"peer"`
	Name    string       `json:"name,omitempty" doc:"for admins, and for the machine's own person"`
	Votes   bool         `json:"votes"`
	State   string       `json:"state" enum:"leader,ready,behind,away,old" doc:"behind: it has not copied all of the queue yet; old: its vizpeer does not know the farm's level, so that it cannot hold the queue before it is updated"`
	Since   time.Time    `json:"since" doc:"of its being connected or away; within the leader's term"`
	Held    bool         `json:"held,omitempty" doc:"an admin keeps it from voting: promote it"`
	Applied uint64       `json:"applied_index,omitempty"`
	Version string       `json:"version,omitempty" doc:"of its vizpeer; absent where it was not heard from"`
	Level   int          `json:"level" doc:"what its vizpeer knows"`
	// HoldsBack tells that it holds the queue and knows less than the leader.
	HoldsBack bool `json:"holds_back,omitempty" doc:"it keeps the farm from the leader's level, because its vizpeer is older or it was not heard from"`
}

// CoordinatorChange is what an admin may want of a coordinator.
type CoordinatorChange string

// What an admin may want of a coordinator.
const (
	PromoteCoordinator CoordinatorChange = "promote"  // let it vote
	DemoteCoordinator  CoordinatorChange = "demote"   // keep it from voting
	TransferTo         CoordinatorChange = "transfer" // have it lead
)

// coordinate makes the handler of one such wish.
func coordinate(what CoordinatorChange) func(*Server, context.Context, *peerInput) (*answer[Coordination], error) {
	return func(s *Server, ctx context.Context, in *peerInput) (*answer[Coordination], error) {
		co, err := s.queue.Coordinate(ctx, callerOf(ctx).Principal, in.ID, what)
		co.Voters, co.Standbys, co.Coordinators = list(co.Voters), list(co.Standbys), list(co.Coordinators)
		return answerWith(co, err)
	}
}
