package authz

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Record is one line of the farm's audit: a deed, what became of it, and its place in
// the chain. Each record holds the hash of the one before it, so that none can be
// altered, taken out or put in between without changing all that follow; and the
// signature of the coordinator that led, so that nobody else can make a chain.
type Record struct {
	Seq uint64    `json:"seq"` // from 1, without gaps
	At  time.Time `json:"at"`
	Deed
	// Outcome is "ok", or one stable word for why not: those of the API's problems.
	Outcome   string `json:"outcome"`
	Prev      Hash   `json:"prev"` // of the record before; zero for the first
	Hash      Hash   `json:"hash"`
	Signer    PeerID `json:"signer,omitempty"`
	Signature []byte `json:"signature,omitempty"`
}

// OutcomeOK says that what was asked for was done.
const OutcomeOK = "ok"

// Mark names a record and, by its hash, all before it. The zero Mark stands before
// the first.
type Mark struct {
	Seq  uint64 `json:"seq"`
	Hash Hash   `json:"hash"`
}

// Mark is the record's own.
func (r Record) Mark() Mark { return Mark{r.Seq, r.Hash} }

// sum is the hash that the record should have: SHA-256 over all but the hash itself
// and the signature. Every text follows its length, so that no two records read the
// same. A field that a later version adds must be left out where it is empty.
func (r Record) sum() Hash {
	b := []byte("vizpeer audit record 1\n")
	b = binary.BigEndian.AppendUint64(b, r.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(r.At.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(r.At.Nanosecond()))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Times))
	for _, s := range []string{r.User, r.Key, string(r.Machine), r.Address, r.Action, r.Object, r.Detail, r.Outcome} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(append(b, r.Prev[:]...))
}

// Statement is what the leader signs of a record, with the key inside its peer ID. The
// first words keep the signature from being taken for one over anything else.
func (r Record) Statement() []byte {
	return append([]byte("vizpeer audit signature 1\n"), r.Hash[:]...)
}

// checkSignature reports why the record is not signed by who it says.
func (r Record) checkSignature() error {
	if len(r.Signature) == 0 {
		return errors.New("it is not signed")
	}
	key, err := r.Signer.PublicKey()
	if err != nil {
		return fmt.Errorf("its signer cannot be known: %w", err)
	}
	if !ed25519.Verify(key, r.Statement(), r.Signature) {
		return fmt.Errorf("its signature is not the one of %s", r.Signer.Short())
	}
	return nil
}

// Fault is why an audit does not hold, and the first record that shows it.
type Fault struct {
	Seq uint64
	Why string
}

func (f *Fault) Error() string { return fmt.Sprintf("audit record %d: %s", f.Seq, f.Why) }

func fault(seq uint64, format string, args ...any) error {
	return &Fault{seq, fmt.Sprintf(format, args...)}
}

// Verifier checks an audit record by record, in order. The zero Verifier expects the
// whole of a chain from its first record.
type Verifier struct {
	At Mark // the last record that held; set it to begin further on
	// Unsigned takes records that the leader has not signed yet: those at the end of a
	// chain that is in use.
	Unsigned bool
}

// Next checks the record that follows. The error is a [Fault].
func (v *Verifier) Next(r Record) error {
	want := v.At.Seq + 1
	switch {
	case r.Seq > want:
		return fault(want, "it is missing or out of its place: record %d stands where it should be", r.Seq)
	case r.Seq < want:
		return fault(want, "it is out of its place, or a record was put in before it: record %d stands where it should be", r.Seq)
	case r.sum() != r.Hash:
		return fault(r.Seq, "it was altered: its hash is not that of what it says")
	case r.Prev != v.At.Hash:
		return fault(r.Seq, "it does not follow the record before it: one of the two was altered or put in the other's place")
	}
	if !v.Unsigned || len(r.Signature) > 0 {
		if err := r.checkSignature(); err != nil {
			return fault(r.Seq, "%v", err)
		}
	}
	v.At = r.Mark()
	return nil
}

// End checks that nothing is missing behind the last record: head is the last one that
// the farm's coordinators agreed on.
func (v *Verifier) End(head Mark) error {
	switch {
	case v.At.Seq < head.Seq:
		return fault(v.At.Seq+1, "it is missing: the audit was cut off before it, and the farm has %d records", head.Seq)
	case v.At.Seq > head.Seq:
		return fault(head.Seq+1, "it was put in: the farm has %d records", head.Seq)
	case v.At.Hash != head.Hash:
		return fault(head.Seq, "it is not the one that the farm's coordinators agreed on")
	}
	return nil
}
