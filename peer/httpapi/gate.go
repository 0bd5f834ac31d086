package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/libp2p/go-libp2p/core/peer"

	"vizpeer/authz"
)

// side is where requests come from.
type side int

const (
	loopback side = iota // a program on this machine
	remote               // a program on another machine, over HTTPS
	stream               // another peer, which passes on a request that came to it
)

// maxBody bounds a JSON body, in bytes.
const maxBody = 1 << 20

// caller is who makes a request, as the gate proved it.
type caller struct {
	authz.Principal
	token string  // goes to the leader with what is asked of it; never logged
	peer  peer.ID // the machine that the request came to first
	from  side
	// addr is where the client is, as far as can be known: see clientAddr.
	addr netip.Addr
}

type callerKey struct{}

func callerOf(ctx context.Context) caller { return ctx.Value(callerKey{}).(caller) }

// guard stands in front of every route: it bounds what a request may send and
// how long it may stall, and refuses pages of other origins and strangers.
func (s *Server) guard(from side, mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if from == loopback && forwarded(r) && s.proxy(remoteAddr(r)) {
			s.remote.ServeHTTP(rw, r) // somebody elsewhere asks
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), addrKey{}, s.findClient(from, r)))
		pattern := ""
		w := &patientWriter{ResponseWriter: rw, deadlines: http.NewResponseController(rw), stall: s.cfg.Stall}
		began := time.Now()
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.log.Error("a request made the API panic", "method", r.Method, "path", loggable(r.URL.Path), "panic", p, "stack", string(debug.Stack()))
				if w.status == 0 {
					writeProblem(w, MapError(fmt.Errorf("panic: %v", p)))
				}
			}
			s.observe(from, pattern, w.status, time.Since(began))
			s.log.Debug("request", "method", r.Method, "path", loggable(r.URL.Path), "status", w.status, "took", time.Since(began))
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if err := errors.Join(s.limit(from, r), s.admit(from, r)); err != nil {
			writeProblem(w, MapError(err))
			return
		}
		var h http.Handler
		h, pattern = mux.Handler(r)
		if pattern == uploadProject || pattern == uploadBlob {
			r.Body = newPatientBody(r.Body, w.deadlines, s.cfg.Stall)
		} else if err := s.takeBody(w, r); err != nil {
			writeProblem(w, MapError(err))
			return
		}
		if pattern == "" {
			s.unknown(w, r, h, from)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// loggable is a path without what people pasted where an ID belongs.
func loggable(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if authz.LooksSecret(part) {
			parts[i] = "(a secret)"
		}
	}
	return strings.Join(parts, "/")
}

// admit refuses, before anything is read, requests that must not come at all.
func (s *Server) admit(from side, r *http.Request) error {
	if from == stream {
		// The roster may have changed since the stream was accepted.
		if id, err := remotePeer(r.Context()); err != nil || !s.cfg.Member(id) {
			return fmt.Errorf("%w: only members of the farm may ask", ErrDenied)
		}
		return nil
	}
	origin := r.Header.Values("Origin")
	scheme := "http://"
	if from == remote {
		scheme = "https://"
	}
	if len(origin) > 0 && (len(origin) > 1 || !strings.EqualFold(origin[0], scheme+r.Host)) {
		return fmt.Errorf("%w: requests of other origins are refused", ErrDenied)
	}
	if from == remote {
		return nil // under a foreign name there is no certificate
	}
	if forwarded(r) {
		return fmt.Errorf("%w: this came through a proxy on this machine that is not trusted: name its address with --trusted-proxy, such as 127.0.0.1/32", ErrDenied)
	}
	// A page of a foreign site can make the browser send requests here, under its
	// own name (then Origin tells) or under a name that it made resolve to this
	// machine (then Host tells).
	if !isLoopbackHost(r.Host) {
		return fmt.Errorf("%w: the Host %q is not this machine: use 127.0.0.1 or localhost", ErrDenied, r.Host)
	}
	return nil
}

func isLoopbackHost(hostport string) bool {
	name := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		name = h
	} else {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// takeBody reads all of a small body, so that its deadline ends before the work
// begins and that it can be sent twice.
func (s *Server) takeBody(w *patientWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	w.deadlines.SetReadDeadline(time.Now().Add(s.cfg.BodyWait))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		// The deadline stays: net/http would wait for the rest of the body for ever.
		w.Header().Set("Connection", "close")
		return bodyError(err, s.cfg.BodyWait)
	}
	w.deadlines.SetReadDeadline(time.Time{})
	r.ContentLength = int64(len(data))
	r.TransferEncoding = nil
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	r.Body, err = r.GetBody()
	return err
}

// bodyError says why a body could not be read.
func bodyError(err error, patience time.Duration) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return fmt.Errorf("%w: the request is larger than the %d bytes allowed", ErrTooLarge, large.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newProblem(http.StatusRequestTimeout, CodeInvalid, fmt.Sprintf("the rest of the request did not come within %v", patience))
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the request ended before all of it had come: send it again", ErrInvalid)
	}
	return fmt.Errorf("reading the request: %w", err)
}

// gate stands in front of one route, whose rule it applies. It answers what
// needs no leader or is the leader's own; the rest it passes on.
func (s *Server) gate(from side) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		rt := hc.Operation().Metadata[routeKey].(*route)
		r, w := humago.Unwrap(hc)
		c, elsewhere, err := s.identify(r, from, rt)
		if err == nil && elsewhere == "" {
			err = rt.rule.refuses(c.Principal)
		}
		if err == nil && rt.rule.tries {
			err = s.limitTries(from, r)
		}
		switch {
		case err != nil:
			p := s.explain(r.Context(), from, rt, err)
			if rt.changes() {
				s.refused(rt.deed(hc, c), p.Status)
			}
			writeProblem(w, p)
		case elsewhere != "":
			s.forward(w, r, rt, elsewhere, c)
		default:
			s.carryOut(hc, rt, c, next)
		}
	}
}

// identify finds out who asks or, where another peer must answer, which one.
func (s *Server) identify(r *http.Request, from side, rt *route) (c caller, elsewhere peer.ID, err error) {
	ctx := r.Context()
	c.from, c.addr = from, clientAddr(ctx)
	if !rt.rule.open {
		if c.token, err = bearer(r); err != nil {
			return c, "", err
		}
	}
	if from != stream && c.token != "" {
		s.local.Shown(c.token)
	}
	if rt.place.asked() || rt.place == atJob && from != stream && s.local.Holds(jobOf(r)) {
		c.peer = s.host.ID()
		if !rt.rule.open {
			c.Principal, err = s.authenticate(ctx, c)
		}
		return c, "", err
	}
	leader, local, err := s.findLeader(ctx)
	switch {
	case from != stream && err != nil:
		return c, "", err
	case from != stream && !local:
		return c, leader, nil
	case from != stream:
		c.peer = s.host.ID()
	case err != nil || !local:
		return c, "", &NotLeaderError{Leader: leader}
	default:
		if c.peer, err = remotePeer(ctx); err != nil {
			return c, "", err
		}
	}
	if !rt.rule.open {
		if c.Principal, err = verified(s.local.Authenticate(ctx, c.token)); err == nil {
			err = c.atHome()
		}
	}
	return c, "", err
}

// atHome refuses a machine's own key where the request began at another machine: where
// it came to another peer first, or to its own from elsewhere.
func (c caller) atHome() error {
	if c.Machine == "" || string(c.Machine) == c.peer.String() && (!c.addr.IsValid() || c.addr.IsLoopback()) {
		return nil
	}
	return unauthorised("this is the key of another machine, and good only there: log in, or ask an admin for a key of your own (`vizpeer key create`)", true)
}

// authenticate asks this machine and, where it does not know the token, the
// leader: not every machine knows every token of the farm.
func (s *Server) authenticate(ctx context.Context, c caller) (authz.Principal, error) {
	p, err := s.local.Authenticate(ctx, c.token)
	if err != nil && MapError(err).Code == CodeUnauthorised {
		leader, local, ferr := s.findLeader(ctx)
		if ferr != nil {
			return p, fmt.Errorf("this machine does not know the token, and nobody else can be asked: %w", ferr)
		}
		if !local {
			p, err = (&remoteQueue{s, leader, c}).principal(ctx)
		}
	}
	if c.Principal, err = verified(p, err); err == nil {
		err = c.atHome()
	}
	return c.Principal, err
}

// verified refuses a principal that a backend should never have answered.
func verified(p authz.Principal, err error) (authz.Principal, error) {
	if err == nil && (p.User == "" || !slices.Contains(authz.Roles(), p.Role)) {
		err = ErrUnauthorised
	}
	return p, err
}

func bearer(r *http.Request) (string, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > 4096 {
		return "", unauthorised("a token is needed: send the one in this machine's token file as Authorization: Bearer TOKEN", false)
	}
	return token, nil
}

// findLeader is Leader.Find with a limit.
func (s *Server) findLeader(ctx context.Context) (peer.ID, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LeaderWait)
	defer cancel()
	id, local, err := s.leader.Find(ctx)
	if err != nil && !errors.Is(err, ErrNoLeader) {
		err = fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return id, local, err
}

// explain turns a handler's error into the caller's problem, and logs what the
// caller does not get to see.
func (s *Server) explain(ctx context.Context, from side, rt *route, err error) *Problem {
	var wrong *NotLeaderError
	if from == stream && errors.As(err, &wrong) {
		p := newProblem(http.StatusMisdirectedRequest, CodeNoLeader, wrong.Error())
		if wrong.Leader != "" {
			p.header.Set(leaderHeader, wrong.Leader.String())
		}
		return p
	}
	p := MapError(err)
	if p.Status >= 500 && p.Code != CodeNoLeader && p.Code != CodeNotReady && ctx.Err() == nil {
		s.log.Warn("a request failed", "method", rt.Method, "route", rt.Path, "code", p.Code, "error", err)
	}
	return p
}

// patientWriter allows a caller a while to take each piece of the answer, and no
// limit for the whole.
type patientWriter struct {
	http.ResponseWriter
	deadlines *http.ResponseController
	stall     time.Duration
	status    int // 0 until the header is written
}

// Unwrap lets http.ResponseController reach the connection.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) WriteHeader(status int) {
	w.deadlines.SetWriteDeadline(time.Now().Add(w.stall))
	if status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *patientWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.deadlines.SetWriteDeadline(time.Now().Add(w.stall))
	return w.ResponseWriter.Write(b)
}

// patientBody allows a caller a while to send each piece of an upload.
type patientBody struct {
	io.ReadCloser
	deadlines *http.ResponseController
	stall     time.Duration
}

func newPatientBody(body io.ReadCloser, deadlines *http.ResponseController, stall time.Duration) io.ReadCloser {
	if body == http.NoBody {
		return body
	}
	// Also for a body that nobody reads: the server drains some of it.
	deadlines.SetReadDeadline(time.Now().Add(stall))
	return &patientBody{body, deadlines, stall}
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.deadlines.SetReadDeadline(time.Now().Add(b.stall))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// From here on the server reads in the background to notice a caller that
		// leaves, and would take a deadline for that.
		b.deadlines.SetReadDeadline(time.Time{})
	}
	return n, err
}
