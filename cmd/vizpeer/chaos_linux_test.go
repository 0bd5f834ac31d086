package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vizpeer/lease"
	"vizpeer/peer/httpapi"
)

// chaosTime is how long TestChaos torments its farm; CHAOS_TIME sets another.
const chaosTime = 2 * time.Minute

// chaos is a farm of real processes, each in a network namespace of its own, that is
// tormented while clients use it.
type chaos struct {
	t       *testing.T
	seed    int
	wires   *wires
	token   string // of ann's, whose all jobs are
	project string
	real    lease.JobID // that real Blender renders; "" where there is none
	history *history
	over    chan struct{} // closed when the torments end

	machines     []*chaosMachine
	coordinators int // of them, the first

	mu        sync.Mutex
	faults    map[string]int
	bad       []string // what must not be
	jobs      []*chaosJob
	pending   []*pendingJob
	ended     map[lease.JobID]bool // as somebody has seen
	cancelled map[lease.JobID]bool // as was promised
	told      map[uint64]httpapi.Event
}

// chaosMachine is one of them.
type chaosMachine struct {
	*realPeer
	name  string
	i     int
	http  *http.Client
	small bool // its data folder is a file system of its own, which can be full

	mu      sync.Mutex // held while it is started, stopped or killed
	process *exec.Cmd  // nil while it does not run
	meant   bool       // it was killed on purpose
	gone    chan struct{}
	full    bool // its disk is
}

// TestChaos is what a farm must live through: five machines, of which three coordinate,
// in a network of their own, are killed with -9, stopped for a while, cut off one way and
// both ways, given slow and lossy links and a full disk, and restarted all at once, while
// clients submit jobs, cancel, pause, resume and re-prioritise them, and read. Afterwards
// nothing that was promised is missing; see verify.
//
// CHAOS_TIME says for how long, CHAOS_SEED which torments, and CHAOS_LOGS names a folder
// for the machines' logs: `make chaos` takes 20 minutes.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes minutes")
	}
	t.Parallel() // to others that mostly wait
	length := chaosTime
	if text := os.Getenv("CHAOS_TIME"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err, "$CHAOS_TIME")
	}
	c := newChaos(t, 5, 3)
	c.submitReal()
	following, unfollow := context.WithCancel(t.Context())
	var clients, followers, tormentors sync.WaitGroup
	for i := range c.machines {
		followers.Go(func() { c.follow(following, i) })
	}
	defer followers.Wait()
	defer unfollow()
	for n := range 4 {
		clients.Go(func() { c.client(n + 1) })
	}
	tormentors.Go(func() { c.tormentProcesses(rand.New(rand.NewPCG(uint64(c.seed), 1))) })
	tormentors.Go(func() { c.tormentLinks(rand.New(rand.NewPCG(uint64(c.seed), 2))) })
	began := time.Now()
	select {
	case <-time.After(length):
	case <-t.Context().Done():
	}
	close(c.over)
	tormentors.Wait()
	c.wires.heal()
	clients.Wait()
	ended := time.Now()
	c.settle()
	c.verify(began, ended)
}

// newChaos founds the farm: the first machines coordinate.
func newChaos(t *testing.T, n, coordinators int) *chaos {
	t.Helper()
	c := &chaos{
		t: t, seed: seedOf(t), coordinators: coordinators, history: newHistory(), over: make(chan struct{}), faults: make(map[string]int),
		ended: make(map[lease.JobID]bool), cancelled: make(map[lease.JobID]bool), told: make(map[uint64]httpapi.Event),
	}
	c.wires = newWires(t, n)
	blender, _ := standInBlender(t, 200*time.Millisecond)
	f := &realFarm{t: t, dir: t.TempDir()}
	env := unconfined(t)
	for i := range n {
		m := &chaosMachine{name: fmt.Sprintf("m%d", i), i: i}
		m.realPeer = &realPeer{farm: f, dir: filepath.Join(f.dir, m.name), netns: c.wires.namespaces[i], env: env, more: []string{"--blender", blender, "--slots", "1", "--vote-after", "2s"}}
		m.http = &http.Client{Transport: &http.Transport{DialContext: c.wires.dialer(i), DisableKeepAlives: true}}
		c.machines = append(c.machines, m)
		if m.small = i == coordinators-1 || i == n-1; m.small {
			require.NoError(t, os.Mkdir(m.dir, 0o700))
			require.NoError(t, unix.Mount("none", m.dir, "tmpfs", 0, "size="+roomy))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(m.dir, unix.MNT_DETACH)) })
		}
	}
	t.Cleanup(func() {
		for _, m := range c.machines {
			m.end()
			if to := os.Getenv("CHAOS_LOGS"); to != "" {
				text, err := os.ReadFile(m.dir + ".log")
				require.NoError(t, errors.Join(err, os.WriteFile(filepath.Join(to, m.name+".log"), text, 0o600)))
			}
		}
	})
	founder := c.machines[0]
	for i, m := range c.machines {
		switch {
		case i == 0:
			m.run(nil, "init", "--name", "attic", "--machine", m.name)
		default:
			invitation := []string{"invite", "--role", "node"}
			if i < coordinators {
				invitation = append(invitation, "--coordinator")
			}
			var invited httpapi.Invited
			founder.run(&invited, invitation...)
			m.run(nil, "join", invited.Ticket, "--name", m.name)
			// They are the same machine: one finds out for all what its Blenders can do.
			known, err := os.ReadFile(filepath.Join(founder.dir, "probe.json"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(m.dir, "probe.json"), known, 0o600))
		}
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, configName), []byte("api_rate = 100000\n"), 0o600))
		c.start(m)
		if i == 0 {
			var made struct{ Key string }
			f.within(time.Minute, "the founder makes a key", func() bool {
				out, err := m.try("key", "create", "--user", "ann", "--role", "operator")
				return err == nil && json.Unmarshal(out, &made) == nil
			})
			c.token = made.Key
		}
		f.within(time.Minute, m.name+" answers", func() bool {
			var s httpapi.Status
			return c.ask(i, http.MethodGet, "/v1/status", "", nil, &s) == carried && s.Leader != ""
		})
	}
	f.within(3*time.Minute, "all coordinators vote", func() bool {
		var farm httpapi.Farm
		return c.ask(0, http.MethodGet, "/v1/farm", "", nil, &farm) == carried && len(farm.Coord.Voters) == coordinators
	})
	for i := range c.machines {
		var p httpapi.Project
		require.Equal(t, carried, c.ask(i, http.MethodPost, "/v1/projects", "", projectTar(t, "chaos"), &p))
		c.project = p.Project
	}
	return c
}

// realFrames is how many frames real Blender renders meanwhile, where there is one.
const realFrames = 4

// submitReal submits a job for real Blender.
func (c *chaos) submitReal() {
	if _, err := exec.LookPath("blender"); err != nil {
		c.t.Log("no Blender on this machine: all is rendered by its stand-in")
		return
	}
	var sent httpapi.Submitted
	c.machines[0].run(&sent, "render", sampleScene(c.t), "--frames", fmt.Sprint("1-", realFrames), "--chunk", "1")
	c.real = sent.Job
}

// start starts a machine's peer, and watches that it ends only when it shall.
func (c *chaos) start(m *chaosMachine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		return
	}
	// Not by realPeer.start, which is for the test's own goroutine.
	program, err := exec.LookPath("vizpeer")
	if err != nil {
		panic(err)
	}
	args := append([]string{"netns", "exec", m.netns, program, "up", "--json", "--stop-with-stdin", "--data-dir", m.dir}, m.more...)
	cmd := exec.Command("ip", args...)
	cmd.Env = append(cmd.Environ(), m.env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		panic(err)
	}
	// Beside the folder, whose disk may be full.
	log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	log.Close()
	gone := make(chan struct{})
	m.process, m.meant, m.gone = cmd, false, gone
	go func() {
		defer close(gone)
		err := cmd.Wait()
		in.Close()
		m.mu.Lock()
		m.process = nil
		meant, full := m.meant, m.full
		m.mu.Unlock()
		switch {
		case meant:
		case full:
			c.count("ended because its disk was full")
		default:
			c.wrong("%s ended by itself: %v: %s", m.name, err, m.lastWords())
		}
	}()
}

// lastWords is the end of the machine's log.
func (m *chaosMachine) lastWords() string {
	text, _ := os.ReadFile(m.dir + ".log")
	return string(text[max(0, len(text)-3000):])
}

// signal sends a signal to the machine's peer, if it runs.
func (m *chaosMachine) signal(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		_ = m.process.Process.Signal(s)
	}
}

// end kills the machine's peer with -9, and waits until it is gone.
func (m *chaosMachine) end() {
	m.mu.Lock()
	gone := m.gone
	if m.process != nil {
		m.meant = true
		_ = m.process.Process.Kill()
	}
	m.mu.Unlock()
	if gone != nil {
		<-gone
	}
}

func (c *chaos) running() bool {
	select {
	case <-c.over:
		return false
	default:
		return true
	}
}

// sleep waits, or until the torments end.
func (c *chaos) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.over:
	}
}

func (c *chaos) count(fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[fault]++
}

// wrong notes what must not be.
func (c *chaos) wrong(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad = append(c.bad, fmt.Sprintf(format, args...)); len(c.bad) <= 20 {
		c.t.Logf("%.3f s: %s", float64(c.history.now())/1e9, c.bad[len(c.bad)-1])
	}
}

// The sizes of a small machine's disk.
const (
	roomy = "8g"
	tight = 96 << 10 // bytes left on one that is full
)

// tormentProcesses does one thing after another to the machines' processes and disks.
func (c *chaos) tormentProcesses(chance *rand.Rand) {
	for c.sleep(2 * time.Second); c.running(); c.sleep(time.Duration(500+chance.IntN(4000)) * time.Millisecond) {
		m := c.machines[chance.IntN(len(c.machines))]
		some := func(least, most int) { c.sleep(time.Duration(least+chance.IntN(most-least)) * time.Millisecond) }
		switch dice := chance.IntN(100); {
		case dice < 45:
			c.count("kill -9")
			m.end()
			some(0, 3000)
			c.start(m)
		case dice < 70:
			c.count("stopped and continued")
			m.signal(syscall.SIGSTOP)
			if chance.IntN(8) == 0 {
				some(15000, 20000) // longer than a lease
			} else {
				some(300, 6000)
			}
			m.signal(syscall.SIGCONT)
		case dice < 85:
			for !m.small {
				m = c.machines[chance.IntN(len(c.machines))]
			}
			c.count("full disk")
			if err := m.fill(); err != nil {
				c.wrong("%s could not be filled: %v", m.name, err)
			}
			some(2000, 8000)
			if err := m.empty(); err != nil {
				c.wrong("%s could not be emptied: %v", m.name, err)
			}
			c.start(m)
		case dice < 95:
			c.count("two killed at once")
			other := c.machines[chance.IntN(len(c.machines))]
			m.end()
			other.end()
			some(0, 3000)
			c.start(other)
			c.start(m)
		default:
			c.count("all restarted at once")
			var all sync.WaitGroup
			for _, m := range c.machines {
				all.Go(m.end)
			}
			all.Wait()
			some(0, 2000)
			for _, i := range chance.Perm(len(c.machines)) {
				c.start(c.machines[i])
			}
			some(2000, 5000)
		}
	}
}

// fill leaves no room on a small machine's disk.
func (m *chaosMachine) fill() error {
	m.mu.Lock()
	m.full = true
	m.mu.Unlock()
	for try := 0; ; try++ {
		var s unix.Statfs_t
		if err := unix.Statfs(m.dir, &s); err != nil {
			return err
		}
		used := (int64(s.Blocks) - int64(s.Bfree)) * s.Bsize
		err := unix.Mount("none", m.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", used+tight))
		if !errors.Is(err, unix.EINVAL) || try == 20 { // else it has grown meanwhile
			return err
		}
	}
}

func (m *chaosMachine) empty() error {
	err := unix.Mount("none", m.dir, "tmpfs", unix.MS_REMOUNT, "size="+roomy)
	m.mu.Lock()
	m.full = false
	m.mu.Unlock()
	return err
}

// tormentLinks does one thing after another to the network.
func (c *chaos) tormentLinks(chance *rand.Rand) {
	n := len(c.machines)
	for c.sleep(2 * time.Second); c.running(); c.sleep(time.Duration(500+chance.IntN(4000)) * time.Millisecond) {
		a := chance.IntN(n)
		b := (a + 1 + chance.IntN(n-1)) % n
		switch dice := chance.IntN(100); {
		case dice < 20:
			c.count("link cut one way")
			c.wires.set(a, b, wireState{cut: true})
		case dice < 35:
			c.count("link cut both ways")
			c.wires.set(a, b, wireState{cut: true})
			c.wires.set(b, a, wireState{cut: true})
		case dice < 50:
			c.count("machine cut off one way")
			for i := range n {
				if chance.IntN(2) == 0 {
					c.wires.set(a, i, wireState{cut: true})
				}
			}
		case dice < 65:
			c.count("machine cut off")
			for i := range n {
				c.wires.set(a, i, wireState{cut: true})
				c.wires.set(i, a, wireState{cut: true})
			}
		case dice < 75:
			c.count("network split in two")
			for i := range n {
				for k := range n {
					if (i < 2) != (k < 2) {
						c.wires.set(i, k, wireState{cut: true})
						c.wires.set(k, i, wireState{cut: true})
					}
				}
			}
		default:
			c.count("delay and loss")
			s := wireState{delay: time.Duration(chance.IntN(150)) * time.Millisecond, jitter: time.Duration(1+chance.IntN(50)) * time.Millisecond, loss: chance.Float64() / 8}
			for i := range n {
				if chance.IntN(2) == 0 {
					c.wires.set(a, i, s)
					c.wires.set(i, a, s)
				}
			}
		}
		most := 5000
		if chance.IntN(8) == 0 {
			most = 20000 // longer than a lease
		}
		c.sleep(time.Duration(500+chance.IntN(most)) * time.Millisecond)
		c.wires.heal()
	}
}

// settle lets the farm, which nothing is done to any more, finish what it was given.
func (c *chaos) settle() {
	t, f := c.t, c.machines[0].farm
	for _, m := range c.machines {
		m.signal(syscall.SIGCONT)
		if m.small {
			require.NoError(t, m.empty())
		}
		c.start(m)
	}
	for i, m := range c.machines {
		f.within(2*time.Minute, m.name+" has found the leader", func() bool {
			c.start(m)
			var s httpapi.Status
			return c.ask(i, http.MethodGet, "/v1/status", "", nil, &s) == carried && s.Leader != ""
		})
	}
	chance := rand.New(rand.NewPCG(uint64(c.seed), 3))
	for _, p := range c.pending {
		require.True(t, c.submit(0, chance, p, 100), "the submission %s is not answered although all is well", p.key)
	}
	c.mu.Lock()
	jobs := slices.Clone(c.jobs)
	c.mu.Unlock()
	// One machine after another is asked, each about a part of them.
	f.within(10*time.Minute, "every job has ended", func() bool {
		left := 0
		for i, j := range jobs {
			c.mu.Lock()
			ended := c.ended[j.id]
			c.mu.Unlock()
			if ended {
				continue
			}
			left++
			if doc, ok := c.read(0, i%len(c.machines), j); ok && doc.State == lease.JobPaused {
				c.control(0, i%len(c.machines), j, doResume, "")
			}
		}
		return left == 0
	})
	if c.real != "" {
		f.within(10*time.Minute, "real Blender has rendered its job", func() bool { return c.machines[0].job(c.real).State == lease.JobDone })
		require.Equal(t, realFrames, c.machines[0].job(c.real).FramesDone)
	}
}

// verify checks all that must hold, and prints the figures.
func (c *chaos) verify(began, ended time.Time) {
	t := c.t
	frames, fetched := 0, 0
	results := make(map[string][]httpapi.Event)
	c.mu.Lock()
	told := slices.SortedFunc(maps.Values(c.told), func(a, b httpapi.Event) int { return a.Time.Compare(b.Time) })
	c.mu.Unlock()
	var grant time.Time
	var longest time.Duration
	grants, expired := 0, 0
	for _, ev := range told {
		switch ev.Type {
		case lease.FrameResult:
			key := fmt.Sprint(ev.Job, " ", *ev.Frame)
			results[key] = append(results[key], ev)
		case lease.FrameLost:
			c.wrong("frame %d of %s was lost: %s", *ev.Frame, ev.Job, ev.Reason)
		case lease.TaskGranted:
			if grants++; !grant.IsZero() && ev.Time.Before(ended) {
				longest = max(longest, ev.Time.Sub(grant))
			}
			grant = ev.Time
		case lease.TaskRequeued:
			expired++
		}
	}
	for key, all := range results {
		if len(all) > 1 {
			c.wrong("frame %s was accepted %d times: %+v", key, len(all), all)
		}
	}
	states := make(map[lease.JobState]int)
	for n, j := range c.jobs {
		i := n % len(c.machines)
		doc, ok := c.read(0, i, j)
		if !ok {
			c.wrong("%s cannot be read although all is well", j.id)
			continue
		}
		states[doc.State]++
		switch {
		case c.cancelled[j.id] && doc.State != lease.JobCancelled:
			c.wrong("%s was cancelled, and is %s", j.id, doc.State)
		case doc.State == lease.JobFailed:
			c.wrong("%s failed: %s", j.id, doc.Reason)
		case doc.State == lease.JobDone && doc.FramesDone != j.frames:
			c.wrong("%s is done with %d of %d frames", j.id, doc.FramesDone, j.frames)
		}
		var tasks httpapi.TaskList
		if c.ask(i, http.MethodGet, fmt.Sprintf("/v1/jobs/%s/tasks", j.id), "", nil, &tasks) != carried {
			c.wrong("the tasks of %s cannot be read although all is well", j.id)
		}
		for _, task := range tasks.Tasks {
			rendered := 0
			for _, a := range task.Attempts {
				if a.Outcome == lease.OutcomeRendered {
					rendered++
				}
			}
			if rendered > 1 {
				c.wrong("the result of task %d of %s was accepted %d times", task.Index, j.id, rendered)
			}
		}
		for _, fr := range doc.Frames {
			if fr.State != lease.TaskDone {
				continue
			}
			frames++
			if all := results[fmt.Sprint(j.id, " ", fr.Frame)]; len(all) > 0 && all[0].CID != fr.CID {
				c.wrong("frame %d of %s was accepted as %s and is %s", fr.Frame, j.id, all[0].CID, fr.CID)
			}
			var picture []byte
			// Not every machine may have it: a node has a right to none of ann's.
			if c.ask((i+1)%c.coordinators, http.MethodGet, fmt.Sprintf("/v1/jobs/%s/frames/%d", j.id, fr.Frame), "", nil, &picture) != carried {
				c.wrong("frame %d of %s is done and cannot be fetched", fr.Frame, j.id)
			} else if cidOf(t, picture) != fr.CID {
				c.wrong("frame %d of %s is another than it was done as", fr.Frame, j.id)
			} else {
				fetched++
			}
		}
	}
	c.history.check(t)
	var checked struct{ Records int }
	c.machines[0].run(&checked, "audit", "verify")
	for _, m := range c.machines {
		text, err := os.ReadFile(m.dir + ".log")
		require.NoError(t, err)
		for _, sign := range []string{"panic:", "fatal error:", "SIGSEGV"} {
			if at := strings.Index(string(text), sign); at >= 0 {
				c.wrong("%s: %.2000s", m.name, text[at:])
			}
		}
	}
	t.Logf("%s of chaos with the seed %d. Faults: %v", ended.Sub(began).Round(time.Second), c.seed, c.faults)
	t.Logf("packets: %d passed, %d cut off, %d lost", c.wires.passed.Load(), c.wires.cut.Load(), c.wires.lost.Load())
	t.Logf("%d jobs %v with %d done frames, %d of them fetched with their hash; %d operations, %d with unknown outcome, %d submissions answered only afterwards",
		len(c.jobs), states, frames, fetched, len(c.history.operations), c.history.unknown, len(c.pending))
	t.Logf("%d grants, %d tasks queued again; the longest time without a grant was %s", grants, expired, longest.Round(time.Millisecond))
	require.Empty(t, c.bad[:min(len(c.bad), 20)], "%d things that must not be", len(c.bad))
}
