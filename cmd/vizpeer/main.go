// Command vizpeer is the one program of the farm: `vizpeer up` is a machine's
// peer, and every other command talks to the peer of its own machine over the
// HTTP API on loopback.
//
// It promises the command words, flags, --json fields and exit codes that
// docs/cli.md lists, that what goes to standard output is the answer and
// nothing else, and that every error says its cause and the next step.
//
// It decides nothing about the farm: no command reads the queue, the store or
// the network by itself. The exceptions are `init`, `join` and `up`, which make
// and run the peer in this process, and `doctor`, which looks at this machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := untilSignal(context.Background())
	defer stop()
	c := &cli{in: in, out: out, errOut: errOut}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if cause := context.Cause(ctx); err != nil && stopped(cause) {
		err = interrupted{err, cause}
	}
	if err != nil && !errors.Is(err, errSilent) {
		fmt.Fprintf(errOut, "vizpeer: %s\n", plainLines(err.Error()))
	}
	return exitCode(err)
}

// The causes that end a command's context from outside.
var (
	errInterrupted = errors.New("interrupted")
	errTerminated  = errors.New("terminated")
)

// stopped tells that the user, or who runs the command for them, ended it.
func stopped(err error) bool { return errors.Is(err, errInterrupted) || errors.Is(err, errTerminated) }

// untilSignal returns a context that the first SIGINT or SIGTERM ends; a second
// one kills the process as if it were not caught.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			if s == os.Interrupt {
				cancel(errInterrupted)
			} else {
				cancel(errTerminated)
			}
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}
