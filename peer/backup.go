package peer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vizpeer/authz"
	"vizpeer/coord"
	"vizpeer/peer/httpapi"
)

// Backup writes a backup of the farm's state to w.
func (q queue) Backup(ctx context.Context, p authz.Principal, w io.Writer) (out httpapi.BackupMade, err error) {
	if !p.MayManagePeople() {
		return out, fmt.Errorf("%w: a backup holds the hashes of passwords: only an admin may take one", httpapi.ErrDenied)
	}
	if err := q.mustLead(); err != nil {
		return out, err
	}
	deed := authz.Deed{User: p.User, Action: "backup"}
	if doing := authz.DoingOf(ctx); doing != nil {
		doing.Noted, deed = true, doing.Deed
	}
	if err := q.coord.Note(ctx, deed, authz.OutcomeOK); err != nil { // who could try passwords is on record
		return out, answer(err)
	}
	head, err := q.coord.Backup(ctx, w, q.cfg.Version, q.neighbours.Known())
	if errors.Is(err, coord.ErrNoQueue) {
		return out, fmt.Errorf("%w: %w", httpapi.ErrUnavailable, err)
	}
	if err != nil {
		return out, err
	}
	return backupOf(head), nil
}

// CheckBackup reads a backup to its end, and says what it is of or what is wrong with it.
func CheckBackup(in io.Reader) (httpapi.BackupMade, error) {
	head, err := coord.CheckBackup(in)
	return backupOf(head), err
}

func backupOf(head coord.BackupHead) httpapi.BackupMade {
	return httpapi.BackupMade{Farm: head.Farm, Epoch: head.Charter.Epoch, Index: head.Index, At: head.At, Records: head.Records}
}
