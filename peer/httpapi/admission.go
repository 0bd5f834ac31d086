package httpapi

import (
	"context"
	"time"

	"vizpeer/authz"
)

// OpenTicket is a ticket that would admit a machine now.
type OpenTicket struct {
	ID          string     `json:"id" doc:"names it; it is no part of its secret"`
	Role        authz.Role `json:"role"`
	Coordinator bool       `json:"coordinator,omitempty"`
	Uses        int        `json:"uses" doc:"machines that it admits in all"`
	Used        int        `json:"used" doc:"machines that it has admitted"`
	ExpiresAt   time.Time  `json:"expires_at"`
	By          string     `json:"by" doc:"the user who made it"`
}

// TicketList is GET /v1/tickets.
type TicketList struct {
	Tickets []OpenTicket `json:"tickets"`
}

// Revoked is the answer to POST /v1/peers/{id}/revoke.
type Revoked struct {
	Peer Peer `json:"peer" doc:"the machine as it was"`
	// Tickets admitted it, and would admit others: it may have kept them.
	Tickets []OpenTicket `json:"tickets" doc:"tickets that admitted it and are still open: whoever has the machine may have them"`
}

// Applicant is a machine without a ticket that waits to be let in.
type Applicant struct {
	ID     authz.PeerID `json:"id" doc:"as its connection proved it"`
	Name   string       `json:"name" doc:"as it says itself"`
	Worker bool         `json:"worker" doc:"it would render"`
	Words  string       `json:"words" doc:"four words; let it in only if its own screen shows the same"`
	Addr   string       `json:"addr"`
	Since  time.Time    `json:"since"`
}

// ApplicantList is GET /v1/peers/pending.
type ApplicantList struct {
	Pending []Applicant `json:"pending"`
}

// Approval is the body of POST /v1/peers/pending/{id}/approve.
type Approval struct {
	Role authz.Role `json:"role,omitempty" doc:"node if absent; as that of a ticket"`
}

func (s *Server) tickets(ctx context.Context, _ *nothing) (*answer[TicketList], error) {
	tickets, err := s.queue.Tickets(ctx, callerOf(ctx).Principal)
	return answerWith(TicketList{list(tickets)}, err)
}

func (s *Server) revokeTicket(ctx context.Context, in *struct {
	ID string `path:"id" pattern:"^[a-z2-7]{8}$"`
}) (*answer[OpenTicket], error) {
	return answerWith(s.queue.RevokeTicket(ctx, callerOf(ctx).Principal, in.ID))
}

func (s *Server) revokePeer(ctx context.Context, in *peerInput) (*answer[Revoked], error) {
	c := callerOf(ctx)
	out, err := s.queue.Revoke(ctx, c.Principal, in.ID, authz.PeerID(c.peer.String()))
	out.Tickets = list(out.Tickets)
	return answerWith(out, err)
}

func (s *Server) pending(ctx context.Context, _ *nothing) (*answer[ApplicantList], error) {
	waiting, err := s.queue.Pending(ctx, callerOf(ctx).Principal)
	return answerWith(ApplicantList{list(waiting)}, err)
}

func (s *Server) approve(ctx context.Context, in *struct {
	ID   authz.PeerID `path:"id" pattern:"^[A-Za-z0-9]{1,128}$"`
	Body Approval
}) (*answer[Peer], error) {
	return answerWith(s.queue.Approve(ctx, callerOf(ctx).Principal, in.ID, in.Body.Role))
}

func (s *Server) deny(ctx context.Context, in *peerInput) (*answer[Applicant], error) {
	return answerWith(s.queue.Deny(ctx, callerOf(ctx).Principal, in.ID))
}
