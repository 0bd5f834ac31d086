package authz

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Trail is the part of the audit that every coordinator holds in memory: where the
// chain ends, and its last records, until they are signed and on disk. Like the
// roster it is a pure state machine, and not safe for concurrent use.
type Trail struct {
	head   Mark     // the last record
	stored Mark     // the last one that is on disk
	tail   []Record // those after it, in order; the signed ones first
}

// Add makes the next record.
func (t *Trail) Add(at time.Time, d Deed, outcome string) Record {
	if at = canonical(at); at.Year() < 0 || at.Year() > maxYear {
		at = time.Time{} // it could not be stored
	}
	r := Record{Seq: t.head.Seq + 1, At: at, Deed: d.bounded(), Outcome: boundText(outcome, maxDeedName), Prev: t.head.Hash}
	r.Hash = r.sum()
	t.head = r.Mark()
	t.tail = append(t.tail, r)
	return r
}

// Head is the last record of the chain.
func (t *Trail) Head() Mark { return t.head }

// Stored is the last record that is on disk, as [Trail.Store] was told.
func (t *Trail) Stored() Mark { return t.stored }

// Tail lists the records after it. The slice is the caller's.
func (t *Trail) Tail() []Record { return slices.Clone(t.tail) }

// signed counts the records of the tail that are signed.
func (t *Trail) signed() int {
	i := slices.IndexFunc(t.tail, func(r Record) bool { return r.Signature == nil })
	if i < 0 {
		return len(t.tail)
	}
	return i
}

// Unsigned lists the records that nobody has signed yet. The slice is the caller's.
func (t *Trail) Unsigned() []Record { return slices.Clone(t.tail[t.signed():]) }

// Signed lists the records that are signed and not on disk yet. The slice is the
// caller's.
func (t *Trail) Signed() []Record { return slices.Clone(t.tail[:t.signed()]) }

// Seal is a leader's signatures of records, in a row from First on: see
// [Record.Statement].
type Seal struct {
	Signer     PeerID   `json:"signer"`
	First      uint64   `json:"first"`
	Signatures [][]byte `json:"signatures"`
}

// MaxSeal is how many signatures one seal may hold.
const MaxSeal = 1024

// ErrSeal is wrapped by the reasons why a seal is refused.
var ErrSeal = errors.New("the audit cannot be signed so")

// Seal puts signatures to their records. Records that are signed already stay as they
// are; one signature that is wrong refuses all.
func (t *Trail) Seal(s Seal) error {
	next := t.stored.Seq + 1 + uint64(t.signed())
	end := s.First + uint64(len(s.Signatures))
	switch {
	case len(s.Signatures) == 0 || len(s.Signatures) > MaxSeal || s.First == 0:
		return fmt.Errorf("%w: %d signatures from record %d on", ErrSeal, len(s.Signatures), s.First)
	case s.First > next || end > t.head.Seq+1:
		return fmt.Errorf("%w: records %d to %d are not those that wait, %d to %d", ErrSeal, s.First, end-1, next, t.head.Seq)
	case end <= next:
		return nil // another leader was faster
	}
	tail := slices.Clone(t.tail)
	for seq := next; seq < end; seq++ {
		r := &tail[seq-t.stored.Seq-1]
		r.Signer, r.Signature = s.Signer, s.Signatures[seq-s.First]
		if err := r.checkSignature(); err != nil {
			return fmt.Errorf("%w: record %d: %w", ErrSeal, seq, err)
		}
	}
	t.tail = tail
	return nil
}

// Store says that all signed records are on disk: the trail lets go of them.
func (t *Trail) Store() {
	if n := t.signed(); n > 0 {
		t.stored, t.tail = t.tail[n-1].Mark(), slices.Clone(t.tail[n:])
	}
}

// TrailState is a trail as a snapshot holds it.
type TrailState struct {
	Stored Mark     `json:"stored"`
	Tail   []Record `json:"tail,omitempty"`
}

// State is the trail at this moment.
func (t *Trail) State() TrailState { return TrailState{t.stored, t.Tail()} }

// RestoreTrail makes a trail of its state, and refuses what Add and Seal could not
// have made.
func RestoreTrail(s TrailState) (*Trail, error) {
	v := Verifier{At: s.Stored, Unsigned: true}
	signed := true
	for _, r := range s.Tail {
		if err := v.Next(r); err != nil {
			return nil, fmt.Errorf("restoring the audit: %w", err)
		}
		if r.Signature != nil && !signed {
			return nil, fmt.Errorf("restoring the audit: record %d is signed before the one before it", r.Seq)
		}
		signed = r.Signature != nil
	}
	return &Trail{head: v.At, stored: s.Stored, tail: slices.Clone(s.Tail)}, nil
}
