package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// posting is one job of an outbox, and its file.
type posting struct {
	Job     lease.JobID `json:"job"`
	Posted  time.Time   `json:"posted"`
	Spec    lease.Spec  `json:"spec"`
	Once    *lease.Once `json:"once,omitempty"`
	Key     string      `json:"key,omitempty"`     // ID of the API key with which it was posted,
	Session string      `json:"session,omitempty"` // or of the session
	Address netip.Addr  `json:"address,omitzero"`
	Tasks   int         `json:"tasks"`
	// Tried tells that a coordinator may have taken it.
	Tried bool `json:"tried,omitempty"`
	// Cancel is who cancelled it, in words, where it was Tried: it is to be cancelled
	// wherever it is.
	Cancel string         `json:"cancel,omitempty"`
	State  lease.JobState `json:"state"` // queued or, for as long as it is shown, failed or cancelled
	Reason string         `json:"reason,omitempty"`
	Ended  time.Time      `json:"ended,omitzero"`

	size  int
	token string // that proves whose it is; "" where nothing does
	spent string // one that was refused
	why   string // what hindered the last try, in words
}

// readPosting reads what an outbox wrote; anything else is an error.
func readPosting(data []byte) (*posting, error) {
	var p posting
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	switch {
	case !isJobID(p.Job):
		return nil, errors.New("its job has no ID")
	case p.State != lease.JobQueued && p.State != lease.JobFailed && p.State != lease.JobCancelled:
		return nil, fmt.Errorf("it is in no state that a job can be in here: %.20q", p.State)
	case p.Posted.IsZero() || p.Tasks < 0 || (p.Key == "") == (p.Session == ""):
		return nil, errors.New("it does not say when it was posted, of how many tasks, and by whom")
	}
	if o := p.Once; o != nil && (lease.CheckKey(o.Key) != nil || o.User == "" || o.Request == "") {
		return nil, errors.New("its idempotency key is damaged")
	}
	p.size = len(data)
	return &p, p.Spec.Validate()
}

func isJobID(id lease.JobID) bool {
	rest, ok := strings.CutPrefix(string(id), "j")
	return ok && len(rest) == 15 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func (p *posting) summary() httpapi.JobSummary {
	s := httpapi.JobSummary{
		ID: p.Job, Name: p.Spec.Name, State: p.State, Reason: p.reason(), Tier: p.Spec.Tier, After: p.Spec.After, Owner: p.Spec.Owner, Waiting: !p.State.Ended(),
		Split: p.Spec.Split, Tasks: httpapi.TaskCounts{Total: p.Tasks}, FramesTotal: len(p.Spec.Frames.Expand()), CreatedAt: p.Posted,
	}
	switch {
	case p.State.Ended():
		s.Tasks.Cancelled, s.EndedAt = p.Tasks, &p.Ended
	case p.Cancel != "":
		s.State, s.Reason = lease.JobCancelled, p.Cancel+": a coordinator may have taken it, and is told as soon as one can be reached"
		s.Tasks.Cancelled, s.EndedAt = p.Tasks, &p.Ended
	default:
		s.Tasks.Queued = p.Tasks
	}
	return s
}

// reason says why the job is where it is.
func (p *posting) reason() string {
	switch {
	case p.State.Ended():
		return p.Reason
	case p.token == "" && p.Session != "":
		return fmt.Sprintf("it waits on this machine for %s to log in again: the session with which it was posted is over, or this machine's vizpeer was restarted; any command here then submits it", p.Spec.Owner)
	case p.token == "":
		return fmt.Sprintf("it waits on this machine, whose vizpeer was restarted, for the API key with which %s posted it: any command here with that key submits it", p.Spec.Owner)
	case p.why != "":
		return "it waits on this machine, which submits it by itself as soon as it can: " + p.why
	}
	return "it waits on this machine, which submits it by itself as soon as a coordinator can be reached"
}

// goesWith tells whether a job that was posted with one credential may be submitted with
// another: the same API key or, as sessions are short, any later session of the same
// person, unless the password was changed in between, which ends what began before.
func (p *posting) goesWith(who authz.Principal, view *authz.View) bool {
	switch {
	case who.User != p.Spec.Owner || !who.MaySubmit() || who.MustChange:
		return false
	case p.Key != "":
		return who.Key == p.Key
	}
	person, ok := view.Person(who.User)
	return ok && who.Session != "" && !person.ValidAfter.After(p.Posted)
}

// hopeless says why no credential that comes will do for a job; "" where one may.
func (p *posting) hopeless(v *authz.View) string {
	if v == nil {
		return ""
	}
	person, known := v.Person(p.Spec.Owner)
	switch {
	case known && person.Disabled:
		return fmt.Sprintf("it was refused: the account of %s is disabled", p.Spec.Owner)
	case p.Session != "" && (!known || person.ValidAfter.After(p.Posted)):
		return fmt.Sprintf("it was refused: the password of %s was changed since it was posted: submit it again", p.Spec.Owner)
	}
	if p.Key != "" {
		if _, ok := v.Key(p.Key); !ok {
			return "it was refused: the API key with which it was posted was revoked"
		}
	}
	return ""
}
