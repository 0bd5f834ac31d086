package peer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpan(t *testing.T) {
	require.Equal(t, "1-3,5,7-8", span([]int32{1, 2, 3, 5, 7, 8}))
	require.Equal(t, "-2--1", span([]int32{-2, -1}))
	require.Empty(t, span(nil))
}
