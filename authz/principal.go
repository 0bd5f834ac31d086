package authz

import (
	"fmt"
	"slices"
	"time"
)

// PeerID is a machine's libp2p peer ID in its text form ("12D3Koo…"). The pure
// packages keep it as text so that they need no network library.
type PeerID string

// Short is the ID's last eight characters, for people; it is not unique.
func (p PeerID) Short() string {
	if len(p) <= 8 {
		return string(p)
	}
	return string(p[len(p)-8:])
}

// Role is what a person, or a machine that is nobody's, may do.
type Role string

const (
	// Admin may do everything.
	Admin Role = "admin"
	// Operator submits jobs and controls its own.
	Operator Role = "operator"
	// Viewer reads the jobs it may see, and changes nothing.
	Viewer Role = "viewer"
	// Node is a machine that is nobody's: it renders and can do nothing else.
	Node Role = "node"
)

// Roles lists every role, the most powerful first.
func Roles() []Role { return []Role{Admin, Operator, Viewer, Node} }

// ParseRole returns the role of that name, or an error that lists the names.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles(), r) {
		return r, nil
	}
	return "", fmt.Errorf("unknown role %q: use one of admin, operator, viewer, node", s)
}

// Principal is who makes a request: a person's API key or session, or a machine.
type Principal struct {
	// User owns the jobs this principal submits. It is never empty.
	User string `json:"user"`
	Role Role   `json:"role"`
	// Key is the ID, not the secret, of the API key that proved it.
	Key string `json:"key,omitempty"`
	// Machine is the one whose own key it is: it counts only where the request began
	// there, so that a token file is worth nothing without its machine.
	Machine PeerID `json:"machine,omitempty"`
	// Session is the ID of the session that proved it, and Expires its end.
	Session string    `json:"session,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	// MustChange tells that the session began with a one-time password: it is good
	// for choosing another, and for nothing else.
	MustChange bool `json:"must_change,omitempty"`
}

// MaySubmit tells whether p may submit jobs and upload projects.
func (p Principal) MaySubmit() bool { return p.Role == Admin || p.Role == Operator }

// MaySee tells whether p may see a job of owner. What it may not see must look
// like what does not exist.
func (p Principal) MaySee(owner string) bool {
	return p.Role == Admin || p.Role != Node && p.User == owner
}

// MayControl tells whether p may cancel or re-prioritise a job of owner.
func (p Principal) MayControl(owner string) bool {
	return p.Role == Admin || p.Role == Operator && p.User == owner
}

// MayInvite tells whether p may mint tickets and change the roster.
func (p Principal) MayInvite() bool { return p.Role == Admin }

// MayManageMachines tells whether p may drain machines and decide what they count
// as.
func (p Principal) MayManageMachines() bool { return p.Role == Admin }

// MayOffer tells whether p may offer a Blender to all machines, which then run it.
func (p Principal) MayOffer() bool { return p.Role == Admin }

// MayAudit tells whether p may read who did what.
func (p Principal) MayAudit() bool { return p.Role == Admin }

// MaySeeMachines tells whether p may see the names and hardware of all peers;
// others see the counts only.
func (p Principal) MaySeeMachines() bool { return p.Role == Admin }

// MayManagePeople tells whether p may make, change and disable accounts and API
// keys.
func (p Principal) MayManagePeople() bool { return p.Role == Admin }
