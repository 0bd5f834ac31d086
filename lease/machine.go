package lease

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vizpeer/authz"
)

// Machine is what the queue remembers of a machine beside its attempts.
type Machine struct {
	Finished int    // tasks that it rendered in the farm's life
	Store    string // ID of the content store that it holds what it holds in; "" where it never said
	// Failed lists the jobs that it was kept off from since it last rendered a task,
	// the first of them first.
	Failed []JobID
	// Drained is why it is granted nothing more, in words; "" where it is not drained.
	Drained string
}

// Drain begins or ends a drain of a machine, at an admin's wish: a drained machine
// finishes its attempts and is granted nothing more. Where the drain is as wanted
// already, nothing changes.
type Drain struct {
	Peer authz.PeerID `json:"peer"`
	On   bool         `json:"on,omitempty"`
	// Reason is why, in words, for people; it counts where On is set.
	Reason string `json:"reason,omitempty"`
}

// ErrDrained: a machine that is drained is granted nothing.
var ErrDrained = errors.New("the machine is drained")

// maxFailed is how many jobs in a row a machine may fail before it is drained:
// it would fail, one after the other, all that wait.
const maxFailed = 3

// Machine is what is remembered of p. What it holds is for reading only, and only
// while the state is not changed.
func (s *State) Machine(p authz.PeerID) Machine {
	if m := s.machines[p]; m != nil {
		return *m
	}
	return Machine{}
}

// Machines lists, by ID, the machines of which something is remembered.
func (s *State) Machines() []authz.PeerID { return slices.Sorted(maps.Keys(s.machines)) }

// machine is p's record, which is made where there is none.
func (s *State) machine(p authz.PeerID) *Machine {
	m := s.machines[p]
	if m == nil {
		m = &Machine{}
		s.machines[p] = m
	}
	return m
}

func (a *applying) drain(c Drain) error {
	switch was := a.Machine(c.Peer).Drained; {
	case c.Peer == "":
		return fmt.Errorf("%w: a drain names a machine", ErrInvalid)
	case c.On == (was != ""):
	case c.On:
		a.drained(c.Peer, cut(cmp.Or(c.Reason, "an admin wants it so"), maxReason))
	default:
		m := a.machine(c.Peer)
		m.Drained, m.Failed = "", nil
		a.tell(Event{Type: PeerUndrained, Task: -1, Peer: c.Peer})
	}
	return nil
}

func (a *applying) drained(p authz.PeerID, why string) {
	a.machine(p).Drained = why
	a.tell(Event{Type: PeerDrained, Task: -1, Peer: p, State: "draining", Reason: why})
}

// faulted notes that an attempt of p at j failed, which may have been the one that
// keeps p off the job. A job at which another machine failed too proves nothing
// against p: it may be the job's own fault. While p is drained nothing is noted.
func (a *applying) faulted(j *Job, p authz.PeerID, reason string) {
	switch m := a.Machine(p); {
	case j.Faults[p] != MaxTries || len(j.Faults) > 1:
		return
	case m.Drained != "" || slices.Contains(m.Failed, j.ID):
		return
	}
	m := a.machine(p)
	m.Failed = append(m.Failed, j.ID)
	if len(m.Failed) < maxFailed {
		return
	}
	names := make([]string, len(m.Failed))
	for i, id := range m.Failed {
		names[i] = string(id)
	}
	a.drained(p, cut(fmt.Sprintf("it failed %d jobs in a row: %s; the last time because: %s", len(names), strings.Join(names, ", "), reason), maxReason))
}

// performed notes that p rendered a task.
func (a *applying) performed(p authz.PeerID) {
	m := a.machine(p)
	m.Finished++
	m.Failed = nil
}

// machinesJSON is the stored form of what is remembered of machines.
type machinesJSON struct {
	Finished map[authz.PeerID]int     `json:"finished"`
	Stores   map[authz.PeerID]string  `json:"stores,omitempty"`
	Failed   map[authz.PeerID][]JobID `json:"failed,omitempty"`
	Drained  map[authz.PeerID]string  `json:"drained,omitempty"`
}

func (s *State) machinesDocument() machinesJSON {
	doc := machinesJSON{
		Finished: make(map[authz.PeerID]int), Stores: make(map[authz.PeerID]string),
		Failed: make(map[authz.PeerID][]JobID), Drained: make(map[authz.PeerID]string),
	}
	for p, m := range s.machines {
		put(doc.Finished, p, m.Finished, m.Finished != 0)
		put(doc.Stores, p, m.Store, m.Store != "")
		put(doc.Failed, p, m.Failed, len(m.Failed) > 0)
		put(doc.Drained, p, m.Drained, m.Drained != "")
	}
	return doc
}

func put[T any](to map[authz.PeerID]T, p authz.PeerID, value T, is bool) {
	if is {
		to[p] = value
	}
}

func (s *State) loadMachines(doc machinesJSON) {
	for p, n := range doc.Finished {
		s.machine(p).Finished = n
	}
	for p, id := range doc.Stores {
		s.machine(p).Store = id
	}
	for p, jobs := range doc.Failed {
		s.machine(p).Failed = jobs
	}
	for p, why := range doc.Drained {
		s.machine(p).Drained = why
	}
}
