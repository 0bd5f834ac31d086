package httpapi

import (
	"time"

	"vizpeer/authz"
)

// AuditQuery is what a reader of the audit asks for. Each filter that is set must fit.
type AuditQuery struct {
	User, Action, Object, Outcome string
	Since, Until                  time.Time
	Before                        uint64 // records before this one; 0: the latest
	Limit                         int
}

// Fits tells whether a record is one of those asked for.
func (q AuditQuery) Fits(r authz.Record) bool {
	is := func(want, has string) bool { return want == "" || want == has }
	return is(q.User, r.User) && is(q.Action, r.Action) && is(q.Object, r.Object) &&
		(is(q.Outcome, r.Outcome) || q.Outcome == AnyRefusal && r.Outcome != authz.OutcomeOK) &&
		(q.Since.IsZero() || !r.At.Before(q.Since)) && (q.Until.IsZero() || r.At.Before(q.Until))
}

// AnyRefusal is the outcome to ask for that stands for all but ok.
const AnyRefusal = "refused"

// AuditPage is GET /v1/audit: the latest record first.
type AuditPage struct {
	Records []authz.Record `json:"records"`
	// Next is where to go on, where there may be more.
	Next uint64     `json:"next,omitempty" doc:"ask again with before set to this for the records before; absent where there are none"`
	Head authz.Mark `json:"head" doc:"the farm's latest record, and its hash, which stands for all before it"`
}

// AuditVerified is what GET /v1/audit/verify found.
type AuditVerified struct {
	OK      bool          `json:"ok"`
	Records uint64        `json:"records"`
	Head    authz.Mark    `json:"head"`
	Signers []AuditSigner `json:"signers"`
	Fault   *AuditFault   `json:"fault,omitempty" doc:"the first record that does not hold, and why"`
}

// AuditSigner is a machine that signed records while it led.
type AuditSigner struct {
	Peer        authz.PeerID `json:"peer"`
	Name        string       `json:"name,omitempty"`
	Coordinator bool         `json:"coordinator" doc:"whether it is one now"`
	Records     uint64       `json:"records"`
}

// AuditFault names the first record of an audit that does not hold.
type AuditFault struct {
	Seq uint64 `json:"seq"`
	Why string `json:"why"`
}
