package coord

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
)

// MaxEntry bounds one command in the log, in bytes: no message that asks for one
// is longer.
const MaxEntry = MaxMessage + 64<<10

// The version is written into every entry. A coordinator that meets a higher one
// stops: to skip it would make its queue differ from the others'. Version 1 knew no
// audit; what holds nothing of it is still written so.
const (
	entryVersion      = 2
	entryWithoutAudit = 1
)

// Entry is one entry of the replicated log: a command of the queue or of the roster,
// with what the audit is to say of it where people are behind it; a note for the audit
// alone, of what changes nothing else; or signatures of the audit's records.
type Entry struct {
	Queue  *lease.Command `json:"queue,omitempty"`
	Roster *authz.Command `json:"roster,omitempty"`
	Audit  *authz.Note    `json:"audit,omitempty"`
	Seal   *authz.Seal    `json:"seal,omitempty"`
}

// check tells whether the entry holds what an entry may.
func (e Entry) check() error {
	n := 0
	for _, is := range []bool{e.Queue != nil, e.Roster != nil, e.Seal != nil} {
		if is {
			n++
		}
	}
	if n > 1 || n == 0 && e.Audit == nil || e.Seal != nil && e.Audit != nil {
		return errors.New("it does not hold one command, of the queue or of the roster, or one thing of the audit")
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
	version := entryVersion
	if e.Audit == nil && e.Seal == nil {
		version = entryWithoutAudit
	}
	data, err := json.Marshal(entryJSON{version, e})
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
	if err := json.Unmarshal(data, &doc); err != nil {
		return Entry{}, fmt.Errorf("it cannot be read: %w", err)
	}
	if doc.Version < entryWithoutAudit || doc.Version > entryVersion {
		return Entry{}, fmt.Errorf("its version is %d and this vizpeer knows %d: update vizpeer on this machine", doc.Version, entryVersion)
	}
	return doc.Entry, doc.check()
}
