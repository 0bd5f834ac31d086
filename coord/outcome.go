package coord

import (
	"errors"

	"vizpeer/authz"
	"vizpeer/lease"
)

// outcomes are the words of the audit for what became of a command; the first row that
// errors.Is finds wins. They are part of the records' hashes, which every coordinator
// must make alike whatever its version: a row may be added, and no word ever changed.
// The errors' own texts are for people, and may.
var outcomes = []struct {
	err  error
	word string
}{
	{lease.ErrUnknownJob, "not_found"},
	{lease.ErrUnknownTask, "not_found"},
	{authz.ErrNotMember, "not_found"},
	{authz.ErrNotOffered, "not_found"},
	{authz.ErrUserUnknown, "not_found"},
	{authz.ErrKeyUnknown, "not_found"},
	{authz.ErrPassword, "unauthorised"},
	{authz.ErrNotAdmin, "forbidden"},
	{authz.ErrDisabled, "forbidden"},
	{authz.ErrUserExists, "conflict"},
	{authz.ErrUserMachine, "conflict"},
	{authz.ErrLastAdmin, "conflict"},
	{authz.ErrPasswordChanged, "conflict"},
	{authz.ErrLastCoordinator, "conflict"},
	{authz.ErrPeopleFull, "limit"},
	{authz.ErrTicketBefore, "ticket"},
	{lease.ErrEnded, "conflict"},
	{lease.ErrPaused, "conflict"},
	{lease.ErrState, "conflict"},
	{lease.ErrExists, "conflict"},
	{lease.ErrKeyReused, "conflict"},
	{lease.ErrLimit, "limit"},
	{authz.ErrFull, "limit"},
	{lease.ErrInvalid, "invalid"},
	{authz.ErrTicketUnknown, "ticket"},
	{authz.ErrTicketUsed, "ticket"},
	{authz.ErrTicketExpired, "ticket"},
}

func outcomeOf(err error) string {
	if err == nil {
		return authz.OutcomeOK
	}
	var again *lease.Repeated
	if errors.As(err, &again) {
		return "repeated"
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return o.word
		}
	}
	return "refused"
}
