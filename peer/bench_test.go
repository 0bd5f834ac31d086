package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/httpapi"
	"vizpeer/peer/render"
)

// The benches run whole peers in one process: real hosts over loopback, real stores
// and a real log on disk. Only Blender is a stand-in.

var benchOperator = authz.Principal{User: "operator", Role: authz.Operator}

// benchFarm is a founder that leads the queue and does not render, and workers.
type benchFarm struct {
	b       testing.TB
	founder *benchPeer
	workers []*workerProcess
}

type benchPeer struct {
	*Peer
	cfg Config
	api string // base URL; "" where it serves no HTTP
}

// newBenchFarm founds a farm with so many workers, each a process of its own with one
// slot. Their Blender is the program blender or, where that is "", ends at once within
// the worker.
func newBenchFarm(b testing.TB, workers int, blender string) *benchFarm {
	b.Helper()
	f := &benchFarm{b: b}
	cfg := benchConfig(b.TempDir())
	founded, err := Init(cfg, Founding{FarmName: "attic", MachineName: "founder"})
	require.NoError(b, err)
	f.founder = startPeer(b, cfg)
	f.within("the founder leads", f.founder.Leads)
	for i := range workers {
		cfg := benchConfig(b.TempDir())
		ticket, err := f.founder.Queue().Invite(b.Context(), authz.Principal{User: founded.AdminUser, Role: authz.Admin}, httpapi.Invitation{})
		require.NoError(b, err)
		joining := cfg
		joining.HostOptions = []libp2p.Option{libp2p.ListenAddrStrings(cfg.P2PListen...)}
		_, err = Join(b.Context(), joining, ticket.Ticket, Joining{Name: fmt.Sprintf("worker%d", i+1)})
		require.NoError(b, err)
		f.workers = append(f.workers, startWorker(b, cfg.DataDir, blender))
	}
	f.within("all machines are online", func() bool {
		farm, err := f.founder.Queue().Farm(b.Context(), authz.Principal{User: founded.AdminUser, Role: authz.Admin})
		return err == nil && farm.Peers["idle"] == workers+1
	})
	return f
}

func benchConfig(dir string) Config {
	return Config{DataDir: dir, P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, APIListen: []string{"127.0.0.1:0"}, NoMDNS: true}
}

// benchMachine is what every machine of a bench can do, with that many slots.
func benchMachine(slots int) lease.Capability {
	return lease.Capability{
		OS: "linux", Arch: "amd64", Cores: 2, RAM: 8 << 30, FreeDisk: 1 << 40, Slots: slots, Sandbox: "bubblewrap", Backends: []lease.Backend{lease.CPU},
		Builds: []lease.Build{{Name: "Blender", Version: lease.Version{Major: 3, Minor: 4, Patch: 1}}},
	}
}

// startPeer runs a peer with HTTP that does not render.
func startPeer(b testing.TB, cfg Config) *benchPeer {
	b.Helper()
	p, err := New(cfg, Machine{Can: benchMachine(0)})
	require.NoError(b, err)
	api, err := httpapi.Listen(cfg.APIListen[0])
	require.NoError(b, err)
	ctx, stop := context.WithCancel(context.Background())
	ready, done := make(chan Ready, 1), make(chan error, 1)
	go func() { done <- p.serve(ctx, []net.Listener{api}, func(r Ready) { ready <- r }) }()
	b.Cleanup(func() {
		stop()
		require.NoError(b, <-done)
	})
	return &benchPeer{Peer: p, cfg: cfg, api: (<-ready).API}
}

// envWorker names the data folder of a worker: this test binary is then one, and
// envBlender may name the program that it takes for Blender.
const (
	envWorker  = "VIZPEER_BENCH_WORKER"
	envBlender = "VIZPEER_BENCH_BLENDER"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(envWorker)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := playWorker(dir, os.Getenv(envBlender)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// playWorker runs a peer that renders until its standard input is closed. For each
// line that it reads it prints what its Blender did since the line before.
func playWorker(dir, blender string) error {
	pictures, err := os.MkdirTemp(dir, "pictures-")
	if err != nil {
		return err
	}
	r, can := &timed{Runner: &instant{pictures}}, benchMachine(1)
	if blender != "" {
		r.Runner, can.Builds[0].Path = render.NewBlender(render.Config{Dir: pictures}), blender
	}
	p, err := New(benchConfig(dir), Machine{Runner: r, Can: can})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := json.NewEncoder(os.Stdout).Encode(r.did()); err != nil {
			break
		}
	}
	stop()
	return <-done
}

// workerProcess is a worker that runs beside this process.
type workerProcess struct {
	b   testing.TB
	in  io.WriteCloser
	out *json.Decoder
}

func startWorker(b testing.TB, dir, blender string) *workerProcess {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envWorker+"="+dir, envBlender+"="+blender)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		require.NoError(b, in.Close())
		require.NoError(b, cmd.Wait())
	})
	return &workerProcess{b, in, json.NewDecoder(out)}
}

// did asks what the worker's Blender did since it was asked last.
func (w *workerProcess) did() (d deeds) {
	w.b.Helper()
	_, err := fmt.Fprintln(w.in)
	require.NoError(w.b, err)
	require.NoError(w.b, w.out.Decode(&d))
	return d
}

func (f *benchFarm) within(what string, holds func() bool) {
	f.b.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			f.b.Fatalf("it did not happen in time: %s", what)
		}
	}
}

// submit submits a job of one-frame tasks from p and returns its ID.
func (f *benchFarm) submit(p *benchPeer, frames int) lease.JobID {
	f.b.Helper()
	up, err := p.Local().ImportProject(f.b.Context(), benchOperator, benchProject())
	require.NoError(f.b, err)
	spec, _, err := p.Local().Prepare(f.b.Context(), benchOperator, httpapi.Submission{
		Project: up.Project, Frames: fmt.Sprintf("1-%d", frames), Chunk: 1,
	})
	require.NoError(f.b, err)
	spec.Owner, spec.Submitter = benchOperator.User, p.self
	out, err := f.founder.Queue().Submit(f.b.Context(), benchOperator, lease.Submit{Spec: spec})
	require.NoError(f.b, err)
	return out.Job
}

// benchProject is a .blend of version 3.4 that nobody will open, and a texture.
func benchProject() iter.Seq2[httpapi.ProjectFile, error] {
	files := []struct{ path, text string }{
		{render.ManifestName, `{"version": 1, "blend": "files/home/ann/shot.blend", "origin": "linux", "complete": true, "scene": {"name": "Scene", "frame_start": 1, "frame_end": 10, "frame_current": 1}}`},
		{"files/home/ann/shot.blend", "BLENDER-v304" + strings.Repeat("\x00", 100_000)},
		{"files/home/ann/textures/wood.png", strings.Repeat("wood", 50_000)},
	}
	return func(yield func(httpapi.ProjectFile, error) bool) {
		for _, file := range files {
			if !yield(httpapi.ProjectFile{Path: file.path, Size: int64(len(file.text)), Body: strings.NewReader(file.text)}, nil) {
				return
			}
		}
	}
}

// timed notes when the attempts of a Blender of one slot begin and end.
type timed struct {
	render.Runner

	mu       sync.Mutex
	last     time.Time // the end of the attempt before
	now      deeds
	computed time.Duration
}

// deeds is what a worker did.
type deeds struct {
	Gaps []time.Duration // between the end of an attempt and the next one's start
	CPU  time.Duration   // of its process, and of those that have ended
}

// did returns what was done since the last call.
func (r *timed) did() deeds {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.now
	d.CPU = cpuTime() - r.computed
	r.last, r.now, r.computed = time.Time{}, deeds{}, cpuTime()
	return d
}

// Run implements [render.Runner].
func (r *timed) Run(ctx context.Context, a render.Attempt, sink render.Sink) (string, func(), error) {
	r.mu.Lock()
	if !r.last.IsZero() {
		r.now.Gaps = append(r.now.Gaps, time.Since(r.last))
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.last = time.Now()
		r.mu.Unlock()
	}()
	return r.Runner.Run(ctx, a, sink)
}

// instant is a Blender of one slot that ends at once. It writes into dir.
type instant struct{ dir string }

var _ render.Runner = (*instant)(nil)

// tinyPicture is a real picture of 16 pixels.
var tinyPicture = func() []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 4, 4))); err != nil {
		panic(err)
	}
	return b.Bytes()
}()

// Run implements [render.Runner].
func (r *instant) Run(ctx context.Context, a render.Attempt, sink render.Sink) (string, func(), error) {
	cleanup := func() {}
	if _, err := os.Stat(filepath.Join(a.Project, filepath.FromSlash(a.Blend))); err != nil {
		return "", cleanup, err
	}
	log := filepath.Join(r.dir, "blender.log")
	if err := overwrite(log, fmt.Appendf(nil, "Blender 3.4.1 under the lease %-40s\n", a.ID)); err != nil {
		return "", cleanup, err
	}
	for i, f := range a.Frames {
		sink.Progress(render.Progress{Frame: f, Done: i, Total: len(a.Frames), Phase: "rendering"})
		// No two frames of a shot are the same.
		picture := fmt.Appendf(slices.Clone(tinyPicture), "frame %8d of %-40s", f, a.ID)
		name := fmt.Sprintf("%04d.png", f)
		path := filepath.Join(r.dir, "frame.png")
		if err := overwrite(path, picture); err != nil {
			return log, cleanup, err
		}
		if err := sink.Frame(ctx, render.Frame{Frame: f, Path: path, Name: name, Seconds: 0.001}); err != nil {
			return log, cleanup, err
		}
	}
	return log, cleanup, nil
}

// Rest implements [render.Runner].
func (r *instant) Rest() {}

// Close implements [render.Runner].
func (r *instant) Close() error { return nil }

// overwrite writes a file of always the same size, which costs the disk least.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// BenchmarkWorkers has four workers render a job whose tasks take no time at all,
// and reports how many tasks a second are rendered, and done, that is kept by two
// machines, and how long a slot is idle between two tasks. What all five processes
// compute for a task stands beside: a machine has no more than its cores.
func BenchmarkWorkers(b *testing.B) { benchmarkWorkers(b, "", 3000) }

// BenchmarkWorkersWithProcesses is the same with processes, in the sandbox that Blender
// runs in.
func BenchmarkWorkersWithProcesses(b *testing.B) {
	script := filepath.Join(b.TempDir(), "blender")
	require.NoError(b, os.WriteFile(script, []byte(quickBlender), 0o755))
	benchmarkWorkers(b, script, 600)
}

// quickBlender is a Blender whose every frame is a small bitmap of its own.
const quickBlender = `#!/bin/sh
for args; do :; done
out=$(sed 's/.*"out":"\([^"]*\)".*/\1/' "$args")
while read -r request; do
	id=${request#*'"id":"'}; id=${id%%'"'*}
	frame=${request#*'"frames":['}; frame=${frame%%]*}
	printf 'BM\020\000\000\000 picture %s' "$frame" > "$out/frame.bmp"
	echo "VIZ {\"ev\":\"loaded\",\"id\":\"$id\"}"
	echo "VIZ {\"ev\":\"frame\",\"id\":\"$id\",\"frame\":$frame,\"file\":\"frame.bmp\",\"name\":\"$frame.bmp\",\"seconds\":0.001}"
	echo "VIZ {\"ev\":\"end\",\"id\":\"$id\",\"again\":true}"
done
`

func benchmarkWorkers(b *testing.B, blender string, tasks int) {
	f := newBenchFarm(b, 4, blender)
	for b.Loop() {
		for _, w := range f.workers {
			w.did()
		}
		began, computed := time.Now(), cpuTime()
		id := f.submit(f.founder, tasks)
		state := func() httpapi.JobSummary {
			jobs, err := f.founder.Queue().Jobs(b.Context(), benchOperator, httpapi.JobQuery{})
			require.NoError(b, err)
			require.Equal(b, id, jobs.Jobs[0].ID)
			return jobs.Jobs[0]
		}
		f.within("all is rendered", func() bool { j := state(); return j.Tasks.Rendered+j.Tasks.Done == tasks })
		rendered := time.Since(began)
		f.within("all is done", func() bool { return state().State == lease.JobDone })
		done := time.Since(began)
		computed = cpuTime() - computed
		var gaps []time.Duration
		for _, w := range f.workers {
			d := w.did()
			gaps = append(gaps, d.Gaps...)
			computed += d.CPU
		}
		slices.Sort(gaps)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		b.ReportMetric(float64(tasks)/done.Seconds(), "done/s")
		b.ReportMetric(float64(tasks)/rendered.Seconds(), "rendered/s")
		b.ReportMetric(ms(computed)/float64(tasks), "cpu-ms/task")
		b.ReportMetric(ms(gaps[len(gaps)/2]), "gap-ms")
		b.ReportMetric(ms(gaps[len(gaps)*99/100]), "gap-p99-ms")
	}
}

// BenchmarkSubmit submits a job of 10,000 tasks over HTTP to a farm of one and reports
// the milliseconds until it is on disk.
func BenchmarkSubmit(b *testing.B) {
	f := newBenchFarm(b, 0, "")
	token, err := os.ReadFile(filepath.Join(f.founder.cfg.DataDir, "token"))
	require.NoError(b, err)
	user := authz.Principal{User: "admin", Role: authz.Admin}
	up, err := f.founder.Local().ImportProject(b.Context(), user, benchProject())
	require.NoError(b, err)
	body, err := json.Marshal(httpapi.Submission{Project: up.Project, Frames: "1-10000", Chunk: 1})
	require.NoError(b, err)
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, f.founder.api+"/v1/jobs", bytes.NewReader(body))
		require.NoError(b, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		began := time.Now()
		resp, err := http.DefaultClient.Do(req)
		require.NoError(b, err)
		var sent httpapi.Submitted
		require.NoError(b, json.NewDecoder(resp.Body).Decode(&sent))
		took := time.Since(began)
		require.NoError(b, resp.Body.Close())
		require.Equal(b, http.StatusCreated, resp.StatusCode)
		require.Equal(b, 10_000, sent.Tasks)
		b.ReportMetric(float64(took.Microseconds())/1000, "submit-ms")
	}
}
