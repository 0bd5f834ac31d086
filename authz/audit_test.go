package authz

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// notary is a machine with an identity key.
type notary struct {
	id  PeerID
	key ed25519.PrivateKey
}

func newNotary(seed byte) notary {
	key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
	return notary{peerIDOf(key.Public().(ed25519.PublicKey)), key}
}

// seal signs all that waits.
func (s notary) seal(records []Record) Seal {
	out := Seal{Signer: s.id}
	for i, r := range records {
		if i == 0 {
			out.First = r.Seq
		}
		out.Signatures = append(out.Signatures, ed25519.Sign(s.key, r.Statement()))
	}
	return out
}

func aDeed(i int) Deed {
	return Deed{
		User: []string{"ann", "bob", ""}[i%3], Key: "k", Machine: "m", Address: "192.0.2.7", Action: []string{"submit-job", "cancel-job", "login"}[i/3%3],
		Object: fmt.Sprint("j", i), Detail: "a\u2028b\n", Times: i % 2,
	}
}

// chain is a trail of n signed records, by two leaders, and those records.
func chain(t require.TestingT, n int) (*Trail, []Record) {
	var trail Trail
	var out []Record
	for i := range n {
		trail.Add(time.Date(2026, 3, 1, 12, 0, 0, i, time.UTC), aDeed(i), []string{OutcomeOK, "forbidden"}[i%2])
		if i%3 == 1 || i == n-1 {
			require.NoError(t, trail.Seal(newNotary(byte(i%2)).seal(trail.Unsigned())))
			out = append(out, trail.Signed()...)
			trail.Store()
		}
	}
	return &trail, out
}

func verify(records []Record, head Mark) error {
	var v Verifier
	for _, r := range records {
		if err := v.Next(r); err != nil {
			return err
		}
	}
	return v.End(head)
}

// What was recorded holds, also after it was written down and read back.
func TestAuditHolds(t *testing.T) {
	trail, records := chain(t, 20)
	require.NoError(t, verify(records, trail.Head()))
	text, err := json.Marshal(records)
	require.NoError(t, err)
	var read []Record
	require.NoError(t, json.Unmarshal(text, &read))
	require.NoError(t, verify(read, trail.Head()))
	require.NoError(t, verify(nil, Mark{}))
	require.Equal(t, "a�b�", records[0].Detail, "what a terminal would act on is not kept")
}

// Whatever is done to a part of an audit is found, and the first record that shows it
// is named.
func TestAuditFindsWhatWasDone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 30).Draw(t, "records")
		trail, whole := chain(t, n)
		records := slices.Clone(whole)
		at := rapid.IntRange(0, n-1).Draw(t, "at")
		rehash := rapid.Bool().Draw(t, "rehash") // whoever alters knows how hashes are made
		want := uint64(at + 1)
		switch what := rapid.SampledFrom([]string{"alter", "delete", "swap", "truncate", "insert", "repeat", "append", "unsign", "resign", "other"}).Draw(t, "what"); what {
		case "alter":
			r := &records[at]
			switch rapid.IntRange(0, 10).Draw(t, "field") {
			case 0:
				r.User += "x"
			case 1:
				r.Key = ""
			case 2:
				r.Machine = "other"
			case 3:
				r.Address = ""
			case 4:
				r.Action, r.Object = r.Action+r.Object, ""
			case 5:
				r.Object += "x"
			case 6:
				r.Detail = ""
			case 7:
				r.Times++
			case 8:
				r.Outcome = "limit"
			case 9:
				r.At = r.At.Add(time.Nanosecond)
			case 10:
				r.Prev[0]++
			}
			if rehash {
				r.Hash = r.sum()
			}
		case "delete":
			records = slices.Delete(records, at, at+1)
		case "swap":
			with := rapid.IntRange(0, n-2).Draw(t, "with")
			if with >= at {
				with++
			}
			records[at], records[with] = records[with], records[at]
			want = uint64(min(at, with) + 1)
		case "truncate":
			records = records[:at]
		case "insert":
			forged := Record{Seq: want, At: records[at].At, Deed: aDeed(7), Outcome: OutcomeOK, Prev: records[at].Prev}
			forged.Hash = forged.sum()
			records = slices.Insert(records, at, forged)
		case "repeat":
			records = slices.Insert(records, at, records[at])
			want++
		case "append":
			forged := Record{Seq: uint64(n + 1), At: records[at].At, Deed: aDeed(7), Outcome: OutcomeOK, Prev: trail.Head().Hash}
			forged.Hash = forged.sum()
			s := newNotary(9)
			forged.Signer, forged.Signature = s.id, ed25519.Sign(s.key, forged.Statement())
			records = append(records, forged)
			want = uint64(n + 1)
		case "unsign":
			records[at].Signer, records[at].Signature = "", nil
		case "resign":
			records[at].Signer = newNotary(9).id
		case "other": // a whole chain of somebody else's, as good as the real one
			_, records = chain(t, n)
			records[n-1].Object = "another"
			records[n-1].Hash = records[n-1].sum()
			s := newNotary(9)
			records[n-1].Signer, records[n-1].Signature = s.id, ed25519.Sign(s.key, records[n-1].Statement())
			want = uint64(n)
		}
		var fault *Fault
		err := verify(records, trail.Head())
		require.ErrorAs(t, err, &fault)
		require.Equal(t, want, fault.Seq, err)
		require.NotEmpty(t, fault.Why)
	})
}

// A trail is the same on every machine, wherever a snapshot was taken, and takes only
// signatures that are good.
// Two coordinators of different releases, with different tables of Unicode, make the same
// record of the same entry.
func TestRecordsAskNoTable(t *testing.T) {
	var tr Trail
	r := tr.Add(time.Unix(1, 0), Deed{Action: "join", Detail: "a\u0378b\U0003fffd \x1b[31m\u202ee\xff\u200b"}, OutcomeOK)
	require.Equal(t, "a\u0378b\U0003fffd \ufffd[31m\ufffde\ufffd\ufffd", r.Detail, "what no release knows stays as it is")
	text, err := json.Marshal(r)
	require.NoError(t, err)
	var again Record
	require.NoError(t, json.Unmarshal(text, &again))
	require.NoError(t, (&Verifier{Unsigned: true}).Next(again))
}

func TestTrail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		trails := []*Trail{{}, {}}
		disks := [][]Record{nil, nil}
		leader := newNotary(1)
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				for _, tr := range trails {
					tr.Add(time.Unix(int64(i), 0), aDeed(i), OutcomeOK)
				}
			case 2:
				seal := leader.seal(trails[0].Unsigned())
				for _, tr := range trails {
					if err := tr.Seal(seal); len(seal.Signatures) == 0 {
						require.ErrorIs(t, err, ErrSeal)
					} else {
						require.NoError(t, err)
						require.NoError(t, tr.Seal(seal), "again, by a leader that was late")
					}
				}
			case 3:
				who := rapid.IntRange(0, 1).Draw(t, "who")
				disks[who] = append(disks[who], trails[who].Signed()...)
				trails[who].Store()
			case 4:
				who := rapid.IntRange(0, 1).Draw(t, "who")
				text, err := json.Marshal(trails[who].State())
				require.NoError(t, err)
				var state TrailState
				require.NoError(t, json.Unmarshal(text, &state))
				trails[who], err = RestoreTrail(state)
				require.NoError(t, err)
			}
			require.Equal(t, trails[0].Head(), trails[1].Head())
			require.Len(t, trails[1].Unsigned(), len(trails[0].Unsigned()))
			if len(trails[0].Unsigned()) > 0 {
				bad := newNotary(2).seal(trails[0].Unsigned())
				bad.Signer = leader.id
				require.ErrorIs(t, trails[0].Seal(bad), ErrSeal)
				bad = leader.seal(trails[0].Unsigned())
				bad.First++
				require.ErrorIs(t, trails[0].Seal(bad), ErrSeal)
			}
		}
		for who, tr := range trails {
			v := Verifier{}
			for _, r := range disks[who] {
				require.NoError(t, v.Next(r))
			}
			v.Unsigned = true
			for _, r := range tr.Tail() {
				require.NoError(t, v.Next(r))
			}
			require.NoError(t, v.End(tr.Head()))
		}
	})
}

func TestRestoreTrailRefuses(t *testing.T) {
	var trail Trail
	for i := range 3 {
		trail.Add(time.Unix(1, 0), aDeed(i), OutcomeOK)
	}
	state := trail.State()
	state.Tail[1].User = "eve"
	_, err := RestoreTrail(state)
	var fault *Fault
	require.True(t, errors.As(err, &fault))
	require.EqualValues(t, 2, fault.Seq)
}

func TestPublicKey(t *testing.T) {
	s := newNotary(3)
	key, err := s.id.PublicKey()
	require.NoError(t, err)
	require.Equal(t, s.key.Public(), key)
	for _, bad := range []PeerID{"", "m1", "../x", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", s.id + "1", s.id[:len(s.id)-1]} {
		_, err := bad.PublicKey()
		require.Error(t, err, bad)
	}
}
