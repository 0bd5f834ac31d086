package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// secrets reads passwords, which never stand on a command line: from a terminal
// without showing them, and otherwise from standard input, a line each.
type secrets struct {
	c     *cli
	lines *bufio.Reader
}

func (c *cli) secrets() *secrets {
	return &secrets{c, bufio.NewReader(io.LimitReader(c.in, 64<<10))}
}

// terminal is the terminal that standard input is, if it is one.
func (s *secrets) terminal() (fd int, ok bool) {
	f, ok := s.c.in.(*os.File)
	if !ok {
		return 0, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

// ask reads one password. what says whose or which it is.
func (s *secrets) ask(ctx context.Context, what string) (string, error) {
	fd, ok := s.terminal()
	if !ok {
		line, err := s.lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if err != nil && (!errors.Is(err, io.EOF) || line == "") {
			return "", usagef("%s is missing: it comes on standard input, as a line of its own", what)
		}
		return line, nil
	}
	was, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", what, err)
	}
	fmt.Fprintf(s.c.errOut, "%s: ", plain(what))
	type typed struct {
		line []byte
		err  error
	}
	done := make(chan typed, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		done <- typed{line, err}
	}()
	select {
	case t := <-done:
		fmt.Fprintln(s.c.errOut)
		if t.err != nil {
			return "", fmt.Errorf("reading %s: %w", what, t.err)
		}
		return string(t.line), nil
	case <-ctx.Done(): // the terminal shows again what is typed
		_ = term.Restore(fd, was)
		fmt.Fprintln(s.c.errOut)
		return "", context.Cause(ctx)
	}
}

// choose reads a new password, twice where somebody types it.
func (s *secrets) choose(ctx context.Context, what string) (string, error) {
	first, err := s.ask(ctx, what)
	if _, typed := s.terminal(); err != nil || !typed {
		return first, err
	}
	again, err := s.ask(ctx, what+", once more")
	if err == nil && again != first {
		err = usagef("the two are not the same: nothing was changed")
	}
	return first, err
}
