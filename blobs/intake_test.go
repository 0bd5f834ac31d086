package blobs

import (
	"crypto/sha256"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"
)

func TestIntake(t *testing.T) {
	s := open(t)
	var told atomic.Int64
	in := s.NewIntake(func(cs []cid.Cid) { told.Add(int64(len(cs))) })
	defer in.Close()
	data := noise(1, 300_000)
	c := digest(sha256.Sum256(data)).cid(cid.Raw)
	held, err := in.Claim(c, emptyDigest.cid(cid.Raw))
	require.NoError(t, err)
	require.Equal(t, []bool{false, true}, held)
	wrong, err := in.Add(Block{c, data[1:]}, Block{c, data}, Block{c, nil})
	require.NoError(t, err)
	require.Equal(t, []int{0, 2}, wrong) // forgeries do not spoil the rest
	clear(data)                          // it is the caller's again
	require.NoError(t, in.Flush())
	require.EqualValues(t, 1, told.Load())
	held, err = in.Claim(c)
	require.NoError(t, err)
	require.Equal(t, []bool{true}, held)
	require.NoError(t, s.VerifyBlock(c))
}

// A name that this store does not make is refused.
func TestIntakeOfOtherNames(t *testing.T) {
	old := cid.NewCidV0(emptyDigest.cid(cid.Raw).Hash())
	in := open(t).NewIntake(nil)
	defer in.Close()
	_, err := in.Claim(old)
	require.ErrorIs(t, err, ErrBadNode)
	_, err = in.Add(Block{CID: old})
	require.ErrorIs(t, err, ErrBadNode)
}
