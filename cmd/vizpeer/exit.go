package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer"
	"vizpeer/peer/cert"
	"vizpeer/peer/httpapi"
)

// The exit codes: the contract for scripts.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3 // or not allowed
	exitUnreachable = 4 // no peer, or no coordinator
	exitJob         = 5 // the job itself failed or was cancelled
	exitInterrupted = 130
)

// exitCode maps an error to its exit code: the only place that does.
func exitCode(err error) int {
	var (
		signalled   interrupted
		bad         *usageError
		missing     *notFoundError
		unreachable *unreachableError
		answer      *httpapi.Problem
		job         *jobError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &signalled):
		return exitInterrupted
	case errors.As(err, &job):
		return exitJob
	case errors.As(err, &bad), errors.Is(err, authz.ErrTicketText), errors.Is(err, peer.ErrAddress):
		return exitUsage
	case errors.As(err, &missing), errors.Is(err, peer.ErrRefused), errors.Is(err, peer.ErrOtherFarm), errors.Is(err, peer.ErrRemoved), errors.Is(err, peer.ErrRecoveryFile):
		return exitNotFound
	case errors.As(err, &unreachable), errors.Is(err, peer.ErrNoFarm), errors.Is(err, peer.ErrUnanswered), errors.Is(err, peer.ErrNotMember), errors.Is(err, cert.ErrNone):
		return exitUnreachable
	case errors.As(err, &answer):
		switch answer.Status {
		case http.StatusBadRequest, http.StatusUnprocessableEntity:
			return exitUsage
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
			return exitNotFound
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return exitUnreachable
		}
	}
	return exitFailed
}

// errSilent is wrapped by errors whose words the user has seen already.
var errSilent = errors.New("failed")

// usageError is a request that can never work as it was typed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// notFoundError is something named on the command line that is not there.
type notFoundError struct{ err error }

func (e *notFoundError) Error() string { return e.err.Error() }
func (e *notFoundError) Unwrap() error { return e.err }

func notFoundf(format string, args ...any) error { return &notFoundError{fmt.Errorf(format, args...)} }

// unreachableError says that no peer, or no coordinator, could be reached.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

func unreachablef(format string, args ...any) error {
	return &unreachableError{fmt.Errorf(format, args...)}
}

// jobError says that the job that was waited for did not become done.
type jobError struct {
	id     lease.JobID
	state  lease.JobState
	reason string
	kinds  map[lease.FailKind]int // of its failed tries
	log    string                 // Blender's last lines
}

func (e *jobError) Error() string {
	s := fmt.Sprintf("job %s %s", e.id, ended(string(e.state), e.reason))
	if e.state == lease.JobFailed {
		s += ". Next: " + e.next()
	}
	if e.log != "" {
		s += "\nBlender's last lines:\n" + e.log
	}
	return s
}

// next is what a person can do about a failure.
func (e *jobError) next() string {
	switch {
	case e.kinds[lease.FailTimeout] > 0:
		return "give a longer --task-timeout"
	case e.kinds[lease.FailMemory] > 0:
		return fmt.Sprintf("ask for a machine with more memory by --min-ram, or by --min-vram where it was the GPU's; see `vizpeer job logs %s`", e.id)
	}
	return fmt.Sprintf("see `vizpeer job logs %s`", e.id)
}

// ended is how something ended and why, in words: "failed: no memory",
// "cancelled by ann".
func ended(state, reason string) string {
	switch {
	case strings.HasPrefix(reason, state+" "):
		return "was " + reason
	case state == string(lease.JobCancelled):
		state = "was cancelled"
	}
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

// interrupted is what a command ended with after the user's Ctrl-C, or SIGTERM,
// which is its cause.
type interrupted struct{ err, cause error }

func (e interrupted) Error() string {
	if errors.Is(e.err, context.Canceled) || stopped(e.err) {
		return e.cause.Error()
	}
	return e.err.Error()
}
func (e interrupted) Unwrap() error { return e.err }
