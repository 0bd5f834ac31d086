package peer

import (
	"cmp"
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

// auditScan bounds how many records one request looks at: who asks for rare ones is
// told where to go on.
const auditScan = 100_000

// Audit reads the audit.
func (q queue) Audit(ctx context.Context, p authz.Principal, in httpapi.AuditQuery) (out httpapi.AuditPage, err error) {
	if err := q.mayAudit(p); err != nil {
		return out, err
	}
	out.Head = q.coord.AuditHead()
	limit := min(cmp.Or(max(in.Limit, 0), 100), 1000)
	seen := 0
	err = q.coord.Audit(ctx, in.Before, func(r authz.Record) bool {
		seen++
		if in.Fits(r) {
			out.Records = append(out.Records, r)
		}
		if out.Next = 0; r.Seq > 1 {
			out.Next = r.Seq
		}
		// What is older than asked for: times grow along the chain, but for what the
		// leaders' clocks differ.
		old := !in.Since.IsZero() && r.At.Before(in.Since.Add(-auditSkew))
		if old {
			out.Next = 0
		}
		return !old && len(out.Records) < limit && seen < auditScan
	})
	if len(out.Records) < limit && seen < auditScan {
		out.Next = 0 // there is no more
	}
	return out, err
}

// auditSkew is by how much leaders' clocks may differ.
const auditSkew = 10 * time.Minute

// VerifyAudit checks the audit as this machine holds it.
func (q queue) VerifyAudit(ctx context.Context, p authz.Principal, progress func(done, total int64)) (out httpapi.AuditVerified, err error) {
	if err := q.mayAudit(p); err != nil {
		return out, err
	}
	report, err := q.coord.VerifyAudit(ctx, progress)
	if errors.Is(err, coord.ErrVerifying) {
		return out, fmt.Errorf("%w: %w", httpapi.ErrUnavailable, err)
	}
	if err != nil {
		return out, err
	}
	out = httpapi.AuditVerified{OK: report.Fault == nil, Records: report.Head.Seq, Head: report.Head, Signers: []httpapi.AuditSigner{}}
	if f := report.Fault; f != nil {
		q.slog.Error("the audit does not hold", "record", f.Seq, "why", f.Why)
		out.Fault = &httpapi.AuditFault{Seq: f.Seq, Why: f.Why}
	}
	q.coord.Read(func(_ *lease.State, r *authz.Roster) {
		for id, n := range report.Signers {
			m, _ := r.Member(id)
			out.Signers = append(out.Signers, httpapi.AuditSigner{Peer: id, Name: m.Name, Coordinator: m.Coordinator, Records: n})
		}
	})
	slices.SortFunc(out.Signers, func(a, b httpapi.AuditSigner) int { return cmp.Compare(a.Peer, b.Peer) })
	return out, nil
}

func (q queue) mayAudit(p authz.Principal) error {
	if !p.MayAudit() {
		return fmt.Errorf("%w: only an admin may read the audit", httpapi.ErrDenied)
	}
	return q.mustLead()
}

// Note records what was done that the log does not know of.
func (q queue) Note(ctx context.Context, d authz.Deed) error {
	if q.coord == nil {
		return &httpapi.NotLeaderError{}
	}
	return answer(q.coord.Note(ctx, d, authz.OutcomeOK))
}

// Refused records, soon and in bounded numbers, that a request was refused.
func (q queue) Refused(d authz.Deed, outcome string) {
	if q.coord != nil {
		q.coord.Refused(d, outcome)
	}
}
