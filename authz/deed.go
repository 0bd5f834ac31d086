package authz

import (
	"context"
	"strings"
	"time"
)

// Deed is what the audit says of one action: who did what to what, and from where.
// It holds no secret.
type Deed struct {
	User string `json:"user,omitempty"` // "" where nobody proved who it was
	Key  string `json:"key,omitempty"`  // ID of the API key or session that proved it
	// Machine is the peer that took the request, and Address where the client was, as
	// that peer saw it.
	Machine PeerID `json:"machine,omitempty"`
	Address string `json:"address,omitempty"`
	Action  string `json:"action"`           // a route's ID, such as "cancel-job", or another name, such as "join"
	Object  string `json:"object,omitempty"` // ID or name of what it was done to
	Detail  string `json:"detail,omitempty"` // what more there is to say, such as a new priority
	// Times is how often it happened, where one record stands for many; else 0.
	Times int `json:"times,omitempty"`
}

// ActionLogin is the action of a login. Its object is the account that was tried.
const ActionLogin = "login"

// Note is a deed as the replicated log holds it. At and Outcome are set where the
// entry holds nothing else: a command has a time of its own, and what became of it is
// known once it was applied.
type Note struct {
	Deed
	At      time.Time `json:"at,omitzero"`
	Outcome string    `json:"outcome,omitempty"`
}

// Limits of a deed's texts, in bytes. What is longer is cut.
const (
	maxDeedName = 128
	maxDeedText = 256
)

// bounded is the deed with texts that a record may hold.
func (d Deed) bounded() Deed {
	for _, s := range []*string{&d.User, &d.Key, &d.Address, &d.Action} {
		*s = boundText(*s, maxDeedName)
	}
	d.Machine = PeerID(boundText(string(d.Machine), maxDeedName))
	d.Object, d.Detail = boundText(d.Object, maxDeedText), boundText(d.Detail, maxDeedText)
	d.Times = max(d.Times, 0)
	return d
}

// boundText cuts a text, and replaces what is not to be printed.
func boundText(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if !shows(r) {
			return '\uFFFD'
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// Doing is the deed of a request under way.
type Doing struct {
	Deed
	// Noted tells that a record of it was asked for, with what it changes.
	Noted bool
}

type doingKey struct{}

// WithDoing is ctx of a request that is to be on record: what is proposed to the log on
// its behalf takes the deed with it. Whoever serves the request may add to the deed
// until then, and nobody may from another goroutine.
func WithDoing(ctx context.Context, d *Doing) context.Context {
	return context.WithValue(ctx, doingKey{}, d)
}

// DoingOf is what ctx's request does; nil where it is not to be on record.
func DoingOf(ctx context.Context) *Doing {
	d, _ := ctx.Value(doingKey{}).(*Doing)
	return d
}
