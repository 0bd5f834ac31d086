package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
	"vizpeer/blobs"
	"vizpeer/lease"
)

// What backends answer with, wrapped in a sentence for the caller. The table in
// this file maps them, and those of packages lease and blobs, to HTTP.
var (
	// ErrNotFound is for what does not exist and for what the caller may not see.
	// Its text reaches nobody: both must read the same.
	ErrNotFound     = errors.New("not found")
	ErrUnauthorised = errors.New("the token is not valid")
	ErrDenied       = errors.New("not allowed")
	ErrInvalid      = errors.New("invalid")
	ErrConflict     = errors.New("conflict")
	ErrTooLarge     = errors.New("too large")
	ErrNoLeader     = errors.New("no coordinator can be reached")
	// ErrUnavailable is for what may work in a moment; its text says what to do.
	ErrUnavailable = errors.New("not now")
	// ErrUpdate is for what another machine's vizpeer is too old for; its text names that.
	ErrUpdate = errors.New("another machine must be updated first")
	// ErrSlowReader ends a subscription whose reader fell behind.
	ErrSlowReader = errors.New("the reader fell behind")
)

// NotLeaderError is the answer of a peer that was taken for the leader and is
// not. It is an [ErrNoLeader] to errors.Is.
type NotLeaderError struct {
	Leader peer.ID // who leads as far as it knows; "" where it does not
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "this peer does not lead the queue, and does not know who does"
	}
	return fmt.Sprintf("this peer does not lead the queue: try %s", short(e.Leader))
}

// Is makes every NotLeaderError an ErrNoLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNoLeader }

// Code is the stable word for a kind of error, for scripts.
type Code string

// The codes.
const (
	CodeNotFound     Code = "not_found"
	CodeInvalid      Code = "invalid"
	CodeNoLeader     Code = "no_leader"
	CodeUnauthorised Code = "unauthorised"
	CodeForbidden    Code = "forbidden"
	CodeConflict     Code = "conflict"
	CodeTooLarge     Code = "too_large"
	CodeDiskFull     Code = "disk_full"
	CodeNoRoom       Code = "no_room" // the store's quota is used up by what is kept
	CodeNotReady     Code = "not_ready"
	CodeUnavailable  Code = "unavailable" // try again later: who has it does not answer
	CodeLacking      Code = "lacking"     // receipts for what is not here any more: send the files
	CodeKeyReused    Code = "key_reused"  // an idempotency key stands for another request
	CodeTooMany      Code = "too_many"    // requests, or passwords: wait for as long as Retry-After says
	CodeMustChange   Code = "must_change" // the password is a one-time one: change it first
	CodeUpdate       Code = "update"      // a machine whose vizpeer is older must be updated first: the detail names it
	CodeInternal     Code = "internal"
)

// Problem is the document of every error: RFC 9457 with a code.
type Problem struct {
	Type   string `json:"type" doc:"always about:blank: the code tells kinds apart" example:"about:blank"`
	Title  string `json:"title" doc:"the words of the HTTP status"`
	Status int    `json:"status" doc:"the HTTP status"`
	Detail string `json:"detail" doc:"what went wrong and what to do about it, in a sentence"`
	Code   Code   `json:"code" doc:"a stable word for scripts: not_found, invalid, no_leader, unauthorised, forbidden, conflict, too_large, disk_full, no_room, not_ready, unavailable, lacking, key_reused, too_many, must_change, update, internal"`
	// Failing names the checks that fail: of /readyz only.
	Failing []string `json:"failing,omitempty" doc:"the checks that fail, for not_ready"`
	// Lacks lists files to be sent, for lacking; where there are more than
	// [MaxLacking], only the first of them.
	Lacks []string `json:"lacks,omitempty" doc:"paths of files to be sent, for lacking"`
	// Routes lists what there is, where the path asked for is not.
	Routes []string `json:"routes,omitempty" doc:"the routes there are, for a path that is not one of them"`

	header http.Header
}

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is the HTTP status. With ContentType and GetHeaders it makes a
// Problem an error that huma can write.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType names a problem for what it is.
func (p *Problem) ContentType(string) string { return problemType }

// GetHeaders are the headers that go with the problem.
func (p *Problem) GetHeaders() http.Header { return p.header }

const problemType = "application/problem+json"

// newProblem makes a problem; header holds name, value pairs.
func newProblem(status int, code Code, detail string, header ...string) *Problem {
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Code: code, header: http.Header{}}
	for i := 0; i+1 < len(header); i += 2 {
		p.header.Set(header[i], header[i+1])
	}
	return p
}

// errorTable is the one place that maps errors to HTTP; the first row that
// errors.Is finds wins.
var errorTable = []struct {
	err    error
	status int
	code   Code
}{
	{ErrNotFound, http.StatusNotFound, CodeNotFound},
	{lease.ErrUnknownJob, http.StatusNotFound, CodeNotFound},
	{lease.ErrUnknownTask, http.StatusNotFound, CodeNotFound},
	{authz.ErrNotMember, http.StatusNotFound, CodeNotFound},
	{authz.ErrSession, http.StatusUnauthorized, CodeUnauthorised},
	{authz.ErrDisabled, http.StatusUnauthorized, CodeUnauthorised},
	{authz.ErrPassword, http.StatusUnauthorized, CodeUnauthorised},
	{ErrUnauthorised, http.StatusUnauthorized, CodeUnauthorised},
	{authz.ErrToken, http.StatusUnauthorized, CodeUnauthorised},
	{authz.ErrTokenText, http.StatusUnauthorized, CodeUnauthorised},
	{authz.ErrUserUnknown, http.StatusNotFound, CodeNotFound}, // of admins' routes only
	{authz.ErrKeyUnknown, http.StatusNotFound, CodeNotFound},
	{authz.ErrNotAdmin, http.StatusForbidden, CodeForbidden},
	{authz.ErrUserExists, http.StatusConflict, CodeConflict},
	{authz.ErrUserMachine, http.StatusConflict, CodeConflict},
	{authz.ErrLastAdmin, http.StatusConflict, CodeConflict},
	{authz.ErrPasswordChanged, http.StatusConflict, CodeConflict},
	{authz.ErrPeopleFull, http.StatusConflict, CodeConflict},
	{ErrDenied, http.StatusForbidden, CodeForbidden},
	{ErrNoLeader, http.StatusServiceUnavailable, CodeNoLeader},
	{blobs.ErrDiskFull, http.StatusInsufficientStorage, CodeDiskFull},
	{blobs.ErrNoRoom, http.StatusInsufficientStorage, CodeNoRoom},
	{ErrTooLarge, http.StatusRequestEntityTooLarge, CodeTooLarge},
	{blobs.ErrTooLarge, http.StatusRequestEntityTooLarge, CodeTooLarge},
	{ErrConflict, http.StatusConflict, CodeConflict},
	{lease.ErrEnded, http.StatusConflict, CodeConflict},
	{lease.ErrExists, http.StatusConflict, CodeConflict},
	{lease.ErrPaused, http.StatusConflict, CodeConflict},
	{lease.ErrState, http.StatusConflict, CodeConflict},
	{lease.ErrKeyReused, http.StatusUnprocessableEntity, CodeKeyReused},
	{lease.ErrLimit, http.StatusConflict, CodeConflict},
	{authz.ErrFull, http.StatusConflict, CodeConflict},
	{ErrInvalid, http.StatusUnprocessableEntity, CodeInvalid},
	{lease.ErrInvalid, http.StatusUnprocessableEntity, CodeInvalid},
	{blobs.ErrBadPath, http.StatusUnprocessableEntity, CodeInvalid},
	// Content is asked for only after the caller's right to it was checked, so
	// these give nothing away.
	{blobs.ErrNotFound, http.StatusNotFound, CodeNotFound},
	{ErrUpdate, http.StatusNotImplemented, CodeUpdate},
	{ErrUnavailable, http.StatusServiceUnavailable, CodeUnavailable},
	{blobs.ErrStalled, http.StatusServiceUnavailable, CodeUnavailable},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, CodeUnavailable},
	{context.Canceled, http.StatusServiceUnavailable, CodeUnavailable},
}

// MapError turns any error into the problem that a caller gets. An error that
// the table does not know is internal, and its text is not shown: the caller of
// MapError logs it.
func MapError(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var lacking *Lacking
	if errors.As(err, &lacking) {
		p := newProblem(http.StatusConflict, CodeLacking, lacking.Error())
		p.Lacks = lacking.Paths
		return p
	}
	var wrong *NotLeaderError
	if errors.As(err, &wrong) {
		err = fmt.Errorf("%w: the queue is changing hands: try again", ErrNoLeader)
	}
	for _, row := range errorTable {
		if !errors.Is(err, row.err) {
			continue
		}
		// The sentinels that only sort an error are no part of the sentence.
		detail := err.Error()
		for _, sorting := range []error{ErrDenied, ErrInvalid, ErrConflict, ErrTooLarge, ErrUpdate, ErrUnavailable, lease.ErrInvalid} {
			detail = strings.TrimPrefix(detail, sorting.Error()+": ")
		}
		switch {
		case row.err == ErrNotFound, row.err == lease.ErrUnknownJob, row.err == lease.ErrUnknownTask:
			return notFound()
		case row.err == authz.ErrSession, row.err == authz.ErrDisabled, row.err == authz.ErrPassword:
			return unauthorised(row.err.Error(), row.err != authz.ErrPassword)
		case row.code == CodeUnauthorised:
			return unauthorised("the token is not valid here: use the one that init or join left in this machine's token file", true)
		case row.code == CodeNoLeader:
			if !strings.HasPrefix(detail, ErrNoLeader.Error()) {
				detail = ErrNoLeader.Error() + ": " + detail
			}
			return newProblem(row.status, row.code, detail, "Retry-After", "2")
		case row.err == ErrUnavailable:
			return newProblem(row.status, row.code, detail, "Retry-After", "2")
		case row.code == CodeUnavailable:
			return newProblem(row.status, row.code, "the answer took too long and was given up: try again ("+detail+")", "Retry-After", "2")
		}
		return newProblem(row.status, row.code, detail)
	}
	return newProblem(http.StatusInternalServerError, CodeInternal, "something went wrong on this machine: its log says what")
}

// notFound is the only text for what is missing, so that it gives nothing away.
func notFound() *Problem {
	return newProblem(http.StatusNotFound, CodeNotFound, "there is no such thing here, or it is not yours to see")
}

// unauthorised is a 401; sent tells that a token came and was refused.
func unauthorised(detail string, sent bool) *Problem {
	challenge := `Bearer realm="vizpeer"`
	if sent {
		challenge += `, error="invalid_token"`
	}
	return newProblem(http.StatusUnauthorized, CodeUnauthorised, detail, "WWW-Authenticate", challenge)
}

// init gives huma our problem document for the errors that it makes itself, which
// are all about malformed requests. It is a hook of the library's package, and
// this is the only package that uses the library.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return requestProblem(status, msg, errs)
	}
}

// requestProblem says what is wrong with a request, without echoing it: a body
// may hold a secret.
func requestProblem(status int, msg string, errs []error) *Problem {
	var details []string
	for _, err := range errs {
		var d *huma.ErrorDetail
		switch {
		case err == nil:
		case !errors.As(err, &d):
			details = append(details, err.Error())
		case d.Location == "":
			details = append(details, d.Message)
		default:
			details = append(details, d.Location+": "+d.Message)
		}
	}
	if len(details) > 0 {
		msg = strings.Join(details, "; ")
	}
	switch {
	case status == http.StatusRequestEntityTooLarge:
		return newProblem(status, CodeTooLarge, msg)
	case status >= 500:
		return newProblem(status, CodeInternal, "something went wrong on this machine: its log says what")
	}
	return newProblem(status, CodeInvalid, "the request is not valid: "+msg)
}
