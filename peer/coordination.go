package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// coordination is who holds the queue, as p may see it.
func (q queue) coordination(p authz.Principal) httpapi.Coordination {
	st := q.coord.Status()
	out := httpapi.Coordination{Leader: st.Leader, Term: st.Term, Voters: st.Voters, Standbys: st.Standbys, AppliedIndex: st.AppliedIndex}
	levels := q.coord.Levels()
	out.Level = levels.Farm
	all := q.coord.Standings()
	q.coord.Read(func(_ *lease.State, r *authz.Roster) {
		for _, s := range all {
			info := httpapi.CoordinatorInfo{Peer: s.Peer, Votes: s.Votes, State: string(s.State), Since: s.Since.UTC(), Held: s.Held, Applied: s.Applied}
			if m, ok := r.Member(s.Peer); ok && (p.MaySeeMachines() || m.User == p.User) {
				info.Name = m.Name
			}
			is := levels.Machines[s.Peer]
			info.Version, info.Level, info.HoldsBack = is.Version, is.Knows, levels.HoldsBack(s.Peer)
			out.Coordinators = append(out.Coordinators, info)
		}
	})
	slices.SortStableFunc(out.Coordinators, func(a, b httpapi.CoordinatorInfo) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (q queue) Coordinate(ctx context.Context, p authz.Principal, id authz.PeerID, what httpapi.CoordinatorChange) (out httpapi.Coordination, err error) {
	if err := q.mayManage(ctx, p, id); err != nil {
		return out, err
	}
	switch what {
	case httpapi.PromoteCoordinator:
		err = q.coord.Promote(ctx, id)
	case httpapi.DemoteCoordinator:
		err = q.coord.Demote(ctx, id)
	case httpapi.TransferTo:
		err = q.coord.Transfer(ctx, id)
	default:
		return out, fmt.Errorf("%w: a coordinator cannot be told to %q", httpapi.ErrInvalid, what)
	}
	for _, conflict := range []error{coord.ErrSoleVoter, coord.ErrNoVote, coord.ErrAway, authz.ErrNotCoordinator} {
		if errors.Is(err, conflict) {
			return out, fmt.Errorf("%w: %w", httpapi.ErrConflict, err)
		}
	}
	if err != nil {
		return out, answer(err)
	}
	q.slog.Info("who holds the queue was changed", "peer", id.Short(), "user", p.User, "what", what)
	return q.coordination(p), nil
}
