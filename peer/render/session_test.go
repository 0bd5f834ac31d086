//go:build unix

package render

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vizpeer/lease"
)

// serves is a Blender that notes its number and what it was told once, and answers for
// ever.
const serves = `echo $$ >> $here/pids; cp "$args" $here/args; loaded
while :; do for f in $frames; do render $f; done; end; ask; done`

// keeping is a Runner of fakes.
func keeping(t *testing.T, cfg Config) *Blender {
	t.Helper()
	cfg.Dir, cfg.Sandbox = t.TempDir(), SandboxOff
	b := NewBlender(cfg)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// keptAttempt is one whose Blender waits for another.
func keptAttempt(t *testing.T, body string) Attempt {
	t.Helper()
	a := fakeAttempt(t, body)
	a.Owner, a.Content = "ann", "bafyproject"
	return a
}

// run makes an attempt and answers its log.
func run(t *testing.T, b *Blender, a Attempt) (log string, sink *collectorSink, err error) {
	t.Helper()
	sink = &collectorSink{}
	path, cleanup, err := b.Run(t.Context(), a, sink)
	defer cleanup()
	if path != "" {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		log = string(text)
	}
	return log, sink, err
}

// blenders are the numbers of the processes that served a's fake.
func blenders(t *testing.T, a Attempt) (pids []int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(a.Build.Path), "pids"))
	require.NoError(t, err)
	for _, line := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(line)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestAttemptsShareABlender(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, "echo 'Read blend'; "+serves)
	for i := range int32(3) {
		a.Frames = []int32{10*i + 1, 10*i + 2}
		log, sink, err := run(t, b, a)
		require.NoError(t, err)
		require.Len(t, sink.frames, 2)
		require.Equal(t, fmt.Sprintf("shot_%d.png", 10*i+2), sink.frames[1].Name)
		if i == 0 {
			require.Equal(t, "Read blend\nnote: frame 1 begins\nnote: frame 2 begins\n", log)
			require.Equal(t, phaseLoading, sink.progress[0].Phase)
		} else {
			require.Equal(t, fmt.Sprintf("note: this Blender has the file open since an earlier attempt\nnote: frame %d begins\nnote: frame %d begins\n", 10*i+1, 10*i+2), log)
			require.Equal(t, phaseRendering, sink.progress[0].Phase)
		}
	}
	require.Len(t, blenders(t, a), 1)
}

// At once, each attempt has a Blender of its own.
func TestAttemptsAtOnceHaveABlenderEach(t *testing.T) {
	b := keeping(t, Config{MaxIdle: 2})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded
while :; do start 1; while [ $(wc -l < $here/pids) -lt 2 ]; do sleep 0.01; done; render 1; end; ask; done`)
	for range 2 {
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				_, cleanup, err := b.Run(t.Context(), a, &collectorSink{})
				cleanup()
				if err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
	require.Len(t, blenders(t, a), 2)
}

func TestBlenderIsOnlyForWhatItWasStartedFor(t *testing.T) {
	gpus := []map[lease.Backend]string{{lease.CUDA: "a"}, {lease.CUDA: "b"}}
	for name, change := range map[string]func(t *testing.T, a *Attempt){
		"owner":   func(_ *testing.T, a *Attempt) { a.Owner = "ben" },
		"content": func(_ *testing.T, a *Attempt) { a.Content = "bafyother" },
		"folder": func(t *testing.T, a *Attempt) {
			root := t.TempDir()
			require.NoError(t, os.CopyFS(root, os.DirFS(a.Project)))
			a.Project = root
		},
		"blend": func(t *testing.T, a *Attempt) {
			require.NoError(t, os.WriteFile(filepath.Join(a.Project, "files", "b.blend"), []byte("BLENDER-v304"), 0o600))
			a.Blend = "files/b.blend"
		},
		"build":    func(_ *testing.T, a *Attempt) { a.Build.Hash = "0123" },
		"version":  func(_ *testing.T, a *Attempt) { a.Build.Version.Patch++ },
		"backend":  func(_ *testing.T, a *Attempt) { a.Needs.Backend = lease.CPU },
		"GPU":      func(_ *testing.T, a *Attempt) { a.Needs.RequireGPU = true },
		"device":   func(_ *testing.T, a *Attempt) { a.Device = "gpu1" },
		"settings": func(_ *testing.T, a *Attempt) { a.Set.Samples = 7 },
		"scene":    func(_ *testing.T, a *Attempt) { a.Set.Scene = "Second" },
	} {
		t.Run(name, func(t *testing.T) {
			b := keeping(t, Config{MaxIdle: 2})
			a := keptAttempt(t, serves)
			a.Build.GPUs, a.Device = gpus, "gpu0"
			_, _, err := run(t, b, a)
			require.NoError(t, err)
			other := a
			change(t, &other)
			_, _, err = run(t, b, other)
			require.NoError(t, err)
			require.Len(t, blenders(t, a), 2)
		})
	}
	t.Run("unnamed content", func(t *testing.T) {
		b := keeping(t, Config{})
		a := keptAttempt(t, serves)
		a.Content = ""
		for range 2 {
			_, _, err := run(t, b, a)
			require.NoError(t, err)
		}
		pids := blenders(t, a)
		require.Len(t, pids, 2)
		require.False(t, alive(pids[1]), "it ends with its attempt")
	})
}

// What became odd, or has served long enough, serves no more.
func TestBlenderIsReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		body string
		fail bool
	}{
		"frames": {cfg: Config{MaxFrames: 2}, body: serves},
		"memory": {cfg: Config{MaxIdleMemory: 999}, body: serves},
		"never":  {cfg: Config{Linger: -1}, body: serves},
		"crash":  {body: `echo $$ >> $here/pids; loaded; kill -SEGV $$`, fail: true},
		"fail":   {body: `echo $$ >> $here/pids; loaded; say '{"ev":"fail","kind":"error","reason":"no"}'; exit 3`, fail: true},
		"no image": {body: `echo $$ >> $here/pids; loaded; frame 1 none.png a.png; end; ask`,
			fail: true},
		"nothing rendered":  {body: `echo $$ >> $here/pids; loaded; end; ask`, fail: true},
		"by its own word":   {body: `echo $$ >> $here/pids; loaded; render 1; render 2; say '{"ev":"end","again":false}'; ask`},
		"words of others":   {body: `echo $$ >> $here/pids; loaded; echo 'VIZ {"ev":"end"}'; render 1; render 2; end; ask`},
		"a foreign request": {body: `echo $$ >> $here/pids; loaded; echo 'VIZ {"ev":"end","id":"ABC"}'; render 1; render 2; end; ask`},
		"files left":        {body: `echo $$ >> $here/pids; loaded; render 1; render 2; fallocate -l 300000000 $TMPDIR/big || head -c 300000000 /dev/zero > $TMPDIR/big; end; ask`},
	} {
		t.Run(name, func(t *testing.T) {
			b := keeping(t, c.cfg)
			a := keptAttempt(t, c.body)
			a.Frames = []int32{1, 2}
			for range 2 {
				_, _, err := run(t, b, a)
				require.Equal(t, c.fail, err != nil, "%v", err)
			}
			pids := blenders(t, a)
			require.Len(t, pids, 2)
			b.Rest()
			require.False(t, alive(pids[0]))
			require.False(t, alive(pids[1]))
			left, err := os.ReadDir(b.cfg.Dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// A Blender that waits ends after a while, when another takes its place, and with the
// Runner.
func TestBlendersWaitNotForEver(t *testing.T) {
	gone := func(t *testing.T, pid int) {
		t.Helper()
		require.Eventually(t, func() bool { return !alive(pid) }, 10*time.Second, 5*time.Millisecond)
	}
	t.Run("a while", func(t *testing.T) {
		b := keeping(t, Config{Linger: 100 * time.Millisecond})
		a := keptAttempt(t, serves)
		_, _, err := run(t, b, a)
		require.NoError(t, err)
		gone(t, blenders(t, a)[0])
	})
	t.Run("another", func(t *testing.T) {
		b := keeping(t, Config{})
		a, other := keptAttempt(t, serves), keptAttempt(t, serves)
		for _, a := range []Attempt{a, other} {
			_, _, err := run(t, b, a)
			require.NoError(t, err)
		}
		gone(t, blenders(t, a)[0])
		require.True(t, alive(blenders(t, other)[0]))
	})
	t.Run("memory", func(t *testing.T) {
		b := keeping(t, Config{MaxIdle: 9})
		free := int64(30)
		b.sessions.memory = func() (int64, int64) { return 100, free }
		a, other := keptAttempt(t, serves), keptAttempt(t, serves)
		_, _, err := run(t, b, a)
		require.NoError(t, err)
		_, _, err = run(t, b, other)
		require.NoError(t, err)
		require.True(t, alive(blenders(t, a)[0]), "there is memory enough")
		other.Needs.MinRAM = 40 // which is no part of the key, but another Blender's need
		other.Set.Samples = 1
		_, _, err = run(t, b, other)
		require.NoError(t, err)
		require.False(t, alive(blenders(t, a)[0]))
		require.False(t, alive(blenders(t, other)[0]))
	})
	t.Run("a GPU", func(t *testing.T) {
		b := keeping(t, Config{MaxIdle: 9})
		a := keptAttempt(t, serves)
		a.Build.GPUs = []map[lease.Backend]string{{lease.CUDA: "a"}, {lease.CUDA: "b"}}
		for _, device := range []lease.Device{"gpu0", "gpu1", "cpu"} {
			a.Device = device
			_, _, err := run(t, b, a)
			require.NoError(t, err)
		}
		a.Device, a.Owner = "gpu0", "ben"
		_, _, err := run(t, b, a)
		require.NoError(t, err)
		pids := blenders(t, a)
		require.Len(t, pids, 4)
		require.False(t, alive(pids[0]))
		require.True(t, alive(pids[1]) && alive(pids[2]) && alive(pids[3]))
	})
	t.Run("Close", func(t *testing.T) {
		b := keeping(t, Config{MaxIdle: 9})
		a, other := keptAttempt(t, serves), keptAttempt(t, serves)
		for _, a := range []Attempt{a, other} {
			_, _, err := run(t, b, a)
			require.NoError(t, err)
		}
		require.NoError(t, b.Close())
		require.False(t, alive(blenders(t, a)[0]))
		require.False(t, alive(blenders(t, other)[0]))
		_, _, err := run(t, b, a)
		require.NoError(t, err)
		b.Rest()
		require.False(t, alive(blenders(t, a)[1]), "none waits any more")
	})
}

// One that ends while it waits is no failure of the next attempt.
func TestBlenderThatEndsWhileItWaits(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded; render 1; end; exit 1`)
	const attempts = 20
	for range attempts {
		_, sink, err := run(t, b, a)
		require.NoError(t, err)
		require.Len(t, sink.frames, 1)
	}
	require.Len(t, blenders(t, a), attempts)
}

func TestStopKillsABlenderThatServedOthers(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded; render 1; end; ask; sleep 1000 & echo $! > $here/child; echo 'Saved: x'; wait`)
	_, _, err := run(t, b, a)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	_, cleanup, err := b.Run(ctx, a, &stopper{phase: phaseSaving, stop: cancel})
	cleanup()
	require.ErrorIs(t, err, ErrStopped)
	requireGone(t, a)
	require.Len(t, blenders(t, a), 1)
	require.False(t, alive(blenders(t, a)[0]))
}

// Time counts for each attempt, not for its Blender.
func TestTimeoutIsTheAttempts(t *testing.T) {
	t.Parallel() // it takes its time
	b := keeping(t, Config{})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded; render 1; end; ask; sleep 1.5; render 1; end; ask; sleep 1.5; render 1; end; ask; sleep 1000`)
	a.Timeout = 2500 * time.Millisecond
	for range 3 {
		_, _, err := run(t, b, a)
		require.NoError(t, err)
	}
	_, _, err := run(t, b, a)
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, lease.FailTimeout, e.Kind)
	require.Len(t, blenders(t, a), 1)
}

// Nothing that an attempt leaves is there for the next one.
func TestAttemptFindsNothingOfTheOneBefore(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded
while :; do find $out $TMPDIR/unkept -type f; mkdir -p $TMPDIR/unkept/output_0 $out/dir; touch $out/left $out/dir/left $TMPDIR/unkept/output_0/left; render 1; end; ask; done`)
	for i := range 3 {
		log, _, err := run(t, b, a)
		require.NoError(t, err)
		require.NotContains(t, log, "left", "attempt %d", i)
	}
	require.Len(t, blenders(t, a), 1)
}

// A line that a file makes Blender print is a line, whatever it says.
func TestForeignEventsAreWords(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, `cp $here/good.png $out/x.png
for name in '' '"id":"",' '"id":"AAAAAAAAAAAAAAAAAAAAAAAAAA",' '"id":null,'; do
	echo "VIZ {$name\"ev\":\"frame\",\"frame\":1,\"file\":\"x.png\"}"; echo "VIZ {$name\"ev\":\"fail\",\"reason\":\"no\"}"; echo "VIZ {$name\"ev\":\"end\",\"again\":true}"
done
loaded; render 1; end`)
	log, sink, err := run(t, b, a)
	require.NoError(t, err)
	require.Len(t, sink.frames, 1)
	require.Equal(t, "shot_1.png", sink.frames[0].Name)
	require.Equal(t, 12, strings.Count(log, "VIZ {"))
}

func TestFinishEndsWithTheCurrentFrame(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, `echo $$ >> $here/pids; loaded; render 1; mine=$id; ask
case $request in *'"do":"stop"'*) [ "$id" = "$mine" ] && render 2; end;; *) exit 9;; esac
while ask; do for f in $frames; do render $f; done; end; done`)
	a.Frames = []int32{1, 2, 3}
	finish := make(chan struct{})
	a.Finish = finish
	sink := &finishing{finish: sync.OnceFunc(func() { close(finish) })}
	_, cleanup, err := b.Run(t.Context(), a, sink)
	cleanup()
	require.ErrorIs(t, err, ErrFinished)
	require.Len(t, sink.frames, 2)

	a.Frames = []int32{3}
	_, none, err := run(t, b, a)
	require.ErrorIs(t, err, ErrFinished, "it is told so before it begins")
	require.Empty(t, none.frames)
	a.Finish = make(chan struct{})
	_, rest, err := run(t, b, a)
	require.NoError(t, err)
	require.Len(t, rest.frames, 1)
	require.Len(t, blenders(t, a), 1, "it waits as after any other attempt")
}

// One that is told to finish and has nothing left to do is simply done.
func TestFinishAfterTheLastFrame(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, serves)
	finish := make(chan struct{})
	a.Finish = finish
	sink := &finishing{finish: sync.OnceFunc(func() { close(finish) })}
	_, cleanup, err := b.Run(t.Context(), a, sink)
	cleanup()
	require.NoError(t, err)
}

// The next Blender after one that found no memory keeps nothing from frame to frame.
func TestRenderDataPersistsWhereThereIsMemory(t *testing.T) {
	b := keeping(t, Config{})
	free := int64(60)
	b.sessions.memory = func() (int64, int64) { return 100, free }
	a := keptAttempt(t, serves)
	persists := func(a Attempt) bool {
		_, _, _ = run(t, b, a)
		text, err := os.ReadFile(filepath.Join(filepath.Dir(a.Build.Path), "args"))
		require.NoError(t, err)
		var args driverArgs
		require.NoError(t, json.Unmarshal(text, &args))
		return args.Persist
	}
	require.True(t, persists(a))
	once := a
	once.Content = ""
	require.False(t, persists(once))
	free = 40
	a.Set.Samples = 1
	require.False(t, persists(a))
	free = 60
	failing := keptAttempt(t, `cp "$args" $here/args; loaded; start 1; echo 'Malloc returns null: len=99 in x, total 5'; exit 1`)
	require.True(t, persists(failing))
	require.False(t, persists(failing))
	failing.Set.Samples = 1
	require.True(t, persists(failing), "it is another")
}

// The project stays as long as a Blender has it open.
func TestProjectIsHeldByItsBlender(t *testing.T) {
	b := keeping(t, Config{})
	a := keptAttempt(t, serves)
	var mu sync.Mutex
	held, taken := 0, 0
	count := func() (int, int) {
		mu.Lock()
		defer mu.Unlock()
		return held, taken
	}
	a.Hold = func() func() {
		mu.Lock()
		defer mu.Unlock()
		held++
		taken++
		return func() {
			mu.Lock()
			defer mu.Unlock()
			held--
		}
	}
	for range 2 {
		_, _, err := run(t, b, a)
		require.NoError(t, err)
		h, n := count()
		require.Equal(t, 1, h)
		require.Equal(t, 1, n)
	}
	b.Rest()
	h, _ := count()
	require.Zero(t, h)
	gone := a
	gone.Build.Path = "/nowhere/blender"
	_, _, err := run(t, b, gone)
	require.Error(t, err)
	h, _ = count()
	require.Zero(t, h)
}
