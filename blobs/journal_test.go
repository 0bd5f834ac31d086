package blobs

import (
	"crypto/sha256"
	"os"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"

	"vizpeer/blobs/pack"
)

// What is written when a process is killed is found again, unless a power cut has
// damaged it.
func TestJournal(t *testing.T) {
	for name, damaged := range map[string]bool{"killed": false, "damaged": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			written := map[int][]byte{} // the journal, as it was before the first sync
			s, err := Open(dir, Config{packs: pack.Config{Before: func(op pack.Op) error {
				if op.Kind != "sync" {
					return nil
				}
				for i := range 2 {
					data, err := os.ReadFile(journalPath(dir, i))
					require.NoError(t, err)
					written[i] = append(written[i], data...)
				}
				return errPulled
			}}})
			require.NoError(t, err)
			in := s.NewIntake(nil)
			var bs []Block
			for i := range 60 { // of one batch: it is not written before the flush
				data := noise(byte(i), 30_000)
				bs = append(bs, Block{CID: digest(sha256.Sum256(data)).cid(cid.Raw), Data: data})
			}
			_, err = in.Add(bs...)
			require.NoError(t, err)
			require.ErrorIs(t, in.Flush(), errPulled)
			in.Close()
			require.NoError(t, s.Close())
			requireJournal(t, dir, map[int][]byte{0: {}, 1: {}})

			require.NotEmpty(t, written[0])
			for i, data := range written {
				if damaged {
					clear(data[:len(data)/2/journalRecord*journalRecord])
					data = append(data, 1, 2, 3)
				}
				require.NoError(t, os.WriteFile(journalPath(dir, i), data, 0o600))
			}
			s, err = Open(dir, Config{})
			require.NoError(t, err)
			defer s.Close()
			held := 0
			for _, b := range bs {
				has, err := s.Has(t.Context(), b.CID)
				require.NoError(t, err)
				if has {
					held++
					require.NoError(t, s.VerifyBlock(b.CID))
				}
			}
			if damaged {
				require.Greater(t, held, 20)
				require.Less(t, held, 40)
			} else {
				require.Equal(t, len(bs), held)
			}
			requireJournal(t, dir, map[int][]byte{0: {}, 1: {}})
		})
	}
}

func requireJournal(t *testing.T, dir string, want map[int][]byte) {
	t.Helper()
	for i, w := range want {
		got, err := os.ReadFile(journalPath(dir, i))
		require.NoError(t, err)
		require.Equal(t, w, got, "file %d", i)
	}
}
