package swarm

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSpansRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint32Range(1, maxPieces).Draw(t, "n")
		numbers := rapid.SliceOfN(rapid.Uint32Range(0, n-1), 0, 200).Draw(t, "numbers")
		var got []uint32
		require.NoError(t, eachSpan(appendSpans(nil, numbers), n, len(numbers), func(s span) {
			for i := range s.count {
				got = append(got, s.first+i)
			}
		}))
		require.True(t, slices.Equal(numbers, got))
	})
}

func TestMapRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint32Range(0, 5000).Draw(t, "n")
		held := newBitset(n)
		if rapid.Bool().Draw(t, "all") {
			if n > 0 {
				held.fill(n)
			}
		} else {
			for range rapid.IntRange(0, 100).Draw(t, "held") {
				if n > 0 {
					held.set(rapid.Uint32Range(0, n-1).Draw(t, "piece"))
				}
			}
		}
		m, got, err := parseMap(mapFrame(nil, n, held)[frameHeader:])
		require.NoError(t, err)
		require.Equal(t, n, m)
		if held.count() == n {
			require.Nil(t, got)
		} else {
			require.Equal(t, held, got)
		}
	})
}

func TestHelloRoundTrip(t *testing.T) {
	want := hello{root: digest{1, 2}.cid(0x70), scope: "job-1/17"}
	got, err := parseHello(want.append(nil)[frameHeader:])
	require.NoError(t, err)
	require.Equal(t, want, got)
	want.scope = string(make([]byte, maxScope+1))
	_, err = parseHello(want.append(nil)[frameHeader:])
	require.ErrorIs(t, err, errProtocol)
}

// FuzzMessages feeds every decoder: none panics, none believes in more than there
// can be, and what is refused is a breach of the protocol.
func FuzzMessages(f *testing.F) {
	f.Add(uint32(100), spansFrame(nil, kindHave, []uint32{1, 2, 3, 50, 7}))
	f.Add(uint32(9), mapFrame(nil, 9, bitset{5}))
	f.Add(uint32(9), hello{root: digest{1}.cid(0x55), scope: "x"}.append(nil))
	f.Add(uint32(1), append(begin(nil, kindPiece), 0xff, 0x01, 'x'))
	f.Fuzz(func(t *testing.T, n uint32, data []byte) {
		n %= maxPieces + 1
		r := newFrameReader(bytes.NewReader(data), 16, maxAsk)
		for {
			k, size, err := r.next()
			if err != nil {
				require.True(t, errors.Is(err, errProtocol) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF), err)
				return
			}
			if k == kindPiece {
				i, used, err := r.number(size)
				if err != nil {
					return
				}
				require.Less(t, i, uint32(maxPieces))
				size -= used
			}
			require.LessOrEqual(t, size, maxAsk)
			body, err := r.body(nil, size)
			if err != nil {
				return
			}
			total := uint32(0)
			err = eachSpan(body, n, maxQueue, func(s span) {
				require.LessOrEqual(t, s.first+s.count, n)
				total += s.count
			})
			require.LessOrEqual(t, total, uint32(maxQueue))
			require.True(t, err == nil || errors.Is(err, errProtocol))
			m, held, err := parseMap(body)
			if err == nil && held != nil {
				require.LessOrEqual(t, held.count(), m)
				require.Len(t, held, len(newBitset(m)))
			}
			h, err := parseHello(body)
			if err == nil {
				require.LessOrEqual(t, len(h.scope), maxScope)
			}
		}
	})
}
