package peer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// Who comes into the farm and who is removed, on the leader.

// mayInvite refuses who may not decide who comes in.
func (q queue) mayInvite(p authz.Principal) error {
	if !p.MayInvite() {
		return fmt.Errorf("%w: only an admin may decide who is let in", httpapi.ErrDenied)
	}
	return q.mustLead()
}

func (q queue) Tickets(ctx context.Context, p authz.Principal) (out []httpapi.OpenTicket, err error) {
	if err := q.mayInvite(p); err != nil {
		return nil, err
	}
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		for _, t := range r.OpenTickets(time.Now()) {
			out = append(out, ticketDocument(t))
		}
		return nil
	})
	return out, err
}

func ticketDocument(t authz.TicketRecord) httpapi.OpenTicket {
	return httpapi.OpenTicket{ID: t.ID(), Role: t.Role, Coordinator: t.Coordinator, Uses: t.Uses, Used: len(t.Redeemed), ExpiresAt: t.ExpiresAt, By: t.By}
}

func (q queue) RevokeTicket(ctx context.Context, p authz.Principal, id string) (out httpapi.OpenTicket, err error) {
	if err := q.mayInvite(p); err != nil {
		return out, err
	}
	var found []authz.TicketRecord
	err = q.read(ctx, func(_ *lease.State, r *authz.Roster, _ coord.Knowledge) error {
		for _, t := range r.OpenTickets(time.Now()) {
			if t.ID() == id {
				found = append(found, t)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return out, err
	case len(found) == 0:
		return out, httpapi.ErrNotFound
	}
	for _, t := range found { // two of one ID are as likely as a guess: neither is kept
		if err := q.coord.Admit(ctx, authz.Command{At: time.Now(), RevokeTicket: &authz.RevokeTicket{Ticket: t.Hash}}); err != nil {
			return out, answer(err)
		}
	}
	q.slog.Info("a ticket was revoked", "ticket", id, "user", p.User)
	return ticketDocument(found[0]), nil
}

func (q queue) Revoke(ctx context.Context, p authz.Principal, id, from authz.PeerID) (out httpapi.Revoked, err error) {
	if err := q.mayManage(ctx, p, id); err != nil {
		return out, err
	}
	if id == from {
		return out, fmt.Errorf("%w: this is the machine that you ask from, and it would cut itself off: do it from another machine, or stop vizpeer here and delete its data folder", httpapi.ErrConflict)
	}
	err = q.read(ctx, func(s *lease.State, r *authz.Roster, known coord.Knowledge) error {
		m, ok := r.Member(id)
		if !ok {
			return httpapi.ErrNotFound
		}
		out.Peer = q.member(s, r, m, known.Members[id])
		for _, t := range r.OpenTickets(time.Now()) {
			if slices.Contains(t.Redeemed, id) {
				out.Tickets = append(out.Tickets, ticketDocument(t))
			}
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	err = q.coord.Remove(ctx, authz.Command{At: time.Now(), Revoke: &authz.Revoke{Peer: id, By: p.User}})
	switch {
	case errors.Is(err, coord.ErrSoleVoter), errors.Is(err, authz.ErrLastCoordinator):
		return out, fmt.Errorf("%w: %w", httpapi.ErrConflict, err)
	case errors.Is(err, coord.ErrHandover):
		return out, fmt.Errorf("%w: %w", httpapi.ErrUnavailable, err)
	case err != nil:
		return out, answer(err)
	}
	q.slog.Info("a machine was removed", "peer", id.Short(), "user", p.User)
	return out, nil
}

func (q queue) Pending(_ context.Context, p authz.Principal) ([]httpapi.Applicant, error) {
	if err := q.mayInvite(p); err != nil {
		return nil, err
	}
	return q.lobby.list(), nil
}

func (q queue) Approve(ctx context.Context, p authz.Principal, id authz.PeerID, role authz.Role) (out httpapi.Peer, err error) {
	if err := q.mayInvite(p); err != nil {
		return out, err
	}
	v, ok := q.lobby.find(id)
	if !ok {
		return out, httpapi.ErrNotFound
	}
	c := v.Approve
	if c.By, c.Role = p.User, role; role == "" {
		c.Role = authz.Node
	}
	if err := c.Validate(); err != nil {
		return out, fmt.Errorf("%w: %w", httpapi.ErrInvalid, err)
	}
	if err := q.coord.Admit(ctx, authz.Command{At: time.Now(), Approve: &c}); err != nil {
		return out, answer(err)
	}
	v.settle(nil)
	q.slog.Info("a machine was admitted", "peer", id.Short(), "name", v.Name, "role", c.Role, "user", p.User)
	return q.peer(ctx, id)
}

func (q queue) Deny(_ context.Context, p authz.Principal, id authz.PeerID) (out httpapi.Applicant, err error) {
	if err := q.mayInvite(p); err != nil {
		return out, err
	}
	v, ok := q.lobby.find(id)
	if !ok {
		return out, httpapi.ErrNotFound
	}
	v.settle(errDenied)
	q.slog.Info("a machine was denied", "peer", id.Short(), "name", v.Name, "user", p.User)
	return v.document(), nil
}
