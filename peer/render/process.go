package render

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

// Once a program has ended its output does too, unless a process holds it that the
// program started and that left its group: after strayGrace it is looked for, and
// after killGrace whatever still holds the output is left to itself.
const (
	strayGrace = 200 * time.Millisecond
	killGrace  = 5 * time.Second
)

// supervise runs cmd to its end, giving its output to read, and kills it with
// everything it started when ctx ends or read fails. tmp is the folder for temporary
// files that cmd alone was given, "" where nothing that it starts outlives it anyway.
// exit is the exit code, or 128 and the signal's number.
func supervise(ctx context.Context, cmd *exec.Cmd, tmp string, read func(io.Reader) error) (exit int, err error) {
	p := newProcess(cmd, tmp)
	if err := p.start(nil, nil); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, p.kill)
	defer stop()
	err = read(p.out)
	if err != nil {
		p.kill()
	}
	p.leave()
	<-p.gone
	return p.exit(), err
}

// process is a program that runs, with everything that it starts. Whoever starts it
// reads out until it ends, or kills it, and then leaves it.
type process struct {
	group
	out *bufio.Reader // all that it prints, of lines up to maxLine
	in  *os.File      // its standard input, where it has one

	pipe  *os.File      // below out
	left  chan struct{} // nobody reads out any more
	leave func()        // closes left
	// gone is closed when the process has ended, and what it left is gone too.
	gone chan struct{}
}

// newProcess prepares cmd; tmp is as for [supervise].
func newProcess(cmd *exec.Cmd, tmp string) *process {
	p := &process{group: group{cmd: cmd, tmp: tmp}, left: make(chan struct{}), gone: make(chan struct{})}
	p.leave = sync.OnceFunc(func() { close(p.left) })
	return p
}

// start starts the process. ended is called when it has ended, and tidy when it was
// left, too; either may be nil, and neither is called where start fails.
func (p *process) start(ended, tidy func()) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.pipe, p.out = r, bufio.NewReaderSize(r, maxLine)
	p.cmd.Stdout, p.cmd.Stderr = w, w
	ownGroup(p.cmd)
	started := make(chan error)
	go p.live(started, ended, tidy)
	err = <-started
	w.Close()
	if err != nil {
		r.Close()
		return startError{err}
	}
	return nil
}

// withInput gives the process a standard input.
func (p *process) withInput() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p.cmd.Stdin, p.in = r, w
	return nil
}

// live is the goroutine that has the process as its child.
func (p *process) live(started chan<- error, ended, tidy func()) {
	// The kernel kills the child when the thread that started it goes away: keep
	// the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	err := p.cmd.Start()
	if in, ok := p.cmd.Stdin.(*os.File); ok {
		in.Close()
	}
	for _, f := range p.cmd.ExtraFiles { // the sandbox has them now
		f.Close()
	}
	if err != nil && p.in != nil {
		p.in.Close()
	}
	started <- err
	if err != nil {
		return
	}
	p.wait()
	if ended != nil {
		ended()
	}
	p.pipe.SetReadDeadline(time.Now().Add(killGrace))
	grace := time.NewTimer(strayGrace)
	defer grace.Stop()
	select {
	case <-p.left:
	case <-grace.C:
		killStrays(0, p.tmp)
		<-p.left
	}
	p.pipe.Close()
	if p.in != nil {
		p.in.Close()
	}
	if tidy != nil {
		tidy()
	}
	close(p.gone)
}

// exit is how a process ended that is gone: its exit code, or 128 and the signal's
// number.
func (p *process) exit() int { return exitCode(p.cmd.ProcessState) }

// group is a process and what it started. It remembers when the process is gone,
// because its number may be another's then.
type group struct {
	cmd  *exec.Cmd
	tmp  string // see supervise
	mu   sync.Mutex
	over bool
}

func (g *group) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		killStrays(0, g.tmp)
		return
	}
	if g.tmp != "" { // while it lives, those that hide are known as its children
		killStrays(g.cmd.Process.Pid, g.tmp)
	}
	killGroup(g.cmd)
	killStrays(0, g.tmp)
}

// wait returns when the process has ended, and takes along what it left in its
// group.
func (g *group) wait() {
	if awaitExit(g.cmd) {
		g.mu.Lock()
		defer g.mu.Unlock()
		killGroup(g.cmd)
	}
	g.cmd.Wait() // the state says how it ended
	g.over = true
}

type startError struct{ error }

func (e startError) Unwrap() error { return e.error }
