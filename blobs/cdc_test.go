package blobs

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// cutOneByOne is what the cuts mean, without slabs and lanes.
func cutOneByOne(data []byte) (ends []int) {
	var h uint64
	start := 0
	for i, x := range data {
		h = h<<1 + gear[x]
		switch n := i + 1 - start; {
		case n == maxChunk, n >= normalChunk && h < eagerCut, n >= minChunk && h < rareCut:
			ends = append(ends, i+1)
			start = i + 1
		}
	}
	if start < len(data) {
		ends = append(ends, len(data))
	}
	return ends
}

// cutInSlabs is how an import cuts.
func cutInSlabs(t require.TestingT, data []byte) (ends []int) {
	in := slabReader{r: bytes.NewReader(data)}
	at := 0
	for {
		b, err := in.next()
		require.NoError(t, err)
		b.process(byContent)
		for _, x := range b.blocks {
			require.True(t, bytes.Equal(data[at:at+len(x.data)], x.data))
			at += len(x.data)
			ends = append(ends, at)
		}
		last := b.last
		b.free()
		if last {
			return ends
		}
	}
}

func TestCutsDoNotDependOnSlabs(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(0, 3*maxChunk), rapid.SampledFrom([]int{
			slabBytes - 1, slabBytes, slabBytes + 1, 2 * slabBytes, 2*slabBytes + minChunk, 3*slabBytes + 12345,
		})).Draw(rt, "size")
		data := noise(rapid.Byte().Draw(rt, "seed"), size)
		if rapid.Bool().Draw(rt, "zeros") { // long runs without a cut of their own
			from := rapid.IntRange(0, size).Draw(rt, "from")
			clear(data[from:min(size, from+3*maxChunk)])
		}
		require.Equal(rt, cutOneByOne(data), cutInSlabs(rt, data))
	})
}

func TestChunksAreOfTheSizeSaid(t *testing.T) {
	data := noise(1, 64<<20)
	ends := cutInSlabs(t, data)
	mean := len(data) / len(ends)
	t.Logf("%d bytes on average", mean)
	require.InDelta(t, 35<<10, mean, 3<<10)
	start := 0
	for _, end := range ends[:len(ends)-1] {
		require.GreaterOrEqual(t, end-start, minChunk)
		require.LessOrEqual(t, end-start, maxChunk)
		start = end
	}
}

// An insertion moves the cuts around it and no others.
func TestCutsFindTogetherAgain(t *testing.T) {
	data := noise(1, 8<<20)
	at := 3 << 20
	changed := slices.Concat(data[:at], noise(2, 1000), data[at:])
	old, now := cutOneByOne(data), cutOneByOne(changed)
	moved := 0
	for _, end := range old {
		if end > at {
			end += 1000
		}
		if !slices.Contains(now, end) {
			moved++
		}
	}
	require.Less(t, moved, 8)
}
