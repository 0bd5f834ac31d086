package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vizpeer/authz"
	"vizpeer/lease"
	"vizpeer/peer/cert"
	"vizpeer/peer/httpapi"
)

// The files that a running peer leaves in its data folder for this client.
const (
	apiFile   = "api"    // one line: the API's base URL
	caFile    = "ca.crt" // the certificates of the farm's CA
	tokenFile = "token"  // one line: the bearer token of this machine's person
)

const (
	// answerTimeout bounds a request that is answered at once.
	answerTimeout = 30 * time.Second
	// maxAnswer bounds a JSON answer: a job of 2,000,000 frames fits.
	maxAnswer = 1 << 30
)

// client talks to the API of one peer.
type client struct {
	base  string // without a slash at the end
	token string
	http  *http.Client
	local bool              // the peer is on this machine
	extra map[string]string // headers
}

// with is the client whose requests also have that header.
func (cl *client) with(name, value string) *client {
	other := *cl
	other.extra = map[string]string{name: value}
	return &other
}

// client finds the peer that the flags name, and who commands act as.
func (c *cli) client() (*client, error) {
	base, token, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	return c.newClient(base, token)
}

// guest finds the peer for who has not logged in yet.
func (c *cli) guest() (*client, error) {
	base, err := c.apiBase()
	if err != nil {
		return nil, err
	}
	return c.newClient(base, "")
}

func (c *cli) newClient(base, token string) (*client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("%q is no API address: write it like http://127.0.0.1:8787", base)
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme == "http" && !local {
		return nil, usagef("%q is on another machine, and over plain HTTP everybody between could read who you are: write it with https://", base)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // a token for a machine of the farm is no proxy's business
	transport.DialContext = dialPatiently
	if u.Scheme == "https" {
		if transport.TLSClientConfig, err = c.trust(u.Hostname()); err != nil {
			return nil, err
		}
	}
	return &client{
		base:  strings.TrimSuffix(base, "/"),
		token: token,
		http:  &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		local: local,
	}, nil
}

// trust is what a peer that is called over HTTPS must show: a certificate of the CA that
// was pinned or, where none was, of the one of this machine's own farm. A machine of no
// farm goes by the CAs that its system trusts, for a proxy in front of a peer may have a
// certificate of one.
func (c *cli) trust(host string) (*tls.Config, error) {
	if c.caPin != "" {
		if c.caFile != "" {
			return nil, usagef("--ca-file and --ca-fingerprint are two ways to say the same: give one of them")
		}
		sum, err := cert.ParseFingerprint(c.caPin)
		if err != nil {
			return nil, usagef("--ca-fingerprint: %w", err)
		}
		return cert.Pinning(sum, host), nil
	}
	path := c.caFile
	if path == "" {
		dir, err := c.folder()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(dir, caFile)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return &tls.Config{MinVersion: tls.VersionTLS12}, nil
		}
	}
	bundle, err := os.ReadFile(path)
	if err != nil {
		return nil, notFoundf("the file of the farm's CA could not be read: %w: name it with --ca-file or $VIZPEER_CA_FILE", err)
	}
	cfg, err := cert.Trusting(bundle)
	if err != nil {
		return nil, usagef("%s is no ca.crt: %w", path, err)
	}
	return cfg, nil
}

func (c *cli) endpoint() (base, token string, err error) {
	tokenPath := c.tokenFile
	if tokenPath == "" {
		dir, err := c.folder()
		if err != nil {
			return "", "", err
		}
		tokenPath = filepath.Join(dir, tokenFile)
		if session, err := c.sessionFile(); err == nil && c.loggedIn() {
			tokenPath = session // who has logged in goes before the machine
		}
		switch _, err := os.Stat(tokenPath); {
		case errors.Is(err, fs.ErrNotExist):
			return "", "", unreachablef("this machine is in no farm yet (%s holds none): start one with `vizpeer init`, or join one with `vizpeer join TICKET`", dir)
		case err != nil:
			return "", "", fmt.Errorf("the data folder cannot be read: %w: run this as the person who owns it, or name another with --data-dir", err)
		}
	}
	if base, err = c.apiBase(); err != nil {
		return "", "", err
	}
	secret, err := os.ReadFile(tokenPath)
	var failed *fs.PathError
	switch {
	case errors.As(err, &failed):
		// The path may be a token that was pasted where its file belongs: it is not repeated.
		return "", "", notFoundf("the token file could not be read (%w): name it with --token-file or $VIZPEER_TOKEN", failed.Err)
	case err != nil:
		return "", "", fmt.Errorf("the token file could not be read: %w", err)
	}
	return base, strings.TrimSpace(string(secret)), nil
}

// apiBase is the URL of the API that the flags name.
func (c *cli) apiBase() (string, error) {
	if c.api != "" {
		return c.api, nil
	}
	dir, err := c.folder()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, apiFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNoPeer
	}
	if err != nil {
		return "", fmt.Errorf("the address of the running peer could not be read: %w: run this as the person who owns it, or name another folder with --data-dir", err)
	}
	return strings.TrimSpace(string(text)), nil
}

var errNoPeer = unreachablef("no vizpeer is running on this machine: start it with `vizpeer up`")

// exchange makes a request and hands over the response, whose status is in
// the 200s.
func (cl *client) exchange(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, cl.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("the request could not be made: %w", err)
	}
	if cl.token != "" {
		req.Header.Set("Authorization", "Bearer "+cl.token)
	}
	req.Header.Set("User-Agent", "vizpeer/"+version)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for name, value := range cl.extra {
		req.Header.Set(name, value)
	}
	for {
		resp, err := cl.http.Do(req)
		if err != nil {
			return nil, cl.explain(ctx, err)
		}
		if resp.StatusCode/100 == 2 {
			return resp, nil
		}
		err = readProblem(resp)
		resp.Body.Close()
		if !cl.later(req, resp) {
			return nil, err
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, fmt.Errorf("the request could not be made again: %w", err)
			}
		}
	}
}

// maxPause is the longest that a command waits because it asked too much at once.
const maxPause = 3 * time.Second

// later waits until a request may be made again that was one too many, such as for a
// frame after many others. Where that takes long, as after many wrong passwords, or
// cannot be, it says so at once.
func (cl *client) later(req *http.Request, resp *http.Response) bool {
	wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	pause := time.Duration(wait) * time.Second
	if resp.StatusCode != http.StatusTooManyRequests || err != nil || pause <= 0 || pause > maxPause || req.Body != nil && req.GetBody == nil {
		return false
	}
	again := time.NewTimer(pause)
	defer again.Stop()
	select {
	case <-again.C:
		return true
	case <-req.Context().Done():
		return false
	}
}

// explain turns a failure to get any answer into the sentence for it.
func (cl *client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial" && cl.local:
		return errNoPeer
	case errors.As(err, &dial) && dial.Op == "dial":
		return unreachablef("no vizpeer answers at %s (%w): check --api", cl.base, dial.Err)
	case errors.Is(err, context.DeadlineExceeded):
		return unreachablef("the peer at %s gave no answer within %s: see `vizpeer doctor`", cl.base, answerTimeout)
	}
	var untrusted *tls.CertificateVerificationError
	var name x509.HostnameError
	switch {
	case errors.As(err, &name):
		return unreachablef("the certificate that %s shows is not for that name (%w): call it by another, or start its peer with --api-name", cl.base, name)
	case errors.As(err, &untrusted), errors.Is(err, cert.ErrPin), errors.As(err, new(x509.UnknownAuthorityError)), errors.As(err, new(x509.CertificateInvalidError)):
		return unreachablef("the peer at %s shows no certificate of the farm's CA, so nothing was sent to it: check --api, and --ca-file or --ca-fingerprint against what `vizpeer status` shows on a machine of the farm", cl.base)
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return unreachablef("the peer at %s broke off: %w", cl.base, err)
}

// readProblem reads the error document of a response; what is not one is told by
// its status.
func readProblem(resp *http.Response) error {
	p := &httpapi.Problem{}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasSuffix(kind, "json") {
		// An unreadable document leaves the status, which says enough.
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(p)
	}
	p.Status = resp.StatusCode
	if p.Detail == "" {
		p.Detail = fmt.Sprintf("the peer answered %s: is it a vizpeer of this version? See `vizpeer doctor`", resp.Status)
	}
	return p
}

// call exchanges JSON documents; in may be nil.
func (cl *client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var body io.Reader
	contentType := ""
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("the request could not be written: %w", err)
		}
		body, contentType = bytes.NewReader(text), "application/json"
	}
	resp, err := cl.exchange(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return cl.decode(ctx, resp, path, out)
}

// callSlowly is call for what may take as long as the disk takes.
func (cl *client) callSlowly(ctx context.Context, method, path string, out any) error {
	resp, err := cl.exchange(ctx, method, path, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return cl.decode(ctx, resp, path, out)
}

// decode reads the document that was answered to what.
func (cl *client) decode(ctx context.Context, resp *http.Response, what string, out any) error {
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		if ctx.Err() != nil {
			return cl.explain(ctx, err)
		}
		return fmt.Errorf("the peer's answer to %s could not be read: %w", what, err)
	}
	return nil
}

func jobPath(id lease.JobID, rest string) string {
	return "/v1/jobs/" + url.PathEscape(string(id)) + rest
}

// jobs lists all jobs that fit the filters, over as many pages as it takes.
func (cl *client) jobs(ctx context.Context, filters url.Values) (all []httpapi.JobSummary, err error) {
	for {
		var page httpapi.JobList
		if err := cl.call(ctx, http.MethodGet, "/v1/jobs?"+filters.Encode(), nil, &page); err != nil {
			return nil, err
		}
		if all = append(all, page.Jobs...); page.Next == "" {
			return all, nil
		}
		filters.Set("after", page.Next)
	}
}

// named says which job it is that is not there.
func named(id lease.JobID, err error) error {
	if p, ok := errors.AsType[*httpapi.Problem](err); ok && p.Status == http.StatusNotFound {
		return notFoundf("there is no job %s here, or it is not yours to see: vizpeer job ls", id)
	}
	return err
}

// waiting lists the jobs that wait on the peer's machine for somebody to lead the queue.
func (cl *client) waiting(ctx context.Context) ([]httpapi.JobSummary, error) {
	var answer httpapi.JobList
	err := cl.call(ctx, http.MethodGet, "/v1/outbox", nil, &answer)
	return answer.Jobs, err
}

func (cl *client) job(ctx context.Context, id lease.JobID) (httpapi.Job, error) {
	var job httpapi.Job
	err := cl.call(ctx, http.MethodGet, jobPath(id, ""), nil, &job)
	return job, named(id, err)
}

func (cl *client) tasks(ctx context.Context, id lease.JobID) ([]httpapi.Task, error) {
	var answer httpapi.TaskList
	err := cl.call(ctx, http.MethodGet, jobPath(id, "/tasks"), nil, &answer)
	return answer.Tasks, named(id, err)
}

// control does something to a job; body is nil where the verb says all.
func (cl *client) control(ctx context.Context, id lease.JobID, do httpapi.Verb, body any) (httpapi.JobSummary, error) {
	var job httpapi.JobSummary
	err := cl.call(ctx, http.MethodPost, jobPath(id, "/"+string(do)), body, &job)
	return job, named(id, err)
}

// why asks about a job or, where task is not negative, about one of its tasks.
func (cl *client) why(ctx context.Context, id lease.JobID, task int32) (httpapi.Why, error) {
	query := ""
	if task >= 0 {
		query = fmt.Sprintf("?task=%d", task)
	}
	var why httpapi.Why
	err := cl.call(ctx, http.MethodGet, jobPath(id, "/why"+query), nil, &why)
	return why, named(id, err)
}

// Where the leader goes away before it answers, or while it commits, a submission is made
// again for so long, every so often.
const (
	submitPatience = 2 * time.Minute
	submitPause    = 2 * time.Second
)

// submit submits a job. The key of the request makes it one job however often it is
// asked for, so that a leader that went away before it answered is no trouble; waits is
// told each time.
func (cl *client) submit(ctx context.Context, s httpapi.Submission, waits func(error)) (httpapi.Submitted, error) {
	cl = cl.with("Idempotency-Key", rand.Text())
	for end := time.Now().Add(submitPatience); ; {
		var answer httpapi.Submitted
		err := cl.call(ctx, http.MethodPost, "/v1/jobs", s, &answer)
		p, refused := errors.AsType[*httpapi.Problem](err)
		if !refused || p.Status != http.StatusServiceUnavailable || time.Now().After(end) {
			return answer, err
		}
		waits(err)
		select {
		case <-time.After(submitPause):
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		}
	}
}

func (cl *client) peers(ctx context.Context) ([]httpapi.Peer, error) {
	var answer httpapi.PeerList
	err := cl.call(ctx, http.MethodGet, "/v1/peers", nil, &answer)
	return answer.Peers, err
}

// manage changes what the farm holds of a machine; body is nil where the path says
// all.
func (cl *client) manage(ctx context.Context, method string, id authz.PeerID, what string, body any) (httpapi.Peer, error) {
	var p httpapi.Peer
	err := cl.call(ctx, method, "/v1/peers/"+url.PathEscape(string(id))+"/"+what, body, &p)
	return p, err
}

func (cl *client) farm(ctx context.Context) (httpapi.Farm, error) {
	var farm httpapi.Farm
	err := cl.call(ctx, http.MethodGet, "/v1/farm", nil, &farm)
	return farm, err
}

func (cl *client) status(ctx context.Context) (httpapi.Status, error) {
	var status httpapi.Status
	err := cl.call(ctx, http.MethodGet, "/v1/status", nil, &status)
	return status, err
}

func (cl *client) invite(ctx context.Context, i httpapi.Invitation) (httpapi.Invited, error) {
	var answer httpapi.Invited
	err := cl.call(ctx, http.MethodPost, "/v1/tickets", i, &answer)
	return answer, err
}

// open returns the body of a GET, for the caller to close.
func (cl *client) open(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := cl.exchange(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// read returns the body of a GET whole; maxAnswer bounds it.
func (cl *client) read(ctx context.Context, path string) ([]byte, error) {
	body, err := cl.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxAnswer))
}
