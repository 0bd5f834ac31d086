package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func both(t *testing.T, f func(t *testing.T, cfg Config)) {
	for _, buffered := range []bool{false, true} {
		t.Run(fmt.Sprintf("buffered=%v", buffered), func(t *testing.T) { f(t, Config{Buffered: buffered, FileSize: 64 << 10}) })
	}
}

func open(t *testing.T, dir string, cfg Config) *Files {
	t.Helper()
	f, err := Open(dir, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// add appends n bytes of x, durably.
func add(t testing.TB, f *Files, x byte, n int) *Extent {
	t.Helper()
	buf := NewBuffer(n)
	copy(buf, bytes.Repeat([]byte{x}, n))
	e, err := f.Append(buf[:n])
	require.NoError(t, err)
	require.NoError(t, f.Sync(e))
	e.Settle()
	return e
}

func requireBytes(t testing.TB, f *Files, e *Extent, x byte, n int) {
	t.Helper()
	got := make([]byte, n)
	require.NoError(t, f.ReadAt(got, e.File, e.Offset))
	require.Equal(t, bytes.Repeat([]byte{x}, n), got)
}

// requireAllocated allows for what a file system adds to a file for its own
// bookkeeping: ext4 counts a block once a file lies in more than four pieces.
func requireAllocated(t testing.TB, bytes int64, f *Files) {
	t.Helper()
	require.InDelta(t, bytes, f.Allocated(), float64(2*Align*len(f.List())))
}

func TestBuffersAreAligned(t *testing.T) {
	for _, n := range []int{1, Align, Align + 1, 1 << 20} {
		b := NewBuffer(n)
		require.Zero(t, uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align)
		require.Zero(t, len(b)%Align)
		require.GreaterOrEqual(t, len(b), n)
	}
}

func TestAppendAndReopen(t *testing.T) {
	both(t, func(t *testing.T, cfg Config) {
		dir := t.TempDir()
		f := open(t, dir, cfg)
		var es []*Extent
		for i := range 40 {
			es = append(es, add(t, f, byte(i), 1+i*300))
		}
		require.Greater(t, len(f.List()), 3)
		total := f.Allocated()
		require.NoError(t, f.Close())
		_, err := f.Append(NewBuffer(1))
		require.Error(t, err)

		f = open(t, dir, cfg)
		requireAllocated(t, total, f)
		for i, e := range es {
			requireBytes(t, f, e, byte(i), 1+i*300)
		}
		e := add(t, f, 99, 10)
		require.GreaterOrEqual(t, e.File, es[39].File)
		require.Zero(t, e.Offset%Align)
		requireBytes(t, f, es[39], 39, 1+39*300)
	})
}

// What lies behind the last extent known is not written over, nor in the way.
func TestTornTail(t *testing.T) {
	both(t, func(t *testing.T, cfg Config) {
		dir := t.TempDir()
		f := open(t, dir, cfg)
		e := add(t, f, 1, 5000)
		require.NoError(t, f.Close())
		path := filepath.Join(dir, name(e.File))
		w, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		_, err = w.Write([]byte("torn"))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		f = open(t, dir, cfg)
		next := add(t, f, 2, 10)
		require.EqualValues(t, 3*Align, next.Offset)
		requireBytes(t, f, e, 1, 5000)
		requireBytes(t, f, next, 2, 10)
	})
}

func TestRemoveWhileRead(t *testing.T) {
	f := open(t, t.TempDir(), Config{})
	e := add(t, f, 1, 1<<20)
	r, done, err := f.reader(e.File)
	require.NoError(t, err)
	info := f.List()[0]
	require.NoError(t, f.Remove(e.File, info.End-Align)) // somebody has appended meanwhile
	requireBytes(t, f, e, 1, 10)
	require.NoError(t, f.Remove(e.File, info.End))
	require.ErrorIs(t, f.ReadAt(make([]byte, 1), e.File, 0), ErrGone)
	got := make([]byte, 10)
	_, err = r.ReadAt(got, e.Offset)
	require.NoError(t, err, "who reads already goes on")
	require.EqualValues(t, 1, got[9])
	done()
	require.Zero(t, f.Allocated())
	require.NoFileExists(t, filepath.Join(f.dir, name(e.File)))
	require.NotEqual(t, e.File, add(t, f, 2, 10).File, "a number is not given out again")
}

func TestUnsettledExtentsKeepTheirFile(t *testing.T) {
	f := open(t, t.TempDir(), Config{})
	add(t, f, 1, 10)
	buf := NewBuffer(Align)
	e, err := f.Append(buf[:1])
	require.NoError(t, err)
	add(t, f, 2, 10)
	info := f.List()[0]
	require.EqualValues(t, Align, info.Settled)
	require.EqualValues(t, 3*Align, info.End)
	require.NoError(t, f.Remove(e.File, info.End))
	require.False(t, f.Finish(e.File, info.End))
	e.Settle()
	require.EqualValues(t, 3*Align, f.List()[0].Settled)
	require.True(t, f.Finish(e.File, info.End))
	require.NotEqual(t, e.File, add(t, f, 3, 10).File)
}

func TestPunch(t *testing.T) {
	f := open(t, t.TempDir(), Config{})
	if !f.CanPunch() {
		t.Skip("no holes on this system")
	}
	e := add(t, f, 1, 1<<20)
	require.NoError(t, f.Punch(e.File, 100, 512<<10+100))
	left, err := f.Measure(e.File)
	require.NoError(t, err)
	if left == 1<<20 {
		t.Skip("no holes on this file system")
	}
	requireAllocated(t, 512<<10+Align, f)
	require.Equal(t, left, f.Allocated())
	got := make([]byte, 1<<20)
	require.NoError(t, f.ReadAt(got, e.File, 0))
	require.Equal(t, append(bytes.Repeat([]byte{1}, Align), make([]byte, 512<<10-Align)...), got[:512<<10])
	require.Equal(t, bytes.Repeat([]byte{1}, 512<<10), got[512<<10:])
}

// What cannot be measured now is when it can.
func TestPunchBesideWhatIsUnderWay(t *testing.T) {
	f := open(t, t.TempDir(), Config{})
	if !f.CanPunch() {
		t.Skip("no holes on this system")
	}
	e := add(t, f, 1, 1<<20)
	under, err := f.Append(NewBuffer(Align)[:10])
	require.NoError(t, err)
	require.NoError(t, f.Punch(e.File, 0, 512<<10))
	_, err = f.Measure(e.File)
	require.NoError(t, err)
	under.Settle()
	fi, err := os.Stat(filepath.Join(f.dir, name(e.File)))
	require.NoError(t, err)
	require.Equal(t, allocated(fi), f.Allocated())
}

// A file system that has no holes says so when it is asked for one.
func TestNoHolesOnThisFileSystem(t *testing.T) {
	says := fs.ErrInvalid
	f := open(t, t.TempDir(), Config{Before: func(op Op) error {
		if op.Kind == "punch" {
			return says
		}
		return nil
	}})
	if !f.CanPunch() {
		t.Skip("no holes on this system")
	}
	e := add(t, f, 1, 2*Align)
	require.ErrorIs(t, f.Punch(e.File, 0, Align), fs.ErrInvalid)
	require.True(t, f.CanPunch())
	says = syscall.EOPNOTSUPP
	require.NoError(t, f.Punch(e.File, 0, Align))
	require.False(t, f.CanPunch())
	require.NoError(t, f.Punch(e.File, 0, Align))
	requireBytes(t, f, e, 1, 2*Align)
}

func TestFewFilesStayOpen(t *testing.T) {
	f := open(t, t.TempDir(), Config{FileSize: 4 * Align, OpenFiles: 3})
	var es []*Extent
	for i := range 40 {
		es = append(es, add(t, f, byte(i), Align))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, e := range es {
				requireBytes(t, f, e, byte(i), Align)
			}
		})
	}
	wg.Wait()
	opened := 0
	for _, p := range f.files {
		if p.r != nil {
			opened++
		}
	}
	require.LessOrEqual(t, opened, 3)
}

func TestAFailedWriteIsGarbage(t *testing.T) {
	broken := errors.New("broken")
	var fail string
	f := open(t, t.TempDir(), Config{Before: func(op Op) error {
		if op.Kind == fail {
			return broken
		}
		return nil
	}})
	first := add(t, f, 1, 10)
	for _, fail = range []string{"write", "sync"} {
		e, err := f.Append(NewBuffer(Align)[:10])
		if err == nil {
			err = f.Sync(e)
			e.Settle()
		}
		require.ErrorIs(t, err, broken)
	}
	fail = ""
	next := add(t, f, 2, 10)
	requireBytes(t, f, first, 1, 10)
	requireBytes(t, f, next, 2, 10)
	require.Equal(t, f.List()[0].End, f.List()[0].Settled)
}
