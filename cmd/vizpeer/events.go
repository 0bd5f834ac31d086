package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"vizpeer/peer/httpapi"
)

const (
	// patience is how long a stream may stay broken before the command gives up:
	// long enough for a peer to be started again.
	patience = 2 * time.Minute
	// maxEventLine bounds one line of the stream.
	maxEventLine = 4 << 20
)

// listener takes what the event stream gives. A non-nil error ends the stream;
// errStop ends it well.
type listener struct {
	// opened is called each time the stream is there: what happened before is
	// the caller's to read now, and what happens from now on comes as events.
	opened func() error
	event  func(httpapi.Event) error
	// idle is called at each of the server's keep-alives; it may be nil.
	idle func() error
}

var errStop = errors.New("stop")

// events follows /v1/events until the listener ends it or ctx does. It connects
// again by itself, with Last-Event-ID, and gives up when the peer or the leader
// stays away for longer than patience.
func (cl *client) events(ctx context.Context, query string, l listener) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 200*time.Millisecond, 5*time.Second
	var (
		last      uint64
		connected bool
		broken    time.Time // since when nothing came
	)
	for {
		resp, err := cl.openEvents(ctx, query, last)
		if err == nil {
			connected = true
			before := last
			err = readEvents(resp.Body, &last, l)
			resp.Body.Close()
			if last > before {
				wait.Reset()
				broken = time.Time{}
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errStop):
			return nil
		case errors.Is(err, errNoPeer) && !connected:
			return err
		case exitCode(err) != exitUnreachable:
			return err
		}
		if broken.IsZero() {
			broken = time.Now()
		} else if time.Since(broken) > patience {
			return err
		}
		again := time.NewTimer(wait.NextBackOff())
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
		}
	}
}

func (cl *client) openEvents(ctx context.Context, query string, last uint64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cl.base+"/v1/events"+query, nil)
	if err != nil {
		return nil, fmt.Errorf("the request could not be made: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+cl.token)
	req.Header.Set("Accept", "text/event-stream")
	if last > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatUint(last, 10))
	}
	resp, err := cl.http.Do(req)
	if err != nil {
		return nil, cl.explain(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, readProblem(resp)
	}
	return resp, nil
}

// readEvents reads one connection's stream to its end. A stream that broke or
// that the server ended is an unreachable peer, for the caller to try again.
func readEvents(body io.Reader, last *uint64, l listener) error {
	if err := l.opened(); err != nil {
		return err
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEventLine)
	var data strings.Builder
	for lines.Scan() {
		line := lines.Text()
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data.Len() == 0 {
				continue
			}
			var ev httpapi.Event
			err := json.Unmarshal([]byte(data.String()), &ev)
			data.Reset()
			if err != nil {
				return fmt.Errorf("an event of the peer could not be read: %w", err)
			}
			if ev.ID > *last {
				*last = ev.ID
			}
			if err := l.event(ev); err != nil {
				return err
			}
		case field == "": // a comment keeps the connection alive
			if l.idle != nil {
				if err := l.idle(); err != nil {
					return err
				}
			}
		case field == "data":
			if data.Len()+len(value) > maxEventLine {
				return errors.New("an event of the peer is too long")
			}
			if data.Len() > 0 {
				data.WriteByte('\n')
			}
			data.WriteString(value)
		}
	}
	if err := lines.Err(); err != nil {
		return unreachablef("the peer's events broke off: %w", err)
	}
	return unreachablef("the peer ended its events")
}
