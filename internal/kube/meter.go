package kube

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// meter holds the metrics.
type meter struct {
	registry                               *prometheus.Registry
	took                                   prometheus.Histogram
	rounds, writes                         *prometheus.CounterVec
	last                                   prometheus.Gauge
	services, balancers, missing, problems prometheus.Gauge
}

func newMeter() *meter {
	const space = "bulkhead_kube_proxy"
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Name: name, Help: help})
	}
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Name: name, Help: help}, []string{label})
	}
	m := &meter{
		registry:  prometheus.NewRegistry(),
		took:      prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: space, Name: "sync_duration_seconds", Help: "How long rounds take.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		rounds:    counter("syncs_total", "Rounds, by result.", "result"),
		writes:    counter("writes_total", "Changes that the daemon was asked for.", "change"),
		last:      gauge("last_sync_timestamp_seconds", "When the last round ended that did all."),
		services:  gauge("services", "Services that are watched."),
		balancers: gauge("load_balancers", "Load balancers that the daemon has for them."),
		missing:   gauge("missing_backends", "Back ends that the network does not have yet."),
		problems:  gauge("problems", "What Services ask for that cannot be."),
	}
	m.registry.MustRegister(m.took, m.rounds, m.writes, m.last, m.services, m.balancers, m.missing, m.problems)
	return m
}

func (m *meter) wrote(change string) { m.writes.WithLabelValues(change).Inc() }

func (m *meter) round(took time.Duration, err error, services, balancers, missing, problems int) {
	m.took.Observe(took.Seconds())
	m.services.Set(float64(services))
	m.balancers.Set(float64(balancers))
	m.missing.Set(float64(missing))
	m.problems.Set(float64(problems))
	if err != nil {
		m.rounds.WithLabelValues("error").Inc()
		return
	}
	m.rounds.WithLabelValues("success").Inc()
	m.last.SetToCurrentTime()
}

func (m *meter) serve(ctx context.Context, l net.Listener, failed chan<- error) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	serve(ctx, l, mux, failed)
}
