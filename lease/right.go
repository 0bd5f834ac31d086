package lease

import (
	"slices"
	"strconv"
	"strings"

	"vizpeer/authz"
)

// Scope says by way of what somebody asks for content: the project of a job, one
// of its frames with what is beside it, its thumbnail and pieces, or the log of one of its tasks. It makes the question of who may
// have the content cheap to answer. It is the asker's own word: it grants
// nothing, and one that names other content than the question only leads nowhere.
type Scope struct {
	Job   JobID
	Of    Kind
	Index int32 // the frame's number, or the task's place
}

// Kind tells what of a job a scope names.
type Kind string

// The kinds of content.
const (
	OfProject Kind = ""
	OfFrame   Kind = "frame"
	OfLog     Kind = "log"
)

// ProjectOf, FrameOf and LogOf are the scopes of a job's content.
func ProjectOf(j JobID) Scope            { return Scope{Job: j} }
func FrameOf(j JobID, frame int32) Scope { return Scope{Job: j, Of: OfFrame, Index: frame} }
func LogOf(t TaskID) Scope               { return Scope{Job: t.Job, Of: OfLog, Index: t.Index} }

// String writes "JOB", "JOB/FRAME" or "JOB/log/TASK"; "" for the zero Scope.
func (s Scope) String() string {
	switch s.Of {
	case OfFrame:
		return string(s.Job) + "/" + strconv.Itoa(int(s.Index))
	case OfLog:
		return string(s.Job) + "/log/" + strconv.Itoa(int(s.Index))
	}
	return string(s.Job)
}

// MaxScope bounds the text of a scope, in bytes.
const MaxScope = 64

// ParseScope reads what [Scope.String] writes. It answers false for any other
// text, such as a hostile peer's.
func ParseScope(text string) (Scope, bool) {
	if len(text) > MaxScope {
		return Scope{}, false
	}
	job, rest, more := strings.Cut(text, "/")
	s := Scope{Job: JobID(job)}
	if !more {
		return s, true
	}
	s.Of = OfFrame
	if index, ok := strings.CutPrefix(rest, "log/"); ok {
		s.Of, rest = OfLog, index
	}
	n, err := strconv.ParseInt(rest, 10, 32)
	s.Index = int32(n)
	return s, err == nil && job != "" && s.String() == text
}

// MaySee tells whether machine m has a right to what is rendered of a job while it is.
func (s *State) MaySee(m authz.Member, id JobID) bool {
	j, ok := s.jobs[id]
	return ok && m.ID != "" && (m.Coordinator || m.ID == j.Spec.Submitter || m.ID == j.Spec.Output.Peer || m.Principal().MaySee(j.Spec.Owner))
}

// MayHave tells whether machine m has a right to all content below root by what
// the queue knows: it renders the job, submitted it, is its owner's, or was found
// to hold the project. Who was asked to keep content, or to fetch it ahead, is in
// the leader's memory and not here. A frame or a log gives no right to the machine
// that reported it: it has it, and could have named anything. Whoever is not named
// by the scope's job has none. It costs no more with many jobs or tasks.
func (s *State) MayHave(m authz.Member, root string, by Scope) bool {
	if m.ID == "" || root == "" {
		return false
	}
	j, ok := s.jobs[by.Job]
	if !ok || !j.has(root, by) {
		return false
	}
	switch {
	case m.Coordinator: // it holds the queue, and keeps what is in it
		return true
	case m.ID == j.Spec.Submitter || m.Principal().MaySee(j.Spec.Owner):
		return true
	}
	switch by.Of {
	case OfFrame:
		if m.ID == j.Spec.Output.Peer {
			return true
		}
		// Whoever renders the job may be to merge it.
		at, _ := j.Place(by.Index)
		return j.Renders(m.ID) && j.isPiece(at, root) || j.makesMovie(m.ID)
	case OfLog:
		return false
	}
	return j.Renders(m.ID) || !j.State.Ended() && slices.Contains(j.Holders, m.ID)
}

func (j *Job) isPiece(place int, root string) bool {
	_, is := j.Piece(place, root)
	return is
}

// has tells whether root is the content that the scope names.
func (j *Job) has(root string, by Scope) bool {
	switch by.Of {
	case OfProject:
		return root == j.Spec.Project
	case OfFrame:
		at, ok := j.Place(by.Index)
		if !ok {
			return false
		}
		if f := j.Frames[at]; f != nil && (f.CID == root || f.Extra == root || f.Thumb == root) {
			return true
		}
		return j.isPiece(at, root)
	case OfLog:
		return by.Index >= 0 && int(by.Index) < len(j.Tasks) &&
			slices.ContainsFunc(j.Tasks[by.Index].Attempts, func(a Attempt) bool { return a.Log == root })
	}
	return false
}
