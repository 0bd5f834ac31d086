package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// linesType is the content type of JSON lines.
const linesType = "application/jsonl"

// Step is a line of the answer of what takes a while: how far it is, or how it
// ended. The last line has a Result or a Problem, and only the last.
type Step[T any] struct {
	Done    int64    `json:"done,omitempty"`  // bytes
	Total   int64    `json:"total,omitempty"` // bytes; 0 while it is not known
	Result  *T       `json:"result,omitempty"`
	Problem *Problem `json:"problem,omitempty"`
}

// stepPeriod is how often progress is told at most.
const stepPeriod = 200 * time.Millisecond

// steps answers with work's progress and its end. What fails before it makes
// progress is an ordinary error. work ends with the request.
func steps[T any](s *Server, ctx context.Context, rt string, x *exchange, work func(context.Context, func(done, total int64)) (T, error)) (*huma.StreamResponse, error) {
	var (
		mu     sync.Mutex
		latest Step[T]
		told   time.Time
	)
	moved, ended := make(chan struct{}, 1), make(chan struct{})
	var result T
	var err error
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		result, err = work(ctx, func(done, total int64) {
			mu.Lock()
			defer mu.Unlock()
			latest.Done, latest.Total = max(latest.Done, done), total
			if now := time.Now(); now.Sub(told) >= stepPeriod {
				told = now
				select {
				case moved <- struct{}{}:
				default:
				}
			}
		})
	}()
	select {
	case <-moved:
	case <-ended:
		cancel()
		if err != nil {
			return nil, err
		}
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer func() { cancel(); <-ended }()
		x.w.Header().Set("Content-Type", linesType)
		flush := http.NewResponseController(x.w)
		out := json.NewEncoder(x.w)
		say := func(step Step[T]) bool { return out.Encode(step) == nil && flush.Flush() == nil }
		for {
			select {
			case <-ended:
			default:
				mu.Lock()
				step := latest
				mu.Unlock()
				if !say(step) {
					return
				}
				select {
				case <-moved:
					continue
				case <-ended:
				}
			}
			if err != nil {
				say(Step[T]{Problem: s.explain(ctx, loopback, &route{Path: rt}, err)})
				return
			}
			say(Step[T]{Result: &result})
			return
		}
	}}, nil
}
