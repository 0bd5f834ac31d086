package lease

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Once makes sure that a command which is sent again, because its sender never heard
// what became of it, is not carried out again.
type Once struct {
	User string `json:"user"` // whose key it is: those of others are not the same
	Key  string `json:"key"`  // as the sender chose it
	// Request is a hash of what was asked for: a key stands for one request.
	Request string `json:"request"`
}

// Limits of keys.
const (
	MaxKey    = 64 // bytes of one
	keepKeys  = 24 * time.Hour
	maxKeys   = 1000 // of one user; the oldest are forgotten before their time
	maxOnceID = 256  // bytes of a user's name and of a request's hash
)

// ErrKeyReused is the answer to a key that stands for another request.
var ErrKeyReused = errors.New("the idempotency key was used for another request: take a new one for each")

// Repeated is the answer to a command that was carried out before, under the same key or,
// of a submission, under the same ID: what it made then.
type Repeated struct {
	Job   JobID
	Tasks int // that the job was cut into then
}

func (r *Repeated) Error() string { return fmt.Sprintf("it was done before: job %s", r.Job) }

// CheckKey says what is wrong with a key.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey || strings.ContainsFunc(key, func(r rune) bool { return r < '!' || r > '~' }) {
		return fmt.Errorf("an idempotency key has 1 to %d printable ASCII characters and no spaces", MaxKey)
	}
	return nil
}

// done is a command that was carried out under a key.
type done struct {
	Once
	Job   JobID     `json:"job"`
	Tasks int       `json:"tasks"`
	At    time.Time `json:"at"`
}

// repeats answers nil for a command that is to be carried out, a [Repeated] for one that
// was, and an error for a key that is no good.
func (a *applying) repeats(o *Once) error {
	if o == nil {
		return nil
	}
	if err := CheckKey(o.Key); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if o.User == "" || len(o.User) > maxOnceID || o.Request == "" || len(o.Request) > maxOnceID {
		return fmt.Errorf("%w: an idempotency key is a user's, for a request", ErrInvalid)
	}
	for _, d := range a.once {
		switch {
		case d.User != o.User || d.Key != o.Key || d.expired(a.at):
		case d.Request != o.Request:
			return ErrKeyReused
		default:
			return &Repeated{d.Job, d.Tasks}
		}
	}
	return nil
}

func (d done) expired(at time.Time) bool { return !at.Before(d.At.Add(keepKeys)) }

// remember notes that the command with this key was carried out, and forgets what is
// too old.
func (a *applying) remember(o *Once, j *Job) {
	if o == nil {
		return
	}
	mine := 0
	for _, d := range a.once {
		if d.User == o.User && !d.expired(a.at) {
			mine++
		}
	}
	kept := make([]done, 0, len(a.once)+1) // a snapshot may hold the list as it was
	for _, d := range a.once {
		if d.expired(a.at) {
			continue
		}
		if d.User == o.User && mine >= maxKeys {
			mine--
			continue
		}
		kept = append(kept, d)
	}
	a.once = append(kept, done{*o, j.ID, len(j.Tasks), a.at})
}

// checkOnce refuses what remember could not have made.
func checkOnce(list []done) error {
	if slices.ContainsFunc(list, func(d done) bool {
		return CheckKey(d.Key) != nil || d.User == "" || d.Request == "" || d.Job == "" || d.Tasks < 0
	}) {
		return errors.New("an idempotency key is damaged")
	}
	return nil
}
