package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"

	"vizpeer/authz"
)

// snapshot is the stored form of a State. What can be derived is not in it.
type snapshot struct {
	Version int    `json:"version"`
	Seq     uint64 `json:"seq"`
	Jobs    []*Job `json:"jobs"` // in log order
	// Finished counts the tasks that each machine has rendered.
	Finished map[authz.PeerID]int `json:"finished"`
	// Stores names the content store of each machine that ever said so.
	Stores map[authz.PeerID]string `json:"stores,omitempty"`
}

const snapshotVersion = 1

// Snapshot writes the whole queue. Equal states give equal bytes.
func (s *State) Snapshot(w io.Writer) error {
	return json.NewEncoder(w).Encode(snapshot{Version: snapshotVersion, Seq: s.seq, Jobs: s.list, Finished: s.finished, Stores: s.stores})
}

// Restore reads what [State.Snapshot] wrote.
func Restore(r io.Reader) (*State, error) {
	var snap snapshot
	if err := json.NewDecoder(r).Decode(&snap); err != nil {
		return nil, fmt.Errorf("read the queue's snapshot: %w", err)
	}
	if snap.Version != snapshotVersion {
		return nil, fmt.Errorf("the queue's snapshot has version %d, this program reads %d: start a newer vizpeer", snap.Version, snapshotVersion)
	}
	s := NewState()
	s.seq, s.list = snap.Seq, snap.Jobs
	maps.Copy(s.finished, snap.Finished)
	maps.Copy(s.stores, snap.Stores)
	for _, j := range s.list {
		if err := j.check(); err != nil {
			return nil, fmt.Errorf("the queue's snapshot is damaged: %w", err)
		}
		if s.jobs[j.ID] != nil {
			return nil, fmt.Errorf("the queue's snapshot is damaged: job %s stands in it twice", j.ID)
		}
		j.derive()
		s.jobs[j.ID] = j
		if !j.State.Ended() {
			s.enlist(j)
		} else {
			j.queued = nil
		}
	}
	return s, nil
}

// check refuses what Apply could not have made: a snapshot may come from another
// machine.
func (j *Job) check() error {
	if j == nil || j.ID == "" {
		return errors.New("a job is missing")
	}
	if err := j.Spec.Validate(); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	if j.Tier.Rank() < 0 {
		return fmt.Errorf("job %s: unknown tier %q", j.ID, j.Tier)
	}
	frames, chunk := len(j.Spec.Frames.Expand()), j.Spec.Chunk
	if chunk < 1 || len(j.Frames) != frames || len(j.Tasks) != (frames-1)/chunk+1 {
		return fmt.Errorf("job %s: %d frames in %d tasks do not fit its frame list", j.ID, len(j.Frames), len(j.Tasks))
	}
	for i := range j.Tasks {
		t := &j.Tasks[i]
		if int(t.Lo) != i*chunk || int(t.Hi) != min((i+1)*chunk, frames) {
			return fmt.Errorf("job %s: task %d has other frames than its own", j.ID, i)
		}
		switch t.State {
		case TaskQueued, TaskFailed, TaskCancelled:
		case TaskLeased, TaskRendered, TaskDone:
			if len(t.Attempts) == 0 {
				return fmt.Errorf("job %s: task %d is %s without an attempt", j.ID, i, t.State)
			}
		default:
			return fmt.Errorf("job %s: task %d has the state %q", j.ID, i, t.State)
		}
	}
	return nil
}
