package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/stretchr/testify/require"

	"vizpeer/authz"
	"vizpeer/lease"
)

// bench is a coordinator that leads a farm of one, with its log on disk as the daemon
// has it, and members that are played over pipes.
type bench struct {
	*Coordinator
	b      testing.TB
	ticket authz.Hash
	submit authz.PeerID // the machine that submits, and keeps every frame
}

func newBench(b testing.TB) *bench {
	b.Helper()
	h := lonelyHost(b)
	genesis := foundation(b, authz.PeerID(h.ID().String())).Roster
	ticket, err := authz.NewTicket(rngOf("ticket"), genesis.Found.Farm, authz.Node, false, nil)
	require.NoError(b, err)
	record := ticket.Record(1000, time.Now().Add(24*time.Hour), "admin")
	c, err := Open(h, genesis, Machine{
		Coordinates: func(authz.PeerID) bool { return true }, Roster: func(*authz.View) {}, Leads: func() {}, Moved: func() {},
	}, Config{Dir: b.TempDir()})
	require.NoError(b, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		require.NoError(b, <-done)
		require.NoError(b, c.Close())
	})
	for end := time.Now().Add(time.Minute); !c.Leading(); time.Sleep(10 * time.Millisecond) {
		require.True(b, time.Now().Before(end), "it does not lead")
	}
	require.NoError(b, c.Admit(b.Context(), authz.Command{At: time.Now(), Mint: &authz.Mint{Ticket: record}}))
	return &bench{Coordinator: c, b: b, ticket: record.Hash, submit: "ann"}
}

// spec is a job of that many frames, one a task.
func (w *bench) spec(frames int32) lease.Spec {
	return lease.Spec{
		Name: "shot", Owner: "ann", Project: aCID(0), Blend: "files/shot.blend", Frames: lease.Frames{{First: 1, Last: frames, Step: 1}}, Chunk: 1,
		Tier: lease.Normal, Replicas: 2, Submitter: w.submit,
	}
}

// join admits a machine and plays it: it completes what it is granted and keeps what
// it is asked to, both at once. It stops when the bench ends.
func (w *bench) join(id authz.PeerID, slots int) {
	w.b.Helper()
	require.NoError(w.b, w.Admit(w.b.Context(), authz.Command{At: time.Now(), Redeem: &authz.Redeem{Ticket: w.ticket, Peer: id, Name: string(id), Worker: true}}))
	here, there := net.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	served, played := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(served)
		_ = w.ServeMember(ctx, there, id)
	}()
	conn := NewConn(here)
	require.NoError(w.b, conn.Send(Up{Hello: &Hello{Can: machine(slots), Addrs: []string{"/ip4/10.0.0.1/tcp/1"}}}))
	var welcome Down
	require.NoError(w.b, conn.Receive(&welcome))
	require.NotNil(w.b, welcome.Welcome)
	says := make(chan Up, 1<<16)
	go func() {
		defer close(played)
		tick := time.NewTicker(Renewal)
		defer tick.Stop()
		for {
			var up Up
			select {
			case up = <-says:
			case <-tick.C:
				up = Up{Renew: &Renew{}}
			case <-ctx.Done():
				return
			}
			if conn.Send(up) != nil {
				return
			}
		}
	}()
	go play(conn, says)
	w.b.Cleanup(func() {
		stop()
		<-served
		<-played
	})
}

// order is as much of a message from the leader as the played members read.
type order struct {
	Grant *struct {
		lease.Report
		Frames []int32 `json:"frames"`
	} `json:"grant"`
	Keep *struct {
		Job   lease.JobID `json:"job"`
		Frame int32       `json:"frame"`
		CID   string      `json:"cid"`
	} `json:"keep"`
	Ack *Ack `json:"ack"`
}

func play(conn *Conn, says chan<- Up) {
	for seq := uint64(1); ; seq++ {
		var o order
		if conn.Receive(&o) != nil {
			return
		}
		switch {
		case o.Grant != nil:
			f := o.Grant.Frames[0]
			r := lease.Result{Frame: f, CID: aCID(int(f)), Name: fmt.Sprintf("%04d.png", f), Size: 1000, Seconds: 1}
			says <- Up{Seq: seq, Complete: &lease.Complete{Report: o.Grant.Report, Frames: []lease.Result{r}, Log: aCID(-int(f))}}
		case o.Keep != nil && o.Keep.Frame != 0:
			says <- Up{Seq: seq, Hold: &lease.Hold{Job: o.Keep.Job, Frame: o.Keep.Frame, CID: o.Keep.CID}}
		}
	}
}

// BenchmarkLeader has 50 machines of 4 slots complete tasks as fast as the leader
// grants them, while the submitter keeps every frame, and reports the grants and
// completions that are on disk in a second.
func BenchmarkLeader(b *testing.B) {
	const machines, slots, tasks = 50, 4, 10_000
	w := newBench(b)
	w.join(w.submit, 0)
	for i := range machines {
		w.join(authz.PeerID(fmt.Sprintf("box%d", i)), slots)
	}
	for b.Loop() {
		began := time.Now()
		id, _, err := w.Submit(b.Context(), lease.Submit{Spec: w.spec(tasks)})
		require.NoError(b, err)
		var rendered time.Duration
		for over := false; !over; time.Sleep(5 * time.Millisecond) {
			require.Less(b, time.Since(began), 2*time.Minute)
			w.Read(func(s *lease.State, _ *authz.Roster) {
				j, _ := s.Job(id)
				if j.Count(lease.TaskQueued)+j.Count(lease.TaskLeased) == 0 && rendered == 0 {
					rendered = time.Since(began)
				}
				over = j.State == lease.JobDone
			})
		}
		b.ReportMetric(2*tasks/rendered.Seconds(), "grants+completions/s")
		b.ReportMetric(2*tasks/time.Since(began).Seconds(), "kept/s")
	}
}

// envLarge names the folder of a coordinator with a large queue: this test binary is
// then one.
const envLarge = "VIZPEER_BENCH_LARGE"

func TestMain(m *testing.M) {
	dir := os.Getenv(envLarge)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := playLarge(dir, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// largeQueue is what a coordinator with 1,000,000 tasks in its queue measured.
type largeQueue struct {
	Snapshot time.Duration
	// Usual and Longest are times between the answers to two grants: the median while
	// nothing else happened, and the longest while the snapshot was made.
	Usual, Longest time.Duration
}

// playLarge opens a log as the daemon does, queues 1,000,000 tasks, and makes a
// snapshot while tasks are granted one after the other.
func playLarge(dir string, answer io.Writer) error {
	const jobs, tasks = 10, lease.MaxTasks
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := OpenLog(h, everyone, Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Bootstrap(h.ID()); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if leader, _ := l.Leader(); leader != "" {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("it does not lead")
		}
	}
	ctx := context.Background()
	w := bench{submit: "ann"}
	for i := range jobs {
		submit := lease.Command{At: time.Now(), Submit: &lease.Submit{Job: lease.JobID(fmt.Sprint("j", i)), Spec: w.spec(tasks)}}
		if _, err := l.Apply(ctx, Entry{Queue: &submit}); err != nil {
			return err
		}
	}
	debug.FreeOSMemory() // as a coordinator's that has stood for a while

	granted := 0
	next := func() Entry {
		id := lease.TaskID{Job: lease.JobID(fmt.Sprint("j", granted/tasks)), Index: int32(granted % tasks)}
		granted++
		return Entry{Queue: &lease.Command{At: time.Now(), Grant: &lease.Grant{Lease: newLeaseID(), Task: id, Peer: "box"}}}
	}
	grant := func() (time.Duration, error) {
		began := time.Now()
		_, err := l.Apply(ctx, next())
		return time.Since(began), err
	}
	for range 12 { // so that the snapshot has something to cut off the log
		many := make([]Entry, 1000)
		for i := range many {
			many[i] = next()
		}
		if _, errs := l.ApplyAll(ctx, many); errors.Join(errs...) != nil {
			return errors.Join(errs...)
		}
	}
	var q largeQueue
	var usual []time.Duration
	for range 1000 {
		took, err := grant()
		if err != nil {
			return err
		}
		usual = append(usual, took)
	}
	slices.Sort(usual)
	q.Usual = usual[len(usual)/2]

	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- l.Snapshot(ctx) }()
	for over := false; !over; {
		took, err := grant()
		if err != nil {
			return err
		}
		q.Longest = max(q.Longest, took)
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			q.Snapshot, over = time.Since(began), true
		default:
		}
	}
	return json.NewEncoder(answer).Encode(q)
}

// BenchmarkLargeQueue measures a coordinator with 1,000,000 tasks in its queue, as a
// process of its own: its memory at the most, that of the snapshot included, how
// long a snapshot takes, and for how much longer than usual it keeps a grant waiting.
func BenchmarkLargeQueue(b *testing.B) {
	for b.Loop() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envLarge+"="+filepath.Join(b.TempDir(), "queue"))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		require.NoError(b, err)
		var q largeQueue
		require.NoError(b, json.Unmarshal(out, &q))
		b.ReportMetric(peakRSS(cmd), "peak-B")
		b.ReportMetric(q.Snapshot.Seconds(), "snapshot-s")
		b.ReportMetric(float64((q.Longest-q.Usual).Microseconds())/1000, "stall-ms")
		b.ReportMetric(float64(q.Usual.Microseconds())/1000, "grant-ms")
	}
}
