package authz

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Errors that [Roster.Apply] answers with, apart from those of bad input.
var (
	ErrNotFounded     = errors.New("this queue belongs to no farm yet: run `vizpeer init`")
	ErrOtherFarm      = errors.New("this queue belongs to another farm: use another --data-dir")
	ErrTicketUnknown  = errors.New("the farm does not know this ticket, or it expired long ago: ask an admin for a new one (`vizpeer invite`)")
	ErrTicketUsed     = errors.New("the ticket is used up: ask an admin for a new one (`vizpeer invite`)")
	ErrTicketExpired  = errors.New("the ticket has expired: ask an admin for a new one (`vizpeer invite`)")
	ErrTicketBefore   = errors.New("this machine was removed from the farm, and the ticket is the one that admitted it before: ask an admin for a new one (`vizpeer invite`)")
	ErrNotMember      = errors.New("no member of the farm is of that ID")
	ErrNotCoordinator = errors.New("this machine may not hold the queue: let it join with a ticket of `vizpeer invite --coordinator`")
	ErrFull           = fmt.Errorf("the farm is full: %d members and %d open tickets are its limits", MaxMembers, MaxTickets)
)

// Command is one change to the roster. Exactly one of its pointers is set.
type Command struct {
	At     time.Time `json:"at"` // the leader's clock
	Found  *Found    `json:"found,omitempty"`
	Mint   *Mint     `json:"mint,omitempty"`
	Redeem *Redeem   `json:"redeem,omitempty"`
	Label  *Label    `json:"label,omitempty"`
	// Offer and Withdraw are of a Blender.
	Offer    *Offer    `json:"offer,omitempty"`
	Withdraw *Withdraw `json:"withdraw,omitempty"`
	Trust    *Trust    `json:"trust,omitempty"`
	// The rest is about people: see people.go.
	AddUser     *AddUser     `json:"add_user,omitempty"`
	SetPassword *SetPassword `json:"set_password,omitempty"`
	Disable     *Disable     `json:"disable,omitempty"`
	SetRole     *SetRole     `json:"set_role,omitempty"`
	CreateKey   *CreateKey   `json:"create_key,omitempty"`
	RevokeKey   *RevokeKey   `json:"revoke_key,omitempty"`
	EndSession  *EndSession  `json:"end_session,omitempty"`
	// Of machines.
	Approve      *Approve      `json:"approve,omitempty"`
	Revoke       *Revoke       `json:"revoke,omitempty"`
	Seen         *Seen         `json:"seen,omitempty"`
	Expire       *Expire       `json:"expire,omitempty"`
	RevokeTicket *RevokeTicket `json:"revoke_ticket,omitempty"`
	Standby      *Standby      `json:"standby,omitempty" since:"3"`
}

// Found makes the farm: the first command of its log. Repeating it for the same
// farm changes nothing.
type Found struct {
	Farm    FarmID  `json:"farm"`
	Name    string  `json:"name"`
	Charter Charter `json:"charter"`
	// Founder is the machine that ran `vizpeer init`: coordinator and worker.
	Founder     PeerID       `json:"founder"`
	FounderName string       `json:"founder_name"`
	Admin       Account      `json:"admin"`
	NodeTicket  TicketRecord `json:"node_ticket"`
	OperatorKey Key          `json:"operator_key"`
	// MachineKey is the founder machine's own, an admin's, of the admin's user.
	MachineKey Key `json:"machine_key"`
	// CA is the certificate of the farm's CA; a farm of an earlier version has none yet.
	CA []byte `json:"ca,omitempty"`
}

// TicketRecord is what the farm remembers of a ticket, and what it grants.
type TicketRecord struct {
	Hash        Hash      `json:"hash"`
	Role        Role      `json:"role"`
	Coordinator bool      `json:"coordinator,omitempty"`
	Uses        int       `json:"uses"` // machines it admits in all
	ExpiresAt   time.Time `json:"expires_at"`
	By          string    `json:"by"` // the user who minted it
	// Redeemed lists the machines it admitted; empty in commands.
	Redeemed []PeerID `json:"redeemed,omitempty"`
}

// Mint adds a ticket, and forgets those that have expired.
type Mint struct {
	Ticket TicketRecord `json:"ticket"`
}

// Redeem admits a machine by a ticket. A machine that repeats it with the same
// ticket is not counted twice, so that a join cut off half-way can be run again;
// it then gets the key it brings the second time.
type Redeem struct {
	Ticket Hash   `json:"ticket"`
	Peer   PeerID `json:"peer"` // as its connection proved it
	Name   string `json:"name"` // the machine's
	Worker bool   `json:"worker"`
	// KeyID and KeyHash are of the API key that the machine made for its token
	// file (see [NewKey]): its secret never leaves the machine. Whose it is and
	// what it may do follows from the ticket. A node may have none.
	KeyID   string `json:"key_id,omitempty"`
	KeyHash Hash   `json:"key_hash,omitzero"`
}

// EventType names what happened to the roster.
type EventType string

// The events of the roster.
const (
	FarmFounded  EventType = "farm.founded"
	TicketMinted EventType = "ticket.minted"
	PeerAdmitted EventType = "peer.admitted"
	PeerLabelled EventType = "peer.labelled"
	CATrusted    EventType = "ca.trusted"
	PeerRevoked  EventType = "peer.revoked"
	PeerExpired  EventType = "peer.expired"
	PeerStandby  EventType = "peer.standby"

	TicketRevoked EventType = "ticket.revoked"

	BlenderOffered   EventType = "blender.offered"
	BlenderWithdrawn EventType = "blender.withdrawn"

	UserAdded       EventType = "user.added"
	PasswordChanged EventType = "user.password"
	UserDisabled    EventType = "user.disabled"
	UserEnabled     EventType = "user.enabled"
	RoleChanged     EventType = "user.role"
	KeyCreated      EventType = "key.created"
	KeyRevoked      EventType = "key.revoked"
	SessionEnded    EventType = "session.ended"
)

// Event is one consequence of a command. It holds no secret and no hash of one.
type Event struct {
	Type EventType
	Peer PeerID // who was admitted or removed, or has other labels now
	User string // who minted the ticket or offers the Blender, or the person of the machine, account, key or session
	Role Role
	Key  string // the ID of an API key
	// Reason is why a machine was removed, in words.
	Reason string
}

// RevokeTicket makes a ticket admit nobody any more; whom it admitted stays.
type RevokeTicket struct {
	Ticket Hash `json:"ticket"`
}

// ID names an open ticket for people. It gives nothing of the secret away.
func (t TicketRecord) ID() string { return base32Text.EncodeToString(t.Hash[:ticketIDSize]) }

// Left is how many machines the ticket may still admit.
func (t TicketRecord) Left() int { return t.Uses - len(t.Redeemed) }

// Open tells whether the ticket would admit a machine now.
func (t TicketRecord) Open(at time.Time) bool { return at.Before(t.ExpiresAt) && t.Left() > 0 }

// OpenTickets lists the tickets that would admit a machine, those that expire first
// before others.
func (r *Roster) OpenTickets(at time.Time) (open []TicketRecord) {
	for _, t := range r.tickets {
		if t.Open(at) {
			open = append(open, t)
		}
	}
	slices.SortStableFunc(open, func(a, b TicketRecord) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	return open
}

func (r *Roster) revokeTicket(at time.Time, c RevokeTicket) ([]Event, error) {
	i, ok := findTicket(r.tickets, c.Ticket)
	if !ok || !r.tickets[i].Open(at) {
		return nil, ErrTicketUnknown
	}
	t := r.tickets[i]
	r.tickets = slices.Delete(r.tickets, i, i+1)
	return []Event{{Type: TicketRevoked, User: t.By, Role: t.Role}}, nil
}
