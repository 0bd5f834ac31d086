package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// opened is a log and the records that it was opened with.
type opened struct {
	*Log
	found []string
}

func reopen(dir string, cfg Config) (o opened, err error) {
	cfg.NoSync = true
	o.Log, err = Open(dir, cfg, func(at Place, record []byte) error {
		if at.Length != len(record) {
			return errors.New("a record's place has another length")
		}
		o.found = append(o.found, string(record))
		return nil
	})
	return o, err
}

func open(t *testing.T, dir string, cfg Config) opened {
	t.Helper()
	o, err := reopen(dir, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func (o opened) add(t *testing.T, records ...string) []Place {
	t.Helper()
	var bs [][]byte
	for _, r := range records {
		bs = append(bs, []byte(r))
	}
	places, err := o.Append(bs...)
	require.NoError(t, err)
	for i, at := range places {
		got, err := o.Read(at)
		require.NoError(t, err)
		require.Equal(t, records[i], string(got))
	}
	return places
}

func TestRecordsAreThereAgain(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir, Config{})
	require.Empty(t, o.found)
	o.add(t, "one")
	o.add(t, "two", "", "four", string(bytes.Repeat([]byte("x"), 3<<20)))
	_, err := reopen(dir, Config{})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, o.Close())
	_, err = o.Append([]byte("late"))
	require.ErrorIs(t, err, os.ErrClosed)

	o = open(t, dir, Config{})
	require.Len(t, o.found, 5)
	require.Equal(t, []string{"one", "two", "", "four"}, o.found[:4])
	o.add(t, "five")
	require.NoError(t, o.Close())
	require.Len(t, open(t, dir, Config{}).found, 6)
}

// Files are begun with what the caller must not lose, also where the process was
// killed between the two.
func TestFilesBeginWithTheirHead(t *testing.T) {
	dir := t.TempDir()
	term := "term 1"
	cfg := Config{FileSize: 100, Head: func() [][]byte { return [][]byte{[]byte(term)} }}
	o := open(t, dir, cfg)
	var last Place
	for i := range 10 {
		term = fmt.Sprint("term ", i)
		last = o.add(t, fmt.Sprint("record ", i, " ", string(bytes.Repeat([]byte("x"), 90))))[0]
	}
	require.EqualValues(t, 10, last.File, "one in each")
	require.NoError(t, o.Drop(last.File))
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	_, err = o.Read(Place{File: 1})
	require.ErrorContains(t, err, "gone")
	require.NoError(t, o.Drop(99))
	require.NoError(t, o.begin(11))
	require.NoError(t, o.Close())

	term = "term 11"
	o = open(t, dir, cfg)
	require.Len(t, o.found, 2)
	require.Equal(t, "term 9", o.found[0])
	at := o.add(t, "last")[0]
	require.EqualValues(t, 11, at.File)
	require.NoError(t, o.Drop(11))
	require.NoError(t, o.Close())
	require.Equal(t, []string{"term 11", "last"}, open(t, dir, cfg).found)
}

// A batch that is cut off anywhere, or has reached the disk in part, was not
// acknowledged: it is gone as a whole, and all before it is there.
func TestTornBatchIsGone(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir, Config{})
	o.add(t, "kept", "too")
	before := o.files[0].size
	o.add(t, "torn", "in two")
	require.NoError(t, o.Close())
	path := filepath.Join(dir, name(1))
	all, err := os.ReadFile(path)
	require.NoError(t, err)
	check := func(data []byte, what string, at int64) {
		require.NoError(t, os.WriteFile(path, data, 0o600))
		o, err := reopen(dir, Config{})
		require.NoError(t, err, "%s at %d", what, at)
		require.Equal(t, []string{"kept", "too"}, o.found, "%s at %d", what, at)
		o.add(t, "next")
		require.NoError(t, o.Close())
		o, err = reopen(dir, Config{})
		require.NoError(t, err)
		require.Equal(t, []string{"kept", "too", "next"}, o.found, "%s at %d", what, at)
		require.NoError(t, o.Close())
	}
	for at := before; at < int64(len(all)); at++ {
		check(all[:at], "cut", at)
		// The system may write the end of a file before its middle.
		holed := bytes.Clone(all)
		holed[at] ^= 0xff
		check(holed, "changed", at)
		check(append(bytes.Clone(all[:at]), make([]byte, int64(len(all))-at)...), "zeros", at)
	}
	for at := range len(fileHead) { // the file itself was just begun
		require.NoError(t, os.WriteFile(path, all[:at], 0o600))
		o, err := reopen(dir, Config{})
		require.NoError(t, err)
		require.Empty(t, o.found)
		o.add(t, "first")
		require.NoError(t, o.Close())
	}
}

// What was acknowledged and is not there any more is never passed over.
func TestDamageIsTold(t *testing.T) {
	for _, files := range []int{1, 2} {
		t.Run(fmt.Sprint(files, " files"), func(t *testing.T) {
			dir := t.TempDir()
			cfg := Config{}
			if files == 2 {
				cfg.FileSize = 60
			}
			o := open(t, dir, cfg)
			o.add(t, "acknowledged and then damaged")
			o.add(t, "acknowledged")
			o.add(t, "acknowledged too")
			require.Len(t, o.files, files)
			damaged := o.files[0].size
			require.NoError(t, o.Close())
			path := filepath.Join(dir, name(1))
			all, err := os.ReadFile(path)
			require.NoError(t, err)
			if files == 1 { // of the last batch nobody can tell
				damaged -= headSize + int64(len("acknowledged too")) + 1
			}
			for at := range damaged {
				changed := bytes.Clone(all)
				changed[at] ^= 0xff
				require.NoError(t, os.WriteFile(path, changed, 0o600))
				_, err := reopen(dir, cfg)
				require.ErrorIs(t, err, ErrDamaged, "at %d", at)
			}
		})
	}
}

// A failed sync leaves nobody knowing what is on the disk.
func TestNothingIsWrittenAfterAFailure(t *testing.T) {
	o := open(t, t.TempDir(), Config{})
	o.add(t, "one")
	require.NoError(t, o.files[0].f.Close())
	for range 2 {
		_, err := o.Append([]byte("two"))
		require.ErrorContains(t, err, "start vizpeer again")
	}
}
