package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-dev/writ/authority"
)

// metrics are the server's own, and the authority's read when they are asked
// for. docs/metrics.md tells every one; a test holds the page to what a node says.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "writ_http_requests_total", Help: "Calls answered, by route and HTTP status.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "writ_http_request_seconds", Help: "Time to answer a call, in seconds.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route"}),
	}
	m.registry.MustRegister(m.requests, m.seconds, newCollector(s),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) observe(route string, status int, took time.Duration) {
	m.count(route, status)
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) count(route string, status int) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, MaxRequestsInFlight: 4, Timeout: 5 * time.Second})
}

// gauge is one number of the authority's.
type gauge struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*authority.Metrics) float64
}

// collector reads the authority's numbers when it is scraped.
type collector struct {
	s       *Server
	gauges  []gauge
	queue   *prometheus.Desc
	streams *prometheus.Desc
	attests *prometheus.Desc
}

func newCollector(s *Server) *collector {
	c := &collector{
		s:       s,
		queue:   prometheus.NewDesc("writ_queue", "Commands that wait for the proposer, by lane.", []string{"lane"}, nil),
		streams: prometheus.NewDesc("writ_feed_streams", "Feeds open.", nil, nil),
		attests: prometheus.NewDesc("writ_attestations_total", "Attestations accepted, and refused by reason at either step.", []string{"outcome"}, nil),
	}
	add := func(kind prometheus.ValueType, name, help string, value func(*authority.Metrics) float64) {
		c.gauges = append(c.gauges, gauge{prometheus.NewDesc(name, help, nil, nil), kind, value})
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	g, n := prometheus.GaugeValue, prometheus.CounterValue
	add(g, "writ_raft_applied_index", "Index of the last command applied.", func(m *authority.Metrics) float64 { return float64(m.Applied) })
	add(g, "writ_raft_commit_index", "Index of the last command committed.", func(m *authority.Metrics) float64 { return float64(m.CommitIndex) })
	add(g, "writ_raft_term", "Raft term.", func(m *authority.Metrics) float64 { return float64(m.Term) })
	add(g, "writ_raft_leader", "1 on the leader.", func(m *authority.Metrics) float64 { return flag(m.Leader) })
	add(g, "writ_raft_disk_full", "1 while the node cannot write.", func(m *authority.Metrics) float64 { return flag(m.DiskFull) })
	add(n, "writ_raft_proposals_total", "Commands proposed.", func(m *authority.Metrics) float64 { return float64(m.Proposals) })
	add(n, "writ_raft_entries_total", "Raft entries that carried them.", func(m *authority.Metrics) float64 { return float64(m.ProposedEntries) })
	add(n, "writ_raft_refusals_total", "Commands refused.", func(m *authority.Metrics) float64 { return float64(m.Refusals) })
	add(n, "writ_raft_read_indexes_total", "Quorum reads.", func(m *authority.Metrics) float64 { return float64(m.ReadIndexes) })
	add(n, "writ_feed_pings_total", "Pings received.", func(m *authority.Metrics) float64 { return float64(m.Pings) })
	add(n, "writ_feed_pongs_total", "Pongs sent.", func(m *authority.Metrics) float64 { return float64(m.Pongs) })
	add(g, "writ_ready", "1 while the node can serve; /readyz says why not.", func(*authority.Metrics) float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return flag(s.a.Ready(ctx) == nil)
	})
	add(g, "writ_raft_failed", "1 once the node has met what it cannot go on after.", func(m *authority.Metrics) float64 { return flag(m.Failed) })
	add(g, "writ_state_age_seconds", "Seconds since a quorum was asked to confirm this node's state, and did.", func(m *authority.Metrics) float64 { return m.Age.Seconds() })
	add(g, "writ_disk_free_bytes", "Bytes free on the file system of the data directory.", func(m *authority.Metrics) float64 { return float64(m.FreeBytes) })
	add(g, "writ_tokens", "Tokens in the registry.", func(m *authority.Metrics) float64 { return float64(m.Tokens) })
	add(g, "writ_revocations", "Revocations in force.", func(m *authority.Metrics) float64 { return float64(m.Revocations) })
	add(g, "writ_services", "Services.", func(m *authority.Metrics) float64 { return float64(m.Services) })
	add(g, "writ_leases", "Leases open.", func(m *authority.Metrics) float64 { return float64(m.Leases) })
	add(g, "writ_budgets", "Call budgets alive.", func(m *authority.Metrics) float64 { return float64(m.Budgets) })
	add(g, "writ_audit_records", "Records in the audit log.", func(m *authority.Metrics) float64 { return float64(m.AuditSize) })
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for i := range c.gauges {
		ch <- c.gauges[i].desc
	}
	ch <- c.queue
	ch <- c.streams
	ch <- c.attests
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	m := c.s.a.Metrics()
	for i := range c.gauges {
		g := &c.gauges[i]
		ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value(&m))
	}
	for lane, n := range map[string]int{"revoke": m.QueueRevoke, "lease": m.QueueLease, "issue": m.QueueIssue} {
		ch <- prometheus.MustNewConstMetric(c.queue, prometheus.GaugeValue, float64(n), lane)
	}
	for outcome, n := range m.Attestations {
		ch <- prometheus.MustNewConstMetric(c.attests, prometheus.CounterValue, float64(n), outcome)
	}
	c.s.streamsMu.Lock()
	open := c.s.open
	c.s.streamsMu.Unlock()
	ch <- prometheus.MustNewConstMetric(c.streams, prometheus.GaugeValue, float64(open))
}
