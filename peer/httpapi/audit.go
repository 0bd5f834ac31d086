package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vizpeer/authz"
)

// changes tells whether a route changes something of the farm, so that who uses it is
// on record. What changes this machine's store alone is not the farm's.
func (rt *route) changes() bool {
	return rt.Method != http.MethodGet && (!rt.place.asked() || rt.Path == "/v1/jobs")
}

// action is the route's name on record.
func (rt *route) action() string {
	if rt.id == "queue-job" {
		return "submit-job" // what another machine's submit-job asks of the leader
	}
	return rt.id
}

// deed is that the caller does something.
func (c caller) deed(action string) authz.Deed {
	d := authz.Deed{User: c.User, Key: cmp.Or(c.Session, c.Key), Action: action}
	if c.addr.IsValid() {
		d.Address = c.addr.String()
	}
	if c.peer != "" {
		d.Machine = authz.PeerID(c.peer.String())
	}
	return d
}

// deed is what a request on a route wants to do, and to what.
func (rt *route) deed(hc huma.Context, c caller) authz.Deed {
	d := c.deed(rt.action())
	var object []string
	for _, part := range strings.Split(rt.Path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			value := hc.Param(strings.TrimSuffix(name, "}"))
			if authz.LooksSecret(value) { // pasted where its ID belongs
				value = "(a secret)"
			}
			object = append(object, value)
		}
	}
	d.Object = strings.Join(object, "/")
	return d
}

// carryOut answers a request that the gate let through. What changes the farm takes its
// deed along, which the queue puts on record together with the change; what was refused,
// or changed nothing that the log knows of, is put on record here.
func (s *Server) carryOut(hc huma.Context, rt *route, c caller, next func(huma.Context)) {
	hc = huma.WithValue(hc, callerKey{}, c)
	if !rt.changes() {
		next(hc)
		return
	}
	doing := &authz.Doing{Deed: rt.deed(hc, c)}
	next(huma.WithContext(hc, authz.WithDoing(hc.Context(), doing)))
	switch status := hc.Status(); {
	case doing.Noted:
	case status < 300 && !rt.place.asked():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(hc.Context()), noteTimeout)
		defer cancel()
		if err := s.queue.Note(ctx, doing.Deed); err != nil {
			s.log.Warn("an action could not be put on record", "action", doing.Action, "user", doing.User, "error", err)
		}
	default:
		s.refused(doing.Deed, status)
	}
}

// noteTimeout bounds how long an answer that was given waits to be on record.
const noteTimeout = 10 * time.Second

// refused puts on record that a request was refused for want of a right to it. What is
// wrong in another way changed nothing and tells nothing.
func (s *Server) refused(d authz.Deed, status int) {
	switch status {
	case http.StatusUnauthorized:
		s.queue.Refused(d, string(CodeUnauthorised))
	case http.StatusForbidden:
		s.queue.Refused(d, string(CodeForbidden))
	case http.StatusNotFound:
		s.queue.Refused(d, string(CodeNotFound))
	}
}

func (s *Server) audit(ctx context.Context, in *struct {
	User    string    `query:"user" maxLength:"128" doc:"of this user only"`
	Action  string    `query:"action" maxLength:"128" doc:"this action only, such as cancel-job, login or join"`
	Object  string    `query:"object" maxLength:"256" doc:"done to this only: a job, machine, user, key or ticket"`
	Outcome string    `query:"outcome" maxLength:"128" doc:"ok, or a word for why not, such as forbidden; refused: all that is not ok"`
	Since   time.Time `query:"since" doc:"not before this time"`
	Until   time.Time `query:"until" doc:"before this time"`
	Before  uint64    `query:"before" doc:"records before this one: the next of the answer before"`
	Limit   int       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}) (*answer[AuditPage], error) {
	page, err := s.queue.Audit(ctx, callerOf(ctx).Principal, AuditQuery{
		User: in.User, Action: in.Action, Object: in.Object, Outcome: in.Outcome, Since: in.Since, Until: in.Until, Before: in.Before, Limit: in.Limit,
	})
	page.Records = list(page.Records)
	return answerWith(page, err)
}

func (s *Server) verifyAudit(ctx context.Context, in *struct{ exchange }) (*huma.StreamResponse, error) {
	p := callerOf(ctx).Principal
	return steps(s, ctx, "/v1/audit/verify", &in.exchange, func(ctx context.Context, progress func(done, total int64)) (AuditVerified, error) {
		return s.queue.VerifyAudit(ctx, p, progress)
	})
}
