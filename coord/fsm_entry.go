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

// entryVersion is written into every entry. A coordinator that meets a higher
// one stops: to skip it would make its queue differ from the others'.
const entryVersion = 1

// Entry is one command of the replicated log: exactly one of its pointers is
// set.
type Entry struct {
	Queue  *lease.Command `json:"queue,omitempty"`
	Roster *authz.Command `json:"roster,omitempty"`
}

// Applied is what a command did, as [Log.Apply] answers it and as the feed of
// [Log.Subscribe] tells it, in the order of Index.
type Applied struct {
	Index  uint64    // place in the log; it grows, with gaps
	At     time.Time // the command's own time
	Queue  []lease.Event
	Roster []authz.Event
	// Restored tells subscribers that a snapshot replaced the whole state up to
	// Index: what they hold of it must be read anew.
	Restored bool
}

type entryJSON struct {
	Version int `json:"v"`
	Entry
}

func (e Entry) encode() ([]byte, error) {
	if (e.Queue == nil) == (e.Roster == nil) {
		return nil, errors.New("an entry of the log holds one command, of the queue or of the roster")
	}
	data, err := json.Marshal(entryJSON{entryVersion, e})
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
	if doc.Version != entryVersion {
		return Entry{}, fmt.Errorf("its version is %d and this vizpeer knows %d: update vizpeer on this machine", doc.Version, entryVersion)
	}
	if (doc.Queue == nil) == (doc.Roster == nil) {
		return Entry{}, errors.New("it does not hold one command")
	}
	return doc.Entry, nil
}
