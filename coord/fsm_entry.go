package coord

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vizpeer/authz"
	"vizpeer/authz/level"
	"vizpeer/lease"
)

// MaxEntry bounds one command in the log, in bytes: no message that asks for one
// is longer.
const MaxEntry = MaxMessage + 64<<10

// Entry is one entry of the replicated log: a command of the queue or of the roster, or
// the farm's new level, with what the audit is to say of it where people are behind it; a
// note for the audit alone, of what changes nothing else; or signatures of the audit's
// records.
//
// Its version is the lowest level that knows all of it. A coordinator that meets a higher
// one than it knows, or a field that it does not, stops: to skip it would make its queue
// differ from the others'. See package level for how to add one.
type Entry struct {
	Queue  *lease.Command `json:"queue,omitempty"`
	Roster *authz.Command `json:"roster,omitempty"`
	Audit  *authz.Note    `json:"audit,omitempty" since:"2"`
	Seal   *authz.Seal    `json:"seal,omitempty" since:"2"`
	Raise  *Raise         `json:"raise,omitempty" since:"3"`
}

// Raise lets the log hold what a level knows, from here on and for good. The leader
// proposes it once all who hold the log know that level.
type Raise struct {
	At    time.Time `json:"at"`
	Level int       `json:"level"`
}

// level is the lowest that knows the entry.
func (e Entry) level() int {
	if e.Raise != nil {
		return max(e.Raise.Level, level.Of(&e))
	}
	return level.Of(&e)
}

// check tells whether the entry holds what an entry may.
func (e Entry) check() error {
	n := 0
	for _, is := range []bool{e.Queue != nil, e.Roster != nil, e.Seal != nil, e.Raise != nil} {
		if is {
			n++
		}
	}
	if n > 1 || n == 0 && e.Audit == nil || (e.Seal != nil || e.Raise != nil) && e.Audit != nil {
		return errors.New("it does not hold one command, of the queue or of the roster, one level, or one thing of the audit")
	}
	return nil
}

// Applied is what a command did, as [Log.Apply] answers it and as the feed of
// [Log.Subscribe] tells it, in the order of Index.
type Applied struct {
	Index  uint64    // place in the log; it grows, with gaps
	At     time.Time // the command's own time
	Queue  []lease.Event
	Roster []authz.Event
	// Audited tells that the audit has a record more. Of a command that was refused
	// it is all there is to tell.
	Audited bool
	// Level is the farm's, where the entry raised it.
	Level int
	// Restored tells subscribers that a snapshot replaced the whole state up to
	// Index: what they hold of it must be read anew.
	Restored bool
}

type entryJSON struct {
	Version int `json:"v"`
	Entry
}

func (e Entry) encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("an entry cannot go into the log: %w", err)
	}
	data, err := json.Marshal(entryJSON{e.level(), e})
	if err != nil {
		return nil, fmt.Errorf("encoding a command: %w", err)
	}
	if len(data) > MaxEntry {
		return nil, fmt.Errorf("a command of %d bytes is more than the %d that the log takes", len(data), MaxEntry)
	}
	return data, nil
}

func decodeEntry(data []byte) (Entry, error) {
	var doc entryJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields() // of a version that it should not have, too
	if err := d.Decode(&doc); err != nil {
		var its struct {
			Version int `json:"v"`
		}
		if json.Unmarshal(data, &its) == nil && its.Version > level.Known {
			return Entry{}, tooNew("its version", its.Version)
		}
		return Entry{}, fmt.Errorf("it cannot be read, or holds what this vizpeer does not know: %w: update vizpeer on this machine", err)
	}
	if d.InputOffset() != int64(len(data)) {
		return Entry{}, errors.New("it cannot be read: it goes on after its end")
	}
	if doc.Version < level.Oldest || doc.Version > level.Known {
		return Entry{}, tooNew("its version", doc.Version)
	}
	return doc.Entry, doc.check()
}

// errTooNew is wrapped by what is wrong with something that a later version wrote.
var errTooNew = errors.New("update vizpeer on this machine")

func tooNew(what string, is int) error {
	return fmt.Errorf("%s is %d and this vizpeer knows %d: %w", what, is, level.Known, errTooNew)
}
