package httpapi

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// measure makes the numbers of requests. Their labels take few values, whatever callers
// send: routes are those of the table.
func (s *Server) measure(in *prometheus.Registry) {
	s.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "vizpeer_http_request_duration_seconds",
		Help:    "How long requests took, by route, status and side: loopback, remote (HTTPS) or stream (from other peers). Streams of events are not counted.",
		Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600},
	}, []string{"side", "route", "code"})
	in.MustRegister(s.took)
	in.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "vizpeer_https_connections", Help: "Connections of other machines to the API.",
	}, func() float64 {
		s.conns.mu.Lock()
		defer s.conns.mu.Unlock()
		return float64(s.conns.all)
	}))
}

// eventsRoute never ends by itself.
const eventsRoute = "GET /v1/events"

func (s *Server) observe(from side, pattern string, status int, took time.Duration) {
	switch pattern {
	case eventsRoute:
		return
	case "":
		pattern = "none"
	}
	s.took.WithLabelValues(from.String(), pattern, strconv.Itoa(status)).Observe(took.Seconds())
}

func (f side) String() string { return [...]string{"loopback", "remote", "stream"}[f] }

// metrics shows the numbers in the text format of Prometheus.
func (s *Server) metrics(_ context.Context, in *exchange) (*huma.StreamResponse, error) {
	h := promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// One number that cannot be had must not hide the others.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
	return &huma.StreamResponse{Body: func(huma.Context) { h.ServeHTTP(in.w, in.r) }}, nil
}
