package coord

import (
	"encoding/json"
	"errors"
	"sync"
	"time"

	"vizpeer/lease"
)

// Event is something that happened on the farm, as people and programs watch it.
type Event struct {
	// ID grows along the log and is the same on every coordinator; it is 0 for
	// what is not in the log, which is not replayed.
	ID uint64
	At time.Time
	lease.Event
	Progress json.RawMessage
	Preview  Preview // the latest picture, of progress; its CID is "" where there is none
}

const (
	hubRing    = 8192 // events that can be replayed
	hubBacklog = 1024 // events that a watcher may fall behind
)

// Hub passes events on to watchers and replays the latest to those who come
// back. Publishing never waits for a watcher.
type Hub struct {
	mu   sync.Mutex
	ring []Event
	subs map[*Watch]struct{}
}

// NewHub returns a hub that nobody watches.
func NewHub() *Hub { return &Hub{subs: make(map[*Watch]struct{})} }

// Watch is one watcher's view of the events.
type Watch struct {
	// C is closed when the watch ends; Err then tells why.
	C chan Event
	// Gap tells that events were missed before the first one on C: read the
	// state again.
	Gap bool

	hub *Hub
	err error
}

// Reasons for which a watch ends before it is stopped.
var (
	ErrSlow  = errors.New("the watcher fell behind")
	ErrMoved = errors.New("this machine does not lead the queue any more")
)

// Err is why the watch ended, once C is closed; nil where it was stopped.
func (w *Watch) Err() error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.err
}

// Watch replays what came after the event with that ID, then follows. An ID of 0
// replays nothing. The caller stops it.
func (h *Hub) Watch(after uint64) *Watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	var replay []Event
	gap := false
	if after > 0 {
		gap = len(h.ring) == 0 || h.ring[0].ID > after
		for _, e := range h.ring {
			if e.ID > after {
				replay = append(replay, e)
			}
		}
	}
	w := &Watch{C: make(chan Event, len(replay)+hubBacklog), Gap: gap, hub: h}
	for _, e := range replay {
		w.C <- e
	}
	h.subs[w] = struct{}{}
	return w
}

// Stop ends the watch; C is closed.
func (w *Watch) Stop() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.drop(w, nil)
}

// end ends every watch.
func (h *Hub) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.subs {
		h.drop(w, why)
	}
}

func (h *Hub) drop(w *Watch, why error) {
	if _, ok := h.subs[w]; ok {
		delete(h.subs, w)
		w.err = why
		close(w.C)
	}
}

func (h *Hub) publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.ID != 0 {
		// Replays of the log after a restart come here again; the ring stays in
		// order because they come in order.
		if n := len(h.ring); n > 0 && h.ring[n-1].ID >= e.ID {
			return
		}
		if len(h.ring) == hubRing {
			h.ring = append(h.ring[:0], h.ring[hubRing/4:]...)
		}
		h.ring = append(h.ring, e)
	}
	for w := range h.subs {
		select {
		case w.C <- e:
		default:
			h.drop(w, ErrSlow)
		}
	}
}

// eventID numbers the n-th event of a log entry.
func eventID(index uint64, n int) uint64 { return index<<20 | uint64(n)&(1<<20-1) }
