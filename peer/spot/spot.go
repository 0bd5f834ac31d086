// Package spot waits for the word that this machine will be taken away: clouds rent
// machines that are free for less, and take them back with minutes of notice.
//
// It promises to tell of a notice once, within seconds, with the time that is left. It
// knows the words of the large clouds, and files that anybody's script can write. It does
// not decide what to do then: package peer does.
package spot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Notice is the word that the machine will be taken away.
type Notice struct {
	At     time.Time // when, as far as is known; zero where it is not
	Reason string    // for people
}

// The clouds whose words are known, as sources for [Watch].
const (
	AWS   = "aws"
	GCP   = "gcp"
	Azure = "azure"
)

// The times of asking: the clouds say to ask every five seconds, and answer at once or,
// Google's, when something changes.
const (
	every     = 5 * time.Second
	answerIn  = 4 * time.Second
	changesIn = 2 * time.Minute
	maxAnswer = 64 << 10
)

// Check reports what is wrong with a source: the name of a cloud, an http URL, or the
// absolute path of a file that will exist, with something in it, when the time has come.
func Check(source string) error {
	switch {
	case source == AWS, source == GCP, source == Azure, filepath.IsAbs(source):
		return nil
	case strings.HasPrefix(source, "http://"), strings.HasPrefix(source, "https://"):
		if u, err := url.Parse(source); err == nil && u.Host != "" {
			return nil
		}
	}
	return fmt.Errorf("%.100q is no source of notices: use aws, gcp, azure, a URL or the absolute path of a file", source)
}

// Watch waits for the notice of a source that [Check] accepts. It returns when there is
// one, or with an error when ctx ends or a file cannot be watched. What a cloud does not
// answer is asked again.
func Watch(ctx context.Context, source string, log *slog.Logger) (Notice, error) {
	if filepath.IsAbs(source) {
		return watchFile(ctx, source)
	}
	q := cloud(source)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for said := false; ; {
		n, ok, err := q.ask(ctx)
		switch {
		case ok:
			return n, nil
		case err != nil && ctx.Err() == nil && !said:
			log.Warn("nobody answers whether this machine will be taken away; it is asked again and again", "source", source, "err", err)
			said = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Notice{}, ctx.Err()
		}
	}
}

// question is how a cloud is asked.
type question struct {
	url    string
	header http.Header
	token  string // where a token is to be had first, with a PUT
	within time.Duration
}

func cloud(source string) question {
	switch source {
	case AWS: // https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
		const host = "http://169.254.169.254/latest/"
		return question{url: host + "meta-data/spot/instance-action", token: host + "api/token", within: answerIn}
	case GCP: // https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
		return question{url: "http://metadata.google.internal/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec=60",
			header: http.Header{"Metadata-Flavor": {"Google"}}, within: changesIn}
	case Azure: // https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
		return question{url: "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01", header: http.Header{"Metadata": {"true"}}, within: answerIn}
	}
	return question{url: source, within: answerIn}
}

// client follows nobody elsewhere and asks no proxy: the word is the machine's own.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// tokenHeader and tokenTime are AWS's.
const (
	tokenHeader = "X-aws-ec2-metadata-token"
	tokenTime   = "X-aws-ec2-metadata-token-ttl-seconds"
)

func (q question) ask(ctx context.Context) (Notice, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, q.within)
	defer cancel()
	header := q.header.Clone()
	if q.token != "" {
		token, status, err := fetch(ctx, http.MethodPut, q.token, http.Header{tokenTime: {"60"}})
		if err != nil || status != http.StatusOK {
			return Notice{}, false, cmp.Or(err, fmt.Errorf("the answer was %d", status))
		}
		header = http.Header{tokenHeader: {string(bytes.TrimSpace(token))}}
	}
	text, status, err := fetch(ctx, http.MethodGet, q.url, header)
	switch {
	case err != nil:
		return Notice{}, false, err
	case status == http.StatusNotFound: // AWS: nothing to tell
		return Notice{}, false, nil
	case status != http.StatusOK:
		return Notice{}, false, fmt.Errorf("the answer was %d", status)
	}
	n, ok := parse(text)
	return n, ok, nil
}

func fetch(ctx context.Context, method, url string, header http.Header) (text []byte, status int, err error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, 0, err
	}
	if header != nil {
		r.Header = header
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	return text, answer.StatusCode, err
}

// parse reads a notice in the shape of one of the clouds. What is in no known shape is
// a notice too, unless it says no.
func parse(text []byte) (Notice, bool) {
	text = bytes.TrimSpace(text)
	var doc struct {
		Action string `json:"action"` // AWS: "terminate", "stop" or "hibernate"
		Time   string `json:"time"`
		Events *[]struct {
			EventType string // Azure: "Preempt", "Terminate", and others that come back
			NotBefore string // "" where it has begun
		}
	}
	if len(text) > 0 && text[0] == '{' && json.Unmarshal(text, &doc) == nil {
		if doc.Events != nil {
			for _, e := range *doc.Events {
				if e.EventType == "Preempt" || e.EventType == "Terminate" {
					at, _ := http.ParseTime(e.NotBefore)
					return Notice{At: at, Reason: "the cloud takes this machine back"}, true
				}
			}
			return Notice{}, false
		}
		at, _ := time.Parse(time.RFC3339, doc.Time)
		return Notice{At: at, Reason: "the cloud takes this machine back"}, doc.Action != "" || !at.IsZero()
	}
	switch word := strings.ToLower(string(text)); word {
	case "", "false", "0", "no", "none":
		return Notice{}, false
	default:
		at, _ := time.Parse(time.RFC3339, string(text))
		return Notice{At: at, Reason: "this machine was said to be taken away"}, true
	}
}

// watchFile waits until a file has a notice in it. Its folder is watched: the file may
// come, or be replaced.
func watchFile(ctx context.Context, path string) (Notice, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return Notice{}, fmt.Errorf("watch %s: %w", path, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return Notice{}, fmt.Errorf("watch the folder of %s: %w", path, err)
	}
	for {
		if n, ok := readFile(path); ok {
			return n, nil
		}
		select {
		case <-w.Events:
		case err, open := <-w.Errors:
			if !open {
				return Notice{}, errors.New("the watch of " + path + " has ended")
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return Notice{}, fmt.Errorf("watch %s: %w", path, err)
			}
		case <-ctx.Done():
			return Notice{}, ctx.Err()
		}
	}
}

func readFile(path string) (Notice, bool) {
	f, err := os.Open(path)
	if err != nil {
		return Notice{}, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAnswer))
	if err != nil {
		return Notice{}, false
	}
	return parse(text)
}
