package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlainDisarmsTerminals(t *testing.T) {
	require.Equal(t, "�[31mred�]0;title� ok é", plain("\x1b[31mred\x1b]0;title\a ok é"))
	require.Equal(t, "a b�c", plain("a b\nc"))
	require.Equal(t, "one\ntwo    �", plainLines("one\r\ntwo\t\x9b"))
}

func TestTextForPeople(t *testing.T) {
	require.Equal(t, "512 B", bytesText(512))
	require.Equal(t, "1.5 KiB", bytesText(1536))
	require.Equal(t, "3.0 GiB", bytesText(3<<30))
	require.Equal(t, "1.5s", duration(1520*time.Millisecond))
	require.Equal(t, "1m5s", duration(65*time.Second+300*time.Millisecond))
	now := time.Now()
	require.Equal(t, "5 s ago", ago(now.Add(-5*time.Second), now))
	require.Equal(t, "3 days ago", ago(now.Add(-75*time.Hour), now))
}
