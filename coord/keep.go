package coord

import (
	"hash/fnv"
	"math"
	"math/bits"
	"slices"

	"vizpeer/authz"
	"vizpeer/lease"
)

// keep asks machines to hold the projects of some jobs, the some frames,
// and all frames of jobs that have just ended.
func (l *leader) keep(projects []lease.JobID, frames []frameID, ended []lease.JobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Read(func(s *lease.State, r *authz.Roster) {
		k := l.keeping(r)
		for _, id := range projects {
			if j, ok := s.Job(id); ok {
				k.project(j)
			}
		}
		for _, id := range frames {
			if j, ok := s.Job(id.job); ok {
				if at, ok := j.Place(id.frame); ok {
					k.frames(j, j.Frames[at:at+1])
					k.pieces(j, at, false)
				}
			}
		}
		for _, id := range ended {
			if j, ok := s.Job(id); ok {
				k.frames(j, j.Frames)
				for at := range j.Pieces {
					k.pieces(j, at, true)
				}
			}
		}
	})
}

// keeping decides who keeps what. Both locks are held while it is in use.
type keeping struct {
	*leader
	roster       *authz.Roster
	coordinators []authz.PeerID
	candidates   []*session // who may be asked to keep what is not their own
}

// keepFree is what keeping others' frames leaves free of a machine's disk, in
// bytes.
const keepFree = 1 << 30

// backlog is how many orders to keep may wait for one machine before no more are
// made for jobs that have ended: what it has done makes room for more.
const backlog = 4 * keepWindow

// keeping is for one look at the state. Both locks are held.
func (l *leader) keeping(r *authz.Roster) keeping {
	k := keeping{leader: l, roster: r, coordinators: r.Coordinators()}
	for _, s := range l.sessions {
		if s.can.FreeDisk >= keepFree {
			k.candidates = append(k.candidates, s)
		}
	}
	return k
}

// frames asks for frames of one job to be held.
func (k keeping) frames(j *lease.Job, frames []*lease.Frame) {
	for _, f := range frames {
		if f != nil && !k.frame(j, f) && j.State.Ended() {
			k.plan.scarce = true
		}
	}
}

// frame asks for a frame to be held, and written by the machine that the job's
// output is for. It tells whether as many machines as the job wants hold it or
// were asked to.
func (k keeping) frame(j *lease.Job, f *lease.Frame) bool {
	order := Keep{Job: j.ID, Frame: f.Result.Frame, CID: f.CID, Name: f.Name, Size: f.Size, Extra: f.Extra, ExtraFiles: f.ExtraFiles, ExtraSize: f.ExtraSize}
	writer := j.Spec.Output.Peer
	if j.Spec.Output.Dir == "" || f.Delivered {
		writer = ""
	}
	chosen, enough := k.keepers(j, f.Holders, f.CID, f.Size+f.ExtraSize)
	if j.State.Ended() && !slices.ContainsFunc(f.Holders, func(p authz.PeerID) bool { return k.sessions[p] != nil }) {
		chosen, enough = nil, false // nobody is there to get it from
	}
	for _, p := range chosen {
		if p != writer { // it keeps what it writes
			k.ask(p, order, f.Holders)
		}
	}
	if writer != "" {
		order.Dir = j.Spec.Output.Dir
		k.ask(writer, order, f.Holders)
	}
	return enough
}

// pieces asks for the pieces of a frame to be held: what a machine rendered of it must
// not go with the machine, and more samples may be asked for later. all looks at those
// too that enough machines held before.
func (k keeping) pieces(j *lease.Job, place int, all bool) {
	for _, p := range j.PiecesOf(int32(place)) {
		if p.Kept && !all {
			continue
		}
		chosen, _ := k.keepers(j, p.Holders, p.CID, p.Size)
		for _, keeper := range chosen {
			k.ask(keeper, Keep{Job: j.ID, Frame: j.Numbers()[place], CID: p.CID, Size: p.Size, Piece: true}, p.Holders)
		}
	}
}

// project asks for an open job's project to be held, so that the submitter may be
// switched off.
func (k keeping) project(j *lease.Job) {
	if j.State.Ended() {
		return
	}
	// The submitter's has it, and keeps it as long as the job is open.
	chosen, _ := k.keepers(j, j.Holders, j.Spec.Project, j.Spec.Needs.Store)
	for _, p := range append(chosen, j.Spec.Submitter) {
		k.ask(p, Keep{Job: j.ID, Project: true, CID: j.Spec.Project}, j.Holders)
	}
}

// keepers chooses who should hold something of a job that holders hold already:
// while the job is open the submitter's machine and the coordinators, and as many
// others as its replicas need; once it has ended only as many as those need. A
// holder that is gone counts no more. Only machines with an open stream can. It
// tells whether that is enough.
func (k keeping) keepers(j *lease.Job, holders []authz.PeerID, cid string, size int64) (chosen []authz.PeerID, enough bool) {
	reach := 0
	for _, p := range holders {
		if k.counts(p) {
			reach++
		}
	}
	ended := j.State.Ended()
	add := func(p authz.PeerID) {
		s := k.sessions[p]
		if s == nil || slices.Contains(holders, p) || slices.Contains(chosen, p) {
			return
		}
		if ended && s.keeping >= backlog {
			k.plan.busy = true
			return
		}
		chosen = append(chosen, p)
		if p != k.trouble[j.ID].Peer { // it tries, but nothing may wait for it
			reach++
		}
	}
	for _, p := range append([]authz.PeerID{j.Spec.Submitter}, k.coordinators...) {
		if !ended || reach < j.Spec.Replicas {
			add(p)
		}
	}
	for seed := hash(cid); reach < j.Spec.Replicas; {
		p := k.best(seed, size, func(p authz.PeerID) bool { return slices.Contains(holders, p) || slices.Contains(chosen, p) })
		if p == "" {
			break
		}
		add(p)
	}
	return chosen, reach >= j.Spec.Replicas
}

// best picks a machine that has room for some content and is not among those
// taken; "" where there is none. Which one differs from content to content, so that
// they share the load, and stays the same when others come and go, so that nobody
// is asked in vain.
func (k keeping) best(seed uint64, size int64, taken func(authz.PeerID) bool) (best authz.PeerID) {
	lowest := uint64(math.MaxUint64)
	for _, c := range k.candidates {
		rank := mix(c.seed, seed)
		switch {
		case rank > lowest || c.can.FreeDisk < size+keepFree || c.can.Room != nil && *c.can.Room < size || taken(c.peer):
		case c.keeping >= backlog:
			k.plan.busy = true
		default:
			best, lowest = c.peer, rank
		}
	}
	return best
}

// hash is a number that a text has and that looks random.
func hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return h.Sum64()
}

// mix is a number that two others have together and that looks random.
func mix(a, b uint64) uint64 {
	x := (a ^ bits.RotateLeft64(b, 32)) * 0x9e3779b97f4a7c15
	return (x ^ x>>32) * 0xd6e8feb86659fd93
}

// counts tells whether what p holds counts: not where it is no member any more,
// or has been away for too long.
func (k keeping) counts(p authz.PeerID) bool {
	_, member := k.roster.Member(p)
	return member && !k.gone[p]
}

// ask sends an order to keep, once in the life of a stream. l.mu is held.
func (l *leader) ask(p authz.PeerID, k Keep, from []authz.PeerID) {
	s := l.sessions[p]
	if s == nil {
		return
	}
	if _, asked := s.asked[k.ID()]; asked {
		return
	}
	s.asked[k.ID()] = true
	k.From = l.addrs(from, p)
	if s.keeping++; s.keeping > keepWindow {
		s.later = append(s.later, k)
		return
	}
	s.send(Down{Keep: &k})
}

// unask forgets that a member was asked to keep a frame, and tells whether it
// was. l.mu is held.
func (l *leader) unask(s *session, j lease.JobID, frame int32, of *lease.Result) (was bool) {
	for _, write := range []bool{false, true} {
		id := KeepID{Job: j, Frame: frame, CID: of.CID, Extra: of.Extra, Write: write}
		if _, asked := s.asked[id]; asked {
			l.answered(s, id)
			delete(s.asked, id)
			was = true
		}
	}
	return was
}

// unaskProject is the same for a job's project. l.mu is held.
func (l *leader) unaskProject(s *session, id lease.JobID) {
	l.c.Read(func(q *lease.State, _ *authz.Roster) {
		if j, ok := q.Job(id); ok {
			k := KeepID{Job: id, CID: j.Spec.Project, Project: true}
			l.answered(s, k)
			delete(s.asked, k)
		}
	})
}

// answered notes that an order to keep was carried out, which makes room for the
// next. l.mu is held.
func (l *leader) answered(s *session, id KeepID) {
	if !s.asked[id] {
		return
	}
	s.asked[id] = false
	if s.keeping--; s.keeping == backlog/2 && l.plan.busy {
		l.plan.again, l.plan.ended, l.plan.busy = true, true, false
	}
	if len(s.later) > 0 {
		next := s.later[0]
		s.later = s.later[1:]
		s.send(Down{Keep: &next})
	}
}
