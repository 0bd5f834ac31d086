package blobs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A disk that is really full, and no more than its limit says. A child process
// makes it, in a mount namespace of its own, and runs each part of the test in yet
// another, so that a signal is seen as what it is.
const (
	fullDir  = "VIZPEER_FULL_DIR"
	fullPart = "VIZPEER_FULL_PART"
	noMount  = "no file system can be mounted here"
)

var fullConfig = Config{Quota: 64 << 20, MinFree: 1, Grace: time.Nanosecond}

func TestFullDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullDiskParts$", "-test.v", fmt.Sprintf("-test.short=%v", testing.Short()))
	cmd.Env = append(os.Environ(), fullDir+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if len(out) == 0 && err != nil || strings.Contains(string(out), noMount) {
		t.Skipf("%s: %v", noMount, err)
	}
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "part after")
}

func TestFullDiskParts(t *testing.T) {
	dir := os.Getenv(fullDir)
	if dir == "" {
		t.Skip("the other half of TestFullDisk")
	}
	if part := os.Getenv(fullPart); part != "" {
		fullParts[part](t, dir)
		return
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=300m"); err != nil {
		t.Skipf("%s: %v", noMount, err)
	}
	for _, part := range []string{"evict", "work", "reopen", "in vain", "after"} {
		if part == "work" || part == "after" {
			require.NoError(t, os.Remove(filepath.Join(dir, "other")))
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDiskParts$", "-test.v", fmt.Sprintf("-test.short=%v", testing.Short()))
		cmd.Env = append(os.Environ(), fullPart+"="+part)
		out, err := cmd.CombinedOutput()
		fmt.Printf("part %s\n%s", part, out)
		require.NoError(t, err)
	}
}

var fullParts = map[string]func(t *testing.T, dir string){
	"evict":   evictOnAFullDisk,
	"work":    workOnAFullDisk,
	"reopen":  reopenOnAFullDisk,
	"in vain": reopenInVain,
	"after":   goOnAfter,
}

// fillUp is another program that takes all there is.
func fillUp(t *testing.T, dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "other"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	for buf := noise(1, 4096); err == nil; {
		_, err = f.Write(buf)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

// fullRoots are the roots of the projects in the store.
func fullRoots(t *testing.T, s *Store) (pinned, cached []cid.Cid) {
	roots, err := s.Roots(t.Context())
	require.NoError(t, err)
	for _, r := range roots {
		if held, err := s.rootHeld(r.CID); err != nil || !held {
			require.NoError(t, err)
		} else if r.Pinned {
			pinned = append(pinned, r.CID)
		} else {
			cached = append(cached, r.CID)
		}
	}
	return pinned, cached
}

// requireReadOnly checks that nothing can be added and everything be read.
func requireReadOnly(t *testing.T, s *Store, pinned cid.Cid) {
	for range 1000 {
		require.ErrorIs(t, s.Pin(t.Context(), pinned, "job:2"), ErrDiskFull)
	}
	_, err := project(s, 9, 1<<20)
	require.ErrorIs(t, err, ErrDiskFull)
	_, _, err = s.ImportFile(t.Context(), strings.NewReader("x"))
	require.ErrorIs(t, err, ErrDiskFull)
	require.NoError(t, s.Use(pinned))
	v, err := s.Verify(t.Context(), pinned, nil)
	require.NoError(t, err)
	require.True(t, v.Whole())
}

// A pin needs room as whatever is written, and what is cached makes way for it.
func evictOnAFullDisk(t *testing.T, dir string) {
	s, err := Open(dir+"/evict", Config{Quota: 160 << 20, MinFree: 1, Grace: time.Nanosecond})
	require.NoError(t, err)
	for i := range 8 {
		_, err := content(s, byte(i), 15<<20)
		require.NoError(t, err)
	}
	fillUp(t, dir)
	root := digest{1}.cid(cid.Raw)
	require.NoError(t, s.Pin(t.Context(), root, "job:1"))
	_, cached := fullRoots(t, s)
	require.NotEmpty(t, cached)
	require.Less(t, len(cached), 8)
	require.FileExists(t, s.index.ballast.path())
	require.NoError(t, s.Close())
	require.NoError(t, os.RemoveAll(dir+"/evict"))
}

// manyPins is so many that taking them back makes more than one table of the index,
// if there is time for that.
func manyPins() int {
	if testing.Short() {
		return 1000
	}
	return 8000
}

func workOnAFullDisk(t *testing.T, dir string) {
	s, err := Open(dir+"/store", fullConfig)
	require.NoError(t, err)
	for i := range 4 {
		root, err := content(s, byte(i), 3<<20)
		require.NoError(t, err)
		if i == 0 {
			require.NoError(t, s.Pin(t.Context(), root, "job:1"))
		}
	}
	holder := strings.Repeat("x", maxHolder)
	for i := range manyPins() {
		require.NoError(t, s.Pin(t.Context(), digest{byte(i), byte(i >> 8), 1}.cid(cid.Raw), holder))
	}
	require.FileExists(t, s.index.ballast.path())

	fillUp(t, dir)
	pinned, cached := fullRoots(t, s)
	require.Len(t, pinned, 1)
	require.Len(t, cached, 3)
	requireReadOnly(t, s, pinned[0])
	require.FileExists(t, s.index.ballast.path(), "it is not for adding")
	n, err := s.UnpinAll(t.Context(), holder)
	require.NoError(t, err)
	require.Equal(t, manyPins(), n)
	require.NoFileExists(t, s.index.ballast.path())
	gone, err := s.Forget(t.Context(), cached[0])
	require.NoError(t, err)
	require.True(t, gone)
	freed, err := s.GC(t.Context())
	require.NoError(t, err)
	require.Greater(t, freed.Bytes, int64(3<<20))
	requireHas(t, s, true, pinned[0], cached[1], cached[2])
	requireHas(t, s, false, cached[0])

	// Where even that is eaten up there is nothing to be done, and nothing breaks.
	fillUp(t, dir)
	requireReadOnly(t, s, pinned[0])
	_, err = s.Forget(t.Context(), cached[1])
	require.ErrorIs(t, err, ErrDiskFull)
	_, err = s.Evict(context.Background(), 0)
	require.ErrorIs(t, err, ErrDiskFull)
	require.ErrorIs(t, s.Close(), ErrDiskFull)

	// What is held back comes again with room.
	require.NoError(t, os.Truncate(dir+"/other", 0))
	require.NoError(t, s.Unpin(t.Context(), pinned[0], "job:none"))
	require.FileExists(t, s.index.ballast.path())
	st, err := s.Stat(t.Context())
	require.NoError(t, err)
	real, err := diskUse(dir + "/store")
	require.NoError(t, err)
	require.InDelta(t, real, st.Disk, 1<<20)
	require.Greater(t, st.Disk, s.index.ballast.size)
	fillUp(t, dir)
	os.Exit(0) // as if killed
}

func reopenOnAFullDisk(t *testing.T, dir string) {
	s, err := Open(dir+"/store", fullConfig)
	require.NoError(t, err)
	pinned, cached := fullRoots(t, s)
	require.Len(t, cached, 2)
	requireReadOnly(t, s, pinned[0])
	freed, err := s.Evict(t.Context(), 0)
	require.NoError(t, err)
	require.GreaterOrEqual(t, freed.Roots, 2)
	requireHas(t, s, true, pinned[0])
	fillUp(t, dir)
	os.Exit(0)
}

func reopenInVain(t *testing.T, dir string) {
	_, err := Open(dir+"/store", fullConfig)
	require.ErrorIs(t, err, ErrDiskFull)
	require.ErrorContains(t, err, "make room there")
}

func goOnAfter(t *testing.T, dir string) {
	s, err := Open(dir+"/store", fullConfig)
	require.NoError(t, err)
	require.FileExists(t, s.index.ballast.path())
	pinned, _ := fullRoots(t, s)
	require.Len(t, pinned, 1)
	requireHas(t, s, true, pinned[0])
	root, err := content(s, 8, 3<<20)
	require.NoError(t, err)
	require.NoError(t, s.Pin(t.Context(), root, "job:3"))
	require.NoError(t, s.Close())
}
