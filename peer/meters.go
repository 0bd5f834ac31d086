package peer

import (
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"vizpeer/authz"
	"vizpeer/lease"
)

// meters are what this machine counts for Prometheus as it happens. What is known anyway
// is read when it is asked for: see [Peer.Collect].
type meters struct {
	registry *prometheus.Registry
	fetched  *prometheus.CounterVec
	commit   prometheus.Histogram
}

func newMeters(version string) *meters {
	m := &meters{
		registry: prometheus.NewRegistry(),
		fetched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vizpeer_fetch_bytes_total", Help: "Bytes of content that came from other machines, by what those are: coordinator, worker or other.",
		}, []string{"source"}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vizpeer_raft_commit_seconds", Help: "How long commands took until a majority had them on disk and this machine, the leader, had applied them.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vizpeer_build_info", Help: "1; the label says which version of vizpeer this is.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.fetched, m.commit, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *meters) took(d time.Duration) { m.commit.Observe(d.Seconds()) }

// came counts content that came from another machine.
func (p *Peer) came(from peer.ID, bytes int64) {
	source := "other"
	if v := p.gate.view(); v != nil {
		switch m, ok := v.Member(authz.PeerID(from.String())); {
		case ok && m.Coordinator:
			source = "coordinator"
		case ok && m.Worker:
			source = "worker"
		}
	}
	p.meters.fetched.WithLabelValues(source).Add(float64(bytes))
}

// The numbers that are read when they are asked for.
var (
	queueTasks = prometheus.NewDesc("vizpeer_queue_tasks", "Tasks of all jobs, by the tier of the job and their own state; on coordinators.", []string{"tier", "state"}, nil)
	queueJobs  = prometheus.NewDesc("vizpeer_queue_open_jobs", "Jobs that have not ended; on coordinators.", nil, nil)
	tasksEnded = prometheus.NewDesc("vizpeer_tasks_total", "Tasks that ended while this machine led the queue, by how: done or failed.", []string{"state"}, nil)
	framesDone = prometheus.NewDesc("vizpeer_frames_done_total", "Frames that became done while this machine led the queue.", nil, nil)
	expiries   = prometheus.NewDesc("vizpeer_lease_expiries_total", "Leases that ran out while this machine led the queue.", nil, nil)
	raftTerm   = prometheus.NewDesc("vizpeer_raft_term", "The term of the queue's leader; on coordinators.", nil, nil)
	raftLeads  = prometheus.NewDesc("vizpeer_raft_is_leader", "1 where this machine leads the queue, else 0; on coordinators.", nil, nil)
	raftLog    = prometheus.NewDesc("vizpeer_raft_log_index", "The last entry of the queue's log that is committed, and the last that is applied here; on coordinators.", []string{"state"}, nil)
	workers    = prometheus.NewDesc("vizpeer_workers", "Machines that render, by state; on the leader.", []string{"state"}, nil)
	attempts   = prometheus.NewDesc("vizpeer_attempts", "Attempts that this machine makes now.", nil, nil)
	unkept     = prometheus.NewDesc("vizpeer_unkept_frames", "Finished frames that, as far as this machine knows, only it holds.", nil, nil)
	toSubmit   = prometheus.NewDesc("vizpeer_waiting_jobs", "Jobs that wait on this machine for somebody to lead the queue.", nil, nil)
	connected  = prometheus.NewDesc("vizpeer_connected_peers", "Other machines of the farm that this one is connected with.", nil, nil)
	sent       = prometheus.NewDesc("vizpeer_content_sent_bytes_total", "Bytes of content that this machine sent to others.", nil, nil)
	certEnds   = prometheus.NewDesc("vizpeer_certificate_expiry_timestamp_seconds", "When the certificate for HTTPS ends; where there is one.", nil, nil)
)

var _ prometheus.Collector = (*Peer)(nil)

// Describe leaves out what not every machine has: the collector is an unchecked one.
func (p *Peer) Describe(chan<- *prometheus.Desc) {}

// Collect reads the numbers. It looks at no job and no task, and at no disk.
func (p *Peer) Collect(out chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	p.worker.mu.Lock()
	n := len(p.worker.attempts)
	p.worker.mu.Unlock()
	put(attempts, gauge, float64(n))
	put(unkept, gauge, float64(p.worker.results.frames()))
	put(toSubmit, gauge, float64(p.outbox.Count()))
	put(connected, gauge, float64(len(p.members())))
	put(sent, counter, float64(p.exchange.Stats().Sent))
	if leaf := p.certs.listener.Leaf(); leaf != nil {
		put(certEnds, gauge, float64(leaf.Until().Unix()))
	}
	if p.coord == nil {
		return
	}
	q := p.coord.Numbers()
	for _, tier := range []lease.Tier{lease.Low, lease.Normal, lease.High, lease.Urgent} {
		for _, s := range []lease.TaskState{lease.TaskQueued, lease.TaskLeased, lease.TaskRendered, lease.TaskDone, lease.TaskFailed, lease.TaskCancelled} {
			put(queueTasks, gauge, float64(q.Tasks[tier][s]), string(tier), string(s))
		}
	}
	put(queueJobs, gauge, float64(q.OpenJobs))
	put(tasksEnded, counter, float64(q.Done), string(lease.TaskDone))
	put(tasksEnded, counter, float64(q.Failed), string(lease.TaskFailed))
	put(framesDone, counter, float64(q.Frames))
	put(expiries, counter, float64(q.Expired))
	put(raftTerm, gauge, float64(q.Term))
	leads := 0.0
	if q.Leads {
		leads = 1
	}
	put(raftLeads, gauge, leads)
	put(raftLog, gauge, float64(q.CommitIndex), "committed")
	put(raftLog, gauge, float64(q.AppliedIndex), "applied")
	for _, state := range slices.Sorted(maps.Keys(q.Workers)) {
		put(workers, gauge, float64(q.Workers[state]), state)
	}
}
