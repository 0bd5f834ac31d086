package coord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// Unsigned lists the audit's records that nobody has signed yet.
func (l *Log) Unsigned() (out []authz.Record) {
	l.fsm.audit(func(t *authz.Trail) { out = t.Unsigned() })
	return out
}

// AuditHead is the last record of the audit, as this machine has applied it.
func (l *Log) AuditHead() (head authz.Mark) {
	l.fsm.audit(func(t *authz.Trail) { head = t.Head() })
	return head
}

// auditEnd is the end of the audit: what is on disk, and what is not yet.
func (l *Log) auditEnd() (stored authz.Mark, tail []authz.Record) {
	l.fsm.audit(func(t *authz.Trail) { stored, tail = t.Stored(), t.Tail() })
	return stored, tail
}

// Audit calls see with the records before seq, or all where it is 0, the latest first,
// until see answers false. What is missing on this machine, or was altered so that it
// cannot be read, is left out: VerifyAudit tells of it.
func (l *Log) Audit(ctx context.Context, before uint64, see func(authz.Record) bool) error {
	_, tail := l.auditEnd()
	next := cmp.Or(before, ^uint64(0)) // what is to be seen lies below
	for _, r := range slices.Backward(tail) {
		if r.Seq < next {
			if next = r.Seq; !see(r) {
				return nil
			}
		}
	}
	for _, p := range slices.Backward(l.fsm.ledger.list()) {
		if p.first >= next {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		records, err := l.fsm.ledger.read(p)
		var altered *authz.Fault
		if err != nil && !errors.As(err, &altered) {
			return err
		}
		for _, r := range slices.Backward(records) {
			if r.Seq < next {
				if next = r.Seq; !see(r) {
					return nil
				}
			}
		}
	}
	return nil
}

// AuditReport is what VerifyAudit found.
type AuditReport struct {
	Head    authz.Mark              // what the coordinators agreed on
	Signers map[authz.PeerID]uint64 // how many records each signed
	// Fault is the first record that does not hold, and why; nil where all do.
	Fault *authz.Fault
}

// VerifyAudit checks every record that this machine holds against the chain, its
// signature, and the head that the coordinators agreed on. progress is told how many
// records of how many were checked.
func (l *Log) VerifyAudit(ctx context.Context, progress func(done, total int64)) (AuditReport, error) {
	stored, tail := l.auditEnd()
	report := AuditReport{Head: stored, Signers: make(map[authz.PeerID]uint64)}
	if n := len(tail); n > 0 {
		report.Head = tail[n-1].Mark()
	}
	var v authz.Verifier
	check := func(r authz.Record) error {
		err := v.Next(r)
		if err == nil && r.Signer != "" {
			report.Signers[r.Signer]++
		}
		return err
	}
	err := func() error {
		for _, p := range l.fsm.ledger.list() {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			records, unread := l.fsm.ledger.read(p)
			for _, r := range records {
				if r.Seq > stored.Seq {
					break // it was signed since
				}
				if err := check(r); err != nil {
					return err
				}
			}
			if unread != nil && v.At.Seq < stored.Seq {
				return unread
			}
			progress(int64(v.At.Seq), int64(report.Head.Seq))
		}
		if err := v.End(stored); err != nil {
			return err
		}
		v.Unsigned = true
		for _, r := range tail {
			if err := check(r); err != nil {
				return err
			}
		}
		return v.End(report.Head)
	}()
	if errors.As(err, &report.Fault) {
		err = nil
	}
	return report, err
}

// Audit reads the audit: see [Log.Audit].
func (c *Coordinator) Audit(ctx context.Context, before uint64, see func(authz.Record) bool) error {
	return c.log().Audit(ctx, before, see)
}

// AuditHead is the last record of the audit.
func (c *Coordinator) AuditHead() authz.Mark { return c.log().AuditHead() }

// ErrVerifying says that the audit is being verified already, which takes a processor.
var ErrVerifying = errors.New("the audit is being verified for somebody else: try again when that is done")

// VerifyAudit checks the audit: see [Log.VerifyAudit]. One caller at a time may.
func (c *Coordinator) VerifyAudit(ctx context.Context, progress func(done, total int64)) (AuditReport, error) {
	if !c.verifying.TryLock() {
		return AuditReport{}, ErrVerifying
	}
	defer c.verifying.Unlock()
	return c.log().VerifyAudit(ctx, progress)
}

// Note commits a record of what changes nothing that the log knows of, such as a login,
// and returns once a majority has it.
func (c *Coordinator) Note(ctx context.Context, d authz.Deed, outcome string) error {
	if !c.Leading() {
		leader, _ := c.log().Leader()
		return ErrNotLeader{Leader: leader}
	}
	_, err := c.log().Apply(ctx, Entry{Audit: &authz.Note{Deed: d, At: c.now(), Outcome: outcome}})
	return err
}

// Refused has it recorded, soon, that a request was refused. Many of a kind become one
// record that counts them. On a machine that does not lead it does nothing.
func (c *Coordinator) Refused(d authz.Deed, outcome string) {
	if l := c.leading.Load(); l != nil {
		l.audit.refused(l.now(), d, outcome)
	}
}

// note is what the audit is to say of an entry; nil of one that is not to be on record.
func (c *Coordinator) note(ctx context.Context, e Entry) *authz.Note {
	var d authz.Deed
	doing := authz.DoingOf(ctx)
	if doing != nil {
		doing.Noted = true
	}
	switch {
	case e.Roster != nil && e.Roster.Redeem != nil: // a machine asks for itself
		d = c.joins(ctx, *e.Roster.Redeem)
	case doing != nil:
		d = doing.Deed
	case e.Roster != nil && e.Roster.Expire != nil: // nobody asks, and members change
		d = authz.Deed{Machine: c.self, Action: "expire-peers"}
	default:
		return nil
	}
	d.Object, d.Detail = about(e, d.Object, d.Detail)
	return &authz.Note{Deed: d}
}

// joins is a machine's wish to be admitted, in the name of who made its ticket.
func (c *Coordinator) joins(ctx context.Context, r authz.Redeem) authz.Deed {
	d := authz.Deed{Machine: r.Peer, Action: "join", Object: string(r.Peer), Detail: joining(r)}
	if doing := authz.DoingOf(ctx); doing != nil {
		d.Address = doing.Address
	}
	c.Read(func(_ *lease.State, roster *authz.Roster) { d.User = roster.MintedBy(r.Ticket) })
	return d
}

func joining(r authz.Redeem) string { return r.Name + " by ticket " + ticketName(r.Ticket) }

// about is what an entry is about, and what more there is to say of it, where the
// request itself did not say.
func about(e Entry, object, detail string) (string, string) {
	say := func(o, d string) (string, string) { return cmp.Or(object, o), cmp.Or(detail, d) }
	if q := e.Queue; q != nil {
		switch {
		case q.Submit != nil:
			return say(string(q.Submit.Job), q.Submit.Spec.Name)
		case q.Cancel != nil:
			return say(string(q.Cancel.Job), "")
		case q.Pause != nil:
			return say(string(q.Pause.Job), "")
		case q.Resume != nil:
			return say(string(q.Resume.Job), "")
		case q.Prioritise != nil:
			return say(string(q.Prioritise.Job), string(q.Prioritise.Tier))
		case q.Retry != nil && len(q.Retry.Frames) > 0:
			return say(string(q.Retry.Job), "frames "+q.Retry.Frames.String())
		case q.Retry != nil:
			return say(string(q.Retry.Job), "")
		case q.More != nil:
			return say(string(q.More.Job), fmt.Sprintf("%d samples", q.More.Samples))
		case q.Drain != nil:
			return say(string(q.Drain.Peer), "")
		}
	}
	if r := e.Roster; r != nil {
		switch {
		case r.Mint != nil:
			t := r.Mint.Ticket
			detail := fmt.Sprintf("%s, uses %d, until %s", t.Role, t.Uses, t.ExpiresAt.UTC().Format(time.RFC3339))
			if t.Coordinator {
				detail = "coordinator, " + detail
			}
			return say(ticketName(t.Hash), detail)
		case r.Redeem != nil:
			return say(string(r.Redeem.Peer), joining(*r.Redeem))
		case r.Standby != nil:
			return say(string(r.Standby.Peer), "")
		case r.Label != nil:
			return say(string(r.Label.Peer), strings.Join(r.Label.Labels, " "))
		case r.Offer != nil:
			return say(r.Offer.Root, r.Offer.Name+" "+r.Offer.Version)
		case r.Withdraw != nil:
			return say(r.Withdraw.Root, "")
		case r.AddUser != nil:
			return say(r.AddUser.Account.User, string(r.AddUser.Account.Role))
		case r.SetPassword != nil:
			return say(r.SetPassword.User, "")
		case r.Disable != nil:
			return say(r.Disable.User, "")
		case r.SetRole != nil:
			return say(r.SetRole.User, string(r.SetRole.Role))
		case r.CreateKey != nil:
			k := r.CreateKey.Key
			return say(k.ID, strings.TrimSpace(fmt.Sprintf("%s, of %s %s", k.Role, k.User, k.Name)))
		case r.RevokeKey != nil:
			return say(r.RevokeKey.ID, "")
		case r.EndSession != nil:
			return say(r.EndSession.ID, "")
		case r.Approve != nil:
			return say(string(r.Approve.Peer), fmt.Sprintf("%s, as %s", r.Approve.Name, r.Approve.Role))
		case r.Revoke != nil:
			return say(string(r.Revoke.Peer), "")
		case r.Expire != nil && len(r.Expire.Peers) == 1:
			return say(string(r.Expire.Peers[0]), "away since "+r.Expire.Before.UTC().Format(time.RFC3339))
		case r.Expire != nil:
			return say(fmt.Sprintf("%d machines", len(r.Expire.Peers)), "those of them that were away since "+r.Expire.Before.UTC().Format(time.RFC3339))
		case r.RevokeTicket != nil:
			return say(ticketName(r.RevokeTicket.Ticket), "")
		}
	}
	return object, detail
}

// ticketName is the ID of a ticket, by which the audit tells which machines one admitted.
func ticketName(h authz.Hash) string { return authz.TicketRecord{Hash: h}.ID() }
